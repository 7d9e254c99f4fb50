"""Transcripts of the limiter: demands and a clock in, leases and refusals out; its promises under random scripts."""

import sys
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.limiter import SAMPLE, AddressLimiter, Lease, Limiter, Refusal
from gateway.core.limits import Plan, Quota, make_limits
from gateway.core.rate import Rate


def plan_of(name: str, requests: Rate | None = None, streams: int | None = None, tokens: Rate | None = None) -> Plan:
    return Plan(name, make_limits(requests, streams, tokens))


PLAN = plan_of("default", Rate(60, 60.0), 2, Rate(1000, 60.0))
TOKENS = plan_of("tokens", tokens=Rate(100, 60.0))
T0 = 1_234_567.891


def start(tokens: float = 0, *, streams: int = 1, requests: int = 1) -> dict[str, float]:
    """The demand of a stream."""
    return {"requests": requests, "streams": streams, "tokens": tokens}


def tokens(count: float) -> dict[str, float]:
    return {"tokens": count}


def leased(decision: Lease | Refusal) -> Lease:
    assert isinstance(decision, Lease), decision
    return decision


def refused(decision: Lease | Refusal | None) -> Refusal:
    assert isinstance(decision, Refusal)
    return decision


def quota(limiter: Limiter, plan: Plan, name: str, now: float) -> Quota:
    return next(q for q in limiter.snapshot(plan, "ann", now) if q.name == name)


def remaining(limiter: Limiter, plan: Plan, now: float) -> dict[str, int]:
    return {q.name: q.remaining for q in limiter.snapshot(plan, "ann", now)}


# requests


def test_limiter_lets_a_burst_through_then_one_request_a_second() -> None:
    limiter = Limiter()
    assert [limiter.touch(PLAN, "ann", T0) for _ in range(60)] == [None] * 60
    assert refused(limiter.touch(PLAN, "ann", T0)).retry_after == pytest.approx(1.0)
    assert refused(limiter.touch(PLAN, "ann", T0 + 0.75)).retry_after == pytest.approx(0.25)
    assert limiter.touch(PLAN, "ann", T0 + 1.0) is None
    assert refused(limiter.touch(PLAN, "ann", T0 + 1.0)).limit == "requests"


def test_limiter_lets_in_who_waited_as_told() -> None:
    limiter, plan, now = Limiter(), plan_of("odd", Rate(7, 3.0)), T0
    for _ in range(7):
        assert limiter.touch(plan, "ann", now) is None
    for _ in range(1000):
        now += refused(limiter.touch(plan, "ann", now)).retry_after or 0.0
        assert limiter.touch(plan, "ann", now) is None


def test_limiter_keeps_principals_and_plans_apart() -> None:
    limiter, one, other = Limiter(), plan_of("one", Rate(1, 60.0)), plan_of("other", Rate(1, 60.0))
    assert limiter.touch(one, "ann", T0) is None
    assert limiter.touch(one, "ann", T0) is not None
    assert limiter.touch(one, "bob", T0) is None
    assert limiter.touch(other, "ann", T0) is None


def test_limiter_ignores_a_clock_that_runs_backwards() -> None:
    limiter, plan = Limiter(), plan_of("one", Rate(1, 60.0))
    assert limiter.touch(plan, "ann", T0) is None
    assert refused(limiter.touch(plan, "ann", T0 - 3600)).retry_after == pytest.approx(60.0)
    assert limiter.touch(plan, "ann", T0 + 60.0) is None


def test_limiter_applies_a_reloaded_plan_to_what_is_used() -> None:
    limiter = Limiter()
    assert limiter.touch(plan_of("p", Rate(2, 60.0)), "ann", T0) is None
    assert remaining(limiter, plan_of("p", Rate(10, 60.0)), T0) == {"requests": 9}
    assert refused(limiter.touch(plan_of("p", Rate(1, 60.0)), "ann", T0)).retry_after == pytest.approx(60.0)
    assert limiter.snapshot(plan_of("p"), "ann", T0) == []


# streams


def test_limiter_refuses_a_stream_above_the_plan_until_one_closes() -> None:
    limiter = Limiter()
    first, _ = (leased(limiter.admit(PLAN, "ann", start(10), T0)) for _ in range(2))
    assert refused(limiter.admit(PLAN, "ann", start(10), T0))[:2] == ("streams", 2.0)
    first.close(T0)
    first.close(T0)
    leased(limiter.admit(PLAN, "ann", start(10), T0))
    assert refused(limiter.admit(PLAN, "ann", start(10), T0)).code == "too_many_streams"


def test_limiter_admits_a_reader_without_a_request_or_tokens() -> None:
    limiter = Limiter()
    leased(limiter.admit(PLAN, "ann", start(requests=0), T0))
    assert remaining(limiter, PLAN, T0) == {"requests": 60, "streams": 1, "tokens": 1000}


def test_limiter_takes_nothing_when_one_limit_refuses() -> None:
    limiter = Limiter()
    leased(limiter.admit(PLAN, "ann", start(600), T0))
    assert refused(limiter.admit(PLAN, "ann", start(600), T0)).limit == "tokens"
    assert remaining(limiter, PLAN, T0) == {"requests": 59, "streams": 1, "tokens": 400}


def test_limiter_names_the_limit_to_wait_longest_for() -> None:
    limiter, plan = Limiter(), plan_of("p", Rate(1, 1.0), 5, Rate(100, 60.0))
    leased(limiter.admit(plan, "ann", start(100), T0))
    refusal = refused(limiter.admit(plan, "ann", start(50), T0))
    assert (refusal.limit, refusal.code) == ("tokens", "token_limit")
    assert refusal.retry_after == pytest.approx(30.0)


def test_limiter_says_that_a_demand_above_the_whole_budget_never_fits() -> None:
    refusal = refused(Limiter().admit(PLAN, "ann", start(1001), T0))
    assert (refusal.limit, refusal.retry_after, refusal.retryable) == ("tokens", None, False)
    assert refusal.quota == Quota("tokens", 1000, 60.0, 1000, 0.0)
    assert not refused(Limiter().admit(PLAN, "ann", start(streams=3), T0)).retryable
    assert not refused(Limiter().admit(plan_of("none", Rate(0, 1.0)), "ann", start(), T0)).retryable


def test_limiter_refuses_nothing_under_an_unlimited_plan() -> None:
    limiter, plan = Limiter(), plan_of("free")
    leases = [leased(limiter.admit(plan, "ann", start(10**9), T0)) for _ in range(100)]
    assert all(lease.spend(tokens(10**12), T0) for lease in leases)
    assert limiter.snapshot(plan, "ann", T0) == []


# tokens


def test_lease_gives_back_what_was_not_used() -> None:
    limiter = Limiter()
    lease = leased(limiter.admit(TOKENS, "ann", start(90), T0))
    lease.settle(tokens(20), T0)
    lease.settle(tokens(500), T0)
    assert remaining(limiter, TOKENS, T0) == {"tokens": 80}


def test_lease_settles_once_after_it_was_closed() -> None:
    limiter = Limiter()
    lease = leased(limiter.admit(TOKENS, "ann", start(90), T0))
    lease.close(T0)
    assert remaining(limiter, TOKENS, T0) == {"tokens": 10}
    lease.settle(tokens(30), T0)
    assert remaining(limiter, TOKENS, T0) == {"tokens": 70}


def test_lease_spends_beyond_its_reservation_until_the_budget_is_used_up() -> None:
    limiter = Limiter()
    lease = leased(limiter.admit(TOKENS, "ann", start(10), T0))
    assert [lease.spend(tokens(n), T0) for n in (5, 10, 60, 100)] == [True, True, True, True]
    assert not lease.spend(tokens(101), T0)
    assert lease.spend(tokens(101), T0 + 0.6)
    lease.settle(tokens(40), T0 + 0.6)
    assert remaining(limiter, TOKENS, T0 + 0.6) == {"tokens": 100 - 40 + 1}
    assert not lease.spend(tokens(200), T0 + 0.6)


def test_many_leases_leave_next_to_nothing_of_the_budget_unused() -> None:
    limiter, plan = Limiter(), plan_of("tokens", tokens=Rate(1000, 60.0))
    leases = [leased(limiter.admit(plan, "ann", start(), T0)) for _ in range(100)]
    used = 0
    while leases[used % 100].spend(tokens(used // 100 + 1), T0):
        used += 1
    assert used >= 950


def test_lease_puts_the_budget_into_debt_by_at_most_one_window() -> None:
    limiter = Limiter()
    leased(limiter.admit(TOKENS, "ann", start(50), T0)).settle(tokens(10**9), T0)
    indebted = quota(limiter, TOKENS, "tokens", T0)
    assert indebted == Quota("tokens", 100, 60.0, 0, indebted.reset)
    assert indebted.reset == pytest.approx(120.0)
    assert refused(limiter.admit(TOKENS, "ann", start(1), T0)).retry_after == pytest.approx(60.6)
    leased(limiter.admit(TOKENS, "ann", start(1), T0 + 60.6))


def test_lease_gives_back_nothing_that_has_drained() -> None:
    limiter = Limiter()
    old = leased(limiter.admit(TOKENS, "ann", start(100), T0))
    leased(limiter.admit(TOKENS, "ann", start(100), T0 + 60))
    old.settle(tokens(0), T0 + 60)
    assert remaining(limiter, TOKENS, T0 + 60) == {"tokens": 0}


def test_leases_drain_oldest_first_and_the_younger_gives_back_its_all() -> None:
    limiter = Limiter()
    old, young = (leased(limiter.admit(TOKENS, "ann", start(50), T0)) for _ in range(2))
    leased(limiter.admit(TOKENS, "ann", start(50), T0 + 30))
    old.settle(tokens(0), T0 + 30)
    young.settle(tokens(0), T0 + 30)
    assert remaining(limiter, TOKENS, T0 + 30) == {"tokens": 50}


# what is forgotten


def test_limiter_makes_no_account_for_a_look() -> None:
    limiter = Limiter()
    limiter.snapshot(PLAN, "ann", T0)
    refused(limiter.admit(PLAN, "ann", start(1001), T0))
    assert len(limiter) == 0


def test_limiter_forgets_accounts_at_rest_while_others_come() -> None:
    limiter = Limiter()
    for n in range(5000):
        assert limiter.touch(PLAN, f"2001:db8:{n:x}::/64", T0 + n) is None
    assert len(limiter) < 10


def test_limiter_forgets_the_idle_before_the_busy() -> None:
    limiter, plan = Limiter(max_keys=3), plan_of("p", Rate(1, 60.0), 1)
    streaming = leased(limiter.admit(plan, "ann", start(), T0))
    for name, later in (("bob", 1), ("cid", 50), ("dan", 70)):
        assert limiter.touch(plan, name, T0 + later) is None
    assert len(limiter) == 3
    assert limiter.touch(plan, "cid", T0 + 70) is not None
    assert refused(limiter.admit(plan, "ann", start(), T0 + 70)).limit == "streams"
    streaming.close(T0 + 70)


def test_limiter_evicts_the_longest_unused_when_all_are_busy() -> None:
    limiter, plan = Limiter(max_keys=2), plan_of("p", Rate(1, 60.0), 1)
    lease = leased(limiter.admit(plan, "ann", start(), T0))
    assert [limiter.touch(plan, name, T0 + 1) for name in ("bob", "cid")] == [None, None]
    assert len(limiter) == 2
    assert limiter.touch(plan, "bob", T0 + 1) is None
    assert refused(limiter.admit(plan, "ann", start(requests=0), T0 + 2)).limit == "streams"
    lease.close(T0 + 2)


def test_lease_of_an_evicted_account_closes_and_settles_without_a_trace() -> None:
    limiter, plan = Limiter(max_keys=1), plan_of("p", streams=1, tokens=Rate(100, 60.0))
    lost = leased(limiter.admit(plan, "ann", start(50), T0))
    leased(limiter.admit(plan, "bob", start(50), T0))
    lost.settle(tokens(100), T0)
    lost.close(T0)
    assert len(limiter) == 1
    assert remaining(limiter, plan, T0) == {"streams": 1, "tokens": 100}


def test_limiter_stays_within_its_bound_when_everybody_is_busy() -> None:
    limiter, plan = Limiter(max_keys=SAMPLE * 2), plan_of("p", Rate(1, 86400.0))
    for n in range(SAMPLE * 4):
        assert limiter.touch(plan, str(n), T0) is None
    assert len(limiter) == SAMPLE * 2


def test_limiter_keeps_no_lease_whose_reservation_has_drained() -> None:
    limiter = Limiter()
    lease = leased(limiter.admit(TOKENS, "ann", start(100), T0))
    lease.close(T0)
    [reservation] = [hold for hold in lease._holds if hold.limit.name == "tokens"]
    references = sys.getrefcount(reservation)
    limiter.snapshot(TOKENS, "ann", T0 + 60)
    assert sys.getrefcount(reservation) < references


# addresses and streams


def test_address_limiter_counts_requests_and_connections_apart() -> None:
    limiter = AddressLimiter(Rate(1, 60.0), 1)
    connection = leased(limiter.connect("192.0.2.1", T0))
    assert limiter.request("192.0.2.1", T0) is None
    refusal = refused(limiter.request("192.0.2.1", T0))
    assert refusal.limit == "address"
    assert refusal.retry_after == pytest.approx(60.0)
    assert refused(limiter.connect("192.0.2.1", T0)).limit == "address"
    connection.close(T0)
    connection.close(T0)
    leased(limiter.connect("192.0.2.1", T0))
    assert isinstance(limiter.connect("192.0.2.1", T0), Refusal)


def test_address_limiter_is_bounded_and_may_be_reloaded() -> None:
    limiter = AddressLimiter(Rate(1, 60.0), None, max_keys=2)
    assert [limiter.request(address, T0) for address in "abc"] == [None, None, None]
    assert len(limiter) == 2
    limiter.plan = plan_of("address")
    assert limiter.request("c", T0) is None


# promises

STEP = st.floats(0, 40, allow_nan=False)


def most_in_any_window(spent: Iterable[tuple[float, float]], rate: Rate) -> float:
    """The most that any window saw above what drains in it: at most the rate's amount."""
    level, most, last = 0.0, 0.0, 0.0
    for at, units in sorted(spent, key=lambda entry: entry[0]):
        level = max(0.0, level - (at - last) * rate.amount / rate.seconds) + units
        most, last = max(most, level), at
    return most


@given(st.lists(st.tuples(STEP, st.integers(1, 4)), max_size=60))
@settings(deadline=None)
def test_limiter_never_lets_more_requests_through_than_the_rate(script: list[tuple[float, int]]) -> None:
    limiter, plan, now, taken = Limiter(), plan_of("p", Rate(5, 60.0)), T0, []
    for step, requests in script:
        now += step
        if isinstance(limiter.admit(plan, "ann", start(requests=requests), now), Lease):
            taken.append((now, requests))
    assert most_in_any_window(taken, Rate(5, 60.0)) <= 5.001


@given(st.lists(st.tuples(STEP, st.integers(0, 100), st.integers(0, 100), st.integers(0, 9)), max_size=80))
@settings(deadline=None, max_examples=300)
def test_leases_never_use_more_tokens_than_the_budget(script: list[tuple[float, int, int, int]]) -> None:
    """Whatever is reserved, spent, given back and closed in whatever order, used counts at the time it was admitted."""
    limiter, now, used, leases = Limiter(), T0, [], []
    for step, reserve, use, pick in script:
        now += step
        decision = limiter.admit(TOKENS, "ann", start(reserve), now)
        if isinstance(decision, Lease):
            leases.append((decision, now, reserve))
        if leases and pick < 5:
            lease, at, reserved = leases.pop(pick % len(leases))
            lease.settle(tokens(min(use, reserved)), now)
            used.append((at, min(use, reserved)))
    used += [(at, reserved) for _, at, reserved in leases]
    assert most_in_any_window(used, Rate(100, 60.0)) <= 100.001


@given(st.lists(st.tuples(STEP, st.integers(0, 30), st.integers(1, 60)), max_size=60))
@settings(deadline=None)
def test_lease_never_spends_more_tokens_than_the_budget(script: list[tuple[float, int, int]]) -> None:
    limiter, now, used = Limiter(), T0, []
    for step, reserve, more in script:
        decision = limiter.admit(TOKENS, "ann", start(reserve), now)
        now += step
        if isinstance(decision, Lease):
            grown = reserve + more if decision.spend(tokens(reserve + more), now) else reserve
            used += [(now - step, reserve), (now, grown - reserve)]
            decision.settle(tokens(grown), now)
    assert most_in_any_window(used, Rate(100, 60.0)) <= 100.001


@given(st.lists(st.tuples(STEP, st.sampled_from("aab"), st.integers(0, 5), st.booleans()), max_size=80))
@settings(deadline=None)
def test_slots_always_return_and_accounts_at_rest_vanish(script: list[tuple[float, str, int, bool]]) -> None:
    limiter, plan, now = Limiter(), plan_of("p", Rate(50, 60.0), 3, Rate(1000, 60.0)), T0
    open_leases: list[tuple[str, Lease]] = []
    for step, who, pick, closes in script:
        now += step
        decision = limiter.admit(plan, who, start(10 * pick), now)
        open_leases += [(who, decision)] if isinstance(decision, Lease) else []
        if closes and open_leases:
            _, lease = open_leases.pop(pick % len(open_leases))
            lease.close(now)
            lease.settle(tokens(pick * 300), now)
            lease.close(now)
        for name in "ab":
            free = next(q.remaining for q in limiter.snapshot(plan, name, now) if q.name == "streams")
            assert free == 3 - sum(owner == name for owner, _ in open_leases)
    for _, lease in open_leases:
        lease.close(now)
    for n in range(8):
        limiter.admit(plan_of("q"), str(n), start(), now + 1000)
    assert not {key for key in limiter._ledgers if key[0] == "p"}
