"""One attempt over HTTP, and the connections that are kept between attempts."""

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from gateway.core.errors import GatewayError
from gateway.dialects.base import Call
from gateway.upstream import http
from gateway.upstream.http import attempt, new_session
from tests.kit.upstream import Cut, Exchange, Hang, Reset, Script, ScriptedUpstream, Step, WaitFor, http_head, response


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


async def ask(session: aiohttp.ClientSession, upstream: ScriptedUpstream, *, again: bool = True) -> bytes:
    call = Call("POST", upstream.url, {}, b"{}")
    with await attempt(session, call, connect_timeout=1, again=again) as answer:
        return await answer.read()


OK = [response(200, "ok")]


@pytest.mark.parametrize("end", [Reset(), Cut()])
async def test_request_lost_on_an_idle_connection_is_sent_once_more(session: aiohttp.ClientSession, end: Step) -> None:
    async with ScriptedUpstream(OK, [end], OK) as upstream:
        assert [await ask(session, upstream), await ask(session, upstream)] == [b"ok", b"ok"]
        assert (len(upstream.exchanges), upstream.connections) == (3, 2)


async def test_request_lost_on_an_idle_connection_goes_out_on_a_new_one(session: aiohttp.ClientSession) -> None:
    go_on = asyncio.Event()
    slow: list[Step] = [http_head(Content_Length="2"), WaitFor(go_on), b"ok"]
    async with ScriptedUpstream(slow, OK, [Reset()], OK) as upstream:
        first = asyncio.create_task(ask(session, upstream))
        await upstream.exchange()
        await ask(session, upstream)
        go_on.set()
        await first  # two connections are idle now
        assert (await ask(session, upstream), upstream.connections) == (b"ok", 3)


@pytest.mark.parametrize("script", [[Reset()], [http_head()[:20], Cut()]], ids=["new connection", "torn head"])
async def test_request_lost_on_a_new_connection_is_a_failed_attempt(
    session: aiohttp.ClientSession, script: Script
) -> None:
    async with ScriptedUpstream(script) as upstream:
        with pytest.raises(GatewayError) as failure:
            await ask(session, upstream)
        assert (failure.value.code, len(upstream.exchanges)) == ("upstream_reset", 1)


async def test_request_that_keeps_getting_lost_is_sent_twice_at_most(session: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream(OK, [Reset()]) as upstream:
        await ask(session, upstream)
        with pytest.raises(GatewayError):
            await ask(session, upstream)
        assert len(upstream.exchanges) == 3


async def test_request_that_may_have_changed_something_is_not_sent_again(session: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream(OK, [Reset()], OK) as upstream:
        await ask(session, upstream)
        with pytest.raises(GatewayError) as failure:
            await ask(session, upstream, again=False)
        assert (failure.value.code, len(upstream.exchanges)) == ("upstream_reset", 2)


async def test_kernel_finds_out_within_30_s_that_a_silent_peer_is_gone(session: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream([http_head(Content_Length="2"), Hang()]) as upstream:
        call = Call("POST", upstream.url, {}, b"{}")
        with await attempt(session, call, connect_timeout=1, again=False) as answer:
            assert answer.connection is not None
            assert answer.connection.transport is not None
            sock = answer.connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            idle, interval, count, unacknowledged = (sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)
    assert idle + interval * count <= 30
    assert 0 < unacknowledged <= 30_000


async def test_connection_with_an_unread_answer_is_not_kept(session: aiohttp.ClientSession) -> None:
    def long(exchange: Exchange) -> list[Step]:
        return [http_head(Content_Length="9"), b"half"]

    async with ScriptedUpstream(long) as upstream:
        call = Call("GET", upstream.url, {}, b"")
        with await attempt(session, call, connect_timeout=1, again=True):
            pass
        await upstream.exchanges[0].closed.wait()


class _Writer(AbstractStreamWriter):
    """Notes the sizes of what is written, and the turn of the loop in which it was."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        raise NotImplementedError

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        raise NotImplementedError

    async def write_headers(self, status_line: str, headers: CIMultiDict[str]) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_long_body_is_never_copied_as_a_whole(kind: type[bytes | bytearray]) -> None:
    """H6: the connection is given a piece at a time, and others have their turn between two."""
    content = kind(b"0123456789" * 20_000)
    payload, writer, turns = http._body(Call("POST", "", {}, content)), _Writer(), 0
    assert isinstance(payload, aiohttp.BytesPayload)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await payload.write_with_length(writer, len(content))
    counting.cancel()
    assert b"".join(writer.written) == content
    assert max(map(len, writer.written)) <= http.PIECE
    assert turns >= len(writer.written) > 1
    assert http._body(Call("POST", "", {}, content[:100])) == content[:100]
