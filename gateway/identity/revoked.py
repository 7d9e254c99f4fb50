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
        self._name = name

    def note(self, principal: str, now: float) -> None:
        """This principal, `kind:id`, is revoked now."""
        self.note_name(self._name(principal), now)

    def note_name(self, name: str, now: float) -> None:
        """The principal that is known by this name was revoked at this time."""
        before = self._when.pop(name, now)
        self._when[name] = max(before, now)
        if len(self._when) > KEPT:
            del self._when[next(iter(self._when))]

    def since(self, principal: str, began: float) -> bool:
        """Whether it was revoked at this moment or later."""
        return bool(self._when) and self._when.get(self._name(principal), began - 1) >= began
