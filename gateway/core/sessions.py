"""Chat histories, by principal and session id: the turns that are sent to the model again with the next message.

Invariants:

- A session belongs to one principal; the same id of another principal is another session.
- Every session holds whole turns: a user's message and the answer to it.
- Turns, age, sessions and memory are bounded. Above a bound the session longest unused goes first.
- Reading makes no session.
"""

import re
import sys
from collections import OrderedDict, deque
from typing import Final, NamedTuple

MAX_SESSIONS: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024
OVERHEAD: Final = 512
"""Bytes counted for a session apart from its turns: keys, queue and map entry."""

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


class Sessions:
    """The sessions of one route, in memory.

    Args:
        turns: turns kept of a session, at least 0; older ones are forgotten.
        ttl: seconds since its last use after which a session is forgotten.
        max_sessions: sessions kept, at least 1.
        max_bytes: memory of all sessions together. A session larger than that loses its oldest turns.
    """

    def __init__(self, turns: int, ttl: float, max_sessions: int = MAX_SESSIONS, max_bytes: int = MAX_BYTES) -> None:
        self._turns = turns
        self._ttl = ttl
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self.size = 0
        """Bytes of memory in use, at most `max_bytes`."""

    def __len__(self) -> int:
        return len(self._sessions)

    def configure(self, turns: int, ttl: float) -> None:
        """Changes both bounds. A session that is longer now is shortened when the next turn is added to it."""
        self._turns = turns
        self._ttl = ttl

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
        self.size -= found.size if key in self._sessions else 0
        found.push(Turn(user, assistant))
        while found.turns and (len(found.turns) > self._turns or found.size > self._max_bytes):
            found.shift()
        if found.turns:
            self._sessions[key] = found
            self.size += found.size
        else:
            self._sessions.pop(key, None)
        while len(self._sessions) > self._max_sessions or self.size > self._max_bytes:
            self._forget_oldest()

    def _use(self, key: tuple[str, str], now: float) -> Session | None:
        found = self._sessions.get(key)
        if found is not None:
            found.used = now
            self._sessions.move_to_end(key)
        return found

    def _expire(self, now: float) -> None:
        # One ttl for all and every use moves to the end, so the first is always the next to expire.
        while self._sessions and next(iter(self._sessions.values())).used + self._ttl <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, session = self._sessions.popitem(last=False)
        self.size -= session.size
