"""Several workers on one port: a request for another worker's stream is handed to that worker.

Each worker keeps the streams that it started, and a stream's id names its worker. The kernel gives a new connection to
any worker. When a request names another worker's stream, by a cursor or by its path, this worker sends it there, and
with it the client's socket (`SCM_RIGHTS`). Afterwards no process stands between the client and its stream, and the
other worker notices a client that leaves or reads slowly as if the client had connected to it.

    client ──▶ worker 0: reads the head; the id in it says "worker 1"
                   │  over a Unix socket: the client's socket, and the request's bytes
                   ▼
               worker 1: makes a connection of the socket, and gives it those bytes as if it had read them
    client ◀── worker 1: answers, and closes

Invariants:

- A hand-over is only a shortcut. A worker that cannot hand a request over answers it itself, in the worst case with
  `cursor_expired`. So a worker that died keeps no client waiting.
- Of a request that is handed over, this worker has read the head and the body. It has counted and limited nothing.
- Both workers check that the other one runs as the same user, because any process can take a dead worker's name.

A ticket is kept by the worker that issued it, and the streams that it starts run there.

Whether the stream exists, and who may read it, only the other worker knows.

What all workers have to do, as to revoke a principal, one worker asks of the others by the same sockets (`ask`): bytes
without a client's socket are a question, which the other worker answers with a few bytes.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from gateway.core.cursor import LENGTH, cursor_sent, valid_stream_id, worker_of
from gateway.core.errors import GatewayError
from gateway.identity.tickets import is_ticket
from gateway.web.body import ask_for_body
from gateway.web.connection import Handler, Server
from gateway.web.exchange import listed
from gateway.web.tickets import TICKET, stream_wanted
from gateway.web.unparsed import MAX_HEADERS

BACKLOG: Final = 1024
PATIENCE: Final = 5.0
"""Seconds that one hand-over may take."""
ACCEPT_AGAIN: Final = 0.1
"""Seconds to wait when the process has no descriptor left for a hand-over."""
READ: Final = 256 * 1024
MAX_BODY: Final = 1 << 20
"""Bytes of a body. A request with more is not handed over; a request that resumes a stream needs no body at all."""
MAX_REQUEST: Final = MAX_BODY + (2 << 20)
"""Bytes of head and body that a worker accepts from another."""
MAX_WORDS: Final = 16 * 1024
"""Bytes of a question to another worker, and of the answer."""
_REPLACED: Final = frozenset({b"connection", b"content-length", b"transfer-encoding", b"expect"})
_CREDENTIALS: Final = struct.Struct("3i")

Reply = Callable[[bytes], Awaitable[bytes]]
"""Answers another worker's question."""


class Siblings:
    """The workers of one gateway, seen from one of them.

    Args:
        number: this worker's, from 0.
        count: how many workers there are.
        name: the same for all workers of this gateway, and for no other gateway's.
    """

    def __init__(self, number: int, count: int, name: str) -> None:
        self._number = number
        self._count = count
        self._name = name
        self._arriving: set[asyncio.Task[None]] = set()

    def share(self, handler: Handler) -> Handler:
        """The handler, with requests for other workers' streams handed over before it sees them."""

        async def shared(request: web.BaseRequest) -> web.StreamResponse:
            worker = self._other_worker(await _stream_asked_for(request))
            if worker is not None and await self._hand_over(request, worker):
                return _AnsweredElsewhere()
            return await handler(request)

        return shared

    async def receive(self, server: Server, reply: Reply) -> None:
        """Accepts requests that other workers hand over, and answers them with `server`, and their questions with
        `reply`. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(self._address(self._number))
            listener.listen(BACKLOG)
            while True:
                sender = await _accepted(listener)
                task = loop.create_task(_adopt(sender, server, reply))
                self._arriving.add(task)
                task.add_done_callback(self._arriving.discard)

    async def ask(self, question: bytes) -> list[bytes | None]:
        """What each other worker answers; None for one that lives and gave no answer in time. One that does not live
        is asked nothing: what it had ended with it.

        Args:
            question: 1 to `MAX_WORDS` bytes.
        """
        others = [number for number in range(self._count) if number != self._number]
        answers = await asyncio.gather(*(self._ask(number, question) for number in others))
        return [answer for answer in answers if answer != b""]

    async def _ask(self, worker: int, question: bytes) -> bytes | None:
        """The worker's answer; b"" where there is no such worker, None where it does not answer."""
        for _ in range(2):  # one that dies meanwhile breaks off, and is not there the second time
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._answer_of(worker, question)
            except ConnectionRefusedError:
                return b""
            except ConnectionError:
                continue
            except OSError:  # it took too long, or its backlog is full
                return None
        return None

    async def _answer_of(self, worker: int, question: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as other:
            other.setblocking(False)
            other.connect(self._address(worker))
            if not _is_own(other):
                return b""
            await asyncio.get_running_loop().sock_sendall(other, question)
            other.shutdown(socket.SHUT_WR)
            if not (answer := await _all_of(other, b"")):
                raise ConnectionAbortedError("the other worker gave no answer")
            return answer

    def _address(self, number: int) -> str:
        # An address in Linux's abstract namespace: it vanishes with its worker, and there is no file to remove.
        return f"\0gateway-{self._name}-{number}"

    def _other_worker(self, stream_id: str) -> int | None:
        """The number of the worker that has the stream, None where it is this one or nobody."""
        if not valid_stream_id(stream_id):
            return None
        worker = worker_of(stream_id)
        return worker if worker != self._number and worker < self._count else None

    async def _hand_over(self, request: web.BaseRequest, worker: int) -> bool:
        """Whether the request is the other worker's now. False: nothing happened, and it must be answered here."""
        transport = request.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or _is_large(request):
            return False
        with socket.socket(socket.AF_UNIX) as receiver:
            receiver.setblocking(False)
            try:
                receiver.connect(self._address(worker))
            except OSError:  # the worker is dead, or its backlog is full
                return False
            if not _is_own(receiver):
                return False
            # From here on the body is read, so the request can no longer be answered here. Where the hand-over fails
            # the client is cut off, and reconnects.
            with contextlib.suppress(OSError, web.RequestPayloadError):
                async with asyncio.timeout(PATIENCE):
                    data = await _bytes_of(request)
                    transport.pause_reading()
                    sent = socket.send_fds(receiver, [data], [transport.get_extra_info("socket").fileno()])
                    await asyncio.get_running_loop().sock_sendall(receiver, data[sent:])
        transport.abort()  # closes this process's descriptor; the connection goes on by the other worker's
        return True


class _AnsweredElsewhere(web.StreamResponse):
    """The response to a request that another worker answers: this one writes nothing."""

    async def prepare(self, request: web.BaseRequest) -> None:
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        return


class _Adopted(asyncio.Protocol):
    """A client's connection whose first request another worker has read: a `Connection` gets both and takes over."""

    def __init__(self, server: Server, request: bytes) -> None:
        self._server = server
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = self._server()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if transport.get_protocol() is connection:  # else it was refused
            connection.data_received(self._request)


async def _accepted(listener: socket.socket) -> socket.socket:
    while True:
        try:
            return (await asyncio.get_running_loop().sock_accept(listener))[0]
        except OSError:  # no descriptor is left; new clients are refused meanwhile as well
            await asyncio.sleep(ACCEPT_AGAIN)


async def _adopt(sender: socket.socket, server: Server, reply: Reply) -> None:
    # The other worker may die, and the client may leave, at any moment of this.
    loop = asyncio.get_running_loop()
    with sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        if not _is_own(sender):
            return
        async with asyncio.timeout(PATIENCE):
            client, said = await _receive(sender)
            if client is None:
                await loop.sock_sendall(sender, await reply(said))
                return
        await loop.connect_accepted_socket(lambda: _Adopted(server, said), client)


async def _receive(sender: socket.socket) -> tuple[socket.socket | None, bytes]:
    """The client's socket and the bytes of its request; or None and a question.

    Raises:
        OSError: the other worker ended too early or sent too much.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()  # asyncio can receive bytes, but no descriptors
    loop.add_reader(sender, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sender)
    said, descriptors, _, _ = socket.recv_fds(sender, READ, 1)
    if not said:
        raise ConnectionAbortedError("nothing was handed over")
    if not descriptors:
        return None, await _all_of(sender, said)
    client = socket.socket(fileno=descriptors[0])
    client.setblocking(False)
    try:
        return client, await _all_of(sender, said, MAX_REQUEST)
    except BaseException:
        client.close()
        raise


async def _all_of(sender: socket.socket, said: bytes, most: int = MAX_WORDS) -> bytes:
    """What the other worker says to its end, behind what it said before.

    Raises:
        OSError: it is more than it may be.
    """
    while more := await asyncio.get_running_loop().sock_recv(sender, READ):
        said += more
        if len(said) > most:
            raise ConnectionAbortedError("another worker said too much")
    return said


def _is_own(peer: socket.socket) -> bool:
    """Whether the process at the other end runs as this process's user."""
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())


async def _stream_asked_for(request: web.BaseRequest) -> str:
    """The stream id in the path, in the query, in the cursor or in what asks for a ticket; anything at all where there
    is none. For a ticket it is any id of the worker that issued it."""
    path = request.rel_url.raw_path
    ticket = request.query.get(TICKET, "")
    if is_ticket(ticket) and hdrs.AUTHORIZATION not in request.headers:
        return ticket[:LENGTH]  # it begins as the ids of its worker's streams do
    if path.startswith("/streams/"):
        return path.split("/", 3)[2]
    if path == "/tickets" and request.method == hdrs.METH_POST and not _is_large(request):
        # A ticket for one stream is kept where the stream is.
        with contextlib.suppress(GatewayError):
            return await stream_wanted(request) or ""
    if path in ("/page/failure", "/page/answer"):
        return request.query.get("stream", "")
    cursor = cursor_sent(listed(request.headers, "Last-Event-ID"), request.query.items())
    return (cursor or "").partition(".")[0]


def _is_large(request: web.BaseRequest) -> bool:
    full = len(request.raw_headers) > MAX_HEADERS - 2  # `_bytes_of` adds two
    return full or (request.content_length or 0) > MAX_BODY or hdrs.TRANSFER_ENCODING in request.headers


async def _bytes_of(request: web.BaseRequest) -> bytes:
    """The request as the client could have sent it, with its whole body and "Connection: close".

    The answer must end the connection, because this process may have read a part of what the client sent behind it.
    """
    ask_for_body(request)
    body = await request.read()
    fields = [(name, value) for name, value in request.raw_headers if name.lower() not in _REPLACED]
    fields += [(b"Connection", b"close"), (b"Content-Length", b"%d" % len(body))]
    line = f"{request.method} {request.raw_path} HTTP/{request.version.major}.{request.version.minor}"
    lines = [line.encode("utf-8", "surrogateescape"), *(b"%s: %s" % field for field in fields)]
    return b"\r\n".join([*lines, b"", body])
