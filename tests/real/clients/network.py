"""The network between the libraries and the gateway: one port, where the question in a request decides what befalls
its answer.

    async with Network(gateway_port) as network:
        network.spoils("Q 10000", Fault("fin", b"event: token", lacking=7))   # once; asked again, all is well
        network.requests("Q 10000")                                             # how often it was asked

A spoilt answer is held until the block that is spoilt is there as a whole, so that a place in it is the same byte in
every run, however the bytes came. Nothing else is held or changed.
"""

import asyncio
import re
import socket
import struct
from collections import Counter
from typing import Final, Literal, NamedTuple, Self

QUESTION = re.compile(rb"Q(?:%20|\+| )(\d{5})")
"""A question, as a query, a form or JSON spells it."""
LAST_CHUNK = b"0\r\n\r\n"


How = Literal["fin", "rst", "end"]


class Fault(NamedTuple):
    """What befalls an answer.

    Attributes:
        how: `fin` closes the connection in order, `rst` breaks it, `end` ends the body as if it were whole.
        mark: what the block has in it that is spoilt.
        lacking: bytes of the block that do not arrive, None for the whole block; with `end` all arrives that came.
    """

    how: How
    mark: bytes
    lacking: int | None = None


OTHER: Final = "127.0.0.2"
"""Another address of this machine, for who keeps connections by host."""


class Network:
    """A port of 127.0.0.1, and of `OTHER`, that leads to another one.

    Attributes:
        port: where it begins.
        sizes: of the blocks that were spoilt last, by mark.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = 0
        self._servers: list[asyncio.Server] = []
        self.sizes: dict[bytes, int] = {}
        self._faults: dict[bytes, Fault] = {}
        self._requests: Counter[bytes] = Counter()
        self.open: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for host in ("127.0.0.1", OTHER):
            server = await loop.create_server(lambda: _Client(self), host, self.port, backlog=1000)
            self.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for transport in list(self.open):
            transport.abort()
        for server in self._servers:
            await server.wait_closed()

    def spoils(self, question: str, fault: Fault) -> None:
        """The next answer to this question."""
        self._faults[question.encode()[-5:]] = fault

    def requests(self, question: str) -> int:
        """How often this was asked so far."""
        return self._requests[question.encode()[-5:]]

    def asked(self, data: bytes) -> Fault | None:
        """What is to befall the answer to the question in these bytes of a request."""
        if not (found := QUESTION.search(data)):
            return None
        self._requests[found[1]] += 1
        return self._faults.pop(found[1], None)


class _Side(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, network: Network) -> None:
        self.network = network

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.network.open.add(transport)

    def gone(self) -> None:
        self.network.open.discard(self.transport)


class _Client(_Side):
    """The library's side. What it says before the gateway's side is there is kept."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.gateway: _Gateway | None = None
        self._early: list[bytes] = []
        self._joining = asyncio.get_running_loop().create_task(self._join())

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, gateway = await loop.create_connection(lambda: _Gateway(self), "127.0.0.1", self.network.to)
        except OSError:
            self.transport.abort()
            return
        self.gateway = gateway
        if self.transport.is_closing():
            gateway.transport.close()
        for data in self._early:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self.gateway is None:
            self._early.append(data)
            return
        if fault := self.network.asked(data):
            self.gateway.fault = fault
        self.gateway.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone()
        if self.gateway:
            self.gateway.transport.close()


class _Gateway(_Side):
    """The gateway's side: its bytes go on to the library, up to the place where they are spoilt."""

    def __init__(self, client: _Client) -> None:
        super().__init__(client.network)
        self._client = client
        self.fault: Fault | None = None
        self._held = b""

    def data_received(self, data: bytes) -> None:
        if self.fault is None:
            self._client.transport.write(data)
            return
        self._held += data
        mark = self._held.find(self.fault.mark)
        end = self._held.find(b"\n\n", mark) + 2
        if mark >= 0 and end > 1:
            begin = self._held.rfind(b"\n\n", 0, mark) + 2
            self.network.sizes[self.fault.mark] = end - begin
            lacking = end - begin if self.fault.lacking is None else min(self.fault.lacking, end - begin)
            self._spoil(self.fault, end - lacking)

    def _spoil(self, fault: Fault, place: int) -> None:
        library = self._client.transport
        if fault.how == "end":
            library.write(self._held + LAST_CHUNK)
            library.close()
        elif fault.how == "fin":
            library.write(self._held[:place])
            library.close()
        else:
            library.write(self._held[:place])
            # A reset drops what the library did not read yet, so it waits for a moment.
            asyncio.get_running_loop().call_later(0.02, _reset, library)
        self.fault = Fault("fin", b"\0")  # nothing more goes through
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone()
        if self.fault is None:
            self._client.transport.close()


def _reset(transport: asyncio.Transport) -> None:
    sock: socket.socket = transport.get_extra_info("socket")
    if sock.fileno() != -1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
