"""A real OTLP receiver over HTTP beside the gateway: one span a generation, whatever became of it, and no secret."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import StartGateway
from tests.kit.program import Gateway, free_port
from tests.kit.sse_client import Response, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    OPENAI_USAGE,
    Exchange,
    Hang,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    openai_delta,
    response,
    sse_head,
)

KEY = "client-key-0123456789"
API_KEY = "sk-upstream-0123456789"
PROMPT = "a-prompt-nobody-may-trace"
ANSWER = "an-answer-nobody-may-trace"
PRINCIPAL = "principal-nobody-may-trace"
SECRETS = (KEY, API_KEY, PROMPT, ANSWER, PRINCIPAL)
TRACE, CALLER = f"{0xABC:032x}", f"{0xDEF:016x}"
PARENT = f"00-{TRACE}-{CALLER}-01"


class Receiver:
    """An OTLP receiver.

    Args:
        deaf: whether it takes requests and never answers.

    Attributes:
        url: what `OTEL_EXPORTER_OTLP_ENDPOINT` is to say.
        spans: all so far, as plain values.
        resource: of the last request.
        said: everything it was sent.
    """

    def __init__(self, *, deaf: bool = False) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.spans: list[dict[str, Any]] = []
        self.resource: dict[str, Any] = {}
        self.said = b""
        self.asked = asyncio.Event()
        self._deaf = deaf
        self._came = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._take), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, sent: web.BaseRequest) -> web.Response:
        assert (sent.path, sent.content_type) == ("/v1/traces", "application/x-protobuf")
        body = await sent.read()
        self.asked.set()
        if self._deaf:
            await asyncio.Event().wait()
        self.said += body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _plain(group.resource.attributes)
            self.spans += [_span(span) for scope in group.scope_spans for span in scope.spans]
        async with self._came:
            self._came.notify_all()
        return web.Response(content_type="application/x-protobuf")

    async def span_of(self, request_id: str) -> dict[str, Any]:
        """The one span of a request."""
        async with asyncio.timeout(10), self._came:
            await self._came.wait_for(lambda: self._of(request_id))
        (span,) = self._of(request_id)
        return span

    def _of(self, request_id: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["attributes"]["gateway.request_id"] == request_id]


def _span(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": span.kind,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "failed": span.status.code == 2,
        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "attributes": _plain(span.attributes),
        "events": [(event.name, _plain(event.attributes)) for event in span.events],
    }


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


# -- the scene ---------------------------------------------------------------------------------------------------------


def answer(exchange: Exchange) -> list[Step]:
    """What the upstream says, by its path."""
    kind = exchange.target.split("/")[1]
    if kind == "broken" and len(exchange.json()["messages"]) > 1:
        return [response(400, '{"error": {"message": "no prefill"}}')]
    if kind == "refusing":
        return [response(503, "busy")]
    beginning = [sse_head(), openai_delta(ANSWER)]
    if kind in ("cut", "broken"):
        return [*beginning, Reset()]
    if kind == "hanging":
        return [*beginning, Hang()]
    if kind == "legacy":
        return [sse_head(), chunk(f"data: {ANSWER}\n\n"), LAST_CHUNK]
    return [*beginning, openai_delta("!"), OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]


def config(url: str) -> dict[str, Any]:
    kinds = ("good", "cut", "hanging", "refusing", "broken", "legacy")
    upstreams = {
        kind: {
            "dialect": "openai",
            "targets": [{"url": f"{url}/{kind}"}],
            "api_key": API_KEY,
            "retries": 0,
            "breaker": {"failures": 1000},
        }
        for kind in kinds
    }
    for kind in ("refusing", "broken"):
        upstreams[kind]["fallback"] = ["good"]
    chat: dict[str, Any] = {"api": "chat", "history": None, "model": "gpt"}
    return {
        "server": {"drain": "100ms"},
        "auth": {"keys": [{"id": PRINCIPAL, "key": KEY}]},
        "stream": {"on_disconnect": {"after": "0s"}},
        "upstreams": upstreams,
        "routes": [
            *({"path": f"/{kind}", "upstream": kind} | chat for kind in kinds[:-1]),
            {"path": "/v1/chat/completions", "api": "openai", "upstream": "good"},
            {"path": "/legacy/{path}", "api": "proxy", "upstream": "legacy"},
        ],
    }


class Scene:
    """A gateway between a client, an upstream and a receiver of spans."""

    def __init__(self, gateway: Gateway, upstream: ScriptedUpstream, receiver: Receiver) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.receiver = receiver

    async def send(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> Response:
        sent = {"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"} | headers
        return await request(f"{self.gateway.url}{path}", method="POST", headers=sent, body=body or {"message": PROMPT})

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """The span of an answer that was read to its end."""
        async with await self.send(path, body, **headers) as got:
            await got.body()
        return await self.receiver.span_of(got.headers["x-request-id"])

    @property
    def told(self) -> list[dict[str, str]]:
        """The trace context of every request to the upstream."""
        names = ("traceparent", "tracestate")
        return [
            {name: exchange.headers[name] for name in names if name in exchange.headers}
            for exchange in self.upstream.exchanges
        ]


@pytest.fixture
async def scene(start_gateway: StartGateway) -> AsyncIterator[Scene]:
    async with ScriptedUpstream(answer) as upstream, Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        yield Scene(await start_gateway(config(upstream.url), env=env), upstream, receiver)
        assert not [secret for secret in SECRETS if secret.encode() in receiver.said]


# -- what became of a generation ---------------------------------------------------------------------------------------


async def test_answer_is_one_span_of_the_callers_trace(scene: Scene) -> None:
    span = await scene.ask("/good", traceparent=PARENT, tracestate="vendor=1")
    attributes = span["attributes"]
    assert (span["name"], span["kind"], span["trace"], span["parent"]) == ("chat gpt", 3, TRACE, CALLER)
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.provider.name"]) == ("chat", "openai")
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (3, 5)
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert (attributes["server.address"], attributes["server.port"]) == ("127.0.0.1", scene.upstream.port)
    assert (attributes["gateway.route"], attributes["gateway.outcome"], span["failed"]) == ("/good", "completed", False)
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] < span["seconds"] < 5
    assert [name for name, _ in span["events"]] == ["gateway.first_token"]
    assert scene.told == [{"traceparent": f"00-{TRACE}-{span['id']}-01", "tracestate": "vendor=1"}]
    assert scene.receiver.resource["service.name"] == "sse-gateway"


async def test_caller_without_a_trace_begins_one(scene: Scene) -> None:
    body = {"model": "gpt", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    span = await scene.ask("/v1/chat/completions", body, traceparent=PARENT.upper(), tracestate="vendor=1")
    assert (span["parent"], span["name"], span["trace"] != TRACE) == ("", "chat gpt", True)
    (told,) = scene.told  # no list without its parent; the flags say that the trace's id is random too
    assert (list(told), told["traceparent"][:-2]) == (["traceparent"], f"00-{span['trace']}-{span['id']}-")


async def test_answer_that_breaks_off_is_a_failed_span(scene: Scene) -> None:
    span = await scene.ask("/cut")
    attributes = span["attributes"]
    assert (span["failed"], attributes["error.type"]) == (True, "upstream_cut")
    assert (attributes["gateway.outcome"], attributes["gateway.events"]) == ("upstream_error", 1)
    assert "gen_ai.usage.output_tokens" not in attributes
    failed = {"gateway.upstream": "cut", "error.type": "upstream_cut"}
    assert ("gateway.attempt_failed", failed) in span["events"]


async def test_reader_who_goes_is_no_failure(scene: Scene) -> None:
    async with await scene.send("/hanging") as got:
        while "token" not in ((await got.next()) or ("",))[0]:
            pass
    span = await scene.receiver.span_of(got.headers["x-request-id"])
    assert (span["failed"], span["attributes"]["gateway.outcome"]) == (False, "client_gone")


async def test_fallback_is_an_event_and_the_answer_the_other_ones(scene: Scene) -> None:
    span = await scene.ask("/refusing", traceparent=PARENT)
    attributes = span["attributes"]
    assert (attributes["gateway.upstream"], attributes["gateway.attempts"], span["failed"]) == ("good", 2, False)
    assert span["events"][0][0] == "gateway.attempt_failed"
    assert span["events"][0][1]["gateway.upstream"] == "refusing"
    assert [told["traceparent"] for told in scene.told] == [f"00-{TRACE}-{span['id']}-01"] * 2


async def test_rescue_is_an_event(scene: Scene) -> None:
    span = await scene.ask("/broken")
    assert ("gateway.outcome", "completed") in span["attributes"].items()
    assert [name for name, _ in span["events"] if name == "gateway.rescue"]


async def test_proxied_stream_carries_the_spans_context(scene: Scene) -> None:
    span = await scene.ask("/legacy/events", Traceparent=PARENT)
    assert (span["name"], span["trace"], span["parent"]) == ("proxy /legacy/{path}", TRACE, CALLER)
    assert scene.told == [{"traceparent": f"00-{TRACE}-{span['id']}-01"}]
    assert scene.upstream.exchanges[0].head.lower().count(b"traceparent:") == 1


# -- on, off, and out of reach -----------------------------------------------------------------------------------------


@asynccontextmanager
async def untraced(start_gateway: StartGateway, env: Mapping[str, str]) -> AsyncIterator[Scene]:
    async with ScriptedUpstream(answer) as upstream:
        yield Scene(await start_gateway(config(upstream.url), env=env), upstream, Receiver())


async def read(scene: Scene, path: str, **headers: str) -> None:
    async with await scene.send(path, None, **headers) as got:
        assert ANSWER in (await got.body()).decode()


async def test_gateway_without_tracing_passes_the_callers_context_on(start_gateway: StartGateway) -> None:
    async with untraced(start_gateway, {}) as scene:
        await read(scene, "/good", traceparent=PARENT, tracestate="vendor=1")
        await read(scene, "/good", traceparent=f"{PARENT}0", tracestate="vendor=1")
        await read(scene, "/legacy/x", traceparent=PARENT, tracestate="vendor=1")
        assert scene.told == [
            {"traceparent": PARENT, "tracestate": "vendor=1"},
            {},
            {"traceparent": PARENT, "tracestate": "vendor=1"},
        ]


async def test_gateway_that_samples_nothing_passes_a_context_on(start_gateway: StartGateway) -> None:
    async with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_TRACES_SAMPLER": "always_off"}
        async with untraced(start_gateway, env) as scene:
            await read(scene, "/good", traceparent=PARENT)
            await scene.gateway.stop()
        told = scene.told[0]["traceparent"]
    assert told.startswith(f"00-{TRACE}-")
    assert told.endswith("-00")
    assert (CALLER in told, receiver.spans) == (False, [])


async def test_receiver_that_is_down_is_told_of_once(start_gateway: StartGateway) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }
    async with untraced(start_gateway, env) as scene:
        await read(scene, "/good")
        await scene.gateway.logged("spans_lost", level="warning")
        for _ in range(3):
            await read(scene, "/good")
        await scene.gateway.stop()
        said = [line for line in scene.gateway.log_lines() if line["level"] != "info"]
        assert [line["event"] for line in said] == ["spans_lost"]


async def test_spans_of_the_last_streams_are_sent_when_it_drains(start_gateway: StartGateway) -> None:
    async with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        async with untraced(start_gateway, env) as scene, await scene.send("/hanging") as got:
            await got.next()
            scene.gateway.config["server"]["drain"] = "100ms"
            await scene.gateway.stop()
        span = await receiver.span_of(got.headers["x-request-id"])
        assert (span["attributes"]["gateway.outcome"], span["failed"]) == ("drained", True)


async def test_receiver_that_never_answers_delays_the_end_by_two_seconds_at_most(start_gateway: StartGateway) -> None:
    async with Receiver(deaf=True) as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        async with untraced(start_gateway, env) as scene:
            await read(scene, "/good")
            await asyncio.wait_for(receiver.asked.wait(), 5)
            await read(scene, "/good")  # the loop does not wait for the thread that waits
            await scene.gateway.stop(timeout=5)
            assert [line["event"] for line in scene.gateway.log_lines() if line["level"] == "warning"] == ["spans_lost"]
