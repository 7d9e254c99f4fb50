"""What Chromium's EventSource and fetch make of a stream: credentials, drops, errors and ends, over two origins."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page

from tests.kit.program import Gateway, free_port
from tests.kit.sse_client import Parser
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Exchange,
    Pause,
    ScriptedUpstream,
    Step,
    chunk,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import Cable, chromium

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "key-of-the-page"
TEXT = "".join(chr(0x4E00 + number) for number in range(24))
PACED = [step for character in TEXT for step in (openai_delta(character), Pause(0.05))]
RELAYED = [step for character in TEXT for step in (chunk(f"event: token\ndata: {character}\n\n"), Pause(0.05))]
SCRIPT = """
window.seen = [];
window.listen = (url, options) => {
  window.source = new EventSource(url, options);
  const hear = (event) => event instanceof MessageEvent
    ? seen.push({type: event.type, data: event.data, id: event.lastEventId})
    : seen.push({type: "lost", state: source.readyState});
  for (const type of ["connected", "token", "done", "error", "message"]) source.addEventListener(type, hear);
};
window.post = async (url, body, headers) => {
  const abort = window.abort = new AbortController();
  const options = {method: "POST", body: JSON.stringify(body), headers, signal: abort.signal};
  const answer = await fetch(url, options);
  const about = Object.fromEntries(["x-stream-id", "retry-after"].map((name) => [name, answer.headers.get(name)]));
  window.answer = {status: answer.status, text: "", reads: 0, over: false, ...about};
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    window.answer.text += read.value;
    window.answer.reads += 1;
  }
  window.answer.over = true;
};
window.count = (type) => seen.filter((event) => event.type === type).length;
"""
BLANK = response(200, f"<!doctype html><title>page</title><script>{SCRIPT}</script>", "text/html")


def script(exchange: Exchange) -> list[Step]:
    if exchange.target.startswith("/relayed"):
        return [sse_head(), *RELAYED, chunk("event: done\ndata: {}\n\n"), LAST_CHUNK]
    match exchange.json()["messages"][-1]["content"]:
        case "silent":
            return [Pause(0.5), *openai_answer("你", "好")]
        case "late":
            return [sse_head(), Pause(0.5), *PACED, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
        case "paced":
            return [sse_head(), *PACED, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
        case _:
            return openai_answer("你", "好")


def site(pages: ScriptedUpstream) -> str:
    """The origin of pages on the gateway's own site: Chromium sends no cookie to another one."""
    return f"http://localhost:{pages.port}"


def config(upstream: ScriptedUpstream, pages: ScriptedUpstream) -> dict[str, Any]:
    return {
        "auth": {"keys": [{"id": "page", "key": KEY}, {"id": "slow", "key": "slow-key", "plan": "slow"}]},
        "cors": {"origins": [pages.url, site(pages)], "credentials": True},
        "plans": {"default": {}, "slow": {"requests": "1/s"}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": "100ms", "retry": "100ms", "commit_after": "100ms", "merge": False},
        "upstreams": {
            "main": {"dialect": "openai", "targets": [{"url": f"{upstream.url}/v1"}]},
            "old": {"dialect": "sse", "targets": [{"url": f"{upstream.url}/relayed"}]},
        },
        "routes": [
            {"path": "/chat", "api": "chat", "upstream": "main"},
            {"path": "/held", "api": "chat", "upstream": "main", "commit_after": "2s"},
            {"path": "/v1/chat/completions", "api": "openai", "upstream": "main"},
            {"path": "/proxy", "api": "proxy", "upstream": "old"},
        ],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(script) as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pages() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream([BLANK]) as pages:
        yield pages


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    upstream: ScriptedUpstream, pages: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    async with Gateway(config(upstream, pages), tmp_path_factory.mktemp("gateway")) as gateway:
        upstream.exchanges.clear()
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def cable(gateway: Gateway) -> AsyncIterator[Cable]:
    async with Cable(int(gateway.url.rsplit(":", 1)[1])) as cable:
        yield cable


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    context = await browser.new_context()
    context.set_default_timeout(10_000)
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(context: BrowserContext, pages: ScriptedUpstream) -> Page:
    page = await context.new_page()
    await page.goto(pages.url)
    return page


async def listen(page: Page, url: str, **options: Any) -> None:
    await page.evaluate("([url, options]) => listen(url, options)", [url, options])


async def until(page: Page, condition: str) -> list[dict[str, Any]]:
    """What the page has seen when the condition holds."""
    await page.wait_for_function(condition)
    seen: list[dict[str, Any]] = await page.evaluate("seen")
    return seen


def at(cable: Cable, path: str) -> str:
    """A url of the gateway at the other end of the cable."""
    return f"http://localhost:{cable.port}{path}"


def types(seen: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in seen]


async def test_page_reads_with_a_query_token_and_is_stopped_at_the_end(page: Page, cable: Cable) -> None:
    await listen(page, at(cable, f"/chat?message=hi&token={KEY}"))
    seen = await until(page, "source.readyState === 2")
    assert types(seen) == ["connected", "token", "token", "done", "lost", "lost"]
    assert [event["state"] for event in seen[-2:]] == [0, 2]
    assert len({event["id"] for event in seen[1:4]}) == 3


async def test_page_of_another_origin_reads_with_its_cookie(
    page: Page, cable: Cable, context: BrowserContext, pages: ScriptedUpstream
) -> None:
    await set_cookie(context)
    await page.goto(site(pages))
    await listen(page, at(cable, "/chat?message=hi"), withCredentials=True)
    assert types(await until(page, "count('done')"))[:4] == ["connected", "token", "token", "done"]


async def test_page_that_sends_no_cookie_is_stopped_for_good(
    page: Page, cable: Cable, context: BrowserContext, pages: ScriptedUpstream
) -> None:
    await set_cookie(context)
    await page.goto(site(pages))
    await listen(page, at(cable, "/chat?message=hi"))
    assert await until(page, "source.readyState === 2") == [{"type": "lost", "state": 2}]


async def test_page_of_a_foreign_origin_spends_nothing_with_the_visitors_cookie(
    page: Page, cable: Cable, context: BrowserContext, upstream: ScriptedUpstream
) -> None:
    await set_cookie(context)
    before = len(upstream.exchanges)
    async with ScriptedUpstream([BLANK]) as foreign:
        await page.goto(site(foreign))
        await listen(page, at(cable, "/chat?message=hi"), withCredentials=True)
        assert await until(page, "source.readyState === 2") == [{"type": "lost", "state": 2}]
    assert len(upstream.exchanges) == before


async def set_cookie(context: BrowserContext) -> None:
    await context.add_cookies([{"name": "gateway_token", "value": KEY, "domain": "localhost", "path": "/"}])


@pytest.mark.parametrize("path", ["/chat?message=paced", "/proxy?q=1"])
async def test_page_loses_nothing_over_three_drops(
    page: Page, cable: Cable, upstream: ScriptedUpstream, path: str
) -> None:
    before = len(upstream.exchanges)
    await listen(page, at(cable, f"{path}{'&' if '?' in path else '?'}token={KEY}"))
    for tokens in (3, 9, 15):
        await until(page, f"count('token') >= {tokens}")
        cable.cut()
    seen = await until(page, "count('done')")
    assert text_of(seen) == TEXT
    assert len(upstream.exchanges) == before + 1
    assert cable.connections >= 4


def text_of(seen: list[dict[str, Any]]) -> str:
    tokens = [event["data"] for event in seen if event["type"] == "token"]
    return "".join(match[1] if (match := re.search('"text":"([^"]*)"', data)) else data for data in tokens)


async def test_page_dropped_before_the_first_token_pays_once(
    page: Page, cable: Cable, upstream: ScriptedUpstream
) -> None:
    before = len(upstream.exchanges)
    await listen(page, at(cable, f"/chat?message=late&token={KEY}"))
    await until(page, "count('connected')")
    cable.cut()
    seen = await until(page, "count('done')")
    assert text_of(seen) == TEXT
    assert [event["data"].count('"resumed":true') for event in seen if event["type"] == "connected"] == [0, 1]
    assert len(upstream.exchanges) == before + 1


async def test_page_dropped_before_the_headers_leaves_no_answer_behind_that_nobody_can_read(
    page: Page, cable: Cable, upstream: ScriptedUpstream
) -> None:
    before = len(upstream.exchanges)
    await listen(page, at(cable, f"/held?message=silent&token={KEY}"))
    first = await upstream.exchange(before)
    cable.cut()
    async with asyncio.timeout(0.3):
        await first.closed.wait()
    assert types(await until(page, "count('done')"))[:2] == ["lost", "connected"]
    assert len(upstream.exchanges) == before + 2


async def test_page_that_was_offline_for_a_while_comes_back(page: Page, cable: Cable) -> None:
    await listen(page, at(cable, f"/chat?message=paced&token={KEY}"))
    await until(page, "count('token') >= 3")
    await cable.pull()
    await until(page, "count('lost') >= 3")
    await cable.plug()
    assert text_of(await until(page, "count('done')")) == TEXT


@pytest.mark.parametrize("path", ["/chat?message=hi&token=guess", f"/chat?token={KEY}", f"/nothing?token={KEY}"])
async def test_page_is_stopped_by_an_error_that_lasts(page: Page, cable: Cable, path: str) -> None:
    await listen(page, at(cable, path))
    assert await until(page, "source.readyState === 2") == [{"type": "lost", "state": 2}]


async def test_page_comes_back_by_itself_after_an_error_that_passes(page: Page, cable: Cable) -> None:
    await listen(page, at(cable, "/chat?message=hi&token=slow-key"))
    await until(page, "count('connected')")
    await page.evaluate("source.close(); seen.length = 0")
    await listen(page, at(cable, "/chat?message=hi&token=slow-key"))
    seen = await until(page, "count('done')")
    assert types(seen)[:6] == ["error", "lost", "connected", "token", "token", "done"]
    assert '"code":"rate_limited"' in seen[0]["data"]


async def test_page_whose_stream_is_gone_is_told_and_stopped(page: Page, cable: Cable) -> None:
    gone = "A" * 22 + ".5.2"
    await listen(page, at(cable, f"/chat?message=hi&token={KEY}&last_event_id={gone}"))
    seen = await until(page, "source.readyState === 2")
    assert types(seen) == ["error", "lost", "lost"]
    assert '"code":"cursor_expired"' in seen[0]["data"]


async def test_page_whose_gateway_restarts_is_told_once_and_stopped(
    page: Page, upstream: ScriptedUpstream, pages: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, before = tmp_path_factory.mktemp("restarting"), len(upstream.exchanges)
    settings = config(upstream, pages) | {"server": {"listen": f"127.0.0.1:{free_port()}", "drain": "1s"}}
    async with Gateway(settings, directory) as gateway:
        await listen(page, f"{gateway.url}/chat?message=paced&token={KEY}")
        await until(page, "count('token') >= 3")
        await gateway.kill()
        await gateway.start()
        seen = await until(page, "source.readyState === 2")
    assert types(seen).count("error") == 1
    assert '"code":"cursor_expired"' in next(event["data"] for event in seen if event["type"] == "error")
    assert len(upstream.exchanges) == before + 1


JSON = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}


async def post(page: Page, url: str, body: dict[str, Any], until: str = "over", **headers: str) -> dict[str, Any]:
    """What the page knows of the answer when `until` holds of it."""
    options = [url, body, JSON | {name.replace("_", "-"): value for name, value in headers.items()}]
    await page.evaluate("(options) => { window.answer = null; post(...options).catch(() => {}) }", options)
    await page.wait_for_function(f"answer && answer.{until}")
    answer: dict[str, Any] = await page.evaluate("answer")
    return answer


async def test_page_posts_across_origins_and_reads_as_the_answer_comes(page: Page, cable: Cable) -> None:
    answer = await post(page, at(cable, "/chat"), {"message": "paced"})
    events = Parser().feed(answer["text"].encode())
    assert "".join(event.json()["text"] for event in events if event.type == "token") == TEXT
    assert [events[0].type, events[-1].type] == ["connected", "done"]
    assert events[0].json()["stream_id"] == answer["x-stream-id"]
    assert answer["reads"] > 10


async def test_page_posts_an_openai_request(page: Page, cable: Cable) -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    events = Parser().feed((await post(page, at(cable, "/v1/chat/completions"), body))["text"].encode())
    assert events[-1].data == "[DONE]"
    deltas = [event.json()["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "你好"


async def test_page_aborts_and_goes_on_by_fetch_where_it_stopped(
    page: Page, cable: Cable, upstream: ScriptedUpstream
) -> None:
    before, parser = len(upstream.exchanges), Parser()
    answer = await post(page, at(cable, "/chat"), {"message": "paced"}, until="reads > 5")
    await page.evaluate("abort.abort()")
    events = parser.feed(answer["text"].encode())
    rest = await post(page, at(cable, "/chat"), {"message": "paced"}, Last_Event_ID=parser.last_event_id)
    events += Parser().feed(rest["text"].encode())
    assert "".join(event.json()["text"] for event in events if event.type == "token") == TEXT
    assert rest["x-stream-id"] == answer["x-stream-id"]
    assert len(upstream.exchanges) == before + 1


@pytest.mark.parametrize(
    ("body", "authorization", "status", "code"),
    [({}, f"Bearer {KEY}", 400, "bad_request"), ({"message": "hi"}, "Bearer guess", 401, "unauthorized")],
)
async def test_page_reads_the_reason_of_a_refusal_across_origins(
    page: Page, cable: Cable, body: dict[str, Any], authorization: str, status: int, code: str
) -> None:
    answer = await post(page, at(cable, "/chat"), body, Authorization=authorization)
    assert answer["status"] == status
    assert f'"code":"{code}"' in answer["text"]


@pytest.mark.alone
async def test_page_reads_when_to_come_back_across_origins(page: Page, cable: Cable) -> None:
    await post(page, at(cable, "/chat"), {"message": "paced"}, "status", Authorization="Bearer slow-key")
    answer = await post(page, at(cable, "/chat"), {"message": "hi"}, Authorization="Bearer slow-key")
    assert (answer["status"], answer["retry-after"]) == (429, "1")
