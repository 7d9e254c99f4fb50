"""When principals were revoked: for requests that were let in before, and act only afterwards."""

from typing import Final

KEPT: Final = 10_000
"""Revocations that are remembered; the oldest is forgotten first. A request waits minutes at most for its body."""


class RevokedPrincipals:
    """The last revocations. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._when: dict[str, float] = {}
        self._all: dict[str, float] = {}  # by what a principal begins with

    def note(self, principal: str, now: float) -> None:
        """This principal, `kind:id`, is revoked now."""
        _keep(self._when, principal, now)

    def note_all(self, beginning: str, now: float) -> None:
        """All principals that begin like this are revoked now."""
        _keep(self._all, beginning, now)

    def since(self, principal: str, began: float) -> bool:
        """Whether it was revoked at this moment or later."""
        if self._when.get(principal, began - 1) >= began:
            return True
        return any(when >= began and principal.startswith(beginning) for beginning, when in self._all.items())


def _keep(times: dict[str, float], name: str, now: float) -> None:
    times.pop(name, None)
    times[name] = now
    if len(times) > KEPT:
        del times[next(iter(times))]
