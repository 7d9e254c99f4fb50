"""Checks that compare keys of a config with one another.

The checks read the data as it was written, before the model converts it. So they also find their mistakes in a file
that the model refuses, and they must skip values of a wrong type: those are reported by the model.

This file does not know lines or files.
"""

import hashlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Final

from gateway.config.addresses import DEMO, Address, Listen, shape
from gateway.config.model import Server, Stream
from gateway.config.problems import KeyPath, suggestion
from gateway.core.cursor import WORKERS
from gateway.dialects import DIALECTS

Finding = tuple[KeyPath, str]

SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Algorithms with a shared secret, and the fewest bytes of it. Source: RFC 7518 3.2."""

RESERVED: Final = ("streams", "tickets")
"""First segments of the gateway's own paths. A route with a `{parameter}` there is allowed: the gateway's paths win."""

RESERVED_PARAMETERS: Final = ("model", "messages", "stream")
"""Parameters of a chat request that the client and the gateway decide. A model has a key of its own."""
_RESERVED_PARAMETERS: Final = ", ".join(RESERVED_PARAMETERS)

_NO_CREDENTIAL: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "last-event-id",
        "origin",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "sec-fetch-site",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
    }
)
"""Headers that every client has, that belong to one connection or body, or that say where a request comes from."""
_OWN_PARAMETERS: Final = ("last_event_id", "ticket")


def findings(data: dict[str, Any]) -> Iterator[Finding]:
    """Every disagreement in `data`, as key path and message."""
    for check in CHECKS:
        yield from check(data)


def check_listeners(data: dict[str, Any]) -> Iterator[Finding]:
    addresses = _addresses(data)
    if addresses is not None and addresses[0].collides(addresses[1]):
        key = "admin_listen" if "admin_listen" in _mapping(data, "server") else "listen"
        yield (
            ("server", key),
            "listen and admin_listen are the same address; allowed: another port, or admin_listen: null",
        )


def check_workers(data: dict[str, Any]) -> Iterator[Finding]:
    addresses, workers = _addresses(data), _mapping(data, "server").get("workers")
    if addresses is None or not isinstance(workers, int) or not 1 < workers <= WORKERS:
        return
    # Worker N has the admin port `first + N`. With port 0 the system picks free ports, so nothing can collide.
    public, (host, first) = addresses
    last = first + workers - 1
    if last > 65535:
        yield (
            ("server", "workers"),
            f"the last admin port would be {last}; allowed: up to 65535, from a lower first one",
        )
    if first and any(public.collides(Address(host, port)) for port in range(first + 1, last + 1)):
        yield ("server", "workers"), f"listen is among the admin ports {first} to {last}; allowed: another port"


def check_cors(data: dict[str, Any]) -> Iterator[Finding]:
    cors = _mapping(data, "cors")
    if cors.get("credentials") is True and "*" in _list(cors, "origins"):
        yield ("cors", "credentials"), 'cannot be true for origins ["*"]; allowed: false, or a list of exact origins'


def check_keys(data: dict[str, Any]) -> Iterator[Finding]:
    plans = {"default", *_mapping(data, "plans")}  # `default` exists even where it is not written down
    ids: set[Any] = set()
    digests: set[str] = set()
    for index, key in _items(_mapping(data, "auth"), "keys"):
        path: KeyPath = ("auth", "keys", index)
        yield from _check_secret(path, key, digests)
        if _is_repeated(key.get("id"), ids):
            yield (*path, "id"), "another key has this id; allowed: an id of its own"
        if isinstance(key.get("plan"), str) and key["plan"] not in plans:
            yield (*path, "plan"), f"there is no such plan; {suggestion(key['plan'], plans)}"


def check_jwt(data: dict[str, Any]) -> Iterator[Finding]:
    plans = {"default", *_mapping(data, "plans")}
    seen: set[tuple[str, str]] = set()
    for index, entry in _items(_mapping(data, "auth"), "jwt"):
        path: KeyPath = ("auth", "jwt", index)
        given = [name for name in ("jwks_url", "key_file", "secret") if entry.get(name) is not None]
        if len(given) != 1:
            have = " and ".join(given) or "none of jwks_url, key_file and secret"
            yield path, f"has {have}; allowed: exactly one of jwks_url, key_file, secret"
        yield from _check_algorithms(path, entry, given)
        issuer, audience = entry.get("issuer"), entry.get("audience")
        if isinstance(issuer, str) and isinstance(audience, str):
            if (issuer, audience) in seen:
                yield (*path, "issuer"), "another entry has this issuer and audience; allowed: one entry for both"
            seen.add((issuer, audience))
        if isinstance(entry.get("plan"), str) and entry["plan"] not in plans:
            yield (*path, "plan"), f"there is no such plan; {suggestion(entry['plan'], plans)}"


def _check_algorithms(path: KeyPath, entry: dict[str, Any], given: list[str]) -> Iterator[Finding]:
    """A secret verifies HS* alone, and public keys never do: whoever knows a public key could sign with it."""
    algorithms = _list(entry, "algorithms")
    for place, name in enumerate(algorithms):
        shared = name in SECRET_BYTES if isinstance(name, str) else None
        if shared is True and given and "secret" not in given:
            yield (*path, "algorithms", place), f"needs a secret, not {given[0]}; allowed: RS*, PS*, ES*, Ed*"
        if shared is False and given == ["secret"]:
            yield (*path, "algorithms", place), f"does not work with secret; allowed: {', '.join(SECRET_BYTES)}"
    secret = entry.get("secret")
    if not isinstance(secret, str) or not secret:
        return
    least = max((SECRET_BYTES.get(name, 0) for name in algorithms if isinstance(name, str)), default=0)
    if len(secret.encode("utf-8", "surrogatepass")) < least:
        yield (*path, "secret"), f"is too short for these algorithms; allowed: {least} bytes or more"
    from gateway.core.jwk import is_key_material  # it takes long, and only those who use tokens need it

    if is_key_material(secret):
        yield (*path, "secret"), "is a key of another kind, which others may know; allowed: a secret, or key_file"


def check_forward(data: dict[str, Any]) -> Iterator[Finding]:
    """The application is asked with credentials; what makes a request what it is, is the gateway's own."""
    forward = _mapping(_mapping(data, "auth"), "forward")
    path: KeyPath = ("auth", "forward")
    cookies: set[Any] = set()
    for index, name in enumerate(_list(forward, "cookies")):
        if _is_repeated(name, cookies):
            yield (*path, "cookies", index), "is there twice; allowed: each cookie once"
    headers: set[Any] = set()
    for index, name in enumerate(_list(forward, "headers")):
        lower = name.lower() if isinstance(name, str) else name
        if lower == "cookie":
            yield (*path, "headers", index), "would send every cookie; allowed: the names of some under cookies"
        elif lower in _NO_CREDENTIAL:
            yield (*path, "headers", index), "is no credential; allowed: a header that names a user, as authorization"
        elif _is_repeated(lower, headers):
            yield (*path, "headers", index), "is there twice; allowed: each header once"


def check_upstreams(data: dict[str, Any]) -> Iterator[Finding]:
    for name, upstream in _mapping(data, "upstreams").items():
        for index, target in _items(upstream, "targets"):
            if target.get("url") == DEMO and upstream.get("dialect") != "openai":
                yield (
                    ("upstreams", name, "targets", index, "url"),
                    f"{DEMO} speaks one dialect; allowed: dialect: openai",
                )


def check_parameters(data: dict[str, Any]) -> Iterator[Finding]:
    """`params` and `omit` leave alone what a request is made of, and do not contradict one another."""
    for name, upstream in _mapping(data, "upstreams").items():
        path: KeyPath = ("upstreams", name)
        params, omit = _mapping(upstream, "params"), _list(upstream, "omit")
        for key in params:
            if key in RESERVED_PARAMETERS:
                yield (*path, "params", key), f"is the request's own; allowed: anything but {_RESERVED_PARAMETERS}"
            elif key in omit:
                yield (*path, "params", key), "is under omit too; allowed: params or omit, not both"
        for index, key in enumerate(omit):
            if key in RESERVED_PARAMETERS:
                yield (*path, "omit", index), f"is the request's own; allowed: anything but {_RESERVED_PARAMETERS}"


def check_ends(data: dict[str, Any]) -> Iterator[Finding]:
    for name, upstream in _mapping(data, "upstreams").items():
        if not isinstance(upstream, dict) or upstream.get("end") != "finish_reason":
            continue
        dialect = DIALECTS.get(str(upstream.get("dialect")))
        if dialect is not None and not dialect.gives_reasons:
            message = f"{dialect.name} has no finish reasons, so no answer would be whole; allowed: auto, marker"
            yield ("upstreams", name, "end"), message


def check_fallbacks(data: dict[str, Any]) -> Iterator[Finding]:
    # Fallbacks of fallbacks are never asked, so there can be no circle beyond an upstream that names itself.
    names = _mapping(data, "upstreams")
    for name, upstream in names.items():
        seen: set[Any] = set()
        for index, other in enumerate(_list(upstream, "fallback")):
            path: KeyPath = ("upstreams", name, "fallback", index)
            if other == name:
                yield path, "is the upstream itself; allowed: another upstream"
            elif _is_repeated(other, seen):
                yield path, "is there twice; allowed: each upstream once"
            elif isinstance(other, str) and other not in names:
                yield path, f"there is no such upstream; {suggestion(other, names)}"


def check_upstream_names(data: dict[str, Any]) -> Iterator[Finding]:
    names = _mapping(data, "upstreams")
    for index, route in _items(data, "routes"):
        if isinstance(route.get("upstream"), str) and route["upstream"] not in names:
            yield ("routes", index, "upstream"), f"there is no such upstream; {suggestion(route['upstream'], names)}"


def check_paths(data: dict[str, Any]) -> Iterator[Finding]:
    shapes: set[Any] = set()
    page = _mapping(data, "server").get("demo_page", True) is not False
    for index, route in _items(data, "routes"):
        path = route.get("path")
        if not isinstance(path, str):
            continue
        # By shape, so that /a/{id} and /a/{name} are one path.
        if _is_repeated(shape(path), shapes):
            yield ("routes", index, "path"), "another route has this path; allowed: a path of its own"
        if _is_reserved(path, page):
            yield ("routes", index, "path"), f"is the gateway's own; allowed: anything but {_own_paths(page)}"


def check_shorthand(data: dict[str, Any]) -> Iterator[Finding]:
    """A key of `stream` may stand on the route itself, but not in both places."""
    for index, route in _items(data, "routes"):
        for key in _mapping(route, "stream"):
            if key in route and key in Stream.model_fields:
                yield ("routes", index, key), f"is also under stream; allowed: {key} or stream.{key}, not both"


def check_merge(data: dict[str, Any]) -> Iterator[Finding]:
    for index, route in _items(data, "routes"):
        for path, part in (((), route), (("stream",), _mapping(route, "stream"))):
            if part.get("merge") is True and route.get("api") in ("proxy", "openai"):
                yield ("routes", index, *path, "merge"), "does nothing here; allowed: true with api: chat only"


def check_params(data: dict[str, Any]) -> Iterator[Finding]:
    if _mapping(data, "auth").get("query_param") in _OWN_PARAMETERS:
        yield ("auth", "query_param"), "is a parameter of the gateway's own; allowed: another name"
    taken = (*_OWN_PARAMETERS, _mapping(data, "auth").get("query_param", "token"))
    for index, route in _items(data, "routes"):
        if route.get("api") != "chat":
            continue
        # With the defaults of `Params`: what `auth.query_param` says may collide with those as well.
        params = {"message": "message", "session": "session_id"} | _mapping(route, "params")
        for key, name in params.items():
            if name in taken:
                yield ("routes", index, "params", key), "is a parameter of the gateway's own; allowed: another name"
        if params["message"] == params["session"]:
            yield ("routes", index, "params"), "message and session have one name; allowed: two names"


def check_models(data: dict[str, Any]) -> Iterator[Finding]:
    for index, route in _items(data, "routes"):
        for name, upstream in _chain(data, route):
            if route.get("api") == "chat" and _lacks_model(route, upstream):
                yield (
                    ("routes", index),
                    f"names no model, which {upstream['dialect']} requires; allowed: model here or at upstream {name}",
                )


def check_store(data: dict[str, Any]) -> Iterator[Finding]:
    """A store that is shared needs a library, which those who keep all in memory need not install."""
    store = data.get("store")
    url = store if isinstance(store, str) else _mapping(data, "store").get("url")
    if isinstance(url, str) and "://" in url and find_spec("redis") is None:
        yield ("store",), "needs a library that is not installed here; run: pip install 'sse-gateway[redis]'"


CHECKS: Final[tuple[Callable[[dict[str, Any]], Iterator[Finding]], ...]] = (
    check_listeners,
    check_workers,
    check_cors,
    check_keys,
    check_jwt,
    check_forward,
    check_upstreams,
    check_parameters,
    check_ends,
    check_fallbacks,
    check_upstream_names,
    check_paths,
    check_shorthand,
    check_merge,
    check_params,
    check_models,
    check_store,
)


def _addresses(data: dict[str, Any]) -> tuple[Address, Address] | None:
    """The two listening addresses, None where one is turned off or written wrongly."""
    server = {"listen": str(Server().listen), "admin_listen": str(Server().admin_listen)} | _mapping(data, "server")
    try:
        return Listen().parse(server["listen"]), Listen().parse(server["admin_listen"])
    except ValueError:
        return None


def _check_secret(path: KeyPath, key: dict[str, Any], digests: set[str]) -> Iterator[Finding]:
    given = [name for name in ("sha256", "key") if key.get(name) is not None]
    if len(given) != 1:
        yield path, f"has {'both' if given else 'neither'} sha256 and key; allowed: exactly one of them"
        return
    text = key[given[0]]
    if not isinstance(text, str):
        return
    # Half a character cannot be encoded; it is let through here, because `document.py` has reported it already.
    digest = text.lower() if given == ["sha256"] else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if _is_repeated(digest, digests):
        yield (*path, given[0]), "another entry has the same key; allowed: one entry a key"


def _is_repeated(value: Any, seen: set[Any]) -> bool:
    """Whether the text `value` is in `seen`; if not, it is added. What is no text is left to the model."""
    if not isinstance(value, str) or value in seen:
        return isinstance(value, str)
    seen.add(value)
    return False


def _is_reserved(path: str, page: bool) -> bool:
    first = path.removeprefix("/").partition("/")[0]
    return first in RESERVED or (page and (path in {"/", "/client.js"} or first == "page"))


def _own_paths(page: bool) -> str:
    pages = ["/", "/client.js", "/page (server.demo_page: false frees these three)"] if page else []
    return ", ".join([f"/{name}" for name in RESERVED] + pages)


def _chain(data: dict[str, Any], route: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The route's upstream and its fallbacks, by name, as far as they exist."""
    upstreams = _mapping(data, "upstreams")
    names = [route.get("upstream"), *_list(upstreams.get(str(route.get("upstream"))), "fallback")]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        if isinstance(upstreams.get(name), dict):
            yield name, upstreams[name]


def _lacks_model(route: dict[str, Any], upstream: dict[str, Any]) -> bool:
    """Whether the provider needs a model, has no list to take one from, and none is configured: not here, not at its
    upstream, not at each target."""
    name, targets = upstream.get("dialect"), _list(upstream, "targets")
    dialect = DIALECTS.get(name) if isinstance(name, str) else None
    named = route.get("model") or upstream.get("model") or all(isinstance(t, dict) and t.get("model") for t in targets)
    needed = dialect is not None and dialect.needs_model and not dialect.lists_models
    return needed and bool(targets) and not named


def _mapping(data: Any, key: str) -> dict[str, Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, dict) else {}


def _list(data: Any, key: str) -> list[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []


def _items(data: Any, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((index, item) for index, item in enumerate(_list(data, key)) if isinstance(item, dict))
