"""The monitor's feed: a log of samples, read by the loop that also serves browsers their answers.

One more log, with one more writer: a timer, once a second. So the last minutes are there at once when somebody begins
to watch, a connection that drops goes on where it was, and who takes nothing is cut; all by the same rules as a stream.

Invariants:

- The log keeps the last minutes and no more, whether anybody watches or not.
- How things stand now is no history: it is put together only while somebody watches, once for all of them, and goes
  out with the newest sample.
- It ends when the process has nothing left to show, so that nobody who watches holds up its exit.

This file does not know what is in a sample.
"""

from dataclasses import dataclass
from typing import Final, cast

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_writer import StreamWriter

from gateway.admin.readings import Readings, readers
from gateway.core.cursor import Place, new_stream_id, parse_cursor
from gateway.core.errors import GatewayError
from gateway.core.event import Event
from gateway.core.sse import data_lines
from gateway.formats import Encoder, Stateless, View
from gateway.streams.delivery import Delivery
from gateway.streams.frames import Frames
from gateway.streams.log import LogMemory, MemoryLog
from gateway.streams.reader import Reader
from gateway.streams.sink import Sink
from gateway.streams.stream import ReaderSettings, Stream
from gateway.web.aiohttp_internals import drain
from gateway.web.responses import STREAM_HEADERS
from gateway.web.state import Gateway

INTERVAL: Final = 1.0
"""Seconds from sample to sample."""
LEAVING: Final = 0.1
"""Seconds between two looks whether the last stream of a drain has ended."""
KEPT: Final = 300
"""Samples that somebody sees who begins to watch: five minutes."""
MAX_BYTES: Final = 1 << 20
"""Memory of the log. A sample of a busy process takes half a KiB."""
MAX_WATCHERS: Final = 32
RETRY_MS: Final = 1000

SAMPLE: Final = "sample"
NOW: Final = "now"
LABEL: Final = "_monitor"
"""The route that its bytes count for."""


class Monitor:
    """Takes a sample a second, and shows them.

    Args:
        gateway: the process; a loop must be running.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._readings = Readings(gateway)
        self._log = MemoryLog(MAX_BYTES, LogMemory(MAX_BYTES))
        self._due = gateway.clock.now() + INTERVAL
        self._board = Board(self._readings)
        self._stream = Stream(
            id=new_stream_id(), owner="", route=LABEL, created=0, format=self._board, settings=ReaderSettings()
        )
        self._tick()

    async def show(self, request: web.BaseRequest) -> web.StreamResponse:
        """The last minutes and all that follows, as server-sent events, to the end of the process."""
        if self._log.closed or len(self._log.readers) >= MAX_WATCHERS:
            return web.Response(status=503, text="Not now.\n", headers={hdrs.RETRY_AFTER: "2"})
        reader = Reader(self._log, self._place(request), self._gateway.clock.wheel)
        try:
            return await self._deliver(request, reader)
        finally:
            reader.close()

    async def _deliver(self, request: web.BaseRequest, reader: Reader) -> web.StreamResponse:
        gateway, settings = self._gateway, self._stream.settings
        response = web.StreamResponse(headers=STREAM_HEADERS)
        writer = cast(StreamWriter, await response.prepare(request))
        frames = Frames(self._stream, self._log, cursors=True, retry_ms=RETRY_MS)
        sink = Sink(writer, _Peer(request.protocol), settings.write_timeout, None)
        metrics = gateway.metrics.route(LABEL)
        outcome = await Delivery(reader, frames, sink, settings, clock=gateway.clock, metrics=metrics).run()
        if outcome != "completed" and request.transport is not None:
            request.transport.abort()
        return response

    def _place(self, request: web.BaseRequest) -> Place:
        """Where a page goes on that was here before, else where the last minutes begin."""
        log = self._log
        oldest = max(log.first - 1, log.last - KEPT)
        try:
            cursor = parse_cursor(request.headers.get("Last-Event-ID", ""))
        except GatewayError:
            return Place(oldest, 0)
        known = cursor.stream_id == self._stream.id and cursor.seq <= log.last
        return Place(max(oldest, cursor.seq) if known else oldest, 0)

    def _tick(self) -> None:
        gateway, now = self._gateway, self._gateway.clock.now()
        if gateway.draining and not gateway.engine.running and not readers(gateway):
            self._log.close(None)
            return
        due = now >= self._due
        self._due = now + INTERVAL if due else self._due
        gateway.clock.wheel.after(LEAVING if gateway.draining else self._due - now, self._tick)
        if due:
            self._add()

    def _add(self) -> None:
        if not self._log.full:  # only watchers who stall fill it, and those are cut
            event = Event(SAMPLE, msgspec.json.encode(self._readings.sample()).decode())
            self._board.newest = event
            self._log.append([event])


class Board(Stateless):
    """Samples as they are; with the newest of them, how things stand now.

    Attributes:
        newest: the last sample.
    """

    announces_resume: Final = False
    spec: Final = LABEL

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._told: Event | None = None
        self._now = ""
        self.newest: Event | None = None

    def open(self, view: View) -> Encoder:
        """Itself, as every page is shown the same."""
        return self

    def encode(self, event: Event, index: int) -> str:
        """The block of a sample, and behind that of the newest one another block."""
        block = f"event: {SAMPLE}\n{data_lines(event.data)}"
        return block if event is not self.newest else f"{block}\n{self._current(event)}"

    def terminal(self, event: Event, index: int) -> str:
        """Nothing: the log ends with the process, and a page comes back by itself."""
        return ""

    def _current(self, event: Event) -> str:
        if self._told is not event:
            self._told = event
            self._now = f"event: {NOW}\n{data_lines(msgspec.json.encode(self._readings.now()).decode())}"
        return self._now


@dataclass(frozen=True, slots=True)
class _Peer:
    """The connection of a plain aiohttp server, as a delivery wants to see it."""

    protocol: web.RequestHandler

    @property
    def writing_paused(self) -> bool:
        return self.protocol.writing_paused

    async def drained(self) -> None:
        await drain(self.protocol)
