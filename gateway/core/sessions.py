"""Chat histories, by principal and session id: the turns that are sent to the model again with the next message.

Invariants:

- A session belongs to one principal; the same id of another principal is another session.
- Every session holds whole turns: a user's message and the answer to it.
- Turns, age, sessions and memory are bounded, of one session and of all. Above a bound a principal's own session that
  was longest unused goes first.
- Reading makes no session.
"""

import re
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

MAX_SESSIONS: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024
OVERHEAD: Final = 512
"""Bytes counted for a session apart from its turns: keys, queue and map entries."""

Key = tuple[str, str]
"""A principal and the id of its session."""

_SESSION_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")


def valid_session_id(text: str) -> bool:
    """Whether `text` may name a session: 1 to 128 of `[A-Za-z0-9._~:-]`."""
    return _SESSION_ID.fullmatch(text) is not None


class Turn(NamedTuple):
    """A user's message and the answer to it."""

    user: str
    assistant: str

    def size(self) -> int:
        """Bytes of memory."""
        return sys.getsizeof(self) + sys.getsizeof(self.user) + sys.getsizeof(self.assistant)


class Session:
    """The turns of one session, oldest first."""

    __slots__ = ("size", "turns", "used")

    def __init__(self, now: float) -> None:
        self.turns: deque[Turn] = deque()
        self.size = OVERHEAD
        self.used = now

    def push(self, turn: Turn) -> None:
        """Adds a turn at the end."""
        self.turns.append(turn)
        self.size += turn.size()

    def shift(self) -> None:
        """Drops the oldest turn."""
        self.size -= self.turns.popleft().size()

    def messages(self) -> list[dict[str, str]]:
        """The turns as OpenAI's messages, alternating user and assistant."""
        roles = ("user", "assistant")
        return [{"role": role, "content": text} for turn in self.turns for role, text in zip(roles, turn, strict=True)]


class Behind(Protocol):
    """What several processes share of a route's sessions. `Sessions` is then this process's copy of it."""

    async def refresh(self, principal: str, session: str, now: float) -> None:
        """Brings the copy of this session up to date, if that is possible soon; arguments as for `Sessions.get`."""

    def add(self, principal: str, session: str, user: str, assistant: str) -> Turn:
        """A new turn, which is added to the copy after this call."""


class Share:
    """The sessions of one principal, the longest unused first, and their memory."""

    __slots__ = ("sessions", "size")

    def __init__(self) -> None:
        self.sessions: OrderedDict[Key, None] = OrderedDict()
        self.size = 0


class Sessions:
    """The sessions of one route, in memory.

    Args:
        turns: turns kept of a session, at least 0; older ones are forgotten.
        ttl: seconds since its last use after which a session is forgotten.
        max_sessions: sessions kept, at least 1.
        max_bytes: memory of all sessions together.
        session_bytes: memory of one session. A larger one loses its oldest turns.

    Attributes:
        behind: what other processes share of them, None where nobody does. Ask it to refresh a session before `get`.
    """

    def __init__(
        self,
        turns: int,
        ttl: float,
        max_sessions: int = MAX_SESSIONS,
        max_bytes: int = MAX_BYTES,
        session_bytes: int = MAX_BYTES,
    ) -> None:
        self._turns = turns
        self._ttl = ttl
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._session_bytes = session_bytes
        self.behind: Behind | None = None
        self._sessions: OrderedDict[Key, Session] = OrderedDict()
        self._shares: dict[str, Share] = {}
        self.size = 0
        """Bytes of memory in use, at most `max_bytes`."""

    def __len__(self) -> int:
        return len(self._sessions)

    def configure(self, turns: int, ttl: float, session_bytes: int = MAX_BYTES) -> None:
        """Changes these bounds. A session that is longer now is shortened when the next turn is added to it."""
        self._turns = turns
        self._ttl = ttl
        self._session_bytes = session_bytes

    def get(self, principal: str, session: str, now: float) -> list[dict[str, str]]:
        """The messages so far, oldest first, [] for an unknown session. The caller may change the list.

        Args:
            principal: as `str()` gives it.
            session: an id that `valid_session_id` accepts.
            now: seconds of a clock that does not run backwards.
        """
        self._expire(now)
        found = self._use((principal, session), now)
        return found.messages() if found else []

    def add(self, principal: str, session: str, user: str, assistant: str, now: float) -> None:
        """Adds a turn at the end of the session; arguments as for `get`."""
        self._expire(now)
        key = (principal, session)
        found = self._use(key, now) or Session(now)
        if key in self._sessions:
            self._forget(key)
        behind = self.behind
        found.push(Turn(user, assistant) if behind is None else behind.add(principal, session, user, assistant))
        self._put(key, found)

    def turns(self, principal: str, session: str, now: float) -> tuple[Turn, ...]:
        """The turns of a session, oldest first. This is no use of it; arguments as for `get`."""
        self._expire(now)
        found = self._sessions.get((principal, session))
        return tuple(found.turns) if found is not None else ()

    def replace(self, principal: str, session: str, turns: Iterable[Turn], now: float) -> None:
        """The session has these turns from now on, as far as they fit; arguments as for `get`."""
        self._expire(now)
        key, found = (principal, session), Session(now)
        for turn in turns:
            found.push(turn)
        if key in self._sessions:
            self._forget(key)
        self._put(key, found)

    @property
    def bounds(self) -> tuple[int, float, int]:
        """Of a session: its turns, its seconds, its bytes."""
        return self._turns, self._ttl, min(self._session_bytes, self._max_bytes)

    @property
    def keys(self) -> list[Key]:
        """Of all sessions, the longest unused first."""
        return list(self._sessions)

    def _put(self, key: Key, found: Session) -> None:
        turns, _, most = self.bounds
        while found.turns and (len(found.turns) > turns or found.size > most):
            found.shift()
        if found.turns:
            self._keep(key, found)
        while len(self._sessions) > self._max_sessions or self.size > self._max_bytes:
            self._forget(self._least_missed(key[0]))

    def _use(self, key: Key, now: float) -> Session | None:
        found = self._sessions.get(key)
        if found is not None:
            found.used = now
            self._sessions.move_to_end(key)
            self._shares[key[0]].sessions.move_to_end(key)
        return found

    def _expire(self, now: float) -> None:
        # One ttl for all and every use moves to the end, so the first is always the next to expire.
        while self._sessions and next(iter(self._sessions.values())).used + self._ttl <= now:
            self._forget(next(iter(self._sessions)))

    def _least_missed(self, principal: str) -> Key:
        """The session to forget: this principal's own that was longest unused, or of who has the most memory.

        Nobody can push out the sessions of others by adding more: only a principal with just one takes others' room.
        """
        own = self._shares.get(principal)
        if own is None or len(own.sessions) < 2:
            others = (share for name, share in self._shares.items() if name != principal)
            own = max(others, key=lambda share: share.size)
        return next(iter(own.sessions))

    def _keep(self, key: Key, session: Session) -> None:
        share = self._shares.setdefault(key[0], Share())
        self._sessions[key] = session
        share.sessions[key] = None
        share.size += session.size
        self.size += session.size

    def _forget(self, key: Key) -> None:
        session, share = self._sessions.pop(key), self._shares[key[0]]
        del share.sessions[key]
        share.size -= session.size
        self.size -= session.size
        if not share.sessions:
            del self._shares[key[0]]
