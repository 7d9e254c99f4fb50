"""H6: large reads are parsed in pieces. Nothing changes for a client, and whatever it sends, others have their turn."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from aiohttp import web

from gateway.web.connection import Connection, Handler
from gateway.web.reads import PIECE
from tests.web.raw import GET, Place, connected, listening

TINY = 60_000
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def in_chunks(body: bytes, sizes: Iterator[int]) -> bytes:
    """A request with this body, in chunks of these sizes."""
    parts, at = [CHUNKED], 0
    while at < len(body):
        part = body[at : at + next(sizes)]
        parts.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += len(part)
    return b"".join([*parts, b"0\r\n\r\n"])


def ones() -> Iterator[int]:
    while True:
        yield 1


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=await request.read())


async def slow_echo(request: web.BaseRequest) -> web.StreamResponse:
    """Reads a little in each turn, so that the parser is often full."""
    body = b""
    while part := await request.content.read(1000):
        body += part
        await asyncio.sleep(0)
    return web.Response(body=body)


async def answer(place: Place, request: bytes) -> bytes:
    """The body of the answer to this request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
    try:
        async with asyncio.timeout(20):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return await reader.readexactly(size)
    finally:
        writer.close()


@pytest.mark.parametrize("handler", [echo, slow_echo])
async def test_large_bodies_arrive_as_they_were_sent(handler: Handler) -> None:
    seeded = random.Random(1)
    bodies = [seeded.randbytes(size) for size in (PIECE - 1, 3 * PIECE, 900_000)]
    sizes = iter(lambda: seeded.choice((1, 5, 700, 40_000)), None)
    async with listening(handler) as place:
        asked = [SIZED % len(body) + body for body in bodies] + [in_chunks(body, sizes) for body in bodies]
        assert await asyncio.gather(*(answer(place, request) for request in asked)) == bodies * 2


async def test_requests_in_one_large_read_are_answered_in_their_order() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=request.path)

    async with listening(handler) as place, connected(place) as client:
        client.send(b"".join(GET.replace(b"/ ", b"/%04d " % number) for number in range(2000)))
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 2000:
            answers += await client.read()
        rest = await client.until(b"/1999") if not answers.endswith(b"/1999") else b""
        found = (answers + rest).split(b"\r\n\r\n")[1:]
        assert [part[:5] for part in found] == [b"/%04d" % number for number in range(2000)]


async def test_clients_with_tiny_chunks_take_one_piece_of_a_turn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.web.reads.AT_A_STRETCH", 0.0)
    loop, turn, parsed = asyncio.get_running_loop(), 0, Counter[int]()
    parse = Connection.parse

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    def counted(self: Connection, data: bytes) -> None:
        parsed[turn] += len(data)
        parse(self, data)

    monkeypatch.setattr(Connection, "parse", counted)
    next_turn()
    request = in_chunks(b"x" * TINY, ones())
    async with listening(echo) as place:
        answers = await asyncio.gather(*(answer(place, request) for _ in range(5)))
    assert answers == [b"x" * TINY] * 5
    assert parsed.total() == 5 * len(request)
    assert max(parsed.values()) <= PIECE


async def test_connection_that_cannot_be_parsed_ends_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    parse = Connection.parse

    def fails(self: Connection, data: bytes) -> None:
        if b"!" in data:
            raise RuntimeError("a flaw of the parser")
        parse(self, data)

    monkeypatch.setattr(Connection, "parse", fails)
    async with listening(echo) as place, connected(place) as client:
        client.send(SIZED % 100_000 + b"x" * 50_000 + b"!" * 50_000)
        assert await client.rest() == b""
        assert await answer(place, SIZED % 100_000 + b"x" * 100_000) == b"x" * 100_000
    assert told == ["a connection could not be parsed"]


async def test_client_that_leaves_while_its_read_waits_costs_nothing_more() -> None:
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        began.set()
        await goes_on.wait()
        return await echo(request)

    async with listening(handler) as place:
        async with connected(place) as client:
            client.send(in_chunks(b"x" * TINY, ones())[: 4 * PIECE])
            await began.wait()
            connection = place.connection
            connection.abort()
        while place.server.connections:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        assert not connection.parse_piece()
        goes_on.set()
