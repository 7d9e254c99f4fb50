"""Targets: who takes the next call, what is open at each, and who is out of service."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest

from gateway.config import Upstream as Config
from gateway.upstream.pool import MAX_MODELS, MAX_TOLD, Target, Upstream, Withheld

NOW = 100.0


def upstream(*weights: int, **settings: Any) -> Upstream:
    targets = [{"url": f"http://t{number}/", "weight": weight} for number, weight in enumerate(weights)]
    return Upstream("main", Config.model_validate({"dialect": "openai", "targets": targets} | settings), "")


def picked(upstream: Upstream, avoid: Collection[Target] = (), rather_not: Target | None = None) -> Target:
    target = upstream.pick(NOW, avoid, rather_not)
    assert target is not None
    return target


def calls(upstream: Upstream, count: int) -> Counter[str]:
    taken: Counter[str] = Counter()
    for _ in range(count):
        target = picked(upstream)
        with upstream.use(target):
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
        assert main.pick(NOW) is main.targets[1]


def test_round_robin_does_not_look_at_what_is_open() -> None:
    main = upstream(1, 1, balance="round_robin")
    with main.use(main.targets[0]), main.use(main.targets[0]):
        assert calls(main, 4) == {"http://t1": 3, "http://t0": 1}


def test_call_that_fails_is_given_back() -> None:
    main = upstream(1)
    with pytest.raises(ZeroDivisionError), main.use(picked(main)):
        main.targets[0].open // 0
    assert (main.targets[0].open, main.targets[0].served) == (0, 1)


def test_demo_target_is_where_the_demo_listens() -> None:
    config = Config.model_validate({"dialect": "openai", "targets": [{"url": "demo:"}]})
    assert Upstream("main", config, "http://127.0.0.1:1234/v1").targets[0].url == "http://127.0.0.1:1234/v1"
    assert isinstance(Upstream("main", config, "http://127.0.0.1:1/v1").pick(NOW), Target)


def test_target_that_is_avoided_takes_nothing() -> None:
    main = upstream(1, 1)
    first, second = main.targets
    assert picked(main, avoid={first}) is second
    assert main.pick(NOW, {first, second}) is None


def test_target_that_failed_last_is_asked_only_where_there_is_no_other() -> None:
    main = upstream(100, 1)
    first, second = main.targets
    assert picked(main, rather_not=first) is second
    assert picked(main, avoid={second}, rather_not=first) is first


def test_target_out_of_service_takes_nothing_until_its_time_has_come() -> None:
    main = upstream(1, 1, breaker={"failures": 1, "open": "30s"})
    first, second = main.targets
    first.breaker.fail(NOW)
    assert calls(main, 10) == {"http://t1": 10}
    second.breaker.fail(NOW - 10)
    assert main.pick(NOW) is None
    assert main.retry_after(NOW) == 20
    assert main.pick(NOW + 20) is second


def test_target_being_probed_takes_nothing_else_until_the_probe_is_over() -> None:
    main = upstream(1, breaker={"failures": 1, "open": "30s"})
    [target] = main.targets
    target.breaker.fail(NOW - 30)
    with main.use(picked(main)):
        assert main.pick(NOW) is None
    assert main.pick(NOW) is target, "its client left before there was a verdict"


def test_target_is_named_by_host_and_port() -> None:
    assert upstream(1).targets[0].label == "t0"


def test_target_remembers_what_a_model_refused_for_a_bounded_number_of_models() -> None:
    withheld = Withheld()
    assert withheld.add("m", {"seed"}) == {"seed"}
    assert withheld.add("m", {"seed", "stop"}) == {"stop"}
    assert withheld.of("m") == {"seed", "stop"}
    assert not withheld.of("n")
    for number in range(MAX_MODELS):
        withheld.add(f"m{number}" * 1000, {"seed"})
    assert withheld.of("m1" * 1000) == {"seed"}
    assert not withheld.of("m")


def test_upstream_tells_of_a_bounded_number_of_parameters_and_of_each_once() -> None:
    told = upstream(1).first_told
    assert told({"seed", "a secret"}) == ["_other", "seed"]
    assert told({"seed", "another secret"}) == []
    assert sum(len(told({f"p{number}"})) for number in range(1000)) == MAX_TOLD - 2
