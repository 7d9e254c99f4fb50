"""Spans as the SDK has them: names and values by the conventions, times by the loop's clock, and a quiet exporter."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from structlog.testing import capture_logs

from gateway.core.event import Usage
from gateway.observe.tracing.context import read_context
from gateway.observe.tracing.otel import Exporter, Recorded, Recording
from gateway.observe.tracing.span import Span, SpanEnding, SpanOpening

OPENING = SpanOpening(100.0, "/chat", "gpt", "openai", "r1", True)
ENDING = SpanEnding("completed", "", "main", "gpt-4o", "stop", Usage(11, 7), 100.5, 101.0, 102.0, 1, 4)


@pytest.fixture
async def begin(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], Recording]]:
    """Makes tracings as the environment says; they are ended with the test, and nobody takes their spans."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    begun: list[Recording] = []

    def begin() -> Recording:
        begun.append(Recording(lambda: 100.75, structlog.get_logger()))
        return begun[-1]

    yield begin
    for tracing in begun:
        await tracing.close()


@pytest.fixture
def tracing(begin: Callable[[], Recording]) -> Recording:
    return begin()


def ended(span: Span, ending: SpanEnding = ENDING) -> ReadableSpan:
    span.end(ending)
    assert isinstance(span, Recorded)
    assert isinstance(span._span, ReadableSpan)
    return span._span


def test_answer_has_the_conventions_names(tracing: Recording) -> None:
    span = tracing.span(None, OPENING)
    span.ask("main", "anthropic", "https://user:secret@llm.example/v1")
    done = ended(span)
    assert (done.name, done.kind, done.parent, done.status.is_ok) == ("chat gpt", SpanKind.CLIENT, None, True)
    assert done.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "gpt",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-4o",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "gateway.route": "/chat",
        "gateway.request_id": "r1",
        "gateway.outcome": "completed",
        "gateway.upstream": "main",
        "gateway.attempts": 1,
        "gateway.events": 4,
        "server.address": "llm.example",
        "server.port": 443,
    }


def test_times_are_the_loops(tracing: Recording) -> None:
    span = tracing.span(None, OPENING)
    span.attempt_failed("main", "upstream_cut")
    span.rescue("prefill", "completed")
    done = ended(span)
    begun = done.start_time or 0
    moments = [(event.name, (event.timestamp - begun) / 1e9) for event in done.events]
    assert moments == [("gateway.attempt_failed", 0.75), ("gateway.rescue", 0.75), ("gateway.first_token", 1.0)]
    assert (done.end_time or 0) - begun == 2e9


def test_failure_that_answered_nothing_has_no_answer(tracing: Recording) -> None:
    failed = ENDING._replace(
        outcome="timeout",
        error="upstream_timeout",
        model="",
        finish_reason="",
        first=0.0,
        usage=Usage(5, 0, "estimate"),
    )
    done = ended(tracing.span(None, OPENING), failed)
    assert (done.status.is_ok, (done.attributes or {})["error.type"]) == (False, "upstream_timeout")
    assert not [
        name for name in done.attributes or {} if name.startswith(("gen_ai.response", "gen_ai.usage", "server"))
    ]
    assert not done.events


def test_proxied_stream_says_nothing_of_a_model(tracing: Recording) -> None:
    span = tracing.span(None, OPENING._replace(route="/legacy/{path}", model="", chat=False))
    span.ask("main", "openai", "http://legacy:8000/")
    done = ended(span)
    assert done.name == "proxy /legacy/{path}"
    assert not [name for name in done.attributes or {} if name.startswith("gen_ai")]
    assert (done.attributes or {})["server.port"] == 8000


def test_model_that_a_client_made_up_is_cut_and_can_be_sent(tracing: Recording) -> None:
    done = ended(tracing.span(None, OPENING._replace(model="\ud800" + "模" * 500)))
    assert done.name == "chat ?" + "模" * 127


@pytest.mark.parametrize(("sampler", "flags"), [("always_off", "00"), ("parentbased_always_on", "01")])
def test_call_carries_the_spans_own_context(
    sampler: str, flags: str, monkeypatch: pytest.MonkeyPatch, begin: Callable[[], Recording]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    context = read_context([f"00-{1:032x}-{2:016x}-01"], ["a=1,b=2"])
    span = begin().span(context, OPENING)
    version, trace_id, own, said = span.headers["traceparent"].split("-")
    assert (version, trace_id, said, span.headers["tracestate"]) == ("00", f"{1:032x}", flags, "a=1,b=2")
    assert own not in (f"{0:016x}", f"{2:016x}")
    assert span.recording == (flags == "01")


def test_service_is_named_by_the_operator_first(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[[], Recording]
) -> None:
    assert begin()._provider.resource.attributes["service.name"] == "sse-gateway"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=blue")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    named = begin()._provider.resource.attributes
    assert (named["service.name"], named["service.version"], named["team"]) == ("chat", "7", "blue")


class Receiver(SpanExporter):
    """Takes spans or not, and says what the SDK's exporter says."""

    def __init__(self) -> None:
        self.up = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if not self.up:
            logging.getLogger(__name__).warning("connection refused, retrying")
            logging.getLogger(__name__).error("given up")
        return SpanExportResult.SUCCESS if self.up else SpanExportResult.FAILURE


def test_exporter_says_once_that_spans_are_lost_and_once_that_they_are_not(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver()
    with capture_logs() as lines:
        exporter = Exporter(receiver, structlog.get_logger())
        for receiver.up in (True, False, False, True, True, False):
            exporter.export(())
    assert [line["event"] for line in lines] == ["spans_lost", "spans_sent_again", "spans_lost"]
    assert lines[0]["detail"] == "connection refused, retrying"
    assert not caplog.records
