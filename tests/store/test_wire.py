"""Bytes of a server in, replies out, in the order of the commands; and what breaks a wire."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import uvloop

from gateway.store.wire import NoRedisError, Wire, pack

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def wired(talk: Talk) -> AsyncIterator[tuple[Wire, "asyncio.Future[Exception]"]]:
    """A wire to a server that talks so, and what broke it."""
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[Exception] = loop.create_future()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, wire = await loop.create_connection(lambda: Wire(broken.set_result), "127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            yield wire, broken
            wire.close()
            await ended.wait()
    finally:
        server.close()


def saying(*pieces: bytes) -> Talk:
    """Reads something, says these pieces, each as a segment of its own, and waits for the other side's end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        while await reader.read(1 << 16):
            pass

    return talk


def test_command_is_packed_as_bulk_strings() -> None:
    assert pack(("SET", b"\xff", 7)) == b"*3\r\n$3\r\nSET\r\n$1\r\n\xff\r\n$1\r\n7\r\n"


REPLIES = b"+OK\r\n:7\r\n$2\r\nab\r\n$-1\r\n*-1\r\n-ERR no\r\n*2\r\n:1\r\n*1\r\n$0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 5, len(REPLIES)])
async def test_replies_come_in_order_however_they_are_cut(size: int) -> None:
    cuts = [REPLIES[at : at + size] for at in range(0, len(REPLIES), size)]
    async with wired(saying(*cuts)) as (wire, _):
        replies: list[Any] = await wire.ask(*[["X"]] * 7)
        assert [str(reply) if isinstance(reply, hiredis.ReplyError) else reply for reply in replies] == [
            *(b"OK", 7, b"ab", None, None, "ERR no", [1, [b""]]),
        ]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A reply to each command, the number of it."""
    number = 0
    while data := await reader.read(1 << 16):
        for _ in range(data.count(b"*1")):
            number += 1
            writer.write(b":%d\r\n" % number)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_commands_are_in_the_kernel_when_they_are_sent(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def send() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            loop = asyncio.get_running_loop()
            _, wire = await loop.create_connection(lambda: Wire(lambda error: None), *server.getsockname())
            peer, _ = server.accept()
            with peer:
                for command in (pack(["X"]), pack(["Y", b"z" * 5000])):
                    wire.send(command, [lambda reply: None])
                    assert peer.recv(1 << 16, socket.MSG_DONTWAIT) == command
                wire.close()

    run(asyncio.wait_for(send(), 5))


async def test_commands_that_the_kernel_has_no_room_for_come_whole_and_in_order() -> None:
    got, seen = bytearray(), asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await seen.wait()
        while data := await reader.read(1 << 16):
            got.extend(data)

    sent = [pack(["SET", str(number), bytes([number]) * 200_000]) for number in range(30)]
    async with wired(listen) as (wire, broken):
        for command in sent:
            wire.send(command, [lambda reply: None])
        seen.set()
        while len(got) < sum(map(len, sent)) and not broken.done():  # noqa: ASYNC110 - the other end is a task here
            await asyncio.sleep(0.01)
    assert bytes(got) == b"".join(sent)


async def test_replies_that_nobody_waits_for_are_read_together() -> None:
    reads: list[list[int]] = [[]]
    async with wired(echo) as (wire, _):
        assert await wire.ask(["X"]) == [1]
        wire.read_rarely(0.05)
        all_read = asyncio.Event()

        def replied(reply: Any) -> None:
            if not reads[-1]:  # in the next turn of the loop, the next read may begin
                asyncio.get_running_loop().call_soon(reads.append, [])
            reads[-1].append(reply)
            if reply == 21:
                all_read.set()

        for _ in range(20):
            wire.send(pack(["X"]), [replied])
            for _ in range(5):  # the server reads and replies meanwhile
                await asyncio.sleep(0)
        await all_read.wait()
        assert [reply for read in reads for reply in read] == list(range(2, 22))
        assert len([read for read in reads if read]) < 10  # and not 20
        wire.send(pack(["X"]), [replied])
        await wire.settle(10)
        assert wire.silence == 0


async def test_end_of_a_connection_that_is_read_rarely_is_noticed_with_the_next_command() -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with wired(leave) as (wire, broken):
        wire.read_rarely(0.01)
        wire.send(pack(["X"]), [lambda reply: None])
        assert isinstance(await broken, ConnectionError)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400\r\n", b"+OK\r\n+OK\r\n"])
async def test_what_is_no_answer_breaks_the_wire(said: bytes) -> None:
    async with wired(saying(said)) as (wire, broken):
        got: list[Any] = []
        wire.send(pack(["X"]), [got.append])
        assert isinstance(await broken, NoRedisError)
        assert got in ([], [b"OK"])
        wire.send(pack(["X"]), [got.append])  # does nothing any more
        assert wire.silence == 0


async def test_end_of_the_connection_breaks_the_wire_once() -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with wired(leave) as (wire, broken):
        wire.send(pack(["X"]), [lambda reply: None])
        assert isinstance(await broken, ConnectionResetError)


async def test_what_waits_for_the_socket_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.wire.MAX_UNSENT", 1 << 20)
    read = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()

    async with wired(deaf) as (wire, broken):
        for _ in range(64):
            wire.send(pack(["X", b"x" * (1 << 20)]), [lambda reply: None])
        assert isinstance(await broken, TimeoutError)
        read.set()
