"""A page of somebody else in a real browser, while an anonymous gateway listens on the same machine: H7."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.faults.stage import Stage
from tests.kit.program import find_program
from tests.kit.upstream import ScriptedUpstream, openai_answer, response
from tests.real.browsing import CHROMIUM_FLAGS

pytestmark = pytest.mark.asyncio(loop_scope="module")

REBOUND = "evil.example"
BLANK = response(200, "<!doctype html><title>x</title>", "text/html")

ATTACK = """async (url) => {
  const chat = `${url}/chat/openai`, asked = `${chat}?message=hi`;
  const settled = (wait) => new Promise((done) => { wait(done); setTimeout(() => done("slow"), 3000); });
  const body = JSON.stringify({message: "hi"});
  const tried = [
    fetch(asked, {mode: "no-cors"}).then((a) => a.status, () => "failed"),
    fetch(chat, {method: "POST", mode: "no-cors", body}).then((a) => a.status, () => "failed"),
    fetch(chat, {method: "POST", body}).then((a) => a.text(), () => "failed"),
    settled((done) => { const i = new Image(); i.onload = i.onerror = () => done("over"); i.src = asked; }),
    settled((done) => {
      const s = document.createElement("script");
      s.onload = s.onerror = () => done("over"); s.src = asked; document.head.append(s);
    }),
    settled((done) => {
      const source = new EventSource(asked);
      source.onmessage = done; source.onerror = () => { source.close(); done("no"); };
    }),
    settled((done) => {
      const socket = new WebSocket(asked.replace("http", "ws"));
      socket.onopen = socket.onerror = () => done("no");
    }),
    settled((done) => {
      const frame = document.createElement("iframe"); frame.name = "f"; document.body.append(frame);
      const form = document.createElement("form");
      Object.assign(form, {action: chat, method: "post", target: "f"});
      form.innerHTML = '<input name="message" value="hi">';
      document.body.append(form); frame.onload = () => done("over"); form.submit();
    }),
  ];
  return Promise.all(tried);
}"""

REBINDING = """async () => {
  const of = async (...asked) => (await fetch(...asked)).status;
  const headers = {"User-Agent": "curl/8", "Accept-Language": ""};
  const post = {method: "POST", body: JSON.stringify({message: "hi"}), headers};
  return [await of("/"), await of("/chat/openai?message=hi", {headers}), await of("/chat/openai", post)];
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with Stage.opened(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, for which a foreign name leads to this machine."""
    path = find_program("chromium-headless-shell", "chromium-headless-shell fonts-noto-cjk")
    flags = [*CHROMIUM_FLAGS, f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            await browser.close()


async def ran(browser: Browser, page_url: str, script: str, url: str = "") -> Any:
    """What a script gives on a page."""
    page = await browser.new_page()
    try:
        await page.goto(page_url)
        async with asyncio.timeout(20):
            return await page.evaluate(script, url)
    finally:
        await page.close()


@pytest.mark.parametrize("name", ["127.0.0.1", REBOUND])
async def test_foreign_page_starts_and_reads_nothing(stage: Stage, browser: Browser, name: str) -> None:
    """H7: a page on another port of this machine, and one of another site."""
    stage.plays(openai_answer("Hi"))
    before = len(stage.gateway.log_lines("request", status=403))
    async with ScriptedUpstream([BLANK]) as foreign:
        results = await ran(browser, f"http://{name}:{foreign.port}/", ATTACK, stage.gateway.url)
    assert stage.upstream.exchanges == []
    async with asyncio.timeout(10):
        while len(stage.gateway.log_lines("request", status=403)) - before < len(results):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the log comes through a pipe
    assert len(stage.gateway.log_lines("request", status=403)) - before == len(results), results
    assert not any("Hi" in str(result) for result in results)


async def test_page_under_a_rebound_name_starts_and_reads_nothing(stage: Stage, browser: Browser) -> None:
    """H7: the page was loaded from elsewhere; by now its own name leads to the gateway."""
    stage.plays(openai_answer("Hi"))
    port = stage.gateway.url.rsplit(":", 1)[1]
    assert await ran(browser, f"http://{REBOUND}:{port}/nowhere", REBINDING) == [421, 421, 421]
    assert stage.upstream.exchanges == []


async def test_own_page_is_served(stage: Stage, browser: Browser) -> None:
    """H7: by address and as localhost; what the user types in the address bar, too."""
    stage.plays(openai_answer("Hi"))
    port = stage.gateway.url.rsplit(":", 1)[1]
    for name in ("127.0.0.1", "localhost"):
        statuses = await ran(browser, f"http://{name}:{port}/chat/openai?message=hi", REBINDING)
        assert statuses == [404, 200, 200]  # the stage has no chat page
