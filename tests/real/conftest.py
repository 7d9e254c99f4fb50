"""The real programs around the gateway: nginx, browsers, and a stand-in for the providers.

A missing program fails a test with the command that installs it; nothing is ever skipped.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.kit.program import AIMock, Nginx
from tests.real import browsing

StartNginx = Callable[[str], Awaitable[Nginx]]


@pytest.fixture
async def start_nginx(tmp_path: Path) -> AsyncIterator[StartNginx]:
    """`await start_nginx("127.0.0.1:8080")` is nginx with the shipped configuration in front of that address."""
    async with AsyncExitStack() as stack:

        async def start(upstream: str) -> Nginx:
            directory = tmp_path / "nginx"
            directory.mkdir()
            return await stack.enter_async_context(Nginx(upstream, directory))

        yield start


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium; ask it for `await chromium.new_page()`."""
    async with browsing.chromium() as browser:
        yield browser


@pytest.fixture
async def aimock() -> AsyncIterator[AIMock]:
    """aimock with the answers of `aimock.json`."""
    async with AIMock(Path(__file__).with_name("aimock.json")) as program:
        yield program
