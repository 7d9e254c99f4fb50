"""client.js and the pages where a browser denies them an API: the answer is whole, the requests are few, nothing spins.

Each API is denied in each way in which browsers do so, before any script of a page runs, and every use of what is left
of it is counted. One case after the other in one browser, with one gateway.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page

from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Pause,
    Step,
    WaitFor,
    openai_delta,
    sse_head,
)
from tests.real.browsing import Cable, browser_fixture
from tests.web.stage import Stage, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

browser = browser_fixture()
TEXT = "".join(chr(0x4E00 + number) for number in range(40))
MAX_CALLS = 30
"""Uses of a denied API in one answer, at most; one that asks again at once makes thousands in a second."""

DENY = """
window.calls = 0;
window.requests = 0;
const denied = () => { calls += 1; throw new DOMException("denied", "SecurityError"); };
const refused = async () => denied();
const never = () => { calls += 1; return new Promise(() => {}); };
const missing = (owner, name) => Object.defineProperty(owner, name, {value: undefined, configurable: true});
const nothing = (owner, name) => Object.defineProperty(owner, name, {value: null, configurable: true});
const throws = (owner, name) => Object.defineProperty(owner, name, {get: denied, configurable: true});
const call = (owner, name, value) => Object.defineProperty(owner, name, {value, configurable: true, writable: true});
for (const name of ["fetch", "EventSource"]) {
  const real = window[name];
  window[name] = new Proxy(real, {
    construct: (its, values) => { requests += 1; return new its(...values); },
    apply: (its, self, values) => { requests += 1; return Reflect.apply(its, self, values); },
  });
}
"""
LOCKS = "LockManager.prototype, 'request'"
CASES = {
    "locks missing": "missing(Navigator.prototype, 'locks')",
    "locks throw when named": "throws(Navigator.prototype, 'locks')",
    "locks throw": f"call({LOCKS}, denied)",
    "locks reject": f"call({LOCKS}, refused)",
    "locks reject as if stolen": f"call({LOCKS}, "
    "async () => { calls += 1; throw new DOMException('', 'AbortError'); })",
    "locks never settle": f"call({LOCKS}, never)",
    "locks give nothing": f"call({LOCKS}, () => {{ calls += 1; }})",
    "locks are lost at once": f"call({LOCKS}, async (name, options, hold) => "
    "{ calls += 1; hold({name}); throw new DOMException('', 'AbortError'); })",
    "channel missing": "missing(window, 'BroadcastChannel')",
    "channel throws when named": "throws(window, 'BroadcastChannel')",
    "channel throws": "call(window, 'BroadcastChannel', denied)",
    "channel sends nothing": "call(BroadcastChannel.prototype, 'postMessage', denied)",
    "storages null": "for (const name of ['localStorage', 'sessionStorage']) nothing(window, name)",
    "storages throw when named": "for (const name of ['localStorage', 'sessionStorage']) throws(window, name)",
    "storages throw": "for (const name of ['getItem', 'setItem', 'removeItem']) call(Storage.prototype, name, denied)",
    "storages are full": "call(Storage.prototype, 'setItem', "
    "() => { calls += 1; throw new DOMException('', 'QuotaExceededError'); })",
    "EventSource missing": "missing(window, 'EventSource')",
    "EventSource throws when named": "throws(window, 'EventSource')",
    "EventSource throws": "call(window, 'EventSource', denied)",
    "EventSource is shut": "call(window, 'EventSource', class extends EventTarget {"
    "  static CLOSED = 2; readyState = 2; close() {}"
    "  constructor() { super(); calls += 1; setTimeout(() => this.dispatchEvent(new Event('error'))); }"
    "})",
    "body null": "nothing(Response.prototype, 'body')",
    "body throws": "throws(Response.prototype, 'body')",
    "readers missing": "missing(ReadableStream.prototype, 'getReader')",
    "readers throw": "call(ReadableStream.prototype, 'getReader', denied)",
    "ReadableStream missing": "missing(window, 'ReadableStream')",
    "AbortController missing": "missing(window, 'AbortController'); missing(AbortSignal, 'timeout')",
    "AbortController throws": "call(window, 'AbortController', denied)",
    "TextDecoder missing": "missing(window, 'TextDecoder'); missing(window, 'TextDecoderStream')",
    "crypto missing": "missing(window, 'crypto')",
    "crypto throws": "call(Crypto.prototype, 'getRandomValues', denied); missing(Crypto.prototype, 'randomUUID')",
    "Segmenter missing": "missing(Intl, 'Segmenter')",
    "structuredClone missing": "missing(window, 'structuredClone'); missing(window, 'reportError')",
    "visibility throws": "throws(Document.prototype, 'hidden'); throws(Document.prototype, 'visibilityState')",
    "matchMedia missing": "missing(window, 'matchMedia')",
    "frames never come": "call(window, 'requestAnimationFrame', () => { calls += 1; return 1; })",
    "always offline": "Object.defineProperty(Navigator.prototype, 'onLine', {value: false})",
    "clipboard missing": "missing(Navigator.prototype, 'clipboard')",
}
IN_ONE_PIECE = {"body", "readers", "TextDecoder"}
"""Where a text that comes by fetch comes at its end only."""
MODES = [
    (case, mode)
    for case in CASES
    for mode in ("auto", "fetch")
    if (mode == "fetch") == (case.split()[0] in IN_ONE_PIECE | {"ReadableStream", "AbortController"}) or "locks" in case
]
PAGE_CASES = [name for name in CASES if name.split()[0] in {"locks", "storages", "body", "AbortController", "crypto"}]
DENY_BY_ADDRESS = f"""{DENY}
const cases = {{{",".join(f"{json.dumps(case)}() {{ {denial} }}" for case, denial in CASES.items())}}};
cases[new URLSearchParams(location.search).get("denied")]?.();
"""
CLIENT = """
async ({url, message, mode}) => {
  const client = await import("/client.js");
  const options = {url, message, mode, storage: () => sessionStorage, onText: (text) => { window.shown = text; }};
  const begun = client.stream(options);
  window.length = () => begun.text.length;
  begun.done.then((result) => { window.result = result; });
}
"""
FOLLOW = """
async (url) => {
  const client = await import("/client.js");
  const {outcome, text} = await client.resume({url, onText: () => {}}).done;
  return [outcome, text];
}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    stream = {"heartbeat": "100ms", "retry": "100ms", "commit_after": "100ms", "merge": False}
    async with staged(tmp_path_factory.mktemp("gateway"), [{"path": "/api/chat"}], stream=stream) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cable(stage: Stage) -> AsyncIterator[Cable]:
    async with Cable(int(stage.gateway.url.rsplit(":", 1)[1])) as cable:
        yield cable


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser, cable: Cable) -> AsyncIterator[BrowserContext]:
    async with await browser.new_context(base_url=cable.url, locale="en-US") as context:
        yield context


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting(browser: Browser, cable: Cable) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page for all cases that need no more than its scripts, and what it complains of. A new page for each would cost
    more than all that happens on it."""
    async with await browser.new_context(base_url=cable.url) as context:
        page, heard = await context.new_page(), list[str]()
        page.on("pageerror", lambda error: heard.append(str(error)))
        await page.add_init_script(DENY_BY_ADDRESS)
        yield page, heard


def held(gate: asyncio.Event) -> list[Step]:
    """Half of TEXT, and the other half when the gate opens."""
    pieces = [step for one in TEXT for step in (openai_delta(one), Pause(0.002))]
    return [sse_head(), *pieces[:40], WaitFor(gate), *pieces[40:], OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


async def denied(context: BrowserContext, case: str, path: str) -> tuple[Page, list[str]]:
    """A page that is denied this, and what it complains of."""
    page = await context.new_page()
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    await page.add_init_script(DENY + CASES[case])
    await page.goto(path)
    return page, heard


async def denied_again(lasting: tuple[Page, list[str]], case: str) -> tuple[Page, list[str]]:
    """The lasting page, loaded anew and denied this, and what it complains of from now on."""
    page, heard = lasting
    await page.goto(f"/page/icon.svg?{urlencode({'denied': case})}")
    heard.clear()
    return page, heard


async def until(page: Page, condition: str, timeout: float = 15) -> None:
    """Return when a condition holds; Playwright's own wait is code from a string, which the page's policy forbids."""
    try:
        async with asyncio.timeout(timeout):
            while not await page.evaluate(f"Boolean({condition})"):  # noqa: ASYNC110 - a page has no event to wait for
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(condition) from None


async def is_idle(page: Page) -> None:
    """The denied API is not used while nothing happens."""
    before = await page.evaluate("calls")
    await asyncio.sleep(0.1)
    assert await page.evaluate("calls") - before <= 5


@pytest.mark.parametrize(("case", "mode"), MODES)
async def test_answer_is_whole_without(
    lasting: tuple[Page, list[str]], stage: Stage, cable: Cable, case: str, mode: str
) -> None:
    gate = asyncio.Event()
    question = stage.plays(held(gate))
    page, heard = await denied_again(lasting, case)
    await page.evaluate(CLIENT, {"url": "/api/chat", "message": question, "mode": mode})
    if case.split()[0] in IN_ONE_PIECE:
        await stage.exchange(question)
    else:
        await until(page, "length() === 20")
        cable.cut()
    await is_idle(page)
    gate.set()
    await until(page, "window.result")
    assert await page.evaluate("[result.outcome, result.text, shown]") == ["done", TEXT, TEXT]
    assert len(stage.asked(question)) == 1
    assert await page.evaluate("requests") <= 6
    assert await page.evaluate("calls") <= (MAX_CALLS if case != "visibility throws" else 100)
    assert heard == []


@pytest.mark.parametrize("case", [name for name in CASES if name.split()[0] in {"locks", "channel", "AbortController"}])
async def test_stream_is_followed_without(lasting: tuple[Page, list[str]], stage: Stage, case: str) -> None:
    """A tab that did not begin the answer makes a connection of its own."""
    gate = asyncio.Event()
    question = stage.plays(held(gate))
    async with await stage.get("/api/chat", question) as answer:
        page, heard = await denied_again(lasting, case)
        following = asyncio.create_task(page.evaluate(FOLLOW, f"/streams/{answer.headers['x-stream-id']}"))
        await until(page, "requests > 0")
        gate.set()
        assert await asyncio.wait_for(following, 10) == ["done", TEXT]
    assert await page.evaluate("calls") <= MAX_CALLS
    assert heard == []


@pytest.mark.parametrize("case", PAGE_CASES)
async def test_chat_page_works_without(context: BrowserContext, stage: Stage, case: str) -> None:
    """And after a reload in mid-answer, where a storage keeps the conversation."""
    gate = asyncio.Event()
    question = stage.plays(held(gate))
    page, heard = await denied(context, case, "/")
    blocked = case.startswith("storages")
    for place in ("#kept", "#promise"):
        assert ("not kept" in (await page.locator(place).text_content() or "")) == blocked
    await page.locator("#message").fill(question)
    await page.keyboard.press("Enter")
    await stage.exchange(question)
    if not blocked and not case.startswith("body"):
        await until(page, "document.querySelector('.answer .text').textContent.trim().length === 20")
        await page.reload()
    await is_idle(page)
    gate.set()
    await until(page, "document.querySelector('#status').dataset.state === 'done'")
    assert (await page.locator(".answer .text").inner_text()).strip() == TEXT
    assert len(stage.asked(question)) == 1
    assert await page.evaluate("requests") <= 6
    assert heard == []


async def test_chat_page_says_in_chinese_that_nothing_is_kept(browser: Browser, cable: Cable) -> None:
    async with await browser.new_context(base_url=cable.url, locale="zh-CN") as context:
        page, heard = await denied(context, "storages throw when named", "/")
        assert "不会保留" in await page.locator("#promise").inner_text()
    assert heard == []


@pytest.mark.parametrize("case", ["EventSource missing", "EventSource throws", "EventSource is shut", "storages throw"])
async def test_monitor_page_without(context: BrowserContext, stage: Stage, case: str) -> None:
    page, heard = await denied(context, case, f"{stage.gateway.admin}/")
    works = case.startswith("storages")
    await until(page, f"document.body.dataset.link === '{'live' if works else 'lost'}'")
    if "is shut" not in case and not works:
        assert "EventSource" in await page.locator("#notice").inner_text()
    await is_idle(page)
    assert heard == []


async def test_client_does_not_ask_at_once_however_often_the_network_comes_and_goes(
    context: BrowserContext, stage: Stage, cable: Cable
) -> None:
    gate = asyncio.Event()
    question = stage.plays(held(gate))
    page, _ = await denied(context, "structuredClone missing", "/page/icon.svg")
    await page.evaluate(CLIENT, {"url": "/api/chat", "message": question, "mode": "fetch"})
    await until(page, "length() === 20")
    flicker = "for (let n = 0; n < 50; n += 1) for (const name of ['offline', 'online']) dispatchEvent(new Event(name))"
    await page.evaluate(f"() => {{ {flicker} }}")
    await asyncio.sleep(0.2)
    assert await page.evaluate("requests") <= 3
    gate.set()
    await until(page, "window.result")
    assert json.loads(await page.evaluate("JSON.stringify(result.text)")) == TEXT
