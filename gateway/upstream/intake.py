"""The bytes of one upstream answer, gathered in windows.

Coalescing happens here, at the read: after something was relayed, the upstream's transport is paused and the kernel
collects for one window. One receive, one parse, one append and one write then serve every event of the window. So the
first event of a burst is never delayed, and a stream slower than the window never waits at all. Short windows open only
behind two reads that were as close as that: for a slow stream, opening one for nothing is a fifth of the cost.

Three means, each of them measured with 300 streams of 50 events a second, in CPU of the whole gateway per event:

- *Polled drain*, as network drivers do it: while a stream is fast its transport stays paused, and the shared tick reads
  its socket once per window and relays what came in the same call. No wake-up of a task, no epoll call. When a poll
  finds nothing, the stream goes back to events, because an idle stream must cost nothing.      -20 % (with delivery's)
- *`Body`* in place of aiohttp's own reader, which parses an empty read after every HTTP chunk it hands out. -25 %
- Over TLS there is no socket to read; there the transport is paused and resumed.

A window longer than `BEAT` ends early when `enough` bytes wait in the kernel; that is looked at once a beat.

This file knows nothing of events, and keeps no time limits; the generation watches over those.
"""

import asyncio
import enum
import fcntl
import os
import sys
import termios
from collections.abc import Callable
from typing import Final

import aiohttp

from gateway.clock import Clock

BEAT: Final = 0.05
"""Seconds between two looks at a stream that is in a window."""
MAX_POLL: Final = 64 * 1024
"""Bytes one poll reads. A stream that has more than a window's worth goes back to events, which read at full speed."""


class Taken(enum.Enum):
    """What became of some bytes."""

    NOTHING = "no event was whole"
    RELAYED = "at least one event went out"
    ENOUGH = "the caller has something else to do now than to read on"


Take = Callable[[bytes], Taken]


class Body(aiohttp.StreamReader):
    """A response body that hands out whatever came, in one piece, and what came before an error too.

    It is aiohttp's reader with another way of reading; an instance becomes one by `adopt`.
    """

    __slots__ = ()

    @classmethod
    def adopt(cls, content: aiohttp.StreamReader) -> "Body":
        """The same body, read in this way from now on."""
        content.__class__ = cls  # the parser holds the instance already, and offers no way to give it another
        assert isinstance(content, Body)
        return content

    def begin_http_chunk_receiving(self) -> None:
        """Where HTTP chunks begin and end means nothing to an event stream."""

    def end_http_chunk_receiving(self) -> None:
        """As `begin_http_chunk_receiving`."""

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        """More of the body came; above the high-water mark the transport is paused."""
        self._buffer.append(data)
        self._size += len(data)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._size > self._high_water:
            self._protocol.pause_reading()
        return False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._eof or self._exception is not None

    def take(self) -> bytes:
        """What came since it was last asked for, b"" when nothing did."""
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        if self._protocol._reading_paused:
            self._protocol.resume_reading()
        return data

    async def more(self) -> bytes:
        """What came since it was last asked for, at least one byte; b"" when the body ended well.

        Raises:
            aiohttp.ClientError: the body broke off or is malformed.
        """
        while not self._buffer and not self._eof:
            if self._exception is not None:
                raise self._exception
            await self._wait("more")
        return self.take()


class Intake:
    """Relays one response body.

    Args:
        response: an answer whose body is unread.
        clock: the shared timers.
        interval: seconds a window lasts, 0 to relay every read at once.
        enough: bytes that end a window; a read of so many opens none.
    """

    __slots__ = (
        "_body",
        "_descriptor",
        "_due",
        "_enough",
        "_interval",
        "_is_plain",
        "_now",
        "_poll",
        "_response",
        "_take",
        "_tick",
        "_transport",
    )

    def __init__(self, response: aiohttp.ClientResponse, clock: Clock, interval: float, enough: int) -> None:
        self._response = response
        self._body = Body.adopt(response.content)
        self._tick = clock.tick(min(interval, BEAT)) if interval else None
        self._interval = interval
        self._now = clock.now
        self._due = 0.0
        self._enough = enough
        self._poll: asyncio.Future[Taken] | None = None

    async def relay(self, take: Take) -> bool:
        """Hands what comes to `take` until that has enough (False), or the body ended well (True).

        Raises:
            aiohttp.ClientError: the body broke off or is malformed.
        """
        latest = 0.0
        while data := await self._body.more():
            taken, before, latest = take(data), latest, self._now()
            fast = latest - before < self._interval or self._interval > BEAT
            if taken is Taken.RELAYED and self._interval and fast and len(data) < self._enough:
                taken = await self._window(take)
            if taken is Taken.ENOUGH:
                return False
        return True

    async def _window(self, take: Take) -> Taken:
        """Returns when a poll found nothing, or `take` has enough."""
        connection = self._response.connection
        if connection is None or connection.transport is None or connection.transport.is_closing():
            return Taken.NOTHING
        self._transport, self._take = connection.transport, take
        self._descriptor = _descriptor(self._transport)
        self._is_plain = self._transport.get_extra_info("sslcontext") is None
        self._poll = asyncio.get_running_loop().create_future()
        self._transport.pause_reading()
        self._open()
        try:
            return await self._poll
        finally:
            self._poll = None
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _open(self) -> None:
        assert self._tick is not None
        # Half a beat less: a tick that comes a little early must not cost another whole one.
        self._due = self._now() + self._interval - BEAT / 2 if self._interval > BEAT else 0.0
        self._tick.add(self._beat)

    def _beat(self) -> None:
        poll = self._poll
        if poll is None or poll.done():
            return
        if self._due and self._now() < self._due and self._waiting() < self._enough:
            assert self._tick is not None
            self._tick.add(self._beat)
            return
        try:
            taken = self._read()
        except Exception as error:  # noqa: BLE001 - the pump's to judge; the tick serves all streams and must go on
            poll.set_exception(error)
            return
        if taken is None or taken is Taken.ENOUGH:
            poll.set_result(taken or Taken.NOTHING)
        else:
            self._open()

    def _waiting(self) -> int:
        """Bytes that wait in the kernel; where that cannot be told there are always enough."""
        if self._transport.is_closing() or self._descriptor < 0:
            return self._enough
        return int.from_bytes(fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4), sys.byteorder)

    def _read(self) -> Taken | None:
        """What became of what was there; None where it is time to go back to events."""
        # A closing transport's descriptor may already be somebody else's.
        if self._descriptor < 0 or not self._is_plain or self._transport.is_closing():
            return None
        try:
            data = os.read(self._descriptor, MAX_POLL)
        except OSError:
            return None  # nothing there yet, or an error: either is the transport's to find
        connection = self._response.connection
        if not data or connection is None or connection.protocol is None:
            return None
        connection.protocol.data_received(data)
        body = self._body
        if body.over or len(data) >= self._enough:
            return None
        came = body.take()
        return self._take(came) if came else Taken.NOTHING


def _descriptor(transport: asyncio.BaseTransport) -> int:
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())
