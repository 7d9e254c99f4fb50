"""The log in memory: four outcomes, bounds, and readers that lose nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import Wheel
from gateway.core.cursor import Place
from gateway.core.event import DONE, TOKEN, Event
from gateway.streams.log import (
    END,
    EVENT_OVERHEAD,
    LOG_OVERHEAD,
    NOTHING,
    TRIMMED,
    LogMemory,
    LogState,
    MemoryLog,
    ReadResult,
)
from gateway.streams.reader import Reader, SentAwayError

SIZE = EVENT_OVERHEAD + 1
"""Bytes of an event of one character."""
ROOMY = 1 << 20

Attach = Callable[..., Reader]


def token(text: str) -> Event:
    return Event(TOKEN, text)


def log_of(*texts: str, max_bytes: int = ROOMY, memory: LogMemory | None = None) -> MemoryLog:
    log = MemoryLog(max_bytes, memory or LogMemory(ROOMY))
    for text in texts:
        log.append([token(text)])
    return log


def texts(got: object) -> list[str]:
    assert isinstance(got, list), got
    return [event.data for event in got]


async def read_on(reader: Reader, limit: int, timeout: float) -> ReadResult:
    """What follows the reader's place, which is then behind it."""
    got = await reader.read(limit, timeout)
    if not isinstance(got, LogState):
        reader.advance(len(got))
    return got


@pytest.fixture
async def attach() -> Attach:
    wheel = Wheel(asyncio.get_running_loop())
    return lambda log, after=0: Reader(log, Place(after, 0), wheel)


# -- outcomes ------------------------------------------------------------------------------------------------------


def test_read_has_four_outcomes() -> None:
    log = log_of("a", "b")
    assert texts(log.read(0, 9)) == ["a", "b"]
    assert log.read(2, 9) is NOTHING
    log.close(Event(DONE, ""))
    assert log.read(3, 9) is END
    log.discard()
    assert log.read(0, 9) is TRIMMED


def test_read_of_an_empty_log_waits_until_it_is_closed() -> None:
    log = log_of()
    assert log.read(0, 9) is NOTHING
    log.close(None)
    assert (log.read(0, 9), log.terminal) == (END, None)


def test_read_gives_at_most_its_limit() -> None:
    log = log_of("a", "b", "c")
    assert [texts(log.read(after, 2)) for after in (0, 1, 2)] == [["a", "b"], ["b", "c"], ["c"]]


def test_terminal_event_is_the_last_and_is_read_before_the_end() -> None:
    log = log_of("a")
    log.close(Event(DONE, "whole"))
    assert texts(log.read(0, 9)) == ["a", "whole"]
    assert (log.last, log.terminal) == (2, Event(DONE, "whole"))


def test_writer_cannot_append_to_a_closed_log() -> None:
    log = log_of()
    log.close(None)
    with pytest.raises(AssertionError):
        log.append([token("late")])


# -- bounds --------------------------------------------------------------------------------------------------------


def test_log_without_readers_keeps_the_newest_within_its_bound() -> None:
    log = log_of(*"abcdefghij", max_bytes=4 * SIZE)
    assert log.size <= 4 * SIZE
    assert log.read(0, 9) is TRIMMED
    assert texts(log.read(log.first - 1, 9))[-1] == "j"
    assert not log.full


async def test_log_is_full_rather_than_lossy_while_somebody_reads(attach: Attach) -> None:
    log = log_of(max_bytes=4 * SIZE)
    reader = attach(log)
    for text in "abcdef":
        log.append([token(text)])
    assert log.full
    assert texts(await read_on(reader, 9, 0)) == list("abcdef")
    assert not log.full


async def test_writer_gets_room_when_the_reader_moves_on(attach: Attach) -> None:
    log = log_of(max_bytes=2 * SIZE)
    reader = attach(log)
    log.append([token(text) for text in "abc"])
    waiting = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await read_on(reader, 9, 0)
    await asyncio.wait_for(waiting, 1)


async def test_writer_gets_room_when_the_slowest_reader_leaves(attach: Attach) -> None:
    log = log_of(max_bytes=2 * SIZE)
    slow, fast = attach(log), attach(log)
    log.append([token(text) for text in "abcde"])
    await read_on(fast, 9, 0)
    assert log.full
    waiting = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    slow.close()
    await asyncio.wait_for(waiting, 1)


async def test_writer_that_waits_for_room_can_be_cancelled(attach: Attach) -> None:
    log = log_of(max_bytes=SIZE)
    reader = attach(log)
    log.append([token("a"), token("b")])
    waiting = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    log.close(None)
    assert texts(await read_on(reader, 9, 0)) == ["a", "b"]


async def test_event_larger_than_the_log_passes_through_to_its_reader(attach: Attach) -> None:
    log = log_of(max_bytes=SIZE)
    reader = attach(log)
    log.append([token("x" * 10_000)])
    assert log.full
    assert texts(await read_on(reader, 1, 0)) == ["x" * 10_000]
    assert (log.size, log.full) == (0, False)


def test_long_upstream_ids_count_as_bytes() -> None:
    log = log_of(max_bytes=50_000)
    for _ in range(100):
        log.append([Event("", "x", "i" * 10_000)])
    assert log.size <= 50_000
    assert log.last - log.first + 1 < 5


def test_budget_is_back_at_zero_when_all_logs_are_gone() -> None:
    memory = LogMemory(ROOMY)
    logs = [log_of(*"abcdefghij", max_bytes=size * SIZE, memory=memory) for size in (1, 3, 100)]
    assert memory.used == sum(log.size + LOG_OVERHEAD for log in logs)
    for log in logs:
        log.close(Event(DONE, "end"))
        log.discard()
    assert memory.used == 0


# -- waiting -------------------------------------------------------------------------------------------------------


async def test_reader_is_woken_by_an_event(attach: Attach) -> None:
    log = log_of()
    reading = asyncio.ensure_future(read_on(attach(log), 9, 5))
    await asyncio.sleep(0)
    log.append([token("a")])
    assert texts(await asyncio.wait_for(reading, 1)) == ["a"]


async def test_reader_is_woken_by_the_end(attach: Attach) -> None:
    log = log_of()
    reading = asyncio.ensure_future(read_on(attach(log), 9, 5))
    await asyncio.sleep(0)
    log.close(None)
    assert await asyncio.wait_for(reading, 1) is END


async def test_reader_waits_no_longer_than_it_said(attach: Attach) -> None:
    reader = attach(log_of())
    loop = asyncio.get_running_loop()
    for timeout in (0.2, 0.05, 0.1):  # a shorter patience than before counts at once
        began = loop.time()
        assert await read_on(reader, 9, timeout) is NOTHING
        assert timeout - 0.01 <= loop.time() - began < timeout + 0.2


async def test_shorter_patience_counts_although_a_longer_timer_runs(attach: Attach) -> None:
    log, loop = log_of(), asyncio.get_running_loop()
    reader = attach(log)
    reading = asyncio.ensure_future(read_on(reader, 9, 0.4))
    await asyncio.sleep(0)
    log.append([token("a")])
    await reading
    began = loop.time()
    assert await read_on(reader, 9, 0.05) is NOTHING
    assert loop.time() - began < 0.3


async def test_reader_without_patience_is_answered_at_once(attach: Attach) -> None:
    assert await read_on(attach(log_of()), 9, 0) is NOTHING


async def test_reader_that_is_interrupted_says_that_there_is_nothing(attach: Attach) -> None:
    reader = attach(log_of())
    reading = asyncio.ensure_future(read_on(reader, 9, 5))
    await asyncio.sleep(0)
    reader.interrupt()
    reader.interrupt()
    assert await asyncio.wait_for(reading, 1) is NOTHING


async def test_every_reader_is_woken_also_beside_one_that_gave_up(attach: Attach) -> None:
    log = log_of()
    gone, *stay = [asyncio.ensure_future(read_on(attach(log), 9, 5)) for _ in range(3)]
    await asyncio.sleep(0)
    gone.cancel()
    log.append([token("a")])
    assert [texts(got) for got in await asyncio.gather(*stay)] == [["a"], ["a"]]


async def test_readers_follow_from_their_own_places(attach: Attach) -> None:
    log = log_of(*"abc")
    first, second = attach(log, 0), attach(log, 2)
    assert texts(await read_on(first, 1, 0)) == ["a"]
    assert texts(await read_on(second, 9, 0)) == ["c"]
    assert texts(await read_on(first, 9, 0)) == ["b", "c"]


async def test_reader_leaves_twice_without_harm(attach: Attach) -> None:
    log = log_of()
    reader = attach(log)
    reader.close()
    reader.close()
    assert log.readers == ()


# -- against a model -----------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(st.integers(0, 400), min_size=1, max_size=6)),
    st.tuples(st.just("attach"), st.integers(0, 60)),
    st.tuples(st.just("read"), st.integers(0, 5), st.integers(1, 7)),
    st.tuples(st.just("leave"), st.integers(0, 5)),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.lists(STEPS, max_size=60))
def test_readers_never_lose_double_or_reorder_whatever_happens(max_bytes: int, script: list[tuple[Any, ...]]) -> None:
    """A list that is never trimmed is the model; what readers get must be its runs, and only detached places go."""
    asyncio.run(play(max_bytes, script))


async def play(max_bytes: int, script: list[tuple[Any, ...]]) -> None:
    memory, model, wheel = LogMemory(ROOMY), list[str](), Wheel(asyncio.get_running_loop())
    log, readers = MemoryLog(max_bytes, memory), list[Reader]()
    for step in script:
        match step:
            case "append", sizes:
                model += [f"{len(model) + place}:" + "x" * size for place, size in enumerate(sizes)]
                log.append([token(text) for text in model[-len(sizes) :]])
            case "attach", after if log.first - 1 <= after <= log.last:
                readers.append(Reader(log, Place(after, 0), wheel))
            case "read", number, limit if readers:
                await check_read(readers[number % len(readers)], limit, model)
            case "leave", number if readers:
                readers.pop(number % len(readers)).close()
        check_bounds(log, readers, model, memory)
    log.close(Event(DONE, "end"))
    for reader in readers:
        await check_drained(reader, [*model, "end"])
    log.discard()
    assert memory.used == 0


async def check_read(reader: Reader, limit: int, model: list[str]) -> None:
    after = reader.after
    got = await read_on(reader, limit, 0)
    if after == len(model):
        assert got is NOTHING
    else:
        assert texts(got) == model[after : after + limit]
        assert reader.after == after + len(texts(got))


def check_bounds(log: MemoryLog, readers: list[Reader], model: list[str], memory: LogMemory) -> None:
    assert log.last == len(model)
    assert memory.used == log.size + LOG_OVERHEAD
    assert log.size == sum(len(text) + EVENT_OVERHEAD for text in model[log.first - 1 :])
    assert log.full == (log.size > log.max_bytes)
    assert all(reader.after >= log.first - 1 for reader in readers)
    if log.full:
        assert min(reader.after for reader in readers) == log.first - 1, "full although there was something to trim"


async def check_drained(reader: Reader, whole: list[str]) -> None:
    after, rest = reader.after, []
    while not isinstance(got := await read_on(reader, 3, 0), LogState):
        rest += texts(got)
    assert got is END
    assert rest == whole[after:]
    reader.close()


class Doubter:
    """A mirror that is not sure whether the log is still the stream's."""

    def __init__(self) -> None:
        self.doubtful = False
        self.is_dropped = False

    def changed(self) -> None:
        """Copies nothing."""

    def dropped(self) -> None:
        self.is_dropped = True


async def test_reader_of_a_held_log_waits_and_then_gets_everything_in_order(attach: Attach) -> None:
    log, seen, mirror = log_of("a"), list[str](), Doubter()
    log.mirror = mirror
    reader = attach(log)

    def follow(events: Any) -> bool:
        seen.extend(event.data for event in events)
        reader.advance(len(events))
        return True

    assert texts(await read_on(reader, 9, 1)) == ["a"]
    waiting = asyncio.create_task(reader.read(9, 5, follow))
    await asyncio.sleep(0)
    mirror.doubtful = True
    log.append([token("b")])
    assert await waiting is NOTHING
    assert await reader.read(9, 0, follow) is NOTHING
    waiting = asyncio.create_task(reader.read(9, 5, follow))
    await asyncio.sleep(0)
    mirror.doubtful = False
    reader.interrupt()
    log.append([token("c")])  # behind what was held: it must not overtake that
    assert texts(await waiting) == ["b", "c"]
    assert seen == []
    log.close(None)
    log.discard()
    assert mirror.is_dropped


async def test_reader_that_is_cut_gets_nothing_more(attach: Attach) -> None:
    log = log_of("a")
    reader = attach(log)
    reader.cut(3.0)
    log.append([token("b")])
    with pytest.raises(SentAwayError) as cut:
        await reader.read(9, 1)
    assert cut.value.comeback == 3.0
