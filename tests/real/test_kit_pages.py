"""The example pages for client kits, as they are shipped, bundled with packages from npm: each in Chromium.

The provider holds half of an answer back until the network was cut or the page reloaded; it is asked once.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route

from tests.kit.program import ROOT
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Step,
    WaitFor,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import Cable, browser_fixture
from tests.web.stage import Stage, staged

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

EXAMPLES = ROOT / "docs" / "examples" / "kits"
FORMATS = {"fetch-event-source.js": "events", "react.jsx": "events", "vue.js": "events", "use-chat.jsx": "ui"}
"""The route's format that a page reads."""
PIECES = ["断线以后，", "every ", "character ", "still ", "arrives 😀."]
TEXT = "".join(PIECES)
BUNDLE = [
    "node_modules/.bin/esbuild",
    "--bundle",
    "--format=esm",
    "--jsx=automatic",
    "--alias:sse-gateway-client=./client/client.js",
    "--alias:vue=vue/dist/vue.esm-bundler.js",
    '--define:process.env.NODE_ENV="production"',
    "--define:__VUE_OPTIONS_API__=false",
    "--define:__VUE_PROD_DEVTOOLS__=false",
    "--define:__VUE_PROD_HYDRATION_MISMATCH_DETAILS__=false",
    "--log-level=warning",
]

HTML = """<!doctype html>
<meta charset="utf-8">
<div id="app"></div>
<script type="module" src="app.js"></script>
"""

browser = browser_fixture()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one script for each page."""
    if not (ROOT / BUNDLE[0]).exists():
        pytest.fail("esbuild is missing; run: npm ci")
    out = tmp_path_factory.mktemp("bundles")
    pages = [str(EXAMPLES / name) for name in FORMATS]
    process = await asyncio.create_subprocess_exec(*BUNDLE, f"--outdir={out}", *pages, cwd=ROOT)
    assert await asyncio.wait_for(process.wait(), 60) == 0
    return out


class Shop:
    """A gateway whose `/api/chat` has one format, and the network in front of it."""

    def __init__(self, stage: Stage, cable: Cable) -> None:
        self.stage = stage
        self.cable = cable


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shops(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Shop]]:
    """One for each format."""
    stream = {"retry": "100ms", "heartbeat": "100ms", "merge": False}
    route, new = {"path": "/api/chat"}, tmp_path_factory.mktemp
    async with (
        staged(new("events"), [route], stream=stream) as events,
        staged(new("ui"), [route | {"format": "ui"}], stream=stream) as ui,
        Cable(int(events.gateway.url.rsplit(":", 1)[1])) as to_events,
        Cable(int(ui.gateway.url.rsplit(":", 1)[1])) as to_ui,
    ):
        yield {"events": Shop(events, to_events), "ui": Shop(ui, to_ui)}


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    heard: list[str] = []
    async with await browser.new_context() as context:
        page = await context.new_page()
        page.on("pageerror", lambda error: heard.append(str(error)))
        yield page
    assert heard == []


async def opened(page: Page, shop: Shop, bundles: Path, name: str) -> None:
    """The example, served beside the gateway's paths."""
    script = (bundles / name).with_suffix(".js").read_text("utf-8")

    async def serve(route: Route) -> None:
        if route.request.url.endswith(".js"):
            await route.fulfill(body=script, content_type="text/javascript; charset=utf-8")
        else:
            html = (
                '<!doctype html><meta charset="utf-8"><div id="app"></div><script type="module" src="app.js"></script>'
            )
            await route.fulfill(body=html, content_type="text/html; charset=utf-8")

    await page.route("**/example/*", serve)
    await page.goto(f"{shop.cable.url}/example/")


async def ask(page: Page, question: str) -> None:
    await page.locator("input").fill(question)
    await page.keyboard.press("Enter")


async def shows(page: Page, text: str) -> None:
    """Returns when this is the answer."""
    see = "text => (document.querySelector('#answer') ?? document.querySelector('.assistant'))?.textContent === text"
    await page.wait_for_function(see, arg=text, timeout=20_000)


def held(gate: asyncio.Event) -> list[Step]:
    """Two pieces of TEXT, and the others when the gate opens."""
    deltas = [openai_delta(piece) for piece in PIECES]
    return [sse_head(), *deltas[:2], WaitFor(gate), *deltas[2:], OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


@pytest.mark.parametrize("name", FORMATS)
async def test_page_has_the_whole_answer_over_a_drop(
    page: Page, shops: dict[str, Shop], bundles: Path, name: str
) -> None:
    shop, gate = shops[FORMATS[name]], asyncio.Event()
    question = shop.stage.plays(held(gate))
    await opened(page, shop, bundles, name)
    await ask(page, question)
    await shows(page, "".join(PIECES[:2]))
    shop.cable.cut()
    gate.set()
    await shows(page, TEXT)
    await page.wait_for_function("!document.querySelector('button').disabled")
    assert len(shop.stage.asked(question)) == 1


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fetch-event-source.js"])
async def test_page_goes_on_after_a_reload(page: Page, shops: dict[str, Shop], bundles: Path, name: str) -> None:
    shop, gate = shops[FORMATS[name]], asyncio.Event()
    question = shop.stage.plays(held(gate))
    await opened(page, shop, bundles, name)
    await ask(page, question)
    await shows(page, "".join(PIECES[:2]))
    await page.reload()
    await shows(page, "".join(PIECES[:2]))
    gate.set()
    await shows(page, TEXT)
    assert len(shop.stage.asked(question)) == 1


@pytest.mark.parametrize("name", FORMATS)
async def test_page_says_that_the_answer_failed(page: Page, shops: dict[str, Shop], bundles: Path, name: str) -> None:
    shop = shops[FORMATS[name]]
    question = shop.stage.plays([response(401, "{}")])
    await opened(page, shop, bundles, name)
    await ask(page, question)
    await page.wait_for_function("document.querySelector('#error').textContent.includes('provider')")
    assert len(shop.stage.asked(question)) == 1
