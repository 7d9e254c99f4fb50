"""Targets: who takes the next call, and what is open at each."""

from collections import Counter

import pytest

from gateway.config import Upstream as Config
from gateway.upstream.pool import Target, Upstream


def upstream(*weights: int, balance: str = "least_streams") -> Upstream:
    targets = [{"url": f"http://t{number}/", "weight": weight} for number, weight in enumerate(weights)]
    return Upstream("main", Config.model_validate({"dialect": "openai", "targets": targets, "balance": balance}), "")


def calls(upstream: Upstream, count: int) -> Counter[str]:
    taken: Counter[str] = Counter()
    for _ in range(count):
        with upstream.use(upstream.pick()) as target:
            taken[target.url] += 1
    return taken


@pytest.mark.parametrize("balance", ["least_streams", "round_robin"])
def test_calls_are_shared_by_weight(balance: str) -> None:
    assert calls(upstream(1, 1, 2, balance=balance), 400) == {"http://t0": 100, "http://t1": 100, "http://t2": 200}


def test_least_streams_avoids_the_target_with_most_open() -> None:
    main = upstream(1, 1)
    with main.use(main.targets[0]):
        assert calls(main, 10) == {"http://t1": 10}


def test_least_streams_weighs_what_is_open() -> None:
    main = upstream(1, 3)
    with main.use(main.targets[1]), main.use(main.targets[0]):
        assert main.pick() is main.targets[1]


def test_round_robin_does_not_look_at_what_is_open() -> None:
    main = upstream(1, 1, balance="round_robin")
    with main.use(main.targets[0]), main.use(main.targets[0]):
        assert calls(main, 4) == {"http://t1": 3, "http://t0": 1}


def test_call_that_fails_is_given_back() -> None:
    main = upstream(1)
    with pytest.raises(ZeroDivisionError), main.use(main.pick()) as target:
        target.open // 0
    assert (main.targets[0].open, main.targets[0].served) == (0, 1)


def test_demo_target_is_where_the_demo_listens() -> None:
    config = Config.model_validate({"dialect": "openai", "targets": [{"url": "demo:"}]})
    assert Upstream("main", config, "http://127.0.0.1:1234/v1").targets[0].url == "http://127.0.0.1:1234/v1"
    assert isinstance(Upstream("main", config, "http://127.0.0.1:1/v1").pick(), Target)
