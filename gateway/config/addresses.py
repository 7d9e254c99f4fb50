"""The rules for listening addresses, networks, origins, upstream URLs, paths, and the moment a key expires.

Invariant: a value that these rules accept can be bound, matched or requested without another check.
This file opens no connection and resolves no name.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from gateway.config.rules import Rule

DEMO: Final = "demo:"
"""The upstream URL that stands for the LLM stand-in inside the program."""

_LISTEN: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)):(?P<port>[0-9]{1,5})"
)
_SEGMENT: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound
"""Addresses that stand for every interface."""


class Address(NamedTuple):
    """A host and a TCP port to listen on.

    Attributes:
        host: a name or an IP address, IPv6 without brackets.
        port: 0 to 65535; with 0 the system picks one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def collides(self, other: "Address") -> bool:
        """Whether the two cannot be listened on at the same time."""
        # A wildcard takes the port on every address. Two ports 0 never collide: the system picks two.
        same = self.host == other.host or not {self.host, other.host}.isdisjoint(WILDCARDS)
        return same and self.port == other.port != 0


@dataclass(frozen=True)
class Listen(Rule):
    """An `Address`."""

    @property
    def allowed(self) -> str:
        return "host:port, as in 127.0.0.1:8080, 0.0.0.0:8080 (all interfaces) or [::1]:8080"

    def parse(self, value: object) -> Address:
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match["port"]) > 65535:
            raise self.refusal("a host and a port")
        if match["six"] and not _is_ipv6(match["six"]):
            raise self.refusal("an IPv6 address and a port")
        return Address(match["six"] or match["host"], int(match["port"]))

    def show(self, value: Address | None) -> str | None:
        return None if value is None else str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"}


@dataclass(frozen=True)
class Network(Rule):
    """An IP network in CIDR notation; a bare address is a network of one."""

    @property
    def allowed(self) -> str:
        return "a network, as in 10.0.0.0/8 or fd00::/8, or one address"

    def parse(self, value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        if not isinstance(value, str):
            raise self.refusal("a network")
        try:
            return ipaddress.ip_network(value)
        except ValueError:
            raise self.refusal("a network (no bit may be set after the prefix)") from None

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?$"}


@dataclass(frozen=True)
class Origin(Rule):
    """An origin as browsers send it in `Origin`, or `*`. Source: RFC 6454 6.2."""

    @property
    def allowed(self) -> str:
        return "https://host or http://host:port, without path or slash at the end; or *"

    def parse(self, value: object) -> str:
        if value == "*":
            return "*"
        url = _split(value)
        # Written as browsers write it, so that serving compares two texts: lower case, no default port.
        if url is None or url.path or url.query or url.fragment:
            raise self.refusal("an origin")
        return f"{url.scheme}://{_host(url)}{_port(url)}"

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^(?:\*|[Hh][Tt][Tt][Pp][Ss]?://[^\s/?#@]+)$"}


@dataclass(frozen=True)
class Url(Rule):
    """The base URL of an upstream, without a slash at its end, or `demo:`."""

    @property
    def allowed(self) -> str:
        return f"http://host:port/path or https://…, without user, query and fragment; or {DEMO}"

    def parse(self, value: object) -> str:
        if value == DEMO:
            return DEMO
        url = _split(value)
        if url is not None and url.query:
            raise self.refusal("a base URL (its query belongs in query, as in query: {api-version: 2024-10-21})")
        if url is None or url.fragment:
            raise self.refusal(f"a base URL ({_wrong_url(value)})")
        return url.geturl().rstrip("/")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": rf"^(?:{DEMO}|[Hh][Tt][Tt][Pp][Ss]?://[^\s?#@]+)$"}


@dataclass(frozen=True)
class Location(Rule):
    """The URL of one thing to ask for, with its query."""

    @property
    def allowed(self) -> str:
        return "http://host:port/path or https://…, without user and fragment"

    def parse(self, value: object) -> str:
        url = _split(value)
        if url is None or url.fragment:
            raise self.refusal(f"a URL ({_wrong_location(value)})")
        return url.geturl()

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s#@]+$", "maxLength": 2048}


@dataclass(frozen=True)
class Path(Rule):
    """The path of a route.

    Attributes:
        variable: whether whole segments may be parameters: `{name}` for one segment, `{path}` at the end for the rest.
    """

    variable: bool = False

    @property
    def allowed(self) -> str:
        plain = "up to 256 characters that start with / and hold no empty or dotted segment, space, ?, # or %"
        return f"{plain}; {{name}} for one segment, {{path}} at the end for the rest" if self.variable else plain

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"/[^\s?#%\\\x00-\x1f\x7f]{0,255}", value):
            raise self.refusal("a path")
        segments = value[1:].split("/")
        if any(segment in {"", ".", ".."} for segment in segments[:-1]) or segments[-1] in {".", ".."}:
            raise self.refusal("a path")
        self._check_parameters([segment for segment in segments if "{" in segment or "}" in segment], segments[-1])
        return value

    def _check_parameters(self, written: list[str], last: str) -> None:
        if written and not self.variable:
            raise ValueError("holds a parameter, which only api: proxy can have; allowed: " + self.allowed)
        if not all(_SEGMENT.fullmatch(segment) for segment in written) or len(set(written)) < len(written):
            raise self.refusal("a path (each parameter is a whole segment with a name of its own)")
        if "{path}" in written and last != "{path}":
            raise self.refusal("a path ({path} takes all the rest, so it comes last)")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^/[^\s?#%]*$", "maxLength": 256}


@dataclass(frozen=True)
class Moment(Rule):
    """A date (meaning its first second) or a date and time; UTC where no other zone is named."""

    @property
    def allowed(self) -> str:
        return "a date or time, as in 2027-01-31 or 2027-01-31T12:00:00+08:00 (UTC without a zone)"

    def parse(self, value: object) -> datetime:
        # `fromisoformat` also reads week dates and 20270131; one way to write a date is enough.
        if not isinstance(value, str) or not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise self.refusal("a date")
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise self.refusal("a date") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[Tt ].+)?$"}


def shape(path: str) -> str:
    """`path` without the names of its parameters. Two routes with the same shape match the same requests."""
    return _SEGMENT.sub(lambda match: match[0] if match[1] == "path" else "{}", path)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _split(value: object) -> SplitResult | None:
    """The parts of an http or https URL with a host and without a user; None for anything else."""
    if not isinstance(value, str) or len(value) > 2048 or re.search(r"[\s\x00-\x1f\x7f\\]", value):
        return None
    try:
        url = urlsplit(value)
        usable = url.scheme in {"http", "https"} and _host(url) and "@" not in url.netloc and url.port != 0
    except ValueError:
        return None
    return url if usable else None


def _wrong_url(value: object) -> str:
    """What is wrong with a URL that `_split` refuses, or that has a fragment. The URL itself is not repeated."""
    if not isinstance(value, str) or not re.match(r"https?://", value, re.IGNORECASE):
        return "it has to begin with http:// or https://"
    if "@" in value.partition("://")[2].partition("/")[0]:
        return "a credential belongs in api_key"
    if "#" in value:
        return "what follows a # is never sent; leave it out"
    return "its host or its port cannot be, or it holds white space"


def _wrong_location(value: object) -> str:
    wrong = _wrong_url(value)
    return "it holds a user, which would be sent to nobody" if "api_key" in wrong else wrong


def _host(url: SplitResult) -> str:
    """The host as a browser writes it: lower case, names in other scripts as `xn--`, IPv6 in brackets."""
    host = url.hostname or ""
    return f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")  # raises a ValueError if it has none


def _port(url: SplitResult) -> str:
    default = {"http": 80, "https": 443}[url.scheme]
    return "" if url.port in {None, default} else f":{url.port}"
