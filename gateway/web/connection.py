"""Client connections: how many there may be, how long each may take, and what a FIN means.

The states of a connection. `state` computes them from what aiohttp and this class know; nothing stores them.

        a new connection
               │
               ▼    the head is whole            the handler is called
        ┌──▶ HEAD ────────────────────▶ ASKED ───────────────────────────▶ ANSWERING
        │                              ▲  ▲                                 │    │
        │ a part of a head             │  │ the handler returned, and       │    │ the handler
        │                a whole head  │  │ another whole head came before  │    │ returned
        │                              │  └─────────────────────────────────┘    │
        └───────────── IDLE ───────────┘                                         │
                        ▲                                                        │
                        └────────────────────────────────────────────────────────┘

| state     | what it waits for               | time limit                         | a FIN                             |
|-----------|---------------------------------|------------------------------------|-----------------------------------|
| HEAD      | the rest of a request's head    | `HEAD_TIME`, then it is aborted    | closes it                         |
| ASKED     | a handler for a whole request   | none, a handler begins at once, or | is kept for the handler, which    |
|           |                                 | behind the answer before           | may refuse it (`check_open`)      |
| ANSWERING | the handler                     | the handler's own                  | closes it, or after `outlive_fin` |
|           |                                 |                                    | makes the handler speak           |
| IDLE      | the next request                | `KEEP_ALIVE`, then it is closed    | closes it                         |

A connection that was *half-closed* by a FIN and is still open ends with the answer to the last whole request. It ends
sooner when a probe finds that the client has answered with a reset.

Invariants:

- A connection that does not bring a whole request head within `HEAD_TIME` is closed, dribbling or silent. A part of a
  head that came while another request was answered has `KEEP_ALIVE` from the end of that answer.
- Above `max_connections` a client is told 503 and closed before anything is parsed; so it is told 429 above what one
  address may have (`Door`), from the accept on: a silent connection counts as any other.
- A FIN is noticed when it arrives. From a client that closed, TCP answers the next bytes with a reset; from one that
  only half-closed (RFC 9112 9.6), it does not. So a stream answers a FIN with a comment at once and looks whether
  the reset came; whatever else is being made takes a FIN for a close. Nothing is read after a FIN, so the connection
  ends with the last answer that was asked for before.
- What a client does not read waits in the kernel, not here: at most `WRITE_HIGH` bytes of user-space buffer. Of a body
  that nobody reads yet, twice `PIECE` wait here, and one read that is not parsed.
- The kernel gives up a client that vanished without a FIN, when it acknowledged nothing for nine tenths of the stream's
  `write_timeout`. The stream itself watches over a client that is only slow.
"""

import asyncio
import enum
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, cast

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from gateway.clock import Clock, Timer
from gateway.core.limiter import Lease
from gateway.web.aiohttp_internals import (
    Holding,
    drain,
    ends_malformed,
    forget_queue,
    heads_parsed,
    is_answering,
    unfinished_body,
)
from gateway.web.reads import PIECE, Reads
from gateway.web.unparsed import MAX_HEAD_LINE, MAX_HEADER_FIELD, MAX_HEADERS, Unparsed

HEAD_TIME: Final = 10.0
KEEP_ALIVE: Final = 75.0
"""Seconds an idle connection is kept: longer than a proxy in front does, so that it is the one to close."""
MAX_KEPT: Final = MAX_HEAD_LINE + MAX_HEADER_FIELD
"""Bytes of an unfinished head that are kept, so that its client can be answered if it turns out to be malformed."""
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
TOO_MANY_OF_ONE: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 39\r\n\r\ntoo many connections from this address\n"
)
HEARING: Final = 1.0
"""Seconds after which a connection is closed whose client is not answered any more. Until then it may send what it is
sending, and read why."""
MAX_HEARD: Final = 64
"""Refused connections that are heard at once; others are closed when the refusal was written."""

_ASKS_FOR_EVENTS: Final = re.compile(rb"\r\naccept:[^\r\n]*text/event-stream", re.IGNORECASE)

T = TypeVar("T")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

if HttpRequestParser is HttpRequestParserPy:  # pragma: no cover - an installation without aiohttp's extension
    sys.exit("aiohttp has only its pure-Python HTTP parser here, which most smuggling flaws hit; install a wheel of it")


class Door(Protocol):
    """Decides which clients may have a connection."""

    def admit(self, address: str) -> Lease | None:
        """What the connection of this address holds, to be closed at its end; None: it may have no more of them."""

    def turn_away(self, address: str) -> None:
        """A connection is refused because there are too many in all."""


class ConnectionState(enum.Enum):
    """What a connection waits for; see the drawing above."""

    HEAD = "the rest of a request's head"
    ASKED = "a handler for a whole request"
    ANSWERING = "the handler"
    IDLE = "the next request"


class Explained(Holding):
    """A connection on which what is no request, or cannot be answered, is answered in this program's words: those of
    aiohttp quote the client's bytes.

    Behind such an answer the client is heard out: TCP resets a connection that is closed while bytes of its client are
    unread, and the client may lose the answer by that. Source: RFC 9112 9.6.

    Args:
        server: as for aiohttp's handler.
        reads: has large reads parsed in pieces.
        options: of aiohttp's handler.

    Attributes:
        failed: whether its request is malformed, or could not be answered: then the answer is the connection's last.
    """

    __slots__ = ("_reads", "_unparsed", "failed")

    def __init__(self, server: web.Server, reads: Reads, **options: Any) -> None:
        super().__init__(server, **options)
        self.failed = False
        self._reads = reads
        self._unparsed: memoryview | None = None  # what was read and is to be parsed

    def data_received(self, data: bytes) -> None:
        """Bytes of the client; none where aiohttp goes on with what its parser has."""
        if len(data) <= PIECE and (self._unparsed is None or not data):
            self.parse(data)
            return
        if self._unparsed is not None:
            data = bytes(self._unparsed) + data
        self._unparsed = memoryview(data)
        self.stops()
        self._reads.add(self)

    def parse(self, data: bytes) -> None:
        """Parses these bytes at once."""
        super().data_received(data)

    def parse_piece(self) -> bool:
        """See `reads.Waiting`."""
        unparsed, transport = self._unparsed, self.transport
        if unparsed is None or transport is None or self.holds:
            return False
        rest = unparsed[PIECE:]
        self._unparsed = rest if rest else None
        try:
            self.parse(bytes(unparsed[:PIECE]))
        except Exception as error:  # noqa: BLE001  # the loop would end a connection whose `data_received` raised
            context = {"message": "a connection could not be parsed", "exception": error, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(context)
            transport.abort()
            return False
        if self._unparsed is not None:
            return not self.holds
        if not self.holds:
            super().goes_on()
        return False

    def goes_on(self) -> None:
        """The parser takes more again: first of what was read before."""
        if self._unparsed is None:
            super().goes_on()
        else:
            self._reads.add(self)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer that `explain` gives.

        Where the client has gone (`ConnectionError`), or a head was sent already, nothing is answered, and the
        connection is aborted. The request was counted and logged before.
        """
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            if self.transport is not None:
                self.transport.abort()
            return web.Response(status=status)
        self.failed = True
        return self.explain(status, message or "")

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Sends the rest of an answer; after that aiohttp goes on to the next request, or closes."""
        finished = super().finish_response(request, resp, start_time)
        return self._hear_out(finished) if self.failed else finished

    async def _hear_out(self, finished: Awaitable[T]) -> T:
        result, transport = await finished, self.transport
        if transport is not None and not transport.is_closing():
            transport.set_protocol(_Deaf(self))
            transport.write_eof()
            await asyncio.sleep(HEARING)
        return result

    def explain(self, status: int, message: str) -> web.StreamResponse:
        """The answer to what is no request; 500 where an exception kept one from being answered.

        Args:
            status: of HTTP.
            message: aiohttp's own, which must not be shown.
        """
        raise NotImplementedError


class _Deaf(asyncio.Protocol):
    """Drops what a client sends behind the last answer. At the client's own end the connection is closed."""

    def __init__(self, connection: Explained) -> None:
        self._connection = connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


class Connection(Explained):
    """One client connection.

    Who answers a request must call `begin` before anything else, and for a stream `begin_stream` and `outlive_fin`.
    """

    __slots__ = (
        "_begun",
        "_begun_head",
        "_clock",
        "_half_closed",
        "_head_timer",
        "_place",
        "_refused",
        "_server",
        "_speak",
        "_user_timeout",
    )

    def __init__(self, server: "Server", reads: Reads, clock: Clock, **options: Any) -> None:
        super().__init__(server, reads, **options)
        forget_queue(self)
        self._begun = 0
        self._begun_head = b""
        self._clock = clock
        self._half_closed = False
        self._head_timer: Timer | None = None
        self._place: Lease | None = None
        self._refused = b""
        self._server = server
        self._speak: Callable[[], None] | None = None
        self._user_timeout = USER_TIMEOUT

    @property
    def state(self) -> ConnectionState:
        """What the connection waits for."""
        if is_answering(self):
            return ConnectionState.ANSWERING
        if heads_parsed(self) > self._begun:
            return ConnectionState.ASKED
        return ConnectionState.IDLE if self._head_timer is None else ConnectionState.HEAD

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bounds are set before the first byte is read. A client that has too many connections is turned away."""
        if self._server.door is not None:
            self._place = self._server.door.admit(address_of(transport))
            if self._place is None:
                self._server.refuse(transport, TOO_MANY_OF_ONE)
                return
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=WRITE_HIGH)
        _tune(transport.get_extra_info("socket"))
        self._limit_silence(USER_TIMEOUT)
        self._expect_head()

    def parse(self, data: bytes) -> None:
        """Bytes of a request; those that begin a head start its time, those that complete it stop it."""
        state, seen = self.state, heads_parsed(self)
        super().parse(data)
        if heads_parsed(self) != seen:
            self._forget_head()
            if ends_malformed(self):
                self._refuse(self._begun_head + data)
            self._begun_head = b""
            return
        if state is ConnectionState.IDLE:
            self._expect_head()
        if state in (ConnectionState.IDLE, ConnectionState.HEAD):
            self._begun_head = (self._begun_head + data)[:MAX_KEPT]

    def _refuse(self, data: bytes) -> None:
        """What came last is malformed: the rest of a body, whose request then ends the connection, or else a head."""
        body = unfinished_body(self)
        if body is None:
            self._refused = data
            return
        self.failed = True
        body.set_exception(web.RequestPayloadError("malformed"))
        body.feed_eof()
        self.close()

    def begin(self) -> None:
        """The next request is being answered. A FIN closes the connection unless `outlive_fin` says otherwise."""
        self._begun += 1
        self.keep_alive(True)  # cancels the timer of `KEEP_ALIVE`, half a KiB; aiohttp sets another after the answer
        self._speak = None
        self._end_after_last()

    def outlive_fin(self, speak: Callable[[], None] | None) -> None:
        """From now on a FIN, even one that came before, does not close the connection.

        Args:
            speak: called at the FIN; it must write something at once. None: a FIN closes the connection again.
        """
        self._speak = speak
        if speak is not None and self._half_closed:
            self._probe(speak)

    def begin_stream(self, write_timeout: float) -> None:
        """A stream begins, whose client is given up when it takes nothing for `write_timeout` seconds."""
        self._user_timeout = VANISHED * write_timeout
        self._limit_silence(self._user_timeout)

    @property
    def half_closed(self) -> bool:
        """Whether its client has closed its side."""
        return self._half_closed

    def check_open(self) -> None:
        """Returns where no FIN came behind the request.

        Raises:
            ConnectionError: one came. An answer that writes nothing for long must take it for a close.
        """
        if self._half_closed:
            raise ConnectionResetError("the client closed with its request")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Whether the connection stays open for writing."""
        state = self.state
        # `_speak` may be left over from an answer that is over.
        speak = self._speak if state is ConnectionState.ANSWERING else None
        # A client may close its side right behind the request: the handler decides what that means.
        if self.transport is None or not (state is ConnectionState.ASKED or speak):
            return None
        self._half_closed = True
        self._end_after_last()
        if speak is not None:
            self._probe(speak)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Timers are stopped; aiohttp cancels the handler."""
        self._forget_head()
        if self._place is not None:
            self._place.close(self._clock.now())
        super().connection_lost(exc)

    async def drained(self) -> None:
        """Returns when the client took enough of what it was sent. The caller must limit the time.

        Raises:
            ConnectionError: it is gone.
        """
        # To the kernel, a client that acknowledges but takes nothing is silent as well. Here the caller has a limit.
        self._limit_silence(0)
        try:
            await drain(self)
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

    def part(self) -> None:
        """The connection is closed behind what was written, in the middle of a body: the client sees that more was to
        come."""
        if self.transport is not None:
            self.transport.close()

    def _probe(self, speak: Callable[[], None]) -> None:
        """What is written now makes a client that closed answer with a reset; later looks find that reset."""
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

    def _end_after_last(self) -> None:
        """After a FIN, the connection ends with the answer to the last request that came."""
        if self._half_closed and heads_parsed(self) == self._begun:
            self.close()

    def _expect_head(self) -> None:
        self._head_timer = self._clock.wheel.after(HEAD_TIME, self.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def explain(self, status: int, message: str) -> web.StreamResponse:
        """The answer to a head that could not be parsed, in this program's error shape."""
        refused, self._refused = self._refused, b""
        return self._server.explain(Unparsed(message, refused, address_of(self.transport)))


class Server(web.Server):
    """Makes a connection of every client that fits.

    Args:
        handler: answers requests.
        explain: answers what is no request.
        clock: the shared timers.
        max_connections: open connections at most.
        door: which clients may have a connection; None: all.

    Attributes:
        door: as given.
    """

    def __init__(
        self,
        handler: Handler,
        explain: Callable[[Unparsed], web.StreamResponse],
        clock: Clock,
        max_connections: int,
        door: Door | None = None,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.explain = explain
        self.max_connections = max_connections
        self.door = door
        self._clock = clock
        self._reads = Reads()
        self._heard = 0
        self._open = 0

    def __call__(self) -> web.RequestHandler:
        """The protocol of one new connection."""
        if self._open >= self.max_connections:
            return _Crowded(self)  # type: ignore[return-value]
        return Connection(
            self,
            self._reads,
            self._clock,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=MAX_HEAD_LINE,
            max_field_size=MAX_HEADER_FIELD,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            lingering_time=2.0,
            read_bufsize=PIECE,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A connection takes one of the `max_connections` places."""
        super().connection_made(handler, transport)
        self._open += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """It gives its place back."""
        super().connection_lost(handler, exc)
        self._open -= 1

    def refuse(self, transport: asyncio.BaseTransport, answer: bytes) -> None:
        """The client is told this and its connection ends."""
        transport.set_protocol(_Refused(cast(asyncio.Transport, transport), answer, self))

    def hear(self, change: int) -> bool:
        """Whether so many more refused connections may be heard; fewer always may."""
        if self._heard + change > MAX_HEARD:
            return False
        self._heard += change
        return True


class _Crowded(asyncio.Protocol):
    """One connection more than there may be."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._server.door is not None:
            self._server.door.turn_away(address_of(transport))
        self._server.refuse(transport, REFUSAL)


class _Refused(asyncio.Protocol):
    """A refused connection. It is closed behind the client's request, as a client that is still sending reads no answer
    from a connection that was closed before; or after `HEARING` seconds.

    An EventSource would never come back after a status of 429 or 503. After no answer at all it does.
    """

    def __init__(self, transport: asyncio.Transport, answer: bytes, server: Server) -> None:
        self._transport = transport
        self._answer = answer
        self._server = server
        self._heard = server.hear(1)
        self._timer = asyncio.get_running_loop().call_later(HEARING, self._finish) if self._heard else None
        if self._timer is None:
            self._finish()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET ") and _ASKS_FOR_EVENTS.search(data):
            self._answer = b""
        self._finish()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._heard:
            self._server.hear(-1)

    def _finish(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answer)
            self._transport.close()


def address_of(transport: asyncio.BaseTransport | None) -> str:
    """The IP address at the other end of a connection, "" where there is none."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else ""


def limit_silence(sock: socket.socket | None, seconds: float) -> None:
    """The kernel gives up a peer that acknowledges nothing for `seconds`; 0: the kernel's own limits hold."""
    if sock is not None and sock.family in INTERNET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def _tune(sock: socket.socket | None) -> None:
    if sock is None or sock.family not in INTERNET:
        return
    # Without the low-water mark a reader that never reads costs megabytes of kernel buffer.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
