"""A TCP proxy on 127.0.0.1: the network between two programs, which can be made worse while it runs.

    async with TCPProxy(server_port) as network:
        network.down.latency = 0.2      # seconds, on the way from the server to the client
        network.down.rate = 20_000      # bytes a second
        network.up.slice = 7            # bytes that one write has at most
        network.down.cut_at = 100       # FIN behind the hundredth byte of a connection
        network.hole()                  # what is connected stays so, and nothing goes through until `heal`
        network.reset()                 # RST to both sides of every connection, now

- Knobs may be turned at any time; they hold for open connections and for new ones.
- What one side says arrives in order and unchanged; what one side ends or breaks is ended or broken on the other.
- A direction of a connection holds at most `QUEUE` reads of `READ` bytes; above that its sender has to wait.
- Chance has a seed: the same seed gives the same jitter and the same slices.

This file knows no HTTP.
"""

import asyncio
import fcntl
import random
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from typing import Self

READ = 16 << 10
QUEUE = 64
SMOOTH = 0.02
"""Seconds of a limited rate that are sent at once."""
FLUSH = 1.0
"""Seconds that what was said has to arrive before a reset overtakes it."""


Place = int | Iterator[int] | None


class Line:
    """One direction.

    Attributes:
        latency: seconds that every byte is under way.
        jitter: seconds, at most, between two writes.
        rate: bytes a second, None for as many as there are.
        slice: bytes of one write at most, from 1 by chance; None for as many as there are.
        cut_at: bytes of one connection that arrive before both its sides are closed (FIN), None for all. An iterator
            gives each new connection a place of its own.
        reset_at: the same, before both its sides are broken (RST).
        final: whether an end (FIN) on this way ends the connection, for a sender that closes and does not read on. The
            FIN is the same; what comes back after it is then answered by a reset, as it would be without this proxy.
        held: bytes that are under way, of all connections.
        passed: bytes that arrived, of all connections.
    """

    def __init__(self) -> None:
        self.held = 0
        self.passed = 0
        self.restore()

    def restore(self) -> None:
        """Turn every knob back."""
        self.latency = 0.0
        self.jitter = 0.0
        self.rate: float | None = None
        self.slice: int | None = None
        self.cut_at: Place = None
        self.reset_at: Place = None
        self.final = False


class TCPProxy:
    """The way to a port of this machine.

    Args:
        to: the port where it leads; may be told later.
        seed: of the jitter and the slices.

    Attributes:
        to: where it leads.
        port: where it begins.
        up, down: towards the server, and back.
        connections: how many were made.
    """

    def __init__(self, to: int = 0, seed: int = 0) -> None:
        self.to = to
        self._links: set[_Link] = set()
        self._carriers: set[asyncio.Task[None]] = set()
        self._clear = asyncio.Event()
        self._clear.set()
        self.chance = random.Random(seed)
        self.up, self.down = Line(), Line()
        self.port = 0
        self.connections = 0

    @property
    def url(self) -> str:
        """Scheme, address and port, without a path."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pull()

    async def plug(self) -> None:
        """Connections can be made, at the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def pull(self) -> None:
        """Break every connection off; new ones are refused until `plug`."""
        self._server.close()
        self.cut()
        for carrier in self._carriers:
            carrier.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    def cut(self) -> None:
        """Close both sides of every connection (FIN); new ones can be made."""
        for link in list(self._links):
            link.close()

    def reset(self) -> None:
        """Break both sides of every connection (RST); new ones can be made."""
        for link in list(self._links):
            link.reset()

    def hole(self) -> None:
        """From now on nothing goes through. Connections stay, and can be made."""
        self._clear.clear()

    def heal(self) -> None:
        """What was held back in the hole goes through, and all that follows."""
        self._clear.set()

    def restore(self) -> None:
        """Turn every knob back, and heal."""
        self.up.restore()
        self.down.restore()
        self.heal()

    async def clear(self) -> None:
        """Return when there is no hole."""
        await self._clear.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        carrier = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            _reset(writer)  # as near to a refusal as one can come that was accepted
            return
        except asyncio.CancelledError:
            writer.close()
            raise
        link = _Link(writer, back)
        self._links.add(link)
        up, down = _Lane(self, link, self.up, reader, back), _Lane(self, link, self.down, there, writer)
        try:
            await asyncio.gather(up.carry(), down.carry())
        finally:
            link.close()
            self._links.discard(link)


class _Link:
    """The two sides of one connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        for writer in writers:
            writer.transport.set_write_buffer_limits(0)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()  # all that was said is with the kernel, which sends it before the FIN

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)


class _Lane:
    """One direction of one connection."""

    def __init__(
        self, proxy: TCPProxy, link: _Link, line: Line, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        self._proxy, self._link, self._line = proxy, link, line
        self._source, self._sink = source, sink
        # When which bytes are due; b"" is the end, None that the connection broke.
        self._queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(QUEUE)
        self._now = asyncio.get_running_loop().time
        self._held = self._sent = 0
        self._own: dict[Iterator[int], int] = {}

    @property
    def _left(self) -> int:
        return min(self._place(self._line.cut_at), self._place(self._line.reset_at)) - self._sent

    def _place(self, place: Place) -> int:
        if isinstance(place, Iterator):
            if place not in self._own:
                self._own[place] = next(place, sys.maxsize)
            return self._own[place]
        return sys.maxsize if place is None else place

    async def carry(self) -> None:
        """Returns when this direction has ended, well or not."""
        taking = asyncio.create_task(self._take_in())
        try:
            await self._hand_on()
        except OSError:  # ENOTCONN, too, which is no ConnectionError
            self._link.reset()
        finally:
            taking.cancel()
            self._hold(-self._held)

    def _hold(self, size: int) -> None:
        self._held += size
        self._line.held += size

    async def _take_in(self) -> None:
        data: bytes | None = b" "
        while data:
            try:
                data = await self._source.read(READ)
            except ConnectionError:
                data = None
            self._hold(len(data or b""))
            await self._queue.put((self._now() + self._line.latency, data))

    async def _hand_on(self) -> None:
        while self._left > 0:
            due, data = await self._queue.get()
            await asyncio.sleep(max(0.0, due - self._now()))
            await self._proxy.clear()
            if data is None:
                raise ConnectionResetError
            if not data and self._line.final:
                self._link.close()
                return
            if not data:
                self._sink.write_eof()
                return
            await self._write(data)
            self._hold(-len(data))
        await self._end()

    async def _write(self, data: bytes) -> None:
        while data and self._left > 0:
            await self._proxy.clear()
            size = min(self._size(data), self._left)
            self._sink.write(data[:size])
            await self._sink.drain()
            self._sent += size
            self._line.passed += size
            data = data[size:]
            await asyncio.sleep(self._rest(size))

    def _size(self, data: bytes) -> int:
        line, size = self._line, len(data)
        if line.slice is not None:
            size = min(size, self._proxy.chance.randint(1, line.slice))
        return min(size, max(1, int(line.rate * SMOOTH))) if line.rate else size

    def _rest(self, size: int) -> float:
        line = self._line
        return (size / line.rate if line.rate else 0.0) + self._proxy.chance.uniform(0, line.jitter)

    async def _end(self) -> None:
        if self._sent < self._place(self._line.reset_at):
            self._link.close()
            return
        await _arrived(self._sink)
        self._link.reset()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    if sock.fileno() != -1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _arrived(writer: asyncio.StreamWriter) -> None:
    """Returns when the peer has what was written: with a reset the kernel drops what it has not sent yet."""
    sock: socket.socket = writer.get_extra_info("socket")
    deadline = asyncio.get_running_loop().time() + FLUSH
    while asyncio.get_running_loop().time() < deadline and sock.fileno() != -1:
        waiting = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        if not int.from_bytes(waiting, sys.byteorder):
            return
        await asyncio.sleep(0.001)
