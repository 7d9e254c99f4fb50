"""Chromium for a whole module of tests, and a cable to the gateway that can be pulled.

Starting a browser takes a second, so a module shares one; each test has a context, and with it cookies, of its own.
This file knows no page and no path.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

from tests.kit.program import find_program
from tests.kit.tcp_proxy import TCPProxy

CHROMIUM_FLAGS = [
    "--headless",
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
    path = find_program("chromium", "chromium fonts-noto-cjk")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


Cable = TCPProxy
"""The network between a browser and the gateway."""
