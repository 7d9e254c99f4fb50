"""The other workers on the port: a reader that lands on one of them is handed to the one that has its stream.

A stream's id names its worker. A request for another worker's stream, be it a cursor or a path, goes there together
with the client's connection: the socket itself changes hands (`SCM_RIGHTS`), so nothing stands between the reader and
its stream afterwards, and that worker sees a reader that leaves, or reads slowly, as if it had come there first.

Invariants:

- It is a shortcut and no more: any worker answers any request rightly, if only with `cursor_expired`. So whatever
  cannot be handed over is answered here, and a worker that died keeps nobody waiting.
- Nothing was read, counted or limited here of a request that is handed over, apart from its head and body.
- Only a process of the same user may hand anything over, or be handed it: anybody can take a dead worker's name.

This file does not know which streams there are, nor who may read them.
"""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Final

from aiohttp import hdrs, web

from gateway.core.cursor import valid_stream_id, worker_of
from gateway.web.body import ask_for_body
from gateway.web.connection import MAX_HEADERS, Handler, Server

BACKLOG: Final = 1024
PATIENCE: Final = 5.0
"""Seconds that one hand-over may take."""
ACCEPT_AGAIN: Final = 0.1
READ: Final = 256 * 1024
MAX_BODY: Final = 1 << 20
"""Bytes of a request's body; one with more is answered where it is. What resumes a stream needs none."""
MAX_REQUEST: Final = MAX_BODY + (2 << 20)
_REPLACED: Final = frozenset({b"connection", b"content-length", b"transfer-encoding", b"expect"})
_CREDENTIALS: Final = struct.Struct("3i")


class Siblings:
    """The workers of one gateway, this one among them.

    Args:
        number: of this worker.
        count: of all.
        name: what they, and no others, call themselves.
    """

    def __init__(self, number: int, count: int, name: str) -> None:
        self._number = number
        self._count = count
        self._name = name
        self._arriving: set[asyncio.Task[None]] = set()

    def share(self, handler: Handler) -> Handler:
        """A handler that leaves to each worker what is asked of its streams."""

        async def shared(request: web.BaseRequest) -> web.StreamResponse:
            home = self._home(request)
            if home is not None and await self._hand_over(request, home):
                return _Answered()
            return await handler(request)

        return shared

    async def receive(self, server: Server) -> None:
        """Takes what is handed over, until cancelled."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(self._address(self._number))
            listener.listen(BACKLOG)
            while True:
                sender = await _accepted(listener)
                task = loop.create_task(_adopt(sender, server))
                self._arriving.add(task)
                task.add_done_callback(self._arriving.discard)

    def _address(self, number: int) -> str:
        return f"\0gateway-{self._name}-{number}"  # abstract: it ends with the worker, and leaves no file

    def _home(self, request: web.BaseRequest) -> int | None:
        stream_id = _stream_asked_for(request)
        if not valid_stream_id(stream_id):
            return None
        home = worker_of(stream_id)
        return home if home != self._number and home < self._count else None

    async def _hand_over(self, request: web.BaseRequest, home: int) -> bool:
        transport = request.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or _is_large(request):
            return False
        with socket.socket(socket.AF_UNIX) as receiver:
            receiver.setblocking(False)
            try:
                receiver.connect(self._address(home))
            except OSError:  # it is dead, or so busy that it answers nobody
                return False
            if not _is_own(receiver):
                return False
            # From here on the body is gone, and so is a client that cannot be handed over; it comes back.
            with contextlib.suppress(OSError, web.RequestPayloadError):
                async with asyncio.timeout(PATIENCE):
                    await _send(receiver, transport, await _whole(request))
        transport.abort()  # of this process's descriptor: where another has one too, the connection goes on
        return True


class _Answered(web.StreamResponse):
    """The response to a request that another worker answers: nothing."""

    async def prepare(self, request: web.BaseRequest) -> None:
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        return


class _Adopted(asyncio.Protocol):
    """A connection whose first request was read by another worker."""

    def __init__(self, server: Server, request: bytes) -> None:
        self._server = server
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = self._server()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(self._request)


async def _send(receiver: socket.socket, transport: asyncio.Transport, request: bytes) -> None:
    transport.pause_reading()
    sent = socket.send_fds(receiver, [request], [transport.get_extra_info("socket").fileno()])
    await asyncio.get_running_loop().sock_sendall(receiver, request[sent:])


async def _accepted(listener: socket.socket) -> socket.socket:
    while True:
        try:
            return (await asyncio.get_running_loop().sock_accept(listener))[0]
        except OSError:  # no descriptor is left; clients are refused meanwhile
            await asyncio.sleep(ACCEPT_AGAIN)


async def _adopt(sender: socket.socket, server: Server) -> None:
    # The other worker may die on the way, and the client leave.
    with sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        if not _is_own(sender):
            return
        async with asyncio.timeout(PATIENCE):
            client, request = await _receive(sender)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: _Adopted(server, request), client)


async def _receive(sender: socket.socket) -> tuple[socket.socket, bytes]:
    loop = asyncio.get_running_loop()
    await _readable(sender)
    request, descriptors, _, _ = socket.recv_fds(sender, READ, 1)
    if not descriptors:
        raise ConnectionAbortedError("nothing was handed over")
    client = socket.socket(fileno=descriptors[0])
    client.setblocking(False)
    try:
        while more := await loop.sock_recv(sender, READ):
            request += more
            if len(request) > MAX_REQUEST:
                raise ConnectionAbortedError("a request that is too large was handed over")
    except BaseException:
        client.close()
        raise
    return client, request


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


def _is_own(peer: socket.socket) -> bool:
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())


def _stream_asked_for(request: web.BaseRequest) -> str:
    path = request.rel_url.raw_path
    if path.startswith("/streams/"):
        return path.split("/", 3)[2]
    cursor = request.headers.get("Last-Event-ID")
    if not cursor and "last_event_id=" in request.raw_path:
        cursor = request.query.get("last_event_id")
    return (cursor or "").partition(".")[0]


def _is_large(request: web.BaseRequest) -> bool:
    full = len(request.raw_headers) > MAX_HEADERS - 2  # two are put in
    return full or (request.content_length or 0) > MAX_BODY or hdrs.TRANSFER_ENCODING in request.headers


async def _whole(request: web.BaseRequest) -> bytes:
    # Its answer ends the connection: of what the client sent behind it, this process may have read a part.
    ask_for_body(request)
    body = await request.read()
    fields = [(name, value) for name, value in request.raw_headers if name.lower() not in _REPLACED]
    fields += [(b"Connection", b"close"), (b"Content-Length", b"%d" % len(body))]
    line = f"{request.method} {request.raw_path} HTTP/{request.version.major}.{request.version.minor}"
    lines = [line.encode("utf-8", "surrogateescape"), *(b"%s: %s" % field for field in fields)]
    return b"\r\n".join([*lines, b"", body])
