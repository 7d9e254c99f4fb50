"""The master dies under running streams, and a Sentinel makes its replica the master, which lacks the tail (R4)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kit.program import Gateway
from tests.kit.redis import KIT_PASSWORD, KIT_USER, Redis, Sentinel
from tests.kit.upstream import Hang, Step, WaitFor
from tests.store.stage import END, SECRET, Reading, Stage, config, counts, goes_on, word

WHOLE = list(range(1, 11))


class Failover:
    """Two nodes, a master, its replica, and the Sentinel that both nodes ask."""

    def __init__(self, stage: Stage, master: Redis, replica: Redis, sentinel: Sentinel) -> None:
        self.stage = stage
        self.master = master
        self.replica = replica
        self.sentinel = sentinel

    async def part(self) -> None:
        """The replica has all so far, and nothing from now on."""
        await self.master.ask("SET", "gateway:mark", "1", "PX", 1000)
        assert await self.master.ask("WAIT", 1, 5000) == 1
        self.replica.pause()
        await self.master.ask("CLIENT", "KILL", "TYPE", "replica")

    async def fail(self) -> None:
        """The master is gone; the replica has yet to become one."""
        await self.master.kill()
        self.replica.resume()

    async def last(self, reading: Reading) -> int:
        """The number of the last event that the replica has of this stream."""
        [[id_, _]] = await self.replica.ask("XREVRANGE", f"gateway:l:{reading.stream_id}", "+", "-", "COUNT", 1)
        return int(id_.partition("-")[2])

    async def over(self) -> None:
        """The replica is the master, and both nodes use it."""
        await self.sentinel.said(lambda line: "+switch-master" in line, "that there is another master")
        async with asyncio.timeout(20):
            while len(await self.replica.keys("gateway:n:*")) < 2:  # noqa: ASYNC110 - nothing says it
                await asyncio.sleep(0.05)


@pytest.fixture
async def failover(tmp_path: Path) -> AsyncIterator[Failover]:
    replicated: dict[str, Any] = {"masteruser": KIT_USER, "masterauth": KIT_PASSWORD}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        master = await enter(Redis(tmp_path / "a", **replicated))
        replica = await enter(Redis(tmp_path / "b", replicaof=f"127.0.0.1 {master.port}", **replicated))
        sentinel = await enter(Sentinel(tmp_path / "s", master))
        stage = Stage(master, [])
        await enter(stage.upstream)
        for number in range(2):
            folder = tmp_path / f"node-{number}"
            folder.mkdir()
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main/0"
            stage.nodes.append(Gateway(config(stage.upstream, url=url, secret=SECRET), folder))
        await asyncio.gather(*map(enter, stage.nodes), sentinel.knows(1))
        yield Failover(stage, master, replica, sentinel)


async def test_streams_go_on_through_a_failover(failover: Failover) -> None:
    """Readers at the owner notice nothing; those elsewhere get every word once, also of the tail that was lost; what
    began meanwhile is read elsewhere; and a node that dies afterwards is replaced by what the new master has."""
    stage, (tail, away, back) = failover.stage, [asyncio.Event() for _ in range(3)]
    lost: list[Step] = [*counts(1, 3), WaitFor(tail), *map(word, (4, 5, 6)), WaitFor(away), word(7)]
    stage.plays["through"] = lambda _: [*lost, WaitFor(back), *map(word, (8, 9, 10)), *END]
    stage.plays["orphaned"] = [lambda _: [*lost, Hang()], goes_on(10)]
    stage.plays["meanwhile"] = lambda _: [*counts(1, 5), WaitFor(back), *map(word, range(6, 11)), *END]
    here, there, orphan = Reading(stage, "through"), Reading(stage, "through"), Reading(stage, "orphaned")
    for reading in (here, orphan):
        await reading.begin(0)
        await reading.read(words=3)
    there.stream_id = here.stream_id
    assert await there.resume(1) == 200
    await there.read(words=3)

    await failover.part()
    tail.set()
    for reading in (here, there, orphan):
        await reading.read(words=6)
    await failover.fail()
    assert await failover.last(here) == 4  # `START` and three words
    away.set()
    meanwhile = Reading(stage, "meanwhile")
    await meanwhile.begin(0)
    for reading, words in ((here, 7), (orphan, 7), (meanwhile, 5)):
        await reading.read(words=words)
    await failover.over()
    back.set()

    assert await here.read()  # on the connection that it has
    elsewhere = Reading(stage, "meanwhile")
    elsewhere.stream_id = meanwhile.stream_id
    await asyncio.gather(there.finish(1), elsewhere.finish(1), meanwhile.read())
    await stage.nodes[0].kill()
    await orphan.finish(1)
    for reading in (here, there, meanwhile, elsewhere, orphan):
        assert (reading.words, reading.error) == (WHOLE, "")
        await reading.leave()
    assert [len(stage.calls[name]) for name in ("through", "meanwhile", "orphaned")] == [1, 1, 2]
