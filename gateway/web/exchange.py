"""One request and all that is known about it: what every middleware and handler is given."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from gateway.core.credential import Principal
from gateway.core.errors import GatewayError
from gateway.core.quota import Lease
from gateway.formats import Format
from gateway.observe.tracing.context import TRACEPARENT, TRACESTATE, TraceContext, read_context
from gateway.web.connection import Connection
from gateway.web.state import Gateway, Snapshot

EVENT_STREAM = "text/event-stream"


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
        credential_source: where the credential was, "" without one.
        headers: goes on every response to this request.
        place: its place among the requests of its address, given back at its end; None before it has one.
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
    credential_source: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    place: Lease | None = None

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
    def who(self) -> Principal:
        """The principal of an authenticated request."""
        assert self.principal is not None, "the endpoint needs authentication"
        return self.principal

    @property
    def owner(self) -> str:
        """Whose streams these are. An anonymous reader's address changes with its network, so what lets it resume is
        the unguessable stream id alone."""
        return "anonymous" if self.who.anonymous else self.who.id


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a path leads to.

    Attributes:
        label: its name in metrics and logs.
        methods: what it answers, None for every method.
        handle: the handler.
        public: whether it needs no credential.
        openai: whether errors have OpenAI's shape.
        named_streams: whether the path names a stream, so that one that is gone is 404.
        format: the shape of in-band errors.
        retry: base of the time, in seconds, after which an EventSource comes back.
    """

    label: str
    methods: frozenset[str] | None
    handle: Handler
    format: Format
    public: bool = False
    openai: bool = False
    named_streams: bool = False
    retry: float = 2.0

    def check_method(self, method: str) -> None:
        """Returns when the method is allowed.

        Raises:
            GatewayError: `method_not_allowed`, with the `Allow` header.
        """
        if self.methods is not None and method not in self.methods:
            raise GatewayError("method_not_allowed", headers={hdrs.ALLOW: ", ".join(sorted(self.methods))})
