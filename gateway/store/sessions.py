"""Chat histories that several nodes share: a chat goes on at any node.

    a request names a session --one READ, at most `PATIENCE`--> this node's copy is up to date --> `Sessions.get`
    an answer is complete --> added to this node's copy --> in the background, one WRITE of what Redis lacks

Each node has a copy in memory (`core/sessions.py`), with its bounds. While Redis is away a chat goes on with the copy
of the node that it comes to; what is added meanwhile is written when Redis is back, and so are whole sessions that
Redis has lost.

    <prefix>:c:<digest of route, principal, session>   zset     the turns, numbered, oldest first: 8 random bytes that
                                                                name the turn, and the turn, sealed
    <prefix>:cu:<digest of route, principal>           zset     the principal's sessions by their last use (ms)
    <prefix>:cz:<digest of route, principal>           hash     their bytes; under "" those of all together

Invariants:

- Texts lie in Redis sealed, so there is none of this without `store.secret`. What another secret sealed counts as
  absent.
- A turn is whole or not there, and there once, however often its write is repeated.
- `history.turns`, `history.max_bytes` and `history.ttl` hold in Redis too. A principal has at most `MAX_SESSIONS` and
  `MAX_BYTES` on one route; above that its own session that was longest unused goes first.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.core.sessions import MAX_BYTES, MAX_SESSIONS, Key, Sessions, Turn
from gateway.store.backlog import Backlog
from gateway.store.connection import Connection, StoreAwayError
from gateway.store.layout import Script
from gateway.store.sealed import Seal

ID: Final = 8
"""Bytes that name a turn among those of its session."""
MAX_UNSENT: Final = 16 * 1024 * 1024
"""Bytes of the turns of one route that wait for Redis; beyond that the session that waited longest is given up."""
LOOKED_FOR: Final = 100
"""Sessions that one command looks for, when Redis is back."""

READ: Final = Script("""
-- The turns of a session, which is used now.   KEYS: session, use, sizes   ARGV: member, ms that it is kept
local turns = redis.call('ZRANGE', KEYS[1], 0, -1)
if turns[1] then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
return turns
""")

WRITE: Final = Script("""
-- Adds turns to a session, and forgets what is above the bounds.   KEYS: session, use, sizes
-- ARGV: member, what names of sessions begin with, turns and bytes of a session, ms that it is kept, sessions and bytes
-- of a principal, bytes that name a turn, how many of the turns are only for a session that is not there, the turns
local member, kept_ms, named = ARGV[1], ARGV[5], tonumber(ARGV[8])
local most_turns, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(other)
  redis.call('DEL', ARGV[2] .. other)
  redis.call('ZREM', KEYS[2], other)
  redis.call('HINCRBY', KEYS[3], '', -tonumber(redis.call('HGET', KEYS[3], other) or 0))
  redis.call('HDEL', KEYS[3], other)
end

local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - kept_ms, 'LIMIT', 0, 100)
for _, other in ipairs(expired) do forget(other) end

local turns, known = redis.call('ZRANGE', KEYS[1], 0, -1), {}
local number = tonumber(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0)
for _, turn in ipairs(turns) do known[string.sub(turn, 1, named)] = true end
for i = turns[1] and 10 + ARGV[9] or 10, #ARGV do
  if not known[string.sub(ARGV[i], 1, named)] then
    number = number + 1
    redis.call('ZADD', KEYS[1], number, ARGV[i])
    turns[#turns + 1] = ARGV[i]
  end
end
local size, first = 0, #turns + 1
while first > 1 and #turns - first + 1 < most_turns and size + #turns[first - 1] <= most_bytes do
  first = first - 1
  size = size + #turns[first]
end
if first > #turns then  -- a name alone stands for a turn that does not fit: a node that has older ones forgets them
  redis.call('DEL', KEYS[1])
  redis.call('ZADD', KEYS[1], number, string.sub(turns[#turns], 1, named))
elseif first > 1 then
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, first - 2)
end
redis.call('HINCRBY', KEYS[3], '', size - tonumber(redis.call('HGET', KEYS[3], member) or 0))
redis.call('HSET', KEYS[3], member, size)
redis.call('ZADD', KEYS[2], now, member)
while redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[6])
  or tonumber(redis.call('HGET', KEYS[3], '')) > tonumber(ARGV[7]) do
  local other = redis.call('ZRANGE', KEYS[2], 0, 0)[1]  -- it is at least the one that was just entered
  forget(other)
  if other == member then return 0 end
end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], kept_ms) end
return 1
""")

ABSENT: Final = Script("""
-- Which of these keys are not there: their numbers, from 0.
local absent = {}
for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 0 then absent[#absent + 1] = i - 1 end
end
return absent
""")


class SharedTurn(Turn):
    """A turn with a name, so that it is written once.

    Attributes:
        id: `ID` bytes.
    """

    id: bytes


def shared_turn(user: str, assistant: str, id_: bytes) -> SharedTurn:
    """A turn with this name."""
    turn = SharedTurn(user, assistant)
    turn.id = id_
    return turn


class SharedSessions:
    """The chat histories of all routes.

    Args:
        connection: this process's way to Redis.
        seal: what seals texts, of `store.secret`.
        clock: the shared timers.
        logger: the process's log.
        max_sessions, max_bytes: of one principal on one route.
    """

    def __init__(
        self,
        connection: Connection,
        seal: Seal,
        clock: Clock,
        logger: FilteringBoundLogger,
        max_sessions: int = MAX_SESSIONS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.connection = connection
        self.seal = seal
        self.clock = clock
        self.logger = logger
        self.most = (max_sessions, max_bytes)
        self.backlog = Backlog(connection, logger, "sessions", MAX_SESSIONS)
        self._routes: list[RouteSessions] = []
        self._restoring: asyncio.Task[None] | None = None
        connection.when_up(self.begin)

    def share(self, route: str, sessions: Sessions) -> None:
        """These sessions of the route with this path are this node's copy from now on."""
        behind = RouteSessions(self, route, sessions)
        sessions.behind = behind
        self._routes.append(behind)

    async def close(self) -> None:
        """Waits a moment for what can still be written."""
        if self._restoring is not None:
            self._restoring.cancel()
        await self.backlog.close()

    async def restored(self) -> None:
        """Returns when it is known what Redis lacks, and that is written."""
        if self._restoring is not None:
            await asyncio.wait([self._restoring])
        await self.backlog.written()

    async def begin(self) -> None:
        """Redis is there: it gets what it lacks."""
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.get_running_loop().create_task(self._restore(), name="store restore")

    async def _restore(self) -> None:
        try:
            # So that the first turn, too, is on its way to Redis in the turn of the loop in which it is added.
            await self.connection.call("SCRIPT", "LOAD", WRITE.text)
            for route in self._routes:
                await route.restore()
        except StoreAwayError as error:
            self.logger.info("store_sessions_not_restored", reason=str(error))  # again when it is back


class RouteSessions:
    """The sessions of one route. See `core.sessions.Behind`."""

    def __init__(self, shared: SharedSessions, route: str, copy: Sessions) -> None:
        self._shared = shared
        self._route = route
        self._copy = copy
        self._unsent: OrderedDict[Key, list[SharedTurn]] = OrderedDict()
        self._unsent_bytes = 0
        self._doubtful: set[Key] = set()  # Redis was away since they were written

    async def refresh(self, principal: str, session: str, now: float) -> None:
        """The copy of this session is what Redis has, and behind it what was not sent yet."""
        shared, key = self._shared, (principal, session)
        names, (_, ttl, _) = self._names(key), self._copy.bounds
        try:
            found = await shared.connection.run(READ, names, (_member(names), round(ttl * 1000)))
        except StoreAwayError:
            return  # the chat goes on with what this node knows
        turns = [turn for turn in (self._opened(names[0], each) for each in found) if turn is not None]
        if not found:
            self._send_again(key, now)  # Redis has lost it
            return
        known = {each[:ID] for each in found}
        turns += [turn for turn in self._unsent.get(key, ()) if turn.id not in known]
        self._copy.replace(principal, session, turns, now)

    def add(self, principal: str, session: str, user: str, assistant: str) -> Turn:
        """A new turn, which is written to Redis in the background."""
        turn = shared_turn(user, assistant, os.urandom(ID))
        if not self._shared.connection.up:
            self._doubtful.add((principal, session))
        self._send((principal, session), [turn])
        return turn

    async def restore(self) -> None:
        """What Redis lacks of this node's copies is written to it."""
        keys = self._copy.keys
        for at in range(0, len(keys), LOOKED_FOR):
            some = keys[at : at + LOOKED_FOR]
            for number in await self._shared.connection.run(ABSENT, [self._names(key)[0] for key in some], ()):
                self._send_again(some[number], self._shared.clock.now())
                if self._unsent_bytes > MAX_UNSENT / 2:
                    await self._shared.backlog.written()

    def _send_again(self, key: Key, now: float) -> None:
        waiting = {turn.id for turn in self._unsent.get(key, ())}
        if lost := [turn for turn in self._own(key, now) if turn.id not in waiting]:
            self._send(key, lost, first=True)

    def _own(self, key: Key, now: float) -> list[SharedTurn]:
        """The turns of this node's copy."""
        return [turn for turn in self._copy.turns(*key, now) if isinstance(turn, SharedTurn)]

    def _send(self, key: Key, turns: Sequence[SharedTurn], *, first: bool = False) -> None:
        unsent = self._unsent.setdefault(key, [])
        unsent[:] = [*turns, *unsent] if first else [*unsent, *turns]
        self._unsent_bytes += sum(turn.size() for turn in turns)
        while self._unsent_bytes > MAX_UNSENT:
            other, given_up = self._unsent.popitem(last=False)
            self._unsent_bytes -= sum(turn.size() for turn in given_up)
            self._doubtful.discard(other)
            self._shared.backlog.give_up((self._route, other), "too much waits")
        self._shared.backlog.put((self._route, key), lambda: self._write(key))

    def _write(self, key: Key) -> Awaitable[None]:
        """Sends what is unsent of this session at once; returns an awaitable of the end."""
        sent, names = list(self._unsent.get(key, ())), self._names(key)
        if not sent:
            return _nothing()
        turns, ttl, most = self._copy.bounds
        done = {turn.id for turn in sent}
        older = self._own(key, self._shared.clock.now()) if key in self._doubtful else []
        older = [turn for turn in older if turn.id not in done]  # Redis may have lost them
        sealed = [turn.id + self._shared.seal.seal(names[0], _text(turn)) for turn in (*older, *sent)]
        prefix = names[0].removesuffix(_member(names))
        bounds = (turns, most, round(ttl * 1000), *self._shared.most)
        arguments: list[bytes | str | int] = [_member(names), prefix, *bounds, ID, len(older), *sealed]
        return self._written(key, done, self._shared.connection.run(WRITE, names, arguments))

    async def _written(self, key: Key, done: set[bytes], reply: Awaitable[Any]) -> None:
        try:
            await reply
        except StoreAwayError:
            self._doubtful.add(key)
            raise
        self._doubtful.discard(key)
        unsent = self._unsent.pop(key, [])
        left = [turn for turn in unsent if turn.id not in done]
        self._unsent_bytes -= sum(turn.size() for turn in unsent) - sum(turn.size() for turn in left)
        if left:
            self._unsent[key] = left

    def _opened(self, name: str, found: bytes) -> SharedTurn | None:
        text = self._shared.seal.unseal(name, found[ID:])
        return None if text is None else _turn(text, found[:ID])

    def _names(self, key: Key) -> tuple[str, str, str]:
        principal, session = key
        prefix, digest = self._shared.connection.layout.prefix, self._shared.seal.digest
        member, whose = digest("session", self._route, principal, session), digest("sessions", self._route, principal)
        return f"{prefix}:c:{member}", f"{prefix}:cu:{whose}", f"{prefix}:cz:{whose}"


async def _nothing() -> None:
    """Nothing is left to be written."""


def _member(names: tuple[str, str, str]) -> str:
    return names[0].rpartition(":")[2]


def _text(turn: Turn) -> bytes:
    # Half a surrogate pair may come from a client as JSON, and goes back to the model as it came.
    user, assistant = (text.encode("utf-8", "surrogatepass") for text in turn)
    return len(user).to_bytes(4) + user + assistant


def _turn(text: bytes, id_: bytes) -> SharedTurn:
    length = int.from_bytes(text[:4])
    user, assistant = text[4 : 4 + length], text[4 + length :]
    return shared_turn(user.decode("utf-8", "surrogatepass"), assistant.decode("utf-8", "surrogatepass"), id_)
