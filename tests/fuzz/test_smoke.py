"""Fuzzing in small: every input that once found a mistake, and a few hundred new ones for each target."""

import random
from pathlib import Path

import pytest

from tests.fuzz import front
from tests.fuzz.corpus import FOUND
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS
from tests.kit.program import Gateway

SEED = 13


@pytest.mark.parametrize("name", TARGETS)
def test_reader_keeps_its_promises(name: str) -> None:
    target, rng = TARGETS[name], random.Random(SEED)
    for data in (*target.seeds, *FOUND.get(name, ())):
        target.check(data, rng)
    for _ in range(20 if name == "config" else 200):
        target.check(mutated(rng.choice(target.seeds), target.seeds, rng), rng)


async def test_gateway_answers_or_closes_whatever_comes(tmp_path: Path) -> None:
    async with Gateway(front.configuration(), tmp_path) as gateway:
        for data in FOUND.get("front", ()):
            await front.converse(gateway, data)
        assert await front.attack(gateway, 96, random.Random(SEED)) > 0
        await front.assert_nothing_left(gateway)
