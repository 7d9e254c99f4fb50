"""Transcripts of prices: a usage, a model and a table in, money and amounts out."""

import pytest

from gateway.core.cost import Price, amounts, cost, price_of
from gateway.core.event import Usage
from gateway.core.limiter import Lease, Limiter, Refusal
from gateway.core.limits import BudgetLimit, Plan
from gateway.core.rate import Rate

PRICES = {
    "gpt-4o-mini": Price(0.15, 0.60, cached_input=0.075),
    "gpt-4o*": Price(2.5, 10),
    "gpt-*": Price(30, 60),
    "free": Price(0, 0),
}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4o-mini-2024", "gpt-4o*"),
        ("gpt-4o", "gpt-4o*"),
        ("gpt-4", "gpt-*"),
        ("free", "free"),
    ],
)
def test_price_is_that_of_the_longest_matching_name(model: str, name: str) -> None:
    assert price_of(model, PRICES) == PRICES[name]


@pytest.mark.parametrize("model", ["", "gpt", "free-2", "Gpt-4", "claude"])
def test_model_that_no_name_matches_has_no_price(model: str) -> None:
    assert price_of(model, PRICES) is None
    assert cost(Usage(1, 1), model, PRICES) is None


def test_star_alone_is_the_price_of_every_other_model() -> None:
    prices = PRICES | {"*": Price(1, 2)}
    assert (price_of("claude", prices), price_of("", prices)) == (Price(1, 2), Price(1, 2))
    assert price_of("gpt-4", prices) == PRICES["gpt-*"]


def test_own_name_wins_over_the_same_name_with_a_star() -> None:
    assert price_of("m", {"m*": Price(9, 9), "m": Price(1, 1)}) == Price(1, 1)


def test_cost_is_counted_per_million_tokens_by_kind() -> None:
    assert cost(Usage(1_000_000, 0), "gpt-4o-mini", PRICES) == pytest.approx(0.15)
    assert cost(Usage(0, 1_000_000), "gpt-4o-mini", PRICES) == pytest.approx(0.60)
    half_cached = Usage(1_000_000, 0, cached_input=500_000)
    assert cost(half_cached, "gpt-4o-mini", PRICES) == pytest.approx(0.1125)
    assert cost(half_cached, "gpt-4", PRICES) == pytest.approx(30)


def test_cost_takes_no_more_tokens_for_cached_than_there_were() -> None:
    assert cost(Usage(10, 0, cached_input=1000), "gpt-4o-mini", PRICES) == pytest.approx(10 * 0.075 / 1e6)


def test_amounts_name_the_cost_only_where_there_is_a_price() -> None:
    assert amounts(Usage(3, 5), "gpt-4o-mini") == {"tokens": 8}
    assert amounts(Usage(3, 5), "unknown", PRICES) == {"tokens": 8}
    assert amounts(Usage(3, 5), "free", PRICES) == {"tokens": 8, "cost": 0}
    assert amounts(Usage(3, 5), "gpt-4", PRICES) == {"tokens": 8, "cost": pytest.approx(390e-6)}


def test_cost_is_a_limit_like_any_other() -> None:
    limiter, plan = Limiter(), Plan("p", (BudgetLimit("cost", Rate(5, 86400.0)),))
    estimate, used = (amounts(Usage(0, count), "gpt-4", PRICES) for count in (50_000, 20_000))
    lease = limiter.admit(plan, "key:ann", estimate, 0.0)
    assert isinstance(lease, Lease)
    assert limiter.snapshot(plan, "key:ann", 0.0)[0].remaining == 2
    assert isinstance(limiter.admit(plan, "key:ann", estimate, 0.0), Refusal)
    lease.settle(used, 0.0)
    assert limiter.snapshot(plan, "key:ann", 0.0)[0].remaining == 3
