"""Chats that go on at any node: two nodes in this process, and a real Redis between them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.core.sessions import Sessions
from gateway.store.state import SharedState
from tests.kit.redis import Redis
from tests.store.shared import everything, later, shared_state, up, without_expiry
from tests.web.stage import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

names = count()


class Chats:
    """The sessions of one route at one node."""

    def __init__(self, state: SharedState, route: str, copy: Sessions) -> None:
        assert state.chats is not None
        self.state, self.shared, self.copy = state, state.chats, copy
        self.shared.share(route, copy)

    @property
    def now(self) -> float:
        return self.shared.clock.now()

    async def settled(self) -> None:
        """Returns when Redis has all that this node has."""
        async with asyncio.timeout(10):
            await up(self.state.connection)
            await self.shared.restored()
            while len(self.shared.backlog):  # an old connection, which broke, made Redis seem away once more
                await up(self.state.connection)
                await self.shared.restored()
                await asyncio.sleep(0)

    async def add(self, who: str, session: str, user: str, answer: str) -> None:
        """A turn, of which Redis is told before this returns, if it can be."""
        self.copy.add(who, session, user, answer, self.now)
        await self.shared.backlog.written()

    async def read(self, who: str, session: str) -> list[str]:
        """What a request with the next message tells the model again."""
        assert self.copy.behind is not None
        await self.copy.behind.refresh(who, session, self.now)
        return [message["content"] for message in self.copy.get(who, session, self.now)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    async with Redis(tmp_path_factory.mktemp("redis") / "r") as redis:
        yield redis


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def states(redis: Redis) -> AsyncIterator[list[SharedState]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(shared_state(redis)) for _ in range(2)]


def pair(states: list[SharedState], turns: int = 20, ttl: float = 60.0, size: int = 256 << 10) -> list[Chats]:
    """A route that no other test has, at both nodes."""
    route = f"/chat-{next(names)}"
    return [Chats(state, route, Sessions(turns, ttl, session_bytes=size)) for state in states]


async def test_chat_goes_on_at_the_other_node(states: list[SharedState]) -> None:
    one, other = pair(states)
    await one.add("key:web", "s", "hi", "hello")
    await other.add("key:web", "s2", "another", "chat")
    assert await other.read("key:web", "s") == ["hi", "hello"]
    await other.add("key:web", "s", "and", "yes")
    await one.add("key:web", "s", "half \ud83d", "Größe 🌊")
    assert await other.read("key:web", "s") == ["hi", "hello", "and", "yes", "half \ud83d", "Größe 🌊"]
    assert await one.read("key:web", "s") == ["hi", "hello", "and", "yes", "half \ud83d", "Größe 🌊"]


async def test_the_same_id_of_another_principal_or_route_is_another_session(states: list[SharedState]) -> None:
    one, other = pair(states)
    elsewhere = pair(states)[1]
    await one.add("key:web", "s", "hi", "hello")
    assert await other.read("key:app", "s") == []
    assert await other.read("addr:web", "s") == []
    assert await elsewhere.read("key:web", "s") == []
    assert await other.read("key:web", "s2") == []


async def test_turns_hold_and_are_whole(states: list[SharedState]) -> None:
    one, other = pair(states, turns=2)
    for number in range(4):
        await (one, other)[number % 2].add("key:web", "s", f"q{number}", f"a{number}")
    assert await one.read("key:web", "s") == ["q2", "a2", "q3", "a3"]
    assert await other.read("key:web", "s") == ["q2", "a2", "q3", "a3"]


async def test_bytes_of_a_session_hold_in_redis(states: list[SharedState], redis: Redis) -> None:
    one, other = pair(states, size=10_000)
    before = set(await redis.keys("gateway:c:*"))
    for number in range(8):
        await one.add("key:web", "s", f"q{number}", "x" * 3000)
    (session,) = set(await redis.keys("gateway:c:*")) - before
    lengths = [len(turn) for turn in await redis.ask("ZRANGE", session, 0, -1)]
    assert len(lengths) == 3
    assert (await other.read("key:web", "s"))[-2:] == ["q7", "x" * 3000]
    await one.add("key:web", "s", "too long", "x" * 20_000)  # as in memory: it fits nowhere, and takes all before it
    assert await one.read("key:web", "s") == await other.read("key:web", "s") == []


async def test_session_expires_after_its_last_use_wherever_that_was(states: list[SharedState], redis: Redis) -> None:
    one, other = pair(states, ttl=0.3)
    before = set(await redis.keys("gateway:c:*"))
    await one.add("key:web", "s", "hi", "hello")
    (session,) = set(await redis.keys("gateway:c:*")) - before
    await redis.ask("PEXPIRE", session, 100)
    assert await other.read("key:web", "s") == ["hi", "hello"]
    assert await redis.ask("PTTL", session) > 100
    async with asyncio.timeout(5):
        while await redis.keys(session):  # noqa: ASYNC110 - Redis says nothing when it drops a key
            await asyncio.sleep(0.02)
    assert await one.read("key:web", "s") == await other.read("key:web", "s") == []


async def test_principals_own_oldest_session_goes_first(redis: Redis, states: list[SharedState]) -> None:
    async with shared_state(redis) as state:
        assert state.chats is not None
        state.chats.most = (3, 6000)
        one = Chats(state, "/bounded", Sessions(20, 60.0))
        other, another = (Chats(each, "/bounded", Sessions(20, 60.0)) for each in states)
        await one.add("key:app", "theirs", "hi", "hello")
        for number in range(5):
            await later(redis, one.add("key:web", f"s{number}", f"q{number}", "a"))
        seen = [await other.read("key:web", f"s{number}") for number in range(5)]
        assert seen == [[], [], ["q2", "a"], ["q3", "a"], ["q4", "a"]]
        await one.add("key:web", "long", "q", "x" * 5850)
        left = [name for name in ("s2", "s3", "s4", "long") if await another.read("key:web", name)]
        assert left == ["s4", "long"]
        assert await another.read("key:app", "theirs") == ["hi", "hello"]


async def test_write_that_is_repeated_adds_nothing(states: list[SharedState]) -> None:
    one, other = pair(states)
    await one.add("key:web", "s", "same", "words")
    await one.add("key:web", "s", "same", "words")
    one.copy.behind._send_again(("key:web", "s"), one.now)  # type: ignore[union-attr]  # a reply that was lost
    await one.shared.backlog.written()
    assert await other.read("key:web", "s") == ["same", "words"] * 2


async def test_two_nodes_add_to_one_session_at_once(states: list[SharedState]) -> None:
    both = pair(states, turns=100)
    for number in range(20):
        both[number % 2].copy.add("key:web", "s", f"q{number}", f"a{number}", both[0].now)
    await asyncio.gather(*(each.settled() for each in both))
    one, other = [await each.read("key:web", "s") for each in both]
    assert one == other
    assert sorted(one[::2]) == sorted(f"q{number}" for number in range(20))
    assert [text.replace("q", "a") for text in one[::2]] == one[1::2]


async def test_another_secret_reads_nothing_and_disturbs_nothing(states: list[SharedState], redis: Redis) -> None:
    one, _ = pair(states)
    await one.add("key:web", "s", "hi", "hello")
    route = one.copy.behind._route  # type: ignore[union-attr]
    async with shared_state(redis, "another secret of the house") as state:
        stranger = Chats(state, route, Sessions(20, 60.0))
        assert await stranger.read("key:web", "s") == []
        await stranger.add("key:web", "s", "new", "words")
        assert await stranger.read("key:web", "s") == ["new", "words"]
    assert await one.read("key:web", "s") == ["hi", "hello"]


async def test_what_nobody_sealed_is_left_out(states: list[SharedState], redis: Redis) -> None:
    one, other = pair(states)
    before = set(await redis.keys("gateway:c:*"))
    await one.add("key:web", "s", "hi", "hello")
    (session,) = set(await redis.keys("gateway:c:*")) - before
    await redis.ask("ZADD", session, 7, "", 8, "short", 9, "x" * 200)
    assert await other.read("key:web", "s") == ["hi", "hello"]


async def test_nothing_in_clear_and_everything_expires(states: list[SharedState], redis: Redis) -> None:
    one, other = pair(states)
    await one.add("user:margarethe", "her-diary", "unmistakable question", "unmistakable answer")
    assert await other.read("user:margarethe", "her-diary") == ["unmistakable question", "unmistakable answer"]
    seen = await everything(redis)
    assert "gateway:c:" in seen
    assert not [word for word in ("margarethe", "diary", "unmistakable", "/chat-") if word in seen]
    assert await without_expiry(redis) == []


async def test_without_a_secret_sessions_stay_in_their_node(redis: Redis) -> None:
    async with shared_state(redis, "") as state:
        assert state.chats is None


async def test_redis_hangs_dies_returns_with_nothing(tmp_path: Path) -> None:
    """A chat goes on at its node meanwhile; afterwards every turn is in Redis, once, and what Redis lost is back."""
    async with Redis(tmp_path / "r") as redis, shared_state(redis) as a, shared_state(redis) as b:
        one, other = pair([a, b])
        await one.add("key:web", "s", "q0", "a0")
        await one.add("key:web", "kept", "k0", "k1")
        assert await other.read("key:web", "s") == ["q0", "a0"]
        redis.pause()
        began = one.now
        assert await one.read("key:web", "s") == ["q0", "a0"]
        assert one.now - began < 5  # it does not wait for a hanging Redis
        await one.add("key:web", "s", "q1", "a1")
        assert await one.read("key:web", "s") == ["q0", "a0", "q1", "a1"]
        redis.resume()
        await asyncio.gather(one.settled(), other.settled())
        assert await other.read("key:web", "s") == ["q0", "a0", "q1", "a1"]

        await redis.kill()
        assert await one.read("key:web", "s") == ["q0", "a0", "q1", "a1"]
        await one.add("key:web", "s", "q2", "a2")
        await other.add("key:web", "new", "n0", "n1")
        await redis.start(empty=True)
        await asyncio.gather(one.settled(), other.settled())
        assert await other.read("key:web", "s") == ["q0", "a0", "q1", "a1", "q2", "a2"]
        kept = await eventually(lambda: other.read("key:web", "kept"), bool)
        assert kept == ["k0", "k1"]
        assert await one.read("key:web", "new") == ["n0", "n1"]


async def test_what_waits_for_redis_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.sessions.MAX_UNSENT", 10_000)
    async with Redis(tmp_path / "r") as redis, shared_state(redis) as a:
        (one,) = pair([a])
        await redis.kill()
        await one.read("key:web", "s0")
        for number in range(10):
            await one.add("key:web", f"s{number}", "q", "x" * 4000)
        assert len(one.shared.backlog) == 2
        await redis.start()
        # This node still has them all.
        assert await eventually(lambda: redis.keys("gateway:c:*"), lambda keys: len(keys) == 10)
