"""The store that several gateways share, as the rest of the program sees it."""

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.config import Store
from gateway.store.connection import Connection
from gateway.streams.engine import Engine


class Shared:
    """What nodes keep in Redis together.

    Args:
        config: where Redis is.
        engine: what all generations share.
        clock: the shared timers.
        logger: the process's log.

    Attributes:
        connection: this process's way to Redis.
    """

    def __init__(self, config: Store, engine: Engine, clock: Clock, logger: FilteringBoundLogger) -> None:
        self.connection = Connection(config, logger, engine.metrics)

    async def start(self) -> None:
        """Returns when the first try to reach Redis is over, well or not."""
        await self.connection.start()

    async def close(self) -> None:
        """To be called when no stream runs any more."""
        await self.connection.close()
