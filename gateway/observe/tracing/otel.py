"""Spans recorded with OpenTelemetry's SDK and sent as OTLP over HTTP, by a thread of the SDK.

Invariants:

- The loop never waits for the receiver: a full queue drops spans, and the last flush takes at most `FLUSH` seconds.
- A receiver that is down is logged once, and once more when it accepts spans again.
- A trace that is not sampled is still passed on to upstreams, so that it does not fall apart.

Names and values follow the conventions where there are some. Those of the gateway's own begin with `gateway.`.

Source: OpenTelemetry semantic conventions for generative AI, inference spans; W3C Trace Context 4.3.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from structlog.typing import FilteringBoundLogger

from gateway.dialects import DIALECTS
from gateway.observe.gen_ai import OPERATION
from gateway.observe.tracing.context import TRACEPARENT, TRACESTATE, TraceContext
from gateway.observe.tracing.span import Span, SpanEnding, SpanOpening, Tracing

FLUSH: Final = 2.0
"""Seconds that the last spans have to be sent."""
MAX_TEXT: Final = 128
"""Characters of a text that a client or an upstream chose, for example a model's name."""
SERVICE: Final = "sse-gateway"
SCOPE: Final = "gateway"
PORTS: Final = {"http": 80, "https": 443}

Attributes = dict[str, Any]


class Recording(Tracing):
    """Begins spans, and has them sent as the process's `OTEL_…` variables say.

    Args:
        now: the loop's clock, in seconds.
        logger: told when spans are lost.

    Raises:
        ValueError: a variable has a value that makes no sense.
    """

    def __init__(self, now: Callable[[], float], logger: FilteringBoundLogger) -> None:
        self._now = now
        self._logger = logger
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(Exporter(OTLPSpanExporter(), logger)))
        self._tracer = self._provider.get_tracer(SCOPE, version(SERVICE))

    def span(self, context: TraceContext | None, opening: SpanOpening) -> Span:
        """The span of a generation that begins now; the span of the client's request is its parent."""
        # The span's times are wall-clock times. Only its begin is read from that clock, which may jump.
        begun = time.time_ns()
        span = self._tracer.start_span(
            _name(opening),
            context=_parent(context),
            kind=SpanKind.CLIENT,
            attributes=_first_attributes(opening),
            start_time=begun,
        )
        headers = _headers(span.get_span_context())
        return Recorded(span, headers, opening, begun, self._now) if span.is_recording() else Span(headers)

    async def close(self) -> None:
        """Sends what was recorded; after `FLUSH` seconds the rest is lost."""
        # In a daemon thread of its own: at its end, the process would wait for a thread of an executor without limit.
        flush = threading.Thread(target=self._provider.shutdown, name="span-flush", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH)
        if flush.is_alive():
            self._logger.warning("spans_lost", detail=f"the receiver did not take the last ones within {FLUSH} s")


class Recorded(Span):
    """A span that is recorded.

    Args:
        span: the SDK's span.
        headers: its own context, for upstreams.
        opening: what is known of its generation.
        begun: when it began, in nanoseconds since the epoch.
        now: the loop's clock, in seconds. It never jumps, so every later time is counted with it from `begun`.
    """

    __slots__ = ("_asked", "_begun", "_now", "_opening", "_span")
    recording = True

    def __init__(
        self, span: trace.Span, headers: dict[str, str], opening: SpanOpening, begun: int, now: Callable[[], float]
    ) -> None:
        super().__init__(headers)
        self._span = span
        self._opening = opening
        self._begun = begun
        self._now = now
        self._asked: dict[str, tuple[str, str]] = {}

    def ask(self, upstream: str, dialect: str, url: str) -> None:
        """A target of this upstream is being asked."""
        self._asked[upstream] = dialect, url  # bounded by the chain of fallbacks

    def attempt_failed(self, upstream: str, code: str) -> None:
        """An attempt failed: an event of the span."""
        self._tell("attempt_failed", self._now(), {"gateway.upstream": upstream, "error.type": code})

    def rescue(self, kind: str, result: str) -> None:
        """A broken answer was continued or begun again: an event of the span."""
        self._tell("rescue", self._now(), {"gateway.rescue.kind": kind, "gateway.rescue.result": result})

    def end(self, ending: SpanEnding) -> None:
        """The span is complete, and is queued to be sent."""
        if ending.first:
            self._tell("first_token", ending.first, {})
        self._span.set_attributes(self._last_attributes(ending))
        if ending.error:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._at(ending.finished))

    def _tell(self, event: str, at: float, attributes: Attributes) -> None:
        self._span.add_event(f"gateway.{event}", attributes, self._at(at))

    def _at(self, moment: float) -> int:
        return self._begun + max(0, round((moment - self._opening.started) * 1e9))

    def _last_attributes(self, ending: SpanEnding) -> Attributes:
        dialect, url = self._asked.get(ending.upstream, ("", ""))
        attributes: Attributes = {
            "gateway.outcome": ending.outcome,
            "gateway.upstream": ending.upstream,
            "gateway.attempts": ending.attempts,
            "gateway.events": ending.events,
            **_server(url),
        }
        if ending.error:
            attributes["error.type"] = ending.error
        if self._opening.chat:
            attributes |= _provider(dialect) | _answer(ending)
        return attributes


def _name(opening: SpanOpening) -> str:
    what = opening.model if opening.chat else opening.route
    return f"{OPERATION if opening.chat else 'proxy'} {_text(what)}".rstrip()


def _first_attributes(opening: SpanOpening) -> Attributes:
    """The attributes that a sampler can look at."""
    attributes: Attributes = {"gateway.route": opening.route, "gateway.request_id": opening.request_id}
    if opening.chat:
        attributes |= {"gen_ai.operation.name": OPERATION, "gen_ai.request.stream": True} | _provider(opening.dialect)
        if opening.model:
            attributes["gen_ai.request.model"] = _text(opening.model)
    return attributes


def _provider(dialect: str) -> Attributes:
    provider = DIALECTS[dialect].provider if dialect else ""
    return {"gen_ai.provider.name": provider} if provider else {}


def _server(url: str) -> Attributes:
    parts = urlsplit(url)
    if parts.hostname is None:
        return {}
    return {"server.address": parts.hostname, "server.port": parts.port or PORTS.get(parts.scheme, 0)}


def _answer(ending: SpanEnding) -> Attributes:
    attributes: Attributes = {}
    if ending.model:
        attributes["gen_ai.response.model"] = _text(ending.model)
    if ending.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = (_text(ending.finish_reason),)
    if ending.first:
        attributes["gen_ai.response.time_to_first_chunk"] = ending.first - ending.asked
    if ending.usage.source == "usage":  # the conventions want no estimate
        attributes["gen_ai.usage.input_tokens"] = ending.usage.input
        attributes["gen_ai.usage.output_tokens"] = ending.usage.output
    return attributes


def _text(text: str) -> str:
    # Half a character (a surrogate) cannot be encoded, and would cost the whole batch of spans.
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()


# -- context -----------------------------------------------------------------------------------------------------------


def _parent(context: TraceContext | None) -> Context:
    if context is None:
        return Context()
    parent = SpanContext(
        context.trace_id,
        context.parent_id,
        is_remote=True,
        trace_flags=TraceFlags(context.flags),
        trace_state=TraceState.from_header([context.headers.get(TRACESTATE, "")]),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def _headers(context: SpanContext) -> dict[str, str]:
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state.to_header()
    return {TRACEPARENT: parent, TRACESTATE: state} if state else {TRACEPARENT: parent}


# -- sending -----------------------------------------------------------------------------------------------------------


def _resource() -> Resource:
    """The sender of the spans. What the environment says of it has precedence."""
    found = Resource.create()
    unnamed = str(found.attributes.get("service.name", "")).startswith("unknown_service")
    own = {"service.version": version(SERVICE)} | dict(found.attributes)
    return found.merge(Resource(own | {"service.name": SERVICE} if unnamed else own))


class Exporter(SpanExporter):
    """Sends spans by another exporter, and logs once when that fails and once when it works again.

    Args:
        inner: the exporter that sends.
        logger: told of both.
    """

    def __init__(self, inner: SpanExporter, logger: FilteringBoundLogger) -> None:
        self._inner = inner
        self._logger = logger
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends these spans, and says whether the receiver accepted them."""
        with _overheard(self._inner) as said:
            result = self._inner.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            self._logger.warning("spans_lost", count=len(spans), detail=said[0][:500] if said else "")
        elif self._failing and not failed:
            self._logger.info("spans_sent_again")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """No more spans come."""
        self._inner.shutdown()


@contextmanager
def _overheard(exporter: SpanExporter) -> Iterator[list[str]]:
    """What the exporter logs meanwhile, kept out of the log. It logs every failed try, and gives its reasons nowhere
    else."""
    logger, said = logging.getLogger(type(exporter).__module__), list[str]()

    def overhear(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    logger.addFilter(overhear)
    try:
        yield said
    finally:
        logger.removeFilter(overhear)
