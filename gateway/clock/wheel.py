"""Deadlines that hardly ever fire: heartbeats, idle limits, the ends of logs.

Moving a deadline to later is one attribute write: the wheel looks at the timer when the old deadline comes, and puts it
into a later bucket. Deadlines fire at most `GRANULARITY` seconds late. One that raises does not stop the others.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

GRANULARITY: Final = 0.025
HORIZON: Final = 60.0
"""Seconds after which every timer is looked at again, so that cancelled ones do not pile up until their deadline."""


class Timer:
    """One deadline on a wheel. `deadline` may be moved to later at any time, at no cost; `cancel()` drops the timer."""

    __slots__ = ("_callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The timer never fires after this."""
        self._callback = None

    @property
    def cancelled(self) -> bool:
        """Whether it has fired or was cancelled."""
        return self._callback is None

    def fire(self) -> None:
        """Calls back, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Wheel:
    """Deadlines in buckets of `GRANULARITY` seconds, with one timer of the loop for each bucket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, list[Timer]] = {}
        self.now: Callable[[], float] = time.monotonic

    def after(self, delay: float, callback: Callable[[], None]) -> Timer:
        """A timer that calls back once, `delay` seconds from now or up to `GRANULARITY` later."""
        timer = Timer(self.now() + delay, callback)
        self._place(timer)
        return timer

    def _place(self, timer: Timer) -> None:
        # Rounded up, so that no timer fires early.
        number = math.ceil(min(timer.deadline, self.now() + HORIZON) / GRANULARITY)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = []
            self._loop.call_at(number * GRANULARITY, self._turn, number)
        bucket.append(timer)

    def _turn(self, number: int) -> None:
        # Three cases: cancelled meanwhile, moved to later meanwhile, or due.
        now = self.now()
        for timer in self._buckets.pop(number):
            if timer.cancelled:
                continue
            if timer.deadline > now:
                self._place(timer)
            else:
                self._fire(timer)

    def _fire(self, timer: Timer) -> None:
        try:
            timer.fire()
        except Exception as error:  # noqa: BLE001  # the other timers of this bucket belong to other streams
            self._loop.call_exception_handler({"message": "a timer's callback failed", "exception": error})


class Deadline:
    """A limit on the time of a block of code, counted anew from each sign of life. Then the block is cancelled.

    Used as a context manager inside a task. Unlike with `asyncio.timeout`, a sign of life costs nothing here: the one
    who is alive notes the time, and `alive` is asked for it only when the limit seems to have passed.

    Args:
        wheel: the wheel that it waits on.
        late: makes the exception that is raised at the end of the block when the limit has passed.
        alive: gives the time of the last sign of life, on the wheel's clock.
    """

    __slots__ = ("_alive", "_cancelling", "_late", "_passed", "_seconds", "_since", "_task", "_timer", "_wheel")

    def __init__(self, wheel: Wheel, late: Callable[[], Exception], alive: Callable[[], float]) -> None:
        self._wheel = wheel
        self._late = late
        self._alive = alive
        self._timer: Timer | None = None
        self._task: asyncio.Task[object] | None = None
        self._seconds = 0.0
        self._cancelling = 0
        self._passed = False
        self._since = 0.0

    def __enter__(self) -> "Deadline":
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def set(self, seconds: float, late: Callable[[], Exception] | None = None) -> None:
        """From now on the block has `seconds`, and again from each sign of life; `late` replaces the exception."""
        self._late = late or self._late
        self.clear()
        self._seconds, self._since = seconds, self._wheel.now()
        self._timer = self._wheel.after(seconds, self._look)

    def clear(self) -> None:
        """From now on the block has no limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.clear()
        if not self._passed or kind is not asyncio.CancelledError or self._task is None:
            return
        # If the task was cancelled by somebody else as well, their cancellation goes on.
        if self._task.uncancel() <= self._cancelling:
            raise self._late() from None

    def _look(self) -> None:
        # Signs of life moved the deadline without touching the timer, so only now is it known whether it has passed.
        left = max(self._since, self._alive()) + self._seconds - self._wheel.now()
        if left > 0:
            self._timer = self._wheel.after(left, self._look)
            return
        self._passed = True
        if self._task is not None:
            self._task.cancel()
