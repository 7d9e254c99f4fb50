"""`api: proxy`: an existing endpoint behind the gateway; its events are relayed, everything else passes unchanged.

Invariants:

- The client's credential never reaches the upstream: not as a header, a cookie or a query parameter. Where the gateway
  has no credentials configured, everything that looks like one belongs to the endpoint and is sent on.
- Headers that concern one connection only (RFC 9110 7.6.1) are not sent on to the other.
- Redirects are passed on, never followed.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Final

import aiohttp
from aiohttp import hdrs, web
from multidict import MultiMapping

from gateway.config import ProxyRoute
from gateway.core.cookies import strip_cookies
from gateway.core.credential import strip_query
from gateway.core.cursor import is_cursor_parameter
from gateway.core.errors import GatewayError
from gateway.core.event import Event
from gateway.core.lenient import mended_text
from gateway.core.sse import Decoder, LineSplitter, clean_name
from gateway.dialects.base import Answer, Call
from gateway.dialects.sse import is_last_word
from gateway.formats import Verbatim
from gateway.streams.generation import Generation
from gateway.streams.sink import SlowReaderError
from gateway.upstream.http import body_error, peek_error_body, plain_headers, read_error_body
from gateway.upstream.pool import Target, Upstream
from gateway.web.body import Body, read_body
from gateway.web.credentials import knows_credentials, own_cookies, own_headers
from gateway.web.exchange import (
    COMMON,
    EVENT_STREAM,
    Answered,
    Committed,
    Exchange,
    cookie_header,
    listed,
    peer_address,
)
from gateway.web.kinds.base import Asked, RouteKind
from gateway.web.kinds.chat_source import check_encoding
from gateway.web.streaming import cursor_of, stream_new
from gateway.web.tickets import TICKET

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "http2-settings",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one hop. Source: RFC 9110 7.6.1.

Of all others, bytes that are no UTF-8 go on as U+FFFD. The HTTP library would leave them out without a word, so that
the next hop could read another value, or another cookie's name, than was judged here.
"""
NOT_FORWARDED: Final = HOP_BY_HOP | {"host", "content-length", "accept-encoding", "referer", "expect"}
"""A `Referer` may hold a token. `Expect` was answered here. The others are set anew for the upstream, or not needed."""
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing, so they may be sent again. Source: RFC 9110 9.2.1."""
MAX_DIGITS: Final = 6
LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"})
"""Media types of JSON, one value a line."""


class _Relaying(Answer):
    """Keeps an upstream's own events. They end with the body, or with one that is the last of an answer.

    Behind that one, it is no failure that the connection breaks.
    """

    eof_ends = True
    _latest: Event | None = None

    @property
    def complete(self) -> bool:
        """Whether the latest event is the last of an answer."""
        return self._latest is not None and is_last_word(self._latest)

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completed."""
        events = super().feed(data)
        if events:
            self._latest = events[-1]
        return events


class Relayed(_Relaying):
    """Reads an upstream's own events, and keeps their `event` and `data` unchanged."""

    def __init__(self, *, keep_ids: bool = False) -> None:
        super().__init__(Decoder())
        self._keep_ids = keep_ids

    def _translate(self, units: list[Event]) -> list[Event]:
        return [self._clean(event) if event.type or event.id else event for event in units]

    def _clean(self, event: Event) -> Event:
        return Event(clean_name(event.type), event.data, event.id if self._keep_ids else "")


class RelayedLines(_Relaying):
    """Reads an upstream's lines of JSON; each line is one event."""

    def __init__(self) -> None:
        self._lines = LineSplitter()
        super().__init__(self._lines)

    def _translate(self, units: list[str]) -> list[Event]:
        return [Event("", line) for line in units if line]

    def _rest(self) -> list[Event]:
        return self._translate(self._lines.close())


class ProxySource:
    """Asks with the client's own request.

    Args:
        call: the client's request. Its `url` is only the part that follows a target's URL.
        only_events: whether the client reads event streams and nothing else.
        keep_ids: whether the upstream's ids reach the client, because there are no cursors.
    """

    def __init__(self, call: Call, *, only_events: bool, keep_ids: bool) -> None:
        self.repeatable = call.method in SAFE
        self._call = call
        self._only_events = only_events
        self._keep_ids = keep_ids

    def call(
        self,
        upstream: Upstream,
        target: Target,
        prefix: str,
        *,
        delivered: int = 0,
        without: frozenset[str] = frozenset(),
    ) -> Call:
        """The request for this target, with its upstream's credential and headers, and with the target's query."""
        call, config = self._call, upstream.config
        own = upstream.dialect.credential(config.api_key) | config.headers
        headers = call.headers | {name.lower(): value for name, value in own.items()}
        return Call(call.method, target.url + _queried(call.url, target), headers, call.body)

    def names_no_model(self, upstream: Upstream, target: Target) -> bool:
        """Never: the request is the client's own."""
        return False

    async def accept(self, upstream: Upstream, response: aiohttp.ClientResponse, *, canonical: bool) -> Answer | None:
        """What reads the body if it is a stream; None for an answer that is passed on unchanged.

        Raises:
            GatewayError: the client reads nothing but events, and this is something else; or the upstream refused the
                gateway's own credential.
        """
        if response.status in (401, 403) and upstream.config.api_key:
            refusal = await _refusal(upstream, response)
            raise GatewayError(
                "upstream_auth",
                detail=f"status {response.status}",
                sentence=refusal.sentence,
                upstream_status=response.status,
            )
        if response.status >= 400 and upstream.config.api_key and response.content_type.endswith("json"):
            # What the endpoint says of our account is not for the client; it may hold a piece of our key.
            headers = plain_headers(response.headers)
            refusal = upstream.dialect.refusal(
                response.status, headers, await peek_error_body(response), now=time.time()
            )
            spent = refusal.code == "upstream_rate_limited" and not refusal.retryable
            if refusal.code == "upstream_auth" or spent:
                raise refusal
        if self._call.method == hdrs.METH_HEAD:
            return None  # its headers may say that it is a stream, but there is no body
        if response.status == 200 and response.content_type == EVENT_STREAM:
            check_encoding(response)
            return Relayed(keep_ids=self._keep_ids)
        if response.status == 200 and self._only_events and response.content_type in LINES:
            check_encoding(response)
            return RelayedLines()
        if self._only_events and _is_fault(response.status):
            await _refuse(upstream, response)
        return None


def _queried(rest: str, target: Target) -> str:
    """What follows the target's URL, with the target's own query in it."""
    if not target.query:
        return rest
    path, _, query = rest.partition("?")
    query = strip_query(query, target.query_names)
    return f"{path}?{query}&{target.query}" if query else f"{path}?{target.query}"


async def _refuse(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        # The client chose the path: that there is a page and no stream is no failure of the target, and other targets
        # have the same page.
        raise GatewayError(
            "upstream_protocol",
            means="upstream_refused",
            retryable=False,
            detail=f"status {response.status} with {response.content_type} instead of events",
            upstream_status=response.status,
        )
    raise await _refusal(upstream, response)


async def _refusal(upstream: Upstream, response: aiohttp.ClientResponse) -> GatewayError:
    body = await read_error_body(response)
    return upstream.dialect.refusal(response.status, plain_headers(response.headers), body, now=time.time())


class Proxy(RouteKind[ProxyRoute]):
    """Serves one proxy route."""

    methods = None
    any_encoding = True

    def __init__(self, route: ProxyRoute, chain: tuple[Upstream, ...]) -> None:
        super().__init__(route, chain)
        self.format = Verbatim(ids=not route.stream.resume.enabled)
        if route.methods:
            self.methods = frozenset(route.methods) | ({"HEAD"} if "GET" in route.methods else set())

    def answer(self, exchange: Exchange) -> Awaitable[Answered]:
        """As for every route; but who asks for the options of this hop is answered here. Source: RFC 9110 7.6.2."""
        if exchange.request.method == hdrs.METH_OPTIONS and _hops_left(exchange.request) == 0:
            return _own_options(exchange)
        return super().answer(exchange)

    def cursor(self, exchange: Exchange) -> str | None:
        """The client's cursor, if it reads events; no other answer can be resumed."""
        return cursor_of(exchange) if exchange.accepts_events else None

    async def read(self, exchange: Exchange) -> Asked:
        """The client's own request, without its credential and the headers of its connection."""
        body = await read_body(exchange)
        only_events = _reads_only_events(exchange.request)
        source = ProxySource(
            self._call(exchange, body), only_events=only_events, keep_ids=not self.route.stream.resume.enabled
        )
        return Asked(self.job(exchange, source, self.format, "", canonical=False), stream=only_events)

    def respond(self, exchange: Exchange, asked: Asked, generation: Generation) -> Awaitable[web.StreamResponse]:
        return stream_new(
            exchange,
            generation,
            pass_through=lambda response: _pass_through(exchange, response, generation, asked.job.timeouts.idle),
            wait=not asked.stream,
        )

    def _call(self, exchange: Exchange, body: Body) -> Call:
        request, resumable = exchange.request, self.route.stream.resume.enabled
        auth = exchange.snapshot.config.auth
        own = {auth.query_param} if knows_credentials(exchange.snapshot) else set()
        own |= {TICKET} if auth.tickets is not None else set()
        query = request.rel_url.raw_query_string
        query = strip_query(query, own, is_cursor_parameter) if resumable else strip_query(query, own)
        rest = "/" + exchange.path_params["path"] if "path" in exchange.path_params else ""
        return Call(request.method, rest + (f"?{query}" if query else ""), self._headers(exchange), body)

    def _headers(self, exchange: Exchange) -> dict[str, str]:
        request = exchange.request
        named = _named_by_connection(request.headers)
        headers = {
            name: mended_text(("; " if name == "cookie" else ", ").join(request.headers.getall(name)))
            for name in {name.lower() for name in request.headers}
            if name not in NOT_FORWARDED and name not in named
        }
        if knows_credentials(exchange.snapshot):
            for name in own_headers(exchange.snapshot):
                headers.pop(name, None)
            headers.pop("cookie", None)
            if cookie := strip_cookies(cookie_header(request.headers), own_cookies(exchange.snapshot)):
                headers["cookie"] = mended_text(cookie)
        if self.route.stream.resume.enabled:
            headers.pop("last-event-id", None)
        forwarded = [headers.get("x-forwarded-for", ""), peer_address(request)]
        headers["x-forwarded-for"] = ", ".join(filter(None, forwarded))
        headers.setdefault("x-forwarded-proto", request.scheme)
        headers.setdefault("x-forwarded-host", mended_text(request.host))
        headers["x-request-id"] = exchange.id
        if request.method == hdrs.METH_OPTIONS and (hops := _hops_left(request)):
            headers["max-forwards"] = str(hops - 1)
        return headers


def _hops_left(request: web.BaseRequest) -> int | None:
    """The number in `Max-Forwards`, None where there is none."""
    said = listed(request.headers, hdrs.MAX_FORWARDS)
    return int(said) if said.isascii() and said.isdigit() and len(said) < MAX_DIGITS else None


async def _own_options(exchange: Exchange) -> web.StreamResponse:
    allowed = exchange.endpoint.kind.methods or COMMON
    return web.Response(status=204, headers={**exchange.headers, hdrs.ALLOW: ", ".join(sorted(allowed))})


def _is_fault(status: int) -> bool:
    # Not 204, with which an endpoint stops an EventSource for good, nor what else tells of something done (201, 202) or
    # answers a client's own condition (206, 304). Not other client errors, which the endpoint's own body explains best.
    return status == 200 or (300 <= status < 400 and status != 304) or status in (429, 500, 502, 503, 504)


def _reads_only_events(request: web.BaseRequest) -> bool:
    if request.method == hdrs.METH_HEAD:
        return False
    accepted = [part.partition(";")[0].strip() for part in listed(request.headers, hdrs.ACCEPT).lower().split(",")]
    return set(filter(None, accepted)) == {EVENT_STREAM}


def _named_by_connection(headers: MultiMapping[str]) -> set[str]:
    """The headers that one side says are for this connection only. Source: RFC 9110 7.6.1."""
    return {name.strip().lower() for name in listed(headers, hdrs.CONNECTION).split(",")}


def _response_headers(upstream: MultiMapping[str], own: Mapping[str, str]) -> list[tuple[str, str]]:
    dropped = (
        HOP_BY_HOP
        | _named_by_connection(upstream)
        | {name.lower() for name in own if name != hdrs.VARY}
        | {"server", "date"}
    )
    kept = [
        (name, mended_text(value))
        for name, value in upstream.items()
        if name.lower() not in dropped and not name.lower().startswith("access-control-")
    ]
    return kept + list(own.items())


async def _pass_through(
    exchange: Exchange, upstream: aiohttp.ClientResponse, generation: Generation, idle: float
) -> web.StreamResponse:
    """The upstream's answer with its status, headers and bytes, read only as fast as the client takes them.

    Args:
        exchange: the request.
        upstream: the answer, its body unread.
        generation: aborted where the body breaks off; a drain or a time limit may end it at any time.
        idle: seconds that the upstream may be silent.
    """
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in _response_headers(upstream.headers, exchange.headers):
        response.headers.add(name, value)
    if exchange.request.version < (1, 1):
        response.force_close()
    await response.prepare(exchange.request)
    exchange.committed = Committed(response)
    write_timeout = generation.stream.settings.write_timeout
    try:
        while part := await _read(upstream, idle):
            await _write(response, part, write_timeout)
        await response.write_eof()
    except GatewayError as error:
        generation.abort(error)
        exchange.connection.abort()  # the status was sent, so only a cut shows that bytes are missing
    except SlowReaderError:
        generation.abort(GatewayError("abandoned"), "slow_reader")
        exchange.connection.abort()
    except (ConnectionError, asyncio.CancelledError):
        generation.abort(GatewayError("abandoned"), "client_gone")
        raise
    return response


async def _read(upstream: aiohttp.ClientResponse, idle: float) -> bytes:
    try:
        async with asyncio.timeout(idle):
            return await upstream.content.readany()
    except TimeoutError:
        raise GatewayError("upstream_stalled") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise body_error(error) from error


async def _write(response: web.StreamResponse, part: bytes, write_timeout: float) -> None:
    try:
        async with asyncio.timeout(write_timeout):
            await response.write(part)
    except TimeoutError:
        raise SlowReaderError from None
