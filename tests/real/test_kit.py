"""The programs that the other tests of this folder lean on answer at all."""

import ssl

import pytest
from playwright.async_api import Browser

from tests.kit.program import AIMock
from tests.kit.sse_client import request
from tests.kit.upstream import Cut, Hang, Pause, ScriptedUpstream, Step, http_head, response
from tests.real.conftest import StartNginx


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_aimock_streams_in_each_dialect(aimock: AIMock, path: str) -> None:
    chat = {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "你好"}]}
    async with await request(aimock.url + path, method="POST", body=chat) as answer:
        assert "你好".encode() in await answer.body()


async def test_nginx_passes_events_at_once_and_keeps_the_query_out_of_its_log(start_nginx: StartNginx) -> None:
    script: list[Step] = [http_head(), b"data: 1\n\n", Pause(0.3), b"data: 2\n\n", Cut()]
    async with ScriptedUpstream(script) as upstream:
        nginx = await start_nginx(f"127.0.0.1:{upstream.port}")
        tls = ssl.create_default_context(cafile=nginx.certificate)
        async with await request(f"{nginx.url}/chat?token=secret", tls=tls) as answer:
            first, second = [message async for message in answer.messages()]
        assert second.at - first.at > 0.2
        assert upstream.exchanges[0].target == "/chat?token=secret"
        assert upstream.exchanges[0].headers["x-forwarded-for"] == "127.0.0.1"
    await nginx.stop()
    assert "GET /chat HTTP/1.1" in nginx.access_log.read_text()
    assert "secret" not in nginx.access_log.read_text() + nginx.error_log.read_text()


@pytest.mark.parametrize(
    ("method", "accept", "status", "media_type"),
    [("GET", "text/event-stream", 200, "text/event-stream"), ("POST", "*/*", 503, "application/problem+json")],
)
async def test_nginx_answers_for_a_gateway_that_is_away(
    start_nginx: StartNginx, method: str, accept: str, status: int, media_type: str
) -> None:
    async with ScriptedUpstream([response(200, "")]) as upstream:
        nginx = await start_nginx(f"127.0.0.1:{upstream.port}")
    tls = ssl.create_default_context(cafile=nginx.certificate)
    headers = {"Accept": accept, "Origin": "https://app.example.com", "Referer": "https://x/?token=secret"}
    async with await request(f"{nginx.url}/chat?token=secret", tls=tls, method=method, headers=headers) as answer:
        assert (answer.status, answer.media_type) == (status, media_type)
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        body = await answer.body()
        assert body.startswith(b"retry: ") or b'"status":503' in body
    await nginx.stop()
    assert "secret" not in nginx.access_log.read_text() + nginx.error_log.read_text() + nginx.output()


async def test_chromium_runs_an_event_source(chromium: Browser) -> None:
    script: list[Step] = [http_head(Access_Control_Allow_Origin="*"), "data: 你\n\n".encode(), Hang()]
    async with ScriptedUpstream(script) as upstream:
        page = await chromium.new_page()
        read = (
            "url => new Promise(r => { const s = new EventSource(url); s.onmessage = e => { s.close(); r(e.data) } })"
        )
        assert await page.evaluate(read, upstream.url) == "你"
