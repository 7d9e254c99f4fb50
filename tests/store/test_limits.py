"""Limits over several nodes, on a real Redis: decisions, what runs ahead, what is given back."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from gateway.core.bucket import ReservingBucket
from gateway.core.limiter import Decision, Lease, Limiter, Refusal
from gateway.core.limits import AHEAD, Plan, RateLimit, make_limits
from gateway.core.rate import Rate
from gateway.store.connection import LEASE
from gateway.store.ledger import LEDGER
from tests.kit.redis import Redis
from tests.seams.test_limit import Images
from tests.store.desks import Node, nodes_on, until

DAY = 86400.0
PLAN = Plan("default", make_limits(Rate(60, DAY), 2, Rate(1000, DAY)))
pytestmark = pytest.mark.asyncio(loop_scope="module")
numbers = count()


def start(tokens: float = 0, *, streams: int = 1, requests: int = 1) -> dict[str, float]:
    return {"requests": requests, "streams": streams, "tokens": tokens}


def plan_of(requests: Rate | None = None, streams: int | None = None, tokens: Rate | None = None) -> Plan:
    return Plan("p", make_limits(requests, streams, tokens))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    async with Redis(tmp_path_factory.mktemp("redis") / "one") as redis:
        yield redis


@pytest_asyncio.fixture(loop_scope="module")
async def node(redis: Redis) -> AsyncIterator[Node]:
    async with nodes_on(redis, 1, f"t{next(numbers)}") as [node]:
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def three(redis: Redis) -> AsyncIterator[list[Node]]:
    async with nodes_on(redis, 3, f"t{next(numbers)}") as nodes:
        yield nodes


async def calls(redis: Redis, command: str = "evalsha") -> int:
    stats = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


# -- decisions, as those of the local limiter (tests/core/test_limiter.py) -----------------------------------------


async def test_limiter_refuses_requests_above_the_rate(node: Node) -> None:
    plan = plan_of(Rate(3, DAY))
    assert [(await node.decide(plan, start())).quotas[0].remaining for _ in range(3)] == [2, 1, 0]
    refusal = await node.refuse(plan, start())
    assert (refusal.limit, refusal.code) == ("requests", "rate_limited")
    assert refusal.retry_after == pytest.approx(DAY / 3, rel=0.01)
    await node.admit(plan, start(), "bob")
    await node.admit(Plan("other", plan.limits), start())


async def test_limiter_lets_in_who_waited_as_told(node: Node) -> None:
    plan = plan_of(Rate(2, 0.1))
    for _ in range(4):
        refusal = await refused(node, plan)
        await asyncio.sleep(refusal.retry_after or 0)
        (await node.admit(plan, start())).close(0)


async def refused(node: Node, plan: Plan) -> Refusal:
    """The first refusal. How many starts are let in before depends on the time that they take."""
    while isinstance(outcome := (await node.decide(plan, start())).outcome, Lease):
        outcome.close(0)
    return outcome


async def test_limiter_refuses_a_stream_above_the_plan_until_one_closes(node: Node) -> None:
    first, _ = [await node.admit(PLAN, start(10)) for _ in range(2)]
    refusal = await node.refuse(PLAN, start(10))
    assert refusal[:2] == ("streams", 2.0)
    assert refusal.code == "too_many_streams"
    first.close(0)
    first.close(0)
    await node.admit(PLAN, start(10))
    await node.refuse(PLAN, start(10))


async def test_limiter_takes_nothing_when_one_limit_refuses(node: Node) -> None:
    await node.admit(PLAN, start(600))
    assert (await node.refuse(PLAN, start(600))).limit == "tokens"
    assert await node.left(PLAN) == {"requests": 59, "streams": 1, "tokens": 400}


async def test_limiter_says_that_a_demand_above_the_whole_never_fits(node: Node) -> None:
    refusal = await node.refuse(PLAN, start(1001))
    assert (refusal.limit, refusal.retryable, refusal.quota.remaining) == ("tokens", False, 1000)
    assert not (await node.refuse(PLAN, start(streams=3))).retryable
    assert await node.left(PLAN) == {"requests": 60, "streams": 2, "tokens": 1000}


async def test_limiter_asks_nobody_where_nothing_is_limited_and_counts_yet(redis: Redis, node: Node) -> None:
    """A reload that adds a limit finds the streams that are open."""
    decision = node.limiter.decide(plan_of(), "ann", start(10**9), 0.0)
    assert isinstance(decision, Decision)
    assert isinstance(decision.outcome, Lease)
    assert decision.outcome.spend({"tokens": 10**12}, 0.0)
    assert decision.quotas == []
    assert (await node.refuse(plan_of(streams=1), start())).limit == "streams"


async def test_lease_settles_once_also_after_it_was_closed(node: Node) -> None:
    plan = plan_of(tokens=Rate(100, DAY))
    lease = await node.admit(plan, start(90))
    lease.close(0)
    lease.settle({"tokens": 30}, 0)
    lease.settle({"tokens": 0}, 0)
    await node.admit(plan, start(70))
    assert await node.left(plan) == {"tokens": 0}


async def test_lease_puts_the_budget_into_debt_by_at_most_one_window(node: Node) -> None:
    plan = plan_of(tokens=Rate(100, DAY))
    (await node.admit(plan, start(50))).settle({"tokens": 10**9}, 0)
    refusal = await node.refuse(plan, start(1))
    assert refusal.retry_after == pytest.approx(DAY * 1.01, rel=0.001)
    assert refusal.quota.reset == pytest.approx(DAY * 2, rel=0.001)


async def test_limiter_keeps_what_was_used_when_a_reload_changes_the_plan(node: Node) -> None:
    await node.admit(plan_of(Rate(2, DAY)), start())
    assert await node.left(plan_of(Rate(10, DAY), tokens=Rate(7, DAY))) == {"requests": 9, "tokens": 7}
    await node.refuse(plan_of(Rate(1, DAY)), start())


async def test_two_limits_of_one_name_hold_both(node: Node) -> None:
    """As with a budget for a minute and one for a day."""
    plan = Plan("p", make_limits(tokens=Rate(100, 0.05)) + make_limits(tokens=Rate(250, DAY)))
    for _ in range(2):
        lease = await node.admit(plan, start(100))
        lease.close(0)
        await asyncio.sleep(0.06)
    refusal = await node.refuse(plan, start(100))
    assert refusal.quota.limit == 250


async def test_lease_for_what_another_node_admitted_is_taken_whether_it_fits_or_not(node: Node) -> None:
    plan, limiter = plan_of(Rate(5, DAY), 1, Rate(100, DAY)), Limiter()
    for decider in (node.limiter, limiter):
        for _ in range(2):
            lease = decider.take(plan, "ann", {"streams": 1, "tokens": 80}, 0.0)
    assert (await node.refuse(plan, {"streams": 1})).limit == "streams"
    left = {quota.name: quota.remaining for quota in limiter.snapshot(plan, "ann", 0.0)}
    assert await node.left(plan) == left == {"requests": 5, "streams": 0, "tokens": 0}
    lease.close(0.0)
    assert isinstance(limiter.admit(plan, "bob", {"streams": 1}, 0.0), Lease)


async def test_a_limit_without_a_shared_form_stays_with_its_node(three: list[Node]) -> None:
    plan = Plan("p", (Images("images", 4, code="token_limit"), RateLimit("requests", Rate(10, DAY))))
    lease = await three[0].admit(plan, {"requests": 1, "images": 3})
    assert (await three[0].refuse(plan, {"requests": 1, "images": 2})).limit == "images"
    assert (await three[1].decide(plan, {"requests": 1, "images": 4})).quotas[0].remaining == 8
    lease.settle({"images": 1}, 0)
    lease.close(0)
    await three[0].admit(plan, {"requests": 1, "images": 3})
    # A refusal by the shared limit hands back what was taken of the local one.
    assert (await three[2].refuse(plan, {"requests": 11, "images": 4})).limit == "requests"
    await three[2].admit(plan, {"requests": 1, "images": 4})


async def test_limiter_decides_step_by_step_as_the_local_one(node: Node) -> None:
    """Random steps: starts, settlements in any order, closes. In a day's window, no time passes."""
    chance, twin, open_leases = random.Random(14), Limiter(), list[tuple[Lease, Lease]]()
    plan = Plan("p", make_limits(Rate(300, DAY), 9, Rate(9000, DAY)))
    admitted = 0
    for _ in range(400):
        demand = start(chance.choice((0, 1, 300, 700, 9001)), streams=chance.choice((0, 1, 1, 1, 2, 10)))
        ours, theirs = await node.decide(plan, demand), twin.decide(plan, "ann", demand, 0.0)
        assert type(ours.outcome) is type(theirs.outcome)
        assert [quota[:4] for quota in ours.quotas] == [quota[:4] for quota in theirs.quotas]
        if isinstance(ours.outcome, Lease) and isinstance(theirs.outcome, Lease):
            open_leases.append((ours.outcome, theirs.outcome))
            admitted += 1
        elif isinstance(ours.outcome, Refusal) and isinstance(theirs.outcome, Refusal):
            assert (ours.outcome.limit, ours.outcome.code) == (theirs.outcome.limit, theirs.outcome.code)
            assert ours.outcome.retryable == theirs.outcome.retryable
            assert (ours.outcome.retry_after or 0) == pytest.approx(theirs.outcome.retry_after or 0, rel=1e-3)
        while open_leases and chance.random() < 0.6:
            used, closes = {"tokens": chance.choice((0, 1, 299, 300, 800))}, chance.random() < 0.9
            for lease in open_leases.pop(chance.randrange(len(open_leases))):
                lease.settle(used, 0.0)
                if closes:
                    lease.close(0.0)
                lease.settle({"tokens": 5}, 0.0)
    assert 50 < admitted < 390


async def test_script_drains_and_hands_back_as_the_local_bucket(node: Node) -> None:
    """Time passes here: the local twin is told Redis's."""
    rate, chance = Rate(50, 0.2), random.Random(15)
    twin: ReservingBucket | None = None
    wire, open_leases = [(3, "tokens", *rate)], dict[str, int]()
    key = node.connection.layout.ledger("p", "time")
    for step in range(250):
        lease, units = f"x:{step}", chance.choice((0, 3, 10, 25, 50, 51))
        told: list[tuple[object, ...]] = [("start", lease, [units], True)]
        settled = chance.choice(list(open_leases)) if open_leases and chance.random() < 0.8 else None
        used = chance.choice((0, 2, 10, 30))
        if settled is not None:
            told.append(("settle", "tokens", settled, used, open_leases[settled]))
        arguments = (node.connection.node, "n:", msgspec.msgpack.encode([(wire, 0, told)]))
        now, [([waits], [level])] = msgspec.msgpack.decode(await node.connection.run(LEDGER, [key], arguments))
        twin = twin or ReservingBucket(now)
        twin.drain(rate, now)
        fits = twin.wait(rate, units)
        assert (waits or [0]) == [pytest.approx(-1 if fits is None else fits, abs=1e-4)]
        if not waits:
            if units:
                twin.reserve(lease, units)
            open_leases[lease] = units
        if settled is not None:
            unused = open_leases.pop(settled) - used
            twin.refund(settled, unused) if unused >= 0 else twin.overdraw(settled, -unused, rate)
        assert level == pytest.approx(twin.level, abs=1e-4)
        if chance.random() < 0.1:
            await asyncio.sleep(chance.choice((0.005, 0.03)))


# -- running streams -------------------------------------------------------------------------------------------------


async def spend(lease: Lease, tokens: int, step: int = 8, *, pause: bool = True) -> int:
    """How many of these tokens a stream may use, as a pump spends them: it asks when the lease is due."""
    used = 0
    while used < tokens:
        used += step
        if used > lease.due("tokens", used - step) and not lease.spend({"tokens": used}, time.monotonic()):
            return used - step
        if pause:
            await asyncio.sleep(0)
    return used


async def test_stream_spends_without_waiting_and_takes_the_next_share_in_time(redis: Redis, node: Node) -> None:
    plan = plan_of(tokens=Rate(1_000_000, 1000 * DAY))
    lease = await node.admit(plan, start(AHEAD))
    before = await calls(redis)
    assert lease.due("tokens", 0) == AHEAD - AHEAD // 2
    assert lease.spend({"tokens": AHEAD // 2 + 1}, 0.0)
    await until(lambda: _reserves(lease, 2 * AHEAD))
    assert lease.due("tokens", AHEAD) == 2 * AHEAD - AHEAD // 2
    assert (await calls(redis)) - before == 1
    lease.settle({"tokens": 130}, 0.0)
    await node.admit(plan, start())
    assert await node.left(plan) == {"tokens": 1_000_000 - 130}


async def _reserves(lease: Lease, tokens: float) -> bool:
    return lease.reserved("tokens") >= tokens


async def test_start_costs_one_command_and_a_thousand_tokens_a_few(redis: Redis, node: Node) -> None:
    plan = Plan("p", make_limits(Rate(10_000, DAY), 100, Rate(10**9, DAY)))
    await node.admit(plan, start(256))
    before = await calls(redis)
    leases = [await node.admit(plan, start(256), f"user-{number}") for number in range(20)]
    assert (await calls(redis)) - before == 20
    before = await calls(redis)
    for lease in leases:
        assert await spend(lease, 1000) == 1000
        lease.settle({"tokens": 1000}, 0.0)
        lease.close(0.0)
    await until(lambda: _quiet(node))
    assert (await calls(redis)) - before <= 20 * 6
    # Those of streams that run side by side are gathered.
    leases = [await node.admit(plan, start(256)) for _ in range(50)]
    before = await calls(redis)
    for lease in leases:
        lease.settle({"tokens": 7}, 0.0)
        lease.close(0.0)
    await until(lambda: _quiet(node))
    assert (await calls(redis)) - before <= 3


async def _quiet(node: Node) -> bool:
    limiter = node.limiter
    return not limiter._waiting and all(not (each.waiting or each.starting) for each in limiter._shares.values())


async def test_budget_ends_a_stream_and_all_streams_together_use_it_up(three: list[Node]) -> None:
    """R7: nodes together are never above the plan by more than what was taken ahead, and leave next to nothing."""
    plan = plan_of(tokens=Rate(20_000, DAY))
    leases = [await node.admit(plan, start(100)) for node in three for _ in range(4)]
    used = await asyncio.gather(*(spend(lease, 10_000) for lease in leases))
    shares = len(leases) * AHEAD
    assert 20_000 - shares <= sum(used) <= 20_000 + shares
    for lease, tokens in zip(leases, used, strict=True):
        lease.settle({"tokens": tokens}, 0.0)
        lease.close(0.0)
    await until(lambda: _all_quiet(three))
    assert (await three[0].left(plan))["tokens"] == max(0, 20_000 - sum(used))


async def _all_quiet(nodes: list[Node]) -> bool:
    return all([await _quiet(node) for node in nodes])


async def test_an_answer_that_comes_at_once_may_use_what_was_free(node: Node) -> None:
    """Nobody can ask Redis between two words of a whole answer. What it used is known there at once."""
    plan = plan_of(tokens=Rate(10_000, DAY))
    lease = await node.admit(plan, start(300))
    assert lease.spend({"tokens": 9000}, time.monotonic())
    assert not lease.spend({"tokens": 10_001}, time.monotonic())
    await until(lambda: _reserves(lease, 9000))
    assert await node.left(plan) == {"tokens": 10_000 - 9000 - 50}, "and half a hundredth ahead"
    other = await node.admit(plan, start(300))
    assert not other.spend({"tokens": 1100}, time.monotonic())


async def test_stream_goes_on_while_the_answer_is_on_its_way_by_one_share(redis: Redis, three: list[Node]) -> None:
    plan = plan_of(tokens=Rate(100_000, DAY))
    for node in three:  # all but nothing is used
        (await node.admit(plan, start(33_000))).close(0)
    lease = await three[0].admit(plan, start(200))
    asked = await spend(lease, 5000, 1, pause=False)
    assert 200 <= asked <= 200 + AHEAD + 1000 // 3


# -- nodes that die, and what they held --------------------------------------------------------------------------------


async def test_slots_of_a_dead_node_are_free_within_its_lease(redis: Redis, three: list[Node]) -> None:
    """R7."""
    plan = plan_of(streams=3)
    for node in three:
        await node.admit(plan, start())
    await three[2].refuse(plan, start())
    dead = three[1]
    await dead.die()
    await three[2].refuse(plan, start())
    began = time.monotonic()
    await until(lambda: _fits(three[2], plan), LEASE + 2)
    assert time.monotonic() - began <= LEASE + 1
    await three[0].refuse(plan, start())
    assert not await redis.keys(f"*n:{dead.connection.node}")


async def _fits(node: Node, plan: Plan) -> bool:
    return isinstance((await node.decide(plan, start())).outcome, Lease)


async def test_node_that_was_stopped_for_longer_than_its_lease_takes_its_slots_again(
    redis: Redis, three: list[Node]
) -> None:
    plan = plan_of(streams=3)
    await three[0].admit(plan, start())
    await redis.ask("DEL", three[0].connection.layout.lease(three[0].connection.node))
    assert (await three[1].left(plan)) == {"streams": 3}
    three[0].limiter._counted -= LEASE + 1  # as if no beat had come for so long
    await three[0].connection.call("SET", three[0].connection.layout.lease(three[0].connection.node), "1", "PX", 3000)
    await three[0].limiter._count_nodes()
    await until(lambda: _quiet(three[0]))
    assert (await three[1].left(plan)) == {"streams": 2}


async def test_start_whose_client_left_takes_nothing(node: Node, redis: Redis) -> None:
    plan = plan_of(Rate(10, DAY), 1, Rate(1000, DAY))
    left = 0
    for turns in range(1, 7):
        decision = node.limiter.decide(plan, "ann", start(500), time.monotonic())
        assert not isinstance(decision, Decision)
        waiting = asyncio.ensure_future(decision)
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if waiting.cancelled():
            left += 1
        else:  # Redis was faster
            lease = waiting.result().outcome
            assert isinstance(lease, Lease)
            lease.cancel(time.monotonic())
    assert left >= 2
    await until(lambda: _quiet(node))
    free = await node.left(plan)
    assert (free["streams"], free["tokens"]) == (1, 1000)


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_keys_name_nobody_and_expire_when_nothing_is_used(redis: Redis, node: Node) -> None:
    plan = Plan("gold", make_limits(Rate(10, 1.0), 5, Rate(100, 2.0)))
    lease = await node.admit(plan, start(10), "key:anna")
    mine = f"{node.connection.layout.prefix}:*"
    keys = await redis.keys(mine)
    assert not [key for key in keys if "anna" in key or "gold" in key]
    ledger = node.connection.layout.ledger("gold", "key:anna")
    assert {ledger, f"{ledger}:tokens", f"{ledger}:streams"} <= set(keys)
    assert all([await redis.ask("PTTL", key) > 0 for key in keys])
    assert await redis.ask("PTTL", ledger) <= 202
    lease.settle({"tokens": 5}, 0.0)
    lease.close(0.0)
    await until(lambda: _quiet(node))
    await until(lambda: _gone(redis, f"{ledger}*"))


async def _gone(redis: Redis, pattern: str) -> bool:
    return not await redis.keys(pattern)


async def test_limiter_forgets_principals_at_rest(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.limits.RECENT", 0.0)
    plan = plan_of(streams=3)
    kept = await node.admit(plan, start(), "kept")
    for number in range(30):
        (await node.admit(plan, start(), f"user-{number}")).close(0)
    await until(lambda: _quiet(node))
    for number in range(30):
        node.limiter._shares_of(plan, f"more-{number}", time.monotonic())
    assert len(node.limiter._shares) < 40
    assert ("p", "kept") in node.limiter._shares
    kept.close(0)


# -- Redis is away -----------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def own_redis(tmp_path: Path) -> AsyncIterator[Redis]:
    async with Redis(tmp_path / "own") as redis:
        yield redis


async def test_nodes_decide_alone_while_redis_is_away_and_tell_it_afterwards(own_redis: Redis) -> None:
    """R1, R3, R7: by a third of each limit, at once; then what was used is added, once."""
    plan = plan_of(Rate(30, DAY), 6, Rate(3000, DAY))
    async with nodes_on(own_redis, 3, "away") as nodes:
        before = await nodes[0].admit(plan, start(100))
        own_redis.pause()
        first = await nodes[0].decide(plan, start(100))  # nobody knows yet: it waits as long as is allowed
        assert isinstance(first.outcome, Lease)
        assert not nodes[0].connection.up
        second = nodes[0].limiter.decide(plan, "ann", start(100), time.monotonic())
        assert isinstance(second, Decision), "nobody waits for what is away"
        refusal = second.outcome
        assert isinstance(refusal, Refusal)
        assert (refusal.limit, refusal.quota.limit, refusal.quota.remaining) == ("streams", 2, 0)
        ended = first.outcome
        assert ended.spend({"tokens": 500}, time.monotonic())
        assert not ended.spend({"tokens": 1500}, time.monotonic())
        ended.settle({"tokens": 500}, time.monotonic())
        ended.close(time.monotonic())
        third = await nodes[0].admit(plan, start(50))
        own_redis.resume()
        await until(lambda: _up(nodes))
        await until(lambda: _all_quiet(nodes))
        assert await nodes[1].left(plan) == {"requests": 27, "streams": 4, "tokens": 3000 - 100 - 500 - 50}
        for lease, used in ((before, 10), (third, 20)):
            lease.settle({"tokens": used}, time.monotonic())
            lease.close(time.monotonic())
        await until(lambda: _all_quiet(nodes))
        assert await nodes[1].left(plan) == {"requests": 27, "streams": 6, "tokens": 3000 - 10 - 500 - 20}


async def _up(nodes: list[Node]) -> bool:
    return all(node.connection.up for node in nodes)


async def test_slots_are_taken_again_where_redis_returns_empty(own_redis: Redis) -> None:
    """R2: and at least one request and one stream fit into a part."""
    plan = plan_of(Rate(1, DAY), 2)
    async with nodes_on(own_redis, 2, "empty") as nodes:
        lease = await nodes[0].admit(plan, start(requests=0))
        await own_redis.kill()
        other = await nodes[1].admit(plan, start())
        assert (await nodes[1].refuse(plan, start(requests=0))).limit == "streams"
        await own_redis.start()
        await until(lambda: _left_is(nodes[1], plan, {"requests": 0, "streams": 0}))
        lease.close(0)
        other.close(0)
        await until(lambda: _all_quiet(nodes))
        assert (await nodes[0].left(plan))["streams"] == 2


async def _left_is(node: Node, plan: Plan, left: dict[str, int]) -> bool:
    return node.connection.up and await _quiet(node) and await node.left(plan) == left


async def test_a_batch_that_nobody_answered_is_counted_once(own_redis: Redis) -> None:
    """R3: Redis does what it was sent while it hung; the same is sent again when it is back."""
    plan = plan_of(tokens=Rate(1000, DAY))
    async with nodes_on(own_redis, 1, "once") as [node]:
        lease = await node.admit(plan, start(100))
        own_redis.pause()
        lease.settle({"tokens": 300}, time.monotonic())
        await until(lambda: _away(node))
        own_redis.resume()
        await until(lambda: _up([node]))
        await until(lambda: _quiet(node))
        assert await node.left(plan) == {"tokens": 700}


async def _away(node: Node) -> bool:
    return not node.connection.up


async def test_nothing_is_lost_or_counted_twice_however_often_redis_hangs(own_redis: Redis) -> None:
    """R3: streams start, spend, end and are given up on three nodes while Redis stops for shorter and longer times."""
    chance, plan = random.Random(16), plan_of(Rate(10**6, 1000 * DAY), 60, Rate(10**7, 1000 * DAY))
    over = asyncio.Event()

    async def client(nodes: list[Node]) -> int:
        used = 0
        while not over.is_set():
            decision = nodes[chance.randrange(3)].limiter.decide(plan, "ann", start(300), time.monotonic())
            if not isinstance(decision, Decision):
                waiting = asyncio.ensure_future(decision)
                if chance.random() < 0.1:
                    await asyncio.sleep(0)
                    waiting.cancel()
                    await asyncio.wait([waiting])
                    continue
                decision = await waiting
            assert isinstance(decision.outcome, Lease)
            tokens = await spend(decision.outcome, chance.choice((0, 40, 320, 880)), pause=False)
            await asyncio.sleep(0.03 * chance.random())
            decision.outcome.settle({"tokens": tokens}, time.monotonic())
            decision.outcome.close(time.monotonic())
            used += tokens
        return used

    async with nodes_on(own_redis, 3, "hangs") as nodes:
        clients = [asyncio.create_task(client(nodes)) for _ in range(15)]
        for seconds in (0.1, 0.3, 0.24, 0.6):
            own_redis.pause()
            await asyncio.sleep(seconds)  # so long it hangs
            own_redis.resume()
            await until(lambda: _up(nodes))
        over.set()
        used = sum(await asyncio.gather(*clients))
        await until(lambda: _up(nodes))
        await until(lambda: _all_quiet(nodes))
        left = await nodes[0].left(plan)
        assert left["streams"] == 60
        assert abs(10**7 - used - left["tokens"]) <= 3  # a little has drained
        assert used > 10_000
