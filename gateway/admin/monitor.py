"""The monitor's feed: a log of samples, which the same loop delivers that delivers answers to browsers.

It is a log like any other; its writer is a timer, once a second. So a page gets the last minutes at once when it begins
to watch, goes on after its cursor when its connection dropped, and is cut when it takes nothing.

Invariants:

- The log keeps the last minutes and no more, whether a page watches or not.
- The current state (the block `now`) is not in the log. It is made only while a page watches, once for all pages, and
  is sent with the newest sample.
- The failures and the streams that ended (the block `past`) are sent to a page when it begins to watch, and again with
  a sample when there are new ones.
- In a drain the log ends when the process has no stream and no reader left, so that no page delays its exit.

What is in a sample is said in `readings.py`.
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
"""Seconds from check to check, in a drain, whether the last stream has ended."""
KEPT: Final = 300
"""Samples that a page is sent when it begins to watch: five minutes."""
MAX_BYTES: Final = 1 << 20
"""Memory of the log. A sample of a busy process takes half a KiB."""
MAX_WATCHERS: Final = 32
RETRY_MS: Final = 1000

SAMPLE: Final = "sample"
NOW: Final = "now"
PAST: Final = "past"
SHOWN: Final = 50
"""Failures that the page lists; `/failures` has all that are kept."""
LABEL: Final = "_monitor"
"""The route under which metrics count the feed's bytes."""


class Monitor:
    """Takes a sample every second, and sends them to pages. Needs a running loop.

    Args:
        gateway: the process that is shown.
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
        """The samples of the last minutes and all that follow, as server-sent events, until the process ends."""
        if self._log.closed or len(self._log.readers) >= MAX_WATCHERS:
            return web.Response(status=503, text="Not now.\n", headers={hdrs.RETRY_AFTER: "2"})
        reader = Reader(self._log, self._place(request), self._gateway.clock.wheel)
        try:
            return await self._deliver(request, reader)
        finally:
            reader.close()

    async def _deliver(self, request: web.BaseRequest, reader: Reader) -> web.StreamResponse:
        gateway, settings = self._gateway, self._stream.settings
        response = web.StreamResponse(headers={**STREAM_HEADERS, hdrs.SERVER: "gateway"})
        writer = cast(StreamWriter, await response.prepare(request))
        frames = Frames(self._stream, self._log, cursors=True, retry_ms=RETRY_MS)
        sink = Sink(writer, _Peer(request.protocol), settings.write_timeout, None)
        metrics = gateway.metrics.route(LABEL)
        outcome = await Delivery(reader, frames, sink, settings, clock=gateway.clock, metrics=metrics).run()
        if outcome != "completed" and request.transport is not None:
            request.transport.abort()
        return response

    def _place(self, request: web.BaseRequest) -> Place:
        """The place after the page's cursor; without a valid cursor, where the last minutes begin."""
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
        if not self._log.full:  # only pages that stall make it full, and they are cut
            event = Event(SAMPLE, msgspec.json.encode(self._readings.sample()).decode())
            self._board.newest = event
            self._log.append([event])


class Board(Stateless):
    """The format of the feed: a block for each sample, and after the newest one the blocks with the current state.

    Attributes:
        newest: the last sample.
    """

    announces_resume: Final = False
    spec: Final = LABEL

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._now_for: Event | None = None
        self._now = ""
        self._past_for = (-1, -1)
        self._past = ""
        self.newest: Event | None = None

    def open(self, view: View) -> Encoder:
        """The encoder of one page."""
        return Page(self)

    def now(self, sample: Event) -> str:
        """The block of the current state, the same for all pages until there is another sample."""
        if self._now_for is not sample:
            self._now_for = sample
            self._now = _block(NOW, self._readings.now())
        return self._now

    def past(self) -> tuple[str, tuple[int, int]]:
        """The block of what failed and what ended, and a mark that is another one whenever the block is."""
        mark = self._readings.mark()
        if mark != self._past_for:
            self._past_for, self._past = mark, _block(PAST, self._readings.past(SHOWN))
        return self._past, mark


class Page(Stateless):
    """The encoder of one page. A page that comes back has a new one, and is sent everything anew."""

    __slots__ = ("_board", "_mark")

    def __init__(self, board: Board) -> None:
        self._board = board
        self._mark: tuple[int, int] | None = None

    def encode(self, event: Event, index: int) -> str:
        """The block of a sample; for the newest sample, also the blocks of the current state and of what is new."""
        block = _block_of(SAMPLE, event.data)
        if event is not self._board.newest:
            return block
        past, mark = self._board.past()
        block = f"{block}\n{self._board.now(event)}"
        if mark != self._mark:
            self._mark = mark
            block = f"{block}\n{past}"
        return block

    def terminal(self, event: Event, index: int) -> str:
        """Nothing is sent: the log ends with the process, and a page reconnects by itself."""
        return ""


def _block(event: str, value: object) -> str:
    return _block_of(event, msgspec.json.encode(value).decode())


def _block_of(event: str, data: str) -> str:
    return f"event: {event}\n{data_lines(data)}"


@dataclass(frozen=True, slots=True)
class _Peer:
    """The connection of a plain aiohttp server, with the two members that a sink needs."""

    protocol: web.RequestHandler

    @property
    def writing_paused(self) -> bool:
        return self.protocol.writing_paused

    async def drained(self) -> None:
        await drain(self.protocol)
