"""Refusals of clients: one log line for each, at a bounded rate.

                   first refusal for a reason          `LINES` were logged            `WINDOW` is over
    no window ----------------------------> logging --------------------> counting ------------------> no window
                                               |                              logs `refusals_suppressed`
                                               +------- `WINDOW` is over ----------------------------> no window

Every reason has a window of its own, so a flood of one sort does not hide another. Reasons are a closed set: a word of
the gateway's own or the code of an error. So the windows are bounded, too.

The line `request` is written for every request, refused or not; this file bounds what is said about refusals alone.
"""

from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from gateway.clock.wheel import Wheel

LINES: Final = 20
"""Lines for one reason in one window."""
WINDOW: Final = 10.0
"""Seconds."""


class Refusals:
    """Logs refusals.

    Args:
        logger: the process's log.
        wheel: the shared timers.
    """

    def __init__(self, logger: FilteringBoundLogger, wheel: Wheel) -> None:
        self._logger = logger
        self._wheel = wheel
        self._counts: dict[str, int] = {}

    def note(self, reason: str, **facts: Any) -> None:
        """One client was refused. The line is left out where its reason has had `LINES` lines in this window.

        Args:
            reason: one of a closed set.
            facts: what else the line says; nothing of a query, a body or a credential.
        """
        count = self._counts.get(reason, 0)
        if not count:
            self._wheel.after(WINDOW, lambda: self._close(reason))
        self._counts[reason] = count + 1
        if count < LINES:
            self._logger.info("refused", reason=reason, **facts)

    def flush(self) -> None:
        """Logs how many lines were left out so far; for the end of the process."""
        for reason in list(self._counts):
            self._close(reason)

    def _close(self, reason: str) -> None:
        suppressed = self._counts.pop(reason, 0) - LINES
        if suppressed > 0:
            self._logger.info("refusals_suppressed", reason=reason, count=suppressed)
