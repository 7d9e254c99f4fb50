"""The log of a stream: what every log promises, and the one in memory.

                 append                       close
        open ---------------> open  ------------------------> closed ---discard--> empty
         |   ^
         |   | a reader moves on or leaves
         v   |
        full: more than `max_bytes`, and an attached reader still has to read the oldest event

Only the writer appends and closes. A log that is full makes the writer wait in `room()`: back-pressure, not loss.

Invariants:

- One writer appends; what was appended never changes, moves or gets another sequence number. Numbers begin at 1.
- The log ends exactly once, by `close`. Readers stop at the log's end, never because an event looks final.
- Above `max_bytes` a log trims its oldest events, but never one that an attached reader still has to read: then it
  keeps more, and is full.
- A read has four outcomes with four names: events, `NOTHING` yet, the `END`, `TRIMMED` (the events asked for are gone).
- Reading never creates a log.
"""

import asyncio
import enum
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from gateway.core.event import Event

EVENT_OVERHEAD: Final = 96
"""Bytes counted for an event (object, place in the list, string headers), besides one for each character of its data
and id, whatever these take in memory."""
LOG_OVERHEAD: Final = 4096
"""Bytes counted for a log beside its events: the objects around it, and the account of its generation."""


class LogState(enum.Enum):
    """Why a read returned no events."""

    NOTHING = "nothing yet"
    END = "the end"
    TRIMMED = "trimmed"


NOTHING: Final = LogState.NOTHING
END: Final = LogState.END
TRIMMED: Final = LogState.TRIMMED

ReadResult = Sequence[Event] | Literal[LogState.NOTHING, LogState.END, LogState.TRIMMED]


class Attached(Protocol):
    """A reader, as its log sees it."""

    @property
    def after(self) -> int:
        """Sequence number of the last event that it does not need to read again."""

    def offer(self, events: Sequence[Event]) -> None:
        """Called by the log when these events were appended."""

    def interrupt(self) -> None:
        """Wakes a waiting read, which returns what is there now."""

    def cut(self, comeback: float | None = None) -> None:
        """Its connection ends now, without another event: the client is to come back, in `comeback` seconds if told."""


class Log(Protocol):
    """What readers and the writer may rely on, wherever the events are kept.

    Attributes:
        first: sequence number of the oldest event that is kept, `last + 1` where none is.
        last: sequence number of the newest event, 0 before the first.
        closed: whether the log has ended.
        full: whether the writer has to wait in `room()`.
        model: the model that answers, as far as it is known; "" before.
        terminal: the event that `close` appended; None while the log is open, or where it ended without one.
        readers: the attached readers. A `Reader` adds and removes itself.
        size: bytes of the events that are kept.
        takeovers: for each time that another node went on with the stream, the number of the last event before.
    """

    first: int
    last: int
    closed: bool
    full: bool
    model: str
    terminal: Event | None
    readers: tuple[Attached, ...]
    size: int
    takeovers: tuple[int, ...]

    @property
    def doubtful(self) -> bool:
        """Whether readers are to wait, because it is not sure that this log is still the stream's."""

    def append(self, events: Sequence[Event]) -> None:
        """Adds the events in this order, and offers them to every attached reader."""

    def close(self, terminal: Event | None) -> None:
        """Ends the log with this event; with None if the end of the response's body is all that tells readers so."""

    def read(self, after: int, limit: int) -> "ReadResult":
        """Up to `limit` events that follow the sequence number `after`, or the reason why there are none."""

    async def room(self) -> None:
        """Returns when the log is no longer full."""

    def moved(self) -> None:
        """An attached reader moved on or left, so there may be room again."""


class Mirror(Protocol):
    """What copies a log to somewhere else, and reads there what it lacks."""

    @property
    def doubtful(self) -> bool:
        """Whether readers are to wait; see `Log`. Whoever ends it must interrupt them."""

    def changed(self) -> None:
        """Events were appended, or the log was closed. Called before any reader is offered the events."""

    def dropped(self) -> None:
        """The log was discarded: nothing of it can be copied any more."""


class LogMemory:
    """Bytes that all logs of a process keep together.

    Attributes:
        limit: how many they may keep; a reload may change it.
        used: how many they keep.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def spent(self) -> bool:
        """Whether there is no room for one more log."""
        return self.used >= self.limit


class MemoryLog:
    """A log in this process's memory. See `Log`.

    Args:
        max_bytes: how much is kept.
        memory: the bytes of all logs. This one adds to it, and gives back in `discard`.

    Attributes:
        mirror: copies it, None where nothing does. It may lag behind: trimming does not wait for it.
    """

    __slots__ = (
        "_events",
        "_memory",
        "_room",
        "closed",
        "first",
        "full",
        "last",
        "max_bytes",
        "mirror",
        "model",
        "readers",
        "size",
        "takeovers",
        "terminal",
    )

    def __init__(self, max_bytes: int, memory: LogMemory) -> None:
        self.max_bytes = max_bytes
        self.model = ""
        self.mirror: Mirror | None = None
        self.first = 1
        self.last = 0
        self.size = 0
        self.closed = False
        self.terminal: Event | None = None
        self.full = False
        self.takeovers: tuple[int, ...] = ()
        self.readers: tuple[Attached, ...] = ()  # a tuple: nearly always of one, and a set is five times as large
        self._events: list[Event] = []
        self._memory = memory
        self._memory.used += LOG_OVERHEAD
        self._room: asyncio.Future[None] | None = None

    def append(self, events: Sequence[Event]) -> None:
        """Adds the events in this order, and offers them to every attached reader."""
        assert not self.closed, "the writer appended to a closed log"
        size = EVENT_OVERHEAD * len(events)
        for event in events:
            size += len(event.data) + len(event.id)
        self._events += events
        self.last += len(events)
        self.size += size
        self._memory.used += size
        if self.size > self.max_bytes:
            self._trim()
        if self.mirror is not None:
            self.mirror.changed()
            if self.mirror.doubtful:
                for reader in self.readers:
                    reader.interrupt()
                return
        for reader in self.readers:
            reader.offer(events)

    def close(self, terminal: Event | None) -> None:
        """Ends the log. `terminal`, if not None, is its last event."""
        # Before the append, which would hand the event to readers that follow. They must read it once the log is
        # closed: only then does `Frames` know that it is the terminal event.
        for reader in self.readers:
            reader.interrupt()
        if terminal is not None:
            self.append([terminal])
        self.terminal = terminal
        self.closed = True
        self.full = False
        if self.mirror is not None:
            self.mirror.changed()

    def discard(self) -> None:
        """Drops all events. To be called once, when nothing writes to the log or reads it any more."""
        self._account(-self.size)
        self._memory.used -= LOG_OVERHEAD
        self.first = self.last + 1
        self._events = []
        if self.mirror is not None:
            self.mirror.dropped()

    @property
    def doubtful(self) -> bool:
        """Whether readers are to wait, because it is not sure that this log is still the stream's."""
        return self.mirror is not None and self.mirror.doubtful

    def read(self, after: int, limit: int) -> ReadResult:
        """Up to `limit` events that follow the sequence number `after`, or the reason why there are none."""
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

    def moved(self) -> None:
        """An attached reader moved on or left, so there may be room again."""
        if not self.full:  # a log that has ended keeps what it has: its readers may come back for the rest
            return
        self._trim()
        if not self.full and self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _account(self, size: int) -> None:
        self.size += size
        self._memory.used += size

    def _trim(self) -> None:
        # Trims an eighth more than it must, so that the list of a long answer does not move in memory at every append.
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
