"""The store that several gateways share, as the rest of the program sees it."""

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.config import Store
from gateway.core.errors import GatewayError
from gateway.store.connection import Connection
from gateway.store.ends import Ends
from gateway.store.journal import Journal
from gateway.store.watcher import Watcher
from gateway.streams.engine import Engine
from gateway.streams.generation import Generation
from gateway.streams.stream import Followed


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
    """

    def __init__(self, config: Store, engine: Engine, clock: Clock, logger: FilteringBoundLogger) -> None:
        self.connection = Connection(config, logger)
        self._engine = engine
        self._journal = Journal(self.connection, logger)
        self.watcher = Watcher(self.connection, engine.registry, clock.wheel, logger)
        self._ends = Ends(self.connection, logger)
        self.watcher.on(b"stop", self._stop)
        clock.before_writes = self._journal.flush

    async def start(self) -> None:
        """Returns when the first try to reach Redis is over, well or not."""
        await self.connection.start()

    async def close(self) -> None:
        """To be called when no stream runs any more."""
        self._journal.close()
        await self.watcher.close()
        await self.connection.close()

    def track(self, generation: Generation) -> None:
        """The stream of this generation can be read at every node from now on."""
        self._journal.track(generation)

    async def find(self, stream_id: str, owner: str) -> Followed | None:
        """The owner's stream, which another node writes. See `Watcher.find`."""
        return await self.watcher.find(stream_id, owner)

    def _stop(self, message: dict[bytes, bytes]) -> None:
        running = self._engine.running.get(message.get(b"id", b"").decode())
        if running is not None:
            running.abort(GatewayError("stopped"))
