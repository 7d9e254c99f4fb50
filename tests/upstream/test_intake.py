"""The intake: the first bytes at once, the rest in windows, nothing lost at a cut."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.clock import Clock
from gateway.upstream.http import new_session
from gateway.upstream.intake import Intake, Taken
from tests.kit.upstream import LAST_CHUNK, Cut, Hang, Pause, Reset, ScriptedUpstream, Step, chunk, sse_head

WINDOW = 0.2


class Taker:
    """Keeps what it is given, and tells when; has enough when it has seen `until`."""

    def __init__(self, until: bytes, taken: Taken = Taken.RELAYED) -> None:
        self.came: list[bytes] = []
        self.times: list[float] = []
        self._until = until
        self._taken = taken

    def __call__(self, data: bytes) -> Taken:
        self.came.append(data)
        self.times.append(asyncio.get_running_loop().time())
        return Taken.ENOUGH if self._until in b"".join(self.came) else self._taken


@asynccontextmanager
async def intake(*body: Step, window: float = WINDOW, enough: int = 1000) -> AsyncIterator[Intake]:
    async with (
        ScriptedUpstream([sse_head(), *body]) as upstream,
        new_session() as session,
        session.get(upstream.url) as response,
    ):
        yield Intake(response, Clock(asyncio.get_running_loop()), window, enough)


async def relay(reads: Intake, take: Callable[[bytes], Taken]) -> bool:
    return await asyncio.wait_for(reads.relay(take), 5)


def dribble(*texts: str, gap: float = 0.02) -> list[Step]:
    return [step for text in texts for step in (chunk(text), Pause(gap))]


async def test_first_bytes_come_at_once_and_those_of_a_window_together() -> None:
    take = Taker(until=b"f")
    async with intake(*dribble(*"abcdef"), Hang()) as reads:
        assert not await relay(reads, take)
    assert take.came == [b"a", b"bcdef"]
    assert take.times[1] - take.times[0] > WINDOW / 2


async def test_short_window_opens_behind_two_reads_that_were_close() -> None:
    take = Taker(until=b"f")
    async with intake(*dribble(*"abcdef", gap=0.004), Hang(), window=0.05) as reads:
        await relay(reads, take)
    assert take.came == [b"a", b"b", b"cdef"]


async def test_slow_stream_never_waits() -> None:
    take = Taker(until=b"c")
    async with intake(*dribble(*"abc", gap=0.1), Hang(), window=0.05) as reads:
        await relay(reads, take)
    assert take.came == [b"a", b"b", b"c"]


async def test_bytes_that_nobody_was_sent_open_no_window() -> None:
    take = Taker(until=b"c", taken=Taken.NOTHING)
    async with intake(*dribble(*"abc"), Hang()) as reads:
        await relay(reads, take)
    assert take.came == [b"a", b"b", b"c"]


async def test_much_at_once_opens_no_window() -> None:
    take = Taker(until=b"y")
    async with intake(chunk("x" * 50), Pause(0.02), chunk("y"), Hang(), enough=50) as reads:
        await relay(reads, take)
    assert take.times[1] - take.times[0] < WINDOW / 2


async def test_long_window_ends_when_enough_waits() -> None:
    take = Taker(until=b"y")
    async with intake(chunk("a"), Pause(0.02), chunk("x" * 60 + "y"), Hang(), window=10, enough=50) as reads:
        await relay(reads, take)
    assert take.times[1] - take.times[0] < 5


async def test_without_a_window_every_read_is_relayed() -> None:
    take = Taker(until=b"c")
    async with intake(*dribble(*"abc"), Hang(), window=0) as reads:
        await relay(reads, take)
    assert take.came == [b"a", b"b", b"c"]


async def test_body_that_ends_well_has_ended() -> None:
    take = Taker(until=b"never")
    async with intake(*dribble(*"ab"), LAST_CHUNK, Cut()) as reads:
        assert await relay(reads, take)
    assert b"".join(take.came) == b"ab"


@pytest.mark.parametrize("end", [Reset(), Cut()])
async def test_bytes_before_a_cut_are_not_lost(end: Step) -> None:
    take = Taker(until=b"never")
    async with intake(chunk("a"), Pause(0.02), chunk("b"), Pause(0.02), end) as reads:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await relay(reads, take)
    assert b"".join(take.came) == b"ab"


async def test_taker_that_fails_in_a_window_fails_its_own_relay_only() -> None:
    class FullError(Exception):
        pass

    def take(data: bytes) -> Taken:
        if b"b" in data:
            raise FullError
        return Taken.RELAYED

    other = Taker(until=b"f")
    async with intake(*dribble(*"abc"), Hang()) as reads, intake(*dribble(*"abcdef"), Hang()) as others:
        outcomes = await asyncio.gather(relay(reads, take), relay(others, other), return_exceptions=True)
    assert isinstance(outcomes[0], FullError)
    assert b"".join(other.came) == b"abcdef"


async def test_window_that_is_cancelled_lets_the_upstream_speak_again() -> None:
    take = Taker(until=b"c")
    async with intake(*dribble(*"abc"), Hang()) as reads:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reads.relay(take), WINDOW / 4)
        await relay(reads, take)
    assert b"".join(take.came) == b"abc"
