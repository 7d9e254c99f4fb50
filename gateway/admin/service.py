"""The answers of the admin listener.

    /livez                      200 while the loop runs
    /readyz                     200 while new streams are welcome, 503 while draining or while a required store is away
    /metrics                    for Prometheus
    /streams                    the running streams, as JSON; with ?node=all those of all nodes that share the store
    /failures                   the last attempts and streams that failed, as JSON
    / and its files, /events    the monitor page and its feed
    POST /streams/{id}/stop     ends a stream, at whichever node it runs
    DELETE /principals/{kind}:{id}   ends the streams and tickets of a principal, at all workers

Unless `server.admin_auth` is on, no credential is asked for: the listener belongs to the operators' network, by default
to this machine. `web/guard.py` keeps pages of other sites from using an operator's browser to read or end streams.
`access.py` asks for the credential, for all but the probes of the process.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs, web

from gateway.admin.access import refusal
from gateway.admin.files import monitor_files
from gateway.admin.monitor import Monitor
from gateway.core.credential import address_key, is_trusted
from gateway.core.errors import GatewayError
from gateway.observe.metrics import CONTENT_TYPE
from gateway.web.aiohttp_internals import answer_as_http_1, heads_parsed
from gateway.web.connection import HEAD_TIME, KEEP_ALIVE, Explained, address_of
from gateway.web.exchange import NEVER, all_listed
from gateway.web.guard import is_known_host, is_same_origin
from gateway.web.reads import Reads
from gateway.web.revocation import revoke_everywhere
from gateway.web.state import Gateway
from gateway.web.streams import STOP_PATIENCE
from gateway.web.unparsed import has_known_version

if TYPE_CHECKING:
    from gateway.store.shared import Shared

Probe = Callable[[Gateway, web.BaseRequest], web.Response]

MAX_CONNECTIONS: Final = 200
"""Open connections of the admin listener: probes, scrapes and some monitor pages."""
MAX_OF_ADDRESS: Final = 100
"""Those among them of one client address, so that a flood from one leaves room for probes from others."""
SERVER: Final = "gateway"
"""The `Server` header; aiohttp's own would tell versions."""
OPEN: Final = frozenset({"/livez", "/readyz"})
"""Paths that never ask for a credential: whoever probes a process has none."""
PRINCIPALS: Final = "/principals/"
NO_REQUEST: Final = "The request is no valid HTTP/1.1.\n"
STOP: Final = re.compile(r"/streams/([A-Za-z0-9_-]{22})/stop")


class AdminService:
    """Answers requests to the admin listener.

    Args:
        gateway: the process it tells of; a loop must be running.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._files = monitor_files()
        address = gateway.snapshot.config.server.admin_listen
        self._host = address.host if address is not None else ""
        self._monitor = Monitor(gateway) if address is not None else None

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """The answer to one request."""
        return self._named(request)

    def trusts(self, address: str) -> bool:
        """Whether the address is a trusted proxy's, which has many clients."""
        return is_trusted(address, self._gateway.snapshot.trusted)

    async def _named(self, request: web.BaseRequest) -> web.StreamResponse:
        other_protocol = hdrs.UPGRADE in request.headers or not has_known_version(request)
        response = await self._answer(request)
        if not response.prepared:
            response.headers[hdrs.SERVER] = SERVER
        if other_protocol:
            response.force_close()  # the parser reads nothing behind a request for another protocol
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not has_known_version(request):
            answer_as_http_1(request)
            return _text(400, NO_REQUEST)
        if request.method in NEVER:
            return _text(405, f"No path allows {request.method}.\n", {hdrs.ALLOW: "GET, HEAD, POST"})
        probe, asks = _PROBES.get(request.path), self._gateway.snapshot.config.server.admin_auth
        if asks and request.path not in OPEN and (refused := await refusal(self._gateway, request)) is not None:
            return refused
        if probe:
            return _unless_written(request) or probe(self._gateway, request)
        # Everything below shows or ends streams, so from here on a browser's word is checked.
        if not asks and not is_known_host(request.headers.get(hdrs.HOST), self._host):
            return _text(403, "Ask for this by IP address, as localhost, or by the name in server.admin_listen.\n")
        return await self._guarded(request)

    async def _guarded(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == "/streams":
            return _unless_written(request) or await self._streams(request)
        if path == "/failures":
            return _unless_written(request) or _failures(self._gateway)
        if (file := self._files.get(path)) is not None:
            return _unless_written(request) or file.respond(request)
        if path == "/events" and self._monitor is not None:
            return _unless(request, "GET") or await self._monitor.show(request)
        if stop := STOP.fullmatch(path):
            return _unless(request, "POST") or await self._stop(stop[1])
        if (raw := request.rel_url.raw_path).startswith(PRINCIPALS):
            return _unless(request, "DELETE") or await self._revoke(raw.removeprefix(PRINCIPALS))
        return _text(404, f"Nothing here; there is /, {', '.join(_PROBES)}, /streams, /failures.\n")

    async def _streams(self, request: web.BaseRequest) -> web.Response:
        node = request.query.get("node")
        if node is None:
            return _streams(self._gateway)
        if node != "all":
            return _text(400, "node must be all; without it, only the streams of this node are listed.\n")
        if self._gateway.shared is None:
            return _text(400, "No other node is known: store is the memory of this process.\n")
        streams, silent = await self._gateway.shared.listing.all()
        return _json({"streams": streams, "silent": silent})

    async def _stop(self, stream_id: str) -> web.Response:
        generation = self._gateway.engine.running.get(stream_id)
        if generation is None and self._gateway.shared is not None:
            return await self._stop_elsewhere(self._gateway.shared, stream_id)
        if generation is None:
            return _text(404, "No such stream is running.\n")
        generation.stop()
        await asyncio.shield(generation.ended)  # an operator who leaves must not cancel the generation's future
        self._gateway.logger.info("stopped_by_operator", stream_id=stream_id)
        return _json({"id": stream_id, "state": generation.state})

    async def _stop_elsewhere(self, shared: "Shared", stream_id: str) -> web.Response:
        try:
            state = await shared.stop(stream_id, STOP_PATIENCE)
        except GatewayError as error:
            return _text(503, f"{error.message} {error.detail}\n", {hdrs.RETRY_AFTER: "1"})
        if state is None:
            return _text(404, "No such stream is running.\n")
        self._gateway.logger.info("stopped_by_operator", stream_id=stream_id)
        return _json({"id": stream_id, "state": state})

    async def _revoke(self, raw: str) -> web.Response:
        try:
            principal = unquote(raw, errors="strict")
        except UnicodeDecodeError:
            return _text(400, "The principal is not valid UTF-8.\n")
        kind, colon, id_ = principal.partition(":")
        if not kind or not colon or not id_:
            return _text(400, "A principal is a kind and an id, such as key:web.\n")
        revoked = await asyncio.shield(revoke_everywhere(self._gateway, principal))
        if revoked.silent:
            ended = f"{revoked.streams} streams, {revoked.tickets} tickets"
            said = f"Workers that gave no answer: {revoked.silent}; ask again. Others ended {ended}.\n"
            return _text(503, said, {hdrs.RETRY_AFTER: "2"})
        answer = {"principal": principal, "streams": revoked.streams, "tickets": revoked.tickets}
        if self._gateway.revocations is not None:
            answer["all_nodes"] = revoked.everywhere
        return _json(answer)


class AdminServer(web.Server):
    """Serves the admin listener.

    Attributes:
        reads: has large reads parsed in pieces.
    """

    def __init__(self, service: AdminService) -> None:
        super().__init__(service, handler_cancellation=True)
        self.reads = Reads()
        self._service = service
        self._open: Counter[str] = Counter()

    def __call__(self) -> web.RequestHandler:
        """The protocol of one new connection."""
        if len(self.connections) >= MAX_CONNECTIONS:
            return _Full()  # type: ignore[return-value]
        return _Connection(self)

    def enter(self, address: str) -> Callable[[], None] | None:
        """What to call when a connection of this address ends; None: it has as many as it may."""
        name = address_key(address)
        if self._open[name] >= MAX_OF_ADDRESS and not self._service.trusts(address):
            return None
        self._open[name] += 1
        return lambda: self._leave(name)

    def _leave(self, name: str) -> None:
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]


class _Full(asyncio.Protocol):
    """One connection more than there may be: it is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Connection(Explained):
    __slots__ = ("_leave", "_server")

    def __init__(self, server: AdminServer) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, server.reads, loop=loop, access_log=None, keepalive_timeout=KEEP_ALIVE)
        self._leave: Callable[[], None] | None = None
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client that asks nothing must not keep a place from one that looks whether the gateway lives."""
        self._leave = self._server.enter(address_of(transport))
        if self._leave is None:
            transport.set_protocol(_Full())
            transport.close()
            return
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(HEAD_TIME, self._close_if_silent)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It gives its place back."""
        if self._leave is not None:
            self._leave()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.transport is not None and not heads_parsed(self):
            self.transport.abort()

    def explain(self, status: int, message: str) -> web.StreamResponse:
        """One line of text."""
        response = _text(status, "The request failed.\n" if status == 500 else NO_REQUEST)
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response


def _unless_written(request: web.BaseRequest) -> web.Response | None:
    if request.method in ("GET", "HEAD"):
        return None
    return _text(405, "Only GET and HEAD.\n", {hdrs.ALLOW: "GET, HEAD"})


def _unless(request: web.BaseRequest, method: str) -> web.Response | None:
    if request.method != method:
        return _text(405, f"Only {method}.\n", {hdrs.ALLOW: method})
    told = all_listed(request.headers, "Origin", "Sec-Fetch-Site", "Host")
    return None if is_same_origin(told) else _text(403, "Only for the monitor page itself.\n")


def _metrics(gateway: Gateway, request: web.BaseRequest) -> web.Response:
    gateway.metrics.log_bytes.set(gateway.registry.memory.used)
    gateway.metrics.log_streams.set(len(gateway.registry))
    _show_breakers(gateway)
    names = request.query.getall("name[]", ())  # as other exporters call it; most series are buckets of histograms
    return web.Response(body=gateway.metrics.render(names), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})


def _show_breakers(gateway: Gateway) -> None:
    metrics = gateway.metrics
    metrics.breaker_open.clear()  # else a target that a reload removed would keep its last value for ever
    for upstream in gateway.snapshot.upstreams.values():
        for target in sorted(upstream.targets, key=lambda target: target.breaker.is_open):
            # Targets with the same host and port share a series. Open ones come last, so they decide its value.
            labels = metrics.upstream_label(upstream.name), target.label
            metrics.breaker_open.labels(*labels).set(target.breaker.is_open)


def _live(gateway: Gateway, _: web.BaseRequest) -> web.Response:
    return _text(200, "ok\n")


def _ready(gateway: Gateway, _: web.BaseRequest) -> web.Response:
    if gateway.draining:
        return _text(503, "draining\n")
    store = gateway.shared.connection if gateway.shared is not None else None
    if store is None or (store.up and not store.says):
        return _text(200, "ok\n")
    if store.up:
        return _text(200, f"ok\nstore: {store.says}\n")
    return _text(503 if store.required else 200, f"{'' if store.required else 'ok, but '}store away: {store.says}\n")


def _streams(gateway: Gateway) -> web.Response:
    now = gateway.clock.now()
    return _json([generation.describe(now) for generation in gateway.engine.running.values()])


def _failures(gateway: Gateway) -> web.Response:
    return _json([failed.public() for failed in gateway.engine.failures.recent.newest()])


_PROBES: dict[str, Probe] = {"/metrics": _metrics, "/livez": _live, "/readyz": _ready}


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)
