"""From a stream to a response: hold the headers until the upstream's status is known, commit, deliver, leave.

    holding --`commit_after`, the first event, or the client's FIN--> committed --delivery--> left
       |
       +--the upstream's answer is no stream--> passed through -----------------------------> left
       |
       +--the generation failed--> an error response, with its status ----------------------> left

    A client that may not want events is held until the upstream has answered: `wait` in `stream_new`.
    A resume is committed at once.

Invariants:

- Until the headers are committed a failure is an error response; afterwards it is an event in the stream.
- The function that attaches a reader detaches it on every way out, also if the client leaves suddenly.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import hdrs, web
from aiohttp.client import ClientResponse
from aiohttp.http_writer import StreamWriter

from gateway.core.bucket import Gate
from gateway.core.cursor import Cursor, Place, cursor_sent, parse_cursor
from gateway.core.errors import GatewayError
from gateway.core.limiter import Lease
from gateway.core.rate import Rate
from gateway.observe.metrics import Outcome
from gateway.streams.delivery import Delivery
from gateway.streams.frames import Frames
from gateway.streams.generation import Generation
from gateway.streams.log import END, Log
from gateway.streams.reader import BEGINNING, Reader
from gateway.streams.sink import Gzip, Sink
from gateway.streams.stream import Followed
from gateway.web.admission import admit_reader, expires_in
from gateway.web.aiohttp_internals import event_stream
from gateway.web.connection import Connection
from gateway.web.exchange import Committed, Exchange, listed
from gateway.web.responses import STREAM_HEADERS, retry_ms
from gateway.web.tickets import ticket_read_out, use_ticket

MAX_READERS: Final = 32
"""Readers of one stream at once, at most."""
FREE_READERS: Final = 4
"""Readers of one stream, such as tabs, that take no slot of their plan. One more takes one as a generation does."""
RECONNECTS: Final = Rate(20, 10.0)
"""How often one stream may be resumed. A client that comes back sooner gets `retry_after`."""
BEHIND: Final = 1.0
"""Seconds that a cursor may be ahead of a log that still grows."""
LOOKS: Final = 20
"""How often that is looked at meanwhile."""
AFTER_ANSWER: Final = 0.1
"""Seconds from the end of an answer whose credential expires to that of its reader. The reader of an answer that was
not renewed has its last event by then, and one event says that it has ended."""
_GZIP: Final = re.compile(r"(?:^|,)\s*gzip\s*(?:$|,|;(?!\s*q=0(?:\.0*)?\s*(?:$|,)))", re.IGNORECASE)
"""Source: RFC 9110 12.5.3."""

PassThrough = Callable[[ClientResponse], Awaitable[web.StreamResponse]]


async def stream_new(
    exchange: Exchange, generation: Generation, *, pass_through: PassThrough | None = None, wait: bool = False
) -> web.StreamResponse:
    """The response for a generation that was just started.

    Args:
        exchange: the request.
        generation: the generation that it started.
        pass_through: makes the response from an upstream's answer that is no stream.
        wait: whether the headers wait for the upstream, however long, because the client may not want events.

    Raises:
        GatewayError: the generation failed before anything was committed.
    """
    stay = _Stay(generation, generation.attach(BEGINNING))
    try:
        passed = await _hold(exchange, generation, wait)
        if passed is not None and pass_through is not None:
            try:
                return await pass_through(passed)
            finally:
                generation.passed_through()
        return await _deliver(exchange, stay, resumed=False)
    finally:
        stay.leave()


async def _hold(exchange: Exchange, generation: Generation, wait: bool) -> ClientResponse | None:
    """The upstream's response where that is no stream; the headers are to go out now.

    A coroutine of its own, because a stream would keep what is waited for here as long as it lasts.
    """
    # A client that closes its sending side before the headers is sent them at once. If it has closed altogether, its
    # kernel answers with a reset.
    if wait:
        exchange.connection.check_open()
    else:
        exchange.connection.outlive_fin(generation.opening.as_stream)
    opening = await generation.opened(within=None if wait else generation.commit_after)
    generation.id_sent = not exchange.connection.half_closed  # a client that closed may not read it in the headers
    if opening.error is not None:
        raise opening.error
    return opening.response


async def resume(exchange: Exchange, cursor_text: str, stream_id: str | None = None) -> web.StreamResponse:
    """The response that continues after a cursor: the events that are there, then new ones. Never starts a generation.

    Args:
        exchange: the request.
        cursor_text: the cursor as the client sent it.
        stream_id: the stream in the path, None if the path names none.

    Raises:
        GatewayError: `bad_cursor`; `cursor_expired` if the caller has no such stream (any more); `rate_limited` if it
            comes back too often.
    """
    try:
        cursor = parse_cursor(cursor_text)
    except GatewayError:
        exchange.gateway.metrics.resume("malformed")
        raise
    if cursor.is_final:
        exchange.gateway.metrics.resume("ended")
        return web.Response(status=204, headers=exchange.headers)
    followed = await find_stream(exchange, cursor.stream_id)
    if stream_id not in (None, cursor.stream_id):
        raise _expired(exchange)
    log = followed.log
    if exchange.gateway.shared is not None and not isinstance(followed, Generation):
        await _arrived(log, cursor)
    if any(cursor.seq > last for last in log.takeovers[cursor.takeovers :]) or cursor.takeovers > len(log.takeovers):
        raise _expired(exchange)  # the reader has events of a node that was lost before anybody else had them
    return await follow(exchange, followed, cursor.place)


async def _arrived(log: Log, cursor: Cursor) -> None:
    """Returns when the log has come to this place, or does not in time. What a reader was sent at another node may be a
    moment ahead of what has come from there."""
    for _ in range(LOOKS):
        if log.closed or (cursor.seq <= log.last and cursor.takeovers <= len(log.takeovers)):
            return
        await asyncio.sleep(BEHIND / LOOKS)


async def follow(exchange: Exchange, followed: Followed, place: Place) -> web.StreamResponse:
    """The response with the events of a stream after a place.

    Raises:
        GatewayError: as `resume`.
    """
    log = followed.log
    if place.seq > log.last or place.seq < log.first - 1:
        raise _expired(exchange)
    if log.read(place.seq, 1) is END:
        exchange.gateway.metrics.resume("ended")
        return web.Response(status=204, headers=exchange.headers)
    slot = _limit_readers(exchange, followed)
    if slot is not None and not isinstance(slot, Lease):
        slot = await slot
    followed.extend(expires_in(exchange))
    exchange.gateway.metrics.resume("resumed")
    stay = _Stay(followed, followed.attach(place))
    try:
        return await _deliver(exchange, stay, resumed=place.seq > 0)
    finally:
        stay.leave()
        if slot is not None:
            slot.close(exchange.gateway.clock.now())


async def find_stream(exchange: Exchange, stream_id: str) -> Followed:
    """The caller's stream with this id, whichever node writes it.

    Raises:
        GatewayError: `cursor_expired`, the same for an unknown id, an expired stream and another principal's stream;
            `overloaded` where only the shared store knows, and it is away.
    """
    gateway, ticket = exchange.gateway, exchange.ticket
    if ticket is not None and ticket.stream_id not in ("", stream_id):
        raise _expired(exchange)
    followed: Followed | None = gateway.registry.find(stream_id, exchange.caller.owner)
    if gateway.shared is not None and gateway.shared.doubtful:
        await gateway.shared.certain()  # another node may have taken what this one still has
        followed = gateway.registry.find(stream_id, exchange.caller.owner)
    if followed is None and gateway.shared is not None:
        followed = await gateway.shared.find(stream_id, exchange.caller.owner)
    if followed is None:
        raise _expired(exchange)
    if ticket is not None:
        use_ticket(exchange, ticket, stream_id)
    return followed


async def read_by_ticket(exchange: Exchange, stream_id: str) -> web.StreamResponse:
    """The events of the stream that the caller's ticket gives, from the first one on.

    Raises:
        GatewayError: as `resume`.
    """
    followed = await find_stream(exchange, stream_id)
    if not followed.stream.settings.resumable:
        raise _expired(exchange)
    return await follow(exchange, followed, BEGINNING)


def cursor_of(exchange: Exchange) -> str | None:
    """The cursor that the client sent, None where it sent none; the header wins over the query."""
    request = exchange.request
    return cursor_sent(listed(request.headers, "Last-Event-ID"), request.query.items())


def reads_cursors(exchange: Exchange) -> bool:
    """Whether the client can read blocks without data behind a cursor.

    Some official SDKs take such a block for an event, and fail: once they have an id, every heartbeat is one. Their
    `Accept` names JSON and nothing else.
    """
    accept = listed(exchange.request.headers, hdrs.ACCEPT) or "*/*"
    return "event-stream" in accept or "*/*" in accept


class _Stay:
    """An attached reader, with what must be known when it is detached. You must call `leave`, once."""

    __slots__ = ("followed", "reader", "reason", "sink")

    def __init__(self, followed: Followed, reader: Reader) -> None:
        self.followed = followed
        self.reader = reader
        self.sink: Sink | None = None
        self.reason: Outcome = "client_gone"

    def leave(self) -> None:
        self.followed.detach(self.reader, self.sink.sent if self.sink else 0, self.reason)


class _Expiry:
    """Ends a reader's stream when the credential that it came with is no longer good. You must call `close`.

    Args:
        exchange: its request.
        followed: the stream, which goes on for as long as one of its owner's credentials is good.
        delivery: of the reader.
        seconds: for which the credential is good, as far as is known now.
    """

    __slots__ = ("_assurance", "_delivery", "_followed", "_timer", "_wheel")

    def __init__(self, exchange: Exchange, followed: Followed, delivery: Delivery, seconds: float) -> None:
        self._followed = followed
        self._delivery = delivery
        self._wheel = exchange.gateway.clock.wheel
        self._assurance = exchange.caller.assurance
        self._timer = self._wheel.after(seconds + AFTER_ANSWER, delivery.expire)
        if self._assurance is not None:
            self._assurance.rely(self)

    def renew(self, seconds: float) -> None:
        """See `core.principal.Relying`."""
        self._timer.cancel()
        self._timer = self._wheel.after(max(0.0, seconds) + AFTER_ANSWER, self._delivery.expire)
        if seconds > 0:
            self._followed.extend(seconds)

    def close(self) -> None:
        """The reader has left."""
        self._timer.cancel()
        if self._assurance is not None:
            self._assurance.leave(self)


async def _deliver(exchange: Exchange, stay: _Stay, *, resumed: bool) -> web.StreamResponse:
    stream, connection = stay.followed.stream, exchange.connection
    settings = stream.settings
    cursors = settings.resumable and reads_cursors(exchange)
    gzip = Gzip() if settings.compress and _accepts_gzip(exchange.request) else None
    frames = Frames(
        stream,
        stay.reader.log,
        cursors=cursors,
        retry_ms=retry_ms(settings.retry),
        resumed=resumed,
        bare=exchange.request.method == hdrs.METH_GET,
    )
    response, writer = await _begin_response(exchange, stream.id, gzip is not None)
    stay.sink = sink = Sink(writer, connection, settings.write_timeout, gzip)
    metrics = exchange.gateway.metrics.route(stream.route)
    delivery = Delivery(stay.reader, frames, sink, settings, clock=exchange.gateway.clock, metrics=metrics)
    exchange.committed = Committed(response, delivery.fail)
    connection.begin_stream(settings.write_timeout)
    connection.outlive_fin(delivery.speak)
    seconds = expires_in(exchange)
    expiry = None if seconds is None else _Expiry(exchange, stay.followed, delivery, seconds)
    open_now = metrics.connections["eventsource" if exchange.is_eventsource else "fetch"]
    open_now.inc()
    try:
        stay.reason = await delivery.run()
        if stay.reason in ("completed", "auth_expired"):
            flushed = await _flushed(connection, settings.write_timeout)
            stay.reason = stay.reason if flushed == "completed" else flushed
        if stay.reason == "completed" and exchange.ticket is not None:
            ticket_read_out(exchange, exchange.ticket)
    finally:
        open_now.dec()
        if expiry is not None:
            expiry.close()
    connection.outlive_fin(None)
    if stay.reason == "drained":
        connection.part()
    elif stay.reason not in ("completed", "auth_expired"):
        connection.abort()
    return response


async def _flushed(connection: Connection, write_timeout: float) -> Outcome:
    # The reader stays attached until the kernel has all bytes. A drain waits for attached readers, and when a process
    # ends, the bytes in its own buffers are lost.
    try:
        async with asyncio.timeout(write_timeout):
            await connection.flushed()
    except TimeoutError:
        return "slow_reader"
    except ConnectionError:
        return "client_gone"
    return "completed"


async def _begin_response(exchange: Exchange, stream_id: str, gzipped: bool) -> tuple[web.StreamResponse, StreamWriter]:
    response = event_stream(exchange.request, {**STREAM_HEADERS, "X-Stream-Id": stream_id, **exchange.headers})
    if gzipped:
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        response.headers.add(hdrs.VARY, hdrs.ACCEPT_ENCODING)
    writer = cast(StreamWriter, await response.prepare(exchange.request))
    exchange.committed = Committed(response)
    response.headers.clear()  # they were sent, and are a fifteenth of a stream's memory
    exchange.headers = {}
    return response, writer


def _accepts_gzip(request: web.BaseRequest) -> bool:
    return _GZIP.search(listed(request.headers, hdrs.ACCEPT_ENCODING)) is not None


def _limit_readers(exchange: Exchange, followed: Followed) -> Lease | Awaitable[Lease] | None:
    """The slot of one more reader, or an awaitable of it; None where it needs none."""
    gate = followed.gate
    if gate is None:
        gate = followed.gate = Gate(RECONNECTS)
    wait = gate.take(exchange.gateway.clock.now())
    if wait > 0:
        exchange.limit = "resumes of one stream"
        raise GatewayError("rate_limited", "This stream is resumed too often.", retry_after=wait)
    if len(followed.log.readers) >= MAX_READERS:
        exchange.limit = "readers of one stream"
        raise GatewayError("too_many_streams", f"This stream has {MAX_READERS} readers.", retry_after=2)
    return admit_reader(exchange) if len(followed.log.readers) >= FREE_READERS else None


def _expired(exchange: Exchange) -> GatewayError:
    exchange.gateway.metrics.resume("expired")
    return GatewayError("cursor_expired")
