"""The config as the program uses it: every key, its type, its default and the reason for that default.

The text under a key is its reference: the schema and the editors show it, with the bounds of its rule added.

Invariants:

- A `Config` never changes after it was made; a reload makes another one.
- Attributes are called like the keys of the file. Durations are float seconds, sizes int bytes, rates `Rate`.
- A route holds its resolved `stream` and `timeouts`: the file's own, with the route's parts laid over them.
- Whatever holds requests, bytes or names has a bound, here or by the rule of its key.

This file does not know YAML, files, the environment or line numbers, and checks no key against another one:
`checks.py` does, which also sees what is wrong where this model could not be built. So build a `Config` by `load`.
"""

import hashlib
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.config.addresses import DEMO, Address, Listen, Moment, Network, Origin, Path, Url
from gateway.config.formatting import FormatRule
from gateway.config.rules import Bytes, OneOf, PerTime, Seconds, Text, Whole
from gateway.core.cursor import WORKERS
from gateway.core.rate import Rate
from gateway.dialects import DIALECTS

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in the file, a tuple in the program."""

NAME: Final = r"[^\s\x00-\x1f\x7f/\\\x22\x27{}$,;]+"
WORD: Final = r"[A-Za-z0-9._~-]+"
Name = Annotated[str, Text(1, 64, NAME, "letters of any script, digits and . _ - : @")]
Word = Annotated[str, Text(1, 64, WORD, "A-Z a-z 0-9 . _ ~ -")]
HeaderName = Annotated[str, Text(1, 128, r"[A-Za-z0-9!#%&*+.^_`|~-]+", "a header name")]
HeaderValue = Annotated[str, Text(0, 8192, r"[^\x00-\x08\x0a-\x1f\x7f]*", "one line without control characters")]

Scope = Literal["stream", "publish", "admin"]


class Section(BaseModel):
    """A mapping of the file. Unknown keys are errors and nothing is converted silently."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Server(Section):
    """The process: where it listens and how much it takes on."""

    listen: Annotated[Address, Listen()] = Address("127.0.0.1", 8080)
    """Where browsers and API clients connect. Only this machine by default: nobody else spends your tokens unasked.
    Port 0 lets the system pick one."""
    admin_listen: Annotated[Address | None, Listen(optional=True)] = Address("127.0.0.1", 9090)
    """Where /metrics, /livez, /readyz, /streams and the monitor page are; null turns them off. They need no credential,
    hence a listener of their own that only this machine sees by default."""
    workers: Annotated[int, Whole(1, WORKERS)] = 1
    """Processes on the port, as many as CPUs may be kept busy. One by default: some thousand streams need no more. Each
    has `max_connections`, `max_log_bytes`, limits and chat histories of its own, and its admin listener one port higher
    than the one before."""
    trusted_proxies: Annotated[Many[Annotated[IPv4Network | IPv6Network, Network()]], Field(max_length=1000)] = ()
    """Networks whose X-Forwarded-For is believed; at most 1000. None by default, as anybody can write that header.
    Name your nginx here, or all clients share its address and with it the limits of one."""
    max_connections: Annotated[int, Whole(1, 1_000_000)] = 10_000
    """Open client connections; more are refused. 10000 at some 70 KB each stay below 1 GB."""
    max_body: Annotated[int, Bytes("1KiB", "1GiB")] = 4 << 20
    """The largest request body. 4MiB lets a chat with a few images through."""
    drain: Annotated[float, Seconds("0s", "1h")] = 30.0
    """How long running streams may go on after a TERM. 30s is the patience of Kubernetes."""
    demo_page: bool = True
    """Whether GET / is the chat page and GET /client.js the browser client, so a first run shows something."""
    max_log_bytes: Annotated[int, Bytes("1MiB", "1024GiB")] = 512 << 20
    """Memory that the resume logs of all streams may take together. When it is full, the oldest finished logs are
    forgotten first. 512MiB are some 10000 long answers."""


class Log(Section):
    """What the program writes about itself, on stdout. Never a credential, a prompt or an answer."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious line that is written. info is one line a request."""
    format: Literal["json", "console"] = "json"
    """json for machines, console for people."""


class Key(Section):
    """A static key: a client that shows it acts as the principal `id`."""

    id: Name
    """The principal: what limits count by and logs say. Never the key itself."""
    sha256: Annotated[
        str | None, Text(64, 64, r"[0-9A-Fa-f]{64}", "the hexadecimal digits that `gateway hash` prints", optional=True)
    ] = Field(None, repr=False)
    """The key's SHA-256, so that the file holds no secret. Either this or `key`."""
    key: Annotated[str | None, Text(1, 4096, optional=True)] = Field(None, repr=False)
    """The key itself, best as ${VAR} or ${file:…}. Either this or `sha256`."""
    plan: Name = "default"
    """The plan whose limits apply."""
    expires: Annotated[datetime | None, Moment(optional=True)] = None
    """The moment from which the key is refused; a date means its first second. null, the default: it stays valid."""
    scopes: Annotated[Many[Scope], Field(max_length=3)] = ("stream",)
    """What the key may do. Only streams by default."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key, 32 bytes, whichever way it was configured."""
        return bytes.fromhex(self.sha256) if self.sha256 else hashlib.sha256((self.key or "").encode()).digest()

    @property
    def expires_at(self) -> float | None:
        """The end of the key as wall-clock Unix seconds, None when it has none."""
        return self.expires.timestamp() if self.expires else None


class Auth(Section):
    """Who may use the gateway."""

    anonymous: bool = False
    """true: no credential is needed, and the limits of the plan `default` go by client address. false by default:
    an open gateway spends your tokens for anybody."""
    sources: Annotated[Many[Literal["header", "cookie", "query"]], Field(max_length=3)] = ("header", "cookie", "query")
    """Where a credential is looked for; the first one found counts. EventSource cannot set headers, so all three."""
    query_param: Word = "token"
    """The query parameter that holds a credential."""
    cookie: Word = "gateway_token"
    """The cookie that holds a credential. Honoured for the origins in `cors.origins` and the same origin only."""
    keys: Annotated[Many[Key], Field(max_length=10_000)] = ()
    """The static keys; at most 10000."""


class Cors(Section):
    """Which pages of other origins may use the gateway."""

    origins: Annotated[Many[Annotated[str, Origin()]], Field(max_length=1000)] = ()
    """The origins, exactly as browsers send them, or "*" for all; at most 1000. None by default: only pages of the
    gateway's own origin."""
    credentials: bool = False
    """Whether those pages may send cookies. Not by default, and never together with "*"."""
    max_age: Annotated[float, Seconds("0s", "24h")] = 600.0
    """How long a browser may remember a preflight. 10m saves most of them and lets a change take effect soon."""


class Plan(Section):
    """Limits of one principal. What is left out is unlimited."""

    requests: Annotated[Rate | None, PerTime(optional=True)] = None
    """Requests in a window, spread smoothly; a whole window's worth may come at once. Unlimited by default."""
    streams: Annotated[int | None, Whole(1, 1_000_000, optional=True)] = None
    """Generations and connections open at once. Unlimited by default, up to `server.max_connections`."""
    tokens: Annotated[Rate | None, PerTime(optional=True)] = None
    """Input and output tokens in a window. Unlimited by default."""


class PerAddress(Section):
    """Limits of one client address (IPv6: one /64), before anybody is asked who they are."""

    requests: Annotated[Rate | None, PerTime(optional=True)] = Rate(600, 60.0)
    """Requests in a window; null = unlimited. 600/min is far above a person and far below a flood."""
    connections: Annotated[int | None, Whole(1, 1_000_000, optional=True)] = 100
    """Connections open at once; null = unlimited. 100 leaves room for an office behind one address."""


class Limits(Section):
    """Limits that hold whatever the plan says."""

    per_address: PerAddress = Field(default_factory=PerAddress)
    """Limits of one client address. Set `server.trusted_proxies` behind a proxy, or it is one address for all."""


class Batch(Section):
    """How events are gathered into one write."""

    interval: Annotated[float | None, Seconds("0s", "10s", word="auto")] = None
    """How long an event may wait for others; the first of a burst never waits. 0 sends each at once. auto does so too
    while the process is idle, and lets events wait 50ms, then 100ms, as its loop fills (from a fifth of a core on): too
    short to mind, and most of the difference in cost. With a boundary other than event, 2s is the longest such wait."""
    max_bytes: Annotated[int, Bytes("1KiB", "1MiB")] = 16 << 10
    """What was gathered is sent when it is this large. 16KiB is one TLS record."""
    boundary: Literal["event", "sentence", "paragraph"] = "event"
    """Where a batch may end. event is the smoothest; sentence and paragraph (Western and Chinese punctuation, code
    blocks kept whole) suit speech output and slow screens."""


class Resume(Section):
    """How a dropped stream is taken up again."""

    enabled: bool = True
    """Whether events carry cursors and are kept for readers that come back."""
    ttl: Annotated[float, Seconds("1s", "24h")] = 300.0
    """How long a finished stream is kept. 5m outlasts a tunnel, a lift and a reload of the page."""
    max_bytes: Annotated[int, Bytes("4KiB", "1GiB")] = 8 << 20
    """What one stream may keep; the oldest events go first. 8MiB is more than any answer of today's models."""


class OnDisconnect(Section):
    """What becomes of a generation that nobody reads."""

    after: Annotated[float | None, Seconds("0s", "24h", word="never")] = 30.0
    """The generation is cancelled when no reader is left for so long. 0s: at once; never: it runs to its end. 30s is
    long enough to come back and short enough not to pay for what nobody wants."""


class Stream(Section):
    """How events travel to the reader. A route may override any of these."""

    heartbeat: Annotated[float, Seconds("100ms", "1h")] = 15.0
    """A comment is sent whenever nothing else was for so long. Proxies and load balancers cut at 30s to 60s."""
    batch: Batch = Field(default_factory=Batch)
    """How events are gathered into one write."""
    merge: bool = True
    """Whether the deltas of one batch are joined into one event: fewer bytes, same text. For api: chat only; elsewhere
    it is false, as an event there is the provider's own."""
    resume: Resume = Field(default_factory=Resume)
    """How a dropped stream is taken up again."""
    on_disconnect: OnDisconnect = Field(default_factory=OnDisconnect)
    """What becomes of a generation that nobody reads."""
    retry: Annotated[float, Seconds("100ms", "1h")] = 2.0
    """The base of the jittered `retry:` that tells browsers when to reconnect. 2s is gentle after a restart."""
    commit_after: Annotated[float, Seconds("0s", "1m")] = 2.0
    """The answer's headers wait this long for the upstream's real status, then it is 200 and heartbeats. Most errors
    come sooner than 2s, most first tokens too."""
    write_timeout: Annotated[float, Seconds("1s", "10m")] = 20.0
    """A reader that takes nothing for so long is cut; it may resume. 20s survives a change of networks."""
    compress: bool = False
    """Whether answers are compressed when the client accepts it, flushed at every write. Off by default: it costs
    CPU and memory a stream, and merge saves most of the bytes already."""


class Timeouts(Section):
    """How long an upstream may take. A route may override any of these."""

    connect: Annotated[float, Seconds("10ms", "5m")] = 5.0
    """Until the connection stands, with DNS and TLS. 5s is two lost packets."""
    first_event: Annotated[float, Seconds("10ms", "1h")] = 60.0
    """Until the first event after the request was sent. 60s lets a large model load and think."""
    idle: Annotated[float, Seconds("10ms", "1h")] = 30.0
    """Between two signs of life of a stream that began. 30s is no pause that a working model makes."""
    total: Annotated[float, Seconds("100ms", "24h")] = 1800.0
    """For the whole generation. 30m is above the longest reasoning answers and below for ever."""


class Target(Section):
    """One server of an upstream."""

    url: Annotated[str, Url()]
    """The base URL, as http://127.0.0.1:8000/v1; what comes after it is the dialect's. `demo:` is an LLM stand-in
    inside the program."""
    weight: Annotated[int, Whole(1, 1000)] = 1
    """Its share of the streams beside the other targets. Equal by default."""
    model: Annotated[str | None, Text(1, 256, optional=True)] = None
    """The model asked for at this target; null leaves it to the upstream, the route or the client."""

    @property
    def demo(self) -> bool:
        """Whether this is the stand-in inside the program."""
        return self.url == DEMO


class Breaker(Section):
    """Takes a target out of service that fails again and again."""

    failures: Annotated[int, Whole(1, 1000)] = 5
    """Failures in a row that open it. 5 are no coincidence."""
    open: Annotated[float, Seconds("100ms", "1h")] = 30.0
    """How long nobody is sent there; then one request at a time tries it. 30s is about a restart."""


class Upstream(Section):
    """A provider: targets that speak one dialect and take one credential."""

    dialect: Annotated[str, OneOf(DIALECTS)]
    """What its answers look like: openai (and whatever is compatible with it), anthropic, ollama, any server-sent
    events, or plain text."""
    targets: Annotated[Many[Target], Field(min_length=1, max_length=32)]
    """The servers; 1 to 32."""
    api_key: Annotated[str, Text(0, 8192, r"[^\x00-\x1f\x7f]*", "one line")] = Field("", repr=False)
    """The credential for the provider, sent as its dialect wants it; empty for none. Best as ${VAR} or ${file:…}."""
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=64)] = Field(default_factory=dict, repr=False)
    """Further request headers; at most 64. They win over the client's."""
    balance: Literal["least_streams", "round_robin"] = "least_streams"
    """Which target is next. least_streams by default, as streams differ in length a hundredfold."""
    retries: Annotated[int, Whole(0, 10)] = 2
    """Attempts beyond the first, as long as nothing was delivered. 2 get over a restart; more would only add to an
    outage."""
    breaker: Breaker = Field(default_factory=Breaker)
    """When a target is taken out of service for a while."""
    fallback: Annotated[Many[Name], Field(max_length=8)] = ()
    """Upstreams that are asked, in this order, when this one cannot answer; at most 8. They may speak another dialect.
    None by default: another model is another answer, and another bill."""
    rescue: bool = True
    """Whether an answer that breaks off is finished on another target or a fallback. Chat and openai routes only."""
    model: Annotated[str | None, Text(1, 256, optional=True)] = None
    """The model asked for here; null leaves it to the route or the client."""
    verify_tls: bool = True
    """Whether the certificate of an https target is checked. Turn it off for a test only: it hands your key to
    whoever answers."""


class BaseRoute(Section):
    """What every route has."""

    upstream: Name
    """The upstream that answers: a name under `upstreams`."""
    stream: Stream = Field(default_factory=Stream)
    """What differs from the top-level `stream`. The same keys may also stand directly on the route."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """What differs from the top-level `timeouts`."""


class ProxyRoute(BaseRoute):
    """A route to an existing SSE, NDJSON or text endpoint, with all methods; events keep their names and data."""

    api: Literal["proxy"]
    """What kind of route this is."""
    path: Annotated[str, Path(variable=True)]
    """The path. `{name}` stands for one segment, `{path}` at the end for all the rest, which the upstream gets."""


class OpenAIRoute(BaseRoute):
    """A route that takes OpenAI chat requests and answers like OpenAI, streaming or not."""

    api: Literal["openai"]
    """What kind of route this is."""
    path: Annotated[str, Path()]
    """The path; official SDKs expect it to end with /chat/completions."""
    model: Annotated[str | None, Text(1, 256, optional=True)] = None
    """The model when the client names none."""


class History(Section):
    """What a chat session remembers, in memory."""

    turns: Annotated[int, Whole(1, 1000)] = 20
    """The question and answer pairs sent along with the next message. 20 keep a chat coherent and the bill small."""
    ttl: Annotated[float, Seconds("1s", "168h")] = 3600.0
    """How long after its last message a session is forgotten. 1h is a coffee break."""


class Params(Section):
    """What the parameters of a chat request are called, in the query and in JSON alike."""

    message: Word = "message"
    """The user's message."""
    session: Word = "session_id"
    """The session, whose history is sent along."""


class ChatRoute(BaseRoute):
    """A route for browsers: an EventSource GET or a POST with JSON, answered with events of a chosen format."""

    api: Literal["chat"]
    """What kind of route this is."""
    path: Annotated[str, Path()]
    """The path."""
    model: Annotated[str | None, Text(1, 256, optional=True)] = None
    """The model asked for; null leaves it to the upstream."""
    system: Annotated[str | None, Text(1, 65536, optional=True)] = None
    """The system prompt; null, the default, for none."""
    format: Annotated[str | dict[str, Any], FormatRule()] = "events"
    """What clients receive: a preset (events, data, typed, openai) or a mapping of one's own."""
    history: History | None = Field(default_factory=History)
    """What a session remembers; null for nothing. A client that names no session is never remembered."""
    params: Params = Field(default_factory=Params)
    """What the parameters of a request are called."""


Route = ProxyRoute | OpenAIRoute | ChatRoute
ROUTES: Final[dict[str, type[BaseRoute]]] = {"proxy": ProxyRoute, "openai": OpenAIRoute, "chat": ChatRoute}


class Config(Section):
    """The whole file."""

    server: Server = Field(default_factory=Server)
    """The process: where it listens and how much it takes on."""
    store: Literal["memory"] = "memory"
    """Where resume logs, limits and sessions live. This version knows the process's own memory."""
    log: Log = Field(default_factory=Log)
    """What the program writes about itself."""
    auth: Auth = Field(default_factory=Auth)
    """Who may use the gateway."""
    cors: Cors = Field(default_factory=Cors)
    """Which pages of other origins may use the gateway."""
    plans: Annotated[dict[Name, Plan], Field(max_length=1000)] = Field(default_factory=dict)
    """Limits by principal (by client address when anonymous); at most 1000 plans. `default` always exists and is
    unlimited unless it is written down."""
    limits: Limits = Field(default_factory=Limits)
    """Limits that hold whatever the plan says."""
    stream: Stream = Field(default_factory=Stream)
    """How events travel to the reader, where a route says nothing else."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """How long an upstream may take, where a route says nothing else."""
    upstreams: Annotated[dict[Name, Upstream], Field(min_length=1, max_length=100)]
    """The providers by name; 1 to 100."""
    routes: Annotated[Many[Annotated[Route, Field(discriminator="api")]], Field(min_length=1, max_length=1000)]
    """The paths that are served; 1 to 1000."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        return resolve(data) if isinstance(data, dict) else data


def resolve(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with the default plan added, and with each route's stream and timeouts laid over the top-level ones."""
    resolved = dict(data)
    if isinstance(data.get("plans", {}), dict):
        resolved["plans"] = {"default": {}} | data.get("plans", {})
    if isinstance(data.get("routes"), list):
        resolved["routes"] = [
            _resolve_route(route, data) if isinstance(route, dict) else route for route in data["routes"]
        ]
    return resolved


def _resolve_route(route: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    direct = {key: value for key, value in route.items() if key in Stream.model_fields}
    kept = {key: value for key, value in route.items() if key not in direct}
    stream = _overlay(data.get("stream", {}), route.get("stream", {}))
    if isinstance(stream, dict):
        stream = _overlay(stream, direct) | ({} if route.get("api") == "chat" else {"merge": False})
    return kept | {"stream": stream, "timeouts": _overlay(data.get("timeouts", {}), route.get("timeouts", {}))}


def _overlay(under: Any, over: Any) -> Any:
    """`over`, completed by `under` where both are mappings; what is ill-typed is left for its own error."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: _overlay(under.get(key), value) for key, value in over.items()}
