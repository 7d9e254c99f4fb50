"""When principals were revoked: for requests that were let in before, and act only afterwards."""

from collections.abc import Callable
from typing import Final

KEPT: Final = 10_000
"""Revocations that are remembered; the oldest is forgotten first. A request waits minutes at most for its body."""


class RevokedPrincipals:
    """The last revocations. Times are seconds of one clock.

    Args:
        name: what a principal is known by here, given its `kind:id`; where several nodes tell each other of
            revocations, that is a digest.
    """

    def __init__(self, name: Callable[[str], str] = str) -> None:
        self._when: dict[str, float] = {}
        self._all: dict[str, float] = {}  # by what a principal begins with
        self._name = name

    def note(self, principal: str, now: float) -> None:
        """This principal, `kind:id`, is revoked now."""
        self.note_name(self._name(principal), now)

    def note_name(self, name: str, now: float) -> None:
        """The principal that is known by this name was revoked at this time."""
        _keep(self._when, name, max(self._when.get(name, now), now))

    def note_all(self, beginning: str, now: float) -> None:
        """All principals that begin like this are revoked now."""
        _keep(self._all, beginning, now)

    def since(self, principal: str, began: float) -> bool:
        """Whether it was revoked at this moment or later."""
        if self._when and self._when.get(self._name(principal), began - 1) >= began:
            return True
        return any(when >= began and principal.startswith(beginning) for beginning, when in self._all.items())


def _keep(times: dict[str, float], name: str, now: float) -> None:
    times.pop(name, None)
    times[name] = now
    if len(times) > KEPT:
        del times[next(iter(times))]
