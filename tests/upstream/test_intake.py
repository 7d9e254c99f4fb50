"""The intake: the first bytes at once, the rest in windows, nothing lost at a cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.clock import Tick
from gateway.upstream.http import new_session
from gateway.upstream.intake import Intake
from tests.kit.upstream import LAST_CHUNK, Cut, Hang, Pause, Reset, ScriptedUpstream, Step, chunk, sse_head

WINDOW = 0.2


@asynccontextmanager
async def intake(*body: Step, window: float | None = WINDOW, enough: int = 1000) -> AsyncIterator[Intake]:
    async with (
        ScriptedUpstream([sse_head(), *body]) as upstream,
        new_session() as session,
        session.get(upstream.url) as response,
    ):
        tick = Tick(asyncio.get_running_loop(), window) if window else None
        yield Intake(response, tick, enough)


def dribble(*texts: str, gap: float = 0.02) -> list[Step]:
    return [step for text in texts for step in (chunk(text), Pause(gap))]


async def test_first_bytes_come_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with intake(chunk("a"), Hang()) as reads:
        began = loop.time()
        assert await reads.read() == b"a"
        assert loop.time() - began < WINDOW / 2


async def test_bytes_of_a_window_come_together() -> None:
    async with intake(*dribble(*"abcdef"), Hang()) as reads:
        assert await reads.read() == b"a"
        reads.relayed(1)
        assert await reads.read() == b"bcdef"


async def test_bytes_that_nobody_was_sent_open_no_window() -> None:
    loop = asyncio.get_running_loop()
    async with intake(*dribble(*"ab"), Hang()) as reads:
        began = loop.time()
        assert [await reads.read(), await reads.read()] == [b"a", b"b"]
        assert loop.time() - began < WINDOW / 2


async def test_much_at_once_opens_no_window() -> None:
    loop = asyncio.get_running_loop()
    async with intake(chunk("x" * 50), Pause(0.02), chunk("y"), Hang(), enough=50) as reads:
        began = loop.time()
        reads.relayed(len(await reads.read()))
        assert await reads.read() == b"y"
        assert loop.time() - began < WINDOW / 2


async def test_without_a_tick_every_read_is_relayed() -> None:
    async with intake(*dribble(*"ab"), Hang(), window=None) as reads:
        for expected in (b"a", b"b"):
            assert await reads.read() == expected
            reads.relayed(1)


async def test_end_of_a_body_is_empty_for_ever() -> None:
    async with intake(chunk("a"), LAST_CHUNK, Cut()) as reads:
        assert [await reads.read() for _ in range(3)] == [b"a", b"", b""]


@pytest.mark.parametrize("end", [Reset(), Cut()])
async def test_bytes_before_a_cut_are_not_lost(end: Step) -> None:
    async with intake(chunk("a"), Pause(0.02), chunk("b"), end) as reads:
        assert await reads.read() == b"a"
        reads.relayed(1)
        assert await reads.read() == b"b"
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await reads.read()


async def test_window_that_is_cancelled_lets_the_upstream_speak_again() -> None:
    async with intake(*dribble(*"abc"), Hang()) as reads:
        await reads.read()
        reads.relayed(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reads.read(), WINDOW / 4)
        async with asyncio.timeout(2):
            assert (await reads.read())[:1] == b"b"
