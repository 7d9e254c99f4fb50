"""The monitor page in Chromium, in front of a real gateway: what an operator sees, and what he can end."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import Response, request
from tests.kit.upstream import Exchange, Hang, ScriptedUpstream, Step, openai_delta, response, sse_head
from tests.real.browsing import browser_fixture, complaints_fixtures, visitor

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS: list[Step] = [sse_head(), openai_delta("one"), Hang()]
HOSTILE = "<img src=x onerror=document.title='pwned'>"
REASON = f"Overloaded {HOSTILE}"
UPSTREAM = "主<u>"
PRINCIPAL = "张小龙<u>"
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 360, "height": 740}

PAINTED = """
canvas => {
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}
"""
GAPS = """
seconds => new Promise((resolve) => {
  let longest = 0, before = performance.now();
  const end = before + seconds * 1000;
  const look = (now) => {
    longest = Math.max(longest, now - before);
    before = now;
    now < end ? requestAnimationFrame(look) : resolve(longest);
  };
  requestAnimationFrame(look);
})
"""


def play(exchange: Exchange) -> Sequence[Step]:
    """No end, but to a question that is to fail."""
    return [response(429, json.dumps({"error": {"message": REASON}}))] if b'"fail"' in exchange.body else ENDLESS


def config(url: str) -> dict[str, Any]:
    once = {"retries": 0, "breaker": {"failures": 1000}}
    return {
        "server": {"drain": "30s"},
        "auth": {"keys": [{"id": PRINCIPAL, "key": "k"}]},
        "plans": {"default": {"requests": None, "streams": 10_000, "tokens": None}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"on_disconnect": {"after": "0s"}},
        "timeouts": {"idle": "5m"},
        "upstreams": {UPSTREAM: {"dialect": "openai", "targets": [{"url": url}]} | once},
        "routes": [{"path": "/v1/chat", "api": "openai", "upstream": UPSTREAM}],
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


@asynccontextmanager
async def operator(
    browser: Browser, gateway: Gateway, heard: list[str], locale: str = "en-US", **options: Any
) -> AsyncIterator[Page]:
    async with visitor(browser, heard, **{"viewport": WIDE, "locale": locale} | options) as context:
        page = await context.new_page()
        await page.goto(gateway.admin)
        yield page


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, gateway: Gateway, heard: list[str]) -> AsyncIterator[Page]:
    async with Ledger(gateway), operator(browser, gateway, heard) as page:
        yield page


async def ask(gateway: Gateway, model: str = "m") -> Response:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    answer = await request(f"{gateway.url}/v1/chat", method="POST", headers={"Authorization": "Bearer k"}, body=body)
    assert await answer.next()
    return answer


async def test_operator_is_told_how_to_see_a_stream(page: Page, gateway: Gateway) -> None:
    await expect(page.locator("#empty a")).to_have_attribute("href", f"{gateway.url}/")
    await expect(page.locator("#state")).to_have_text("Serving")
    await expect(page.locator("#link")).to_have_text("Live")
    await expect(page.locator("#streams")).to_be_hidden()


async def test_operator_sees_a_stream_within_two_seconds_and_every_name_as_text(page: Page, gateway: Gateway) -> None:
    await expect(page.locator("#link")).to_have_text("Live")
    async with await ask(gateway, HOSTILE) as answer:
        row = page.locator("#streams tbody tr")
        await expect(row).to_have_count(1, timeout=2000)
        await expect(row.locator("td.id")).to_have_text(answer.headers["x-stream-id"])
        await expect(row.locator("td.principal")).to_have_text(f"key:{PRINCIPAL}")
        await expect(row.locator("td.upstream")).to_contain_text(UPSTREAM)
        await expect(page.locator("#upstreams .name")).to_have_text(UPSTREAM)
        await expect(page.locator("[data-figure=figureStreams] dd").first).to_have_text("1")
        assert await page.locator("img:not([alt='']), main u").count() == 0
        assert "Gateway monitor" in await page.title()


async def test_operator_sees_curves(page: Page, gateway: Gateway) -> None:
    async with await ask(gateway):
        await expect(page.locator("[data-plot=streams] .reading")).to_have_text("1")
    await expect(page.locator("[data-plot=ended] .legend")).to_contain_text("client_gone")
    await expect(page.locator("[data-plot=first] canvas")).to_have_attribute(
        "aria-label", re.compile("First token: p50 [0-9]")
    )
    colours = [await canvas.evaluate(PAINTED) for canvas in await page.locator("canvas").all()]
    assert len(colours) == 4
    assert min(colours) > 3, colours
    await page.locator("[data-plot=streams] canvas").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("[data-plot=streams] .reading")).to_contain_text("5.0 s ago")
    await page.keyboard.press("Tab")
    await expect(page.locator("[data-plot=streams] .reading")).to_have_text(re.compile("^[0-9]+$"))


async def test_operator_ends_a_stream_after_saying_so_twice(page: Page, gateway: Gateway) -> None:
    async with await ask(gateway) as answer:
        row = page.locator("#streams tbody tr")
        await row.get_by_role("button", name="Stop stream").click()
        await row.get_by_role("button", name="Keep").click()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Escape")
        await expect(row.locator(".action")).to_have_text("Stop")
        await page.keyboard.press("Enter")
        await row.get_by_role("button", name="End it").click()
        await expect(row.locator(".state")).to_have_text("stopped")
        await expect(page.locator("#told")).to_have_text(f"Stream {answer.headers['x-stream-id']} was ended.")
        assert (await answer.body()).split(b"\n\n")[-2].startswith(b"data: [DONE]\nid: ")
    await expect(row).to_have_count(0)
    line = await gateway.logged("stream_end", stream_id=answer.headers["x-stream-id"])
    assert line["outcome"] == "stopped"


async def test_page_of_another_origin_ends_nothing(browser: Browser, gateway: Gateway) -> None:
    async with (
        ScriptedUpstream([response(200, "<p>Hello", "text/html")]) as elsewhere,
        Ledger(gateway),
        await ask(gateway) as answer,
        await browser.new_context() as context,
    ):
        page = await context.new_page()
        await page.goto(f"http://localhost:{elsewhere.port}")
        url = f"{gateway.admin}/streams/{answer.headers['x-stream-id']}/stop"
        await page.evaluate("url => fetch(url, {method: 'POST', mode: 'no-cors'}).catch(String)", url)
        assert (
            await page.evaluate("url => fetch(url).catch(() => 'unreadable')", f"{gateway.admin}/streams")
            == "unreadable"
        )
        async with await request(f"{gateway.admin}/streams") as running:
            assert [stream["state"] for stream in await running.json()] == ["streaming"]


async def test_operator_sorts_and_filters(page: Page, gateway: Gateway) -> None:
    answers = [await ask(gateway, model) for model in ("b-model", "c-model", "a-model")]
    names = page.locator("#streams tbody td.upstream")
    await expect(names).to_have_text([f"{UPSTREAM} · {model}" for model in ("scripted",) * 3])
    ids = [answer.headers["x-stream-id"] for answer in answers]
    await expect(page.locator("#streams td.id")).to_have_text(ids)
    await page.get_by_role("button", name="Stream", exact=True).click()
    await expect(page.locator("#streams th").first).to_have_attribute("aria-sort", "ascending")
    assert sorted(await page.locator("#streams td.id").all_inner_texts()) == sorted(ids)
    await page.locator("#filter").fill(ids[1])
    await expect(page.locator("#streams td.id")).to_have_text([ids[1]])
    await page.locator("#filter").fill("nothing like it")
    await expect(page.locator("#empty")).to_have_text("No stream matches.")
    await asyncio.gather(*(answer.close() for answer in answers))


async def test_operator_sees_what_failed_and_how_streams_ended_every_name_as_text(page: Page, gateway: Gateway) -> None:
    body = {"model": HOSTILE, "stream": True, "messages": [{"role": "user", "content": "fail"}]}
    headers = {"Authorization": "Bearer k"}
    async with await request(f"{gateway.url}/v1/chat", method="POST", headers=headers, body=body) as answer:
        await answer.body()
    rows = page.locator("#failures tbody tr")
    await expect(rows.first.locator("td.request")).to_have_text(answer.headers["x-request-id"], timeout=3000)
    await expect(rows.first.locator("td.kind")).to_contain_text("stream")
    await expect(rows.nth(1).locator("td.kind")).to_contain_text("attempt")
    await expect(rows.first.locator("td.where")).to_contain_text("/chat/completions")
    await expect(rows.first.locator("td.code")).to_contain_text("status 429")
    await expect(rows.first.locator("td.what")).to_contain_text("Overloaded")
    ended = page.locator("#ended tbody tr").first
    await expect(ended.locator("td.outcome")).to_have_text("upstream_error")
    await expect(ended.locator("td.principal")).to_have_text(f"key:{PRINCIPAL}")
    assert await page.locator("img:not([alt='']), main u").count() == 0
    async with await ask(gateway) as answer:
        stream_id = answer.headers["x-stream-id"]
    await expect(ended.locator("td.id")).to_have_text(stream_id)
    await expect(ended.locator("td.outcome")).to_have_text("client_gone")
    assert await page.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]


async def test_operator_reads_it_on_a_phone_in_chinese(browser: Browser, gateway: Gateway, heard: list[str]) -> None:
    phone = operator(browser, gateway, heard, "zh-CN", viewport=PHONE, has_touch=True)
    async with Ledger(gateway), phone as page, await ask(gateway, HOSTILE * 3):
        row = page.locator("#streams tbody tr")
        await expect(row).to_have_count(1)  # those of the test before may still be in the last sample
        await expect(row.locator("td.principal")).to_have_text(f"key:{PRINCIPAL}")
        await expect(page.locator("h1")).to_have_text("网关监控")
        await row.get_by_role("button").tap()
        await expect(row.get_by_role("button", name="保留")).to_be_visible()
        await expect(page.locator("#failures-title")).to_contain_text("失败记录")
        await expect(page.locator("#ended td.outcome").first).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_page_follows_the_colour_scheme(browser: Browser, gateway: Gateway, heard: list[str]) -> None:
    async with operator(browser, gateway, heard, color_scheme="dark") as page:
        await expect(page.locator("#link")).to_have_text("Live")
        shades = []
        for scheme in ("dark", "light"):
            await page.emulate_media(color_scheme=scheme)
            shades.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert shades == ["rgb(16, 18, 20)", "rgb(246, 245, 241)"]


@pytest.mark.alone
async def test_page_stays_quick_with_a_thousand_streams(page: Page, gateway: Gateway) -> None:
    answers: list[Response] = []
    for _ in range(20):
        answers += await asyncio.gather(*(ask(gateway) for _ in range(50)))
    await expect(page.locator("#count")).to_have_text("200 oldest of 1,000")
    assert await page.locator("#streams tbody tr").count() == 200
    assert await page.evaluate(GAPS, 2.5) < 800  # 50 on an idle machine
    await page.locator("#filter").fill(answers[7].headers["x-stream-id"])
    await expect(page.locator("#streams tbody tr")).to_have_count(1)
    await asyncio.gather(*(answer.close() for answer in answers))


async def test_operator_sees_a_refused_reload_a_drain_and_a_restart(page: Page, gateway: Gateway) -> None:
    gateway.write_config("routes: 7")
    gateway.send_signal(signal.SIGHUP)
    await expect(page.locator("#state")).to_have_text("Reload failed")
    async with await ask(gateway) as answer:
        gateway.send_signal(signal.SIGTERM)
        await expect(page.locator("#state")).to_have_text("Draining")
        await expect(page.locator("#warning")).to_contain_text("Still running: 1")
        await answer.close()
        await expect(page.locator("#notice")).to_contain_text("Connection to the gateway lost")
        await gateway.wait()
    await gateway.start()
    await expect(page.locator("#notice")).to_contain_text("this is a new process")
    await expect(page.locator("#state")).to_have_text("Serving")
