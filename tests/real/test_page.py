"""The chat page in Chromium, with the stand-in model behind it: what somebody sees who opens it for the first time."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.kit.program import Gateway
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Exchange,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import Cable, browser_fixture, complaints_fixtures, visitor

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "key-of-the-visitor"
SLOWLY = "/slow /history"
"""An answer that takes four seconds: time to stop it."""
LETTERS = "/history a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9"
"""Sixty tokens and two seconds: time to reload and to drop, and then the rest is waited for."""

WATCH = """
window.lengths = new Set();
window.thinking = [];
const note = () => {
  const answer = document.querySelector(".answer");
  const length = answer?.querySelector(".text").textContent.length;
  lengths.add(length);
  if (answer?.querySelector(".thinking div").textContent) thinking.push([length > 0, answer.firstElementChild.open]);
};
const all = {subtree: true, childList: true, characterData: true};
new MutationObserver(note).observe(document.querySelector("main"), all);
"""

REACH = """
state => new Promise((resolve) => {
  const status = document.querySelector("#status");
  const look = () => status.dataset.state === state && resolve();
  new MutationObserver(look).observe(status, {attributes: true});
  look();
})
"""


def config(**auth: Any) -> dict[str, Any]:
    chat = {"path": "/api/chat", "api": "chat", "upstream": "main", "model": "demo", "system": "You are helpful."}
    once = {"retries": 0, "breaker": {"failures": 1000}}
    return {
        "auth": auth,
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"retry": "100ms", "batch": {"interval": "10ms"}},
        "timeouts": {"idle": "1s"},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": "demo:"}]} | once},
        "routes": [chat | {"history": {"turns": 20, "ttl": "1h"}}],
    }


browser = browser_fixture()
heard, _nobody_complains = complaints_fixtures()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with Gateway(config(anonymous=True), tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def context(browser: Browser, heard: list[str]) -> AsyncIterator[BrowserContext]:
    """One for all tests: the page keeps everything in its tab."""
    async with visitor(browser, heard, locale="en-US", viewport={"width": 1000, "height": 700}) as context:
        yield context
    assert heard == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(context: BrowserContext, gateway: Gateway) -> AsyncIterator[Page]:
    async with await context.new_page() as page:
        await page.goto(gateway.url)
        yield page


async def ask(page: Page, message: str) -> None:
    await page.locator("#message").fill(message)
    await page.keyboard.press("Enter")


async def reach(page: Page, state: str) -> None:
    """Returns when the page says that it is in this state, at once: `expect` looks once a second only."""
    try:
        await asyncio.wait_for(page.evaluate(REACH, state), 10)
    except TimeoutError:
        await expect(page.locator("#status")).to_have_attribute("data-state", state, timeout=100)


async def grow(page: Page, characters: int) -> str:
    """The last answer as soon as it has so many characters."""
    text = page.locator(".answer .text").last
    await expect(text).to_contain_text(re.compile(f".{{{characters}}}", re.DOTALL))
    return await text.inner_text()


async def answer(page: Page) -> str:
    return await page.locator(".answer .text").last.inner_text()


async def items(page: Page) -> list[str]:
    """The list in the last answer; `/history` is answered with one of all messages."""
    return await page.locator(".answer .text").last.locator("li").all_inner_texts()


async def streams(gateway: Gateway) -> dict[str, int]:
    """Generations that ended so far, by outcome, and those that run."""
    async with await request(f"{gateway.admin}/metrics") as metrics:
        lines = re.findall(
            r'^gateway_streams_total\{.*outcome="(\w+)".*\} (\d+)', (await metrics.body()).decode(), re.M
        )
    async with await request(f"{gateway.admin}/streams") as running:
        return {outcome: int(count) for outcome, count in lines} | {"running": len(await running.json())}


def more(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {outcome: count - before.get(outcome, 0) for outcome, count in after.items() if count != before.get(outcome)}


async def test_copy_that_the_browser_denies_late_leaves_the_focus_to_who_types(page: Page) -> None:
    late = "() => new Promise((_, deny) => { window.deny = () => deny(new Error('denied')); })"
    await page.evaluate(f"() => {{ navigator.clipboard.writeText = {late}; }}")
    await ask(page, "Hello")
    await reach(page, "done")
    copied = page.get_by_role("button", name="Copy", exact=True)
    await copied.click()
    await page.locator("#message").fill("and more")
    await page.evaluate("() => deny()")
    await expect(page.locator(".copied")).to_have_count(1)
    await page.keyboard.press("Enter")
    await expect(page.locator(".question")).to_have_count(2)


async def test_visitor_asks_and_reads_the_answer_grow(page: Page) -> None:
    await page.evaluate(WATCH)
    await ask(page, "/fast Hello there")
    await reach(page, "done")
    assert (await answer(page)).startswith("You asked: “Hello there”")
    assert await page.evaluate("lengths.size") > 10
    assert await page.locator(".question p").all_inner_texts() == ["/fast Hello there"]
    assert re.fullmatch(r"[0-9.]+ s · [0-9]+ tokens · [0-9]+ tok/s", await page.locator("#figures").inner_text())


async def test_visitor_asks_in_chinese_on_a_phone(browser: Browser, heard: list[str], gateway: Gateway) -> None:
    phone = {"locale": "zh-CN", "viewport": {"width": 360, "height": 640}, "has_touch": True}
    async with visitor(browser, heard, **phone) as context:
        page = await context.new_page()
        await page.goto(gateway.url)
        assert await page.title() == "对话"
        await page.locator("#message").fill("／fast 什么是断线续传？")
        await page.get_by_role("button", name="发送").tap()
        await reach(page, "done")
        assert "你问的是：“什么是断线续传？”" in await answer(page)
        assert await page.locator(".answer").last.get_attribute("lang") == "zh-CN"
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await expect(page.locator("#message")).to_be_in_viewport(ratio=1)
        await expect(page.locator("#send")).to_be_in_viewport(ratio=1)


async def test_visitor_reloads_in_mid_answer_and_gets_all_of_it_for_one_price(page: Page, gateway: Gateway) -> None:
    before = await streams(gateway)
    await ask(page, LETTERS)
    for characters in (10, 40):
        await grow(page, characters)
        await page.reload()
    await reach(page, "done")
    assert await items(page) == ["system: You are helpful.", f"user: {LETTERS}"]
    assert (await answer(page)).count("Messages I was sent: 2") == 1
    assert more(before, await streams(gateway)) == {"completed": 1}


async def test_visitor_who_reloads_before_anything_came_is_asked_to_ask_again(page: Page, gateway: Gateway) -> None:
    before = await streams(gateway)
    await ask(page, "/fast /history")
    await page.reload()
    await reach(page, "error")
    await expect(page.locator(".note").last).to_contain_text("left before the answer began")
    await page.get_by_role("button", name="Try again").click()
    await reach(page, "done")
    assert (await streams(gateway))["completed"] - before.get("completed", 0) <= 2


async def test_visitor_loses_the_connection_and_misses_nothing(context: BrowserContext, gateway: Gateway) -> None:
    before = await streams(gateway)
    async with Cable(int(gateway.url.rsplit(":", 1)[1])) as cable:
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{cable.port}")
        await ask(page, LETTERS)
        await grow(page, 10)
        await cable.pull()
        await reach(page, "reconnecting")
        await cable.plug()
        await reach(page, "done")
        assert (await items(page))[-1] == f"user: {LETTERS}"
    assert more(before, await streams(gateway)) == {"completed": 1}


@pytest.mark.parametrize("how", ["button", "escape"])
async def test_visitor_stops_the_answer_and_the_model_with_it(page: Page, gateway: Gateway, how: str) -> None:
    before = await streams(gateway)
    await ask(page, SLOWLY)
    await grow(page, 10)
    await (page.get_by_role("button", name="Stop").click() if how == "button" else page.keyboard.press("Escape"))
    await reach(page, "stopped")
    assert more(before, await streams(gateway)) == {"stopped": 1}
    await expect(page.locator(".note").last).to_contain_text("Stopped")
    assert len(await items(page)) < 2


async def test_visitor_starts_a_new_chat_in_mid_answer(page: Page, gateway: Gateway) -> None:
    before = await streams(gateway)
    await ask(page, SLOWLY)
    await grow(page, 10)
    await page.get_by_role("button", name="New chat").click()
    await expect(page.locator("article")).to_have_count(0)
    await reach(page, "idle")
    await gateway.logged("stream_end", outcome="stopped")
    await ask(page, "/fast /history")
    await reach(page, "done")
    assert (await items(page))[1] == "user: /fast /history"
    assert more(before, await streams(gateway)) == {"stopped": 1, "completed": 1}


@pytest.mark.parametrize("message", ["/cut /fast", "/stall /fast"])
async def test_visitor_is_told_what_went_wrong(page: Page, message: str) -> None:
    await ask(page, message)
    await reach(page, "error")
    await expect(page.locator(".note span").last).to_have_text("The model broke off in the middle.")
    await expect(page.locator("#state")).to_have_text("Failed")


async def test_visitor_sees_the_page_retry_twice_and_give_up(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.extend([request.url] if "/api/chat" in request.url else []))
    await page.clock.install()
    await ask(page, "/error")
    for attempts in (1, 2):
        await expect(page.locator("#figures")).to_have_text(re.compile(r"^in [1-4] s$"))
        await expect(page.locator("#state")).to_have_text("The model service is in trouble. Retrying…")
        assert len(asked) == attempts
        async with page.expect_response("**/api/chat"):
            await page.clock.fast_forward(4000)
    await reach(page, "error")
    await expect(page.locator(".note span").last).to_have_text("The model service is in trouble.")
    await expect(page.locator("#state")).to_have_text("Failed")
    assert len(asked) == 3


async def test_visitor_tries_again_in_the_same_place(page: Page) -> None:
    await ask(page, "/cut /fast /history")
    await reach(page, "error")
    await page.get_by_role("button", name="Try again").click()
    await reach(page, "connecting")
    await reach(page, "error")
    assert await page.locator(".question p").all_inner_texts() == ["/cut /fast /history"]


async def test_visitor_is_told_how_long_to_wait_and_may_give_up(page: Page) -> None:
    await ask(page, "/busy")
    await reach(page, "waiting")
    await expect(page.locator("#state")).to_have_text("Too many requests. Retrying…")
    await expect(page.locator("#figures")).to_have_text(re.compile(r"^in [1-4] s$"))
    await page.get_by_role("button", name="Stop").click()
    await reach(page, "stopped")


async def test_visitor_sees_reasoning_until_the_answer_and_tool_calls(page: Page) -> None:
    await page.evaluate(WATCH)
    await ask(page, "/think /tool")
    await reach(page, "done")
    seen = await page.evaluate("thinking")
    assert {tuple(pair) for pair in seen} == {(False, True), (True, False)}
    await page.get_by_text("Thinking", exact=True).click()
    await expect(page.locator(".thinking div")).to_contain_text(re.compile(r".{20}"))
    await expect(page.locator(".tools li")).to_have_text(re.compile(r"^get_weather\(\{.+\}\)$"))


async def test_visitor_closes_the_reasoning_and_it_stays_closed(page: Page) -> None:
    thoughts = page.locator(".thinking div")
    await ask(page, "/think /slow")
    await expect(thoughts).to_be_visible()
    await expect(page.locator("#state")).to_have_text("Thinking…")
    await page.get_by_text("Thinking", exact=True).click()
    length = len(await thoughts.text_content() or "")
    await expect(thoughts).to_have_text(re.compile(f"^.{{{length + 1}}}"))
    await expect(thoughts).to_be_hidden()
    await page.keyboard.press("Escape")
    await reach(page, "stopped")


async def test_visitor_goes_on_with_the_conversation_after_a_reload(page: Page) -> None:
    await ask(page, "/fast /history my name is Li")
    await reach(page, "done")
    await page.reload()
    await expect(page.locator(".question")).to_have_count(1)
    await ask(page, "/fast /history")
    await reach(page, "done")
    assert (await items(page))[1] == "user: /fast /history my name is Li"


async def test_visitor_goes_back_to_an_earlier_chat(page: Page) -> None:
    await ask(page, "/fast /history the first chat")
    await reach(page, "done")
    await page.keyboard.press("Control+k")
    await expect(page.locator("article")).to_have_count(0)
    await ask(page, "/fast /history the second chat")
    await reach(page, "done")
    await page.locator("#list").get_by_role("button", name="the first chat").first.click()
    await expect(page.locator(".question p")).to_have_text("/fast /history the first chat")
    await expect(page.locator("#title")).to_have_text("/fast /history the first chat")
    await ask(page, "/fast /history")
    await reach(page, "done")
    assert (await items(page))[1] == "user: /fast /history the first chat"


async def test_answer_goes_on_while_another_chat_is_looked_at(page: Page, gateway: Gateway) -> None:
    await ask(page, "/fast the other chat")
    await reach(page, "done")
    await page.keyboard.press("Control+k")
    before = await streams(gateway)
    await ask(page, LETTERS)
    await grow(page, 10)
    await page.locator("#list").get_by_role("button", name="the other chat").first.click()
    await reach(page, "idle")
    await expect(page.locator("#list .running")).to_have_count(1)
    await page.locator("#list .running .open").click()
    await reach(page, "done")
    assert (await items(page))[1] == f"user: {LETTERS}"
    assert more(before, await streams(gateway)) == {"completed": 1}


async def test_visitor_renames_and_deletes_a_chat(page: Page) -> None:
    await ask(page, "/fast a chat to be deleted")
    await reach(page, "done")
    chat = page.locator("#list li").first
    await chat.hover()
    await chat.get_by_role("button", name="Rename").click()
    await chat.get_by_role("textbox").fill("改过的名字")
    await page.keyboard.press("Enter")
    await expect(page.locator("#title")).to_have_text("改过的名字")
    before = await page.locator("#list li").count()
    await chat.hover()
    await chat.get_by_role("button", name="Delete").click()
    await chat.get_by_role("button", name="Delete?").click()
    await expect(page.locator("#list li")).to_have_count(before - 1)
    await expect(page.locator("article")).to_have_count(0)


async def test_second_tab_shows_the_answer_grow_and_shares_its_connection(
    page: Page, context: BrowserContext, gateway: Gateway
) -> None:
    before = await streams(gateway)
    await ask(page, "/slow /history a b c")
    await grow(page, 10)
    async with await context.new_page() as other:
        await other.goto(gateway.url)
        await other.locator("#list .open").first.click()
        await grow(other, 15)
        async with await request(f"{gateway.admin}/streams") as running:
            assert [row["readers"] for row in await running.json()] == [1]
        await page.close()
        await reach(other, "done")
        assert (await items(other))[1] == "user: /slow /history a b c"
    assert more(before, await streams(gateway)) == {"completed": 1}


async def test_visitor_has_an_answer_made_anew_and_edits_the_question(page: Page) -> None:
    await ask(page, "/fast /history one")
    await reach(page, "done")
    await page.get_by_role("button", name="Regenerate").click()
    await reach(page, "connecting")
    await reach(page, "done")
    assert await items(page) == ["system: You are helpful.", "user: /fast /history one"]
    await page.locator(".question").hover()
    await page.get_by_role("button", name="Edit").click()
    await page.keyboard.type(" two")
    await page.keyboard.press("Enter")
    await reach(page, "done")
    assert await page.locator(".question p").all_inner_texts() == ["/fast /history one two"]
    assert await items(page) == ["system: You are helpful.", "user: /fast /history one two"]


async def test_visitor_writes_chinese_and_enter_chooses_a_word(page: Page, context: BrowserContext) -> None:
    await page.locator("#message").focus()
    session = await context.new_cdp_session(page)
    await session.send("Input.imeSetComposition", {"text": "ni", "selectionStart": 2, "selectionEnd": 2})
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    await session.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    await expect(page.locator("article")).to_have_count(0)
    await session.send("Input.insertText", {"text": "你好 /fast"})
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.press("Enter")
    await expect(page.locator(".question p")).to_have_text("你好 /fast")
    await reach(page, "done")


async def test_visitor_chooses_the_colours(page: Page) -> None:
    await page.emulate_media(color_scheme="dark")
    look = "getComputedStyle(document.body).backgroundColor"
    dark = await page.evaluate(look)
    await page.get_by_role("button", name="Colours: as the system").click()
    light = await page.evaluate(look)
    assert light != dark
    await page.reload()
    assert await page.evaluate(look) == light
    for name in ("Colours: light", "Colours: dark"):
        await page.get_by_role("button", name=name).click()
    assert await page.evaluate(look) == dark


async def test_listener_hears_whole_blocks_once(page: Page) -> None:
    await page.evaluate(
        """() => {
          window.said = [];
          const hear = ({addedNodes}) => addedNodes.forEach((node) => said.push(node.textContent));
          const note = (records) => records.forEach(hear);
          new MutationObserver(note).observe(document.querySelector("#voice"), {childList: true});
        }"""
    )
    await ask(page, "/fast hello")
    await reach(page, "done")
    said = await page.evaluate("said")
    assert said[0] == "You asked: “hello”"
    assert len(said) == await page.locator(".answer .text > *").count() == len(set(said))
    assert await page.locator("#voice").get_attribute("aria-live") == "polite"


async def test_visitor_is_told_that_there_is_no_network(browser: Browser, heard: list[str], gateway: Gateway) -> None:
    async with Cable(int(gateway.url.rsplit(":", 1)[1])) as cable, visitor(browser, heard, locale="en-US") as context:
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{cable.port}")
        await ask(page, LETTERS)
        await grow(page, 10)
        await context.set_offline(True)
        cable.cut()
        await reach(page, "offline")
        await expect(page.locator("#state")).to_have_text("Offline. It goes on as soon as there is a network.")
        await context.set_offline(False)
        await reach(page, "done")
        assert (await items(page))[1] == f"user: {LETTERS}"


async def test_visitor_opens_the_list_of_chats_on_a_phone(browser: Browser, heard: list[str], gateway: Gateway) -> None:
    async with visitor(browser, heard, locale="en-US", viewport={"width": 360, "height": 640}) as context:
        page = await context.new_page()
        await page.goto(gateway.url)
        await ask(page, "/fast on a phone")
        await reach(page, "done")
        await expect(page.locator("#fresh")).to_be_hidden()
        await page.get_by_role("button", name="Chats").click()
        await page.locator("#list").get_by_role("button", name="on a phone").click()
        await expect(page.locator("#fresh")).to_be_hidden()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_page_keeps_a_bounded_number_of_chats(browser: Browser, heard: list[str], gateway: Gateway) -> None:
    async with visitor(browser, heard) as context:
        page = await context.new_page()
        await page.goto(gateway.url)
        kept = await page.evaluate(
            """async () => {
              const {save, newChat} = await import("/page/chats.js");
              const turns = (begun) => Array(150).fill({question: "长".repeat(300), begun});
              for (let at = 0; at < 120; at += 1) save({...newChat(), turns: turns(at)});
              const keys = Object.keys(localStorage).filter((key) => key.startsWith("gateway-chat:"));
              return [keys.length, JSON.parse(localStorage.getItem(keys[0])).length];
            }"""
        )
        assert kept == [50, 100]


async def test_page_shows_markup_as_text(page: Page) -> None:
    markup = "<img src=x onerror='throw 1'><b>bold</b> ```\n<i>code</i>"
    await ask(page, f"{markup} /fast")
    await reach(page, "done")
    assert "<b>bold</b>" in await answer(page)
    assert await page.locator("main :is(img, b, i)").count() == 0


async def test_page_sends_a_message_that_no_url_can_hold(page: Page) -> None:
    await ask(page, "/fast /history " + "很长的问题" * 2000)
    await reach(page, "done")
    assert "很长的问题" in await answer(page)


@pytest_asyncio.fixture(loop_scope="module")
async def closed(gateway: Gateway) -> AsyncIterator[Gateway]:
    """The gateway while it asks for a key."""
    await gateway.reload(config(keys=[{"id": "visitor", "key": KEY}]))
    yield gateway
    await gateway.reload(config(anonymous=True))


async def test_visitor_without_a_key_is_asked_for_one(page: Page, closed: Gateway) -> None:
    await ask(page, "/fast hello")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.get_by_role("textbox", name="Key").fill("a-key-that-is-wrong")
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.get_by_role("dialog")).to_contain_text("not accepted")
    await page.get_by_role("textbox", name="Key").fill(KEY)
    await page.keyboard.press("Enter")
    await reach(page, "done")
    assert "You asked: “hello”" in await answer(page)
    assert KEY not in closed.output()


def play(exchange: Exchange) -> Sequence[Step]:
    """An answer that ends for the reason that it is asked for; any other question is refused in a provider's words."""
    question = exchange.json()["messages"][-1]["content"]
    if question in ("length", "content_filter"):
        end = [chunk(openai_chunk({}, question)), chunk(b"data: [DONE]\n\n"), LAST_CHUNK]
        return [sse_head(), openai_delta("Half a poem"), *end]
    if question == "cut":
        return [sse_head(), openai_delta("Half a poem"), Reset()]
    return [response(404, '{"error":{"message":"The model `demo` does not exist","code":"model_not_found"}}')]


@pytest_asyncio.fixture(loop_scope="module")
async def scripted(gateway: Gateway) -> AsyncIterator[Gateway]:
    """The gateway while a provider plays behind it."""
    async with ScriptedUpstream(play) as upstream:
        changed = config(anonymous=True)
        changed["upstreams"]["main"]["targets"] = [{"url": upstream.url}]
        await gateway.reload(changed)
        yield gateway
        await gateway.reload(config(anonymous=True))


CUT = {
    "length": ("The answer was cut off by the length limit.", "Cut off by the length limit"),
    "content_filter": ("The answer was cut off by the provider's content filter.", "Cut off by the content filter"),
}


@pytest.mark.parametrize("reason", CUT)
async def test_visitor_is_told_that_the_answer_was_cut_off(page: Page, scripted: Gateway, reason: str) -> None:
    note, status = CUT[reason]
    await ask(page, reason)
    await reach(page, "done")
    await expect(page.locator("#state")).to_have_text(status)
    await expect(page.locator(".note span").last).to_have_text(note)
    await page.reload()
    await expect(page.locator(".note span").last).to_have_text(note)
    await expect(page.locator("#state")).to_have_text("Ready")
    await page.get_by_role("button", name="New chat").click()
    await page.locator("#list .open").first.click()
    await expect(page.locator(".note span").last).to_have_text(note)


async def test_visitor_is_told_in_chinese_that_the_answer_was_cut_off(
    browser: Browser, heard: list[str], scripted: Gateway
) -> None:
    async with visitor(browser, heard, locale="zh-CN") as context:
        page = await context.new_page()
        await page.goto(scripted.url)
        await ask(page, "length")
        await expect(page.locator("#state")).to_have_text("已达长度上限")
        await expect(page.locator(".note span").last).to_have_text("回答达到长度上限，被截断了。")


@pytest.mark.parametrize(("question", "code"), [("hello", "model_not_found"), ("cut", "upstream_cut")])
async def test_who_runs_the_gateway_is_shown_the_details_of_an_error(
    page: Page, scripted: Gateway, question: str, code: str
) -> None:
    await ask(page, question)
    await reach(page, "error")
    details = page.locator(".why").last
    await expect(details.locator(".whyCode")).to_have_text(code)
    await expect(details.locator(".whyUpstream")).to_contain_text("main · 127.0.0.1:")
    await expect(details.locator(".whyUrl")).to_contain_text("/chat/completions")
    request_id = await details.locator(".whyRequest").inner_text()
    await scripted.logged("stream_failed", request_id=request_id)
    if question == "hello":
        await expect(details.locator(".whyStatus")).to_have_text("404")
        await expect(details.locator(".whySentence")).to_have_text("The model `demo` does not exist")
        await expect(details.locator(".whyHint")).to_be_visible()
    await expect(page.locator(".note span").last).not_to_contain_text("Tell the person")
    await page.reload()
    await expect(page.locator(".why .whyCode")).to_have_text(code)


async def test_visitor_behind_a_proxy_is_shown_no_details(
    browser: Browser, heard: list[str], scripted: Gateway
) -> None:
    headers = {"X-Forwarded-For": "192.0.2.1"}
    async with visitor(browser, heard, locale="en-US", extra_http_headers=headers) as context:
        page = await context.new_page()
        await page.goto(scripted.url)
        await ask(page, "hello")
        await reach(page, "error")
        await expect(page.locator(".note span").last).to_contain_text("Tell the person who runs the gateway.")
        await expect(page.locator(".why")).to_be_hidden()


async def test_visitor_saves_a_chat_as_a_file(page: Page) -> None:
    await ask(page, "Keep this /fast")
    await reach(page, "done")
    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Save this chat").click()
    saved = await saving.value
    text = (await saved.path()).read_text(encoding="utf-8")
    assert (saved.suggested_filename, text[:23]) == ("Keep this _fast.md", "# Keep this /fast\n\n## Q")
    assert "You asked: “Keep this”" in text
