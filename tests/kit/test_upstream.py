"""The scripted upstream does what its script says and sees when its peer goes."""

import asyncio

import pytest

from tests.kit.sse_client import request
from tests.kit.upstream import Cut, Exchange, Hang, Pause, Reset, ScriptedUpstream, Step, WaitFor, http_head, response


@pytest.mark.alone
async def test_upstream_records_request_and_the_moment_its_peer_closes() -> None:
    async with ScriptedUpstream([http_head(), b"data: 1\n\n", Hang()]) as upstream:
        answer = await request(f"{upstream.url}/v1/x?y=1", method="POST", headers={"X-A": "b"}, body="hi")
        exchange = await upstream.exchange()
        assert (exchange.method, exchange.target, exchange.body) == ("POST", "/v1/x?y=1", b"hi")
        assert exchange.headers["x-a"] == "b"
        left_at = asyncio.get_running_loop().time()
        await answer.close()
        await exchange.closed.wait()
        assert exchange.closed_at is not None
        assert exchange.closed_at - left_at < 0.05
        assert not exchange.reset


async def test_upstream_tells_a_reset_from_a_close() -> None:
    async with ScriptedUpstream([http_head(), Hang()]) as upstream:
        await (await request(upstream.url)).reset()
        exchange = await upstream.exchange()
        await exchange.closed.wait()
        assert exchange.reset


async def test_upstream_pauses_and_waits() -> None:
    go = asyncio.Event()
    script: list[Step] = [http_head(), b"a", WaitFor(go), b"b", Pause(0.02), b"c", Cut()]
    async with ScriptedUpstream(script) as upstream, await request(upstream.url) as answer:
        assert await answer.read() == b"a"
        go.set()
        assert await answer.body() == b"abc"


async def test_upstream_resets_before_any_byte() -> None:
    async with ScriptedUpstream([Reset()]) as upstream:
        with pytest.raises(ConnectionResetError):
            await request(upstream.url)


async def test_upstream_answers_request_by_request_on_one_connection() -> None:
    def echo(exchange: Exchange) -> list[Step]:
        return [response(200, exchange.body)]

    async with ScriptedUpstream(echo) as upstream:
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n2\r\n0\r\n\r\n")
        first = await reader.readuntil(b"\r\n\r\n1")
        second = await reader.readuntil(b"\r\n\r\n2")
        assert first.startswith(b"HTTP/1.1 200")
        assert second.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
        assert upstream.connections == 1


async def test_upstream_refuses_connections_once_closed() -> None:
    async with ScriptedUpstream([Cut()]) as upstream:
        pass
    with pytest.raises(ConnectionRefusedError):
        await request(upstream.url)
