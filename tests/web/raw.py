"""One gateway connection in this process, and a client that sends and reads bytes.

async with listening(handler) as place, connected(place) as client:
    client.send(GET)
    assert b"200 OK" in await client.until(b"\\r\\n\\r\\n")
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

from gateway.clock import Clock
from gateway.web.connection import Connection, Handler, Server
from gateway.web.unparsed import Unparsed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SEGMENTS_SENT = 156
RETRANSMITTED = 100
"""Offsets of `tcpi_data_segs_out` and `tcpi_total_retrans`. Source: struct tcp_info in linux/tcp.h."""


class Place:
    """A server that listens.

    Attributes:
        server: makes the connections.
        port: on 127.0.0.1.
    """

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def connection(self) -> Connection:
        """The only connection."""
        [connection] = self.server.connections
        return cast(Connection, connection)

    def segments(self) -> int:
        """How many TCP segments with data its only connection sent.

        Those that the kernel of a busy machine sent twice, as their acknowledgement was late, count once.
        """
        assert self.connection.transport is not None
        sock = self.connection.transport.get_extra_info("socket")
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGMENTS_SENT + 4)
        [sent], [again] = (struct.unpack_from("I", info, at) for at in (SEGMENTS_SENT, RETRANSMITTED))
        return int(sent - again)


def explain(unparsed: Unparsed) -> web.StreamResponse:
    """The answer to what is no request."""
    return web.Response(status=400, text=f"explained: {unparsed.said}")


@asynccontextmanager
async def listening(handler: Handler, max_connections: int = 100) -> AsyncIterator[Place]:
    """A server whose requests this handler answers; each has begun, as by the gateway's entrance."""

    def entrance(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        protocol_of(request).begin()
        return handler(request)

    loop = asyncio.get_running_loop()
    server = Server(entrance, explain, Clock(loop), max_connections)
    async with await loop.create_server(server, "127.0.0.1", 0) as listener:
        try:
            yield Place(server, listener.sockets[0].getsockname()[1])
        finally:
            for connection in server.connections:
                cast(Connection, connection).abort()
            while server.connections:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)


class Client:
    """A raw socket. Reading what does not come within five seconds is a TimeoutError."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    def send(self, data: bytes) -> None:
        """All of it at once: it must fit into the kernel's buffer."""
        assert self.socket.send(data) == len(data)

    def finish(self) -> None:
        """Sends a FIN, and reads on."""
        self.socket.shutdown(socket.SHUT_WR)

    async def read(self, size: int = 1 << 16) -> bytes:
        """What came, at least a byte; nothing at the end."""
        return await asyncio.wait_for(self._loop.sock_recv(self.socket, size), 5)

    async def until(self, mark: bytes) -> bytes:
        """What came up to a mark, and perhaps more."""
        data = b""
        while mark not in data:
            data += (more := await self.read())
            assert more, f"the connection ended behind {data!r}"
        return data

    async def rest(self) -> bytes:
        """What comes to the end of the connection. Raises ConnectionError where it is reset."""
        data = b""
        while more := await self.read():
            data += more
        return data

    def nothing_came(self) -> bool:
        """Whether the kernel has nothing for this client; what was sent on this machine is there at once."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b"?"
        except BlockingIOError:
            return True


@asynccontextmanager
async def connected(place: Place, receive_buffer: int = 0) -> AsyncIterator[Client]:
    """A client of the server, with a small receive buffer where one is given."""
    with socket.socket() as sock:
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", place.port))
        while not place.server.connections:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        yield Client(sock)


def protocol_of(request: web.BaseRequest) -> Connection:
    """The connection that a request came on."""
    return cast(Connection, request.protocol)
