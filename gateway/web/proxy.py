"""`api: proxy`: an existing endpoint behind the gateway; its events are relayed, everything else passes unchanged.

Invariants:

- The client's credential never reaches the upstream: not as a header, a cookie or a query parameter.
- Nothing of one hop (RFC 9110 7.6.1) crosses to the other.
- Redirects are passed on, never followed.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp import hdrs, web

from gateway.config import ProxyRoute
from gateway.core.credential import strip_cookie, strip_query
from gateway.core.errors import GatewayError
from gateway.core.event import Event
from gateway.core.sse import Decoder, LineSplitter, clean_name
from gateway.dialects.base import Answer, Call
from gateway.formats import Verbatim
from gateway.generation import Job
from gateway.upstream.http import plain_headers, read_error_body
from gateway.upstream.pool import Target, Upstream
from gateway.web.admission import admit, expires_in
from gateway.web.asking import check_encoding
from gateway.web.body import read_body
from gateway.web.exchange import EVENT_STREAM, Exchange
from gateway.web.streaming import cursor_of, resume, stream_new

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one hop. Source: RFC 9110 7.6.1."""
NOT_FORWARDED: Final = HOP_BY_HOP | {"host", "content-length", "accept-encoding", "referer", "expect"}
"""The `Referer` may hold the page's address with a token in it; the rest is set anew."""
LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"})


class Relayed(Answer):
    """An upstream's own events, kept as they are: `event` and `data` to the letter."""

    eof_ends = True

    def __init__(self, *, lines: bool = False, keep_ids: bool = False) -> None:
        super().__init__()
        self._decoder = None if lines else Decoder()
        self._splitter = LineSplitter() if lines else None
        self._keep_ids = keep_ids

    def _read(self, data: bytes) -> list[Event]:
        if self._splitter is not None:
            return [Event("", line) for line in self._splitter.feed(data) if line]
        assert self._decoder is not None
        events = self._decoder.feed(data)
        return [self._clean(event) if event.type or event.id else event for event in events]

    def _rest(self) -> list[Event]:
        return [] if self._splitter is None else [Event("", line) for line in self._splitter.close() if line]

    def _clean(self, event: Event) -> Event:
        return Event(clean_name(event.type), event.data, event.id if self._keep_ids else "")


class ProxySource:
    """Asks with the client's own request.

    Args:
        call: the request without its target's part of the URL; `url` is what follows the target's.
        upstream: who is asked.
        wants_events: whether the client said that it reads event streams.
        keep_ids: whether the upstream's ids reach the client, because no cursor takes their place.
    """

    def __init__(self, call: Call, upstream: Upstream, *, wants_events: bool, keep_ids: bool) -> None:
        self._call = call
        self._upstream = upstream
        self._wants_events = wants_events
        self._keep_ids = keep_ids

    def call(self, target: Target) -> Call:
        """The request for this target."""
        call = self._call
        return Call(call.method, target.url + call.url, call.headers, call.body)

    async def accept(self, response: aiohttp.ClientResponse) -> Answer | None:
        """The reader of a stream; None for what passes unchanged.

        Raises:
            GatewayError: the client reads nothing but events, and this is something else.
        """
        if response.status in (401, 403) and self._upstream.config.api_key:
            raise GatewayError("upstream_auth", detail=f"status {response.status}")
        if response.status == 200 and response.content_type == EVENT_STREAM:
            check_encoding(response)
            return Relayed(keep_ids=self._keep_ids)
        if response.status == 200 and self._wants_events and response.content_type in LINES:
            check_encoding(response)
            return Relayed(lines=True)
        if self._wants_events and _is_fault(response.status):
            await self._refuse(response)
        return None

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:
            raise GatewayError(
                "upstream_protocol", detail=f"status {response.status} with {response.content_type} instead of events"
            )
        body = await read_error_body(response)
        headers = plain_headers(response.headers)
        raise self._upstream.dialect.refusal(response.status, headers, body, now=time.time())


class ProxyHandler:
    """Serves one proxy route.

    Args:
        route: its settings.
        upstream: what stands behind it.
    """

    def __init__(self, route: ProxyRoute, upstream: Upstream) -> None:
        self._route = route
        self._upstream = upstream

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """The relayed stream, the rest of an earlier one, or what the upstream answered."""
        resumable = self._route.stream.resume.enabled
        if resumable and exchange.accepts_events and (cursor := cursor_of(exchange)):
            return await resume(exchange, cursor)
        body = await read_body(exchange.request, exchange.snapshot.config.server.max_body)
        generation = admit(exchange, self._job(exchange, self._call(exchange, body)))
        return await stream_new(
            exchange,
            generation,
            pass_through=lambda response: _pass_through(exchange, response, self._route),
            wait=not exchange.accepts_events,
        )

    def _job(self, exchange: Exchange, call: Call) -> Job:
        keep_ids = not self._route.stream.resume.enabled
        return Job(
            route=self._route.path,
            source=ProxySource(call, self._upstream, wants_events=exchange.accepts_events, keep_ids=keep_ids),
            upstream=self._upstream,
            stream=self._route.stream,
            timeouts=self._route.timeouts,
            model="",
            principal=exchange.who.id,
            request_id=exchange.id,
            format=Verbatim(ids=keep_ids),
            canonical=False,
            expires_in=expires_in(exchange),
        )

    def _call(self, exchange: Exchange, body: bytes) -> Call:
        request, auth = exchange.request, exchange.snapshot.config.auth
        rest = exchange.path_params.get("path", "")
        query = strip_query(request.rel_url.raw_query_string, (auth.query_param, "last_event_id"))
        url = ("/" + rest if "path" in exchange.path_params else "") + (f"?{query}" if query else "")
        return Call(request.method, url, self._headers(exchange), body)

    def _headers(self, exchange: Exchange) -> dict[str, str]:
        request, config = exchange.request, self._upstream.config
        named = {name.strip().lower() for name in request.headers.get(hdrs.CONNECTION, "").split(",")}
        headers = {
            name: ", ".join(request.headers.getall(name))
            for name in {name.lower() for name in request.headers}
            if name not in NOT_FORWARDED and name not in named
        }
        _strip_credential(headers, exchange)
        if self._route.stream.resume.enabled:
            headers.pop("last-event-id", None)
        forwarded = [headers.get("x-forwarded-for", ""), _peer(request)]
        headers["x-forwarded-for"] = ", ".join(filter(None, forwarded))
        headers.setdefault("x-forwarded-proto", request.scheme)
        headers.setdefault("x-forwarded-host", request.host)
        headers["x-request-id"] = exchange.id
        if config.api_key:
            headers["authorization"] = f"Bearer {config.api_key}"
        return headers | {name.lower(): value for name, value in config.headers.items()}


def _is_fault(status: int) -> bool:
    # 204 is how an endpoint stops an EventSource for good; other client errors are the endpoint's own to explain.
    return status != 204 and (status < 400 or status in (429, 500, 502, 503, 504))


def _strip_credential(headers: dict[str, str], exchange: Exchange) -> None:
    auth = exchange.snapshot.config.auth
    if exchange.credential_source == "header" or not auth.anonymous:
        headers.pop("authorization", None)
    if cookie := strip_cookie(headers.pop("cookie", ""), auth.cookie):
        headers["cookie"] = cookie


def _peer(request: web.BaseRequest) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _response_headers(upstream: Mapping[str, str], own: Mapping[str, str]) -> list[tuple[str, str]]:
    dropped = HOP_BY_HOP | {name.lower() for name in own} | {hdrs.SERVER.lower(), hdrs.DATE.lower()}
    kept = [
        (name, value)
        for name, value in upstream.items()
        if name.lower() not in dropped and not name.lower().startswith("access-control-")
    ]
    return kept + list(own.items())


async def _pass_through(exchange: Exchange, upstream: aiohttp.ClientResponse, route: ProxyRoute) -> web.StreamResponse:
    """The upstream's answer, status, headers and bytes as they are, at the pace at which the client takes them."""
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in _response_headers(upstream.headers, exchange.headers):
        response.headers.add(name, value)
    if exchange.request.version < (1, 1):
        response.force_close()
    await response.prepare(exchange.request)
    try:
        while part := await asyncio.wait_for(upstream.content.readany(), route.timeouts.idle):
            async with asyncio.timeout(route.stream.write_timeout):
                await response.write(part)
    except (aiohttp.ClientError, TimeoutError):
        exchange.connection.abort()  # the status is out: only a cut tells the client that this is not all
        return response
    await response.write_eof()
    return response
