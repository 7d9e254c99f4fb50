"""Redis is down, slow, hanging, full, read-only, empty, or has lost its tail: readers notice nothing, or are told
(R1-R4)."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.redis import Redis
from tests.kit.upstream import Hang, Pause, Step, WaitFor
from tests.store.stage import END, Reading, Stage, counts, goes_on, stage, told, word

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = list(range(1, 11))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Two nodes, and a Redis that writes everything to its disk."""
    async with stage(tmp_path_factory.mktemp("outages"), 2, appendonly="yes", appendfsync="no") as made:
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole_again(two: Stage) -> AsyncIterator[None]:
    """Each test begins with a Redis that all nodes use, and have not lost yet: they try less often after each loss."""
    yield
    for network in two.networks:
        network.restore()
    two.redis.resume()
    if not two.redis.running:
        await two.redis.start()
    await asyncio.gather(*(node.kill() for node in two.nodes if node.running and node.log_lines("store_away")))
    await asyncio.gather(*(node.start() for node in two.nodes if not node.running))
    async with asyncio.timeout(20):
        while not all([await has_store(node) for node in two.nodes]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await used(two)


async def used(two: Stage) -> None:
    """Returns when all nodes that run have beaten."""
    late = asyncio.get_running_loop().time() + 15
    async with asyncio.timeout(20):
        while len(await two.redis.keys("gateway:n:*")) < sum(node.running for node in two.nodes):
            assert asyncio.get_running_loop().time() < late, told(two)
            await asyncio.sleep(0.05)


async def has_store(node: Gateway) -> bool:
    return (await Ledger(node).scrape("gateway_store_up")).total("gateway_store_up") == 1


async def begun(two: Stage, name: str, *rest: Step, path: str = "/plain") -> Reading:
    """A stream at node 0 whose first five words were read."""
    two.plays[name] = lambda _: [*counts(1, 5), *rest]
    reading = Reading(two, name, path)
    await reading.begin(0)
    await reading.read(words=5)
    return reading


async def ended(two: Stage, reading: Reading) -> None:
    """Returns when the end of the stream stands in Redis."""
    async with asyncio.timeout(10):
        while not await two.redis.ask("HGET", f"gateway:s:{reading.stream_id}", "s"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def elsewhere(two: Stage, reading: Reading) -> Reading:
    """The whole stream, as node 1 tells it."""
    later = Reading(two, reading.question, reading.path)
    later.stream_id = reading.stream_id
    await later.finish(1)
    return later


@pytest.mark.parametrize("empty", [False, True])
async def test_redis_dies_in_mid_stream_and_returns(two: Stage, empty: bool) -> None:
    """The attached reader notices nothing; what Redis lacks is written again, once (R2)."""
    more, end = asyncio.Event(), asyncio.Event()
    reading = await begun(two, f"dies {empty}", WaitFor(more), word(6), WaitFor(end), *map(word, range(7, 11)), *END)
    other = await begun(two, f"ends meanwhile {empty}", WaitFor(more), *map(word, range(6, 11)), *END)
    follower = Reading(two, reading.question, "/plain")
    follower.stream_id = reading.stream_id
    await follower.resume(1)
    await follower.read(words=5)
    await two.redis.kill()
    more.set()
    await reading.read(words=6)
    assert await other.read()
    await two.redis.start(empty=empty)
    end.set()
    assert await reading.read()
    await follower.finish(1)
    for stream in (reading, other):
        await stream.leave()
        await ended(two, stream)
        later = await elsewhere(two, stream)
        assert (stream.words, later.words, later.error) == (WHOLE, WHOLE, "")
    assert (follower.words, follower.error) == (WHOLE, "")
    assert len(two.calls[reading.question]) == 1


async def test_redis_forgets_the_scripts(two: Stage) -> None:
    """Somebody flushes them: the next stream brings them back, and can be read everywhere like the others."""
    more = asyncio.Event()
    before = await begun(two, "before the flush", WaitFor(more), *map(word, range(6, 11)), *END)
    away = len(two.nodes[0].log_lines("store_away"))
    await two.redis.ask("SCRIPT", "FLUSH")
    after = await begun(two, "after the flush", WaitFor(more), *map(word, range(6, 11)), *END)
    more.set()
    for reading in (before, after):
        assert await reading.read()
        await reading.leave()
        await ended(two, reading)
        later = await elsewhere(two, reading)
        assert (reading.words, later.words, later.error) == (WHOLE, WHOLE, "")
        await later.leave()
    assert not two.nodes[0].log_lines("store_away")[away:]


async def test_no_token_waits_for_a_redis_that_hangs(two: Stage) -> None:
    """Slow, hanging, paused: the reader beside it gets every word at once, and a new stream begins at once (R3)."""
    gate = [asyncio.Event() for _ in range(3)]
    steps: list[Step] = [step for event, n in zip(gate, (6, 7, 8), strict=True) for step in (WaitFor(event), word(n))]
    reading = await begun(two, "hangs", *steps, word(9), word(10), *END)
    faults = [lambda: setattr(two.networks[0].down, "latency", 0.2), two.networks[0].hole, two.redis.pause]
    for number, (fault, event) in enumerate(zip(faults, gate, strict=True)):
        fault()
        event.set()
        async with asyncio.timeout(5):
            await reading.read(words=6 + number)
        fresh = await begun(two, f"begins while it hangs {number}", *END)
        assert await fresh.read()
        await fresh.leave()
        two.networks[0].restore()
    two.redis.resume()
    assert await reading.read()
    await reading.leave()
    await used(two)
    later = await elsewhere(two, reading)
    assert (reading.words, later.words) == (WHOLE, WHOLE)


async def test_full_or_read_only_redis_gets_what_it_refused(two: Stage) -> None:
    """`OOM command not allowed`, `READONLY`: nothing is lost, and no hole is left (R4)."""
    gates = [asyncio.Event() for _ in range(2)]
    reading = await begun(
        two, "refused", WaitFor(gates[0]), word(6), word(7), WaitFor(gates[1]), word(8), word(9), word(10), *END
    )
    await two.redis.ask("CONFIG", "SET", "maxmemory", "1")
    gates[0].set()
    await reading.read(words=7)
    await two.nodes[0].says(lambda line: "store_away" in line, "that Redis refuses")
    await two.redis.ask("CONFIG", "SET", "maxmemory", "0")
    await used(two)
    await two.redis.ask("REPLICAOF", "127.0.0.1", "1")
    gates[1].set()
    assert await reading.read()
    await two.redis.ask("REPLICAOF", "NO", "ONE")
    await reading.leave()
    async with asyncio.timeout(10):
        while not await two.redis.ask("HGET", f"gateway:s:{reading.stream_id}", "s"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    later = await elsewhere(two, reading)
    assert (reading.words, later.words, later.error) == (WHOLE, WHOLE, "")


async def test_lost_tail_is_written_again_or_told(two: Stage) -> None:
    """A replica that was behind became the master: with its owner alive it gets the tail again (R4)."""
    more = asyncio.Event()
    reading = await begun(two, "tail", WaitFor(more), *map(word, range(6, 11)), *END)
    log = f"gateway:l:{reading.stream_id}"
    async with asyncio.timeout(5):
        while not await two.redis.ask("EXISTS", log):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    kept = await two.redis.ask("XRANGE", log, "-", "+", "COUNT", 3)
    two.networks[0].hole()
    two.networks[0].reset()
    await two.redis.ask("DEL", log)
    for id_, fields in kept:  # as the replica had it
        await restore(two.redis, log, id_, fields)
    two.networks[0].heal()
    more.set()
    assert await reading.read()
    await reading.leave()
    await ended(two, reading)
    later = await elsewhere(two, reading)
    assert (reading.words, later.words, later.error) == (WHOLE, WHOLE, "")


async def restore(redis: Redis, log: str, id_: str, fields: dict[str, str]) -> None:
    """One entry as it stood there; what the kit shows escaped is made bytes again."""
    pairs = [
        part if isinstance(part, bytes) else part.encode("latin-1", "replace")
        for name, value in fields.items()
        for part in (name, value.encode().decode("unicode_escape").encode("latin-1") if "\\x" in value else value)
    ]
    await redis.ask("XADD", log, id_, *pairs)


async def test_reader_ahead_of_what_was_saved_is_told(two: Stage) -> None:
    """Redis was away as the owner said more, and the owner died before it was back: another node goes on from less.
    Who has more cannot go on there, neither now nor when the new text is longer than what it has (R4, R6)."""
    more, gate = asyncio.Event(), asyncio.Event()
    two.plays["ahead"] = [
        lambda _: [*counts(1, 5), WaitFor(more), word(6), word(7), word(8), Hang()],
        lambda _: [*counts(6, 12), WaitFor(gate), *END],
    ]
    reading, behind = Reading(two, "ahead", "/plain"), Reading(two, "ahead", "/plain")
    await reading.begin(0)
    await reading.read(words=5)
    await asyncio.sleep(0.3)  # what was said until now is acknowledged
    two.networks[0].hole()
    more.set()
    await reading.read(words=8)
    behind.stream_id, behind.cursor = reading.stream_id, reading.messages[4].last_event_id
    behind.text = " 1 2 3 4"
    await two.nodes[0].kill()
    async with asyncio.timeout(10):
        while len(two.calls["ahead"]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    gate.set()
    await behind.finish(1)
    assert (behind.words, behind.error) == (list(range(1, 13)), "")
    assert await reading.resume(1) == 404
    assert reading.answer is not None
    assert (await reading.answer.json())["code"] == "cursor_expired"
    await reading.leave()


async def test_gateway_starts_without_redis_and_uses_it_when_it_comes(two: Stage) -> None:
    """It serves meanwhile, and what runs then can be read elsewhere afterwards (R1)."""
    await two.redis.stop()
    await two.nodes[0].stop()
    await two.nodes[0].start()
    more = asyncio.Event()
    reading = await begun(two, "without", WaitFor(more), *map(word, range(6, 11)), *END)
    assert not two.nodes[0].log_lines("store_up")
    await two.redis.start()
    async with asyncio.timeout(10):
        while not await two.redis.ask("EXISTS", f"gateway:s:{reading.stream_id}"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await used(two)
    follower = asyncio.create_task(elsewhere(two, reading))
    await asyncio.sleep(0)
    more.set()
    assert await reading.read()
    await reading.leave()
    assert (await follower).words == reading.words == WHOLE


async def test_owner_dies_while_redis_is_slow(two: Stage) -> None:
    """40 ms on the way of both nodes and back; a reader follows at the other one (R6)."""
    two.plays["slow"] = [lambda _: [*counts(1, 3), Pause(0.5), word(4), word(5), Hang()], goes_on(10)]
    for network in two.networks:
        network.down.latency = network.up.latency = 0.02
    reading, follower = Reading(two, "slow", "/plain"), Reading(two, "slow", "/plain")
    await reading.begin(0)
    await reading.read(words=3)
    follower.stream_id = reading.stream_id
    await follower.resume(1)
    await reading.read(words=5)
    await two.nodes[0].kill()
    await asyncio.gather(reading.finish(1), follower.finish(1))
    for each in (reading, follower):
        assert (each.words, each.error) == (WHOLE, "")
    assert len(two.calls["slow"]) == 2
