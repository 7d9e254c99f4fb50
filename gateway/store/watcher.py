"""The reader's side: logs of other nodes are followed here, and what other nodes ask of this one.

One task, one connection, one blocking `XREAD` over this node's mailbox and the logs of all streams that have readers
here. To watch one more log, the node sends a nudge to its own mailbox, so that the read returns and begins anew.

Invariants:

- Nothing is watched that has no readers here, and no log that is full: Redis keeps what comes meanwhile.
- An unknown stream, another owner's and one that has expired are the same answer.
- Finding a stream waits for Redis no longer than a few commands may take, and fails at once while that is away.
- The node that writes a stream knows that it is read here: it was told so when the first reader came, is told so again
  at every beat, and when the last one has left. It must not take a stream for abandoned that is read elsewhere.
- A stop is sent again at every beat until the stream has ended, for `STOPPING` at most: the node may have changed.
- Where another node goes on with a stream, it is told what the one before was told of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import msgspec
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from gateway.clock import Wheel
from gateway.core.errors import GatewayError
from gateway.store.access import CONNECT
from gateway.store.connection import Connection, StoreAwayError
from gateway.store.layout import ALIVE_MS, digest
from gateway.store.remote import Remote, read_entry
from gateway.streams.registry import Registry
from gateway.streams.stream import Followed, Stream

BLOCK_MS: Final = 2000
"""Milliseconds that one read waits for something to come."""
COUNT: Final = 32
"""Entries of one log that are read at once, at most."""
GATHER: Final = 0.005
"""Seconds between two reads: what comes meanwhile is read together."""
MAX_MAIL: Final = 1000
"""Messages in a mailbox, about; the oldest are dropped beyond that."""
LINGER: Final = 5.0
"""Seconds for which a stream without readers is watched on, for one that comes back."""
UNDER_WAY: Final = 0.25
"""Seconds after which an unknown stream is looked for again."""
ENDED_YET: Final = 0.1
"""Seconds between two looks whether a stream that nobody reads here has ended."""
STOPPING: Final = 10.0
"""Seconds for which a stop is sent again."""
SETTLING: Final = 3.0
"""Seconds after the return of Redis in which its nodes may still put streams back."""
LATE: Final = 1.0
"""Seconds by which a blocking read may be late before it is begun anew. If it is late again, Redis counts as lost."""
LOOKED_EVERY: Final = 5
"""Beats between two looks whether what is watched still exists."""
NUDGE: Final = b"nudge"
STOP: Final = b"stop"
READ: Final = b"read"
"""Has `ids`, joined by commas: these streams are read at another node."""
LEFT: Final = b"left"
"""Has `ids`: they were read, and their last reader there has left."""
EXTEND: Final = b"extend"
"""Has `ids`, and `until`, in unix seconds, or "" for ever: a credential of their owner is good until then."""

Handler = Callable[[dict[bytes, bytes]], None]
"""Gets the fields of a message."""
T = TypeVar("T")


class Watcher:
    """Follows streams of other nodes, and reads this node's mailbox.

    Args:
        connection: this process's way to Redis.
        registry: where the streams can be found, local and remote ones.
        wheel: the timers.
        logger: the process's log.
    """

    def __init__(self, connection: Connection, registry: Registry, wheel: Wheel, logger: FilteringBoundLogger) -> None:
        self._connection = connection
        self._layout = connection.layout
        self._registry = registry
        self._wheel = wheel
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, Remote] = {}
        self._finding: dict[tuple[str, str], asyncio.Task[Followed | None]] = {}
        self._missing: set[str] = set()
        self._handlers: dict[bytes, Handler] = {NUDGE: lambda _: None}
        self._mail_id = "0-0"  # all of it: no node before had this name
        self._begun = False
        self._settled = 0.0
        self._stopping: dict[str, float] = {}
        self._good: dict[str, float | None] = {}  # as `EXTEND` says, of streams that are watched
        self._beats = 0
        self._task: asyncio.Task[None] | None = None
        self._asked: set[asyncio.Task[None]] = set()
        connection.when_up(self._begin)
        connection.when_beating(self._report)
        connection.when_beating(self._look)

    def on(self, kind: bytes, handler: Handler) -> None:
        """Messages of this kind go to this handler, one after the other; it must not raise."""
        self._handlers[kind] = handler

    async def post(self, node: str, kind: bytes, **fields: bytes | str) -> None:
        """Sends a message to a node, which may be this one.

        Raises:
            StoreAwayError: it was not sent, or nobody knows.
        """
        mailbox = self._layout.mailbox(node)
        parts = [part for name, value in fields.items() for part in (name, value)]
        await self._connection.call("XADD", mailbox, "MAXLEN", "~", MAX_MAIL, "*", "k", kind, *parts, within=CONNECT)
        await self._connection.call("PEXPIRE", mailbox, ALIVE_MS, within=CONNECT)

    def send(self, node: str, kind: bytes, **fields: bytes | str) -> None:
        """The same without waiting for it; a message that cannot be sent is lost, which is logged."""
        self._soon(self._send(node, kind, **fields), "store message")

    async def _send(self, node: str, kind: bytes, **fields: bytes | str) -> None:
        try:
            await self.post(node, kind, **fields)
        except StoreAwayError as error:
            self._logger.info("store_message_unsent", kind=kind.decode(), reason=str(error))

    async def find(self, stream_id: str, owner: str) -> Followed | None:
        """The owner's stream with this id, wherever it is written; None, for whatever reason, if there is none.

        Raises:
            GatewayError: `overloaded`: Redis is away, so nobody can say.
        """
        if (here := self._registry.kept(stream_id)) is not None:
            return here if here.stream.owner == owner else None
        asked = (stream_id, owner)
        task = self._finding.get(asked)
        if task is None:
            task = self._finding[asked] = self._loop.create_task(self._load(stream_id, owner))
            task.add_done_callback(lambda _: self._finding.pop(asked, None))
        remote = await self._told(asyncio.shield(task))
        return remote if remote is not None and remote.stream.owner == owner else None

    async def about(self, stream_id: str, owner: str) -> Stream | None:
        """What readers need to know of the owner's stream that another node writes. Raises as `find`."""
        found = await self._told(self._about(stream_id, owner))
        return None if found is None else found[0]

    async def of_chat(self, route: str, session_id: str, owner: str) -> list[str]:
        """The ids of the newest streams of a chat, the newest first. Raises StoreAwayError."""
        key = self._layout.chat(route, session_id, owner)
        entries = await self._connection.call("XREVRANGE", key, "+", "-", within=CONNECT)
        return [fields[b"i"].decode() for _, fields in entries]

    async def runs(self, stream_id: str) -> bool:
        """Whether a stream has not ended, as far as Redis knows. Raises StoreAwayError."""
        state: bytes | None = await self._connection.call("HGET", self._layout.stream(stream_id), "s", within=CONNECT)
        return state == b""

    @property
    def followed(self) -> list[Remote]:
        """The streams that other nodes write and that may have readers here."""
        return list(self._watched.values())

    async def close(self) -> None:
        """Nothing is watched any more."""
        tasks = [task for task in (self._task, *self._asked, *self._finding.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CONNECT)

    # -- finding a stream ------------------------------------------------------------------------------------------

    async def _told(self, looking: Awaitable[T | None]) -> T | None:
        """What a look for a stream finds. Raises as `find`."""
        try:
            found = await looking
        except StoreAwayError as error:
            raise GatewayError("overloaded", retry_after=1, detail=f"the store is away: {error}") from None
        if found is None and self._loop.time() < self._settled:
            raise GatewayError("overloaded", retry_after=1, detail="the store has just come back")
        return found

    async def _about(self, stream_id: str, owner: str) -> tuple[Stream, str, str] | None:
        """The owner's stream; the model that answers, as far as it is known; and how it ended, "" where it runs.

        Raises:
            StoreAwayError: nobody can say.
            GatewayError: `overloaded`: another node can say, as this one does not understand what is written.
        """
        asked = ("HMGET", self._layout.stream(stream_id), "a", "m", "s")
        about, model, state = await self._connection.call(*asked, within=CONNECT)
        if about is None:  # the word of a stream that has just begun may still be under way from its node
            await asyncio.sleep(UNDER_WAY)
            about, model, state = await self._connection.call(*asked, within=CONNECT)
        if about is None:
            return None
        try:
            stream = Stream.from_json(about)
        except ValueError:
            raise GatewayError("overloaded", retry_after=1, detail="its node is of a version unknown here") from None
        if stream.owner != digest(owner):
            return None
        return msgspec.structs.replace(stream, owner=owner), model.decode(), state.decode()

    async def _load(self, stream_id: str, owner: str) -> Followed | None:
        found = await self._about(stream_id, owner)
        if found is None:
            return None
        stream, model, outcome = found
        if self._registry.memory.spent:
            raise GatewayError("overloaded", retry_after=5, detail="server.max_log_bytes is used up by running streams")
        remote = Remote(
            stream,
            model,
            outcome,
            self._registry.memory,
            self._wheel,
            came=lambda: self._came(remote),
            parted=lambda: self._part(remote),
            stop=lambda: self._ask_to_stop(stream_id),
            extend=lambda until: self._extend(stream_id, until),
            moved=lambda: self._moved(remote),
            discarded=lambda: self._unwatch(remote),
        )
        await self._read_all(remote)
        if (here := self._registry.kept(stream_id)) is not None:  # this node went on with it meanwhile
            remote.log.discard()
            return here
        self._registry.add(remote)
        self._registry.retire(stream_id, LINGER)  # where nobody attaches
        if not remote.log.closed:
            self._watched[stream_id] = remote
            await self.post(self._connection.node, NUDGE)
        return remote

    async def _read_all(self, remote: Remote) -> None:
        key = self._layout.log(remote.stream.id)
        while not remote.log.closed:
            found = await self._connection.call(
                "XRANGE", key, f"({remote.last_id}", "+", "COUNT", COUNT, within=CONNECT
            )
            for id_, fields in found:
                self._take(remote, id_, fields)
            if len(found) < COUNT:
                return

    def _take(self, remote: Remote, id_: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            remote.take(id_, read_entry(id_, fields))
        except ValueError as error:
            self._logger.error("store_entry_unread", stream_id=remote.stream.id, entry=id_.decode(), reason=str(error))

    def _came(self, remote: Remote) -> None:
        if len(remote.log.readers) == 1 and not remote.log.closed:
            self._soon(self._tell(READ, [remote.stream.id]), "store read")

    def _part(self, remote: Remote) -> None:
        if not remote.log.closed:
            self._soon(self._tell(LEFT, [remote.stream.id]), "store left")
        if self._registry.holds(remote):
            self._registry.retire(remote.stream.id, LINGER)

    def _unwatch(self, remote: Remote) -> None:
        stream_id = remote.stream.id
        if self._watched.get(stream_id) is remote:
            del self._watched[stream_id]
            self._missing.discard(stream_id)
            self._good.pop(stream_id, None)
            if remote.log.closed:
                self._stopping.pop(stream_id, None)

    def _ask_to_stop(self, stream_id: str) -> None:
        self._stopping[stream_id] = self._loop.time() + STOPPING
        self._soon(self._tell(STOP, [stream_id]), "store stop")

    async def stop(self, stream_id: str, within: float) -> str | None:
        """Asks for the end of a stream that another node writes; how it ended, None where none runs with this id.

        Args:
            stream_id: the stream's.
            within: seconds that the end is waited for.

        Raises:
            StoreAwayError: nobody can say.
            TimeoutError: it has not ended yet.
        """
        asked = False
        async with asyncio.timeout(within):
            while True:
                stands = await self._connection.call("HMGET", self._layout.stream(stream_id), "n", "s", within=CONNECT)
                node, state = stands
                if not asked and (node is None or state):
                    return None
                if node is None or state:
                    return (state or b"stopped").decode()
                if not asked:
                    self._ask_to_stop(stream_id)
                    asked = True
                await asyncio.sleep(ENDED_YET)

    def _extend(self, stream_id: str, until: float | None) -> None:
        known = self._good.get(stream_id, 0.0)
        if known is None or (until is not None and until <= known):
            return
        if stream_id in self._watched:
            self._good[stream_id] = until
        self._soon(self._tell(EXTEND, [stream_id], until="" if until is None else str(until)), "store extend")

    def _moved(self, remote: Remote) -> None:
        """Another node writes this stream now: it is told what it cannot know."""
        stream_id = remote.stream.id
        if self._watched.get(stream_id) is not remote:
            return
        if stream_id in self._good:
            until = self._good[stream_id]
            self._soon(self._tell(EXTEND, [stream_id], until="" if until is None else str(until)), "store extend")
        if remote.log.readers:
            self._soon(self._tell(READ, [stream_id]), "store read")
        if stream_id in self._stopping:
            self._soon(self._tell(STOP, [stream_id]), "store stop")

    def _soon(self, telling: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(telling, name=name)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _tell(self, kind: bytes, ids: Sequence[str], **more: str) -> None:
        """Sends a message about each of these streams to the node that writes it, one for all of a node."""
        try:
            nodes: dict[str, list[str]] = {}
            for id_ in ids:
                node = await self._connection.call("HGET", self._layout.stream(id_), "n", within=CONNECT)
                if node is not None:
                    nodes.setdefault(node.decode(), []).append(id_)
            for node, told in nodes.items():
                await self.post(node, kind, ids=",".join(told), **more)
        except StoreAwayError as error:
            self._logger.info("store_message_unsent", kind=kind.decode(), reason=str(error))  # the beats say it again

    async def _report(self) -> None:
        """Tells other nodes at each beat what of theirs is read here, and what is to stop."""
        now = self._loop.time()
        self._stopping = {id_: until for id_, until in self._stopping.items() if until > now}
        if self._stopping:
            self._soon(self._tell(STOP, list(self._stopping)), "store stop")
        if read := [id_ for id_, remote in self._watched.items() if remote.log.readers]:
            self._soon(self._tell(READ, read), "store read")

    # -- the blocking read -----------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Redis is there (again)."""
        if self._begun:
            self._settled = self._loop.time() + SETTLING
        self._begun = True
        if self._task is not None and not self._task.done():
            self._task.cancel()  # its connection may be a dead one
            await asyncio.wait([self._task], timeout=CONNECT)
        self._task = self._loop.create_task(self._run(), name="store watcher")

    async def _run(self) -> None:
        client, late = self._connection.client(), False
        try:
            while self._connection.up:
                try:
                    await self._read(client)
                    late = False
                except TimeoutError:
                    # Its connection is a dead one, or this process stood still, as it does while it starts on a busy
                    # machine. Whether Redis is there, the beat knows.
                    if late:
                        raise
                    late = True
                    await client.aclose()
                    client = self._connection.client()
                await asyncio.sleep(GATHER)
        except (RedisError, OSError) as error:
            self._connection.lose(error)
        except Exception as error:  # whatever it is: readers here must not wait for ever
            self._logger.error("store_watcher_failed", exc_info=error)
            self._connection.lose(error)
        finally:
            await client.aclose()

    async def _read(self, client: Any) -> None:
        mailbox = self._layout.mailbox(self._connection.node)
        followed = {self._layout.log(id_): remote for id_, remote in self._watched.items() if not remote.log.full}
        keys = [mailbox, *followed]
        after = [self._mail_id, *(remote.last_id for remote in followed.values())]
        async with asyncio.timeout(BLOCK_MS / 1000 + LATE):
            got = await client.execute_command("XREAD", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS", *keys, *after)
        for key, entries in got:
            remote = followed.get(key.decode())
            for id_, fields in entries:
                if remote is not None:
                    self._take(remote, id_, fields)
                else:
                    self._mail_id = id_.decode()
                    self._deliver(fields)
            if remote is not None and remote.log.closed:
                self._unwatch(remote)

    def _deliver(self, message: dict[bytes, bytes]) -> None:
        handler = self._handlers.get(message.get(b"k", b""))
        if handler is None:
            self._logger.warning("store_message_unknown", kind=message.get(b"k", b"")[:32].decode("utf-8", "replace"))
        else:
            handler(message)

    async def _look(self) -> None:
        """What Redis has lost, and nobody has put back for two looks, has ended."""
        self._beats += 1
        if self._beats % LOOKED_EVERY or not self._watched:
            return
        missing: set[str] = set()
        for stream_id in list(self._watched):
            if not await self._connection.call("EXISTS", self._layout.stream(stream_id), within=CONNECT):
                missing.add(stream_id)
        for stream_id in missing & self._missing:
            if remote := self._watched.get(stream_id):
                self._unwatch(remote)
                remote.lose()
        self._missing = missing & self._watched.keys()
