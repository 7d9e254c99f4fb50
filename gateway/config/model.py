"""The config as the program uses it: every key, its type, its default and the reason for that default.

The text under a key is its reference. The schema, editors and docs/configuration.md show it, together with the bounds
of its rule.

Invariants:

- A `Config` never changes after it was made; a reload makes another one.
- An attribute has the name of its key in the file. Durations are float seconds, sizes int bytes, rates `Rate`.
- A route's `stream` and `timeouts` are complete: the top-level ones, replaced where the route says something else.
- Whatever holds requests, bytes or names has an upper bound, here or in the rule of its key.

Each key is checked by itself here. `checks.py` compares keys with one another, also where this model could not be
built. So make a `Config` with `load`, which runs both. This file does not know YAML, the environment or line numbers.
"""

import hashlib
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from gateway.config.addresses import DEMO, Address, Listen, Location, Moment, Network, Origin, Path, Url
from gateway.config.formatting import FormatRule
from gateway.config.keys import KeyFile, KeyFileRule
from gateway.config.rules import Bytes, Json, OneOf, PerTime, QueryValue, Seconds, Text, Whole
from gateway.config.store_url import MEMORY, StoreRule
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
CookieName = Annotated[str, Text(1, 128, r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "a cookie's name")]
HeaderValue = Annotated[str, Text(0, 8192, r"[^\x00-\x08\x0a-\x1f\x7f]*", "one line without control characters")]
Parameter = Annotated[str, Text(1, 64, r"[A-Za-z0-9_.-]+", "A-Z a-z 0-9 _ . -")]
QueryName = Annotated[str, Text(1, 128, r"[^\s\x00-\x1f\x7f&=#]+", "any kind but spaces & = #")]

METHODS: Final = dict.fromkeys(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PROPPATCH", "REPORT", "SEARCH", "QUERY")
)

HostName = Annotated[str, Text(1, 253, r"[A-Za-z0-9._-]+", "a host name, without scheme and port")]

Scope = Literal["stream", "publish", "admin"]
RSA = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
Algorithm = Literal[RSA, "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448", "HS256", "HS384", "HS512"]
Claim = Annotated[str, Text(1, 256)]


class Section(BaseModel):
    """A mapping of the file. An unknown key is an error, and no value is converted silently."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Server(Section):
    """The process: where it listens and how much it takes on."""

    listen: Annotated[Address, Listen()] = Address("127.0.0.1", 8080)
    """The address for browsers and API clients. By default only this machine can connect, so that nobody else spends
    your tokens. With port 0 the system picks a free port."""
    admin_listen: Annotated[Address | None, Listen(optional=True)] = Address("127.0.0.1", 9090)
    """The address of /metrics, /livez, /readyz, /streams and the monitor page; null turns them off. Unless `admin_auth`
    is on they ask for no credential, so they have a listener of their own, which by default only this machine can
    reach."""
    admin_auth: bool = False
    """Whether the admin listener, but for /livez and /readyz, asks for a credential with the scope `admin`: as
    `Authorization: Bearer`, as the password that a browser asks for, or as the cookie. false by default, as only this
    machine can reach it by default. Then it is answered under any name, too, so that it can be published."""
    workers: Annotated[int, Whole(1, WORKERS)] = 1
    """Processes that share the port: as many as the CPUs you want to keep busy. 1 by default, which is enough for a
    thousand streams and more. Each worker has its own `max_connections`, `max_log_bytes`, `max_inflight_bytes`,
    limits and chat histories. The admin listener of each worker is one port above that of the worker before it."""
    trusted_proxies: Annotated[Many[Annotated[IPv4Network | IPv6Network, Network()]], Field(max_length=1000)] = ()
    """Networks whose X-Forwarded-For header is believed; at most 1000. None by default, as anybody can write that
    header. Name your nginx here. Otherwise all clients seem to have its address, and share the limits of one client."""
    hosts: Annotated[Many[HostName], Field(max_length=100)] = ()
    """The names under which browsers may ask this gateway while `auth.anonymous` is true, as [chat.example.com]; at
    most 100. localhost, IP addresses and the host in `listen` are always among them. None by default: a page of
    somebody else, whose name was pointed at this machine, would spend your tokens. Behind a proxy, name what its
    `Host` header says."""
    max_connections: Annotated[int, Whole(1, 1_000_000)] = 10_000
    """Open client connections; further ones are refused. 10000 connections of about 70 KB each stay below 1 GB."""
    max_body: Annotated[int, Bytes("1KiB", "1GiB")] = 4 << 20
    """The largest request body. 4MiB is enough for a chat with a few images."""
    max_inflight_bytes: Annotated[int, Bytes("1MiB", "1024GiB")] = 256 << 20
    """Memory for all request bodies that are being read and answered, and for what is made of them: about three times
    their size, as they are kept to ask again while an answer runs, and up to six times while they arrive and where
    their characters are wide, as one emoji makes all of a text. Above it a request waits up to 5s, then it is refused
    with 503. 256MiB holds eight to twenty bodies of the largest size at once, or ten thousand usual ones."""
    drain: Annotated[float, Seconds("0s", "1h")] = 30.0
    """How long running streams may continue after a TERM. Kubernetes waits 30s, too."""
    demo_page: bool = True
    """Whether GET / is the chat page and GET /client.js the browser client, so that a first run shows something."""
    max_log_bytes: Annotated[int, Bytes("1MiB", "1024GiB")] = 512 << 20
    """Memory for the resume logs of all streams together. When it is full, the logs that finished first are dropped
    first. 512MiB holds about 10000 long answers."""


class Log(Section):
    """What the program writes about itself, on stdout. Never a credential, a prompt or an answer."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious level that is written. info is one line a request."""
    format: Literal["json", "console"] = "json"
    """json for machines, console for people."""


class Key(Section):
    """A static key. A client that sends it is the principal `key:` and its `id`."""

    id: Name
    """Names the principal, `key:web` for the id `web`: limits are counted for it, and logs show it. It is not the key
    itself."""
    sha256: Annotated[
        str | None, Text(64, 64, r"[0-9A-Fa-f]{64}", "the hexadecimal digits that `gateway hash` prints", optional=True)
    ] = Field(None, repr=False)
    """The SHA-256 of the key, so that the file holds no secret. Give either this or `key`."""
    key: Annotated[str | None, Text(1, 4096, optional=True)] = Field(None, repr=False)
    """The key itself, best as ${VAR} or ${file:…}. Give either this or `sha256`."""
    plan: Name = "default"
    """The plan whose limits apply."""
    expires: Annotated[datetime | None, Moment(optional=True)] = None
    """From this moment on the key is refused; a date means its first second. null, the default: the key stays valid."""
    scopes: Annotated[Many[Scope], Field(max_length=3)] = ("stream",)
    """What the key may do. By default it may only use streams."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key, 32 bytes, whichever of the two was configured."""
        return bytes.fromhex(self.sha256) if self.sha256 else hashlib.sha256((self.key or "").encode()).digest()

    @property
    def expires_at(self) -> float | None:
        """The end of the key in Unix seconds, None when it has none."""
        return self.expires.timestamp() if self.expires else None


class Jwt(Section):
    """An issuer of JSON Web Tokens. A client that sends a valid one is the principal `jwt:`, the issuer, `:` and the
    subject. Its streams end when the token expires."""

    issuer: Annotated[str, Text(1, 256, r"[^\s\x00-\x1f\x7f]+", "any kind but spaces")]
    """The `iss` of its tokens, compared character by character. Several entries may have the same issuer if their
    audiences differ."""
    audience: Annotated[str, Text(1, 256)]
    """What has to be in the `aud` of its tokens, so that a token for another application of the issuer is refused."""
    jwks_url: Annotated[str | None, Location(optional=True)] = None
    """Where its public keys are. They are fetched in the background: at the start, when they are no longer fresh (10m,
    or what Cache-Control says within 1m and 1h), and when a token names a key that is not among them (once in 10s).
    The last keys are kept while the server fails. Give exactly one of jwks_url, key_file and secret."""
    key_file: Annotated[KeyFile | None, KeyFileRule(optional=True)] = None
    """The file with its public keys: PEM (1 to 4 public keys or certificates) or a JWKS. A relative path starts at the
    folder of this file. It is read again at a reload."""
    secret: Annotated[str | None, Text(1, 4096, optional=True)] = Field(None, repr=False)
    """The secret that you and the issuer share, best as ${VAR} or ${file:…}; only for HS256 (32 bytes and more), HS384
    (48) and HS512 (64)."""
    algorithms: Annotated[Many[Algorithm], Field(min_length=1, max_length=15)]
    """How its tokens may be signed. What a token says itself is never believed, so name only what this issuer uses."""
    subject_claim: Claim = "sub"
    """The claim that names the client: text of up to 256 characters. `sub` is the standard's, and never used twice. In
    this name and those of the other claims, dots lead into objects, as in `realm_access.roles`, where no claim has the
    whole name."""
    plan_claim: Annotated[str | None, Text(1, 256, optional=True)] = "plan"
    """The claim that names the plan. A name that is not among `plans` means the plan `default`. null: `plan` is for
    all."""
    plan: Name = "default"
    """The plan of a token without the claim."""
    scopes_claim: Annotated[str | None, Text(1, 256, optional=True)] = "scope"
    """The claim that says what the client may do: a list, or text with blanks between. It counts where a token has it,
    and scopes that are not known here are ignored in it. null: `scopes` is for all, as you need it where an issuer's
    scopes are of another kind (openid, profile)."""
    scopes: Annotated[Many[Scope], Field(max_length=3)] = ("stream",)
    """What a token without the claim may do. By default it may only use streams."""
    leeway: Annotated[float, Seconds("0s", "5m")] = 30.0
    """How far the issuer's clock may be from this one's. A token is valid for so long before and after its times."""

    @model_validator(mode="after")
    def _check_key_file(self) -> "Jwt":
        if self.key_file is not None and not self.key_file.keys().algorithms & set(self.algorithms):
            fit = ", ".join(sorted(self.key_file.keys().algorithms))
            raise ValueError(f"algorithms does not fit the keys in key_file; allowed for them: {fit}")
        return self


class Forward(Section):
    """Your own application is asked who a client is. For somebody it knows it answers 200 with JSON
    `{"id", "plan", "scopes", "expires_in"}`, of which only the id is needed, or with the headers X-User and X-Plan; for
    anybody else 401 or 403. The client is the principal `user:` and the id. After any other answer, or none, clients
    are told to come back."""

    url: Annotated[str, Location()]
    """Where to ask, with GET. No redirect is followed, so it must not answer with one to a login page."""
    cookies: Annotated[Many[CookieName], Field(max_length=8)] = ("session",)
    """The cookies that are sent along; at most 8. They count only in requests from pages of the gateway's own origin
    and of the origins in `cors.origins`. `session` is what many frameworks call theirs."""
    headers: Annotated[Many[HeaderName], Field(max_length=8)] = ("authorization",)
    """The headers that are sent along; at most 8. By default those of API clients. A credential in the query is sent as
    `Authorization: Bearer`."""
    ttl: Annotated[float, Seconds("1s", "1h")] = 30.0
    """How long an answer counts, if its `expires_in` is not shorter. A logout ends running streams within this time;
    while they run, the application is asked every half of it. If it gives no answer for so long, they end too. 30s
    outlasts a restart of the application."""
    timeout: Annotated[float, Seconds("50ms", "5s")] = 2.0
    """How long a request waits for the answer. A look into a session takes milliseconds."""


class Tickets(Section):
    """Short-lived tickets for URLs, traded for a credential at POST /tickets. Nodes that share a store share them."""

    ttl: Annotated[float, Seconds("1s", "1h")] = 30.0
    """How long a ticket may wait for its first use, and how long after it a browser that has received nothing yet may
    come back. 30s is enough to open an EventSource, and too short for whoever finds the URL in a log."""


class Auth(Section):
    """Who may use the gateway."""

    anonymous: bool = False
    """true: no credential is needed, and the limits of the plan `default` apply to each client address. false by
    default, because an open gateway spends your tokens for anybody."""
    sources: Annotated[Many[Literal["header", "cookie", "query"]], Field(max_length=3)] = ("header", "cookie", "query")
    """Where a credential is looked for, in this order; the first one found counts. All three by default, because
    EventSource cannot set headers."""
    query_param: Word = "token"
    """The query parameter that holds a credential."""
    cookie: Word = "gateway_token"
    """The cookie that holds a credential. It is read only in requests from pages of the gateway's own origin and of the
    origins in `cors.origins`."""
    keys: Annotated[Many[Key], Field(max_length=10_000)] = ()
    """The static keys; at most 10000."""
    jwt: Annotated[Many[Jwt], Field(max_length=100)] = ()
    """The issuers whose signed tokens (JWT) are accepted; at most 100."""
    forward: Forward | None = None
    """Your own application, which is asked who a cookie or token stands for; null, the default, for none. It is asked
    about what is no static key."""
    tickets: Tickets | None = None
    """Tickets for clients that cannot send a header, as EventSource cannot: they send their credential to POST
    /tickets, and only the ticket, which starts one stream, stands in a URL. null, the default: there are no tickets."""


class Cors(Section):
    """Which pages of other origins may use the gateway."""

    origins: Annotated[Many[Annotated[str, Origin()]], Field(max_length=1000)] = ()
    """The origins, exactly as browsers send them, or "*" for all; at most 1000. None by default: only pages of the
    gateway's own origin may use it."""
    credentials: bool = False
    """Whether pages of those origins may send cookies. false by default, and never allowed together with "*"."""
    max_age: Annotated[float, Seconds("0s", "24h")] = 600.0
    """How long a browser may remember the answer to a preflight. 10m saves most preflights, and a change of the origins
    still takes effect soon."""


class Plan(Section):
    """Limits of one principal, over all gateways that share a `store`. A limit that is left out is unlimited."""

    requests: Annotated[Rate | None, PerTime(optional=True)] = None
    """Requests in a window, spread smoothly; those of a whole window may come at once. Unlimited by default."""
    streams: Annotated[int | None, Whole(1, 1_000_000, optional=True)] = None
    """Generations and connections open at the same time. Unlimited by default, up to `server.max_connections`."""
    tokens: Annotated[Rate | None, PerTime(optional=True)] = None
    """Input and output tokens in a window. Unlimited by default."""


class PerAddress(Section):
    """Limits of one client address (of one /64 with IPv6). They are checked first, before any credential is. Each
    gateway counts for itself, also where several share a `store`."""

    requests: Annotated[Rate | None, PerTime(optional=True)] = Rate(600, 60.0)
    """Requests in a window; null = unlimited. 600/min is far more than a person sends and far less than a flood."""
    connections: Annotated[int | None, Whole(1, 1_000_000, optional=True)] = 100
    """Connections open at the same time, silent ones included; null = unlimited. 100 is enough for an office behind one
    address. Behind a trusted proxy, the requests that are being answered."""


class Limits(Section):
    """Limits that apply whatever the plan says."""

    per_address: PerAddress = Field(default_factory=PerAddress)
    """Limits of one client address. Behind a proxy, set `server.trusted_proxies`; without it all clients count as one
    address."""


class Batch(Section):
    """How events are gathered into one write."""

    interval: Annotated[float | None, Seconds("0s", "10s", word="auto")] = None
    """How long an event may wait for others; the first of a burst never waits. 0 sends each at once. auto does the same
    while the process is idle; as it gets busy (from a fifth of a core on), events wait 50ms, then 100ms. That is too
    short to notice, and saves most of what a longer wait would save. With a boundary other than event, an event waits
    up to 2s for the boundary."""
    max_bytes: Annotated[int, Bytes("1KiB", "1MiB")] = 16 << 10
    """As soon as the gathered events have this size, they are sent. 16KiB is one TLS record."""
    boundary: Literal["event", "sentence", "paragraph"] = "event"
    """Where a batch may end. event is the smoothest. sentence and paragraph suit speech output and slow screens; they
    know Western and Chinese punctuation, and never cut a code block."""


class Resume(Section):
    """How a dropped stream is resumed."""

    enabled: bool = True
    """Whether events carry cursors and are kept for readers that come back."""
    ttl: Annotated[float, Seconds("1s", "24h")] = 300.0
    """How long a finished stream is kept. 5m is longer than a tunnel, a lift or a reload of the page."""
    max_bytes: Annotated[int, Bytes("4KiB", "1GiB")] = 8 << 20
    """How much of one stream is kept; the oldest events are dropped first. 8MiB is more than any answer of today's
    models."""


class OnDisconnect(Section):
    """What happens to a generation that nobody reads."""

    after: Annotated[float | None, Seconds("0s", "24h", word="never")] = 30.0
    """A generation is cancelled when it has had no reader for so long. 0s: at once; never: it runs to its end. 30s is
    long enough to come back, and short enough not to pay for an answer that nobody wants."""


class Stream(Section):
    """How events travel to the reader. A route may override any of these keys."""

    heartbeat: Annotated[float, Seconds("100ms", "1h")] = 15.0
    """A comment is sent when nothing else was sent for so long. Proxies and load balancers cut silent connections after
    30s to 60s."""
    batch: Batch = Field(default_factory=Batch)
    """How events are gathered into one write."""
    merge: bool = True
    """Whether the deltas of one batch are joined into one event: fewer bytes, same text. For api: chat only. On other
    routes it is false, as their events are the provider's own."""
    resume: Resume = Field(default_factory=Resume)
    """How a dropped stream is resumed."""
    on_disconnect: OnDisconnect = Field(default_factory=OnDisconnect)
    """What happens to a generation that nobody reads."""
    retry: Annotated[float, Seconds("100ms", "1h")] = 2.0
    """How long browsers wait before they reconnect, on average: each is sent a `retry:` that differs a little. 2s is
    gentle after a restart."""
    commit_after: Annotated[float, Seconds("0s", "1m")] = 2.0
    """The response's headers wait so long for the upstream's real status. After that the status is 200, and heartbeats
    begin. Most errors and most first tokens come within 2s."""
    write_timeout: Annotated[float, Seconds("1s", "10m")] = 20.0
    """A reader that accepts no bytes for so long is disconnected; it may resume. 20s is long enough for a change of
    networks."""
    compress: bool = False
    """Whether answers are compressed for clients that accept it, flushed at every write. Off by default: it costs CPU
    and memory for each stream, and merge saves most of the bytes already."""


class Timeouts(Section):
    """How long an upstream may take. A route may override any of these keys."""

    connect: Annotated[float, Seconds("10ms", "5m")] = 5.0
    """Until the connection is open, DNS and TLS included. 5s allows for two lost packets."""
    first_event: Annotated[float, Seconds("10ms", "1h")] = 120.0
    """From sending the request to the first event. Reasoning models are silent for minutes. A dead server is found
    earlier, by TCP keep-alive; for an earlier fallback from a silent one, see `hedge` of an upstream."""
    idle: Annotated[float, Seconds("10ms", "1h")] = 120.0
    """The longest silence in a stream that has begun. Models pause for a minute and more while they think, and while
    a server holds the arguments of a tool call back."""
    total: Annotated[float, Seconds("100ms", "24h")] = 1800.0
    """For the whole generation. 30m is more than the longest reasoning answers need."""


class Target(Section):
    """One server of an upstream."""

    url: Annotated[str, Url()]
    """The base URL, as http://127.0.0.1:8000/v1; the dialect appends the rest of the path. `demo:` is a stand-in for an
    LLM inside the program."""
    weight: Annotated[int, Whole(1, 1000)] = 1
    """Its share of the streams, relative to the other targets. All shares are equal by default."""
    model: Annotated[str | None, Text(1, 256, optional=True, blank=True)] = None
    """The model that this target is asked for; null: the model of the upstream, the route or the client."""
    query: Annotated[dict[QueryName, Annotated[str, QueryValue()]], Field(max_length=32)] = Field(
        default_factory=dict, repr=False
    )
    """Added to the query of every request to this target, as {api-version: 2024-10-21} for Azure; at most 32
    parameters. A client's own parameter of the same name is replaced."""

    @property
    def demo(self) -> bool:
        """Whether this is the stand-in inside the program."""
        return self.url == DEMO


class Breaker(Section):
    """Takes a target out of service when it fails again and again."""

    failures: Annotated[int, Whole(1, 1000)] = 5
    """So many failures in a row open the breaker. 5 are no coincidence."""
    open: Annotated[float, Seconds("100ms", "1h")] = 30.0
    """While the breaker is open, the target gets no requests. After this time one request at a time tries it again. A
    restart takes about 30s."""


class Upstream(Section):
    """A provider: targets that speak one dialect and accept one credential."""

    dialect: Annotated[str, OneOf(DIALECTS)]
    """The API that the targets speak: openai (and compatible servers), anthropic, ollama, sse (an endpoint of your own
    with server-sent events) or text (one with plain text)."""
    targets: Annotated[Many[Target], Field(min_length=1, max_length=32)]
    """The servers; 1 to 32."""
    api_key: Annotated[str, Text(0, 8192, r"[^\x00-\x1f\x7f]*", "one line")] = Field("", repr=False)
    """The credential for the provider, sent in the header that its dialect uses; empty for none. Best as ${VAR} or
    ${file:…}."""
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=64)] = Field(default_factory=dict, repr=False)
    """Further request headers; at most 64. They replace the client's headers of the same name."""
    params: Annotated[dict[Parameter, Annotated[Any, Json()]], Field(max_length=64)] = Field(default_factory=dict)
    """Parameters of a chat request where the client names none, as {max_tokens: 8192, temperature: 0.7}; at most 64.
    Under OpenAI's names they are translated like a client's; others go out as they stand. None by default, so that the
    provider's own defaults apply. One that a target refuses is not sent there again."""
    omit: Annotated[Many[Parameter], Field(max_length=64)] = ()
    """Parameters that are never sent to this upstream, whoever names them, as [stream_options, top_p]; at most 64. None
    by default: what a provider does not know it refuses by itself."""
    whole: Literal["plain", "stream"] = "plain"
    """How an answer is fetched that the client wants whole (`stream` false or absent). plain: asked for as the client
    asked, and passed on as the provider gave it. Such an answer says nothing until it is whole, so it has `first_event`
    and `idle` together until it begins, then `idle` between its bytes, and `total` in all. stream: asked for as a
    stream, where silence is noticed sooner, and put together here."""
    balance: Literal["least_streams", "round_robin"] = "least_streams"
    """How the next target is chosen. least_streams by default, because one stream can be a hundred times as long as
    another."""
    retries: Annotated[int, Whole(0, 10)] = 2
    """Attempts after the first one, as long as the client has received no event. 2 are enough during a restart; more
    would only add load to an outage."""
    breaker: Breaker = Field(default_factory=Breaker)
    """When a target is taken out of service for a while."""
    hedge: Annotated[float | None, Seconds("50ms", "10m", optional=True)] = None
    """After so long a silence, before the first event or within an answer, another target or a fallback is asked too.
    Who speaks first is heard, the other is stopped; its tokens count as well. null, the default: a silent target is
    waited for, up to `first_event` or `idle`. Only on routes with api: chat or openai."""
    fallback: Annotated[Many[Name], Field(max_length=8)] = ()
    """Upstreams that are asked, in this order, when this one cannot answer; at most 8. They may speak another dialect.
    None by default: another model gives another answer, and costs another price."""
    rescue: bool = True
    """Whether an answer that breaks off is finished by another target or a fallback. Only on routes with api: chat or
    openai."""
    end: Literal["auto", "finish_reason", "marker"] = "auto"
    """What makes an answer whole. finish_reason: only a finish reason does; an end marker ([DONE], message_stop, done)
    without one is a cut, which some servers make when they interrupt one answer for another. marker: the end marker
    alone will do, and the client gets finish_reason null. auto: a target that was once seen to send a reason must send
    one; any other ends its answers by the marker. A reason without a marker is always enough."""
    model: Annotated[str | None, Text(1, 256, optional=True, blank=True)] = None
    """The model that this upstream is asked for; null: the model of the route or the client. Where none is named at all
    and the provider wants one, the first of the target's own list is asked for."""
    verify_tls: bool = True
    """Whether the certificate of an https target is checked. Turn it off for a test only: without the check, any server
    that answers gets your key."""


class BaseRoute(Section):
    """What every route has."""

    upstream: Name
    """The upstream that answers: a name under `upstreams`."""
    stream: Stream = Field(default_factory=Stream)
    """What differs from the top-level `stream`. The same keys may also stand directly on the route."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """What differs from the top-level `timeouts`."""


class ProxyRoute(BaseRoute):
    """A route to an existing SSE, NDJSON or text endpoint, for all methods. Events keep their names and data."""

    api: Literal["proxy"]
    """What kind of route this is."""
    path: Annotated[str, Path(variable=True)]
    """The path. `{name}` stands for one segment; `{path}` at the end stands for the rest, which is passed on to the
    upstream."""
    methods: Annotated[Many[Annotated[str, OneOf(METHODS)]], Field(max_length=16)] = ()
    """The methods that are passed on, as [GET, POST]; HEAD goes with GET. Empty, the default: all that HTTP knows.
    TRACE and CONNECT never are: the one would show your key, the other asks for a tunnel."""


class OpenAIRoute(BaseRoute):
    """A route that accepts OpenAI chat requests and answers like OpenAI, streaming or not."""

    api: Literal["openai"]
    """What kind of route this is."""
    path: Annotated[str, Path()]
    """The path; official SDKs expect it to end with /chat/completions."""
    model: Annotated[str | None, Text(1, 256, optional=True, blank=True)] = None
    """The model where the client names none; null: the model of the upstream, or the first of its own list."""


class History(Section):
    """What a chat session remembers: in memory, and with `store.secret` in Redis, so that it goes on at any node."""

    turns: Annotated[int, Whole(1, 1000)] = 20
    """How many earlier questions with their answers are sent along with the next message. 20 keep a chat coherent and
    cheap."""
    ttl: Annotated[float, Seconds("1s", "168h")] = 3600.0
    """A session is forgotten when its last message is this old. 1h is a coffee break."""
    max_bytes: Annotated[int, Bytes("1KiB", "64MiB")] = 256 << 10
    """The memory of one session, and so the most that is sent along; above it the oldest turns are forgotten. 256KiB is
    about 60000 tokens."""


class Params(Section):
    """The names of a chat request's parameters, the same in the query and in JSON."""

    message: Word = "message"
    """The user's message."""
    session: Word = "session_id"
    """The session; its history is sent along."""


class ChatRoute(BaseRoute):
    """A route for browsers: a GET by EventSource or a POST of JSON, answered with events in a format of your choice."""

    api: Literal["chat"]
    """What kind of route this is."""
    path: Annotated[str, Path()]
    """The path."""
    model: Annotated[str | None, Text(1, 256, optional=True, blank=True)] = None
    """The model to ask for; null: the model of the upstream, or the first of its own list."""
    system: Annotated[str | None, Text(1, 65536, optional=True)] = None
    """The system prompt; null, the default, for none."""
    format: Annotated[str | dict[str, Any], FormatRule()] = "events"
    """What clients receive: a preset (events, data, typed, openai, ui) or a mapping of your own."""
    history: History | None = Field(default_factory=History)
    """What a session remembers; null for nothing. Without a session in its request, a client is never remembered."""
    params: Params = Field(default_factory=Params)
    """The names of a request's parameters."""


Route = ProxyRoute | OpenAIRoute | ChatRoute
ROUTES: Final[dict[str, type[BaseRoute]]] = {"proxy": ProxyRoute, "openai": OpenAIRoute, "chat": ChatRoute}


class Store(Section):
    """Where resume logs, limits and sessions are kept. A text alone is its `url`."""

    url: Annotated[str, StoreRule()] = Field(MEMORY, repr=False)
    """memory: the memory of the process, which nobody shares. Otherwise a Redis 7 or Valkey 8 that several gateways
    share: redis://, rediss:// (TLS, by the system's authorities or by ?ssl_ca_certs=FILE), unix:///path (?db=1 for
    another database), or redis+sentinel://host1:26379,host2/name/0, where Sentinels name the master. In a user and a
    password /, ?, # and @ are written as %2F, %3F, %23 and %40."""
    prefix: Word = "gateway"
    """What the names of all keys in Redis begin with."""
    required: bool = False
    """Whether /readyz fails while Redis is away. false by default: streams go on, with limits of their own."""
    adopt: bool = True
    """Whether a node that notices the death of another one finishes its answers. It needs `secret`."""
    secret: Annotated[str, Text(0, 8192, r"[^\x00-\x1f\x7f]*", "one line")] = Field("", repr=False)
    """What prompts and answers in Redis are encrypted with, the same on all nodes. Empty, the default: no prompt is
    kept there, no answer adopted, and a chat's earlier turns stay with the node that answered them. What one secret
    encrypted another one cannot read: after a change sessions begin anew, and tickets have to be bought again."""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, data: Any) -> Any:
        return data if data is None or isinstance(data, dict) else {"url": data}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        node = handler.resolve_ref_schema(handler(schema))
        node["anyOf"] = [{"type": "object"}, StoreRule().schema()]
        node.pop("type")
        return node

    @property
    def shared(self) -> bool:
        """Whether other gateways may have it too."""
        return self.url != MEMORY


class Config(Section):
    """The whole file."""

    server: Server = Field(default_factory=Server)
    """The process: where it listens and how much it takes on."""
    store: Store = Field(default_factory=Store)
    """Where resume logs, limits and sessions are kept: `memory`, that of the process, or a Redis that several gateways
    share, by its URL or with the keys below."""
    log: Log = Field(default_factory=Log)
    """What the program writes about itself."""
    auth: Auth = Field(default_factory=Auth)
    """Who may use the gateway."""
    cors: Cors = Field(default_factory=Cors)
    """Which pages of other origins may use the gateway."""
    plans: Annotated[dict[Name, Plan], Field(max_length=1000)] = Field(default_factory=dict)
    """Limits for principals (for client addresses when anonymous); at most 1000 plans. The plan `default` always
    exists; it is unlimited unless you define it."""
    limits: Limits = Field(default_factory=Limits)
    """Limits that apply whatever the plan says."""
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
    """`data` with the default plan added, and with the top-level `stream` and `timeouts` filled in on every route."""
    resolved = dict(data)
    if isinstance(data.get("plans", {}), dict):
        resolved["plans"] = {"default": {}} | data.get("plans", {})
    if isinstance(data.get("routes"), list):
        resolved["routes"] = [
            _resolve_route(route, data) if isinstance(route, dict) else route for route in data["routes"]
        ]
    return resolved


def _resolve_route(route: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    # Three layers, each over the one before: the top level's `stream`, the route's, and keys directly on the route.
    direct = {key: value for key, value in route.items() if key in Stream.model_fields}
    kept = {key: value for key, value in route.items() if key not in direct}
    stream = _overlay(data.get("stream", {}), route.get("stream", {}))
    if isinstance(stream, dict):
        # Events of other routes are the provider's own, and must not be joined.
        stream = _overlay(stream, direct) | ({} if route.get("api") == "chat" else {"merge": False})
    return kept | {"stream": stream, "timeouts": _overlay(data.get("timeouts", {}), route.get("timeouts", {}))}


def _overlay(under: Any, over: Any) -> Any:
    """`over`, completed by `under` where both are mappings. An ill-typed value stays as it is, so that its own key's
    check reports it."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: _overlay(under.get(key), value) for key, value in over.items()}
