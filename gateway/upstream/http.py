"""One attempt over HTTP: a call goes out, a response with a body yet to be read comes back, or one clear error.

Invariants:

- The client does nothing on its own: no redirect is followed, no cookie kept, no proxy taken from the environment,
  no encoding asked for or undone, no time limit set beyond connecting. The attempt and the generation set the others.
- A response that was not read to its end is closed, never put back into the pool.
- The upstream may close an idle connection in the very moment in which a request takes it. A request that is lost in
  this way is sent once more on a new connection, where it may be sent twice. That counts as no failed attempt; nginx
  does the same.
- Whatever aiohttp raises becomes a `GatewayError`. Hosts and addresses appear in its `detail` only, and what aiohttp
  quotes of a request or an answer appears nowhere.
"""

import asyncio
import functools
import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from gateway.core.errors import GatewayError
from gateway.dialects.base import Call
from gateway.upstream.aiohttp_internals import bound_heads, put_back

MAX_HEADER_FIELD: Final = 8190
MAX_HEAD: Final = 8 * 1024
"""Bytes of all headers of a response."""
MAX_ERROR_BODY: Final = 64 * 1024
ERROR_BODY_TIME: Final = 5.0
READ_BUFFER: Final = 64 * 1024
PIECE: Final = 64 * 1024
"""Bytes of a request's body that are sent at once."""
SILENCE: Final = 10
"""Seconds of silence after which our kernel probes the peer's kernel (TCP keep-alive), whatever its program does."""
PROBE_INTERVAL: Final = 5
PROBES: Final = 3
"""Probes without an answer, `PROBE_INTERVAL` seconds apart, after which the peer is dead: 25 s in all."""

STATUSES: Final = range(200, 600)
"""Statuses of a whole answer. Source: RFC 9110 15, which knows no others."""
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Source: RFC 9110 5.5, RFC 9112 4; a tab may stand in both."""
_QUOTE: Final = re.compile(r":?\s*(\n|b?['\"]).*", re.DOTALL)


class _Trip:
    """How one request goes out.

    Attributes:
        fresh: whether it must go out on a new connection.
        dialled: whether a new connection was opened for it.
        protocol: of the connection that it went out on last.
    """

    __slots__ = ("dialled", "fresh", "protocol")

    def __init__(self, *, fresh: bool) -> None:
        self.fresh = fresh
        self.dialled = False
        self.protocol: ResponseHandler | None = None


_trip: Final[ContextVar[_Trip]] = ContextVar("trip")  # aiohttp hands nothing of a request's own to its connector


class _Connector(aiohttp.TCPConnector):
    """Hands out idle connections that are clean, and none to a request that needs a new one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(socket_factory=_new_socket, **options)
        bound_heads(self)

    async def connect(self, req: aiohttp.ClientRequest, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        trip = _trip.get(None)
        if trip is None:  # no attempt of ours
            _trip.set(trip := _Trip(fresh=False))
        trip.dialled = False
        passed_over = []
        try:
            while True:
                connection = await super().connect(req, traces, timeout)
                # Bytes that came on an idle connection were not asked for; they would be taken for this answer.
                spoiled = connection.protocol is None or connection.protocol.should_close
                if trip.dialled or not (trip.fresh or spoiled):
                    trip.protocol = connection.protocol
                    return connection
                passed_over.append(connection)
        finally:
            for connection in passed_over:
                connection.release()  # it is idle again, or closed where it is spoiled


def _new_socket(address: Any) -> socket.socket:
    """A socket for a new connection, which the request that asks for it is told of.

    A silent model and a dead server look alike to HTTP; TCP keep-alive tells them apart. Source: tcp(7).
    """
    family, kind, protocol, *_ = address
    _trip.get().dialled = True
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    # Keep-alive says nothing while bytes that we sent wait for their acknowledgement; this does.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (SILENCE + PROBES * PROBE_INTERVAL) * 1000)
    return sock


class _Pieces(aiohttp.BytesPayload):
    """A long body, given to its connection piece by piece, and only as fast as that sends them.

    aiohttp gives it as a whole: a copy of it with the head before it, and another of what the socket does not take.
    """

    def __init__(self, body: bytes | bytearray) -> None:
        super().__init__(body)
        self._body = body

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        view = memoryview(self._body)[:content_length]
        for start in range(0, len(view), PIECE):
            await writer.write(view[start : start + PIECE])
            await asyncio.sleep(0)  # a socket may take megabytes at once


class _LostError(aiohttp.ClientError):
    """What aiohttp raised, in a form that it does not answer by sending the request again by itself."""


async def _sent_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """A client middleware: aiohttp sends a lost GET a second time; here only `_sent` decides that, and counts it."""
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _LostError from error


def new_session() -> aiohttp.ClientSession:
    """The process's one HTTP client. Connections are unlimited here; admission bounds the streams."""
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, ttl_dns_cache=30, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_BUFFER,
        max_line_size=MAX_HEADER_FIELD,
        max_field_size=MAX_HEADER_FIELD,
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
        middlewares=(_sent_once,),
    )


async def attempt(
    session: aiohttp.ClientSession, call: Call, *, connect_timeout: float, again: bool, verify_tls: bool = True
) -> "Reply":
    """The response to one call, whatever its status. It is a context manager; the caller must enter it at once.

    Args:
        session: the HTTP client, from `new_session`.
        call: method, absolute URL, headers and body.
        connect_timeout: seconds for name look-up, connecting and TLS together.
        again: whether the request may be sent twice when an idle connection turns out to be closed.
        verify_tls: whether the peer's certificate is checked.

    Raises:
        GatewayError: no response began: `upstream_unreachable`, `upstream_tls`, `upstream_reset`, `upstream_protocol`.
    """
    options: dict[str, Any] = {
        "headers": {hdrs.ACCEPT_ENCODING: "identity", **call.headers},
        "timeout": _timeout(connect_timeout),
    } | ({} if verify_tls else {"ssl": False})
    response = await _sent(session, call, options, again=again)
    try:
        _check_head(response)
    except GatewayError:
        response.close()
        if (protocol := _trip.get().protocol) is not None:
            protocol.close()  # an answer without a body has left it to the pool already
        raise
    return Reply(response)


@functools.lru_cache(maxsize=64)  # all streams of a route have the same, and each would keep its own
def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds)


class Reply:
    """A response in a `with` block. At the end of the block the connection is kept if the body was read to its end.

    While the block runs, the loss of the connection makes the body fail. aiohttp alone does not: after a malformed
    chunk it closes the connection, and a reader of the body would wait for ever. The block then raises `upstream_cut`
    or `upstream_protocol`. This is a class and no generator, which would take half a KiB for as long as a stream lasts.
    """

    __slots__ = ("_lost", "_protocol", "_response")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._protocol = response.connection.protocol if response.connection is not None else None
        self._lost = self._protocol.closed if self._protocol is not None else None

    def __enter__(self) -> aiohttp.ClientResponse:
        if self._lost is not None:
            # A connection has one such future for all its answers, and one such callback is enough.
            self._lost.remove_done_callback(_mark_retrieved)
            self._lost.add_done_callback(_mark_retrieved)
            self._lost.add_done_callback(self._end)
        return self._response

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._lost is not None:
            self._lost.remove_done_callback(self._end)
        self._response.close()
        if isinstance(error, aiohttp.ClientError | ConnectionError):
            raise body_error(error) from error

    def _end(self, _: object) -> None:
        cause = self._protocol.exception() if self._protocol is not None else None
        fail_body(self._response, "the connection is lost", cause)


def fail_body(response: aiohttp.ClientResponse, reason: str, cause: BaseException | None) -> None:
    """From now on, reading the body raises `aiohttp.ClientPayloadError`, unless it is whole or has failed already.

    Args:
        response: an answer whose body may have begun.
        reason: in words.
        cause: the error that `body_error` reads, None where the body was cut off.
    """
    content = response.content
    if not content.is_eof() and content.exception() is None:
        error = aiohttp.ClientPayloadError(reason)
        error.__cause__ = cause
        content.set_exception(error)


async def _sent(
    session: aiohttp.ClientSession, call: Call, options: dict[str, Any], *, again: bool
) -> aiohttp.ClientResponse:
    """The head of the response. Source: RFC 9112 9.3.1 for the second try."""
    trip = _Trip(fresh=False)
    try:
        return await _send(session, call, options, trip)
    except GatewayError as error:
        if trip.dialled or not again or error.code != "upstream_reset":
            raise
    return await _send(session, call, options, _Trip(fresh=True))


async def _send(
    session: aiohttp.ClientSession, call: Call, options: dict[str, Any], trip: _Trip
) -> aiohttp.ClientResponse:
    _trip.set(trip)
    url = URL(call.url, encoded=True)
    try:
        return await session.request(call.method, url, data=_body(call), allow_redirects=False, **options)
    except _LostError as lost:
        raise _opening_error(lost.__cause__ or lost) from lost.__cause__
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise _opening_error(error) from error


def _body(call: Call) -> "bytes | bytearray | _Pieces | None":
    return _Pieces(call.body) if len(call.body) > PIECE else call.body or None


def _mark_retrieved(lost: "asyncio.Future[None]") -> None:
    # An idle connection may break, and nobody waits for that; without this asyncio would log an error.
    if not lost.cancelled():
        lost.exception()


async def read_error_body(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer that is no stream: at most 64 KiB, and what came within five seconds.

    It is decompressed: some networks in front of providers compress their refusals, whatever they are asked for.
    """
    return _decompressed(response, await _begun_body(response))[:MAX_ERROR_BODY]


async def peek_error_body(response: aiohttp.ClientResponse) -> bytes:
    """Like `read_error_body`, but the body is still there for whoever reads it next."""
    body = await _begun_body(response)
    put_back(response.content, body)
    return _decompressed(response, body)[:MAX_ERROR_BODY]


def _decompressed(response: aiohttp.ClientResponse, body: bytes) -> bytes:
    """At most `MAX_ERROR_BODY` bytes of a compressed body; nothing of one in another coding. Source: RFC 9110 8.4.1."""
    coding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if coding in ("identity", ""):
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        return b""
    raw = coding == "deflate" and body[:1] != b"\x78"  # without zlib's header, as some servers send it
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32).decompress(body, MAX_ERROR_BODY)
    except zlib.error:
        return b""


async def _begun_body(response: aiohttp.ClientResponse) -> bytes:
    """What was read of a body until it is `MAX_ERROR_BODY` long, with all of the last read."""
    body = b""
    try:
        async with asyncio.timeout(ERROR_BODY_TIME):
            while len(body) < MAX_ERROR_BODY and (part := await response.content.readany()):
                body += part
    except (TimeoutError, aiohttp.ClientError, ConnectionError):
        return body  # the status says enough, and whoever reads on meets the error again
    return body


def body_error(error: BaseException) -> GatewayError:
    """What a failure while reading a body means: malformed framing, or a cut."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.http_exceptions.HttpProcessingError) and "Not enough data" not in cause.message:
        return GatewayError("upstream_protocol", detail=_detail(cause))
    return GatewayError("upstream_cut", detail=type(error).__name__)


def _opening_error(error: BaseException) -> GatewayError:
    return GatewayError(_opening_code(error), detail=_detail(error))


def _opening_code(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return "upstream_tls"
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | TimeoutError):
        return "upstream_unreachable"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError):
        return "upstream_reset"
    return "upstream_protocol"


def _detail(error: BaseException) -> str:
    # Most of aiohttp's messages quote the request's address or the answer's bytes; these name the host alone.
    names_host_alone = isinstance(error, aiohttp.ClientConnectorError)
    said = str(error) if names_host_alone else _QUOTE.sub("", str(getattr(error, "message", "")))
    return f"{type(error).__name__}: {said}"[:500]


def _check_head(response: aiohttp.ClientResponse) -> None:
    # Nothing that a client of ours could not read, or would take for something else, gets further than here. Answers
    # that only say "go on" (100, 102, 103) are not seen here; 101 would make the connection speak another protocol.
    if response.status not in STATUSES:
        raise GatewayError("upstream_protocol", detail=f"status {response.status}")
    if _CONTROLS.search(response.reason or ""):
        raise GatewayError("upstream_protocol", detail="control characters in the reason phrase")
    if any(_CONTROLS.search(value) for value in response.headers.values()):
        raise GatewayError("upstream_protocol", detail="control characters in a header")
    if sum(len(name) + len(value) + 4 for name, value in response.raw_headers) > MAX_HEAD:
        raise GatewayError("upstream_protocol", detail=f"the headers are longer than {MAX_HEAD} bytes")


def plain_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The response's headers with lower-case names, the last of each."""
    return {name.lower(): value for name, value in headers.items()}
