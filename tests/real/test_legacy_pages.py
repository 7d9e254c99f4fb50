"""Pages written for other servers, in Chromium: only the URL in them is changed, and they work.

Each page of `docs/examples/` is opened on an origin of its own and asks one of three servers: the one that it was
written for, that one behind a `proxy` route, or a `chat` route with the format of the YAML file beside it. The routes
are those of the shipped files; only targets and origins are filled in.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
import yaml
from playwright.async_api import Browser, BrowserContext, Page

from tests.kit.program import ROOT, Gateway
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Exchange,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    WaitFor,
    chunk,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import Cable, chromium

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = ROOT / "docs" / "examples"
WRITTEN_FOR = '"http://localhost:3000/stream"'
ROUTES = {
    "content-done": "/stream",
    "json-strings": "/sse",
    "typed-index": "/generate",
    "named-events": "/chat",
    "named-events-fetch": "/chat",
}
PAGES = tuple(ROUTES)
EVENTSOURCES = PAGES[:-1]
SESSIONS = PAGES[-2:]
PARTS = ("你好，", "断线", "也不会\n丢", "字。", " 1 < 2 & ", "“引号”", "😀", "完")
TEXT = "".join(PARTS)

GATES = (asyncio.Event(), asyncio.Event())
"""What a held answer waits for: after its third and after its sixth piece."""

each_page = pytest.mark.parametrize("name", PAGES)
each_eventsource = pytest.mark.parametrize("name", EVENTSOURCES)

NEVER_CLOSES = """
EventSource.prototype.close = () => {};
window.EventSource = class extends EventSource {
  constructor(...about) { super(...about); window.source = this; }
};
"""


# The servers that the pages were written for.


def event(name: str, data: Any) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"


def content_done(parts: Sequence[str]) -> list[str]:
    return [*(event("", {"content": part}) for part in parts), event("", "[DONE]")]


def json_strings(parts: Sequence[str]) -> list[str]:
    return [*(event("", json.dumps(part)) for part in parts), event("end", "")]


def typed_index(parts: Sequence[str]) -> list[str]:
    chunks = [event("", {"type": "chunk", "index": i, "content": part}) for i, part in enumerate(parts)]
    return [event("", {"type": "start"}), *chunks, event("", {"type": "end", "content": "".join(parts)})]


def named_events(parts: Sequence[str]) -> list[str]:
    tokens = [event("token", {"text": part, "index": i}) for i, part in enumerate(parts)]
    return [event("connected", {"session_id": "1"}), *tokens, event("done", {"fullText": "".join(parts)})]


ERRORS = {
    "content-done": event("", {"error": {"message": "broken"}}),
    "json-strings": event("error", json.dumps("broken")),
    "typed-index": event("", {"type": "error", "message": "broken"}),
    "named-events": event("error", {"message": "broken"}),
}
SHAPES: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "content-done": content_done,
    "json-strings": json_strings,
    "typed-index": typed_index,
    "named-events": named_events,
}


def held(pieces: Sequence[bytes]) -> list[Step]:
    return [*pieces[:3], WaitFor(GATES[0]), *pieces[3:6], WaitFor(GATES[1]), *pieces[6:]]


def asked(exchange: Exchange) -> str:
    """The question, from wherever the page put it."""
    if exchange.method == "POST":
        return str(exchange.json()["message"])
    query = parse_qs(urlsplit(exchange.target).query)
    return (query.get("message") or query["query"])[0]


def old_server(exchange: Exchange) -> list[Step]:
    """Answers at `/{page}` in the shape of that page; it knows nothing of resuming."""
    shared = {"Access_Control_Allow_Origin": "*", "Access_Control_Allow_Headers": "content-type"}
    if exchange.method == "OPTIONS":
        return [response(204, "", **shared)]
    name = urlsplit(exchange.target).path.strip("/").removesuffix("-fetch")
    frames = SHAPES[name](PARTS)
    match asked(exchange):
        case "held":
            steps = held([chunk(frame) for frame in frames])
        case "fail":
            steps = [chunk("".join(frames[:3])), chunk(ERRORS[name])]
        case _:
            steps = [chunk("".join(frames))]
    return [sse_head(**shared), *steps, LAST_CHUNK]


def page_server(exchange: Exchange) -> list[Step]:
    """`/{page}?{server}` is that page, with no more than its server's URL changed."""
    url = urlsplit(exchange.target)
    if url.path == "/favicon.ico":
        return [response(204, "")]
    html = (EXAMPLES / f"{url.path.strip('/')}.html").read_text("utf-8")
    assert html.count(WRITTEN_FOR) == html.count("http") == 1
    return [response(200, html.replace(WRITTEN_FOR, json.dumps(url.query)), "text/html")]


def model(exchange: Exchange) -> list[Step]:
    """Answers as an OpenAI-compatible server."""
    match exchange.json()["messages"][-1]["content"]:
        case "held":
            return [sse_head(), *held(list(map(openai_delta, PARTS))), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
        case "fail":
            return [sse_head(), openai_delta(PARTS[0]), Pause(0.05), Reset()]
        case "refuse":
            return [response(401, "{}")]
        case _:
            return openai_answer(*PARTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pages() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(page_server) as pages:
        yield pages


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def old() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(old_server) as old:
        yield old


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(model) as provider:
        yield provider


def shipped() -> list[dict[str, Any]]:
    """The example configurations, as they are shipped."""
    return [yaml.safe_load(path.read_text("utf-8")) for path in sorted(EXAMPLES.glob("*.yaml"))]


def example_config(old: ScriptedUpstream, provider: ScriptedUpstream, origin: str) -> dict[str, Any]:
    """All examples in one configuration: their routes to the letter, targets and origins of this machine."""
    upstreams: dict[str, Any] = {name: upstream for one in shipped() for name, upstream in one["upstreams"].items()}
    upstreams["main"]["targets"] = [{"url": f"{provider.url}/v1"}]
    upstreams["old"]["targets"] = [{"url": old.url}]
    routes = [route for one in shipped() for route in one["routes"] if route["path"] != "/api/chat"]
    chats = {f"over-{name}": {"dialect": "sse", "targets": [{"url": f"{old.url}/{name}"}]} for name in SHAPES}
    (over,) = (route for one in shipped() for route in one["routes"] if route["path"] == "/api/chat")
    return {
        "auth": {"anonymous": True},
        "cors": {"origins": [origin]},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"retry": "100ms", "heartbeat": "100ms"},
        "upstreams": {name: value | {"retries": 0} for name, value in (upstreams | chats).items()},
        "routes": routes + [over | {"path": f"/over/{name}", "upstream": f"over-{name}"} for name in SHAPES],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    old: ScriptedUpstream,
    provider: ScriptedUpstream,
    pages: ScriptedUpstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Gateway]:
    config = example_config(old, provider, pages.url)
    async with Gateway(config, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def gates() -> AsyncIterator[tuple[asyncio.Event, ...]]:
    """Shut; at the end of the test whatever still waits goes on."""
    for gate in GATES:
        gate.clear()
    yield GATES
    for gate in GATES:
        gate.set()


@pytest_asyncio.fixture(loop_scope="module")
async def cable(gateway: Gateway) -> AsyncIterator[Cable]:
    async with Cable(int(gateway.url.rsplit(":", 1)[1])) as cable:
        yield cable


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser, pages: ScriptedUpstream) -> AsyncIterator[BrowserContext]:
    complaints: list[str] = []
    async with await browser.new_context() as context:
        context.set_default_timeout(10_000)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        yield context
    assert complaints == []


class Reader:
    """Somebody in front of one of the pages, who sees each change at once."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def ask(self, question: str) -> None:
        """Ask, and return when the page has sent it."""
        await self.page.locator("input").fill(question)
        await self.page.keyboard.press("Enter")

    async def sees(self, selector: str, text: str) -> None:
        """Returns when the element's text has this in it."""
        see = "([selector, text]) => document.querySelector(selector).textContent.includes(text)"
        await self.page.wait_for_function(see, arg=[selector, text])

    async def ended(self) -> str:
        """The answer, as soon as the page lets ask again."""
        await self.page.wait_for_function("!document.querySelector('button').disabled")
        return await self.text("#answer")

    async def text(self, selector: str) -> str:
        """The element's text."""
        return await self.page.locator(selector).text_content() or ""


async def opened(context: BrowserContext, pages: ScriptedUpstream, name: str, server: str) -> Reader:
    """The page, asking this server."""
    page = await context.new_page()
    await page.goto(f"{pages.url}/{name}?{server}")
    return Reader(page)


def server_of(kind: str, name: str, old: ScriptedUpstream, cable: Cable) -> str:
    return {
        "own": f"{old.url}/{name}",
        "proxied": f"http://127.0.0.1:{cable.port}/old/{name}",
        "chat": f"http://127.0.0.1:{cable.port}{ROUTES[name]}",
    }[kind]


@each_page
@pytest.mark.parametrize(
    ("kind", "error"), [("own", "broken"), ("proxied", "broken"), ("chat", "The provider's answer broke off.")]
)
async def test_page_shows_a_whole_answer_and_then_the_error_of_a_broken_one(
    context: BrowserContext,
    pages: ScriptedUpstream,
    old: ScriptedUpstream,
    cable: Cable,
    name: str,
    kind: str,
    error: str,
) -> None:
    reader = await opened(context, pages, name, server_of(kind, name, old, cable))
    await reader.ask("hello")
    await reader.sees("#answer", PARTS[-1])
    assert (await reader.ended(), await reader.text("#error")) == (TEXT, "")
    if name in SESSIONS:
        assert await reader.text("#count") == f"共 {len(TEXT.encode('utf-16-le')) // 2} 个字"
    await reader.ask("fail")
    await reader.sees("#error", error)
    assert (await reader.ended()).startswith(PARTS[0])


@each_page
async def test_page_shows_an_error_that_came_before_any_text(
    context: BrowserContext, pages: ScriptedUpstream, old: ScriptedUpstream, cable: Cable, name: str
) -> None:
    reader = await opened(context, pages, name, server_of("chat", name, old, cable))
    await reader.ask(" ")  # a question that is none
    await reader.page.wait_for_function("document.querySelector('#error').textContent")
    assert await reader.ended() == ""
    await reader.ask("refuse")
    await reader.sees("#error", "502" if name == "named-events-fetch" else "The provider did not accept the gateway's")


@each_eventsource
@pytest.mark.parametrize("kind", ["proxied", "chat"])
async def test_page_loses_the_network_twice_and_no_character(
    context: BrowserContext,
    pages: ScriptedUpstream,
    old: ScriptedUpstream,
    provider: ScriptedUpstream,
    cable: Cable,
    gates: Sequence[asyncio.Event],
    name: str,
    kind: str,
) -> None:
    before = len(old.exchanges) + len(provider.exchanges)
    reader = await opened(context, pages, name, server_of(kind, name, old, cable))
    await reader.ask("held")
    for part, gate in zip((PARTS[1], PARTS[4]), gates, strict=True):
        await reader.sees("#answer", part)
        cable.cut()
        gate.set()
    assert await reader.ended() == TEXT
    assert await reader.text("#error") == ""
    assert cable.connections == 3
    assert len(old.exchanges) + len(provider.exchanges) == before + 1


@each_eventsource
async def test_page_that_forgets_to_close_is_stopped_at_the_end(
    context: BrowserContext,
    pages: ScriptedUpstream,
    old: ScriptedUpstream,
    provider: ScriptedUpstream,
    cable: Cable,
    name: str,
) -> None:
    before = len(provider.exchanges)
    answers: list[int] = []
    await context.add_init_script(NEVER_CLOSES)
    reader = await opened(context, pages, name, server_of("chat", name, old, cable))
    reader.page.on("response", lambda answer: answers.append(answer.status))
    await reader.ask("hello")
    await reader.page.wait_for_function("window.source?.readyState === EventSource.CLOSED")
    assert await reader.text("#answer") == TEXT
    assert (answers, len(provider.exchanges)) == ([200, 204], before + 1)


@pytest.mark.usefixtures("gates")
async def test_page_that_reads_by_fetch_says_that_the_network_broke(
    context: BrowserContext, pages: ScriptedUpstream, old: ScriptedUpstream, cable: Cable
) -> None:
    reader = await opened(context, pages, "named-events-fetch", server_of("chat", "named-events-fetch", old, cable))
    await reader.ask("held")
    await reader.sees("#answer", PARTS[1])
    cable.cut()
    await reader.sees("#error", "连接中断")
    assert TEXT.startswith(await reader.ended())


@pytest.mark.parametrize("name", SESSIONS)
async def test_page_with_a_session_is_remembered(
    context: BrowserContext,
    pages: ScriptedUpstream,
    old: ScriptedUpstream,
    provider: ScriptedUpstream,
    cable: Cable,
    name: str,
) -> None:
    reader = await opened(context, pages, name, server_of("chat", name, old, cable))
    for question in ("first", "second"):
        await reader.ask(question)
        await reader.sees("#answer", PARTS[-1])
        await reader.ended()
    asked = [message["content"] for message in provider.exchanges[-1].json()["messages"]]
    assert asked == ["first", TEXT, "second"]


@pytest.mark.parametrize("name", SHAPES)
async def test_chat_route_reads_an_old_server_of_any_shape(gateway: Gateway, name: str) -> None:
    async with asyncio.timeout(10), await request(f"{gateway.url}/over/{name}?message=hello") as answer:
        *_, done = [message async for message in answer.messages()]
    assert (done.type, done.json()["full_text"]) == ("done", TEXT)


@pytest.mark.parametrize("name", SHAPES)
async def test_chat_route_tells_of_an_old_servers_failure(gateway: Gateway, name: str) -> None:
    async with asyncio.timeout(10), await request(f"{gateway.url}/over/{name}?message=fail") as answer:
        *_, error = [message async for message in answer.messages()]
    assert (error.type, error.json()["code"]) == ("error", "upstream_error")
