"""One reader's place in a log, and the two ways to get the events after it.

- *Pull*: `read` gives the events after the place, and waits for them if there are none. A read that returns nothing is
  the time for a heartbeat; a reader that does not read makes back-pressure.
- *Push*: while a read waits, the reader has all events. The log then passes what is appended to the `follow` that was
  given with the read, in the same call. No task is woken. docs/adr/0001 has what that saves.

        read, nothing there            append: follow(events) returns True
    idle ------------------> waiting -----------------------------------------> waiting
      ^                         |
      |   append without follow, or follow returned False
      |   the log's close, interrupt, the timeout, an error in follow
      +-------------------------+

A read does not move the place: the caller calls `move` when it has dealt with the events. So the place is kept once,
here.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from gateway.clock import GRANULARITY, Timer, Wheel
from gateway.core.cursor import Place
from gateway.core.event import Event
from gateway.streams.log import NOTHING, Log, ReadResult


class SentAwayError(ConnectionError):
    """The reader's connection is to end, and the client to come back.

    Attributes:
        comeback: in how many seconds, None where it is not told that.
    """

    def __init__(self, comeback: float | None) -> None:
        super().__init__("the stream goes on elsewhere")
        self.comeback = comeback


Follow = Callable[[Sequence[Event]], bool]
"""Gets events that were appended. True: it has dealt with them and moved the reader. False: they are to be read."""

BEGINNING: Final = Place(0, 0)


class Reader:
    """A reader that is attached to a log. The log trims nothing that it still has to read, so you must call `close`.

    Args:
        log: the log that is read.
        place: where to begin: the last event that the reader has already.
        wheel: the timers for its waits.

    Attributes:
        place: the last event that was dealt with. Change it by `move`.
        kept: number of events after the place that the caller has read and keeps for later.
    """

    __slots__ = ("_cut", "_follow", "_timer", "_waiter", "_wheel", "kept", "log", "place")

    def __init__(self, log: Log, place: Place, wheel: Wheel) -> None:
        self.log = log
        self.place = place
        self.kept = 0
        self._wheel = wheel
        self._timer: Timer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._follow: Follow | None = None
        self._cut: SentAwayError | None = None
        log.readers += (self,)

    @property
    def after(self) -> int:
        """Sequence number of the last event that does not need to be read again."""
        return self.place.seq + self.kept

    async def read(self, limit: int, timeout: float, follow: Follow | None = None) -> ReadResult:
        """Up to `limit` events after this reader's place. After dealing with them you must call `move`, or `keep`.

        Args:
            limit: events at most, at least 1.
            timeout: seconds to wait for the first of them. `NOTHING` is returned after that, at most a granule late.
            follow: called while the read waits, with the events that are appended. If it returns True, it has dealt
                with them, and the read waits for the rest of its time. What it raises, the read raises.

        Raises:
            SentAwayError: `cut` was called.
        """
        got = self.ready(limit)
        if got is NOTHING and timeout > 0:
            await self.wait(timeout, follow)
            got = self.ready(limit)
        return got

    def ready(self, limit: int) -> ReadResult:
        """What `read` gives without a wait. A caller that waits by `wait` keeps no coroutine of `read` meanwhile."""
        if self._cut is not None:
            raise self._cut
        return NOTHING if self.log.doubtful else self.log.read(self.place.seq + self.kept, limit)

    def wait(self, timeout: float, follow: Follow | None) -> "asyncio.Future[None]":
        """Done when there may be something to read, or `timeout` is over. To be called when nothing is `ready`."""
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

    def move(self, place: Place) -> None:
        """The events up to this place have been dealt with."""
        if self.kept:
            self.kept -= min(self.kept, place.seq - self.place.seq)
        self.place = place
        if self.log.full:
            self.log.moved()

    def advance(self, count: int) -> None:
        """`count` further events have been dealt with. For callers that do not need the token index of the place."""
        self.move(Place(self.place.seq + count, self.place.tokens))

    def keep(self, count: int) -> None:
        """The caller has read `count` further events, and keeps them until it moves the place behind them."""
        self.kept += count
        if self.log.full:
            self.log.moved()

    def close(self) -> None:
        """Detaches the reader from the log. A second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._follow = None
        self.log.readers = tuple(reader for reader in self.log.readers if reader is not self)
        self.log.moved()

    def interrupt(self) -> None:
        """Wakes a waiting read: it returns what is there now, `NOTHING` if there is nothing."""
        self._follow = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cut(self, comeback: float | None = None) -> None:
        """From now on every read raises `SentAwayError` with this `comeback`; a waiting read raises it at once."""
        self._cut = SentAwayError(comeback)
        self.interrupt()

    def offer(self, events: Sequence[Event]) -> None:
        """These events were appended. Called by the log."""
        # A reader that follows has all earlier events: `_follow` is set only while a read waits.
        follow = self._follow
        try:
            if follow is None or not follow(events):
                self.interrupt()
        except Exception as error:  # noqa: BLE001  # the error is this reader's; the log's writer goes on
            self._follow = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
