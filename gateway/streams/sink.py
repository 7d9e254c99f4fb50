"""The way to one client: bytes in, bounded and timed writes out.

Two ways to write, for the two ways to read a log:

- `write` waits until the client has taken enough, at most `write_timeout`.
- `push` never waits. The data leaves with this turn of the loop where the socket takes it at once. Otherwise it is kept
  as `unsent`, the one piece that was encoded and not written, and the reader's task must `flush` before it sends more.

At most `MAX_WRITE` bytes are handed to the socket before it is waited for.
"""

import asyncio
import zlib
from collections.abc import Awaitable
from typing import Final, Protocol

from aiohttp.http_writer import StreamWriter

from gateway.clock import Clock

MAX_WRITE: Final = 32 * 1024
"""Bytes handed to a socket before it is waited for."""


class SlowReaderError(Exception):
    """The client took nothing for `write_timeout`."""


class Gzip:
    """A gzip body whose every part can be read at once, for 38 KiB of memory a stream."""

    def __init__(self) -> None:
        # The largest windows would cost 256 KiB a stream and save next to nothing on text this repetitive.
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 28, 5)

    def __call__(self, data: bytes) -> bytes:
        """The compressed form of `data`, flushed to its last byte."""
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """What a decoder needs to see that nothing is missing."""
        return self._deflate.flush()


class Peer(Protocol):
    """The part of the server's connection that a delivery waits for."""

    @property
    def writing_paused(self) -> bool:
        """Whether the socket's buffer is above its high-water mark."""

    async def drained(self) -> None:
        """Returns when the buffer is below it; raises `ConnectionError` when the client is gone."""


class Sink:
    """The way to one client: bytes in, bounded and timed writes out.

    Args:
        writer: the body of a prepared response.
        peer: its connection.
        write_timeout: seconds after which a client that takes nothing is given up.
        gzip: the compressor, None to send bytes as they are.

    Attributes:
        sent: bytes of bodies so far.
        unsent: what was pushed and could not leave at once; empty nearly always.
    """

    __slots__ = ("_chunked", "_gzip", "_peer", "_transport", "_write_timeout", "_writer", "sent", "unsent")

    def __init__(self, writer: StreamWriter, peer: Peer, write_timeout: float, gzip: Gzip | None) -> None:
        self._writer = writer
        self._peer = peer
        self._write_timeout = write_timeout
        self._gzip = gzip
        self._transport: asyncio.WriteTransport | None = None
        self._chunked = False
        self.sent = 0
        self.unsent = b""

    def push(self, data: bytes, clock: Clock) -> bool:
        """Whether the data, which is not empty, leaves with this turn of the loop. After False, `flush` must be called.

        Nothing may be unsent when this is called.
        """
        transport = self._transport
        if transport is None or len(data) > MAX_WRITE or transport.get_write_buffer_size() or transport.is_closing():
            self.unsent = data
            return False
        clock.soon(transport, self._framed(data if self._gzip is None else self._gzip(data)))
        return True

    async def flush(self) -> None:
        """Nothing is unsent any more. Raises as `write`."""
        data, self.unsent = self.unsent, b""
        await self.write(data)

    async def write(self, data: bytes) -> None:
        """The data is on its way.

        Raises:
            SlowReaderError: the client did not take what it was sent before.
            ConnectionError: the client is gone.
        """
        if self._gzip is not None:
            data = self._gzip(data)
        if len(data) <= MAX_WRITE:
            await self._write(data)
            return
        for start in range(0, len(data), MAX_WRITE):
            await self._write(data[start : start + MAX_WRITE])

    async def end(self) -> None:
        """The body is complete."""
        if self._gzip is not None:
            await self._write(self._gzip.end())
        await self._timed(self._writer.write_eof())

    async def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._hand(self._transport, data)
        else:  # the headers leave with it
            await self._writer.write(data, drain=False)  # its own drain would wait for a stalled client without a limit
            self._transport, self._chunked = self._writer.transport, self._writer.chunked
            self.sent += len(data)
        if self._peer.writing_paused:
            await self._timed(self._peer.drained())

    def _hand(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        if transport.is_closing():
            raise ConnectionResetError
        if data:
            transport.write(self._framed(data))

    def _framed(self, data: bytes) -> bytes:
        # What the writer does with a block behind the headers, without its coroutine and its lists.
        self.sent += len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def _timed(self, taken: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await taken
        except TimeoutError:
            raise SlowReaderError from None
