"""Revocations that every node learns of: at once where it can be told, else when it is back.

    this node: REVOKE: the principal's tickets are gone, the revocation is in the list --nudge--> every other node
    any node:  a nudge, or Redis is back, or `LOOK` has passed --RECENT--> what is new in the list ends here, too

    <prefix>:v   stream   the revocations of the last `KEPT`, `MAX_KEPT` at most, whose ids are Redis' time: `p` a
                          digest of the principal, `k` one of the key that a reload removed or empty, `n` the node that
                          tells it, `a` how many milliseconds ago it was when it was told

Invariants:

- What began after a revocation lives on, even where the revocation is learned of late: it carries its age.
- To read an entry twice does no harm. So a node reads a little further back than it has read, which covers a Redis that
  took over with a clock that is behind.
- Nodes never learn whom a revocation means, unless they know that principal.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.store.backlog import Backlog
from gateway.store.connection import Connection, StoreAwayError
from gateway.store.layout import ALIVE_MS, Script
from gateway.store.nodes import all_nodes
from gateway.store.sealed import Seal
from gateway.store.tickets import FORGET, SharedTickets

KEPT: Final = 24 * 3600.0
"""Seconds for which the list is kept after its last entry: a node that was away for longer has no stream left."""
MAX_KEPT: Final = 10_000
"""Entries of the list, about."""
MAX_UNTOLD: Final = 1000
"""Revocations that wait for Redis to be back."""
LOOK: Final = 2.0
"""Seconds after which a node looks without a nudge, as one may be lost."""
OVERLAP: Final = 60.0
"""Seconds that it reads further back than it has read."""
AT_ONCE: Final = 500
"""Entries that are read at once."""
NUDGE: Final = b"revoked"
"""The kind of the message that there is something new in the list."""

REVOKE: Final = Script(f"""{FORGET}
-- Enters a revocation.   KEYS: the principal's tickets, the list
-- ARGV: what names of tickets begin with, ms that the list is kept, its length, principal, key, node, ms since then
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'p', ARGV[4], 'k', ARGV[5], 'n', ARGV[6], 'a', ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return tickets
""")

RECENT: Final = Script("""
-- Entries of the list, and Redis' time in ms.
-- KEYS: the list   ARGV: id behind which they begin, empty for those of the last so many ms; so many ms; at most
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local first = ARGV[1] == '' and string.format('%d', math.max(0, now - ARGV[2])) or '(' .. ARGV[1]
return {now, redis.call('XRANGE', KEYS[1], first, '+', 'COUNT', ARGV[3])}
""")


class Revocation(NamedTuple):
    """One that another node told.

    Attributes:
        principal: its digest.
        key: digest of the static key that a reload removed there, "" for any other reason.
        age: seconds since then.
    """

    principal: str
    key: str
    age: float


class Mail(Protocol):
    """Messages between nodes."""

    def on(self, kind: bytes, handler: Callable[[dict[bytes, bytes]], None]) -> None:
        """Messages of this kind go to this handler."""

    async def post(self, node: str, kind: bytes, **fields: bytes | str) -> None:
        """Sends a message to a node. Raises `StoreAwayError`."""


class Revocations:
    """Tells other nodes of revocations, and learns of theirs.

    Args:
        connection: this process's way to Redis.
        seal: makes the digests.
        tickets: those of all nodes.
        clock: the shared timers.
        logger: the process's log.
        mail: messages between nodes; without it, nodes learn of a revocation within `LOOK`.

    Attributes:
        learned: called with each revocation that another node told, maybe more than once; to be set before the start.
    """

    def __init__(
        self,
        connection: Connection,
        seal: Seal,
        tickets: SharedTickets,
        clock: Clock,
        logger: FilteringBoundLogger,
        mail: Mail | None = None,
    ) -> None:
        self.learned: Callable[[Revocation], None] = lambda revocation: None
        self._connection = connection
        self._seal = seal
        self._tickets = tickets
        self._clock = clock
        self._began = clock.now()
        self._list = f"{connection.layout.prefix}:v"
        self._backlog = Backlog(connection, logger, "revocations", MAX_UNTOLD)
        self._mail = mail
        self._read: float | None = None  # Redis' time, in ms, of the last look
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        connection.when_up(self.begin)
        if mail is not None:
            mail.on(NUDGE, lambda _: self._wanted.set())

    def digest(self, principal: str) -> str:
        """What stands for a principal, `kind:id`."""
        return self._seal.digest("principal", principal)

    def key_digest(self, id_: str, sha256: str) -> str:
        """What stands for a static key with this id and hash."""
        return self._seal.digest("key", id_, sha256)

    async def tell(self, principal: str, key: str = "") -> int | None:
        """Forgets this principal's tickets, and tells all nodes that it is revoked.

        Returns how many tickets there were; None where Redis is away: then all nodes learn of it when it is back.

        Args:
            principal: `kind:id`.
            key: the `key_digest` of the static key that a reload removed, "" for any other reason.
        """
        when, found = self._clock.now(), None

        async def write() -> None:
            nonlocal found
            keys = (self._tickets.of(principal), self._list)
            age = round((self._clock.now() - when) * 1000)
            facts = (self.digest(principal), key, self._connection.node, age)
            found = await self._connection.run(
                REVOKE, keys, (self._tickets.prefix, round(KEPT * 1000), MAX_KEPT, *facts)
            )
            await self._nudge()

        try:
            await write()
        except StoreAwayError:
            if found is None:
                self._backlog.put((principal, key), write)
        return found

    async def look(self) -> None:
        """Learns what is new.

        Raises:
            StoreAwayError: Redis is away.
        """
        # This node may go on with streams that began before it did, and whose node may have been silent for a while.
        after, now = "", 0.0
        back = round((self._clock.now() - self._began) * 1000) + ALIVE_MS
        if self._read is not None:
            after = f"{max(0, round(self._read - OVERLAP * 1000))}-0"
        while True:
            now, entries = await self._connection.run(RECENT, (self._list,), (after, back, AT_ONCE))
            for id_, flat in entries:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                if fields[b"n"].decode() != self._connection.node:
                    age = (now - int(id_.partition(b"-")[0]) + int(fields[b"a"])) / 1000
                    self.learned(Revocation(fields[b"p"].decode(), fields[b"k"].decode(), age))
            if len(entries) < AT_ONCE:
                break
            after = entries[-1][0].decode()
        self._read = now

    async def close(self) -> None:
        """Nothing is learned any more; waits a moment for what can still be told."""
        if self._task is not None:
            self._task.cancel()
        await self._backlog.close()

    async def _nudge(self) -> None:
        if self._mail is None:
            return
        for node in (await all_nodes(self._connection)).alive:
            if node != self._connection.node:
                await self._mail.post(node, NUDGE)

    async def begin(self) -> None:
        """Redis is there: looks for what is new."""
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="store revocations")

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK):
                    await self._wanted.wait()
            except TimeoutError:
                pass  # it looks without a nudge
            self._wanted.clear()
            try:
                await self.look()
            except StoreAwayError:
                continue  # it is wanted again when Redis is back
