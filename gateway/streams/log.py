"""A generation's log in memory, and a reader's place in it.

Invariants:

- One writer appends; what was appended never changes, moves or gets another sequence number. Numbers begin at 1.
- The log ends exactly once, by `close`. Readers stop at the log's end, never because an event looks final.
- A log keeps at most `max_bytes`; the oldest events are trimmed first, but never one that an attached reader still
  has to read. Where that leaves no room the log is `full`, and the writer waits in `room()`: back-pressure, not loss.
- A read has four outcomes with four names: events, `NOTHING` yet, the `END`, `TRIMMED` (what is asked for is gone).
- Reading never creates a log.

This file does not know what an event means, who may read, or how it is written to a socket.
"""

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import Final, Literal

from gateway.clock import GRANULARITY, Timer, Wheel
from gateway.core.event import Event

EVENT_OVERHEAD: Final = 96
"""Bytes counted for an event beside its data and id: the object, its place in the list and its string headers."""
LOG_OVERHEAD: Final = 4096
"""Bytes counted for a log beside its events: what keeps it and what remembers how it went."""


class State(enum.Enum):
    """Why a read returned no events."""

    NOTHING = "nothing yet"
    END = "the end"
    TRIMMED = "trimmed"


NOTHING: Final = State.NOTHING
END: Final = State.END
TRIMMED: Final = State.TRIMMED

Follow = Callable[[Sequence[Event]], bool]
ReadResult = Sequence[Event] | Literal[State.NOTHING, State.END, State.TRIMMED]


class Budget:
    """Bytes that all logs of a process keep together."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def spent(self) -> bool:
        """Whether there is no room for one more log."""
        return self.used >= self.limit


class Log:
    """The events of one generation.

    Args:
        stream_id: the generation's id.
        owner: the principal who started it; everybody else is told that it does not exist.
        max_bytes: how much is kept.
        budget: the bytes of all logs; this one adds to it and gives back in `discard`.

    Attributes:
        size: bytes of the events that are kept.
        readers: who is attached.
        model: the model that answers, as far as it is known.
        terminal: the event that `close` put last, None while the log is open or where it ended without one.
    """

    __slots__ = (
        "_budget",
        "_events",
        "_room",
        "closed",
        "first",
        "full",
        "last",
        "max_bytes",
        "model",
        "owner",
        "readers",
        "size",
        "stream_id",
        "terminal",
    )

    def __init__(self, stream_id: str, owner: str, max_bytes: int, budget: Budget) -> None:
        self.stream_id = stream_id
        self.owner = owner
        self.max_bytes = max_bytes
        self.model = ""
        self.first = 1
        self.last = 0
        self.size = 0
        self.closed = False
        self.terminal: Event | None = None
        self.full = False
        self.readers: tuple[Reader, ...] = ()  # nearly always one, and a set is five times as large
        self._events: list[Event] = []
        self._budget = budget
        self._budget.used += LOG_OVERHEAD
        self._room: asyncio.Future[None] | None = None

    def append(self, events: Sequence[Event]) -> None:
        """The events are in the log, in this order, and readers that wait have been told."""
        assert not self.closed, "the writer appended to a closed log"
        size = EVENT_OVERHEAD * len(events)
        for event in events:
            size += len(event.data) + len(event.id)
        self._events += events
        self.last += len(events)
        self.size += size
        self._budget.used += size
        if self.size > self.max_bytes:
            self._trim()
        for reader in self.readers:
            reader.offer(events)

    def close(self, terminal: Event | None) -> None:
        """The log has ended, with this event as its last, or without one where the body alone tells the end."""
        for reader in self.readers:
            reader.interrupt()  # who follows must not take the last event for one of many
        if terminal is not None:
            self.append([terminal])
        self.terminal = terminal
        self.closed = True
        self.full = False

    def discard(self) -> None:
        """Nothing is kept any more. Only a closed log without readers is discarded, and only once."""
        self._account(-self.size)
        self._budget.used -= LOG_OVERHEAD
        self.first = self.last + 1
        self._events = []

    def read(self, after: int, limit: int) -> ReadResult:
        """Up to `limit` events that follow the sequence number `after`, or why there are none."""
        if after < self.first - 1:
            return TRIMMED
        if after < self.last:
            start = after - self.first + 1
            return self._events[start : start + limit]
        return END if self.closed else NOTHING

    async def room(self) -> None:
        """Returns when the log is no longer full."""
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def advanced(self) -> None:
        """An attached reader moved on or left; there may be room again."""
        if not self.full:
            return
        self._trim()
        if not self.full and self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _account(self, size: int) -> None:
        self.size += size
        self._budget.used += size

    def _trim(self) -> None:
        # An eighth more than necessary, so that a long answer is not moved in memory at every append.
        goal = self.max_bytes - self.max_bytes // 8
        needed_from = min((reader.after for reader in self.readers), default=self.last) + 1
        count = freed = 0
        for event in self._events[: needed_from - self.first]:
            if self.size - freed <= goal:
                break
            count += 1
            freed += len(event.data) + len(event.id) + EVENT_OVERHEAD
        del self._events[:count]
        self.first += count
        self._account(-freed)
        self.full = self.size > self.max_bytes and not self.closed


class Reader:
    """One reader's place in a log: the pull side.

    While it is attached, nothing that it has yet to read is trimmed. Leave with `close()`.

    Args:
        log: what is read.
        after: sequence number of the last event the reader has.
        wheel: where its waiting times out.
    """

    __slots__ = ("_follow", "_timer", "_waiter", "_wheel", "after", "log")

    def __init__(self, log: Log, after: int, wheel: Wheel) -> None:
        self.log = log
        self.after = after
        self._wheel = wheel
        self._timer: Timer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._follow: Follow | None = None
        log.readers += (self,)

    async def read(self, limit: int, timeout: float, follow: Follow | None = None) -> ReadResult:
        """Up to `limit` events after this reader's place, which moves behind them.

        Args:
            limit: events at most, at least 1.
            timeout: seconds to wait for the first of them; `NOTHING` is returned then, at most a granule late.
            follow: called while the read waits, with the events that are appended. Where it returns True, it has taken
                them, and the read goes on waiting for what is left of its time.
        """
        got = self.take(limit)
        if got is NOTHING and timeout > 0:
            await self._wait_for(timeout, follow)
            got = self.take(limit)
        return got

    def take(self, limit: int) -> ReadResult:
        """As `read`, without waiting."""
        got = self.log.read(self.after, limit)
        if not isinstance(got, State):
            self.after += len(got)
            if self.log.full:
                self.log.advanced()
        return got

    def close(self) -> None:
        """The reader has left the log. Doing it twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._follow = None
        self.log.readers = tuple(reader for reader in self.log.readers if reader is not self)
        self.log.advanced()

    def interrupt(self) -> None:
        """A read that waits looks again now, and returns as if its time were up when there is nothing."""
        self._follow = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def offer(self, events: Sequence[Event]) -> None:
        """These events were appended."""
        # Who follows has all that was there before: there is a `follow` only between the wait and the first interrupt.
        follow = self._follow
        if follow is None or not follow(events):
            self.interrupt()
            return
        self.after += len(events)
        if self.log.full:
            self.log.advanced()

    def _wait_for(self, timeout: float, follow: Follow | None) -> "asyncio.Future[None]":
        deadline = self._wheel.now() + timeout
        # A deadline that moved later costs one attribute write; an earlier one needs a new timer.
        if self._timer is None or self._timer.cancelled or deadline < self._timer.deadline - GRANULARITY:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._wheel.after(timeout, self.interrupt)
        self._timer.deadline = deadline
        self._follow = follow
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter
