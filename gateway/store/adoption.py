"""The streams of dead nodes: whoever notices takes them, and another generation goes on with each.

    the lease of a node lapsed, or it gave it back with streams that still ran
        |
        v                        the order can be read, and nothing forbids to go on
    TAKE: a new epoch --> loaded -------------------------------------------------------> adopted: a rescue here
                            |
                            +--its last event is there-----------------------------------> ended as it is
                            +--no order, no rescue, tool calls, its beginning is gone---> one error, `upstream_cut`
                            +--another secret, no such route, this node ends, too
                                  |
                                  +--a node is left that has not passed it on: PASS----> taken by another node
                                  +--none is--------------------------------------------> one error, `upstream_cut`

Invariants:

- One node takes a stream, in one script; from that moment nothing that the dead node appends is accepted.
- A stream that was taken gets its end, whatever happens here. If Redis goes away before, it waits here for its return;
  if this node dies as well, the next one takes it.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.event import ERROR, Event
from gateway.observe.metrics import Metrics
from gateway.store.access import CONNECT
from gateway.store.connection import Connection, StoreAwayError
from gateway.store.journal import Journal, packed
from gateway.store.layout import ALIVE_MS, CLOSE, PASS, PASSED, TAKE
from gateway.store.nodes import all_nodes
from gateway.store.remote import read_entry
from gateway.store.sealed import Seal
from gateway.streams.generation import Generation
from gateway.streams.log import MemoryLog
from gateway.streams.order import NotHereError, Order
from gateway.streams.registry import Registry
from gateway.streams.stream import Stream

AT_ONCE: Final = 8
"""Streams of a dead node that are taken in one script: the others are for other nodes, too."""
PAUSE: Final = 0.02
"""Seconds between two such scripts."""
COUNT: Final = 32
"""Entries of a log that are read at once."""

Adopt = Callable[[Order, Stream, MemoryLog], Generation]
"""Starts a generation that goes on with this log. Raises `GatewayError` where that cannot be, `NotHereError` where it
may be elsewhere."""


class Taken(NamedTuple):
    """A stream that was a dead node's.

    Attributes:
        epoch: of this node's ownership.
        last: number of its last event.
        kept_ms: milliseconds for which it is kept after its end.
        model: the model that answers.
        passed: the nodes that passed it on, b"" for none.
    """

    id: bytes
    epoch: int
    last: int
    kept_ms: bytes
    model: bytes
    passed: bytes


class Adoption:
    """Looks for dead nodes at each beat.

    Args:
        connection: this process's way to Redis.
        journal: writes the logs of this node.
        registry: where streams can be found here.
        seal: unseals orders; None where nothing is adopted.
        metrics: counts adoptions.
        logger: the process's log.

    Attributes:
        adopt: starts the generation that goes on with a stream; None until it is set.
    """

    def __init__(
        self,
        connection: Connection,
        journal: Journal,
        registry: Registry,
        seal: Seal | None,
        metrics: Metrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self.adopt: Adopt | None = None
        self._connection = connection
        self._layout = connection.layout
        self._journal = journal
        self._registry = registry
        self._seal = seal
        self._metrics = metrics
        self._logger = logger
        self._task: asyncio.Task[None] | None = None
        self._taken: deque[Taken] = deque()
        connection.when_beating(self._begin)

    async def close(self) -> None:
        """Nothing more is taken."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CONNECT)

    async def _begin(self) -> None:
        # A task of its own: the beat must go on.
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look(), name="store adoption")

    async def _look(self) -> None:
        layout, node = self._layout, self._connection.node
        try:
            await self._go_on_with_all()
            for dead in (await all_nodes(self._connection)).dead:
                keys = [layout.lease(dead), layout.owned(dead), layout.owned(node), layout.nodes]
                while taken := await self._connection.run(
                    TAKE, keys, (dead, node, AT_ONCE, ALIVE_MS, layout.prefix), within=CONNECT
                ):
                    self._logger.warning("streams_taken", node=dead, streams=len(taken))
                    self._taken.extend(Taken(*stream) for stream in taken)
                    await self._go_on_with_all()
                    await asyncio.sleep(PAUSE)
        except StoreAwayError as error:
            self._logger.warning("store_adoption_stopped", reason=str(error))  # the next beat goes on

    async def _go_on_with_all(self) -> None:
        """Goes on with what was taken. Where Redis goes away meanwhile, the next call goes on with the rest."""
        while self._taken:
            await self._go_on(self._taken[0])
            self._taken.popleft()

    async def _go_on(self, taken: Taken) -> None:
        stream_id = taken.id.decode()
        log = MemoryLog(sys.maxsize, self._registry.memory)  # all that Redis has; whoever adopts it knows its bound
        try:
            if await self._load(stream_id, log):
                log.discard()
                await self._close(taken, "completed")
                return
            order, stream = await self._order(stream_id)
            log.model = taken.model.decode()
            assert self.adopt is not None, "it is set before anything is served"
            generation = self.adopt(order, stream, log)
        except StoreAwayError:
            log.discard()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the stream gets its end
            log.discard()
            cut = self._explain(error, stream_id)
            if isinstance(cut, NotHereError) and await self._pass_on(taken):
                self._logger.info("stream_passed_on", stream_id=stream_id, detail=cut.detail)
                return
            self._metrics.adoption("failed")
            self._logger.warning("stream_not_adopted", stream_id=stream_id, code=cut.code, detail=cut.detail)
            await self._end(taken, cut)
            return
        self._logger.info("stream_adopted", **generation.account.facts)
        self._journal.track(generation, order, epoch=taken.epoch, sent=taken.last, opened=True)
        if taken.passed:
            await self._forget_passed(stream_id)

    def _explain(self, error: Exception, stream_id: str) -> GatewayError:
        """Why this node does not go on with a stream."""
        if isinstance(error, GatewayError):
            return error
        if isinstance(error, ValueError):  # a node of another version wrote it
            return NotHereError(f"it cannot be read: {type(error).__name__}")
        self._logger.error("adoption_failed", exc_info=error, stream_id=stream_id)
        return GatewayError("upstream_cut", detail=type(error).__name__)

    async def _pass_on(self, taken: Taken) -> bool:
        """Leaves the stream to another node. False where none is left."""
        layout, node = self._layout, self._connection.node
        keys = [layout.stream(taken.id.decode()), layout.owned(node), layout.owned(PASSED), layout.nodes]
        told = (taken.id, node, taken.epoch, PASSED, ALIVE_MS, layout.lease(""))
        return bool(await self._connection.run(PASS, keys, told, within=CONNECT))

    async def _forget_passed(self, stream_id: str) -> None:
        """If this node dies too, those that could not go on before may be able to by then."""
        try:
            await self._connection.call("HDEL", self._layout.stream(stream_id), "x", within=CONNECT)
        except StoreAwayError as error:
            self._logger.info("store_write_given_up", kind="passed", reason=str(error))  # they are asked last

    async def _order(self, stream_id: str) -> tuple[Order, Stream]:
        """What was asked for, and what readers need.

        Raises:
            GatewayError: `upstream_cut`, nobody can know.
            NotHereError: it was sealed with another secret.
        """
        key = self._layout.order(stream_id)
        sealed = await self._connection.call("GET", key, within=CONNECT)
        about = await self._connection.call("HGET", self._layout.stream(stream_id), "a", within=CONNECT)
        if sealed is None or about is None:
            raise GatewayError("upstream_cut", detail="its order is not there")
        order = self._seal.unseal(key, sealed) if self._seal is not None else None
        if order is None:
            raise NotHereError("its order is sealed with another secret, or this node adopts nothing")
        asked = Order.from_bytes(order)
        return asked, msgspec.structs.replace(Stream.from_json(about), owner=asked.owner)

    async def _load(self, stream_id: str, log: MemoryLog) -> bool:
        """Fills the log with what Redis has. Returns whether the last event is among it.

        Raises:
            GatewayError: `upstream_cut`, events are missing.
        """
        ended, key, after = False, self._layout.log(stream_id), "0-0"
        while found := await self._connection.call("XRANGE", key, f"({after}", "+", "COUNT", COUNT, within=CONNECT):
            for id_, fields in found:
                entry = read_entry(id_, fields)
                if entry.first > log.last + 1:
                    raise GatewayError("upstream_cut", detail="its beginning is gone")
                if events := entry.events[log.last + 1 - entry.first :]:
                    log.append(events)
                if entry.takeovers is not None:
                    log.takeovers = entry.takeovers
                ended = ended or entry.terminal is not None
            after = found[-1][0].decode()
        return ended

    async def _end(self, taken: Taken, error: GatewayError) -> None:
        number = taken.last + 1
        entry = ("f", number, "e", packed([Event(ERROR, error.to_json())]), "t", "1")
        key, id_ = self._layout.log(taken.id.decode()), f"{taken.epoch}-{number}"
        await self._connection.call("XADD", key, "NOMKSTREAM", id_, *entry, within=CONNECT)
        await self._close(taken, "upstream_error")

    async def _close(self, taken: Taken, state: str) -> None:
        layout, stream_id = self._layout, taken.id.decode()
        keys = [
            layout.stream(stream_id),
            layout.log(stream_id),
            layout.owned(self._connection.node),
            layout.order(stream_id),
        ]
        ended: tuple[Any, ...] = (taken.id, taken.epoch, state, taken.model, taken.kept_ms)
        await self._connection.run(CLOSE, keys, ended, within=CONNECT)
