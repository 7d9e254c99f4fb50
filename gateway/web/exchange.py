"""One request and all that is known about it, as every middleware and handler gets it; and what a path leads to."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from multidict import MultiMapping

from gateway.core.credential import Network, client_address
from gateway.core.errors import Failure, GatewayError
from gateway.core.lenient import mended_text
from gateway.core.limiter import Lease, Refusal
from gateway.core.limits import Quota
from gateway.core.principal import Principal
from gateway.formats import Format, compile_format, problem
from gateway.identity.tickets import Ticket
from gateway.observe.account import Account
from gateway.observe.tracing.context import TRACEPARENT, TRACESTATE, TraceContext, read_context
from gateway.streams.inflight import Reservation
from gateway.streams.turns import LONG
from gateway.web.connection import Connection, address_of
from gateway.web.rate_limit_headers import rate_limit_headers
from gateway.web.state import Gateway, Snapshot

EVENT_STREAM: Final = "text/event-stream"
EVENTS: Final = compile_format("events")
COPIES: Final = 3
"""A body takes so many times its size: as it came, as it was read, and as it is sent on. What JSON takes above that,
`core/weight.py` says."""
NEVER: Final = frozenset({"CONNECT", "TRACE", "TRACK"})
"""Methods that no path allows: an answer to TRACE repeats the request as the upstream got it, with our key in it, and
CONNECT asks for a tunnel. Source: RFC 9110 9.3.6, 9.3.8."""
NO_COOKIES: Final[Mapping[str, str]] = MappingProxyType({})
COMMON: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""What a path that allows all other methods names in `Allow`."""


class Committed(msgspec.Struct):
    """A response whose head was sent. After that, an error can only be sent in the body, or shown by an abort.

    Attributes:
        response: as it was prepared.
        fail: ends the body with an error in the route's format. None where the body is an upstream's bytes, to which no
            error can be added.
        failed: whether the response ended with an error or an abort.
    """

    response: web.StreamResponse
    fail: Callable[[GatewayError], Awaitable[None]] | None = None
    failed: bool = False


class Exchange(msgspec.Struct):
    """One request on its way through the pipeline.

    Attributes:
        request: as aiohttp parsed it.
        connection: the connection it came on.
        gateway: what the process shares.
        snapshot: the configuration in force when it arrived; a reload does not change it.
        id: names the request in logs and in `X-Request-Id`.
        started: when its head was complete, in seconds of the loop's clock.
        address: the client's address; a trusted proxy's `X-Forwarded-For` is taken into account.
        endpoint: what the path leads to.
        path_params: the values of the path's variables, still percent-encoded.
        principal: the authenticated principal; None before authentication, and on public endpoints.
        headers: headers for every response to this request.
        slot: the lease on one of the requests that its address may have open at once; None before it is granted.
        memory: the memory that its body takes; None before it is read, and after a generation took it over.
        committed: the response whose head was sent, None before. To be set wherever a head is sent.
        account: of the generation that was started for it, None before. From then on an error is no refusal.
        ticket: the ticket by which the principal is known; None where it is known by anything else.
        blamed, limit: for the log, where it is refused: what was wrong, if the error's code does not say it; and the
            limit that was reached.
    """

    request: web.BaseRequest
    connection: Connection
    gateway: Gateway
    snapshot: Snapshot
    id: str
    started: float
    address: str
    endpoint: "Endpoint"
    path_params: dict[str, str] = {}
    principal: Principal | None = None
    headers: dict[str, str] = {}
    slot: Lease | None = None
    memory: Reservation | None = None
    committed: Committed | None = None
    account: Account | None = None
    ticket: Ticket | None = None
    blamed: str = ""
    limit: str = ""

    def free_body(self) -> None:
        """What its body took is given back."""
        memory, self.memory = self.memory, None
        if memory is not None:
            memory.close()

    @property
    def long(self) -> bool:
        """Whether its body, which was read, is so large that reading or writing it as JSON takes a while."""
        return self.memory is not None and self.memory.size > COPIES * LONG

    @property
    def accepts_events(self) -> bool:
        """Whether the client says that it reads event streams."""
        return EVENT_STREAM in listed(self.request.headers, hdrs.ACCEPT).lower()

    @property
    def is_eventsource(self) -> bool:
        """Whether this is what a browser's EventSource sends: it sees no status and never retries after a non-200."""
        return self.request.method == "GET" and self.accepts_events

    @property
    def trace(self) -> TraceContext | None:
        """The trace that the request belongs to, None where it names no valid one."""
        headers = self.request.headers
        parents = headers.getall(TRACEPARENT, ())
        return read_context(parents, headers.getall(TRACESTATE, ())) if parents else None

    @property
    def caller(self) -> Principal:
        """The principal of an authenticated request; use it after authentication only."""
        assert self.principal is not None, "the endpoint needs authentication"
        return self.principal


def listed(headers: MultiMapping[str], name: str) -> str:
    """A header's value, "" where it is absent; several lines of one name are one list.

    Use it also for a header that may come once only: two values joined are none that is allowed, while to read the
    first one would let a client show another program the second. Source: RFC 9110 5.3.
    """
    lines = headers.getall(name, None)
    return "" if lines is None else lines[0] if len(lines) == 1 else ", ".join(lines)


def all_listed(headers: MultiMapping[str], *names: str) -> dict[str, str]:
    """Those of these headers that were sent, each as `listed` reads it."""
    return {name: listed(headers, name) for name in names if name in headers}


def cookies_of(request: web.BaseRequest) -> Mapping[str, str]:
    """The request's cookies by name. A proxy that speaks HTTP/2 may send them in several lines (RFC 9113 8.2.3)."""
    lines = len(request.headers.getall(hdrs.COOKIE, ()))
    if not lines:
        return NO_COOKIES  # aiohttp would keep a mapping for as long as the request, a fifth of a KiB of every stream
    if lines == 1:
        return request.cookies
    # A byte that is no UTF-8 is a lone surrogate here, which no header can be made of.
    return request.clone(headers={hdrs.COOKIE: mended_text(cookie_header(request.headers))}).cookies


def cookie_header(headers: MultiMapping[str]) -> str:
    """All lines of the Cookie header as one. Source: RFC 9113 8.2.3."""
    return "; ".join(headers.getall(hdrs.COOKIE, ()))


def client_of(request: web.BaseRequest, trusted: Sequence[Network]) -> str:
    """The client's address; every line of a header that a trusted proxy may have written counts."""
    if not trusted:
        return client_address(peer_address(request), None, trusted)
    headers = request.headers
    return client_address(
        peer_address(request), listed(headers, hdrs.X_FORWARDED_FOR), trusted, headers.getall(hdrs.FORWARDED, ())
    )


def peer_address(request: web.BaseRequest) -> str:
    """The IP address at the other end of the connection, "" where there is none."""
    return address_of(request.transport)


Answered = web.StreamResponse | Awaitable[web.StreamResponse]
"""An answer; or an awaitable of it, so that what has read the request does not stay in memory until it has ended."""


class Kind(ABC):
    """What a path leads to: everything in which endpoints differ.

    Attributes:
        methods: the methods that are allowed, None for all.
        format: turns an error into an event, where it is sent as one.
        retry: base of the time, in seconds, after which an EventSource reconnects.
        models: the models in its configuration, for metrics.
        any_encoding: whether a path or query in another encoding than UTF-8 is passed on, and not refused.
        by_ticket: whether a ticket is a credential here, for GET and POST.
        beside: further paths that this route brings with it, behind those of all routes.
    """

    methods: frozenset[str] | None = frozenset({"GET", "HEAD"})
    format: Format = EVENTS
    retry: float = 2.0
    models: frozenset[str] = frozenset()
    any_encoding: bool = False
    by_ticket: bool = False
    beside: "Mapping[str, Endpoint]" = MappingProxyType({})

    @abstractmethod
    def answer(self, exchange: Exchange) -> Awaitable[Answered]:
        """An awaitable of the answer to a request that has passed the pipeline.

        Raises:
            GatewayError: there is no answer. The client gets the error in this kind's shape.
        """

    def error_body(self, failure: Failure, request_id: str) -> tuple[dict[str, Any], str]:
        """An error as JSON, and its media type."""
        return problem(failure, request_id), "application/problem+json"

    def limit_headers(self, quotas: Sequence[Quota], refusal: Refusal | None = None) -> dict[str, str]:
        """The headers that say what is left of a principal's limits, and after a refusal, when to come back."""
        return rate_limit_headers(quotas, refusal)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a path leads to, with all that the pipeline must know of it.

    Attributes:
        label: its name in metrics and logs.
        kind: answers its requests.
        public: whether it needs no credential.
        named_streams: whether the path contains a stream's id, so that a stream that is gone is answered with 404.
        scope: the scope that a principal needs here. Not used where `public`.
    """

    label: str
    kind: Kind
    public: bool = False
    named_streams: bool = False
    scope: str = "stream"

    def check_method(self, method: str) -> None:
        """Returns when the method is allowed.

        Raises:
            GatewayError: `method_not_allowed`, with the `Allow` header.
        """
        methods = self.kind.methods
        if method in NEVER or (methods is not None and method not in methods):
            allowed = ", ".join(sorted(COMMON if methods is None else methods))
            raise GatewayError("method_not_allowed", headers={hdrs.ALLOW: allowed})
