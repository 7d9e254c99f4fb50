"""What `gateway check --ask` asks the store, once."""

import asyncio
from typing import NamedTuple

from redis.exceptions import RedisError

from gateway.config import Store
from gateway.store import health, trouble
from gateway.store.access import CONNECT, Access
from gateway.store.trouble import UnfitError
from gateway.store.wire import Wire


class Answer(NamedTuple):
    """How the store stands.

    Attributes:
        serves: whether it can be used.
        says: in words.
    """

    serves: bool
    says: str


async def inquire(config: Store) -> Answer:
    """How this store stands; nothing of it stays in Redis."""
    wire: Wire | None = None
    try:
        async with asyncio.timeout(CONNECT):
            wire, hello = await Access(config.url, "gateway-check").open(lambda error: None)
            *replies, memory = await wire.ask(*health.probes(f"{config.prefix}:probe:check"), health.MEMORY)
    except (OSError, RedisError, UnfitError) as error:
        return Answer(False, trouble.of(error).says)
    finally:
        if wire is not None:
            wire.close()
    if (found := health.judge(replies)) is not None:
        return Answer(False, found.says)
    server, version = hello[b"server"].decode().capitalize(), hello[b"version"].decode()
    return Answer(True, health.memory(memory).warning or f"{server} {version} allows all that is needed")
