"""Scripts in documents, in Chromium: those that call `finish()` show the whole answer, and then do so.

A script runs as a module on a page of the gateway's origin, where `show(text)`, `clear()`, `finish()` and
`fail(message)` are what a page would do with the answer, and `credential()` is what it sends: nothing, or in one test
tokens that expire. The gateway has the configuration that commands at this place would get.
"""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.docs.conftest import Serve, here
from tests.docs.markdown import Block, blocks
from tests.identity.tokens import AUDIENCE, ISSUER, SECRET, token
from tests.kit.program import Gateway
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Pause,
    ScriptedUpstream,
    Step,
    openai_delta,
    sse_head,
)
from tests.real.browsing import chromium
from tests.web.stage import setting

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


async def test_script_renews_a_token_that_expires(browser: Browser, tmp_path: Path) -> None:
    """Its first token expires in mid-answer; each `credential()` is a real one that lives a second longer."""
    [block] = [block for block in SCRIPTS if "credential()" in block.text]
    pieces = [str(number) for number in range(10)]
    script: list[Step] = [sse_head(), *(step for piece in pieces for step in (openai_delta(piece), Pause(0.5)))]
    script += [OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
    entry = {"issuer": ISSUER, "audience": AUDIENCE, "secret": SECRET, "algorithms": ["HS256"], "leeway": "0s"}
    async with ScriptedUpstream(script) as upstream:
        config = setting(upstream.url, [{"path": "/api/chat"}], auth={"jwt": [entry]})
        async with Gateway(config, tmp_path) as gateway, await browser.new_page() as page:
            await page.goto(f"{gateway.url}/nothing-here")
            begin = time.time()
            tokens = [token(exp=begin + 3.5 + number, iat=None) for number in range(30)]
            page_with_tokens = PAGE.replace("({})", f"({{token: {json.dumps(tokens)}[window.used++]}})")
            content = f"window.used = 0; {page_with_tokens}{here(block.text, gateway)}"
            await page.add_script_tag(content=content, type="module")
            await page.wait_for_function("window.over", timeout=20_000)
            assert await page.evaluate("[over, shown]") == ["finished", "".join(pieces)]
            assert await page.evaluate("used") > 2
            assert time.time() > begin + 3.5
        assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
async def test_script_shows_the_whole_answer(block: Block, serve: Serve, browser: Browser) -> None:
    gateway = await serve(block)
    async with await browser.new_page() as page:
        await page.goto(f"{gateway.url}/nothing-here")
        await page.add_script_tag(content=PAGE + here(block.text, gateway), type="module")
        await page.wait_for_function("window.over", timeout=10_000)
        assert await page.evaluate("over") == "finished"
        assert (await page.evaluate("shown")).startswith(("You asked: “What is SSE?”", "你问的是：“什么是 SSE？”"))
