"""How busy an event loop is, from how much CPU time its thread used.

Invariants:

- What is worth doing on a busy loop only is turned on at `FILLED`, and off again far below: gathering events in windows
  makes a loop half as busy, which must not end it.

This file asks no clock and knows no loop.
"""

from typing import Final

SPAN: Final = 0.25
"""Seconds over which the load is taken."""
FILLED: Final = 0.20
"""Share of one core from which on the loop is busy."""
EMPTIED: Final = 0.08
"""Share of one core below which it no longer is."""


class Load:
    """The load of one loop.

    Attributes:
        share: of one core that the loop's thread used during the last span, 0 to 1.
        busy: whether latency should be given up for throughput.
    """

    __slots__ = ("_at", "_used", "busy", "share")

    def __init__(self) -> None:
        self.share = 0.0
        self.busy = False
        self._at = self._used = 0.0

    def note(self, now: float, used: float) -> None:
        """So much CPU time the thread has used so far; both in seconds, of clocks that never go back."""
        elapsed = now - self._at
        if elapsed < SPAN:
            return
        if self._at:
            self.share = min(1.0, (used - self._used) / elapsed)
            self.busy = self.share > (EMPTIED if self.busy else FILLED)
        self._at, self._used = now, used
