"""An upstream that plays a script over a raw socket, so that a test decides every byte, pause and cut of an answer.

    async with ScriptedUpstream([sse_head(), openai_delta("Hi"), Pause(0.1), Reset()]) as upstream:
        ...                                   # point a gateway at upstream.url
        exchange = await upstream.exchange()  # the first request, head and body
        await exchange.closed.wait()          # the gateway hung up, at exchange.closed_at

- The nth request plays the nth script; further ones play the last again. A script may be a function of the request.
- A script that ends without `Cut`, `Reset` or `Hang` leaves the connection open for the next request.
- What a peer sends beside a request is kept, up to `MAX_UNREAD`; then its connection is reset.

This file does not know who connects, and never says anything that its script does not.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, Self

import msgspec

MAX_UNREAD = 16 << 20
"""Bytes of a request that may wait to be read."""


class Pause(msgspec.Struct, frozen=True):
    """Say nothing for so many seconds."""

    seconds: float


class WaitFor(msgspec.Struct, frozen=True):
    """Say nothing until the test sets the event."""

    event: asyncio.Event


class Cut(msgspec.Struct, frozen=True):
    """Close in order (FIN) after everything said was sent."""


class Reset(msgspec.Struct, frozen=True):
    """Break the connection off (RST)."""


class Hang(msgspec.Struct, frozen=True):
    """Stay connected and say nothing until the peer goes."""


Step = bytes | Pause | WaitFor | Cut | Reset | Hang


class Exchange:
    """One request, and what became of its connection.

    Attributes:
        method, target, headers, body: the request; header names in lower case, a repeated one joined by ", ".
        head: the request's head as it came, without the blank line.
        opened_at: loop time at which the request was whole.
        closed: set when the peer closed its side or the connection ended, be it by `Cut` or `Reset`.
        closed_at: loop time of that, None before.
        reset: whether the connection broke rather than was closed.
        finished: set when the script was played to its end, or the connection went before.
    """

    def __init__(self, head: bytes, body: bytes, opened_at: float) -> None:
        request_line, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = request_line.split(" ", 2)
        self.headers = _fields(lines)
        self.head = head
        self.body = body
        self.opened_at = opened_at
        self.closed = asyncio.Event()
        self.closed_at: float | None = None
        self.reset = False
        self.finished = asyncio.Event()

    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    def note_closed(self, now: float, *, reset: bool) -> None:
        """Record the first sign that the peer went."""
        if self.closed_at is None:
            self.closed_at, self.reset = now, reset
        self.closed.set()


Script = Sequence[Step] | Callable[[Exchange], Sequence[Step]]


class ScriptedUpstream:
    """A server on 127.0.0.1 that answers as scripted.

    Args:
        scripts: at least one; the nth request plays the nth, later ones the last.
        tls: makes it an https server.
        port: 0 picks a free one.

    Attributes:
        exchanges: every request so far, in order of arrival.
        connections: connections accepted so far.
    """

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._scripts = scripts
        self._tls = tls
        self.port = port
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._arrival = asyncio.Event()
        self._players: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()

    @property
    def url(self) -> str:
        """Scheme, address and port, without a path."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening and break off what is open; from now on a connection is refused."""
        self._server.close()
        for player in self._players:
            player.cancel()
        await asyncio.gather(*self._players, return_exceptions=True)
        for connection in list(self._open):
            connection.transport.abort()
        await self._server.wait_closed()

    async def exchange(self, number: int = 0, timeout: float = 10) -> Exchange:
        """The request `number` (from 0) as soon as it came. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while len(self.exchanges) <= number:
                self._arrival.clear()
                await self._arrival.wait()
        return self.exchanges[number]

    def accept(self, connection: "_Connection") -> None:
        """Play the scripts on a new connection."""
        self.connections += 1
        self._open.add(connection)
        player = asyncio.get_running_loop().create_task(self._play_all(connection))
        self._players.add(player)
        player.add_done_callback(self._players.discard)

    def forget(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._open.discard(connection)

    async def _play_all(self, connection: "_Connection") -> None:
        while exchange := await connection.request():
            script = self._scripts[min(len(self.exchanges), len(self._scripts) - 1)]
            self.exchanges.append(exchange)
            self._arrival.set()
            await _play(script(exchange) if callable(script) else script, connection)
            exchange.finished.set()


async def _play(script: Sequence[Step], connection: "_Connection") -> None:
    for step in script:
        if connection.lost.is_set():
            return
        match step:
            case bytes():
                await connection.send(step)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case WaitFor(event):
                await event.wait()
            case Hang():
                await connection.gone.wait()
            case Cut():
                connection.transport.close()
            case Reset():
                connection.reset()


class _Connection(asyncio.Protocol):
    """One accepted connection; `gone` when the peer closed its side, `lost` when nothing can be sent any more."""

    transport: asyncio.Transport

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._arrival = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()
        self.lost = asyncio.Event()
        self._exchange: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if transport.get_extra_info("sslcontext") is None:  # asyncio's TLS never says that an empty buffer is empty
            transport.set_write_buffer_limits(0)  # so that a reset never overtakes what was said before
        self._upstream.accept(self)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._arrival.set()
        if len(self._unread) > MAX_UNREAD:
            self.reset()

    def eof_received(self) -> bool:
        self._peer_went(reset=False)
        return self.transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer_went(reset=exc is not None)
        self.lost.set()
        self._writable.set()
        self._upstream.forget(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _peer_went(self, *, reset: bool) -> None:
        self.gone.set()
        self._arrival.set()
        if self._exchange:
            self._exchange.note_closed(self._loop.time(), reset=reset)

    async def send(self, data: bytes) -> None:
        """Send, and return when the operating system has taken all of it, or the connection is gone."""
        self.transport.write(data)
        await self._writable.wait()

    def reset(self) -> None:
        """Break off: the peer reads what arrived, then ECONNRESET."""
        sock: socket.socket = self.transport.get_extra_info("socket")
        if sock.fileno() != -1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def request(self) -> Exchange | None:
        """The next request, whole; None when the peer went before."""
        if (head := await self._until(b"\r\n\r\n")) is None:
            return None
        body = await self._body(_fields(head.decode("latin-1").split("\r\n")[1:]))
        if body is None:
            return None
        self._exchange = Exchange(head, body, self._loop.time())
        if self.gone.is_set():
            self._exchange.note_closed(self._loop.time(), reset=False)
        return self._exchange

    async def _body(self, headers: dict[str, str]) -> bytes | None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return await self._chunks()
        return await self._exactly(int(headers.get("content-length", "0")))

    async def _chunks(self) -> bytes | None:
        body = bytearray()
        while (size := await self._until(b"\r\n")) is not None:
            piece = await self._exactly(int(size.split(b";")[0], 16) + 2)
            if piece is None:
                return None
            if piece == b"\r\n":
                return bytes(body)
            body += piece[:-2]
        return None

    async def _until(self, mark: bytes) -> bytes | None:
        while (end := self._unread.find(mark)) < 0:
            if not await self._more():
                return None
        data = bytes(self._unread[:end])
        del self._unread[: end + len(mark)]
        return data

    async def _exactly(self, size: int) -> bytes | None:
        while len(self._unread) < size:
            if not await self._more():
                return None
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    async def _more(self) -> bool:
        self._arrival.clear()
        if self.gone.is_set():
            return False
        await self._arrival.wait()
        return True


def _fields(lines: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    return fields


# Bytes that scripts are made of.


def http_head(status: int = 200, content_type: str = "text/event-stream", **headers: str) -> bytes:
    """The head of a response whose body lasts until the connection is closed, unless a header says otherwise.

    A header's name is written with underscores: `Retry_After="3"`.
    """
    fields = {"Content-Type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def sse_head(**headers: str) -> bytes:
    """The head of an event stream in chunked encoding; send its body through `chunk`, its end is `LAST_CHUNK`."""
    return http_head(200, "text/event-stream", Transfer_Encoding="chunked", **headers)


def chunk(data: bytes | str) -> bytes:
    """`data` as one chunk. Source: RFC 9112 7.1."""
    raw = data.encode() if isinstance(data, str) else data
    return b"%x\r\n%s\r\n" % (len(raw), raw)


LAST_CHUNK = b"0\r\n\r\n"


def response(status: int, body: bytes | str, content_type: str = "application/json", **headers: str) -> bytes:
    """A whole response with a length."""
    raw = body.encode() if isinstance(body, str) else body
    return http_head(status, content_type, Content_Length=str(len(raw)), **headers) + raw


def openai_chunk(delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> bytes:
    """One `chat.completion.chunk` as an event, not yet chunk-encoded."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    } | extra
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def openai_delta(text: str, field: str = "content") -> bytes:
    """An HTTP chunk with one token, or with a text in another field of the delta."""
    return chunk(openai_chunk({field: text}))


OPENAI_STOP = chunk(openai_chunk({}, "stop"))
OPENAI_USAGE = chunk(
    openai_chunk({}, choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}),
)
OPENAI_DONE = chunk(b"data: [DONE]\n\n")


def openai_answer(*texts: str) -> list[Step]:
    """A whole, good answer of these tokens, with usage."""
    return [sse_head(), *map(openai_delta, texts), OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]
