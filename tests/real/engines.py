"""Three browser engines behind one small interface: Chromium, Firefox, and WebKitGTK, Safari's relative.

    async with ENGINES["firefox"]() as engine:
        tab = await engine.tab()
        await tab.goto(url)
        await tab.evaluate("document.title")        # an expression; what it promises is awaited
        await until(tab, "document.title === 'Chat'")

- Chromium is driven by Playwright, Firefox by WebDriver BiDi, which it speaks itself, WebKitGTK by WebDriver, for which
  WebKitWebDriver stands between, on a display of its own (Xvfb).
- An engine is a process for a whole module: the two others take seconds to start.
- A profile is new each time; programs are ended by their own process ids.

This file knows no page and no path.
"""

import asyncio
import base64
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
from playwright.async_api import Page

from tests.kit.program import find_program, free_port
from tests.real.browsing import chromium

START = 60.0
"""Seconds that an engine may take to start."""
SIZE = (1100, 750)
STORAGES = "['localStorage', 'sessionStorage']"
DENY_STORAGES = f"""
for (const name of {STORAGES})
  Object.defineProperty(window, name, {{get() {{ throw new DOMException("denied", "SecurityError"); }}}});
"""


class Tab(Protocol):
    """A tab of an engine."""

    async def goto(self, url: str) -> None:
        """Return when the page is loaded."""

    async def reload(self) -> None:
        """Return when the page is loaded again."""

    async def back(self) -> None:
        """Go back in the tab's history."""

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, as JSON; a promise is awaited."""

    async def screenshot(self) -> bytes:
        """What the tab shows, as PNG."""

    async def close(self) -> None:
        """Close the tab."""


class Engine(Protocol):
    """A running browser."""

    async def tab(self, *, blocked: bool = False) -> Tab:
        """A new tab; `blocked` is one in which the visitor blocks the data of sites."""


async def until(tab: Tab, condition: str, timeout: float = 15) -> None:
    """Return when a condition holds in the page. Raises TimeoutError, with the condition."""
    try:
        async with asyncio.timeout(timeout):
            while not await tab.evaluate(f"Boolean({condition})"):  # noqa: ASYNC110 - three engines, one way
                await asyncio.sleep(0.03)
    except TimeoutError:
        raise TimeoutError(condition) from None


# ---- Chromium ----


class _ChromiumTab:
    def __init__(self, page: Page) -> None:
        self._page = page

    async def goto(self, url: str) -> None:
        await self._page.goto(url)

    async def reload(self) -> None:
        await self._page.reload()

    async def back(self) -> None:
        await self._page.go_back()

    async def evaluate(self, expression: str) -> Any:
        return await self._page.evaluate(expression)

    async def screenshot(self) -> bytes:
        return await self._page.screenshot()

    async def close(self) -> None:
        await self._page.close()


@asynccontextmanager
async def _chromium() -> AsyncIterator[Engine]:
    async with chromium() as browser:
        size: Any = dict(zip(("width", "height"), SIZE, strict=True))
        context = await browser.new_context(viewport=size)

        class Chromium:
            async def tab(self, *, blocked: bool = False) -> Tab:
                page = await context.new_page()
                if blocked:  # its own setting for that is not to be had without a window
                    await page.add_init_script(DENY_STORAGES)
                return _ChromiumTab(page)

        yield Chromium()


# ---- Firefox ----

PREFERENCES: Final[Mapping[str, Any]] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.newtabpage.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.min_background_timeout_value": 4,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "remote.active-protocols": 1,
    "services.settings.server": "http://127.0.0.1:9",
    "toolkit.telemetry.enabled": False,
}
BLOCKED_COOKIES: Final = {"network.cookie.cookieBehavior": 2}
"""The visitor blocks all cookies, and with them all data of sites."""


class _BiDi:
    """Commands of WebDriver BiDi over one connection, and their answers. Source: W3C WebDriver BiDi."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def __call__(self, method: str, **parameters: Any) -> Any:
        number = len(self._waiting) + 1
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        await self._connection.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, START)

    async def _read(self) -> None:
        async for message in self._connection:
            said = message.json()
            answer = self._waiting.get(said.get("id"))
            if answer and not answer.done() and said["type"] == "error":
                answer.set_exception(RuntimeError(f"{said['error']}: {said['message']}"))
            elif answer and not answer.done():
                answer.set_result(said["result"])


class _FirefoxTab:
    def __init__(self, command: _BiDi, context: str) -> None:
        self._command = command
        self._context = context

    async def goto(self, url: str) -> None:
        await self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def reload(self) -> None:
        await self._command("browsingContext.reload", context=self._context, wait="complete")

    async def back(self) -> None:
        await self._command("browsingContext.traverseHistory", context=self._context, delta=-1)

    async def evaluate(self, expression: str) -> Any:
        wrapped = f"(async () => JSON.stringify(await ({expression})) ?? 'null')()"
        target = {"context": self._context}
        said = await self._command("script.evaluate", expression=wrapped, target=target, awaitPromise=True)
        if said["type"] == "exception":
            raise RuntimeError(said["exceptionDetails"]["text"])
        return json.loads(said["result"]["value"])

    async def screenshot(self) -> bytes:
        said = await self._command("browsingContext.captureScreenshot", context=self._context)
        return base64.b64decode(said["data"])

    async def close(self) -> None:
        await self._command("browsingContext.close", context=self._context)


@asynccontextmanager
async def _firefox(**preferences: Any) -> AsyncIterator[_BiDi]:
    program = find_program("firefox-esr", "firefox-esr fonts-noto-cjk")
    async with AsyncExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items())
        Path(profile, "user.js").write_text("".join(lines))  # noqa: ASYNC240 - a few lines
        width, height = SIZE
        command = [program, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"]
        size = [f"--width={width}", f"--height={height}"]
        process = await _started(stack, *command, *size, "about:blank", stderr=asyncio.subprocess.PIPE, HOME=profile)
        assert process.stderr
        address = await asyncio.wait_for(_line_with("WebDriver BiDi listening on ", process.stderr), START)
        draining = asyncio.create_task(process.stderr.read())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        connection = await stack.enter_async_context(session.ws_connect(f"{address}/session", max_msg_size=1 << 25))
        bidi = _BiDi(connection)
        await bidi("session.new", capabilities={})
        yield bidi
        with suppress(aiohttp.ClientError, RuntimeError):
            await bidi("browser.close")
        await asyncio.wait_for(process.wait(), START)
        await draining


async def _line_with(mark: str, output: asyncio.StreamReader) -> str:
    """What follows the mark on the line that has it."""
    while line := (await output.readline()).decode(errors="replace"):
        if mark in line:
            return line.partition(mark)[2].strip()
    raise RuntimeError("The browser ended before it could be driven.")


@asynccontextmanager
async def _firefox_engine() -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        command = await stack.enter_async_context(_firefox(**PREFERENCES))

        class Firefox:
            async def tab(self, *, blocked: bool = False) -> Tab:
                its = command
                if blocked:  # a setting of the whole profile
                    its = await stack.enter_async_context(_firefox(**PREFERENCES, **BLOCKED_COOKIES))
                made = await its("browsingContext.create", type="tab")
                return _FirefoxTab(its, made["context"])

        yield Firefox()


# ---- WebKitGTK ----


class _WebDriver:
    """Commands of one WebDriver session. They concern one window at a time, so they wait for each other.

    Source: W3C WebDriver 1.
    """

    def __init__(self, client: aiohttp.ClientSession, driver: str) -> None:
        self._client = client
        self._base = driver
        self._turn = asyncio.Lock()
        self._window = ""
        self._first = ""

    async def begin(self, *arguments: str) -> None:
        """Start the browser."""
        options = {"binary": _mini_browser(), "args": ["--automation", *arguments]}
        asked = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}}
        self._base += f"/session/{(await self.send('POST', '/session', asked))['sessionId']}"
        self._window = self._first = await self.send("GET", "/window")

    async def open(self) -> str:
        """A new window, by its handle. It is no tab: those behind another are hidden."""
        async with self._turn:
            return str((await self.send("POST", "/window/new", {"type": "window"}))["handle"])

    async def shut(self, window: str) -> None:
        """Close a window. A command needs one, so there is always the first."""
        await self("DELETE", "/window", window=window)
        await self("GET", "/window", window=self._first)

    async def __call__(self, method: str, path: str, body: Any = None, *, window: str) -> Any:
        async with self._turn:
            if window != self._window:
                await self.send("POST", "/window", {"handle": window})
                self._window = window
            return await self.send(method, path, body)

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        """A command that concerns no window, or the present one."""
        timeout = aiohttp.ClientTimeout(total=START)
        async with self._client.request(method, self._base + path, json=body or {}, timeout=timeout) as answer:
            value = (await answer.json())["value"]
            if answer.status != 200:
                raise RuntimeError(f"{value['error']}: {value['message']}")
            return value


def _mini_browser() -> str:
    """WebKitGTK's own browser, which is in no PATH."""
    found = sorted(Path("/usr/lib").glob("*/webkit2gtk-4*/MiniBrowser"))
    assert found, "MiniBrowser is missing; run: sudo apt-get install webkit2gtk-driver"
    return str(found[-1])


class _WebKitTab:
    def __init__(self, driver: _WebDriver, window: str) -> None:
        self._driver = driver
        self._window = window

    async def _do(self, method: str, path: str, **body: Any) -> Any:
        return await self._driver(method, path, body, window=self._window)

    async def goto(self, url: str) -> None:
        await self._do("POST", "/url", url=url)

    async def reload(self) -> None:
        await self._do("POST", "/refresh")

    async def back(self) -> None:
        await self._do("POST", "/back")

    async def evaluate(self, expression: str) -> Any:
        script = f"""
        const say = arguments[0];
        (async () => JSON.stringify(await ({expression})) ?? "null")().then(say, (error) => say("!" + error));
        """
        said = await self._do("POST", "/execute/async", script=script, args=[])
        if said.startswith("!"):
            raise RuntimeError(said[1:])
        return json.loads(said)

    async def screenshot(self) -> bytes:
        return base64.b64decode(await self._do("GET", "/screenshot"))

    async def close(self) -> None:
        await self._driver.shut(self._window)


@asynccontextmanager
async def _webkit(display: str, *arguments: str) -> AsyncIterator[_WebDriver]:
    """A browser with its driver: a driver has one session."""
    async with AsyncExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        port = free_port()
        surroundings = {"DISPLAY": display, "HOME": home, "XDG_RUNTIME_DIR": home, "GSETTINGS_BACKEND": "memory"}
        quiet = {"LIBGL_ALWAYS_SOFTWARE": "1", "NO_AT_BRIDGE": "1", "GDK_BACKEND": "x11", "LANG": "C.UTF-8"}
        program = find_program("WebKitWebDriver", "webkit2gtk-driver fonts-noto-cjk")
        nowhere = asyncio.subprocess.DEVNULL
        await _started(stack, program, f"--port={port}", stderr=nowhere, **surroundings, **quiet)
        client = await stack.enter_async_context(aiohttp.ClientSession())
        driver = _WebDriver(client, f"http://127.0.0.1:{port}")
        async with asyncio.timeout(START):
            while True:
                with suppress(aiohttp.ClientConnectionError):
                    await driver.send("GET", "/status")
                    break
                await asyncio.sleep(0.05)
        await driver.begin(*arguments)
        yield driver
        await driver.send("DELETE", "")


@asynccontextmanager
async def _webkit_engine() -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        display = await _screen(stack)
        driver = await stack.enter_async_context(_webkit(display))

        class WebKit:
            async def tab(self, *, blocked: bool = False) -> Tab:
                its = driver
                if blocked:  # a setting of the whole browser
                    its = await stack.enter_async_context(_webkit(display, "--enable-html5-local-storage=false"))
                return _WebKitTab(its, await its.open())

        yield WebKit()


async def _screen(stack: AsyncExitStack) -> str:
    """A display without a screen, by its name."""
    told, tell = os.pipe()
    width, height = SIZE
    command = [find_program("Xvfb", "xvfb"), "-displayfd", str(tell), "-screen", "0", f"{width}x{height}x24"]
    await _started(stack, *command, "-nolisten", "tcp", pass_fds=[tell], stderr=asyncio.subprocess.DEVNULL)
    os.close(tell)
    with os.fdopen(told) as number:
        return f":{(await asyncio.wait_for(asyncio.to_thread(number.readline), START)).strip()}"


# ---- processes ----


async def _started(stack: AsyncExitStack, *command: str, **options: Any) -> asyncio.subprocess.Process:
    """A program that is ended with the stack; options in capitals are its environment."""
    environment = {name: options.pop(name) for name in list(options) if name.isupper()}
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=nowhere, stdout=nowhere, env={**os.environ, **environment}, **options
    )

    async def end() -> None:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()

    stack.push_async_callback(end)
    return process


ENGINES: Final[Mapping[str, Callable[[], AbstractAsyncContextManager[Engine]]]] = {
    "chromium": _chromium,
    "firefox": _firefox_engine,
    "webkit": _webkit_engine,
}
