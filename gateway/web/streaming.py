"""From a generation to a response: hold the headers for the upstream's real status, commit, deliver, leave.

Invariants:

- Until the headers are committed a failure is an error response; afterwards it is an event in the stream.
- Whoever attached a reader detaches it on every way out, the client's sudden leave included.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import hdrs, web
from aiohttp.client import ClientResponse
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict

from gateway.core.cursor import Cursor, parse_cursor
from gateway.core.errors import GatewayError
from gateway.core.quota import Gate
from gateway.core.rate import Rate
from gateway.formats import View
from gateway.observe.metrics import Outcome
from gateway.streams.delivery import Delivery, Gzip, Reading, Sink
from gateway.streams.generation import Generation
from gateway.streams.log import END, Reader
from gateway.web.connection import Connection
from gateway.web.exchange import Exchange
from gateway.web.responses import STREAM_HEADERS, retry_ms

MAX_READERS: Final = 32
"""Readers of one stream at once."""
RECONNECTS: Final = Rate(20, 10.0)
"""Resumes of one stream: who comes back faster is told when to."""

_GZIP: Final = re.compile(r"(?:^|,)\s*gzip\s*(?:$|,|;(?!\s*q=0(?:\.0*)?\s*(?:$|,)))", re.IGNORECASE)
"""Source: RFC 9110 12.5.3."""

PassThrough = Callable[[ClientResponse], Awaitable[web.StreamResponse]]


async def stream_new(
    exchange: Exchange, generation: Generation, *, pass_through: PassThrough | None = None, wait: bool = False
) -> web.StreamResponse:
    """The response that follows a generation just started.

    Args:
        exchange: the request.
        generation: what it started.
        pass_through: answers with an upstream response that is no stream.
        wait: whether the headers wait for the upstream however long it takes, because the client may not want events.

    Raises:
        GatewayError: the generation failed before anything was committed.
    """
    reader = generation.attach(0)
    attendance = _Attendance(generation, reader)
    try:
        passed = await _hold(exchange, generation, None if wait else generation.job.stream.commit_after)
        if passed is not None and pass_through is not None:
            try:
                return await pass_through(passed)
            finally:
                generation.passed_on()
        return await _deliver(exchange, attendance, resumed=False, index=0)
    finally:
        attendance.leave()


async def resume(exchange: Exchange, cursor_text: str, stream_id: str | None = None) -> web.StreamResponse:
    """The response that goes on after a cursor: the events that follow, then live. It never starts a generation.

    Args:
        exchange: the request.
        cursor_text: as the client sent it.
        stream_id: the stream that the path names, None where any will do.

    Raises:
        GatewayError: `bad_cursor`; `cursor_expired` when there is no such stream of this reader's any more;
            `rate_limited` when it comes back too often.
    """
    try:
        cursor = parse_cursor(cursor_text)
    except GatewayError:
        exchange.gateway.metrics.resume("malformed")
        raise
    if cursor.is_final:
        exchange.gateway.metrics.resume("ended")
        return web.Response(status=204, headers=exchange.headers)
    generation = find_stream(exchange, cursor.stream_id)
    if stream_id not in (None, cursor.stream_id):
        raise _expired(exchange)
    return await follow(exchange, generation, cursor)


async def follow(exchange: Exchange, generation: Generation, cursor: Cursor) -> web.StreamResponse:
    """The response that reads a stream from a place in it.

    Raises:
        GatewayError: as `resume`.
    """
    log = generation.log
    if cursor.seq > log.last or cursor.seq < log.first - 1:
        raise _expired(exchange)
    if log.read(cursor.seq, 1) is END:
        exchange.gateway.metrics.resume("ended")
        return web.Response(status=204, headers=exchange.headers)
    _limit_readers(exchange, generation)
    exchange.gateway.metrics.resume("resumed")
    attendance = _Attendance(generation, generation.attach(cursor.seq))
    try:
        return await _deliver(exchange, attendance, resumed=cursor.seq > 0, index=cursor.tokens)
    finally:
        attendance.leave()


def find_stream(exchange: Exchange, stream_id: str) -> Generation:
    """The reader's stream of this id.

    Raises:
        GatewayError: `cursor_expired`, alike for unknown, expired and somebody else's.
    """
    generation = exchange.gateway.registry.find(stream_id, exchange.owner)
    if generation is None:
        raise _expired(exchange)
    return generation


def cursor_of(exchange: Exchange) -> str | None:
    """The cursor that the client sent, None where it sent none; the header wins over the query."""
    header = exchange.request.headers.get("Last-Event-ID")
    return header or exchange.request.query.get("last_event_id") or None


def reads_cursors(exchange: Exchange) -> bool:
    """Whether the client can do with blocks that have an id but no data.

    Some official SDKs take such a block for an event and fail; they say that they accept JSON, and JSON alone.
    """
    accept = exchange.request.headers.get(hdrs.ACCEPT, "*/*")
    return "event-stream" in accept or "*/*" in accept


class _EventStream(web.StreamResponse):
    # The headers leave together with the first block: a client that has them has its first cursor too.
    _send_headers_immediately = False

    def forget_headers(self) -> None:
        """They are on their way; for as long as the stream lasts they would be a fifteenth of its memory."""
        self._headers = _SENT


_SENT: Final = CIMultiDict[str]()


class _Attendance:
    """A reader's stay with a generation, left exactly once."""

    def __init__(self, generation: Generation, reader: Reader) -> None:
        self.generation = generation
        self.reader = reader
        self.sink: Sink | None = None
        self.reason: Outcome = "client_gone"

    def leave(self) -> None:
        self.generation.detach(self.reader, self.sink.sent if self.sink else 0, self.reason)


async def _hold(exchange: Exchange, generation: Generation, commit_after: float | None) -> ClientResponse | None:
    # A client that half-closes before the headers is sent them at once: its answer tells whether it is still there.
    begun, closed = generation.begun, asyncio.get_running_loop().create_future()
    if commit_after is None:
        exchange.connection.check_open()
    else:
        exchange.connection.outlive_fin(lambda: None if closed.done() else closed.set_result(None))
    await asyncio.wait((begun, closed), timeout=commit_after, return_when=asyncio.FIRST_COMPLETED)
    generation.told = not closed.done()  # the id goes with the headers; who closed before may never read them
    if not begun.done():
        begun.set_result(None)  # the headers go out now: what is no stream comes too late
    return begun.result()


async def _deliver(exchange: Exchange, attendance: _Attendance, *, resumed: bool, index: int) -> web.StreamResponse:
    generation = attendance.generation
    job, log = generation.job, generation.log
    gzip = Gzip() if job.stream.compress and _accepts_gzip(exchange.request) else None
    response, writer = await _begin_response(exchange, log.stream_id, gzip is not None)
    view = View(log.stream_id, job.session_id, log.model, generation.created, index, resumed)
    reading = Reading(
        format=job.format,
        view=view,
        stream=job.stream,
        ids=job.stream.resume.enabled and reads_cursors(exchange),
        merge=job.merge,
        resumed=resumed,
        retry_ms=retry_ms(job.stream.retry),
    )
    attendance.sink = sink = Sink(writer, exchange.connection, job.stream.write_timeout, gzip)
    metrics = exchange.gateway.metrics.route(job.route)
    delivery = Delivery(attendance.reader, sink, reading, exchange.gateway.clock, metrics)
    exchange.connection.begin_stream(job.stream.write_timeout)
    exchange.connection.outlive_fin(delivery.speak)
    connections = metrics.connections["eventsource" if exchange.is_eventsource else "fetch"]
    with connections.track_inprogress():
        attendance.reason = await delivery.run()
        if attendance.reason == "completed":
            attendance.reason = await _handed_over(exchange.connection, job.stream.write_timeout)
    exchange.connection.outlive_fin(None)
    if attendance.reason != "completed":
        exchange.connection.abort()
    return response


async def _handed_over(connection: Connection, write_timeout: float) -> Outcome:
    # The reader stays until the kernel has the end too: a drain waits for readers, and a process that ends takes along
    # what is still in its own buffers.
    try:
        async with asyncio.timeout(write_timeout):
            await connection.flushed()
    except TimeoutError:
        return "slow_reader"
    except ConnectionError:
        return "client_gone"
    return "completed"


async def _begin_response(exchange: Exchange, stream_id: str, gzipped: bool) -> tuple[web.StreamResponse, StreamWriter]:
    response = _EventStream(headers={**STREAM_HEADERS, "X-Stream-Id": stream_id, **exchange.headers})
    if gzipped:
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        response.headers.add(hdrs.VARY, hdrs.ACCEPT_ENCODING)
    if exchange.request.version < (1, 1):
        response.force_close()  # without chunks only the close tells where the body ends
    writer = cast(StreamWriter, await response.prepare(exchange.request))
    response.forget_headers()
    exchange.headers = {}
    return response, writer


def _accepts_gzip(request: web.BaseRequest) -> bool:
    return _GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "")) is not None


def _limit_readers(exchange: Exchange, generation: Generation) -> None:
    gate = generation.gate
    if gate is None:
        gate = generation.gate = Gate(RECONNECTS)
    wait = gate.take(exchange.gateway.clock.now())
    if wait > 0:
        raise GatewayError("rate_limited", "This stream is resumed too often.", retry_after=wait)
    if len(generation.log.readers) >= MAX_READERS:
        raise GatewayError("too_many_streams", f"This stream has {MAX_READERS} readers.", retry_after=2)


def _expired(exchange: Exchange) -> GatewayError:
    exchange.gateway.metrics.resume("expired")
    return GatewayError("cursor_expired")
