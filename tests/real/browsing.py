"""Chromium for a whole module of tests, and a cable to the gateway that can be pulled.

Starting a browser takes a second, so a module shares one; each test has a context, and with it cookies, of its own.
This file knows no page and no path.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright, expect

from tests.kit.program import find_program
from tests.kit.tcp_proxy import TCPProxy

CHROMIUM_FLAGS = [
    "--headless",
    "--renderer-process-limit=1",
    "--force-prefers-reduced-motion",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium, running."""
    path = find_program("chromium-headless-shell", "chromium-headless-shell fonts-noto-cjk")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


Cable = TCPProxy
"""The network between a browser and the gateway."""


def browser_fixture() -> Any:
    """A fixture: one browser for all tests of a module, which run in one loop; what is expected has 10 s to happen."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def browser() -> AsyncIterator[Browser]:
        expect.set_options(timeout=10_000)
        async with chromium() as running:
            yield running

    return browser


def complaints_fixtures() -> tuple[Any, Any]:
    """Two fixtures: the list in which a module's contexts note what pages complain of, as errors of scripts, lines on
    their consoles, dialogs; and one, for every test, that asserts it empty at the test's end."""

    @pytest.fixture(scope="module")
    def heard() -> list[str]:
        return []

    @pytest.fixture(autouse=True)
    def nobody_complains(heard: list[str]) -> Iterator[None]:
        yield
        assert heard == []

    return heard, nobody_complains


@asynccontextmanager
async def visitor(browser: Browser, heard: list[str], **options: Any) -> AsyncIterator[BrowserContext]:
    """A context whose pages' errors, and breaches of their content security policy, end up in `heard`."""
    async with await browser.new_context(**options) as context:
        context.on("weberror", lambda error: heard.append(str(error.error)))
        context.on("console", lambda line: heard.extend([line.text] if "Content Security" in line.text else []))
        yield context
