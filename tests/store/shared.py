"""Nodes in this process that share one real Redis: the parts of `gateway/store/`, without a gateway around them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from gateway.clock import Clock
from gateway.config import Store
from gateway.identity.tickets import Tickets
from gateway.store.connection import Connection
from gateway.store.state import SharedState
from tests.kit.redis import Redis

SECRET = "correct horse battery staple"


@asynccontextmanager
async def shared_state(redis: Redis, secret: str = SECRET, url: str = "") -> AsyncIterator[SharedState]:
    """What one node shares."""
    config = Store.model_validate({"url": url or redis.url, "secret": secret})
    clock, logger = Clock(asyncio.get_running_loop()), structlog.get_logger()
    connection = Connection(config, logger)
    streams: set[tuple[str, str]] = set()
    local = Tickets(None, lambda stream_id, owner: (stream_id, owner) in streams)
    state = SharedState(config, connection, clock, logger, local)
    await connection.start()
    try:
        yield state
    finally:
        await state.close()


async def up(connection: Connection, *, wanted: bool = True, timeout: float = 5) -> None:
    """Returns when the store is there for this node; with `wanted=False`, when it is away."""
    async with asyncio.timeout(timeout):
        while connection.up is not wanted:  # noqa: ASYNC110 - each look is what a request sees
            await asyncio.sleep(0.01)


async def everything(redis: Redis) -> str:
    """All keys of Redis with all that stands in them, as text; bytes that are none as `\\xff`."""
    read = {
        "string": ("GET",),
        "list": ("LRANGE", 0, -1),
        "set": ("SMEMBERS",),
        "zset": ("ZRANGE", 0, -1),
        "hash": ("HGETALL",),
        "stream": ("XRANGE", "-", "+"),
    }
    found = []
    for key in await redis.keys():
        command, *rest = read[await redis.ask("TYPE", key)]
        found.append(f"{key} = {await redis.ask(command, key, *rest)}")
    return "\n".join(found)


async def without_expiry(redis: Redis) -> list[str]:
    """The keys that would stay for ever."""
    return [key for key in await redis.keys() if await redis.ask("PTTL", key) == -1]
