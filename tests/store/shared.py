"""Nodes in this process that share one real Redis: the parts of `gateway/store/`, without a gateway around them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog
from redis.exceptions import RedisError

from gateway.clock import Clock
from gateway.config import Store
from gateway.identity.tickets import Tickets
from gateway.store.connection import Connection
from gateway.store.nodes import all_nodes
from gateway.store.state import SharedState
from tests.kit.redis import Redis

T = TypeVar("T")
SECRET = "correct horse battery staple"


class Letters:
    """This node's mailbox in Redis, read as a node reads it. See `gateway.store.revocation.Mail`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._handlers: dict[bytes, Callable[[dict[bytes, bytes]], None]] = {}

    def on(self, kind: bytes, handler: Callable[[dict[bytes, bytes]], None]) -> None:
        self._handlers[kind] = handler

    async def post(self, node: str, kind: bytes, **fields: bytes | str) -> None:
        pairs = [part for pair in fields.items() for part in pair]
        await self._connection.call("XADD", self._connection.layout.mailbox(node), "*", "k", kind, *pairs)
        await self._connection.call("PEXPIRE", self._connection.layout.mailbox(node), 60_000)

    async def read(self) -> None:
        """Hands letters to their handlers, until it is cancelled."""
        client: Any = self._connection.client()
        last, mailbox = "0", self._connection.layout.mailbox(self._connection.node)
        try:
            while True:
                with suppress(RedisError):
                    got = await client.xread({mailbox: last}, block=200)
                    for id_, fields in [entry for entries in got.values() for entry in entries[0]]:
                        last = id_
                        self._handlers[fields[b"k"]](fields)
                await asyncio.sleep(0.001)
        finally:
            await client.aclose()


@asynccontextmanager
async def shared_state(redis: Redis, secret: str = SECRET, *, letters: bool = False) -> AsyncIterator[SharedState]:
    """What one node shares; with `letters`, it reads its mailbox."""
    config = Store.model_validate({"url": redis.url, "secret": secret})
    clock, logger = Clock(asyncio.get_running_loop()), structlog.get_logger()
    connection = Connection(config, logger)
    streams: set[tuple[str, str]] = set()
    local = Tickets(None, lambda stream_id, owner: (stream_id, owner) in streams)
    mail = Letters(connection) if letters else None
    state = SharedState(config, connection, clock, logger, local, mail)
    await connection.start()
    await all_nodes(connection)  # as a gateway does at its beats, it is entered
    await state.start()
    reading = asyncio.ensure_future(mail.read()) if mail is not None else None
    try:
        yield state
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
        await state.close()
        await connection.close()


async def up(connection: Connection, *, wanted: bool = True, timeout: float = 5) -> None:
    """Returns when the store is there for this node; with `wanted=False`, when it is away."""
    async with asyncio.timeout(timeout):
        while connection.up is not wanted:  # noqa: ASYNC110 - each look is what a request sees
            await asyncio.sleep(0.01)


PARTS = ("gateway:c", "gateway:t", "gateway:v")
"""What the keys of chats, tickets and revocations begin with."""


async def everything(redis: Redis) -> str:
    """These keys of Redis with all that stands in them, as text; bytes that are none as `\\xff`."""
    read = {
        "string": ("GET",),
        "list": ("LRANGE", 0, -1),
        "set": ("SMEMBERS",),
        "zset": ("ZRANGE", 0, -1),
        "hash": ("HGETALL",),
        "stream": ("XRANGE", "-", "+"),
    }
    found = []
    for key in [key for key in await redis.keys() if key.startswith(PARTS)]:
        command, *rest = read[await redis.ask("TYPE", key)]
        found.append(f"{key} = {await redis.ask(command, key, *rest)}")
    return "\n".join(found)


async def without_expiry(redis: Redis) -> list[str]:
    """The keys that would stay for ever."""
    return [key for key in await redis.keys() if await redis.ask("PTTL", key) == -1]


async def later(redis: Redis, done: Awaitable[T]) -> T:
    """What this gives, not in the same millisecond of Redis' clock as anything before."""
    before = await milliseconds(redis)
    while await milliseconds(redis) == before:
        continue
    return await done


async def milliseconds(redis: Redis) -> int:
    """Redis' clock."""
    seconds, micros = map(int, await redis.ask("TIME"))
    return seconds * 1000 + micros // 1000
