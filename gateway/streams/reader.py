"""One reader's place in a log, and its two ways on from there.

- *Pull*: `read` gives what follows the place, and waits for it. Heartbeats are reads that came back with nothing;
  back-pressure is not reading.
- *Push*: while a read waits, the reader has everything. What is appended then can be handed over in the same call, to
  the `follow` that was given with the read, and no task is woken. docs/adr/0001 has what that saves.

        read, nothing there            append: follow(events) returns True
    idle ------------------> waiting -----------------------------------------> waiting
      ^                         |
      |   append without follow, or follow returned False
      |   close, interrupt, the timeout, an error in follow
      +-------------------------+

A read moves nothing: whoever has done something with the events says so by `move`. So the place is kept once, here.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from gateway.clock import GRANULARITY, Timer, Wheel
from gateway.core.cursor import Place
from gateway.core.event import Event
from gateway.streams.log import NOTHING, Log, ReadResult

Follow = Callable[[Sequence[Event]], bool]
"""Takes events that were appended: True when it has moved the reader behind them, False to have them read instead."""

BEGINNING: Final = Place(0, 0)


class Reader:
    """A reader that is attached to a log. While it is, nothing that it has yet to read is trimmed. Leave with `close`.

    Args:
        log: what is read.
        place: how far the reader is.
        wheel: where its waiting times out.

    Attributes:
        place: how far the reader is: the last event that was dealt with. Change it by `move`.
        held: events behind the place that were read and are kept by who read them, to be dealt with later.
    """

    __slots__ = ("_follow", "_timer", "_waiter", "_wheel", "held", "log", "place")

    def __init__(self, log: Log, place: Place, wheel: Wheel) -> None:
        self.log = log
        self.place = place
        self.held = 0
        self._wheel = wheel
        self._timer: Timer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._follow: Follow | None = None
        log.readers += (self,)

    @property
    def after(self) -> int:
        """Sequence number of the last event that needs not be read again."""
        return self.place.seq + self.held

    async def read(self, limit: int, timeout: float, follow: Follow | None = None) -> ReadResult:
        """Up to `limit` events after this reader's place. After dealing with them you must call `move`, or `hold`.

        Args:
            limit: events at most, at least 1.
            timeout: seconds to wait for the first of them; `NOTHING` is returned then, at most a granule late.
            follow: called while the read waits, with the events that are appended. Where it returns True, it has dealt
                with them, and the read goes on waiting for what is left of its time. What it raises, the read raises.
        """
        got = self.log.read(self.place.seq + self.held, limit)
        if got is NOTHING and timeout > 0:
            await self._wait_for(timeout, follow)
            got = self.log.read(self.place.seq + self.held, limit)
        return got

    def move(self, place: Place) -> None:
        """The events up to this place have been dealt with."""
        if self.held:
            self.held -= min(self.held, place.seq - self.place.seq)
        self.place = place
        if self.log.full:
            self.log.moved()

    def advance(self, count: int) -> None:
        """So many events more have been dealt with, by somebody who counts no tokens."""
        self.move(Place(self.place.seq + count, self.place.tokens))

    def hold(self, count: int) -> None:
        """So many events more were read, and are kept by the caller until it moves the place behind them."""
        self.held += count
        if self.log.full:
            self.log.moved()

    def close(self) -> None:
        """The reader has left the log. Doing it twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._follow = None
        self.log.readers = tuple(reader for reader in self.log.readers if reader is not self)
        self.log.moved()

    def interrupt(self) -> None:
        """A read that waits looks again now, and returns as if its time were up when there is nothing."""
        self._follow = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def offer(self, events: Sequence[Event]) -> None:
        """These events were appended. Called by the log."""
        # A reader that follows has all that was there before: `follow` is only set while a read waits.
        follow = self._follow
        try:
            if follow is None or not follow(events):
                self.interrupt()
        except Exception as error:  # noqa: BLE001  # this reader's own; the writer of the log goes on
            self._follow = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)

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
