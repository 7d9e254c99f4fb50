"""How busy an event loop is, from how much CPU time its thread used, and how long windows are worth it.

Invariants:

- Windows are for a busy loop only. They widen one step at a time, and narrow far below where they widened: gathering
  events makes the loop less busy, which must not end it.

This file asks no clock and knows no loop.
"""

from typing import Final, NamedTuple

SPAN: Final = 0.25
"""Seconds over which the load is taken."""


class Step(NamedTuple):
    """One width of the windows.

    Attributes:
        window: seconds, 0 for none.
        gap: seconds; a stream has windows when its reads came closer than that, so that there is something to gather.
        widen: share of one core above which the next step is taken.
        narrow: share of one core below which the step before is taken again.
    """

    window: float
    gap: float
    widen: float
    narrow: float


STEPS: Final = (
    Step(window=0.0, gap=0.0, widen=0.20, narrow=0.0),
    Step(window=0.05, gap=0.025, widen=0.15, narrow=0.06),
    Step(window=0.1, gap=0.05, widen=1.0, narrow=0.08),
)


class Load:
    """The load of one loop.

    Attributes:
        share: of one core that the loop's thread used during the last span, 0 to 1.
        step: how events should be gathered.
    """

    __slots__ = ("_at", "_number", "_used", "share", "step")

    def __init__(self) -> None:
        self.share = 0.0
        self.step = STEPS[0]
        self._number = 0
        self._at = self._used = 0.0

    def note(self, now: float, used: float) -> None:
        """So much CPU time the thread has used so far; both in seconds, of clocks that never go back."""
        elapsed = now - self._at
        if elapsed < SPAN:
            return
        if self._at:
            self.share = min(1.0, (used - self._used) / elapsed)
            self._number += (self.share > self.step.widen) - (self.share < self.step.narrow)
            self.step = STEPS[self._number]
        self._at, self._used = now, used
