"""When principals were revoked: for requests that were let in before, and act only afterwards."""

from typing import Final

KEPT: Final = 10_000
"""Revocations that are remembered; the oldest is forgotten first. A request waits minutes at most for its body."""


class RevokedPrincipals:
    """The last revocations. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._when: dict[str, float] = {}

    def note(self, principal: str, now: float) -> None:
        """This principal, `kind:id`, is revoked now."""
        self._when.pop(principal, None)
        self._when[principal] = now
        if len(self._when) > KEPT:
            del self._when[next(iter(self._when))]

    def since(self, principal: str, began: float) -> bool:
        """Whether it was revoked at this moment or later."""
        return bool(self._when) and self._when.get(principal, began - 1) >= began
