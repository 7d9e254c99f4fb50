"""Forward authentication with programs that people have: the Flask application of the documents, nginx in front of it
and of the gateway, and pages in Chromium."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask, request
from playwright.async_api import Browser, Page
from werkzeug.serving import make_server

from tests.conftest import StartGateway
from tests.docs.markdown import Block, blocks
from tests.kit.program import Nginx
from tests.kit.upstream import Hang, ScriptedUpstream, openai_delta, sse_head
from tests.real.conftest import StartNginx

SECTION = "Users of your own application"
EVERYWHERE, GATEWAYS = "location / {", r"location ~ ^/(api/chat$|streams/|client\.js$) {"
CONFIG = """
server: {trusted_proxies: [127.0.0.1/32]}
auth: {forward: {url: "%s/whoami", cookies: [session], ttl: 2s, timeout: 950ms}}
upstreams: {main: {dialect: openai, targets: [{url: "%s/v1"}]}}
routes: [{path: /api/chat, api: chat, upstream: main}]
"""
LISTEN = """(url) => {
  window.events = [];
  window.source = new EventSource(url, {withCredentials: true});
  for (const type of ["connected", "token", "done", "error"])
    source.addEventListener(type, (event) => events.push(event.data ? `${type} ${event.data}` : `${type}`));
}"""
POST = """([path, body]) =>
  fetch(path, {method: "POST", body: new URLSearchParams(body)}).then((answer) => answer.status)"""


def documented(language: str) -> str:
    [text] = [block.text for block in blocks(language) if is_ours(block)]
    return text


def is_ours(block: Block) -> bool:
    return block.document.name == "operations.md" and block.section == SECTION


class Application:
    """The application of the documents, with pages to begin from.

    Attributes:
        asked: the paths that were asked for, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_KEY", "for a test")
        names: dict[str, Any] = {"__name__": "application"}
        exec(compile(documented("python"), "operations.md", "exec"), names)
        app = names["app"]
        assert isinstance(app, Flask)
        # So that browsers send it with requests of other sites too, and only the gateway is in their way.
        app.config |= {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_SECURE": True}
        self.asked: list[str] = []
        app.before_request(lambda: self.asked.append(request.path))
        app.get("/")(lambda: "<!doctype html><title>A page</title>")
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"

    @contextmanager
    def serving(self) -> Iterator["Application"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


async def with_application(nginx: Nginx, app: Application) -> None:
    """nginx as the documents say: the application at every path that is not the gateway's."""
    await nginx.stop()
    conf = (nginx.cwd / "gateway.conf").read_text()
    assert f"`{GATEWAYS}`" in documents()
    assert conf.count(EVERYWHERE) == 1
    location = documented("nginx").replace("http://127.0.0.1:3000", app.url)
    conf = conf.replace(EVERYWHERE, f"{location}\n{GATEWAYS}")
    (nginx.cwd / "gateway.conf").write_text(conf)
    await nginx.start()


def documents() -> str:
    [path] = {block.document for block in blocks("python") if is_ours(block)}
    return path.read_text("utf-8")


async def heard(page: Page, event: str) -> str:
    """The first such event that the page's source got."""
    found = f"events.find((event) => event.startsWith({event!r}))"
    await page.wait_for_function(found, timeout=10_000)
    return str(await page.evaluate(found))


async def test_user_logs_in_chats_and_a_logout_ends_the_chat(
    start_gateway: StartGateway, start_nginx: StartNginx, chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C9; a page of another site can spend nothing."""
    with Application(monkeypatch).serving() as app:
        async with ScriptedUpstream([sse_head(), openai_delta("Hello"), Hang()]) as llm, asyncio.timeout(60):
            gateway = await start_gateway(CONFIG % (app.url, llm.url))
            nginx = await start_nginx(gateway.url.removeprefix("http://"))
            await with_application(nginx, app)
            chat = f"{nginx.url}/api/chat?message=hi"

            context = await chromium.new_context(ignore_https_errors=True)
            page = await context.new_page()
            await page.goto(nginx.url)
            await page.evaluate(LISTEN, chat)
            assert await heard(page, "error") == "error"  # nobody is logged in, so there is a 401
            assert await page.evaluate("source.readyState") == 2

            assert await page.evaluate(POST, ["/login", {"name": "zoë"}]) == 204
            await page.evaluate(LISTEN, chat)
            assert '"Hello"' in await heard(page, "token")

            foreign = await context.new_page()
            await foreign.goto(f"{nginx.url.replace('127.0.0.1', 'localhost')}/")
            await foreign.evaluate(LISTEN, chat)
            assert await heard(foreign, "error") == "error"
            await gateway.logged("refused", reason="origin")
            assert len(llm.exchanges) == 1

            questions = app.asked.count("/whoami")
            while app.asked.count("/whoami") < questions + 3:  # noqa: ASYNC110 - more than a ttl later, by the other thread
                await asyncio.sleep(0.05)
            assert await page.evaluate("source.readyState") == 1
            before = len(app.asked)
            assert await page.evaluate(POST, ["/logout", {}]) == 204
            assert '"auth_expired"' in await heard(page, "error {")
            after = app.asked[app.asked.index("/logout", before) :]
            assert after[:2] == ["/logout", "/whoami"]  # the first question after it, within half of the ttl
            await (await llm.exchange()).closed.wait()
            await gateway.logged("stream_end", outcome="auth_expired", principal="user:zoë")
            await context.close()
        said = nginx.access_log.read_text() + nginx.error_log.read_text() + gateway.output()
        assert "session=" not in said
