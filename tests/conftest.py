"""What any test may ask for: the real gateway, started by its command and ended with the test; and chance, with a seed.

Chance begins anew for each test, from a seed that is told with a failure: `TEST_SEED=… pytest …` repeats the run, in
whatever order and selection.
"""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kit.program import Gateway

SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
StartGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that are the same in every run with the same seed."""
    request.node.add_report_section("setup", "seed", f"TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """`await start_gateway(config, env=…)` is a serving gateway; with the test it is ended and must exit with 0."""
    async with AsyncExitStack() as stack:
        started = 0

        async def start(config: str | Mapping[str, Any], *, env: Mapping[str, str] | None = None) -> Gateway:
            nonlocal started
            started += 1
            directory = tmp_path / f"gateway-{started}"
            directory.mkdir()
            return await stack.enter_async_context(Gateway(config, directory, env=env))

        yield start
