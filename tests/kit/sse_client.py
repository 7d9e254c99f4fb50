"""A strict EventSource, and plain requests, over raw sockets: what a browser would make of the very bytes sent.

    async with EventSource(url) as source:
        message = await source.next()      # reconnects by itself, as a browser does
        await source.drop()                # the network breaks; the next `next()` reconnects with Last-Event-ID

    async with await request(url, method="POST", body={"message": "hi"}) as answer:
        assert answer.status == 200
        async for message in answer.messages(): ...

- The parser is written from the specification and shares nothing with the gateway's own: neither hides an error of
  the other.
- It reads only when asked to: a test that does not call `next()` is a reader that does not read.
- Stricter than some browsers where the specification is: the last event id of a new connection begins empty, so a
  server that does not send an id first loses the place.

This file does not know the gateway: no path, format or cursor is understood here. Redirects are not followed.
"""

import asyncio
import codecs
import re
import resource
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

MAX_HEAD = 64 << 10
MAX_BODY = 64 << 20
UNTIL_CLOSE = float("inf")
READ = 64 << 10
DEFAULT_RETRY = 3.0
"""Seconds a browser waits when no `retry:` was sent."""


class Message(NamedTuple):
    """A dispatched event.

    Attributes:
        type: "message" when the stream named none.
        data: lines joined by LF.
        last_event_id: as the event would carry it.
        at: loop time at which its last byte was read.
    """

    type: str
    data: str
    last_event_id: str
    at: float = 0.0

    def json(self) -> Any:
        """The data as JSON."""
        return msgspec.json.decode(self.data)


class Parser:
    """Events from the bytes of one stream. Source: WHATWG HTML 9.2.5, 9.2.6.

    Attributes:
        last_event_id: the source's last event id string; moves without an event when a block has an id and no data.
        retry: milliseconds of the last `retry:` field, None before one came.
        comments: the text of every comment line.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._rest = ""
        self._data = ""
        self._type = ""
        self._id = ""
        self.last_event_id = last_event_id
        self.retry: int | None = None
        self.comments: list[str] = []

    def feed(self, raw: bytes, at: float = 0.0) -> list[Message]:
        """Events that became whole with `raw`."""
        text = self._text.decode(raw)
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        *lines, self._rest = re.split(r"\r\n|\n|\r(?!\Z)", self._rest + text)
        return [message for line in lines if (message := self._line(line, at))]

    def flush(self, at: float = 0.0) -> list[Message]:
        """Events whose last line ended in a CR that turned out to be no CRLF. An unfinished block is dropped."""
        if not self._rest.endswith("\r"):
            return []
        line, self._rest = self._rest[:-1], ""
        message = self._line(line, at)
        return [message] if message else []

    def _line(self, line: str, at: float) -> Message | None:
        if not line:
            return self._dispatch(at)
        name, colon, value = line.partition(":")
        if not name and colon:
            self.comments.append(value)
        else:
            self._field(name, value.removeprefix(" "))
        return None

    def _field(self, name: str, value: str) -> None:
        match name:
            case "event":
                self._type = value
            case "data":
                self._data += value + "\n"
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if re.fullmatch(r"[0-9]+", value):
                self.retry = int(value)

    def _dispatch(self, at: float) -> Message | None:
        self.last_event_id = self._id
        data, self._data = self._data, ""
        kind, self._type = self._type, ""
        if not data:
            return None
        return Message(kind or "message", data.removesuffix("\n"), self.last_event_id, at)


class _Body:
    """A body, read piece by piece; a cancelled read loses nothing. Source: RFC 9112 6."""

    def __init__(self, reader: asyncio.StreamReader, left: float) -> None:
        self._reader = reader
        self._left = left

    async def read(self) -> bytes:
        """The next piece, b"" at the end. Raises OSError or EOFError when the body breaks off."""
        if not self._left:
            return b""
        data = await self._reader.read(int(min(self._left, READ)))
        if not data and self._left != UNTIL_CLOSE:
            raise EOFError("the connection ended inside the body")
        self._left = self._left - len(data) if data else 0
        return data


class _ChunkedBody:
    """A chunked body, read piece by piece; a cancelled read loses nothing. Source: RFC 9112 7.1."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._chunk = _Body(reader, 0)
        self._between = False
        self._ended = False

    async def read(self) -> bytes:
        """The next piece, b"" at the end. Raises OSError or EOFError when the body breaks off."""
        while not self._ended:
            if data := await self._chunk.read():
                self._between = True
                return data
            await self._next_chunk()
        return b""

    async def _next_chunk(self) -> None:
        if self._between:
            assert await self._line() == b"", "a chunk is longer than it says"
            self._between = False
        size = int((await self._line()).split(b";")[0], 16)
        self._chunk = _Body(self._reader, size)
        if not size:
            assert await self._line() == b"", "trailers are not expected here"
            self._ended = True

    async def _line(self) -> bytes:
        return (await self._reader.readuntil(b"\r\n"))[:-2]


class Response:
    """The answer to one request, read as it is asked for.

    Attributes:
        status, reason: of the status line.
        head: the head as it came, without the blank line.
        headers: names in lower case; a repeated one joined by ", ".
        raw: the body's bytes so far, transfer coding removed; more than `MAX_BODY` fails the test.
        parser: what was made of the body as an event stream so far (comments, retry, last event id).
        broken: whether the body ended otherwise than its framing says (a cut, a reset).
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last_event_id: str = "") -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Message] = deque()
        self._body: _Body | _ChunkedBody = _Body(reader, 0)
        self.head = b""
        self.raw = bytearray()
        self.parser = Parser(last_event_id)
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.broken = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def media_type(self) -> str:
        """The content type without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read_head(self) -> None:
        """Read up to the body, skipping 1xx answers. Raises ConnectionError when the connection ends before."""
        while not self.status or 100 <= self.status < 200:
            try:
                head = await self._reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                raise ConnectionResetError(f"closed before the head of an answer: {error.partial[:200]!r}") from error
            self._set_head(head[:-4])
        self._body = self._framed()

    def _set_head(self, head: bytes) -> None:
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, *reason = status_line.split(" ", 2)
        assert version in {"HTTP/1.1", "HTTP/1.0"}, status_line
        self.head, self.status, self.reason, self.headers = head, int(status), "".join(reason), {}
        for line in lines:
            name, _, value = line.partition(":")
            key = name.lower()
            self.headers[key] = f"{self.headers[key]}, {value.strip()}" if key in self.headers else value.strip()

    def _framed(self) -> _Body | _ChunkedBody:
        if self.status in {204, 304}:
            return _Body(self._reader, 0)
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return _ChunkedBody(self._reader)
        return _Body(self._reader, float(self.headers.get("content-length", UNTIL_CLOSE)))

    async def read(self) -> bytes:
        """The next piece of the body, b"" at its end, be it a good one or `broken`."""
        try:
            data = b"" if self.broken else await self._body.read()
        except (EOFError, ConnectionError):
            self.broken = True
            return b""
        self.raw += data
        assert len(self.raw) <= MAX_BODY, "a test that reads so much should not keep it"
        return data

    async def next(self) -> Message | None:
        """The next event of the body, None at its end."""
        while not self._ready:
            if not await self._advance():
                return None
        return self._ready.popleft()

    async def comment(self) -> str:
        """The next comment to come. Raises EOFError when the body ends before."""
        seen = len(self.parser.comments)
        while len(self.parser.comments) == seen:
            if not await self._advance():
                raise EOFError("the stream ended without a comment")
        return self.parser.comments[seen]

    async def _advance(self) -> bool:
        data = await self.read()
        at = self._loop.time()
        self._ready.extend(self.parser.feed(data, at) if data else self.parser.flush(at))
        return bool(data or self._ready)

    async def messages(self) -> AsyncIterator[Message]:
        """Events of the body as they come, to its end."""
        while message := await self.next():
            yield message

    async def body(self) -> bytes:
        """The whole body."""
        while await self.read():
            pass
        return bytes(self.raw)

    async def json(self) -> Any:
        """The whole body as JSON."""
        return msgspec.json.decode(await self.body())

    async def reset(self) -> None:
        """Break the connection off (RST)."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        if sock.fileno() != -1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        await _closed(self._writer)

    def half_close(self) -> None:
        """Say that nothing more will be sent, and read on."""
        self._writer.write_eof()

    async def close(self) -> None:
        """Close the connection (FIN)."""
        if self._writer.get_extra_info("sslcontext"):
            self._writer.transport.abort()  # a plain close waits half a minute for the peer's farewell; browsers do not
        self._writer.close()
        await _closed(self._writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except (ConnectionError, ssl.SSLError):
        return  # closed is closed; which way the peer did it first is of no interest here


def allow_connections(count: int) -> None:
    """So many sockets may be open in this process. Raises AssertionError where the machine allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        assert hard == resource.RLIM_INFINITY or hard >= wanted, f"raise `ulimit -Hn` to {wanted}; it is {hard}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def request(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | str | Mapping[str, Any] | None = None,
    tls: ssl.SSLContext | None = None,
    receive_buffer: int | None = None,
    last_event_id: str = "",
) -> Response:
    """The answer to a request on a connection of its own, its head read. Raises OSError where none comes.

    Args:
        url: http or https; its path and query are sent as they stand.
        body: a mapping is sent as JSON.
        tls: for https; without it certificates are checked as usual.
        receive_buffer: bytes of SO_RCVBUF, to make a small window.
        last_event_id: sent as `Last-Event-ID`, and what the parser begins with.
    """
    parts = urlsplit(url)
    reader, writer = await _connect(parts.hostname or "", parts.port, parts.scheme, tls, receive_buffer)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = dict(headers or {}) | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    writer.write(_request(method, target, parts.netloc, fields, body))
    response = Response(reader, writer, last_event_id)
    try:
        await response.read_head()
    except BaseException:
        await response.close()
        raise
    return response


async def _connect(
    host: str, port: int | None, scheme: str, tls: ssl.SSLContext | None, receive_buffer: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = (tls or ssl.create_default_context()) if scheme == "https" else None
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port or (443 if context else 80)))
        name = host if context else None
        return await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name, limit=MAX_HEAD)
    except BaseException:
        sock.close()
        raise


def _request(
    method: str, target: str, host: str, headers: dict[str, str], body: bytes | str | Mapping[str, Any] | None
) -> bytes:
    raw, media_type = _payload(body)
    fields = {"Host": host} | headers
    if raw is not None:
        fields = {"Content-Type": media_type, "Content-Length": str(len(raw))} | fields
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + (raw or b"")


def _payload(body: bytes | str | Mapping[str, Any] | None) -> tuple[bytes | None, str]:
    if isinstance(body, Mapping):
        return msgspec.json.encode(dict(body)), "application/json"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    return body, "application/octet-stream"


class State(Enum):
    """Source: WHATWG HTML 9.2.2, readyState."""

    CONNECTING = 0
    OPEN = 1
    CLOSED = 2


class EventSource:
    """A reader as a browser has it. Source: WHATWG HTML 9.2.2, 9.2.3.

    A connection that ends, or cannot be made, is made anew after the reconnection time, with `Last-Event-ID`. Any
    status but 200 and any media type but `text/event-stream` closes it for good.

    Args:
        url: what is read.
        headers: sent beside what a browser sends: `Cookie`, `Origin`, …
        retry: seconds until a reconnection as long as the stream has not set it.
        last_event_id: begin as if this id had been received.
        max_connections: give up after so many connections, so that no test runs for ever.

    Attributes:
        state: CONNECTING, OPEN or CLOSED.
        last_event_id: what the next connection would send.
        connections: every answer so far, the last one current.
        failures: connections that ended before an answer.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry: float = DEFAULT_RETRY,
        last_event_id: str = "",
        tls: ssl.SSLContext | None = None,
        max_connections: int = 100,
    ) -> None:
        self.url = url
        self.retry = retry
        self.last_event_id = last_event_id
        self.state = State.CONNECTING
        self.connections: list[Response] = []
        self.failures: list[OSError] = []
        self._headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"} | dict(headers or {})
        self._tls = tls
        self._max_connections = max_connections

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        message = await self._next()
        if message is None:
            raise StopAsyncIteration
        return message

    @property
    def current(self) -> Response:
        """The newest connection."""
        return self.connections[-1]

    async def next(self, timeout: float = 10) -> Message:
        """The next event, over as many connections as it takes. Raises TimeoutError; EOFError when closed for good."""
        async with asyncio.timeout(timeout):
            message = await self._next()
        if message is None:
            raise EOFError(f"closed: {self._why()}")
        return message

    async def take(self, count: int, timeout: float = 10) -> list[Message]:
        """The next `count` events."""
        return [await self.next(timeout) for _ in range(count)]

    async def until(self, *types: str, timeout: float = 10) -> list[Message]:
        """The events up to and with the first one of these types. Raises as `next`."""
        messages = [await self.next(timeout)]
        while messages[-1].type not in types:
            messages.append(await self.next(timeout))
        return messages

    async def open(self, timeout: float = 10) -> Response:
        """The connection, made if there is none; its status may be anything."""
        async with asyncio.timeout(timeout):
            while self.state is State.CONNECTING:
                await self._connect()
        return self.current

    async def drop(self) -> None:
        """The network breaks (RST); the next read connects anew."""
        await self.current.reset()
        self.state = State.CONNECTING

    async def close(self) -> None:
        """Close for good, as `EventSource.close()` does."""
        if self.state is State.OPEN:
            await self.current.close()
        self.state = State.CLOSED

    def _why(self) -> str:
        return f"{self.current.status} {self.current.media_type}" if self.connections else f"{self.failures}"

    async def _next(self) -> Message | None:
        while self.state is not State.CLOSED:
            if self.state is State.CONNECTING:
                await self._connect()
            elif message := await self._read():
                return message
            else:
                await self.current.close()
                self.state = State.CONNECTING
        return None

    async def _connect(self) -> None:
        attempts = len(self.connections) + len(self.failures)
        assert attempts < self._max_connections, f"{attempts} connections and still not at the end of {self.url}"
        if attempts:
            await asyncio.sleep(self.retry)
        try:
            response = await request(self.url, headers=self._headers, tls=self._tls, last_event_id=self.last_event_id)
        except OSError as error:
            self.failures.append(error)
            return
        self.connections.append(response)
        await self._announce(response)

    async def _announce(self, response: Response) -> None:
        if response.status == 200 and response.media_type == "text/event-stream":
            self.state = State.OPEN
            return
        self.state = State.CLOSED
        await response.body()
        await response.close()

    async def _read(self) -> Message | None:
        parser = self.current.parser
        try:
            return await self.current.next()
        finally:
            self.last_event_id = parser.last_event_id
            self.retry = self.retry if parser.retry is None else parser.retry / 1000
