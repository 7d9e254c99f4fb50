"""Fuzzing in small: every input that once found a mistake, and some new ones for each target."""

import random
from collections.abc import Hashable
from pathlib import Path

import pytest

from tests.fuzz import front
from tests.fuzz.corpus import FOUND
from tests.fuzz.mutate import mutated
from tests.fuzz.run import FRONT, Order, run
from tests.fuzz.targets import TARGETS
from tests.kit.program import Gateway

SEED = 13
FEW = 40
"""Inputs of each target; a run has the many."""


@pytest.mark.parametrize("name", TARGETS)
def test_reader_keeps_its_promises(name: str) -> None:
    target, rng = TARGETS[name], random.Random(SEED)
    for data in (*target.seeds, *FOUND.get(name, ())):
        target.attempt(data)
    for _ in range(FEW // 4 if name == "config" else FEW):
        target.attempt(mutated(rng.choice(target.seeds), target.seeds, rng))


def test_found_inputs_are_of_targets_that_there_are() -> None:
    assert FOUND.keys() <= {*TARGETS, FRONT}


async def test_gateway_answers_or_closes_whatever_comes(tmp_path: Path) -> None:
    rng, broken = random.Random(SEED), list[front.Broken]()
    async with front.Provider(rng) as provider, Gateway(front.configuration(provider), tmp_path) as gateway:
        for data in FOUND.get(FRONT, ()):
            for url in (gateway.url, gateway.admin):
                await front.converse(url, [data])
        assert await front.attack(gateway, iter([front.made(rng) for _ in range(96)]), broken) > 0
        assert not broken
        await front.assert_nothing_left(gateway, provider)


def test_run_counts_each_target_and_makes_the_same_inputs_of_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    target = TARGETS["cursor"]

    def check(data: bytes, rng: random.Random) -> Hashable:
        seen.append(data)
        return target.check(data, rng)

    monkeypatch.setitem(TARGETS, "cursor", target._replace(check=check))
    order = Order(("cursor", "trace"), 60.0, 500, SEED, 1 << 40)
    first, inputs = run(order), seen.copy()
    seen.clear()
    run(order._replace(names=("cursor",)))
    assert len(inputs) == first.inputs["cursor"]
    assert seen[: len(inputs)] == inputs
    assert abs(sum(first.inputs.values()) - order.inputs) <= len(order.names)
    assert first.inputs["cursor"] > first.inputs["trace"] > 0
    assert first.found == []
    assert "together" in first.table()


def test_run_tells_of_a_mistake_once_with_the_bytes_that_show_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(data: bytes, rng: random.Random) -> None:
        assert b"\0" not in data, "a NUL"

    monkeypatch.setitem(TARGETS, "cursor", TARGETS["cursor"]._replace(check=check))
    [found] = run(Order(("cursor",), 60.0, 3000, SEED, 1 << 40)).found
    assert found.name == "cursor"
    assert isinstance(found.data, bytes)
    with pytest.raises(AssertionError, match="a NUL"):
        TARGETS["cursor"].attempt(found.data)
    assert f"--only cursor --bytes {str(found.data)!r}" in capsys.readouterr().out
