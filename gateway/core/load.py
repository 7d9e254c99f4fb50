"""How busy an event loop is, and how long the windows are in which events are gathered.

Invariants:

- Only a busy loop has windows. They widen one step a span, and narrow only far below the share that widened them:
  gathering events makes the loop less busy, and that must not end the gathering.

This file asks no clock and does not know the loop: whoever runs it calls `note`.
"""

from typing import Final, NamedTuple

SPAN: Final = 0.25
"""Seconds over which the load is measured."""


class Window(NamedTuple):
    """One length of the windows.

    Attributes:
        seconds: how long events are gathered, 0 for not at all.
        gap: seconds. Only a stream whose reads are closer together has windows; another has nothing to gather.
        widen: above this share of one core the next longer window is taken.
        narrow: below this share of one core the next shorter window is taken.
    """

    seconds: float
    gap: float
    widen: float
    narrow: float


# The share to narrow at is far below the share to widen at, because a wider window itself makes the loop less busy.
WINDOWS: Final = (
    Window(seconds=0.0, gap=0.0, widen=0.20, narrow=0.0),
    Window(seconds=0.05, gap=0.025, widen=0.15, narrow=0.06),
    Window(seconds=0.1, gap=0.05, widen=1.0, narrow=0.08),
)


class Load:
    """The load of one loop.

    Attributes:
        share: the part of one core that the loop's thread used during the last span, 0 to 1.
        window: how long events should be gathered now.
    """

    __slots__ = ("_at", "_number", "_used", "share", "window")

    def __init__(self) -> None:
        self.share = 0.0
        self.window = WINDOWS[0]
        self._number = 0
        self._at = self._used = 0.0

    def note(self, now: float, used: float) -> None:
        """Notes the CPU time that the thread has used so far. To be called a few times in every span.

        Args:
            now: seconds, monotonic.
            used: seconds of CPU time since the thread began, never less than before.
        """
        elapsed = now - self._at
        if elapsed < SPAN:
            return
        if self._at:  # the first call has nothing to compare with
            self.share = min(1.0, (used - self._used) / elapsed)
            self._number += (self.share > self.window.widen) - (self.share < self.window.narrow)
            self.window = WINDOWS[self._number]
        self._at, self._used = now, used
