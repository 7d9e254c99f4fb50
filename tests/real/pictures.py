"""Takes the pictures of the README: both pages, of the real program with its stand-in, in Chromium.

    python -m tests.real.pictures [FOLDER]      `make pictures`; docs/pictures if no folder is given

Each is a window small enough for a file below MAX_BYTES. The words that are waited for are the pages' own.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
import yaml
from playwright.async_api import Browser, Page, expect

from tests.kit.program import ROOT, Gateway
from tests.real.browsing import chromium

FOLDER: Final = ROOT / "docs/pictures"
MAX_BYTES: Final = 150 * 1024
QUESTION: Final = "When has a quadratic equation two roots?"
RUNNING: Final = ("Tell me a long story /slow", "And another one /slow", "Explain streams /think /slow")
FAILING: Final = "Nothing works today /error"


async def take(folder: Path, browser: Browser) -> None:
    """Writes `chat.png` and `monitor.png`. Raises AssertionError: one is too large, or a page did not get so far."""
    with TemporaryDirectory() as directory:
        async with Gateway(_shipped(), Path(directory), env={"LANG": "C.UTF-8"}) as gateway:
            await _chat(gateway, browser, folder / "chat.png")
            await _monitor(gateway, browser, folder / "monitor.png")


def _shipped() -> dict[str, Any]:
    """The shipped configuration, but on free ports, and with no patience for streams at its end."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    for name in ("listen", "admin_listen", "drain"):
        del config["server"][name]
    return {**config, "log": {"level": "info"}}


async def _chat(gateway: Gateway, browser: Browser, path: Path) -> None:
    page = await browser.new_page(viewport={"width": 960, "height": 840}, color_scheme="light", locale="en")
    await page.goto(gateway.url)
    await page.locator("#message").fill(QUESTION)
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_attribute("data-state", "done", timeout=30_000)
    await _shoot(page, path)


async def _monitor(gateway: Gateway, browser: Browser, path: Path) -> None:
    page = await browser.new_page(viewport={"width": 1240, "height": 1060}, color_scheme="light", locale="en")
    await page.goto(gateway.admin)
    async with aiohttp.ClientSession(gateway.url) as session, AsyncExitStack() as running:
        for message in RUNNING:
            await running.enter_async_context(session.get("/api/chat", params={"message": message}))
        async with session.get("/api/chat", params={"message": FAILING}) as failed:
            await failed.read()
        await expect(page.locator("main")).to_contain_text("upstream_error", timeout=30_000)
        await page.wait_for_timeout(3_000)  # the curves begin
        await _shoot(page, path)


async def _shoot(page: Page, path: Path) -> None:
    image = await page.screenshot(path=path)
    await page.close()
    assert len(image) <= MAX_BYTES, f"{path.name} has {len(image)} bytes, and {MAX_BYTES} are allowed"


async def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    async with chromium() as browser:
        await take(folder, browser)


if __name__ == "__main__":
    asyncio.run(main())
