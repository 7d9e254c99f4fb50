"""Scripts in documents, in Chromium: those that call `finish()` show the whole answer, and then do so.

A script runs as a module on a page of the gateway's origin, where `show(text)`, `clear()`, `finish()` and
`fail(message)` are what a page would do with the answer, and `credential()` is what it sends: nothing. The gateway has
the configuration that commands at this place would get.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.docs.conftest import Serve, here
from tests.docs.markdown import Block, blocks
from tests.real.browsing import chromium

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPTS = [block for block in blocks("js") if "finish()" in block.text]
PAGE = """
window.shown = "";
window.over = null;
const show = (text) => (shown += text);
const clear = () => (shown = "");
const finish = () => (over = "finished");
const fail = (message) => (over = message);
const credential = () => ({});
addEventListener("error", (event) => fail(event.message));
addEventListener("unhandledrejection", (event) => fail(String(event.reason)));
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
async def test_script_shows_the_whole_answer(block: Block, serve: Serve, browser: Browser) -> None:
    gateway = await serve(block)
    async with await browser.new_page() as page:
        await page.goto(f"{gateway.url}/nothing-here")
        await page.add_script_tag(content=PAGE + here(block.text, gateway), type="module")
        await page.wait_for_function("window.over", timeout=10_000)
        assert await page.evaluate("over") == "finished"
        assert (await page.evaluate("shown")).startswith(("You asked: “What is SSE?”", "你问的是：“什么是 SSE？”"))
