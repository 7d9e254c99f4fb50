"""Client connections: how many, how patient, and what a FIN means.

Invariants:

- A connection that does not bring a whole request head within `HEAD_TIME` is closed, dribbling or silent.
- Above `max_connections` a client is told 503 and closed before anything is parsed.
- A FIN is noticed when it arrives. From a client that closed, TCP answers the next bytes with a reset; from one that
  only half-closed (RFC 9112 9.6), it does not. So a stream answers a FIN with a comment at once and looks whether
  the reset came; whatever else is being made takes a FIN for a close. Nothing is read after a FIN, so the connection
  ends with the last answer that was asked for before.
- What a client does not read waits in the kernel, not here: at most `WRITE_HIGH` bytes of user-space buffer.
- A client that vanished without a FIN is given up by the kernel when bytes were not acknowledged for nine tenths of
  the time that a stream gives a client to take what it is sent; the stream itself watches over one that is only slow.
"""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from gateway.clock import Clock, Timer
from gateway.core.few import Few

HEAD_TIME: Final = 10.0
KEEP_ALIVE: Final = 75.0
"""Seconds an idle connection is kept: longer than a proxy in front does, so that it is the one to close."""
MAX_HEAD_LINE: Final = 16 * 1024
"""Bytes of the request line; long query tokens and messages must fit."""
MAX_HEADER_FIELD: Final = 8190
MAX_HEADERS: Final = 128
WRITE_HIGH: Final = 32 * 1024
NOTSENT_LOWAT: Final = 16 * 1024
USER_TIMEOUT: Final = 18.0
"""Seconds, outside of streams."""
VANISHED: Final = 0.9
"""Share of `write_timeout`: 18 s of 20 s. After a heartbeat of 15 s, and TCP's time to notice, less than 35 s."""
PROBES: Final = (0.001, 0.003, 0.01, 0.03, 0.2, 1.0, 3.0)
"""Seconds after a probe at which the socket is looked at."""
TCP_CLOSE: Final = 7
INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 21\r\n\r\ntoo many connections\n"
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

if HttpRequestParser is HttpRequestParserPy:  # pragma: no cover - an installation without aiohttp's extension
    sys.exit("aiohttp has only its pure-Python HTTP parser here, which most smuggling flaws hit; install a wheel of it")


class Connection(web.RequestHandler):
    """One client connection."""

    __slots__ = ("_begun", "_clock", "_half_closed", "_head_timer", "_server", "_speak", "_user_timeout")

    def __init__(self, server: "Server", clock: Clock, **options: Any) -> None:
        super().__init__(server, **options)
        self._messages = Few()  # type: ignore[assignment]
        self._begun = 0
        self._clock = clock
        self._half_closed = False
        self._head_timer: Timer | None = None
        self._server = server
        self._speak: Callable[[], None] | None = None
        self._user_timeout = USER_TIMEOUT

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bounds are set before the first byte is read."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=WRITE_HIGH)
        _tune(transport.get_extra_info("socket"))
        self._limit_silence(USER_TIMEOUT)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; those that begin a head start its time, those that complete it stop it."""
        idle, seen = self._idle, self._request_count
        super().data_received(data)
        if self._request_count != seen:
            self._forget_head()
        elif idle and self._head_timer is None:
            self._expect_head()

    def begin(self) -> None:
        """The next request is being answered. A FIN closes the connection unless `outlive_fin` says otherwise."""
        self._begun += 1
        self.keep_alive(True)  # its timer of half a KiB would run on; aiohttp sets another when the connection is idle
        self._speak = None
        self._end_after_last()

    def outlive_fin(self, speak: Callable[[], None] | None) -> None:
        """A FIN, even one that came before, closes the connection no longer.

        Args:
            speak: called at the FIN; something is to be written at once. None: a FIN closes again.
        """
        self._speak = speak
        if speak is not None and self._half_closed:
            self._probe(speak)

    def begin_stream(self, write_timeout: float) -> None:
        """A stream begins that gives its client so many seconds to take what it is sent."""
        self._user_timeout = VANISHED * write_timeout
        self._limit_silence(self._user_timeout)

    def check_open(self) -> None:
        """Returns where no FIN came before the request began.

        Raises:
            ConnectionError: one came, which is a close for an answer that nothing can be written of for long.
        """
        if self._half_closed:
            raise ConnectionResetError("the client closed with its request")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Whether the connection stays open for writing."""
        # A client may close its side right behind the request: what to make of that is for the handler to say.
        asked = self._request_count > self._begun and self._current_request is None
        # What an answer that is over wanted to say no longer matters: the connection is idle.
        speak = self._speak if self._current_request is not None else None
        if self.transport is None or not (asked or speak):
            return None
        self._half_closed = True
        self._end_after_last()
        if speak is not None:
            self._probe(speak)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Timers and places are given back."""
        self._forget_head()
        super().connection_lost(exc)

    async def drained(self) -> None:
        """Returns when the client took enough of what it was sent.

        Raises:
            ConnectionError: it is gone.
        """
        # To the kernel, a client that acknowledges but takes nothing is late too. Whoever waits here has a limit.
        self._limit_silence(0)
        try:
            await self._drain_helper()
        finally:
            self._limit_silence(self._user_timeout)

    async def flushed(self) -> None:
        """Returns when nothing that was written waits in this process any more.

        Raises:
            ConnectionError: the client is gone.
        """
        transport = self.transport
        if transport is None or transport.is_closing() or not transport.get_write_buffer_size():
            return
        transport.set_write_buffer_limits(high=0)
        try:
            await self.drained()
        finally:
            if not transport.is_closing():
                transport.set_write_buffer_limits(high=WRITE_HIGH)

    def _limit_silence(self, seconds: float) -> None:
        if self.transport is not None and not self.transport.is_closing():
            limit_silence(self.transport.get_extra_info("socket"), seconds)

    def abort(self) -> None:
        """The connection is reset, with whatever was not sent."""
        if self.transport is not None:
            self.transport.abort()

    def _probe(self, speak: Callable[[], None]) -> None:
        speak()
        loop = asyncio.get_running_loop()
        for delay in PROBES:
            loop.call_later(delay, self._close_if_reset)

    def _close_if_reset(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            self.transport.abort()

    @property
    def _idle(self) -> bool:
        return self._request_count == self._begun and self._current_request is None

    def _end_after_last(self) -> None:
        if self._half_closed and self._request_count == self._begun:
            self.close()

    def _expect_head(self) -> None:
        self._head_timer = self._clock.wheel.after(HEAD_TIME, self.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a head that could not be parsed, in this program's error shape."""
        return self._server.explain(status, message or "")


class Server(web.Server):
    """Makes a connection of every client that fits.

    Args:
        handler: answers requests.
        explain: answers what is no request.
        clock: the shared timers.
        max_connections: open connections at most.
    """

    def __init__(
        self,
        handler: Handler,
        explain: Callable[[int, str], web.StreamResponse],
        clock: Clock,
        max_connections: int,
    ) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=MAX_HEAD_LINE,
            max_field_size=MAX_HEADER_FIELD,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            lingering_time=2.0,
        )
        self.explain = explain
        self.max_connections = max_connections
        self._clock = clock

    def __call__(self) -> web.RequestHandler:
        """The protocol of one new connection."""
        if len(self._connections) >= self.max_connections:
            return _Refuser()  # type: ignore[return-value]
        return Connection(self, self._clock, loop=self._loop, **self._kwargs)


class _Refuser(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(REFUSAL)
        transport.close()


def limit_silence(sock: socket.socket | None, seconds: float) -> None:
    """The kernel gives a peer up that did not acknowledge something for so long; 0: not before its own limits."""
    if sock is not None and sock.family in INTERNET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def _tune(sock: socket.socket | None) -> None:
    if sock is None or sock.family not in INTERNET:
        return
    # Without the low-water mark a reader that never reads costs megabytes of kernel buffer.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
