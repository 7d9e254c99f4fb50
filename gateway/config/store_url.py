"""The rule for `store.url`, and what such a URL says.

Invariants:

- A value that the rule accepts is read by `read_store_url` in one way only; nobody else takes it apart.
- No message holds a part of the value, as a password may be part of it.

This file opens no connection, resolves no name, and reads none of the files that a URL names.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from gateway.config.addresses import Address
from gateway.config.rules import Rule

MEMORY: Final = "memory"
"""The store that is the memory of the process."""
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
MAX_DATABASE: Final = 1_000_000

_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_cert_reqs",
        "ssl_check_hostname",
    }
)
_SENTINEL: Final = frozenset({"sentinel_username", "sentinel_password"})
_WORDS: Final = {"ssl_cert_reqs": ("required", "none"), "ssl_check_hostname": ("true", "false")}
"""Options that are one of a few words."""
_CREDENTIALS: Final = frozenset({"username", "password", "user", "auth"})
_SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_HOST: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?))(?::(?P<port>[0-9]{1,5}))?"
)


class StoreUrl(NamedTuple):
    """What a URL of a Redis says.

    Attributes:
        hosts: of Redis; of its Sentinels where `master` is not empty; empty for a Unix socket.
        path: of the Unix socket, "" without one.
        master: what the Sentinels call the master, "" without Sentinels.
        tls: whether all connections use TLS.
        user, password: None where the URL has none.
        database: its number.
        options: what is behind the question mark, less `db`.
    """

    hosts: tuple[Address, ...]
    path: str
    master: str
    tls: bool
    user: str | None
    password: str | None
    database: int
    options: dict[str, str]


@dataclass(frozen=True)
class StoreRule(Rule):
    """Where the store is: `memory`, or the URL of a Redis."""

    @property
    def allowed(self) -> str:
        return (
            f"{MEMORY}, redis://user:password@host:6379/0, rediss://… (TLS), unix:///path or "
            "redis+sentinel://host1,host2/name/0"
        )

    def parse(self, value: object) -> str:
        if value == MEMORY:
            return MEMORY
        if not isinstance(value, str):
            raise self.refusal("a store")
        if not value:
            raise ValueError(f"is empty; allowed: {self.allowed}")
        try:
            read_store_url(value)
        except ValueError as error:
            raise self.refusal(f"a store ({error})") from None
        return value

    def schema(self) -> dict[str, Any]:
        schemes = "[Rr][Ee][Dd][Ii][Ss][Ss]?(?:\\+[Ss][Ee][Nn][Tt][Ii][Nn][Ee][Ll])?|[Uu][Nn][Ii][Xx]"
        return {"type": "string", "pattern": rf"^(?:{MEMORY}|(?:{schemes})://[^\s#]+)$", "maxLength": 2048}


def read_store_url(url: str) -> StoreUrl:
    """What this URL says; it is not `memory`.

    Raises:
        ValueError: it cannot be used; the message says why, and holds nothing of it.
    """
    scheme, authority, path, query = _split(url)
    credential, _, hosts = authority.rpartition("@")
    user, password = _credential(credential)
    options = _options(query)
    number = options.pop("db", None)
    tls, master = scheme.startswith("rediss"), ""
    if scheme == "unix":
        if hosts or not path.strip("/"):
            raise ValueError("behind unix:// the path of the socket begins with a slash, as in unix:///run/redis.sock")
        addresses: tuple[Address, ...] = ()
        path = "/" + _decoded(path)
    else:
        sentinel = scheme.endswith("+sentinel")
        segments = path.split("/") if path else []
        if sentinel:
            master = _decoded(segments.pop(0)) if segments else ""
            if not master:
                raise ValueError("behind the Sentinels it has to name the master, as in redis+sentinel://host/name")
        addresses = tuple(_host(host, SENTINEL_PORT if sentinel else REDIS_PORT) for host in hosts.split(","))
        if len(addresses) > 1 and not sentinel:
            raise ValueError("several hosts are only possible as redis+sentinel://host1,host2/name")
        number, path = _database_of(segments, number), ""
    _check_options(options, tls=tls, sentinel=bool(master))
    return StoreUrl(addresses, path, master, tls, user, password, _database(number), options)


def _split(url: str) -> tuple[str, str, str, str]:
    """Scheme, authority, path without its first slash, and query."""
    if len(url) > 2048 or re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise ValueError("it is longer than 2048 characters, or holds white space, a control character or a \\")
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in ("valkey", "valkeys"):
        raise ValueError(f"for Valkey, too, write {scheme.replace('valkey', 'redis')}://")
    if not colon or scheme not in _SCHEMES:
        raise ValueError("it has to begin with redis://, rediss://, unix:// or redis+sentinel://")
    if "#" in rest:
        raise ValueError("nothing follows a #; in a password write it as %23")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path or "@" in query:
        raise ValueError("in a user, a password or a path write / as %2F, ? as %3F, @ as %40")
    return scheme, authority, path, query


def _credential(text: str) -> tuple[str | None, str | None]:
    user, _, password = text.partition(":")
    if user and not password:
        return _decoded(user), ""  # an ACL user with `nopass`
    return _decoded(user) or None, _decoded(password) or None


def _host(text: str, port: int) -> Address:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError(
            "it needs a host, or host:port; an IPv6 address stands in brackets" if text else "it has no host"
        )
    port = int(match["port"]) if match["port"] is not None else port
    if not 0 < port < 65536:
        raise ValueError("a port is 1 to 65535")
    return Address(match["six"] or match["host"], port)


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name in options:
            raise ValueError("an option behind the ? stands there twice")
        options[name] = _decoded(value)
    return options


def _check_options(options: dict[str, str], *, tls: bool, sentinel: bool) -> None:
    allowed = {"db", *(_TLS if tls else ()), *(_SENTINEL if sentinel else ())}
    for name, value in options.items():
        if name in _CREDENTIALS:
            raise ValueError("user and password stand before the host, as in redis://user:password@host")
        if name in _TLS and not tls:
            raise ValueError("options of TLS need rediss:// or rediss+sentinel://")
        if name not in allowed:
            raise ValueError(f"behind the ? is an option that is not known; known are {', '.join(sorted(allowed))}")
        if value not in _WORDS.get(name, (value,)):
            raise ValueError(f"{name} is {' or '.join(_WORDS[name])}")
        if not value:
            raise ValueError(f"{name} is empty")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile needs ssl_certfile, too")


def _database_of(segments: list[str], number: str | None) -> str | None:
    """The number of the database, from the path or from the query, as it was written."""
    if len(segments) > 1 or (segments and segments[0] and number is not None):
        raise ValueError("behind the host there is one number, that of the database")
    return segments[0] if segments and segments[0] else number


def _database(number: str | None) -> int:
    if number is None:
        return 0
    if not re.fullmatch("[0-9]{1,7}", number) or int(number) > MAX_DATABASE:
        raise ValueError("a database is a number, as in redis://host/0")
    return int(number)


def _decoded(text: str) -> str:
    """Without percent signs."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("what its % signs stand for is no UTF-8") from None
