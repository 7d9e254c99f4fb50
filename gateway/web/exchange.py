"""One request and all that is known about it: what every middleware and handler is given."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import hdrs, web

from gateway.core.errors import Failure, GatewayError
from gateway.core.limiter import Lease, Refusal
from gateway.core.limits import Quota
from gateway.core.principal import Principal
from gateway.formats import Format, compile_format, problem
from gateway.observe.tracing.context import TRACEPARENT, TRACESTATE, TraceContext, read_context
from gateway.web.connection import Connection
from gateway.web.rate_limit_headers import rate_limit_headers
from gateway.web.state import Gateway, Snapshot

EVENT_STREAM: Final = "text/event-stream"
EVENTS: Final = compile_format("events")


@dataclass(slots=True)
class Committed:
    """A response whose head was sent: whatever happens now can only be told in its body, or by its end.

    Attributes:
        response: as it was prepared.
        fail: ends the body with an error in the client's own shape; None where the body is somebody else's bytes, so
            that only an abort tells the client that this is not all of it.
        failed: whether it ended so, or was aborted.
    """

    response: web.StreamResponse
    fail: Callable[[GatewayError], Awaitable[None]] | None = None
    failed: bool = False


@dataclass(slots=True)
class Exchange:
    """One request on its way through the pipeline.

    Attributes:
        request: as aiohttp parsed it.
        connection: the connection it came on.
        gateway: what the process shares.
        snapshot: the configuration in force when it arrived; a reload does not change it.
        id: names the request in logs and in `X-Request-Id`.
        started: the loop's clock, in seconds, when its head was there.
        address: the client's address, the proxies' claims considered.
        endpoint: what the path leads to.
        path_params: what the path's variables stand for, still percent-encoded.
        principal: who asks; None before authentication.
        headers: goes on every response to this request.
        place: its place among the requests of its address, given back at its end; None before it has one.
        committed: the response whose head was sent, None before. Set where heads are written.
    """

    request: web.BaseRequest
    connection: Connection
    gateway: Gateway
    snapshot: Snapshot
    id: str
    started: float
    address: str
    endpoint: "Endpoint"
    path_params: dict[str, str] = field(default_factory=dict)
    principal: Principal | None = None
    headers: dict[str, str] = field(default_factory=dict)
    place: Lease | None = None
    committed: Committed | None = None

    @property
    def accepts_events(self) -> bool:
        """Whether the client says that it reads event streams."""
        return EVENT_STREAM in self.request.headers.get(hdrs.ACCEPT, "").lower()

    @property
    def is_eventsource(self) -> bool:
        """Whether this is what a browser's EventSource sends: it sees no status and never retries after a non-200."""
        return self.request.method == "GET" and self.accepts_events

    @property
    def trace(self) -> TraceContext | None:
        """The trace that the request belongs to, None where it says none that is valid."""
        headers = self.request.headers
        parents = headers.getall(TRACEPARENT, ())
        return read_context(parents, headers.getall(TRACESTATE, ())) if parents else None

    @property
    def caller(self) -> Principal:
        """The principal of an authenticated request."""
        assert self.principal is not None, "the endpoint needs authentication"
        return self.principal


def peer_address(request: web.BaseRequest) -> str:
    """The IP address at the other end of the connection, "" where there is none."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else ""


class Kind(ABC):
    """What a path leads to: everything that differs between one kind of endpoint and another.

    Attributes:
        methods: what it answers, None for every method.
        format: the shape of errors that are told in band.
        retry: base of the time, in seconds, after which an EventSource comes back.
        models: models that it names, for metrics.
    """

    methods: frozenset[str] | None = frozenset({"GET", "HEAD"})
    format: Format = EVENTS
    retry: float = 2.0
    models: frozenset[str] = frozenset()

    @abstractmethod
    def answer(self, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """The answer to a request that may be answered, to be awaited.

        Raises:
            GatewayError: there is none; the client is told so in this kind's shape.
        """

    def error_body(self, failure: Failure, request_id: str) -> tuple[dict[str, Any], str]:
        """An error as JSON, and its media type."""
        return problem(failure, request_id), "application/problem+json"

    def limit_headers(self, quotas: Sequence[Quota], refusal: Refusal | None = None) -> dict[str, str]:
        """The headers that say where a principal stands with its limits, and when to come back after a refusal."""
        return rate_limit_headers(quotas, refusal)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path's label and what it leads to.

    Attributes:
        label: its name in metrics and logs.
        kind: what it leads to.
        public: whether it needs no credential.
        named_streams: whether the path names a stream, so that one that is gone is 404.
        scope: what a principal must be allowed to do here; nothing is asked where it is public.
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
        if methods is not None and method not in methods:
            raise GatewayError("method_not_allowed", headers={hdrs.ALLOW: ", ".join(sorted(methods))})
