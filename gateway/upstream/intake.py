"""The bytes of one upstream answer, gathered in windows.

Coalescing happens here, at the read: after an event went out, the upstream's transport is paused for one window and
the kernel collects. One receive, one parse, one append, one wake-up and one write then serve every event of the
window. The window opens only after something was relayed, so the first event of a burst is never delayed, and a
stream slower than the window never waits at all.

This file knows nothing of events, and keeps no time limits; the generation watches over those.
"""

import asyncio

import aiohttp

from gateway.clock import Tick


class Intake:
    """Reads one response body.

    Args:
        response: an answer whose body is unread.
        tick: the beat that ends a window, None to relay every read at once.
        enough: a read of at least so many bytes opens no window; who sends that much needs no gathering.
    """

    __slots__ = ("_content", "_enough", "_response", "_tick", "_window")

    def __init__(self, response: aiohttp.ClientResponse, tick: Tick | None, enough: int) -> None:
        self._response = response
        self._content = response.content
        self._tick = tick
        self._enough = enough
        self._window: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """The bytes that came since the last read, at least one; b"" when the body ended well.

        Raises:
            aiohttp.ClientError: the body broke off or is malformed.
        """
        if self._window is not None:
            await self._gather(self._window)
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, ConnectionError):
            # aiohttp raises before it hands out what it had received; whole events in there are the reader's.
            rest: bytes = self._content._read_nowait(-1)
            if not rest:
                raise
            return rest

    def relayed(self, size: int) -> None:
        """Something of the last read, which had `size` bytes, went out: the next window opens."""
        if self._tick is not None and size < self._enough:
            self._window = self._tick.wait()

    async def _gather(self, window: asyncio.Future[None]) -> None:
        self._window = None
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        if transport is None or transport.is_closing():
            return
        transport.pause_reading()
        try:
            await window
        finally:
            if not transport.is_closing():
                transport.resume_reading()
