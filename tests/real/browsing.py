"""Chromium for a whole module of tests, and a cable to the gateway that can be pulled.

Starting a browser takes a second, so a module shares one; each test has a context, and with it cookies, of its own.
This file knows no page and no path.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from playwright.async_api import Browser, async_playwright

from tests.kit.program import find_program

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READ = 64 << 10


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium, running."""
    path = find_program("chromium", "chromium fonts-noto-cjk")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class Cable:
    """A way for TCP connections to a port of this machine.

    Args:
        port: where it leads.

    Attributes:
        port: where it begins.
        connections: how many were made.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._open: set[asyncio.StreamWriter] = set()
        self._carriers: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pull()

    def cut(self) -> None:
        """Break every connection off; new ones can be made."""
        for writer in self._open:
            writer.transport.abort()

    async def pull(self) -> None:
        """Break every connection off; new ones are refused until `plug`."""
        self._server.close()
        self.cut()
        await asyncio.gather(*self._carriers)

    async def plug(self) -> None:
        """Connections can be made again."""
        await self.__aenter__()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carriers.add(task)
        task.add_done_callback(self._carriers.discard)
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._open |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._open -= {writer, back}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(READ):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        writer.transport.abort()  # what broke on one side breaks on the other
        return
    writer.close()
