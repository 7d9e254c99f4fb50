"""What any test may ask for: the real gateway, started by its command and ended with the test."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kit.program import Gateway

StartGateway = Callable[..., Awaitable[Gateway]]


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
