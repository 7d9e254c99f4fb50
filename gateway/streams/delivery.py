"""The one reader loop: a place in a log → frames → one browser.

Invariants:

- What one connection is sent is a run of the log's events, in order, each once; its cursors tell where it ends.
- A stream ends with the log's own terminal event and nothing after it. Silence is never an end.
- Comments (heartbeats) stand between blocks, never inside one.
- A client that takes nothing for `write_timeout` is cut; at most `MAX_WRITE` bytes are handed to its socket at once,
  and nothing more is encoded for it until they are gone.

This file knows no upstream, and does not know whether what it sends is new or a replay.
"""

import asyncio
import math
import zlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from aiohttp.http_writer import StreamWriter

from gateway.clock import Clock
from gateway.config import Stream as StreamConfig
from gateway.core.batch import Hold, merge
from gateway.core.cursor import Cursor, final_cursor
from gateway.core.errors import Failure, GatewayError
from gateway.core.event import ERROR, Event
from gateway.core.sse import comment
from gateway.formats import Format, View
from gateway.observe.metrics import Outcome, RouteMetrics
from gateway.streams.log import END, TRIMMED, Log, Reader, State

READ_LIMIT: Final = 512
"""Events that are encoded at once, at most."""
READ_BYTES: Final = 64 * 1024
"""Bytes of events that are encoded at once: more would wait in memory for a client that does not read."""
PUSH_LIMIT: Final = 128
"""Events that are encoded at once without a look at how large they are; that many came with one read, or fewer."""
MAX_WRITE: Final = 32 * 1024
"""Bytes handed to a socket before it is waited for."""
MAX_HOLD: Final = 2.0
"""Seconds that text is held back at most while it waits for the end of a sentence or paragraph."""
HEARTBEAT: Final = comment().encode()


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
        peer: as given.
        sent: bytes of bodies so far.
    """

    __slots__ = ("_chunked", "_gzip", "_transport", "_write_timeout", "_writer", "peer", "sent")

    def __init__(self, writer: StreamWriter, peer: Peer, write_timeout: float, gzip: Gzip | None) -> None:
        self._writer = writer
        self.peer = peer
        self._write_timeout = write_timeout
        self._gzip = gzip
        self._transport: asyncio.WriteTransport | None = None
        self._chunked = False
        self.sent = 0

    def push(self, data: bytes, clock: Clock) -> bool:
        """Whether the data, which is not empty, leaves with this turn of the loop; where it cannot, it has to wait."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() or transport.is_closing():
            return False
        clock.soon(transport, self._framed(data if self._gzip is None else self._gzip(data)))
        return True

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
        if self.peer.writing_paused:
            await self._timed(self.peer.drained())

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one client wants to be told.

    Attributes:
        format: turns events into blocks.
        view: what the blocks may mention beside the event.
        stream: the route's stream settings.
        ids: whether blocks carry cursors (and the first block a `retry:`).
        merge: whether deltas are joined.
        resumed: whether the client was here before.
        retry_ms: base of the client's reconnection time.
    """

    format: Format
    view: View
    stream: StreamConfig
    ids: bool
    merge: bool
    resumed: bool = False
    retry_ms: int = 2000


class Delivery:
    """Sends one reader what it has not got yet, until the log ends.

    Args:
        reader: its place in the log.
        sink: the way to the client.
        reading: how the client wants to be told.
        clock: the shared timers.
        metrics: the route's counters.
    """

    __slots__ = (
        "_batch",
        "_bytes",
        "_clock",
        "_encode",
        "_failure",
        "_heartbeats",
        "_hold",
        "_log",
        "_max_merged",
        "_now",
        "_prefix",
        "_reader",
        "_reading",
        "_sent",
        "_sink",
        "_spoke",
        "_unsent",
        "_view",
    )

    def __init__(self, reader: Reader, sink: Sink, reading: Reading, clock: Clock, metrics: RouteMetrics) -> None:
        batch = reading.stream.batch
        self._reader = reader
        self._log: Log = reader.log
        self._sink = sink
        self._reading = reading
        self._clock = clock
        self._now = clock.now
        self._batch, self._bytes, self._heartbeats = metrics.batch, metrics.bytes, metrics.heartbeats
        self._view, self._encode = reading.view, reading.format.encode
        self._prefix = f"id: {self._log.stream_id}." if reading.ids else ""
        self._max_merged = batch.max_bytes if reading.merge else 0
        self._hold = None if batch.boundary == "event" else Hold(batch.boundary, batch.max_bytes, MAX_HOLD)
        self._sent = reader.after
        self._spoke = -math.inf
        self._unsent = b""
        self._failure: Exception | None = None

    async def run(self) -> Outcome:
        """Why it ended: `completed` when the log's end was delivered, else `client_gone` or `slow_reader`."""
        try:
            await self._write(self._prelude().encode())
            await self._follow()
            await self._sink.end()
        except SlowReaderError:
            return "slow_reader"
        except ConnectionError:
            return "client_gone"
        return "completed"

    def speak(self) -> None:
        """The client is sent something at once, if only a comment."""
        self._spoke = -math.inf
        self._reader.interrupt()

    async def _follow(self) -> None:
        while True:
            got = await self._reader.read(self._limit(), self._patience(), self._push if self._hold is None else None)
            if self._failure is not None:
                raise self._failure
            if self._unsent:
                await self._write(self._unsent)
                self._unsent = b""
            if got is END:
                await self._release()
                return
            if got is TRIMMED:
                await self._write(self._trimmed().encode())
                return
            if not isinstance(got, State):
                await self._take(got)
            elif self._hold is not None and self._hold.due is not None and self._hold.due <= self._now():
                await self._release()
            if self._now() - self._spoke >= self._reading.stream.heartbeat:
                await self._beat()

    def _push(self, events: Sequence[Event]) -> bool:
        # Without waking this task, which is a third of what a window costs. What cannot leave at once is taken too, and
        # the task woken for it.
        if len(events) > PUSH_LIMIT:
            return False
        try:
            data = self._encoded(events)
        except Exception as error:  # noqa: BLE001 - this reader's own; the writer of the log goes on
            self._failure = error
            return False
        if not data:
            return True
        if len(data) <= MAX_WRITE and self._sink.push(data, self._clock):
            self._spoke = self._now()
        else:
            self._unsent = data
            self._reader.interrupt()
        return True

    async def _write(self, data: bytes) -> None:
        await self._sink.write(data)
        self._spoke = self._now()

    def _limit(self) -> int:
        """Events to take at once: as many as make `READ_BYTES` where they are as large as the log's are on average."""
        log = self._log
        if log.size <= READ_BYTES:
            return READ_LIMIT
        return max(1, min(READ_LIMIT, READ_BYTES * (log.last - log.first + 1) // log.size))

    def _patience(self) -> float:
        """Seconds until something is to be sent though nothing comes; the time since the client was last sent anything
        counts, as events that a format leaves out do not keep a proxy from giving up."""
        due = self._spoke + self._reading.stream.heartbeat
        if self._hold is not None and self._hold.due is not None:
            due = min(due, self._hold.due)
        return max(0.001, due - self._now())

    async def _beat(self) -> None:
        self._heartbeats.inc()
        await self._write(HEARTBEAT)

    async def _take(self, events: Sequence[Event]) -> None:
        if self._hold is None:
            await self._send(events)
            return
        for group in self._hold.feed(events, self._now()):
            await self._send(group)

    async def _release(self) -> None:
        if self._hold is not None and (held := self._hold.flush()):
            await self._send(held)

    async def _send(self, events: Sequence[Event]) -> None:
        limit = self._limit()
        for start in range(0, len(events), limit):
            if data := self._encoded(events[start : start + limit]):
                await self._write(data)

    def _encoded(self, events: Sequence[Event]) -> bytes:
        data = self._text(events).encode("utf-8", "replace")
        if data:
            self._batch.observe(len(events))
            self._bytes.value += len(data)
        return data

    def _text(self, events: Sequence[Event]) -> str:
        log, view, encode, prefix = self._log, self._view, self._encode, self._prefix
        if view.model is not log.model:
            view.model = log.model
        after = self._sent
        self._sent += len(events)
        terminal = log.terminal if log.closed and self._sent == log.last else None
        if terminal is not None:
            events = events[:-1]
        text = ""
        # One loop without calls of our own: it runs for every event of every reader.
        for seq, event in merge(events, after, self._max_merged) if self._max_merged else enumerate(events, after + 1):
            if block := encode(event, view):
                text += f"{prefix}{seq}.{view.index}\n{block}\n" if prefix else f"{block}\n"
        return text if terminal is None else text + self._last_frame(terminal)

    def _last_frame(self, terminal: Event) -> str:
        block = self._reading.format.terminal(terminal, self._view)
        if block:
            block = self._comeback(terminal) + block
        if self._prefix:
            # Even where the format does not send it, so that a reconnect is answered 204; and with the last of several
            # blocks, so that who was cut off between them gets all of them.
            before, gap, last = block.rpartition("\n\n")
            return f"{before}{gap}{self._prefix}{self._sent}.{self._view.index}\n{last}\n"
        return block and f"{block}\n"

    def _comeback(self, terminal: Event) -> str:
        # A crowd that was cut at once must not come back at once; `retry_ms` differs from reader to reader.
        if terminal.type != ERROR:
            return ""
        retry_after = msgspec.json.decode(terminal.data, type=Failure).retry_after
        return "" if retry_after is None else f"retry: {round(retry_after * 1000) + self._reading.retry_ms}\n"

    def _prelude(self) -> str:
        reading = self._reading
        text = ""
        if reading.ids:
            cursor = Cursor(self._log.stream_id, self._sent, reading.view.index)
            text = f"retry: {reading.retry_ms}\nid: {cursor}\n\n"
        if reading.resumed and reading.format.announces_resume:
            text += reading.format.encode(Event("start", ""), reading.view) + "\n"
        return text or comment()

    def _trimmed(self) -> str:
        return expired_block(self._reading.format, self._reading.view)


def expired_block(format_: Format, view: View) -> str:
    """The block that tells a reader that its place is gone, with a cursor at which nothing is left to read."""
    return error_block(format_, view, GatewayError("cursor_expired"), final_cursor())


def error_block(format_: Format, view: View, error: GatewayError, cursor: str = "") -> str:
    """One error in the route's shape, as a whole block, with a cursor where it ends the stream for good."""
    block = format_.terminal(Event(ERROR, error.to_json()), view)
    return f"id: {cursor}\n{block}\n" if cursor else f"{block}\n"
