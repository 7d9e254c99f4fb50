"""Beats that many streams wait for together, and the clock that each event loop has one of."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway.clock.wheel import Wheel
from gateway.core.load import Load

Callbacks = list[Callable[[], object]]

MAX_AT_ONCE: Final = 64
"""After so many callbacks of a beat the loop gets a turn. Those of 64 fast streams take about 2 ms."""


class Tick:
    """A beat every `interval` seconds while something waits for it; no timer runs otherwise.

    Args:
        loop: the loop that it waits in.
        interval: seconds from beat to beat.
        run: calls the callbacks of a beat.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float, run: Callable[[Callbacks], None]) -> None:
        self._loop = loop
        self._interval = interval
        self._run = run
        self._waiting: Callbacks = []
        self._next = 0.0

    def add(self, callback: Callable[[], None]) -> None:
        """Has `callback` called once, at the next beat, at most `interval` seconds from now."""
        if not self._waiting:
            # Beats keep their rhythm while there is one; after a silence a new rhythm begins now.
            now = time.monotonic()
            if self._next <= now:
                self._next = now + self._interval
            self._loop.call_at(self._next, self._beat)
        self._waiting.append(callback)

    def _beat(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._next += self._interval
        self._go_on(waiting)

    def _go_on(self, waiting: Callbacks) -> None:
        self._run(waiting[:MAX_AT_ONCE])
        if len(waiting) > MAX_AT_ONCE:  # the others come after the writes that these left to `Clock.soon`
            self._loop.call_soon(self._go_on, waiting[MAX_AT_ONCE:])


class Clock:
    """The wheel, the ticks and the load of one event loop. Whoever runs the loop calls `load.note`.

    There is one tick for each interval; a configuration has few of them, and an idle one costs nothing.

    Attributes:
        before_writes: called before anything is written to a reader; None for nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks: dict[float, Tick] = {}
        self._late: list[tuple[asyncio.WriteTransport, bytes]] = []
        self.before_writes: Callable[[], None] | None = None
        self.wheel = Wheel(loop)
        self.now: Callable[[], float] = time.monotonic
        self.load = Load()

    def tick(self, interval: float) -> Tick:
        """The shared beat of this interval, in seconds."""
        if interval not in self._ticks:
            self._ticks[interval] = Tick(self._loop, interval, self._call)
        return self._ticks[interval]

    def soon(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Writes `data` after the loop has read what has come for all streams, before anything scheduled later.

        If the connection is lost before that, nothing is written. So the writes of all streams follow one another:
        the first wakes the readers' side up, and each further one costs the kernel a third of the first.
        """
        if not self._late:
            self._loop.call_soon(self._catch_up)
        self._late.append((transport, data))

    def prepare_write(self) -> None:
        """Calls `before_writes`. Whoever writes to a reader without `soon` must call this first."""
        if self.before_writes is not None:
            try:
                self.before_writes()
            except Exception as error:  # noqa: BLE001  # readers must not lose what was left to be written
                self._report(error)

    def _catch_up(self) -> None:
        late, self._late = self._late, []
        self.prepare_write()
        for transport, data in late:
            try:
                if not transport.is_closing():
                    transport.write(data)
            except Exception as error:  # noqa: BLE001  # the other writes belong to other streams
                self._report(error)

    def _call(self, callbacks: Callbacks) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # noqa: BLE001  # the other callbacks belong to other streams
                self._report(error)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a shared callback failed", "exception": error})
