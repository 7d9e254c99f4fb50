"""The proxy carries bytes unchanged, and breaks what it is told to break where it is told to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from tests.kit.program import free_port
from tests.kit.tcp_proxy import QUEUE, READ, TCPProxy

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Ends(NamedTuple):
    """A connection through a proxy, from the client's end."""

    proxy: TCPProxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@asynccontextmanager
async def through(talk: Talk, **down: Any) -> AsyncIterator[Ends]:
    """A connection to a server that talks so; `down` are knobs."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            writer.transport.abort()
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with TCPProxy(server.sockets[0].getsockname()[1]) as proxy:
        for knob, value in down.items():
            setattr(proxy.down, knob, value)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        yield Ends(proxy, reader, writer)
        writer.transport.abort()
    await done.wait()
    server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ):
        writer.write(data)
        await writer.drain()


def says(data: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    return talk


async def test_proxy_carries_both_ways_and_hands_on_the_end() -> None:
    async with through(echo) as (proxy, reader, writer):
        writer.write(b"a" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"a" * 100_000
        assert (proxy.connections, proxy.up.passed, proxy.down.passed) == (1, 100_000, 100_000)


@pytest.mark.parametrize("knobs", [{"slice": 7}, {"slice": 1, "jitter": 0.001}, {"rate": 1e6}])
async def test_bytes_arrive_whole_and_in_order_whatever_the_knobs(knobs: dict[str, float]) -> None:
    said = bytes(range(256))
    async with through(says(said), **knobs) as (_, reader, _writer):
        assert await reader.read() == said


async def test_slices_are_small() -> None:
    async with through(says(b"a" * 100), slice=7, jitter=0.01) as (_, reader, _writer):
        assert len(await reader.read(100)) <= 7


@pytest.mark.alone
async def test_latency_delays_each_direction_by_its_own() -> None:
    loop = asyncio.get_running_loop()
    async with through(echo, latency=0.1) as (proxy, reader, writer):
        proxy.up.latency = 0.05
        began = loop.time()
        writer.write(b"ping")
        assert await reader.read(4) == b"ping"
        assert 0.15 <= loop.time() - began < 0.5


@pytest.mark.alone
async def test_rate_bounds_bytes_a_second_whatever_the_latency() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with through(says(b"a" * 20_000), rate=100_000, latency=0.05) as (_, reader, _writer):
        await reader.read()
        assert 0.2 <= loop.time() - began < 1


@pytest.mark.parametrize("place", [0, 1, 50, 99])
async def test_cut_ends_behind_exactly_so_many_bytes(place: int) -> None:
    async with through(says(b"a" * 100), cut_at=place) as (_, reader, _writer):
        assert await reader.read() == b"a" * place


async def test_each_connection_may_be_cut_at_a_place_of_its_own() -> None:
    async with through(says(b"a" * 100), cut_at=iter([3, 5])) as (proxy, reader, _writer):
        assert len(await reader.read()) == 3
        for size in 5, 100:
            again, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert len(await again.read()) == size
            writer.close()


@pytest.mark.parametrize("place", [1, 99])
async def test_reset_breaks_behind_exactly_so_many_bytes(place: int) -> None:
    async with through(says(b"a" * 100), reset_at=place, slice=1) as (_, reader, _writer):
        assert await reader.readexactly(place) == b"a" * place
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_reset_and_cut_now_break_what_is_open_and_nothing_else() -> None:
    async with through(echo) as (proxy, reader, _writer):
        await asyncio.sleep(0.02)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        again, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x")
        assert await again.read(1) == b"x"
        proxy.cut()
        assert await again.read() == b""
        writer.close()


async def test_final_end_closes_the_whole_connection() -> None:
    broken = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"all"
        while not writer.is_closing():  # the reset is under way
            writer.write(b"?")
            await asyncio.sleep(0.001)
        broken.set()

    async with through(talk) as (proxy, _, writer), asyncio.timeout(10):
        proxy.up.final = True
        writer.write(b"all")
        writer.write_eof()
        await broken.wait()


async def test_hole_holds_everything_until_it_heals() -> None:
    async with through(echo) as (proxy, reader, writer):
        proxy.hole()
        writer.write(b"ping")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(4), 0.1)
        proxy.heal()
        assert await reader.read(4) == b"ping"


async def test_proxy_holds_no_more_than_its_bound() -> None:
    async with through(says(b"a" * (32 << 20))) as (proxy, _reader, _writer):
        proxy.hole()
        async with asyncio.timeout(10):
            while proxy.down.held <= QUEUE * READ / 2:  # noqa: ASYNC110 - the proxy has no event for it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert QUEUE * READ / 2 < proxy.down.held <= (QUEUE + 2) * READ


async def test_pulled_proxy_refuses_until_it_is_plugged_in() -> None:
    async with through(echo) as (proxy, reader, _writer):
        await proxy.pull()
        assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.plug()
        again, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x")
        assert await again.read(1) == b"x"
        writer.close()


async def test_server_that_refuses_resets_the_client() -> None:
    async with TCPProxy(free_port()) as proxy:
        reader, _ = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
