"""Warnings: what a config may say, but what cannot work or is dangerous.

A warning never stops anything. It is for the mistakes that otherwise cost an evening, because every single key is
legal: a variable that is not replaced, an address in another API's form, a key that nobody can send.

Invariants:

- The config that is shipped gives no warning; what is right for some user gives none either.
- A message never holds a value from the file or the environment, and says what to write instead.

This file does not know lines or files, and asks nobody anything; `gateway check --ask` asks.
"""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from gateway.config.addresses import WILDCARDS, Address
from gateway.config.model import Auth, ChatRoute, Config, Key, ProxyRoute, Route, Target, Upstream
from gateway.config.problems import KeyPath
from gateway.config.store_url import StoreUrl, read_store_url
from gateway.dialects import DIALECTS

Caution = tuple[KeyPath, str]

ASKED_SCOPES: Final = frozenset({"stream"})
"""The scopes that something in this version asks for; with `server.admin_auth`, `admin` too."""
PROXY_PATIENCE: Final = 60.0
"""Seconds of silence after which most proxies and load balancers cut a connection."""
LONG_TTL: Final = 300.0
"""Seconds after which somebody notices that a logout has no effect."""
SHORT_KEY: Final = 16
"""Characters. A shorter key can be guessed by trying."""
DISTINCT: Final = 10
"""Different characters of a secret. Random ones have more, even in hexadecimal digits: 32 of them have 14."""

BASES: Final = {
    "api.openai.com": "/v1",
    "api.anthropic.com": "/v1",
    "api.deepseek.com": "",
    "api.fireworks.ai": "/inference/v1",
    "api.groq.com": "/openai/v1",
    "api.mistral.ai": "/v1",
    "api.moonshot.cn": "/v1",
    "api.perplexity.ai": "",
    "api.together.xyz": "/v1",
    "api.x.ai": "/v1",
    "dashscope.aliyuncs.com": "/compatible-mode/v1",
    "generativelanguage.googleapis.com": "/v1beta/openai",
    "models.inference.ai.azure.com": "",
    "open.bigmodel.cn": "/api/paas/v4",
    "openrouter.ai": "/api/v1",
}
"""The paths of OpenAI-compatible APIs at providers that ask for a key. Source: the providers' own documents."""
ENDPOINTS: Final = (
    "/chat/completions",
    "/completions",
    "/complete",
    "/v1/chat",
    "/responses",
    "/embeddings",
    "/models",
    "/messages",
    "/audio/speech",
    "/images/generations",
    "/rerank",
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/generate",
)
"""Ends of URLs that are one call of an API, and not its base."""
AZURE: Final = (".openai.azure.com", ".services.ai.azure.com")
"""Hosts of Azure; every customer has one."""
OLLAMA_PORT: Final = 11434
CREDENTIALS: Final = frozenset({"authorization", "x-api-key", "api-key"})
"""Headers that hold a provider's key."""

_UNREPLACED: Final = re.compile(
    r"(?<![A-Za-z0-9])\$[A-Za-z_(]|\{\{|os\.(environ|getenv)|process\.env|^env[:.]|^%[A-Za-z_]+%$", re.IGNORECASE
)
"""References in the spelling of shells, templates and other programs' configs."""
_WHOLE_REFERENCE: Final = re.compile(
    r"\$\(?[A-Z_][A-Z0-9_]*\)?|\{\{.*\}\}|os\.(environ|getenv)\W.*|process\.env\W.*|%[A-Z_]+%", re.DOTALL
)
"""A text that is nothing but such a reference. In a longer text, a prompt or a stop word, it may be meant as it is."""
_ELSEWHERE: Final = re.compile(r"^(file|vault|op|ssm|keyring|secrets?|aws|gcp|azure)[:/]|^#\{.*\}$", re.IGNORECASE)
"""References to files and stores of secrets, in the spelling of other programs."""
_PLACEHOLDER: Final = re.compile(
    r"^<.*>$|\.\.\.|…|^(sk-)?x{3,}$|^todo$"
    r"|(^|[-_ ])(your|my|insert|change|replace)[-_ ]?(me|api|openai|key|secret|token)",
    re.IGNORECASE,
)
_HOST: Final = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_ODD_SEGMENT: Final = re.compile(r"[*<>()\[\]|^]|^:|/:")
_NOTHING: Final = hashlib.sha256(b"").hexdigest()


def cautions(config: Config, now: float) -> Iterator[Caution]:
    """Every doubt about `config`, as key path and message.

    Args:
        config: without mistakes.
        now: Unix time, for keys that have expired.
    """
    for check in CHECKS:
        yield from check(config)
    yield from check_expiry(config, now)


# -- who may use it ------------------------------------------------------------------------------------------------


def check_access(config: Config) -> Iterator[Caution]:
    auth, server = config.auth, config.server
    if not auth.anonymous and not auth.keys and not auth.jwt and auth.forward is None:
        yield ("auth",), "nobody can get in: there are no keys, and anonymous is false; write keys, or anonymous: true"
    elif not auth.anonymous and not auth.sources and auth.forward is None:
        yield ("auth", "sources"), "nobody can get in: no credential is looked for; write header, cookie or query"
    # A proxy on another machine needs an address that can be reached, and may ask for a credential itself.
    behind = any(network.prefixlen and not network.is_loopback for network in server.trusted_proxies)
    if auth.anonymous and not _is_local(server.listen.host) and not behind:
        yield (
            ("auth", "anonymous"),
            "server.listen can be reached by others, who can use your models without a key; write keys and "
            "anonymous: false, or listen on 127.0.0.1",
        )
    admin = None if server.admin_auth else server.admin_listen
    if admin is not None and not _is_local(admin.host) and not behind:
        yield (
            ("server", "admin_listen"),
            "can be reached by others, and asks for no credential; write 127.0.0.1, server.admin_auth: true, or let "
            "only your own network reach it",
        )
    if server.admin_auth and not _may_have_an_admin(auth):
        yield ("server", "admin_auth"), "nobody can get in: no key has the scope admin; write one, or admin_auth: false"
    if any(not network.prefixlen for network in server.trusted_proxies):
        yield (
            ("server", "trusted_proxies"),
            "everybody is believed about their address, so limits by address hold nobody; write your proxy's address",
        )


def _may_have_an_admin(auth: Auth) -> bool:
    """Whether something can give the scope `admin` to who asks the admin listener, which looks at no query and at no
    cookie but the gateway's own."""
    return (
        any("admin" in key.scopes for key in auth.keys)
        or any("admin" in entry.scopes or entry.scopes_claim is not None for entry in auth.jwt)
        or (auth.forward is not None and "authorization" in map(str.lower, auth.forward.headers))
    )


def check_keys(config: Config) -> Iterator[Caution]:
    reachable = not _is_local(config.server.listen.host)
    for index, key in enumerate(config.auth.keys):
        path: KeyPath = ("auth", "keys", index)
        if key.key is not None and (wrong := _wrong_key(key.key)):
            yield (*path, "key"), wrong
        elif key.key is not None and not key.key.isascii():
            yield (*path, "key"), "holds a character that many clients cannot send in a header; write ASCII"
        elif key.key is not None and reachable and len(key.key) < SHORT_KEY:
            yield (*path, "key"), "is short enough to be guessed; `openssl rand -hex 32` makes a good one"
        if (key.sha256 or "").lower() == _NOTHING:
            yield (*path, "sha256"), "is the hash of an empty key, which nobody can send; `gateway hash` makes another"
        yield from _scopes(path, key, _asked(config))


def _asked(config: Config) -> frozenset[str]:
    """The scopes that something asks for."""
    return ASKED_SCOPES | ({"admin"} if config.server.admin_auth else set())


def _scopes(path: KeyPath, key: Key, asked: frozenset[str]) -> Iterator[Caution]:
    if not any(scope in asked for scope in key.scopes):
        yield (*path, "scopes"), "this key may do nothing; write [stream]"
    for place, scope in enumerate(key.scopes):
        if scope not in asked:
            yield (*path, "scopes", place), f"nothing asks for the scope {scope}; write stream"


def check_expiry(config: Config, now: float) -> Iterator[Caution]:
    for index, key in enumerate(config.auth.keys):
        if key.expires_at is not None and key.expires_at <= now:
            yield ("auth", "keys", index, "expires"), "is over, so this key is refused; write a later date, or null"


def check_jwt(config: Config) -> Iterator[Caution]:
    for index, entry in enumerate(config.auth.jwt):
        path: KeyPath = ("auth", "jwt", index)
        if entry.secret is not None and (wrong := _wrong_key(entry.secret)):
            yield (*path, "secret"), wrong
        elif entry.secret is not None and len(set(entry.secret)) < DISTINCT:
            yield (*path, "secret"), "is easy to guess; `openssl rand -hex 64` makes a good one"
        url = urlsplit(entry.jwks_url or "")
        if url.scheme == "http" and not _is_local(url.hostname or ""):
            yield (*path, "jwks_url"), "whoever is on the way can put in keys of their own; write https://"
        elif entry.jwks_url and (_UNREPLACED.search(entry.jwks_url) or url.path.endswith("/openid-configuration")):
            yield (*path, "jwks_url"), "is not the key set itself; write the URL that is jwks_uri in it"
        families = {name[:2] for name in entry.algorithms}
        if len(families) > 1:
            yield (*path, "algorithms"), "are of several kinds, but an issuer uses one; write the one in its tokens"
        for place, scope in enumerate(entry.scopes):
            if scope not in _asked(config):
                yield (*path, "scopes", place), f"nothing asks for the scope {scope}; write stream"


def check_forward(config: Config) -> Iterator[Caution]:
    forward, path = config.auth.forward, ("auth", "forward")
    if forward is None:
        return
    url = urlsplit(forward.url)
    host = url.hostname or ""
    if _UNREPLACED.search(forward.url):
        yield (*path, "url"), _NOT_REPLACED
    elif url.scheme == "http" and _is_public(host):
        yield (*path, "url"), "sends your users' sessions through the network without TLS; write https://"
    elif _is_at(host, url.port, config.server.listen):
        yield (*path, "url"), "is the gateway's own address, so it would ask itself; write your application's address"
    if not forward.cookies and not forward.headers and "query" not in config.auth.sources:
        yield path, "is never asked, as no request has what it is asked with; write cookies or headers"
    if forward.ttl > LONG_TTL:
        yield (*path, "ttl"), "is how long somebody who logged out goes on; write 30s"
    elif forward.timeout >= forward.ttl / 2:
        yield (
            (*path, "timeout"),
            "is not less than half of ttl, so one slow answer ends running streams; write a shorter one, or a longer "
            "ttl",
        )
    if forward.cookies and "*" in config.cors.origins:
        yield (*path, "cookies"), 'count for no page of another origin, as "*" allows no cookie; write the origins out'


def check_plans(config: Config) -> Iterator[Caution]:
    if any(entry.plan_claim is not None for entry in config.auth.jwt):
        return  # a token may name any plan
    used = {"default", *(key.plan for key in config.auth.keys), *(entry.plan for entry in config.auth.jwt)}
    for name in config.plans:
        if name not in used:
            yield (
                ("plans", name),
                "no key has this plan, so it limits nobody; name it at a key, or write the limits under default",
            )


def check_origins(config: Config) -> Iterator[Caution]:
    cors = config.cors
    for index, origin in enumerate(cors.origins):
        if origin != "*" and not _HOST.fullmatch(urlsplit(origin).hostname or ""):
            yield (
                ("cors", "origins", index),
                'is no pattern but compared as it stands, and no page has it; write every origin out, or "*" alone',
            )
        elif origin == "*" and config.auth.anonymous:
            yield (
                ("cors", "origins", index),
                "any page that somebody opens can use your models, as no key is asked for; write your pages' origins",
            )
    if cors.credentials and not cors.origins:
        yield ("cors", "credentials"), "does nothing without origins; write the origins of your pages"


# -- the store ---------------------------------------------------------------------------------------------------------


def check_store(config: Config) -> Iterator[Caution]:
    store = config.store
    if not store.shared:
        for name in sorted(store.model_fields_set - {"url"}):
            yield ("store", name), "does nothing, as the store is the memory; write the URL of a Redis, or leave it out"
        return
    if wrong := _wrong_store(store.url, read_store_url(store.url)):
        yield ("store", "url"), wrong
    if wrong := _wrong_key(store.secret):
        yield ("store", "secret"), wrong
    elif store.secret and (len(store.secret) < SHORT_KEY or len(set(store.secret)) < DISTINCT):
        yield ("store", "secret"), "is easy to guess; `openssl rand -hex 32` makes a good one"
    elif store.adopt and not store.secret:
        yield (
            ("store", "secret"),
            "is empty, so no answer is finished when its gateway dies; write ${VAR}, the same on all gateways, or "
            "adopt: false",
        )
    if not store.secret and any(isinstance(route, ChatRoute) and route.history for route in config.routes):
        yield (
            ("store", "secret"),
            "is empty, so a chat's earlier turns are known only to the gateway that answered them; write ${VAR}, the "
            "same on all gateways",
        )


def _wrong_store(url: str, store: StoreUrl) -> str:
    """What is wrong with the URL of a Redis, "" for nothing."""
    secrets = (store.user or "", store.password or "", store.options.get("sentinel_password", ""))
    if any(_UNREPLACED.search(text) or _ELSEWHERE.search(text) for text in secrets) or _UNREPLACED.search(url):
        return _NOT_REPLACED
    if any(_PLACEHOLDER.search(text) for text in secrets):
        return "has a placeholder for its password; write the password, best as ${VAR}"
    public = any(_is_public(host.host) for host in store.hosts)
    if public and not store.tls:
        return "sends its password and all answers through the network without TLS; write rediss://"
    if public and store.options.get("ssl_cert_reqs") == "none":
        return "any server that answers there gets the password and all answers; leave ssl_cert_reqs out"
    return ""


# -- upstreams -----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """One target, with what its URL has to fit."""

    path: KeyPath
    url: SplitResult
    target: Target
    upstream: Upstream
    asked: bool  # whether it is asked in its dialect; proxy routes send to any URL

    @property
    def host(self) -> str:
        return self.url.hostname or ""

    @property
    def base(self) -> str:
        return self.url.path.rstrip("/")


def _places(config: Config) -> Iterator[_Place]:
    asked, proxied = set[str](), set[str]()
    for route in config.routes:
        (proxied if isinstance(route, ProxyRoute) else asked).update(_chain(config, route))
    for name, upstream in config.upstreams.items():
        for index, target in enumerate(upstream.targets):
            if not target.demo:
                path = ("upstreams", name, "targets", index, "url")
                yield _Place(path, urlsplit(target.url), target, upstream, name in asked or name not in proxied)


def _chain(config: Config, route: Route) -> tuple[str, ...]:
    return (route.upstream, *config.upstreams[route.upstream].fallback)


def check_values(config: Config) -> Iterator[Caution]:
    """Keys, headers, parameters, models and system texts that are not what their writer believes."""
    for name, upstream in config.upstreams.items():
        for path, wrong in _wrong_values(upstream):
            yield ("upstreams", name, *path), wrong
    for index, route in enumerate(config.routes):
        if not isinstance(route, ProxyRoute):
            yield from _wrong_model(("routes", index, "model"), route.model)
        if isinstance(route, ChatRoute) and _WHOLE_REFERENCE.fullmatch(route.system or ""):
            yield ("routes", index, "system"), _NOT_REPLACED


def _wrong_values(upstream: Upstream) -> Iterator[Caution]:
    """What is wrong with the values of one upstream; the paths begin inside it."""
    if wrong := _wrong_key(upstream.api_key):
        yield ("api_key",), wrong
    elif upstream.api_key and not upstream.api_key.isascii():
        yield ("api_key",), _ODD_CHARACTER
    for header, value in upstream.headers.items():
        if wrong := _wrong_header(header, value):
            yield ("headers", header), wrong
    for name in _references(upstream.params):
        yield ("params", name), _NOT_REPLACED
    yield from _wrong_model(("model",), upstream.model)
    for index, target in enumerate(upstream.targets):
        yield from _wrong_model(("targets", index, "model"), target.model)
        for name, value in target.query.items():
            if _UNREPLACED.search(value) or _ELSEWHERE.search(value):
                yield ("targets", index, "query", name), _NOT_REPLACED


def _wrong_header(name: str, value: str) -> str:
    """What is wrong with a header that is sent to an upstream, "" for nothing."""
    if _UNREPLACED.search(value.removeprefix("Bearer ")):
        return _NOT_REPLACED
    if value != value.strip():
        return "has white space at an end, which HTTP takes away; leave it out"
    if name.lower() not in CREDENTIALS:
        return ""
    if not value.isascii():
        return _ODD_CHARACTER
    key = value.removeprefix("Bearer ")
    if _ELSEWHERE.search(key):
        return _NOT_REPLACED
    return _IS_PLACEHOLDER if _PLACEHOLDER.search(key) else ""


def _references(params: Mapping[str, object]) -> Iterator[str]:
    """The names of the parameters that hold, anywhere inside, a reference and nothing else."""
    for name, value in params.items():
        inside = [value]
        while inside:
            part = inside.pop()
            if isinstance(part, str) and _WHOLE_REFERENCE.fullmatch(part) and name != "stop":
                yield name
                break
            inside += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def check_urls(config: Config) -> Iterator[Caution]:
    for place in _places(config):
        if _UNREPLACED.search(place.url.geturl()):
            yield place.path, _NOT_REPLACED
            continue
        for wrong in (_wrong_transport(place), _wrong_base(place) if place.asked else "", _is_own(place, config)):
            if wrong:
                yield place.path, wrong


def _wrong_transport(place: _Place) -> str:
    url, host = place.url, place.host
    if url.scheme == "http" and url.port == 443:
        return "port 443 speaks TLS; write https://"
    if url.scheme == "https" and url.port == 80:
        return "port 80 does not speak TLS; write http://, or another port"
    if url.scheme == "http" and host in BASES:
        return "this provider is reached by TLS only; write https://"
    if url.scheme == "http" and place.upstream.api_key and _is_public(host):
        return "sends your key through the network without TLS; write https://"
    if url.scheme == "https" and not place.upstream.verify_tls and _is_public(host):
        return "any server that answers there gets your key, as verify_tls is false; leave verify_tls out"
    return ""


def _wrong_base(place: _Place) -> str:
    """What is wrong with the path, for the dialect that the target is asked in; "" for nothing."""
    dialect, base = place.upstream.dialect, place.base
    if dialect in ("sse", "text"):
        return "looks like OpenAI's API; write dialect: openai" if base.endswith("/chat/completions") else ""
    end = next((end for end in ENDPOINTS if base.lower().endswith(end)), "").removeprefix("/v1")
    if end:
        return f"is one call of an API, and not its base URL; leave {end} out"
    if place.host == "api.openai.com" and dialect in ("anthropic", "ollama"):
        return "this provider speaks another API; write dialect: openai"
    if dialect == "ollama":
        return (
            "Ollama's own API is not below /v1; leave /v1 out, or write dialect: openai" if _has_version(base) else ""
        )
    return _wrong_versioned(place) if dialect in ("openai", "anthropic") else ""


def _wrong_versioned(place: _Place) -> str:
    """What is wrong with the path of an API that has its version in it; "" for nothing."""
    base, known = place.base, BASES.get(place.host)
    if re.search(r"(/v[0-9]+)\1$", base):
        return "ends with its version twice; write it once"
    if base.endswith("/anthropic"):
        own = place.upstream.dialect == "anthropic"
        return f"is Anthropic's API; {'' if own else 'write dialect: anthropic, and '}end it with /v1"
    if place.host.endswith(AZURE):
        return _wrong_azure(place)
    if known is not None:
        return "" if base.startswith(known) else f"is not where this provider's API is; end it with {known}"
    if base in ("", "/api") and place.url.port == OLLAMA_PORT:
        return "is usually Ollama; end it with /v1, or write dialect: ollama"
    return "" if base else "has no path, but such APIs are usually below /v1; end it with /v1"


def _wrong_azure(place: _Place) -> str:
    if place.base in ("", "/openai"):
        return "is not where this provider's API is; end it with /openai/v1, or with /openai/deployments/NAME"
    if "/deployments/" in place.base and "api-version" not in place.target.query:
        return "needs a version here; write query: {api-version: …} at the target"
    return ""


def _is_own(place: _Place, config: Config) -> str:
    for own in (config.server.listen, config.server.admin_listen):
        if own is not None and _is_at(place.host, place.url.port, own):
            return "is the gateway's own address, so it would ask itself; write the address of the model's server"
    return ""


def check_missing_keys(config: Config) -> Iterator[Caution]:
    for place in _places(config):
        named = {name.lower() for name in place.upstream.headers}
        has_key = place.upstream.api_key or named & CREDENTIALS
        if place.asked and place.host in BASES and not has_key:
            yield (*place.path[:2], "api_key"), "is empty, but this provider asks for a key; write ${VAR}"


def check_targets(config: Config) -> Iterator[Caution]:
    for name, upstream in config.upstreams.items():
        seen = set()
        for index, target in enumerate(upstream.targets):
            same = target.model_dump_json(exclude={"weight"})
            if same in seen and not target.demo:
                yield (
                    ("upstreams", name, "targets", index),
                    "is another target again, so it fails when that fails; write weight there for a larger share",
                )
            seen.add(same)


def check_fallbacks(config: Config) -> Iterator[Caution]:
    """Fallbacks that are never asked, or that cannot help."""
    own = {route.upstream for route in config.routes}
    asked = {name for route in config.routes for name in _chain(config, route)}
    for name, upstream in config.upstreams.items():
        if name not in asked:
            yield ("upstreams", name), "is never asked: no route names it, nor the fallback of one that a route names"
        elif upstream.fallback and name not in own:
            yield (
                ("upstreams", name, "fallback"),
                "is never asked: only the fallbacks of a route's own upstream are; write them there",
            )
        for index, other in enumerate(upstream.fallback):
            if _servers(config.upstreams[other]) <= _servers(upstream) and name in own:
                yield (
                    ("upstreams", name, "fallback", index),
                    "asks the same servers for the same model, so it fails when they fail; write another upstream",
                )


def _servers(upstream: Upstream) -> set[tuple[str, ...]]:
    return {
        (target.url, upstream.dialect, target.model or upstream.model or "", upstream.api_key)
        for target in upstream.targets
        if not target.demo
    } or {("demo",)}


def check_fallback_models(config: Config) -> Iterator[Caution]:
    """A fallback of another provider would be asked for a model of the first one."""
    for index, route in enumerate(config.routes):
        main = config.upstreams[route.upstream]
        if isinstance(route, ProxyRoute):
            continue
        for name in main.fallback:
            other = config.upstreams[name]
            named = other.model or all(target.model for target in other.targets)
            comes = route.api == "openai" or route.model is not None
            if comes and not named and other.dialect != main.dialect and DIALECTS[other.dialect].needs_model:
                yield (
                    ("upstreams", name),
                    f"as a fallback of {main.dialect} it is asked for that provider's model (by route {index}), which "
                    f"{other.dialect} does not know; write model",
                )


# -- paths and times -----------------------------------------------------------------------------------------------


def check_paths(config: Config) -> Iterator[Caution]:
    for index, route in enumerate(config.routes):
        if _ODD_SEGMENT.search(route.path.removeprefix("/")):
            yield (
                ("routes", index, "path"),
                "is no pattern but compared as it stands; with api: proxy write {name} for one segment, {path} at the "
                "end for the rest",
            )


def check_timeouts(config: Config) -> Iterator[Caution]:
    for index, route in enumerate(config.routes):
        limits, path = route.timeouts, ("routes", index, "timeouts")
        for name in ("connect", "first_event", "idle"):
            if name in limits.model_fields_set and getattr(limits, name) > limits.total:
                yield (*path, name), "is longer than total, which ends the answer before; write less, or a longer total"
        if "connect" in limits.model_fields_set and limits.connect > limits.first_event:
            yield (*path, "connect"), "is longer than first_event, which includes it; write less"


def check_hedges(config: Config) -> Iterator[Caution]:
    for name, upstream in config.upstreams.items():
        path, routes = ("upstreams", name, "hedge"), [route for route in config.routes if route.upstream == name]
        if upstream.hedge is None:
            continue
        if len(upstream.targets) == 1 and not upstream.fallback:
            yield path, "there is nobody else to ask: the upstream has one target and no fallback; write a fallback"
        if routes and all(upstream.hedge >= route.timeouts.first_event for route in routes):
            yield path, "is not shorter than first_event, after which a silent target is given up anyway; write less"
        if routes and all(route.api == "proxy" for route in routes):
            yield path, "does nothing on routes with api: proxy; leave it out"


def check_streams(config: Config) -> Iterator[Caution]:
    for index, route in enumerate(config.routes):
        stream, path = route.stream, ("routes", index, "stream")
        resume, after = stream.resume, stream.on_disconnect.after
        if stream.heartbeat > PROXY_PATIENCE:
            yield (*path, "heartbeat"), "proxies cut a connection that is silent for 60s or less; write 15s"
        if not resume.enabled:
            continue
        if resume.ttl < stream.retry:
            place = ("resume", "ttl") if "ttl" in resume.model_fields_set else ("retry",)
            yield (*path, *place), "readers come back when their stream is forgotten; write a resume.ttl above retry"
        if after and after < stream.retry:
            place = ("on_disconnect", "after") if "after" in stream.on_disconnect.model_fields_set else ("retry",)
            yield (
                (*path, *place),
                "readers come back when their answer is cancelled; write an on_disconnect.after above retry, or 0s to "
                "cancel at once",
            )
        if resume.max_bytes > config.server.max_log_bytes:
            yield (*path, "resume", "max_bytes"), "is more than server.max_log_bytes, the memory of all; write less"


CHECKS: Final[tuple[Callable[[Config], Iterator[Caution]], ...]] = (
    check_access,
    check_keys,
    check_jwt,
    check_forward,
    check_plans,
    check_origins,
    check_store,
    check_values,
    check_urls,
    check_missing_keys,
    check_targets,
    check_fallbacks,
    check_fallback_models,
    check_paths,
    check_timeouts,
    check_hedges,
    check_streams,
)

_IS_PLACEHOLDER: Final = "is a placeholder; write the key, best as ${VAR}"
_ODD_CHARACTER: Final = "holds a character that no provider's key has; copy the key again"
_NOT_REPLACED: Final = (
    "names a variable in a way that is not replaced here, so it is sent as it stands; write ${NAME}, or ${file:/path}"
)


def _wrong_key(key: str) -> str:
    """What is wrong with a key, "" for nothing."""
    if not key:
        return ""
    if _UNREPLACED.search(key) or _ELSEWHERE.search(key):
        return _NOT_REPLACED
    if key.lower().startswith("bearer "):
        return "begins with Bearer, which is added by itself; write the key alone"
    if len(key) > 1 and key[0] == key[-1] and key[0] in "\"'`":
        return "has quotes around it, which count as part of the key; leave them out"
    if key != key.strip():
        return "has white space at an end, which no header can carry; leave it out"
    if any(char.isspace() or not char.isprintable() for char in key):
        return "has white space inside, which no key has; write the key alone"
    return _IS_PLACEHOLDER if _PLACEHOLDER.search(key) else ""


def _wrong_model(path: KeyPath, model: str | None) -> Iterator[Caution]:
    if model is None:
        return
    if _UNREPLACED.search(model):
        yield path, _NOT_REPLACED
    elif model != model.strip():
        yield path, "has white space at an end, which no model's name has; leave it out"


def _has_version(base: str) -> bool:
    return re.search(r"/v[0-9]+$", base) is not None


def _is_at(host: str, port: int | None, own: Address) -> bool:
    """Whether this host and port are an address that the gateway listens on."""
    same = host == own.host or (_is_local(host) and (_is_local(own.host) or own.host in WILDCARDS))
    return same and own.port == port != 0


def _is_local(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    address = _ip(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address is not None and (mapped or address).is_loopback


def _is_public(host: str) -> bool:
    """Whether the way to the host leaves one's own network, as far as its name tells."""
    address = _ip(host)
    if address is not None:
        return address.is_global
    own: Sequence[str] = (".local", ".internal", ".lan", ".svc", ".localhost", ".home.arpa")
    return "." in host and not host.endswith(tuple(own))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
