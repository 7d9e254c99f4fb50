"""Revocations that all nodes learn of: three nodes in this process, and a real Redis between them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.core.principal import Principal
from gateway.store.nodes import all_nodes
from gateway.store.revocation import LOOK, Revocation
from gateway.store.state import SharedState
from tests.kit.redis import Redis
from tests.store.shared import everything, shared_state, up, without_expiry

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB = Principal("key", "margarethe", "default", frozenset({"stream"}))


class Heard:
    """What a node learned, each revocation once."""

    def __init__(self, state: SharedState) -> None:
        self.state = state
        self.learned: dict[str, Revocation] = {}
        self.something = asyncio.Event()
        state.revocations.learned = self._learn

    def _learn(self, revocation: Revocation) -> None:
        self.learned[revocation.principal] = revocation
        self.something.set()

    async def of(self, principal: str, within: float = 10) -> Revocation:
        """The revocation of this principal, past or to come."""
        name = self.state.revocations.digest(principal)
        async with asyncio.timeout(within):
            while name not in self.learned:
                self.something.clear()
                await self.something.wait()
        return self.learned[name]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    async with Redis(tmp_path_factory.mktemp("redis") / "r") as redis:
        yield redis


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(redis: Redis) -> AsyncIterator[list[Heard]]:
    async with AsyncExitStack() as stack:
        yield [Heard(await stack.enter_async_context(shared_state(redis, letters=True))) for _ in range(3)]


async def test_all_other_nodes_learn_at_once(nodes: list[Heard]) -> None:
    one, *others = nodes
    began = asyncio.get_running_loop().time()
    assert await one.state.revocations.tell("key:margarethe") == 0
    for other in others:
        revocation = await other.of("key:margarethe")
        assert revocation.key == ""
        assert 0 <= revocation.age <= 60
    assert asyncio.get_running_loop().time() - began < LOOK * 5  # the nudge; a look without one is tested apart
    assert one.learned == {}


async def test_tickets_of_the_principal_are_gone_everywhere(nodes: list[Heard]) -> None:
    one, other, _ = (each.state for each in nodes)
    texts = [await one.tickets.issue(WEB, 60.0), await other.tickets.issue(WEB, 60.0)]
    kept = await one.tickets.issue(Principal("key", "kept", "default", frozenset({"stream"})), 60.0)
    assert await other.revocations.tell("key:margarethe") == 2

    async def good(text: str) -> bool:
        return await one.tickets.redeem(text, "/chat", "192.0.2.7", time.time(), lambda _: True) is not None

    assert [await good(text) for text in (*texts, kept)] == [False, False, True]


async def test_nodes_that_are_alive(nodes: list[Heard], redis: Redis) -> None:
    names = sorted(each.state.connection.node for each in nodes)
    connection = nodes[0].state.connection
    alive, dead = await all_nodes(connection)
    assert (sorted(alive), dead) == (names, [])
    async with shared_state(redis) as another:
        assert sorted((await all_nodes(connection)).alive) == sorted([*names, another.connection.node])
    alive, dead = await all_nodes(connection)
    assert (sorted(alive), dead) == (names, [another.connection.node])


async def test_digest_of_a_key_says_which_one_was_removed(nodes: list[Heard]) -> None:
    one, other, _ = nodes
    key = one.state.revocations.key_digest("key:rotated", "ab" * 32)
    await one.state.revocations.tell("key:rotated", key)
    revocation = await other.of("key:rotated")
    assert revocation.key == key == other.state.revocations.key_digest("key:rotated", "ab" * 32)
    assert key != other.state.revocations.key_digest("key:rotated", "cd" * 32)


async def test_nudge_that_is_lost_costs_a_moment(redis: Redis) -> None:
    async with shared_state(redis) as deaf, shared_state(redis) as teller:
        heard = Heard(deaf)
        await teller.revocations.tell("key:unheard")
        await heard.of("key:unheard")


async def test_nothing_in_clear_and_everything_expires(nodes: list[Heard], redis: Redis) -> None:
    await nodes[0].state.revocations.tell("user:margarethe", nodes[0].state.revocations.key_digest("k", "ab" * 32))
    seen = await everything(redis)
    assert "gateway:v" in seen
    assert not [word for word in ("margarethe", "abab") if word in seen]
    assert await without_expiry(redis) == []


async def test_more_than_one_read_takes(nodes: list[Heard], redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.revocation.AT_ONCE", 10)
    _, other, _ = nodes
    for number in range(35):
        await redis.ask("XADD", "gateway:v", "*", "p", f"many-{number}", "k", "", "n", "x", "a", "0")
    await other.state.revocations.look()
    assert {f"many-{number}" for number in range(35)} <= other.learned.keys()


async def test_nodes_that_were_away_learn_of_it_when_they_are_back(tmp_path: Path) -> None:
    async with (
        Redis(tmp_path / "r") as redis,
        shared_state(redis) as a,
        shared_state(redis) as b,
    ):
        teller, learner = Heard(a), Heard(b)
        await redis.kill()
        assert await a.revocations.tell("key:margarethe") is None
        assert not a.connection.up
        await redis.start(empty=True)
        await asyncio.gather(up(a.connection), up(b.connection))
        revocation = await learner.of("key:margarethe")
        assert revocation.age > 0
        assert teller.learned == {}
        redis.pause()
        assert await a.revocations.tell("key:web") is None
        redis.resume()
        await learner.of("key:web")
