"""The writer's side: what is appended to the logs of this node is written to Redis as well.

    a copy of one log:

        new --open--> copied --the log was closed, and Redis has all of it--> done
         ^              |
         |              +--another node took the stream (a higher epoch stands there)--> lost
         |              |
         +--Redis does not have it (any more): it was away, lost its data, refused a part, or was started empty

A copy leaves this drawing where its log is discarded: then nothing is left to write.

Invariants:

- An append is written to Redis's socket in the turn of the loop in which it is made, and before anything of it is
  written to a reader. All appends of a turn, of all logs, are one write. Nobody waits for the reply.
- A new stream is written within `OPENING`, and before the head of a response that names it: until then nobody can come
  back to it, and its appends wait with it. So it nearly always goes along with something else; an answer that comes in
  one piece is one write, from its beginning to its end.
- What Redis has of a log is the log's events in order, each once, with the numbers that they have here; where some had
  to be left out, the entry behind them says so by its first number.
- Nothing is kept for Redis: what it lacks is read from the log again. Whenever Redis was away, each copy is compared
  with what stands there before it goes on.
- Where the lease may have lapsed unnoticed, readers are told nothing more until the copies were compared, or Redis is
  found to be away (`MAX_DOUBT`): what was appended since then may not be the stream's any more.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.core.event import Event
from gateway.store.access import CONNECT
from gateway.store.connection import Connection, StoreAwayError, forgotten
from gateway.store.layout import ALIVE_MS, CLOSE, KEEP, OPEN, STANDS, Script, digest
from gateway.store.sealed import Seal
from gateway.store.wire import Replied, Wire, pack
from gateway.streams.log import LogState, MemoryLog
from gateway.streams.order import Order
from gateway.streams.stream import Stream

ENTRY_EVENTS: Final = 512
"""Events of one entry, at most."""
ENTRY_BYTES: Final = 64 * 1024
"""Bytes of one entry, about, where a log has more: a node that reads it must get the reply in time."""
ENTRIES: Final = 16
"""Entries of one log that are written at once, at most: what is put back after an outage leaves room for other logs."""
OPENING: Final = 0.05
"""Seconds for which a new stream waits for an append, of whatever stream, that takes it along."""
REPLIES_EVERY: Final = 0.05
"""Seconds between two reads of Redis's replies, on which no reader waits."""
PATIENCE: Final = 1.0
"""Seconds without a reply after which the wire counts as broken."""
KEPT_EVERY: Final = 30.0
"""Seconds between two times that a node lets the keys of its running streams live on. They live `ALIVE_MS`."""
MAX_ORDER: Final = 1024 * 1024
"""Bytes of an order, at most: a stream with a longer prompt is not adopted."""
MAX_DOUBT: Final = 1.0
"""Seconds for which readers wait until it is known whether this node still has its streams."""
LAST_REPLIES: Final = 1.0
"""Seconds that the end of the process waits for the replies to what was written last."""
CHAT_STREAMS: Final = 8
"""Newest streams of a chat that are known, so that one that runs is found behind newer ones that have ended."""
CHUNK: Final = 200
"""Streams that one script is asked for."""


class Written(Protocol):
    """A stream that is written here."""

    @property
    def stream(self) -> Stream:
        """What its readers need to know."""

    @property
    def log(self) -> MemoryLog:
        """Its events."""

    @property
    def state(self) -> str:
        """How it stands, or how it ended."""

    @property
    def kept(self) -> float:
        """Seconds for which it can be read after its end; 0 for one that left nothing to come back to."""

    def move(self, comeback: Callable[[], float] | None = None) -> None:
        """Another node writes it from now on: it ends here, and its readers come back, each in the seconds that
        `comeback` gives."""


class Copy:
    """What Redis has of one log.

    Attributes:
        written: the stream.
        key: of its log in Redis.
        keys: as the scripts want them: of its hash, its log, the streams of this node, its order.
        order: what its generation was asked for, None where nobody could go on with it.
        epoch: of this node's ownership.
        sent: number of the last event that was written to Redis.
        acknowledged: number of the last event that Redis has for sure, with all before it.
        first: number of the oldest event that Redis keeps, as far as it was told.
        own: number of the first event that may be written here: another node wrote those before.
        refused: whether Redis refused a part of it since the last comparison.
        holed: whether what stands in Redis is to be replaced, as a part may be missing.
        opened: whether Redis was told of the stream.
    """

    __slots__ = (
        "_journal", "acknowledged", "closing", "epoch", "first", "holed", "key", "keys", "opened", "order",
        "own", "refused", "sent", "written",
    )  # fmt: skip

    def __init__(
        self, journal: "Journal", written: Written, order: Order | None, epoch: int, sent: int, opened: bool
    ) -> None:
        self._journal = journal
        self.order = order
        self.written = written
        self.keys = journal.keys_of(written.stream.id)
        self.key = self.keys[1]
        self.epoch = epoch
        self.sent = self.acknowledged = sent
        self.own = self.first = sent + 1
        self.opened = opened
        self.refused = self.holed = False
        self.closing = False

    @property
    def doubtful(self) -> bool:
        """Whether it is not sure that this node still has the stream."""
        return self._journal.doubtful

    def changed(self) -> None:
        """Events were appended to the log, or it was closed."""
        self._journal.note(self)
        if self.written.log.closed:
            self.order = None  # it holds the prompt, and nobody has to go on with this stream

    def dropped(self) -> None:
        """The log was discarded."""
        self._journal.forget(self)


class Journal:
    """Writes the logs of this node to Redis.

    Args:
        connection: this process's way to Redis.
        seal: seals orders; None where none is written.
        logger: the process's log.

    Attributes:
        doubtful: whether it is not sure that this node still has its streams.
    """

    def __init__(self, connection: Connection, seal: Seal | None, logger: FilteringBoundLogger) -> None:
        self._connection = connection
        self._layout = connection.layout
        self._seal = seal
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._copies: dict[str, Copy] = {}
        self._dirty: dict[Copy, None] = {}
        self._flushing = False  # soon, or when Redis is back
        self._opening: asyncio.TimerHandle | None = None
        self._doubted: asyncio.TimerHandle | None = None
        self._certain: asyncio.Future[None] = self._loop.create_future()
        self._comparing: set[asyncio.Task[None]] = set()
        self._forgotten: set[Script] = set()
        self.doubtful = False
        self._node = connection.node.encode()
        self._owned = self._layout.owned(connection.node).encode()
        self._nodes = self._layout.nodes.encode()
        self._alive = str(ALIVE_MS).encode()
        self._kept_at = 0.0
        connection.when_lapsed(self._doubt)
        connection.when_up(self._resume)
        connection.when_beating(self._beat)

    def __len__(self) -> int:
        return len(self._copies)

    def track(
        self, written: Written, order: Order | None, *, epoch: int = 1, sent: int = 0, opened: bool = False
    ) -> None:
        """From now on the stream's log is written to Redis, until it was closed and Redis has all of it.

        Args:
            written: the stream.
            order: what another node needs in order to go on with it, None where none may.
            epoch: of this node's ownership.
            sent: number of the last event that Redis has.
            opened: whether Redis knows the stream.
        """
        copy = Copy(self, written, order if self._seal is not None else None, epoch, sent, opened)
        self._copies[written.stream.id] = copy
        written.log.mirror = copy
        if opened:
            copy.changed()
        else:
            self._dirty[copy] = None
            if self._opening is None:
                self._opening = self._loop.call_later(OPENING, self._open_late)

    def hand_over(self) -> list[Written]:
        """The streams that another node can go on with once this node's lease is gone. From now on nothing of them is
        written here."""
        self.flush()
        given = [copy for copy in self._copies.values() if copy.order is not None and copy.opened and not copy.closing]
        for copy in given:
            self.forget(copy)
        return [copy.written for copy in given]

    async def close(self) -> None:
        """Nothing more is written. Returns when Redis has what was written before, or does not say so in time."""
        for task in self._comparing:
            task.cancel()
        if self._opening is not None:
            self._opening.cancel()
        self.flush()
        if self._wire is not None:
            await self._wire.settle(LAST_REPLIES)
        self._close_wire()

    def keys_of(self, stream_id: str) -> tuple[bytes, bytes, bytes, bytes]:
        """See `Copy.keys`."""
        layout = self._layout
        names = layout.stream(stream_id), layout.log(stream_id), layout.order(stream_id)
        about, log, order = (name.encode() for name in names)
        return about, log, self._owned, order

    def note(self, copy: Copy) -> None:
        """This copy is behind its log."""
        if copy not in self._dirty or not self._flushing:
            self._connection.check()
            self._dirty[copy] = None
            if copy.opened:
                self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what the copies lack. While Redis is away they stay listed."""
        wire = self._wire
        if wire is None:
            return
        if not self._connection.up:
            self._close_wire()  # what it was given may have been refused: nothing may follow that
            return
        self._flushing = False
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        commands: list[bytes] = []
        replied: list[Replied] = []
        for copy in dirty:
            self._write(copy, commands, replied)
        wire.send(b"".join(commands), replied)
        if wire.silence > PATIENCE:
            self._connection.lose(TimeoutError("no reply"))

    def _open_late(self) -> None:
        self._opening = None
        self.flush()

    # -- one copy --------------------------------------------------------------------------------------------------

    def _write(self, copy: Copy, commands: list[bytes], replied: list[Replied]) -> None:
        log, key = copy.written.log, copy.key
        if copy.closing:
            return
        copy.sent = max(copy.sent, log.first - 1)
        if not copy.opened:
            self._open(copy, commands, replied)
        limit = ENTRY_EVENTS
        if log.size > ENTRY_BYTES:  # as many as have that size on average
            limit = max(1, min(limit, ENTRY_BYTES * (log.last - log.first + 1) // log.size))
        for _ in range(min(ENTRIES, log.last - copy.sent)):
            events = log.read(copy.sent, limit)
            if isinstance(events, LogState):
                break
            last = copy.sent + len(events)
            parts = [
                *(b"XADD", key, b"NOMKSTREAM", b"%d-%d" % (copy.epoch, last)),
                *(b"f", b"%d" % (copy.sent + 1), b"e", packed(events)),
            ]
            if log.terminal is not None and last == log.last:
                parts += (b"t", b"1")
            commands.append(pack(parts))
            replied.append(partial(self._appended, copy, last))
            copy.sent = last
        if copy.first < log.first and log.first > copy.own:
            # The memory's bound is Redis's, too. Entries before `own` are of an earlier epoch, and go with it.
            copy.first = log.first
            commands.append(pack((b"XTRIM", key, b"MINID", b"%d-%d" % (copy.epoch, log.first))))
            replied.append(self._noted)
        if copy.sent < log.last:
            copy.changed()
        elif log.closed:
            copy.closing = True
            commands += self._closed(copy, replied)

    def _open(self, copy: Copy, commands: list[bytes], replied: list[Replied]) -> None:
        stream, log = copy.written.stream, copy.written.log
        about = msgspec.structs.replace(stream, owner=digest(stream.owner)).to_json()
        model = log.model.encode("utf-8", "replace")
        number = b"%d" % (copy.sent + 1)
        kept = b"%d" % round(copy.written.kept * 1000)
        owned = (self._node, b"%d" % copy.epoch, model, number, self._alive, kept, self._order(copy))
        takeovers, holed = ",".join(map(str, log.takeovers)).encode(), b"1" if copy.holed else b"0"
        copy.opened, copy.holed = True, False
        keys = (*copy.keys, self._nodes)
        values = (stream.id.encode(), about, *owned, takeovers, holed)
        commands.append(pack((*self._called(OPEN), 5, *keys, *values)))
        replied.append(partial(self._opened, copy))
        if stream.session_id:
            chat = self._layout.chat(stream.route, stream.session_id, stream.owner).encode()
            commands.append(pack((b"XADD", chat, b"MAXLEN", CHAT_STREAMS, b"*", b"i", stream.id)))
            commands.append(pack((b"PEXPIRE", chat, ALIVE_MS)))
            replied += [self._noted, self._noted]

    def _order(self, copy: Copy) -> bytes:
        """The order as it stands in Redis; b"" where none does."""
        data = copy.order.to_bytes() if copy.order is not None else b""
        if self._seal is None or not data or len(data) > MAX_ORDER:
            return b""
        return self._seal.seal(self._layout.order(copy.written.stream.id), data)

    def _closed(self, copy: Copy, replied: list[Replied]) -> list[bytes]:
        written, log = copy.written, copy.written.log
        commands = []
        if log.terminal is None and written.kept:
            # The end of the body is the end of this stream, so there is no last event. An entry without any says so.
            ended = (b"%d-%d" % (copy.epoch, log.last + 1), b"f", b"%d" % (log.last + 1), b"t", b"0")
            commands.append(pack((b"XADD", copy.key, b"NOMKSTREAM", *ended)))
            replied.append(partial(self._appended, copy, log.last))
        stream_id = written.stream.id.encode()
        model = log.model.encode("utf-8", "replace")
        kept = b"%d" % round(written.kept * 1000)
        state = written.state.encode()
        arguments = (stream_id, b"%d" % copy.epoch, state, model, kept)
        commands.append(pack((*self._called(CLOSE), 4, *copy.keys, *arguments)))
        replied.append(partial(self._done, copy))
        return commands

    def _called(self, script: Script) -> tuple[bytes, str]:
        """The beginning of a command that runs this script: by its digest, where Redis has not forgotten it."""
        if script in self._forgotten:
            self._forgotten.remove(script)  # it knows it again
            return b"EVAL", script.text
        return b"EVALSHA", script.sha

    def _opened(self, copy: Copy, reply: Any) -> None:
        if forgotten(reply):
            self._forgotten.add(OPEN)
            self._again(copy)
        elif isinstance(reply, Exception):
            self._connection.lose(reply)
        elif reply:
            self._lose(copy)

    def _appended(self, copy: Copy, last: int, reply: Any) -> None:
        if isinstance(reply, bytes):
            if not copy.refused:
                copy.acknowledged = last
        elif reply is None:  # Redis has lost it
            self._again(copy)
        else:
            first, copy.refused = not copy.refused, True
            if "equal or smaller" not in str(reply):
                self._connection.lose(reply)
            elif first:
                task = self._loop.create_task(self._look_at(copy), name="store compare")
                self._comparing.add(task)
                task.add_done_callback(self._comparing.discard)

    async def _look_at(self, copy: Copy) -> None:
        try:
            await self._compare([copy])
        except StoreAwayError:
            return  # all are compared when it is back

    def _noted(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._connection.lose(reply)

    def _done(self, copy: Copy, reply: Any) -> None:
        if forgotten(reply):
            self._forgotten.add(CLOSE)
            copy.closing = False
            copy.changed()
        elif isinstance(reply, Exception):
            self._connection.lose(reply)
        elif copy.closing and not copy.refused:
            self.forget(copy)

    def _again(self, copy: Copy) -> None:
        """The stream is written to Redis anew, as far as the log still has it."""
        copy.opened = copy.closing = False
        copy.sent = copy.acknowledged = copy.written.log.first - 1
        copy.own = copy.first = copy.written.log.first
        copy.changed()
        self._flush_soon()

    def _lose(self, copy: Copy) -> None:
        if self._copies.get(copy.written.stream.id) is copy:
            self.forget(copy)
            self._logger.warning("stream_lost", stream_id=copy.written.stream.id)
            copy.written.move()

    def forget(self, copy: Copy) -> None:
        """Nothing more is written of this copy."""
        if self._copies.get(copy.written.stream.id) is copy:
            del self._copies[copy.written.stream.id]
        self._dirty.pop(copy, None)
        copy.closing = True
        copy.written.log.mirror = None

    # -- all copies ------------------------------------------------------------------------------------------------

    def _doubt(self) -> None:
        """Another node may have taken the streams of this one meanwhile."""
        self._close_wire()
        if not self.doubtful and self._copies:
            self.doubtful = True
            self._certain = self._loop.create_future()
            self._doubted = self._loop.call_later(MAX_DOUBT, self._trust)

    async def certain(self) -> None:
        """Returns when nothing is doubtful any more."""
        if self.doubtful:
            await asyncio.shield(self._certain)

    def _trust(self) -> None:
        """What is left of the streams is this node's."""
        if self.doubtful:
            self.doubtful = False
            if self._doubted is not None:
                self._doubted.cancel()
            self._certain.set_result(None)
            for copy in self._copies.values():
                for reader in copy.written.log.readers:
                    reader.interrupt()

    def _close_wire(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def _resume(self) -> None:
        """Redis is there (again): it gets what it lacks."""
        self._close_wire()
        for script in (OPEN, CLOSE):
            await self._connection.call("SCRIPT", "LOAD", script.text)
        wire = await self._connection.wire(self._connection.lose)
        try:
            copies = [copy for copy in self._copies.values() if copy.opened]
            for start in range(0, len(copies), CHUNK):
                await self._compare(copies[start : start + CHUNK])
        except BaseException:
            wire.close()
            raise
        wire.read_rarely(REPLIES_EVERY)
        self._wire = wire
        self.flush()
        self._trust()

    async def _compare(self, copies: list[Copy]) -> None:
        """Each copy goes on where Redis stands."""
        keys = [
            key
            for copy in copies
            for key in (self._layout.stream(copy.written.stream.id), self._layout.log(copy.written.stream.id))
        ]
        stands = await self._connection.run(STANDS, keys, (), within=CONNECT)
        for copy, (epoch, node, last) in zip(copies, stands, strict=True):
            if self._copies.get(copy.written.stream.id) is not copy:
                continue
            refused, copy.refused = copy.refused, False
            if not epoch or not last:
                self._again(copy)
                continue
            theirs, number = int(epoch), int(last.partition(b"-")[2])
            if theirs > copy.epoch or (theirs == copy.epoch and node != self._node):
                self._lose(copy)
            elif refused and number > copy.acknowledged:
                copy.holed = True  # behind what was refused, something was accepted
                self._again(copy)
            else:
                # A Redis that lost its tail may have lost whose stream it is, too.
                copy.opened = theirs == copy.epoch
                copy.sent = copy.acknowledged = min(number, copy.written.log.last)
                copy.closing = False
                copy.changed()
                self._flush_soon()

    async def _beat(self) -> None:
        """To be called about once a second while Redis is there."""
        if self._wire is not None and self._wire.silence > PATIENCE:
            raise StoreAwayError("no reply")
        now = self._loop.time()
        if now - self._kept_at < KEPT_EVERY:
            return
        self._kept_at = now
        copies = [copy for copy in self._copies.values() if not copy.closing]
        for start in range(0, len(copies), CHUNK):
            some = copies[start : start + CHUNK]
            keys: list[str | bytes] = [self._owned]
            for about, log, _, order in (copy.keys for copy in some):
                keys += (about, log, order)
            streams = [copy.written.stream for copy in some]
            keys += [self._layout.chat(of.route, of.session_id, of.owner) for of in streams if of.session_id]
            await self._connection.run(KEEP, keys, (ALIVE_MS, len(some)), within=CONNECT)


packed: Final[Callable[[Sequence[Event]], bytes]] = msgspec.msgpack.Encoder().encode
"""Events as they stand in an entry."""
_DECODE: Final[Callable[[bytes], list[list[str]]]] = msgspec.msgpack.Decoder(list[list[str]]).decode


def unpacked(data: bytes) -> list[Event]:
    """The events of an entry.

    Raises:
        ValueError: it holds no events.
    """
    # Types are few and repeat: each is kept once.
    return [Event(sys.intern(type_), *rest) for type_, *rest in _DECODE(data)]
