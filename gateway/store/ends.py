"""The ends of streams whose node is dead: whoever notices takes them, and tells their readers.

a node's lease lapsed --TAKE--> its streams are this node's, with a new epoch --> one error, `upstream_cut`
"""

import asyncio
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.event import ERROR, Event
from gateway.store.connection import Connection
from gateway.store.journal import packed
from gateway.store.layout import ALIVE_MS, CLOSE, DEAD, TAKE

AT_ONCE: Final = 20
"""Streams of a dead node that are taken in one script: the others are for other nodes."""


class Ends:
    """Looks for dead nodes at each beat.

    Args:
        connection: this process's way to Redis.
        logger: the process's log.
    """

    def __init__(self, connection: Connection, logger: FilteringBoundLogger) -> None:
        self._connection = connection
        self._layout = connection.layout
        self._logger = logger
        connection.when_beating(self._look)

    async def _look(self) -> None:
        layout, node = self._layout, self._connection.node
        for dead in await self._connection.run(DEAD, [layout.nodes], (node, ALIVE_MS, layout.lease(""))):
            keys = [layout.lease(dead.decode()), layout.owned(dead.decode()), layout.owned(node), layout.nodes]
            while taken := await self._connection.run(TAKE, keys, (dead, node, AT_ONCE, ALIVE_MS, layout.prefix)):
                self._logger.warning("streams_taken", node=dead.decode(), streams=len(taken))
                for stream in taken:
                    await self._end(*stream)
                await asyncio.sleep(0)

    async def _end(self, stream_id: bytes, epoch: int, last: int, kept: bytes, model: Any) -> None:
        hash_, log = self._layout.stream(stream_id.decode()), self._layout.log(stream_id.decode())
        event = Event(ERROR, GatewayError("upstream_cut").to_json())
        entry = ("f", last + 1, "e", packed([event]), "t", "1")
        await self._connection.call("XADD", log, "NOMKSTREAM", f"{epoch}-{last + 1}", *entry)
        keys = [hash_, log, self._layout.owned(self._connection.node)]
        await self._connection.run(CLOSE, keys, (stream_id, epoch, "upstream_error", model, kept))
