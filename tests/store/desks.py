"""Nodes in the test's own process: each with a connection and a limiter, as a gateway has them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from gateway.config import Store
from gateway.core.limiter import Decision, Lease, Refusal
from gateway.core.limits import Amounts, Plan
from gateway.store.connection import Connection
from gateway.store.limits import SharedLimiter
from tests.kit.redis import Redis


class Node:
    """One node."""

    def __init__(self, url: str, prefix: str) -> None:
        self.connection = Connection(Store(url=url, prefix=prefix), structlog.get_logger())
        self.limiter = SharedLimiter(self.connection, time.monotonic)

    async def start(self) -> None:
        self.limiter.start()
        await self.connection.start()

    async def close(self) -> None:
        await self.limiter.close()
        await self.connection.close()

    async def die(self) -> None:
        """It ends without a word, as a killed process does: its lease is still there."""
        self.connection.up = False
        await self.close()

    async def decide(self, plan: Plan, demand: Amounts, who: str = "ann") -> Decision:
        """What is decided; nobody waits for it where nobody has to."""
        decision = self.limiter.decide(plan, who, demand, time.monotonic())
        return decision if isinstance(decision, Decision) else await decision

    async def admit(self, plan: Plan, demand: Amounts, who: str = "ann") -> Lease:
        """A lease; the demand must fit."""
        decision = await self.decide(plan, demand, who)
        assert isinstance(decision.outcome, Lease), decision
        return decision.outcome

    async def refuse(self, plan: Plan, demand: Amounts, who: str = "ann") -> Refusal:
        """A refusal; the demand must not fit."""
        decision = await self.decide(plan, demand, who)
        assert isinstance(decision.outcome, Refusal), decision
        return decision.outcome

    async def left(self, plan: Plan, who: str = "ann") -> dict[str, int]:
        """What remains of each limit, over all nodes."""
        return {quota.name: quota.remaining for quota in await self.limiter.quotas(plan, who)}


@asynccontextmanager
async def nodes_on(redis: Redis, count: int, prefix: str) -> AsyncIterator[list[Node]]:
    """So many nodes that know each other."""
    nodes = [Node(redis.url, prefix) for _ in range(count)]
    for node in nodes:
        await node.start()
    for node in nodes:
        await until(lambda node=node: _knows(node, count))  # type: ignore[misc]
    try:
        yield nodes
    finally:
        for node in nodes:
            await node.close()


async def _knows(node: Node, count: int) -> bool:
    await node.limiter._count_nodes()
    return node.limiter.nodes == count


async def until(true: Callable[[], Awaitable[bool]], within: float = 10) -> None:
    """Returns when it is true; what is asked is in Redis, which tells nobody."""
    async with asyncio.timeout(within):
        while not await true():  # noqa: ASYNC110 - nothing says it
            await asyncio.sleep(0.02)
