"""The intake: the first bytes at once, the rest in windows, nothing lost at a cut."""

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.clock import Clock
from gateway.upstream.http import new_session
from gateway.upstream.intake import BEAT, FLOOD, Intake, IntakeState, Taken
from tests.kit.program import throwaway_certificate
from tests.kit.upstream import LAST_CHUNK, Cut, Hang, Pause, Reset, ScriptedUpstream, Step, WaitFor, chunk, sse_head

pytestmark = pytest.mark.alone

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
async def intake(
    *body: Step, window: float | None = WINDOW, enough: int = 1000, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Intake]:
    async with (
        ScriptedUpstream([sse_head(), *body], tls=tls) as upstream,
        new_session() as session,
        session.get(upstream.url, ssl=False) as response,
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
    take = Taker(until=b"c", taken=Taken.INCOMPLETE)
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


# -- its states ----------------------------------------------------------------------------------------------------


async def until(reads: Intake, state: IntakeState) -> None:
    async with asyncio.timeout(5):
        while reads.state is not state:  # noqa: ASYNC110 - the code under test has no event for it
            await asyncio.sleep(0)


def state_of(reads: Intake) -> IntakeState:
    """Its state now; mypy would take what it read from the attribute before for what it is still."""
    return reads.state


async def test_intake_goes_from_reading_to_a_window_and_back_and_away() -> None:
    begin, more, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    script = (WaitFor(begin), chunk("a"), WaitFor(more), chunk("b"), WaitFor(end), chunk("c"), Hang())
    async with intake(*script) as reads:
        assert state_of(reads) is IntakeState.AWAY
        relayed = reads.relay(Taker(until=b"c"))
        assert state_of(reads) is IntakeState.READING
        begin.set()
        await until(reads, IntakeState.WINDOW)
        more.set()  # the poll finds it, and the window begins anew
        await asyncio.sleep(WINDOW)
        assert state_of(reads) is IntakeState.WINDOW
        await until(reads, IntakeState.READING)
        end.set()
        assert not await relayed
        assert state_of(reads) is IntakeState.AWAY


async def test_flood_lets_the_other_streams_have_their_turn() -> None:
    take = Taker(until=b"y")
    async with intake(chunk(b"x" * 16 * FLOOD), chunk("y"), Hang()) as reads:
        relayed, states = reads.relay(take), set[IntakeState]()
        while not relayed.done():
            states.add(reads.state)
            await asyncio.sleep(0)
    assert IntakeState.YIELDING in states
    assert b"".join(take.came) == b"x" * 16 * FLOOD + b"y"


async def test_intake_that_is_left_while_it_yields_reads_on_afterwards() -> None:
    take = Taker(until=b"y")
    async with intake(chunk(b"x" * 16 * FLOOD), chunk("y"), Hang()) as reads:
        relayed = reads.relay(take)
        await until(reads, IntakeState.YIELDING)
        relayed.cancel()
        reads.leave()
        assert not await relay(reads, take)
    assert b"".join(take.came) == b"x" * 16 * FLOOD + b"y"


async def test_window_of_a_relay_begun_anew_ends_with_the_beat_of_the_one_before() -> None:
    take, more = Taker(until=b"d"), asyncio.Event()
    async with intake(chunk("a"), Pause(0.02), chunk("b"), WaitFor(more), *dribble(*"cd"), Hang()) as reads:
        first = reads.relay(take)
        await until(reads, IntakeState.WINDOW)
        first.cancel()
        reads.leave()
        second = reads.relay(take)
        await until(reads, IntakeState.WINDOW)
        more.set()
        assert not await asyncio.wait_for(second, 5)
    assert b"".join(take.came) == b"abcd"


async def test_beat_that_comes_after_its_window_does_nothing() -> None:
    take = Taker(until=b"a")
    async with intake(chunk("a"), Pause(0.02), chunk("b"), Hang()) as reads:
        relayed = reads.relay(Taker(until=b"never"))
        await until(reads, IntakeState.WINDOW)
        relayed.cancel()
        reads.leave()
        await asyncio.sleep(2 * BEAT)
        assert (reads.state, take.came) == (IntakeState.AWAY, [])


async def test_window_that_nothing_came_in_costs_nothing_more() -> None:
    async with intake(chunk("a"), Hang(), window=BEAT * 2) as reads:
        relayed = reads.relay(Taker(until=b"never"))
        await until(reads, IntakeState.WINDOW)
        await until(reads, IntakeState.READING)
        relayed.cancel()


async def test_window_that_brought_enough_goes_back_to_events() -> None:
    take, more = Taker(until=b"z"), asyncio.Event()
    async with intake(chunk("a"), WaitFor(more), chunk("y" * 80), Pause(0.3), chunk("z"), Hang(), enough=50) as reads:
        relayed = reads.relay(take)
        await until(reads, IntakeState.WINDOW)
        more.set()
        await until(reads, IntakeState.READING)
        assert not await asyncio.wait_for(relayed, 5)
    assert [data[:1] for data in take.came] == [b"a", b"y", b"z"]


async def test_upstream_that_closes_in_a_window_is_found_by_the_transport() -> None:
    async with intake(chunk("a"), Pause(0.02), Cut()) as reads:
        with pytest.raises(aiohttp.ClientError):
            await relay(reads, Taker(until=b"never"))
        assert reads.state is IntakeState.AWAY


async def test_connection_that_is_given_up_in_a_window_is_not_read_any_more() -> None:
    """Its descriptor may already be somebody else's."""
    async with intake(chunk("a"), Hang()) as reads:
        relayed = reads.relay(Taker(until=b"never"))
        await until(reads, IntakeState.WINDOW)
        connection = reads._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.close()
        reads._beat()
        assert reads.state is IntakeState.READING
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(relayed, 5)


@pytest.mark.parametrize("window", [0.05, 2.0])
async def test_tls_is_gathered_in_windows_too(tmp_path: Path, window: float) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*throwaway_certificate(tmp_path, "upstream"))
    take = Taker(until=b"z")
    async with intake(*dribble(*"abcdefghijklmnopqrstuvwxyz", gap=0.004), Hang(), window=window, tls=tls) as reads:
        assert not await relay(reads, take)
    assert b"".join(take.came) == b"abcdefghijklmnopqrstuvwxyz"
    assert len(take.came) < 26


async def test_rest_of_a_request_is_sent_while_its_answer_is_relayed() -> None:
    begun, gone, size, read = asyncio.Event(), asyncio.Event(), 16 << 20, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sse_head() + chunk("a"))
        await begun.wait()
        while read < size:
            read += len(await reader.read(1 << 20))
        writer.write(chunk("b"))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    take = Taker(until=b"b")
    async with await asyncio.start_server(serve, "127.0.0.1") as server, new_session() as session:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with session.post(url, data=io.BytesIO(b"x" * size)) as response:
            relayed = Intake(response, Clock(asyncio.get_running_loop()), 0, 1000).relay(take)
            begun.set()
            assert not await asyncio.wait_for(relayed, 5)
        await gone.wait()
    assert (read, b"".join(take.came)) == (size, b"ab")
