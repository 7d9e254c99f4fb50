"""Writes to one client, with a bound on the bytes in flight and a limit on the time.

There are two ways to write, for the two ways to read a log:

- `write` waits, at most `write_timeout`, until the client has taken enough.
- `push` never waits. If the socket can take the data at once, it leaves with this turn of the loop. If not, the data
  is kept as `unsent`, and the reader's task must call `flush` before it sends more. There is at most one such piece.

After every `MAX_WRITE` bytes, a write checks whether the client keeps up.
"""

import asyncio
import zlib
from collections.abc import Awaitable
from typing import Final, Protocol

from aiohttp.http_writer import StreamWriter

from gateway.clock import Clock

MAX_WRITE: Final = 32 * 1024
"""Bytes given to a socket in one piece."""


class SlowReaderError(Exception):
    """The client took nothing for `write_timeout`."""


class Gzip:
    """Compresses a body so that a client can read each part as soon as it comes; takes 38 KiB of memory a stream."""

    def __init__(self) -> None:
        # The largest window would cost 256 KiB a stream, and make text as repetitive as this hardly any smaller.
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 28, 5)

    def __call__(self, data: bytes) -> bytes:
        """The compressed form of `data`, flushed to its last byte."""
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """The end of the gzip data, from which a decoder sees that nothing is missing."""
        return self._deflate.flush()


class Peer(Protocol):
    """The part of the server's connection that a delivery waits for."""

    @property
    def writing_paused(self) -> bool:
        """Whether the socket's buffer is above its high-water mark."""

    async def drained(self) -> None:
        """Returns when the buffer is below it; raises `ConnectionError` when the client is gone."""


class Sink:
    """Writes to one client.

    Args:
        writer: the body of a prepared response.
        peer: its connection.
        write_timeout: seconds for which a client may take nothing.
        gzip: the compressor, None to send bytes as they are.

    Attributes:
        sent: bytes of the body that were written so far.
        unsent: what was pushed and could not leave at once; nearly always empty.
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

    @property
    def begun(self) -> bool:
        """Whether the head was written."""
        return self._transport is not None

    def push(self, data: bytes, clock: Clock) -> bool:
        """Whether the data, which is not empty, leaves with this turn of the loop. After False you must call `flush`.

        To be called only when nothing is unsent.
        """
        transport = self._transport
        if transport is None or len(data) > MAX_WRITE or transport.get_write_buffer_size() or transport.is_closing():
            self.unsent = data
            return False
        clock.soon(transport, self._framed(data if self._gzip is None else self._gzip(data)))
        return True

    async def flush(self) -> None:
        """Writes what is unsent. Raises as `write`."""
        data, self.unsent = self.unsent, b""
        await self.write(data)

    async def write(self, data: bytes) -> None:
        """Writes the data, and waits if the client is behind. The head leaves with the first data, even with b"".

        Raises:
            SlowReaderError: the client took nothing for `write_timeout`.
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
        """Ends the body. Raises as `write`."""
        if self._gzip is not None:
            await self._write(self._gzip.end())
        await self._timed(self._writer.write_eof())

    async def _write(self, data: bytes) -> None:
        if self._transport is None:
            # The first write: the headers leave with it. `drain` would wait for a stalled client without a limit.
            await self._writer.write(data, drain=False)
            self._transport, self._chunked = self._writer.transport, self._writer.chunked
            self.sent += len(data)
        elif self._transport.is_closing():
            raise ConnectionResetError
        elif data:
            self._transport.write(self._framed(data))
        if self._peer.writing_paused:
            await self._timed(self._peer.drained())

    def _framed(self, data: bytes) -> bytes:
        # The same bytes as `StreamWriter.write` makes after the headers, without its coroutine and its lists.
        self.sent += len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def _timed(self, taken: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await taken
        except TimeoutError:
            raise SlowReaderError from None
