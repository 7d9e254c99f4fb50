"""Principals: the kind and the id of whoever a request acts for.

Invariant: two principals of different kinds are never equal, neither as values nor as written, whatever their ids.
"""

from typing import Final, Protocol

import msgspec

KEY: Final = "key"
"""The kind of a principal that showed a static key."""
JWT: Final = "jwt"
"""The kind of a principal that showed a signed token."""
ADDRESS: Final = "addr"
"""The kind of a principal that showed no credential."""
USER: Final = "user"
"""The kind of a principal that the team's own application knows."""


class Relying(Protocol):
    """What runs for as long as a credential is good: a stream."""

    def renew(self, seconds: float) -> None:
        """The credential is good for so many seconds from now on; 0: it is no longer good."""


class Assurance(Protocol):
    """A credential whose end nobody knows, so that somebody has to be asked again while streams run on it."""

    def left(self) -> float:
        """Seconds for which it is good as far as is known now, above 0."""

    def rely(self, stream: Relying) -> None:
        """From now on the stream is told whenever more is known. After this, `leave` must be called."""

    def leave(self, stream: Relying) -> None:
        """The stream has ended."""


class Principal(msgspec.Struct, frozen=True):
    """Who a request acts for: the owner of streams and chat histories, and the one whom limits count.

    `str()` gives `key:web` or `addr:192.0.2.7`. Logs, limits and histories use this form, so that an id of one kind
    cannot be taken for the same id of another kind.

    Attributes:
        kind: `key` for the holder of a static key, `jwt` for that of a token, `user` for one whom the team's
            application knows, `addr` for a client without a credential. Holds no colon.
        id: unique among the principals of its kind; safe to log.
        plan: a key of the config's `plans`.
        scopes: what it may do, of `stream`, `publish`, `admin`.
        expires: unix seconds by the wall clock, None for never.
        assurance: what is asked while its streams run, None where `expires` is all.
    """

    kind: str
    id: str
    plan: str
    scopes: frozenset[str]
    expires: float | None = None
    assurance: Assurance | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"

    @property
    def anonymous(self) -> bool:
        """Whether only its address is known."""
        return self.kind == ADDRESS

    @property
    def owner(self) -> str:
        """The owner of its streams. All addresses are one owner, `addr:`, because the address of a reader changes with
        its network: the stream id, which nobody can guess, is what lets an anonymous reader resume."""
        return f"{ADDRESS}:" if self.anonymous else str(self)
