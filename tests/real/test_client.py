"""client.js in Chromium: an answer in every mode and format, over drops, reloads, other tabs and no network at all.

A page that shows nothing imports the client from the gateway; what the client said to it is kept in `told`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Route

from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Pause,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import Cable, chromium
from tests.web.stage import Stage, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "".join(chr(0x4E00 + number) for number in range(40))
KEY = "key-of-the-page"
LIMITED = "key-of-the-limited"
SCRIPT = """
window.told = [];
window.ask = (options, start = "stream") => {
  const note = (name) => (...values) => told.push({name, values: structuredClone(values), at: performance.now()});
  const names = ["Connected", "Text", "Token", "Thinking", "Tool", "Restart", "Done", "Error", "State"];
  const heard = Object.fromEntries(names.map((name) => [`on${name}`, note(`on${name}`)]));
  window.answer = client[start]({...heard, smooth: false, ...options});
  answer?.done.then((result) => (window.result = result));
};
window.values = (name) => told.filter((one) => one.name === name).map((one) => one.values);
"""
BLANK = "<!doctype html><title>page</title>"
Open = Callable[[], Awaitable[Page]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    routes: list[dict[str, Any]] = [
        {"path": f"/{name}", "format": name} for name in ("events", "data", "typed", "openai")
    ]
    stream = {"heartbeat": "100ms", "retry": "100ms", "commit_after": "200ms", "merge": False}
    keys = [{"id": "page", "key": KEY}, {"id": "limited", "key": LIMITED, "plan": "one"}]
    auth = {"anonymous": True, "keys": keys, "tickets": {"ttl": "30s"}}
    plans = {"default": {}, "one": {"requests": "1/h"}}
    directory = tmp_path_factory.mktemp("gateway")
    async with staged(directory, routes, stream=stream, auth=auth, plans=plans) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cable(stage: Stage) -> AsyncIterator[Cable]:
    async with Cable(int(stage.gateway.url.rsplit(":", 1)[1])) as cable:
        yield cable


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def context(browser: Browser, cable: Cable) -> AsyncIterator[BrowserContext]:
    async with await browser.new_context(base_url=f"http://127.0.0.1:{cable.port}") as context:
        await context.route("**/blank", lambda route: route.fulfill(body=BLANK, content_type="text/html"))
        await context.add_init_script(SCRIPT)
        yield context


@pytest_asyncio.fixture(loop_scope="module")
async def tab(context: BrowserContext) -> AsyncIterator[Open]:
    """`await tab()` is a page that has the client."""

    async def open_tab() -> Page:
        page = await context.new_page()
        await page.goto("/blank")
        await load(page)
        return page

    yield open_tab
    for page in context.pages:
        await page.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(tab: Open) -> Page:
    return await tab()


async def load(page: Page) -> None:
    await page.evaluate("import('/client.js').then((module) => { window.client = module; })")


async def ask(page: Page, url: str, message: str, **options: Any) -> None:
    await page.evaluate("options => ask(options)", {"url": url, "message": message, **options})


async def until(page: Page, condition: str, timeout: float = 10) -> None:
    """Returns when a condition holds in the page."""
    await page.wait_for_function(condition, timeout=timeout * 1000, polling=20)


async def result(page: Page) -> Any:
    await until(page, "window.result")
    return await page.evaluate("result")


async def texts(page: Page) -> str:
    """All that onToken said, put together."""
    said: str = await page.evaluate("values('onToken').map(([piece]) => piece).join('')")
    return said


async def states(page: Page) -> list[str]:
    entered: list[str] = await page.evaluate("values('onState').map(([state]) => state)")
    return entered


def paced(*, pause: float = 0.03, middle: tuple[Step, ...] = ()) -> list[Step]:
    """TEXT, a character at a time, and what happens in its middle."""
    half, rest = (
        [step for one in part for step in (openai_delta(one), Pause(pause))] for part in (TEXT[:20], TEXT[20:])
    )
    return [sse_head(), *half, *middle, *rest, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


async def test_page_of_another_origin_imports_the_client(browser: Browser, stage: Stage) -> None:
    names = "url => import(url).then((module) => Object.keys(module).sort())"
    async with ScriptedUpstream([response(200, BLANK, "text/html")]) as pages, await browser.new_page() as page:
        await page.goto(pages.url)
        exported = await page.evaluate(names, f"{stage.gateway.url}/client.js")
    assert exported == ["EventStreamParser", "Typewriter", "resume", "stored", "stream"]


@pytest.mark.parametrize("mode", ["auto", "eventsource", "fetch"])
async def test_page_reads_an_answer(page: Page, stage: Stage, mode: str) -> None:
    await ask(page, "/events", stage.plays(openai_answer("你", "好", "👨‍👩‍👧")), mode=mode)
    end = await result(page)
    assert (end["outcome"], end["text"], end["finishReason"]) == ("done", "你好👨‍👩‍👧", "stop")
    assert await texts(page) == "你好👨‍👩‍👧"
    assert (await page.evaluate("values('onConnected')"))[0][0]["streamId"] == await page.evaluate("answer.streamId")
    assert await states(page) == ["connecting", "open", "streaming", "done"]
    assert await page.evaluate("values('onDone').length + values('onError').length") == 1


@pytest.mark.parametrize("format_", ["data", "typed", "openai"])
@pytest.mark.parametrize("mode", ["auto", "eventsource"])
async def test_page_reads_every_format_over_a_drop(
    page: Page, stage: Stage, cable: Cable, format_: str, mode: str
) -> None:
    question = stage.plays(paced(pause=0.02))
    await ask(page, f"/{format_}", question, format=format_, mode=mode)
    await until(page, "answer.text.length > 5")
    cable.cut()
    end = await result(page)
    assert (end["outcome"], end["text"]) == ("done", TEXT)
    assert await texts(page) == TEXT
    assert len(stage.asked(question)) == 1


async def test_page_reads_a_format_of_its_own(page: Page, stage: Stage) -> None:
    reader = "(_, data) => data === '[DONE]' ? [['done', {}]] : [['token', JSON.parse(data).content]]"
    question = stage.plays(openai_answer("你", "好"))
    await page.evaluate(f"message => ask({{url: '/data', message, mode: 'fetch', format: {reader}}})", question)
    assert (await result(page))["text"] == "你好"


@pytest.mark.parametrize("mode", ["auto", "eventsource", "eventsource without tickets"])
async def test_page_sends_a_credential_in_no_url(page: Page, stage: Stage, mode: str) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    mode, _, without = mode.partition(" ")
    if without:
        await page.route("**/tickets", lambda route: route.fulfill(status=404))
    question = stage.plays(openai_answer("你"))
    await ask(page, "/events", question, credential=KEY, mode=mode)
    assert (await result(page))["text"] == "你"
    assert urls
    assert not [url for url in urls if KEY in url]
    assert any("ticket=" in url for url in urls) == (mode == "eventsource" and not without)
    assert len(stage.asked(question)) == 1


async def test_page_buys_another_ticket_when_one_is_refused(page: Page, stage: Stage, cable: Cable) -> None:
    more = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("你"), WaitFor(more), *openai_answer("好")[1:]])
    asked: list[str] = []

    async def refuse_reconnect(route: Route) -> None:
        asked.append(route.request.url)
        await (route.continue_() if len(asked) == 1 else route.fulfill(status=401))

    await page.route("**/events?**", refuse_reconnect)
    bought: list[str | None] = []
    page.on("request", lambda request: bought.append(request.post_data) if "/tickets" in request.url else None)
    await ask(page, "/events", question, credential=KEY, mode="eventsource")
    await until(page, "answer.text === '你'")
    stream_id = await page.evaluate("answer.streamId")
    cable.cut()
    await until(page, "values('onState').filter(([state]) => state === 'open').length === 2")
    more.set()
    assert (await result(page))["text"] == "你好"
    assert bought == ["{}", f'{{"stream_id":"{stream_id}"}}']
    assert len(asked) == 2
    assert len(stage.asked(question)) == 1


@pytest.mark.parametrize(
    ("credential", "mode", "code", "status"),
    [
        ("guess", "fetch", "unauthorized", 401),
        ("guess", "eventsource", "unauthorized", 401),
        (LIMITED, "fetch", "rate_limited", 429),
    ],
)
async def test_page_is_told_a_refusal(
    page: Page, stage: Stage, credential: str, mode: str, code: str, status: int
) -> None:
    if credential == LIMITED:
        headers = {"Authorization": f"Bearer {LIMITED}"}
        async with await stage.get("/events", stage.plays(openai_answer("好")), headers=headers) as its_only_one:
            await its_only_one.body()
    await ask(page, "/events", stage.plays(openai_answer("你")), credential=credential, mode=mode)
    error = (await result(page))["error"]
    assert sorted(error) == ["code", "message", "retryAfter", "retryable", "status"]
    assert (error["code"], error["status"], error["retryable"]) == (code, status, status == 429)
    assert (error["retryAfter"] is not None) == (status == 429)
    assert await page.evaluate("values('onError').length") == 1


@pytest.mark.parametrize("mode", ["eventsource", "fetch"])
async def test_start_that_is_lost_is_not_sent_again(page: Page, stage: Stage, cable: Cable, mode: str) -> None:
    question = stage.plays([Pause(5)])
    await ask(page, "/events", question, mode=mode)
    await stage.exchange(question)
    await cable.pull()  # a cut alone makes Chromium send it again by itself, over a connection that it had kept
    end = await result(page)
    assert (end["error"]["code"], end["error"]["retryable"]) == ("network", True)
    assert len(stage.asked(question)) == 1
    await cable.plug()


async def test_page_follows_at_the_pace_the_server_asks_for(page: Page, stage: Stage, cable: Cable) -> None:
    question = stage.plays(paced())
    await ask(page, "/events", question, mode="fetch")
    await until(page, "answer.text.length > 5")
    await cable.pull()
    await until(page, "values('onState').filter(([state]) => state === 'reconnecting').length >= 5")
    waits = await page.evaluate("values('onState').map(([, {seconds}]) => seconds).filter(Boolean)")
    for attempt, seconds in enumerate(waits):
        assert 0.075 <= seconds <= 0.125 + 0.125 * 2**attempt
    await cable.plug()
    assert (await result(page))["text"] == await texts(page) == TEXT
    assert len(stage.asked(question)) == 1


async def test_page_waits_for_the_network(page: Page, stage: Stage, cable: Cable, context: BrowserContext) -> None:
    question = stage.plays(paced())
    await ask(page, "/events", question)
    await until(page, "answer.text.length > 5")
    await context.set_offline(True)
    cable.cut()
    await until(page, "answer.state === 'offline'")
    before = cable.connections
    await asyncio.sleep(0.5)
    assert cable.connections == before
    await context.set_offline(False)
    assert (await result(page))["text"] == await texts(page) == TEXT
    assert len(stage.asked(question)) == 1


async def reload(page: Page) -> None:
    await page.reload()
    await load(page)
    await page.evaluate("ask({storage: sessionStorage}, 'resume')")


async def test_reload_goes_on_where_it_was(page: Page, stage: Stage) -> None:
    question = stage.plays(paced())
    await page.evaluate("message => ask({url: '/events', message, storage: sessionStorage})", question)
    await until(page, "answer.text.length > 5")
    for length in (15, 25):
        await reload(page)
        await until(page, f"answer.text.length > {length}")
    end = await result(page)
    assert (end["outcome"], end["text"]) == ("done", TEXT)
    assert len(stage.asked(question)) == 1
    assert await page.evaluate("sessionStorage.length") == 0


async def test_tab_that_was_duplicated_leaves_the_answer_alone(page: Page, stage: Stage) -> None:
    judged = asyncio.Event()
    question = stage.plays(paced(middle=(WaitFor(judged),)))
    await page.evaluate("message => ask({url: '/events', message, storage: sessionStorage})", question)
    await until(page, "answer.text.length > 5 && sessionStorage.length")
    async with page.expect_popup() as popup:
        await page.evaluate("void window.open('/blank')")
    copy = await popup.value
    await load(copy)
    assert await copy.evaluate("sessionStorage.length") == 1
    await copy.evaluate("ask({storage: sessionStorage}, 'resume')")
    assert (await result(copy))["outcome"] == "closed"
    assert await copy.evaluate("sessionStorage.length") == 0
    judged.set()
    assert (await result(page))["text"] == TEXT


async def follow(page: Page, stream_id: str) -> None:
    await page.evaluate("url => ask({url}, 'resume')", f"/streams/{stream_id}")


async def readers(stage: Stage, stream_id: str) -> int:
    return next((row["readers"] for row in await stage.admin("/streams") if row["id"] == stream_id), 0)


async def test_tabs_share_one_connection_and_the_next_takes_over(page: Page, tab: Open, stage: Stage) -> None:
    resumed = asyncio.Event()
    question = stage.plays(paced(middle=(WaitFor(resumed),)))
    await ask(page, "/events", question)
    await until(page, "answer.text.length > 5")
    stream_id = await page.evaluate("answer.streamId")
    others = [await tab(), await tab()]
    for other in others:
        await follow(other, stream_id)
        await until(other, "answer.text.length === 20")
    assert await readers(stage, stream_id) == 1
    await page.evaluate("answer.close()")
    resumed.set()
    for other in others:
        assert (await result(other))["text"] == await texts(other) == TEXT
    assert (await result(page))["outcome"] == "closed"
    assert len(stage.asked(question)) == 1


async def test_tab_that_is_closed_is_replaced(page: Page, tab: Open, stage: Stage) -> None:
    await ask(page, "/events", stage.plays(paced()))
    await until(page, "answer.text.length > 5")
    other = await tab()
    await follow(other, await page.evaluate("answer.streamId"))
    await until(other, "answer.text.length > 15")
    await page.close()
    assert (await result(other))["text"] == await texts(other) == TEXT


async def test_tab_takes_the_place_of_one_that_keeps_silent(page: Page, tab: Open, stage: Stage) -> None:
    await ask(page, "/events", stage.plays(paced()), share=False)
    await until(page, "answer.streamId")
    stream_id = await page.evaluate("answer.streamId")
    await page.evaluate(
        "name => void navigator.locks.request(name, () => new Promise(() => {}))", f"gateway-stream:{stream_id}"
    )
    other = await tab()
    await follow(other, stream_id)
    assert (await result(other))["text"] == TEXT


async def test_any_tab_stops_the_answer(page: Page, tab: Open, stage: Stage) -> None:
    await ask(page, "/events", stage.plays(paced(pause=0.2)))
    await until(page, "answer.text.length > 2")
    other = await tab()
    await follow(other, await page.evaluate("answer.streamId"))
    await until(other, "answer.text.length > 2")
    await other.evaluate("answer.stop()")
    assert [(await result(one))["outcome"] for one in (page, other)] == ["stopped", "stopped"]


@pytest.mark.parametrize("mode", ["eventsource", "fetch"])
async def test_stop_reaches_an_answer_that_has_no_id_yet(page: Page, stage: Stage, mode: str) -> None:
    question = stage.plays([Pause(5)])
    await ask(page, "/events", question, mode=mode)
    await stage.exchange(question)
    await page.evaluate("void answer.stop()")
    assert (await result(page))["outcome"] == "stopped"
    await asyncio.wait_for((await stage.exchange(question)).closed.wait(), 2)


async def test_signal_stops_the_answer(page: Page, stage: Stage) -> None:
    question = stage.plays(paced())
    script = "message => ask({url: '/events', message, signal: (window.abort = new AbortController()).signal})"
    await page.evaluate(script, question)
    await until(page, "answer.text.length > 2")
    await page.evaluate("abort.abort()")
    assert (await result(page))["outcome"] == "stopped"
    await asyncio.wait_for((await stage.exchange(question)).closed.wait(), 2)


async def test_page_asks_again(page: Page, stage: Stage) -> None:
    question = stage.plays(paced())
    await ask(page, "/events", question)
    await until(page, "answer.text.length > 2")
    await page.evaluate("window.second = answer.regenerate()")
    assert (await result(page))["outcome"] == "stopped"
    assert (await page.evaluate("second.done"))["text"] == TEXT
    assert len(stage.asked(question)) == 2


async def test_page_that_comes_back_from_the_cache_goes_on(page: Page, stage: Stage) -> None:
    question = stage.plays(paced())
    await ask(page, "/events", question)
    await until(page, "answer.text.length > 5")
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    stream_id = await page.evaluate("answer.streamId")
    while await readers(stage, stream_id):  # noqa: ASYNC110 - another process has no event to wait for
        await asyncio.sleep(0.02)
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    assert (await result(page))["text"] == await texts(page) == TEXT
    assert len(stage.asked(question)) == 1


FAMILY = "👨‍👩‍👧‍👦"
WRITE = """
async ([pieces, pause, within]) => {
  window.shown = [];
  const writer = new client.Typewriter((text) => shown.push([performance.now(), text]), {within});
  let text = "";
  for (const piece of pieces) {
    writer.write((text += piece));
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  const begun = performance.now();
  while (writer.shown !== text && performance.now() - begun < 3000) await new Promise(requestAnimationFrame);
  return {text, shown: shown.map(([, one]) => one), late: performance.now() - begun};
}
"""


async def write(page: Page, pieces: list[str], pause: float = 50, within: float = 1000) -> Any:
    return await page.evaluate(WRITE, [pieces, pause, within])


async def test_typewriter_spreads_a_burst(page: Page) -> None:
    said = await write(page, ["一二三四五六七八九十" * 5] * 3, pause=300)
    assert said["shown"][-1] == said["text"]
    steps = [len(after) - len(before) for before, after in pairwise(said["shown"])]
    assert len(steps) > 20
    assert max(steps) < 40
    assert said["late"] < 1000


async def test_typewriter_never_splits_a_character(page: Page) -> None:
    pieces = [*FAMILY, "e\u0301か\u3099", *"🇨🇳👍🏽", *FAMILY]
    said = await write(page, pieces, pause=20, within=1500)
    split = "text => [...new Intl.Segmenter().segment(text)].map((one) => one.segment)"
    characters = await page.evaluate(split, said["text"])
    assert said["shown"][-1] == said["text"]
    assert set(said["shown"]) <= {"".join(characters[:count]) for count in range(len(characters) + 1)}


async def test_typewriter_shows_all_at_once_to_who_wants_no_motion(page: Page) -> None:
    await page.emulate_media(reduced_motion="reduce")
    assert (await write(page, ["一二三四五", "六七八九十"]))["shown"] == ["一二三四五", "一二三四五六七八九十"]


async def test_typewriter_shows_all_at_once_where_nobody_looks(page: Page) -> None:
    await page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
    assert (await write(page, ["一二三四五", "六七八九十"]))["shown"] == ["一二三四五", "一二三四五六七八九十"]


async def test_page_shows_a_smoothed_answer_whole_before_it_is_done(page: Page, stage: Stage) -> None:
    await ask(page, "/events", stage.plays(openai_answer(TEXT)), smooth=True)
    await result(page)
    names = await page.evaluate("told.map(({name}) => name).filter((name) => ['onText', 'onDone'].includes(name))")
    assert names[-2:] == ["onText", "onDone"]
    assert (await page.evaluate("values('onText').pop()")) == [TEXT]
