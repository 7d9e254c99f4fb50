"""What nodes share beside streams: chat histories, tickets, revocations."""

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.config import Store
from gateway.identity.tickets import Tickets
from gateway.store.connection import Connection
from gateway.store.revocation import Mail, Revocations
from gateway.store.sealed import Seal
from gateway.store.sessions import SharedSessions
from gateway.store.tickets import SharedTickets


class SharedState:
    """The parts of it, on one connection.

    Args:
        config: the store.
        connection: this process's way to Redis.
        clock: the shared timers.
        logger: the process's log.
        local: the tickets of this process.
        mail: messages between nodes, None for none.

    Attributes:
        tickets: the tickets of all nodes.
        revocations: tells other nodes of revocations, and learns of theirs.
        chats: the chat histories; None without `store.secret`, as texts must not lie in Redis in clear.
    """

    def __init__(
        self,
        config: Store,
        connection: Connection,
        clock: Clock,
        logger: FilteringBoundLogger,
        local: Tickets,
        mail: Mail | None = None,
    ) -> None:
        self.connection = connection
        seal = Seal(config.secret)
        self.tickets = SharedTickets(connection, config.secret, local, logger)
        # Before anything else is told that Redis is back: what was revoked meanwhile must be known first.
        self.revocations = Revocations(connection, seal, self.tickets, clock, logger, mail)
        self.chats = SharedSessions(connection, seal, clock, logger) if config.secret else None

    async def start(self) -> None:
        """To be called once, whether the connection is up already or not."""
        if self.connection.up:
            await self.revocations.begin()
            await self.tickets.begin()
            if self.chats is not None:
                await self.chats.begin()

    async def close(self) -> None:
        """Writes for a moment what can still be written. The connection is closed by whoever opened it."""
        if self.chats is not None:
            await self.chats.close()
        await self.revocations.close()
        await self.tickets.close()
