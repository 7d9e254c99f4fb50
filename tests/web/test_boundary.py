"""The boundary of errors: what a client is sent when something fails that nobody foresaw, before and after the head
(H11)."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from typing import Any, Final

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.core.errors import GatewayError
from gateway.core.event import TOKEN, Event
from gateway.formats import CLASSES, Encoder, Spec, Stateless, View
from gateway.web import service
from gateway.web.exchange import Exchange
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Hang,
    Pause,
    ScriptedUpstream,
    Step,
    chunk,
    http_head,
    openai_answer,
    openai_delta,
    sse_head,
)
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, eventually, parsed, setting


class Fragile(Stateless):
    """A format that fails at the word `bad`."""

    announces_resume: Final = False
    spec: Spec = "fragile"

    def open(self, view: View) -> Encoder:
        return FragileEncoder()


class FragileEncoder(Stateless):
    def encode(self, event: Event, index: int) -> str:
        if event.type == TOKEN and event.data == "bad":
            raise ZeroDivisionError("a secret prompt")
        return f"data: {event.data or event.type}\n"

    def terminal(self, event: Event, index: int) -> str:
        return f"event: {event.type}\ndata: {event.data}\n"


class Hopeless(Fragile):
    """A format that fails at everything."""

    def open(self, view: View) -> Encoder:
        raise ZeroDivisionError("a secret prompt")


@pytest.fixture(autouse=True)
def _fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, "fragile", Fragile)


def routes(url: str) -> dict[str, Any]:
    return setting(url, [{"path": "/chat", "format": "fragile", "merge": False}])


async def ask(gateway: Serving, **headers: str) -> bytes:
    """Everything that comes on the connection, to its end."""
    async with await request(f"{gateway.url}/chat?message=hi", headers=EVENTS | headers) as answer:
        assert answer.status == 200
        await answer.body()
        return bytes(answer.raw)


def failed_requests(gateway: Serving) -> float:
    return gateway.app.gateway.metrics.http_requests.labels("/chat", "GET", "500").value


def answer_of(*texts: str, end: Sequence[Step] = (LAST_CHUNK,)) -> list[Step]:
    """An answer whose tokens come one by one."""
    return [sse_head(), *(step for text in texts for step in (openai_delta(text), Pause(0.1))), *end]


@pytest.mark.parametrize("end", [openai_answer()[1:], [Hang()]], ids=["whole", "goes on"])
async def test_exception_in_mid_stream_ends_it_with_one_error_event(end: list[Step]) -> None:
    script = answer_of("good", "bad", end=end)
    with capture_logs() as lines:
        async with ScriptedUpstream(script) as upstream, serving(routes(upstream.url)) as gateway:
            raw = await ask(gateway)
            assert failed_requests(gateway) == 1
            await eventually(lambda: slots(gateway), lambda taken: taken == (0, 0))
    messages = parsed(raw)
    assert [message.type for message in messages] == ["message", "message", "error"]
    assert [message.data for message in messages[:-1]] == ["start", "good"]
    assert messages[-1].json()["code"] == "internal"
    assert messages[-1].last_event_id.startswith("~"), "a browser that comes back must not meet the same event again"
    assert b"HTTP/1.1" not in raw, "a second head"
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["request_failed"]


async def test_timeout_in_mid_stream_ends_it_with_one_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp answers a handler's TimeoutError by itself, with a head, also behind a head that was sent."""

    def late(self: FragileEncoder, event: Event, index: int) -> str:
        if event.data == "bad":
            raise TimeoutError
        return f"data: {event.data or event.type}\n"

    monkeypatch.setattr(FragileEncoder, "encode", late)
    script = answer_of("good", "bad")
    async with ScriptedUpstream(script) as upstream, serving(routes(upstream.url)) as gateway:
        messages = parsed(await ask(gateway))
        assert failed_requests(gateway) == 1
    assert [message.type for message in messages] == ["message", "message", "error"]


async def slots(gateway: Serving) -> tuple[int, int]:
    """Readers and running generations, once nobody is left whose time runs."""
    app = gateway.app.gateway
    for generation in list(app.engine.running.values()):
        generation.stop()
    return app.registry.readers, len(app.engine.running)


async def test_connection_is_closed_behind_an_answer_that_failed() -> None:
    async with (
        ScriptedUpstream(openai_answer("bad")) as upstream,
        serving(routes(upstream.url)) as gateway,
        await request(f"{gateway.url}/chat?message=hi", headers=EVENTS) as answer,
    ):
        await answer.body()
        assert not answer.broken
        assert await asyncio.wait_for(answer._reader.read(), 5) == b""


async def test_answer_whose_failure_cannot_be_told_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    def speechless(self: FragileEncoder, event: Event, index: int) -> str:
        raise ZeroDivisionError("a secret prompt")

    monkeypatch.setattr(FragileEncoder, "terminal", speechless)
    script = answer_of("good", "bad")
    async with ScriptedUpstream(script) as upstream, serving(routes(upstream.url)) as gateway:
        async with await request(f"{gateway.url}/chat?message=hi", headers=EVENTS) as answer:
            await answer.body()
            assert answer.broken
            assert b"good" in answer.raw
            assert b"error" not in answer.raw
        assert failed_requests(gateway) == 1


async def test_other_readers_of_the_stream_are_not_touched() -> None:
    """The format fails for the reader that follows; one that comes later, from behind the bad event, gets the rest."""
    script = answer_of("good", "bad", end=openai_answer("fine")[1:])
    async with ScriptedUpstream(script) as upstream, serving(routes(upstream.url)) as gateway:
        first = parsed(await ask(gateway))
        stream_id, seq, tokens = first[1].last_event_id.split(".")
        cursor = f"{stream_id}.{int(seq) + 1}.{int(tokens) + 1}"
        async with await request(f"{gateway.url}/chat", headers=EVENTS, last_event_id=cursor) as answer:
            rest = parsed(await answer.body())
    assert [message.data for message in rest[:-1]] == ["fine"]
    assert rest[-1].type == "done"


async def test_exception_before_the_head_is_a_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, "fragile", Hopeless)
    async with ScriptedUpstream(openai_answer("a")) as upstream, serving(routes(upstream.url)) as gateway:
        headers = {"Accept": "*/*"}
        async with await request(f"{gateway.url}/chat?message=hi", headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (500, "internal")


async def test_exception_behind_a_head_that_was_passed_on_aborts_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: web.StreamResponse, data: bytes = b"") -> None:
        raise ZeroDivisionError("a secret prompt")

    script = [http_head(200, "text/plain", Transfer_Encoding="chunked"), chunk("half"), LAST_CHUNK]
    async with ScriptedUpstream(script) as upstream:
        config = setting(upstream.url, [{"path": "/proxy", "api": "proxy"}])
        async with serving(config) as gateway:
            monkeypatch.setattr(web.StreamResponse, "write_eof", fails)
            async with await request(f"{gateway.url}/proxy") as answer:
                await answer.body()
                assert (answer.status, answer.broken) == (200, True)
                assert b"HTTP/1.1" not in answer.raw, "a second head"


async def test_refused_request_is_forgotten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it waits for the garbage collector: errors come in crowds, each with a body of up to `max_body`."""
    asked: list[weakref.ref[Exchange]] = []

    class Watched(Exchange, weakref=True):
        def __post_init__(self) -> None:
            asked.append(weakref.ref(self))

    monkeypatch.setattr(service, "Exchange", Watched)
    gc.disable()
    try:
        async with serving(setting("http://127.0.0.1:9", [{"path": "/chat"}])) as gateway:
            for path in ("/nowhere", "/chat?message=", "/streams/unknown"):
                async with await request(gateway.url + path, headers={"Accept": "*/*"}) as answer:
                    await answer.body()
            await eventually(lambda: alive(asked), lambda left: left == 0)
    finally:
        gc.enable()
    assert len(asked) == 3


async def alive(asked: list[weakref.ref[Exchange]]) -> int:
    return sum(ref() is not None for ref in asked)


async def test_answer_that_is_passed_on_may_end_before_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain or a time limit ends the generation while the head of a response that is no stream is being written."""
    prepare = web.StreamResponse.prepare

    async def late(self: web.StreamResponse, request: web.BaseRequest) -> Any:
        for generation in list(app.engine.running.values()):
            generation.abort(GatewayError("drained"))
            await generation.ended
        return await prepare(self, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", late)
    script: list[Step] = [http_head(200, "text/plain", Content_Length="9") + b"half", Hang()]
    route = {"path": "/files", "api": "proxy", "upstream": "events"}
    with capture_logs() as lines:
        async with ScriptedUpstream(script) as upstream, serving(setting(upstream.url, [route])) as gateway:
            app = gateway.app.gateway
            async with await request(f"{gateway.url}/files", headers={"Accept": "*/*"}) as answer:
                await answer.body()
                assert answer.broken
    assert [line["event"] for line in lines if line["log_level"] == "error"] == []


async def test_client_that_closed_behind_a_request_for_a_whole_answer_is_sent_nothing() -> None:
    """Its FIN is a close, as nothing could be written for long. It is counted once, as a client that has gone."""
    with capture_logs() as lines:
        async with ScriptedUpstream([Hang()]) as upstream:
            route = {"path": "/openai", "api": "openai"}
            async with serving(setting(upstream.url, [route])) as gateway:
                host, port = gateway.url.removeprefix("http://").split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
                head = f"POST /openai HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                writer.write_eof()
                assert await asyncio.wait_for(_all(reader), 5) == b""
                writer.close()
                await eventually(lambda: slots(gateway), lambda taken: taken == (0, 0))
    assert [line["status"] for line in lines if line["event"] == "request"] == [499]


async def _all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
