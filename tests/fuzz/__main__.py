"""`python -m tests.fuzz [--seconds 60] [--seed N] [--only sse …]` tries inputs until its time is over."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz import front
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS
from tests.kit.program import Gateway

BATCH = 200
"""Inputs of one target in a row."""
FRONT = "front"
FRONT_SHARE = 0.2
"""The part of the time that goes to the running gateway."""


def main() -> int:
    """The exit status: 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Tries inputs on all that reads bytes.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--only", nargs="*", choices=[*TARGETS, FRONT], default=[*TARGETS, FRONT])
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    counts: Counter[str] = Counter()
    found = 0
    names = [name for name in options.only if name != FRONT]
    share = FRONT_SHARE if names and FRONT in options.only else float(FRONT in options.only)
    if names:
        found += _in_process(names, options.seconds * (1 - share), options.seed, counts)
    if share:
        found += asyncio.run(_at_the_front(options.seconds * share, options.seed, counts))
    for name, count in counts.items():
        print(f"{name:12} {count:>12,}")
    print(f"{'together':12} {sum(counts.values()):>12,} inputs, {found} found")
    return int(found > 0)


def _in_process(names: list[str], seconds: float, seed: int, counts: Counter[str]) -> int:
    rng, found, end = random.Random(seed), set[str](), time.monotonic() + seconds
    pools = {name: list(TARGETS[name].seeds) for name in names}
    turns = [name for name in names for _ in range(TARGETS[name].weight)]
    while time.monotonic() < end:
        name = rng.choice(turns)
        target, pool = TARGETS[name], pools[name]
        for _ in range(BATCH if name != "config" else 5):
            data = mutated(rng.choice(pool), target.seeds, rng)
            counts[name] += 1
            try:
                target.check(data, rng)
            except Exception as error:  # noqa: BLE001  # whatever it is, it was found
                place = traceback.extract_tb(error.__traceback__)[-1]
                known = f"{name} {type(error).__name__} {place.filename}:{place.lineno}"
                if known not in found:
                    found.add(known)
                    print(f"FOUND {known}: {error!s:.300}\n  {data!r}", flush=True)
            if rng.random() < 0.002:  # a changed input may lead further
                pool.append(data)
                if len(pool) > 512:
                    del pool[len(target.seeds)]
    return len(found)


async def _at_the_front(seconds: float, seed: int, counts: Counter[str]) -> int:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        async with Gateway(front.configuration(), Path(folder)) as gateway:
            end = time.monotonic() + seconds  # its start may take long
            try:
                while time.monotonic() < end:
                    await front.attack(gateway, 64, rng)
                    counts[FRONT] += 64
                await front.assert_nothing_left(gateway)
            except AssertionError as error:
                print(f"FOUND {FRONT}: {error}", flush=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
