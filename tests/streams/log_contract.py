"""What every log promises, whatever keeps its events: run these on a store of your own.

class TestMine(LogContract):
    def make(self, max_bytes: int) -> Log:
        return MyLog(max_bytes)
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

import pytest

from gateway.clock import Wheel
from gateway.core.cursor import Place
from gateway.core.event import DONE, TOKEN, Event
from gateway.streams.log import END, NOTHING, TRIMMED, Log, LogState, ReadResult
from gateway.streams.reader import Reader

KIB = 1024
OVER = Event(DONE, "whole")


def said(got: ReadResult) -> list[str]:
    """The data of the events that were read."""
    assert not isinstance(got, LogState), got
    return [event.data for event in got]


class LogContract(ABC):
    """The contract, as tests."""

    @abstractmethod
    def make(self, max_bytes: int) -> Log:
        """A new, empty log that keeps so many bytes."""

    def log(self, *texts: str, max_bytes: int = KIB * KIB) -> Log:
        log = self.make(max_bytes)
        for text in texts:
            log.append([Event(TOKEN, text)])
        return log

    def reader(self, log: Log, after: int = 0) -> Reader:
        return Reader(log, Place(after, 0), Wheel(asyncio.get_running_loop()))

    def test_new_log_is_empty_open_and_has_nothing_yet(self) -> None:
        log = self.log()
        assert (log.first, log.last, log.closed, log.full, log.terminal) == (1, 0, False, False, None)
        assert log.read(0, 9) is NOTHING

    def test_events_are_numbered_from_one_in_the_order_of_their_appends(self) -> None:
        log = self.make(KIB * KIB)
        log.append([Event(TOKEN, "a"), Event(TOKEN, "b")])
        log.append([Event(TOKEN, "c")])
        assert (log.first, log.last) == (1, 3)
        assert [said(log.read(after, 9)) for after in range(3)] == [["a", "b", "c"], ["b", "c"], ["c"]]
        assert said(log.read(0, 2)) == ["a", "b"]

    def test_event_keeps_its_type_and_id(self) -> None:
        log, event = self.make(KIB * KIB), Event("name", "data\n数据 \ud800", "id-7")
        log.append([event])
        got = log.read(0, 1)
        assert not isinstance(got, LogState)
        assert list(got) == [event]

    def test_terminal_event_is_read_last_and_then_comes_the_end(self) -> None:
        log = self.log("a")
        log.close(OVER)
        assert (log.closed, log.terminal, log.last) == (True, OVER, 2)
        assert said(log.read(0, 9)) == ["a", "whole"]
        assert log.read(2, 9) is END

    def test_log_may_end_without_a_terminal_event(self) -> None:
        log = self.log("a")
        log.close(None)
        assert (log.terminal, log.read(1, 9)) == (None, END)

    def test_log_without_readers_keeps_the_newest_and_says_what_is_gone(self) -> None:
        log = self.log(*[f"{number:03}" + "x" * 997 for number in range(20)], max_bytes=5 * KIB)
        assert log.size <= 5 * KIB
        assert 1 < log.first <= log.last == 20
        assert log.read(log.first - 2, 9) is TRIMMED
        assert said(log.read(log.first - 1, 99))[-1].startswith("019")

    async def test_reader_gets_everything_although_it_is_more_than_is_kept(self) -> None:
        log = self.make(3 * KIB)
        reader = self.reader(log)
        texts = [f"{number}" + "x" * 1000 for number in range(9)]
        log.append([Event(TOKEN, text) for text in texts])
        assert log.full
        got: list[str] = []
        while not isinstance(more := await reader.read(2, 0), LogState):
            got += said(more)
            reader.advance(len(more))
        assert got == texts
        assert not log.full
        reader.close()

    async def test_writer_waits_for_the_slowest_reader_and_goes_on_when_it_leaves(self) -> None:
        log = self.make(KIB)
        fast, slow = self.reader(log), self.reader(log)
        log.append([Event(TOKEN, "x" * 5000)])
        fast.advance(1)
        waiting = asyncio.ensure_future(log.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        slow.close()
        await asyncio.wait_for(waiting, 5)
        fast.close()
        assert log.readers == ()

    async def test_reader_that_left_a_log_at_its_end_can_come_back_for_the_rest(self) -> None:
        """The terminal event holds the whole text once more, so at its end a log is often above its bound."""
        log = self.make(3 * KIB)
        reader = self.reader(log)
        log.append([Event(TOKEN, f"{number}" + "x" * 500) for number in range(4)])
        log.close(Event(DONE, "x" * 2000))
        reader.close()
        assert len(said(log.read(0, 9))) == 5

    async def test_reader_that_waits_is_woken_by_an_append_and_by_the_end(self) -> None:
        log = self.log()
        reader = self.reader(log)
        changes: list[tuple[Callable[[], None], str]] = [
            (lambda: log.append([Event(TOKEN, "a")]), "a"),
            (lambda: log.close(OVER), "whole"),
        ]
        for change, expected in changes:
            reading = asyncio.ensure_future(reader.read(9, 5))
            await asyncio.sleep(0)
            change()
            got = await asyncio.wait_for(reading, 5)
            assert said(got) == [expected]
            reader.advance(1)
        assert await reader.read(9, 5) is END

    async def test_reader_that_follows_is_handed_what_is_appended_and_reads_the_terminal_event(self) -> None:
        log, handed = self.log(), list[str]()
        reader = self.reader(log)

        def follow(events: list[Event]) -> bool:
            handed.extend(event.data for event in events)
            reader.advance(len(events))
            return True

        reading = asyncio.ensure_future(reader.read(9, 5, follow))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        log.append([Event(TOKEN, "a")])
        log.append([Event(TOKEN, "b"), Event(TOKEN, "c")])
        assert (handed, reader.after, reading.done()) == (["a", "b", "c"], 3, False)
        log.close(OVER)
        assert said(await asyncio.wait_for(reading, 5)) == ["whole"]

    async def test_failure_of_one_reader_is_its_own(self) -> None:
        log = self.log()
        broken, fine = self.reader(log), self.reader(log)

        def follow(events: object) -> bool:
            raise ZeroDivisionError

        reads = [asyncio.ensure_future(broken.read(9, 5, follow)), asyncio.ensure_future(fine.read(9, 5))]
        await asyncio.sleep(0)
        log.append([Event(TOKEN, "a")])
        with pytest.raises(ZeroDivisionError):
            await reads[0]
        assert said(await asyncio.wait_for(reads[1], 5)) == ["a"]
