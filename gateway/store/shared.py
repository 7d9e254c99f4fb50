"""The store that several gateways share, as the rest of the program sees it."""

import math
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Final

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.config import Store
from gateway.core.errors import GatewayError
from gateway.store.adoption import Adoption
from gateway.store.connection import BEAT, Connection, StoreAwayError
from gateway.store.journal import Journal
from gateway.store.limits import SharedLimiter
from gateway.store.listing import Listing
from gateway.store.nodes import all_nodes
from gateway.store.sealed import Seal
from gateway.store.watcher import EXTEND, LEFT, READ, STOP, Watcher
from gateway.streams.engine import Engine, Running
from gateway.streams.generation import Generation
from gateway.streams.order import Order
from gateway.streams.stream import Followed, Stream

COMEBACK: Final = (0.5, 15.0)
"""Seconds after which readers that are sent away are asked to come back: the first, and the last of many; less, and as
evenly, where twice as many seconds after its end a stream is gone."""
FEW: Final = 50
"""Streams that the other nodes have taken over before the first of their readers comes."""
A_STREAM: Final = 0.01
"""Seconds by which the first comes later for each stream more: who comes before its stream is taken over is sent away
once more."""
MOST_LATER: Final = 3.0
"""Seconds by which it comes later, at most."""
A_READER: Final = 0.1
"""Seconds between two of them, at most."""
READ_FOR: Final = 5.0
"""Seconds for which a stream counts as read at another node after a word of that."""


class Shared:
    """Logs, and what nodes ask of each other, in Redis.

    Args:
        config: where Redis is.
        engine: what all generations share.
        clock: the shared timers.
        logger: the process's log.

    Attributes:
        connection: this process's way to Redis.
        watcher: follows other nodes' streams, and reads this node's mailbox.
        adoption: goes on with the streams of dead nodes.
        listing: knows the running streams of all nodes.
        limiter: the limits of all principals, over all nodes.
    """

    def __init__(self, config: Store, engine: Engine, clock: Clock, logger: FilteringBoundLogger) -> None:
        self.connection = Connection(config, logger, engine.metrics)
        self._engine = engine
        seal = Seal(config.secret) if config.secret and config.adopt else None
        self._journal = Journal(self.connection, seal, logger)
        self.watcher = Watcher(self.connection, engine.registry, clock.wheel, logger)
        self.adoption = Adoption(self.connection, self._journal, engine.registry, seal, engine.metrics, logger)
        self.listing = Listing(self.connection, self.watcher, engine, Seal(config.secret) if config.secret else None)
        self.limiter = SharedLimiter(self.connection, clock.now)
        self.watcher.on(STOP, self._stop)
        self.watcher.on(READ, self._read)
        self.watcher.on(LEFT, self._left)
        self.watcher.on(EXTEND, self._extend)
        clock.before_writes = self._journal.flush

    async def start(self) -> None:
        """Returns when the first try to reach Redis is over, well or not."""
        self.limiter.start()
        await self.connection.start()

    async def leave(self) -> None:
        """To be called when no stream runs any more: what this node still has is for the other nodes at once."""
        await self.adoption.close()
        await self._journal.close()
        await self.connection.leave()

    async def close(self) -> None:
        """To be called when no stream runs any more."""
        await self.leave()
        await self.watcher.close()
        await self.limiter.close()
        await self.connection.close()

    def track(self, generation: Generation, order: Order | None) -> None:
        """The stream of this generation can be read at every node from now on.

        Args:
            generation: what writes it.
            order: what another node needs in order to go on with it, None where none may.
        """
        self._journal.track(generation, order)

    async def hand_over(self) -> int:
        """Leaves the running streams that another node can go on with to the other nodes. Returns how many.

        Their readers, and those of streams that run elsewhere, are cut off and asked to come back: one after the other,
        as all of them at once would be a burst that the other nodes must serve. Another node takes the streams once
        this one has given its lease back.
        """
        if not await self._others():
            return 0
        given, followed = self._journal.hand_over(), self.watcher.followed
        count = sum(len(each.log.readers) for each in given) + sum(len(each.log.readers) for each in followed)
        slots = list(range(count))
        random.shuffle(slots)
        first = COMEBACK[0] + min(MOST_LATER, A_STREAM * max(0, len(given) - FEW))
        step = min(COMEBACK[1] - first, A_READER * count) / max(1, count)
        waits = iter([first + (slot + random.random()) * step for slot in slots])  # noqa: S311 - no secret

        def comeback(stream: Stream) -> float:
            # It may end the moment after, and must be there still when its reader comes.
            return next(waits) * min(1.0, stream.settings.kept / 2 / COMEBACK[1])

        for written in given:
            written.move(partial(comeback, written.stream))
        for remote in followed:
            for reader in remote.log.readers:
                reader.cut(comeback(remote.stream))
        return len(given)

    @property
    def doubtful(self) -> bool:
        """Whether another node may have taken the streams of this one, because its lease may have lapsed unnoticed."""
        self.connection.check()
        return self._journal.doubtful

    async def certain(self) -> None:
        """Returns when it is known which streams are this node's, within about a second."""
        await self._journal.certain()

    async def _others(self) -> bool:
        """Whether another node is alive."""
        try:
            return bool(set((await all_nodes(self.connection)).alive) - {self.connection.node})
        except StoreAwayError:
            return False

    async def find(self, stream_id: str, owner: str) -> Followed | None:
        """The owner's stream, which another node writes. See `Watcher.find`."""
        return await self.watcher.find(stream_id, owner)

    async def has(self, stream_id: str, owner: str) -> bool:
        """Whether another node writes or has written this owner's stream. Raises as `find`; nothing is read of it."""
        return await self.watcher.about(stream_id, owner) is not None

    async def newest(self, route: str, session_id: str, owner: str, here: Followed | None) -> Followed | None:
        """The newest stream that runs in this chat, on whatever node; None where none does.

        Args:
            route: the path of the chat's route.
            session_id: the chat's id.
            owner: whose chat it is.
            here: the newest one that this node writes. It is the newest of all where Redis does not know it yet.

        Raises:
            GatewayError: as `find`, where `here` is None.
        """
        try:
            ids = await self.watcher.of_chat(route, session_id, owner)
            if here is not None and here.stream.id not in ids:
                return here
            for id_ in ids:
                if here is not None and id_ == here.stream.id:
                    return here
                if await self.watcher.runs(id_) and (found := await self.find(id_, owner)) and not found.log.closed:
                    return found
        except StoreAwayError as error:
            if here is not None:
                return here
            raise GatewayError("overloaded", retry_after=1, detail=f"the store is away: {error}") from None
        return None

    async def stop(self, stream_id: str, within: float) -> str | None:
        """How another node's stream ended, which is asked to end now; None where none runs with this id.

        Raises:
            GatewayError: `overloaded`: Redis is away, or its node has not stopped it within so many seconds.
        """
        try:
            return await self.watcher.stop(stream_id, within)
        except StoreAwayError as error:
            raise GatewayError("overloaded", retry_after=1, detail=f"the store is away: {error}") from None
        except TimeoutError:
            raise GatewayError("overloaded", retry_after=1, detail="its node has not stopped it yet") from None

    def _stop(self, message: dict[bytes, bytes]) -> None:
        for running in self._running(message):
            running.stop()

    def _read(self, message: dict[bytes, bytes]) -> None:
        for running in self._running(message):
            running.read_elsewhere(READ_FOR)

    def _left(self, message: dict[bytes, bytes]) -> None:
        # Another node that has readers of it, too, says so within a beat.
        for running in self._running(message):
            running.left_elsewhere(BEAT * 1.5)

    def _extend(self, message: dict[bytes, bytes]) -> None:
        try:
            until = float(message.get(b"until") or "inf")
        except ValueError:
            return  # a node of another version
        for running in self._running(message):
            running.extend(None if until == math.inf else max(0.0, until - time.time()))

    def _running(self, message: dict[bytes, bytes]) -> Iterator[Running]:
        for id_ in message.get(b"ids", b"").decode("utf-8", "replace").split(","):
            if running := self._engine.running.get(id_):
                yield running
