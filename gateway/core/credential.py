"""Credentials: where a request carries one, the principal that it stands for, and the address that it came from.

Invariants:

- Only hashes of keys are kept, and a hash is compared in constant time.
- No caller learns why a credential did not match: unknown, expired and oversized all are None.
- A cookie counts only when the request can be shown to come from an allowed page.
- Stripping a credential for an upstream leaves every other byte as it was.
"""

import hashlib
import hmac
import ipaddress
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote_plus

import msgspec
from multidict import MultiMapping

from gateway.core.principal import KEY, Principal

Source = Literal["header", "cookie", "query"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_SECRET: Final = 4096
"""Characters of a secret; a longer one is not worth hashing."""
MAX_HOPS: Final = 32
"""Entries of X-Forwarded-For that are read, from the right."""
MAX_PEER: Final = 64
"""Characters kept of a peer that is no IP address."""
INDEX: Final = 4
"""Bytes of a digest, of 32, by which keys are found. Timing can tell no more than these about a digest."""
MAX_FORWARDED: Final = 4096
"""Characters of a line of Forwarded that is read; 32 hops need no more."""
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]"
"""Brackets and colons stand in no token of the RFC; some proxies write an address with them without quotes."""
_VALUE: Final = rf'(?:{_WORD}+|"(?:[^"\\]|\\.)*")'
_PARAMETER: Final = rf"[ \t]*(?:{_WORD}+={_VALUE}[ \t]*)?"
_FORWARDED: Final = re.compile(rf"{_PARAMETER}(?:[;,]{_PARAMETER})*")
_ELEMENT: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')
_PAIR: Final = re.compile(rf"({_WORD}+)=({_VALUE})")
IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that name a customer, who can change all others at will and must still count as one."""


class Key(msgspec.Struct, frozen=True):
    """A static key of the config: a principal, and the sha256 of its secret (32 bytes)."""

    id: str
    digest: bytes
    plan: str
    scopes: frozenset[str]
    expires: float | None = None

    def principal(self) -> Principal:
        """The principal that the key's holder acts as."""
        return Principal(KEY, self.id, self.plan, self.scopes, self.expires)


class Presented(NamedTuple):
    """A credential as found in a request, not yet believed."""

    secret: str
    source: Source


class Facts(NamedTuple):
    """What a verifier may look at beside the credential that was presented.

    Attributes:
        address: the client's address, the proxies' claims considered.
        headers: the request's headers, found by name in any case.
        cookies: by name.
        query: the decoded query parameters by name.
    """

    address: str
    headers: MultiMapping[str]
    cookies: Mapping[str, str]
    query: Mapping[str, str]


class Refused(NamedTuple):
    """A credential is of a verifier's kind but not valid. The client is told no more than of an unknown one, and the
    verifiers behind are asked nevertheless.

    Attributes:
        reason: for metrics.
        detail: for the log; holds nothing of the credential.
    """

    reason: Literal["expired", "invalid"]
    detail: str


Verdict = Principal | Refused | None | Awaitable[Principal | Refused | None]
"""The principal; None or, where there is more to log, `Refused` for a credential that is not valid, or not this
verifier's; or something to wait for that gives one of these."""


class Verifier(Protocol):
    """Knows one kind of credential."""

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Verdict:
        """The principal that the request acts for.

        Args:
            presented: the credential where the configuration looks for one, None where there is none. A cookie among
                them counts only from an allowed page, which the caller sees to.
            facts: the rest of the request. A verifier that reads a header or cookie there is a `Reading` too, and one
                that believes another cookie must ask `cookie_allowed` itself.
            now: unix seconds by the wall clock.

        Raises:
            Exception: it cannot be found out; the request ends with an error.
        """


class Carriers(NamedTuple):
    """Parts of a request that may hold a credential.

    Attributes:
        headers: names, in any case.
        cookies: names; case counts.
    """

    headers: frozenset[str] = frozenset()
    cookies: frozenset[str] = frozenset()


@runtime_checkable
class Reading(Protocol):
    """A verifier that reads more of a request than the credential that was presented. It must say so: what it names
    reaches no upstream, and a request that has any of it and is known to nobody is refused."""

    @property
    def carriers(self) -> Carriers:
        """The headers and cookies that it reads."""


def carriers_of(verifiers: Iterable[Verifier]) -> Carriers:
    """All that these verifiers read beside the credential that was presented; headers in lower case."""
    read = [verifier.carriers for verifier in verifiers if isinstance(verifier, Reading)]
    headers = frozenset(name.lower() for each in read for name in each.headers)
    return Carriers(headers, frozenset(name for each in read for name in each.cookies))


@runtime_checkable
class Remembering(Protocol):
    """A verifier that remembers what others said of a credential, and can be told to ask them again."""

    def forget(self, principal: str) -> None:
        """Nothing that was said so far of this principal, `kind:id`, counts any more."""


def digest(secret: str) -> str:
    """The sha256 of a secret in lower-case hex, as `auth.keys[].sha256` wants it."""
    return _digest(secret).hex()


def _digest(secret: str) -> bytes:
    # Undecodable bytes of a header arrive as lone surrogates; they match no key, but must not raise either.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Keyring:
    """The static keys, as a verifier.

    Comparing every key would take constant time, but more of it with every key; a plain dict lookup would decide by an
    ordinary comparison. So the first bytes of the digest find the candidates, and a constant-time comparison decides.
    The search can leak whether some stored digest begins like that of a guess. That helps no guess, because nobody can
    choose a secret so that its digest begins in a certain way byte by byte.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: defaultdict[bytes, list[Key]] = defaultdict(list)
        for key in keys:
            self._keys[key.digest[:INDEX]].append(key)

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Principal | None:
        """See `Verifier`; a key is all that is looked at."""
        return None if presented is None else self.match(presented.secret, now)

    def match(self, secret: str, now: float) -> Principal | None:
        """The principal that holds this key, None for any other secret and for an expired key.

        Args:
            secret: what the client presented; empty or above 4096 characters matches nothing.
            now: unix seconds by the wall clock.
        """
        if not 0 < len(secret) <= MAX_SECRET:
            return None
        presented = _digest(secret)
        for key in self._keys.get(presented[:INDEX], ()):
            if hmac.compare_digest(key.digest, presented) and (key.expires is None or now < key.expires):
                return key.principal()
        return None


def find_credential(
    sources: Sequence[str],
    authorization: str | None,
    cookies: Mapping[str, str],
    query: Mapping[str, str],
    cookie: str,
    query_param: str,
) -> Presented | None:
    """The first credential found in the order of `sources`, None when there is none.

    Args:
        sources: any of `header`, `cookie`, `query`.
        authorization: the Authorization header; a scheme other than Bearer is no credential.
        cookies: the request's cookies by name.
        query: the request's decoded query parameters by name.
        cookie: the cookie's name.
        query_param: the parameter's name.

    Source: RFC 6750 2.1; RFC 9110 11.1 (schemes are case-insensitive).
    """
    found: dict[str, Presented] = {
        "header": Presented(_bearer(authorization or ""), "header"),
        "cookie": Presented(cookies.get(cookie, ""), "cookie"),
        "query": Presented(query.get(query_param, ""), "query"),
    }
    return next((found[source] for source in sources if found[source].secret), None)


def _bearer(authorization: str) -> str:
    scheme, _, secret = authorization.strip().partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def cookie_allowed(origin: str | None, sec_fetch_site: str | None, origins: Collection[str]) -> bool:
    """Whether a cookie counts: it was sent by an allowed page or by the gateway's own.

    Args:
        origin: the Origin header.
        sec_fetch_site: the Sec-Fetch-Site header, which a page cannot set.
        origins: `cors.origins`; a `*` in it allows no cookie.

    Source: RFC 6454 7; W3C Fetch Metadata, Sec-Fetch-Site.
    """
    if sec_fetch_site == "same-origin":
        return True
    # "null" is the origin of every sandboxed page, of whatever site.
    return origin is not None and origin not in ("*", "null") and origin in origins


def strip_query(
    raw_query: str, params: Collection[str], also: Callable[[str, str], bool] = lambda name, value: False
) -> str:
    """The query string without the named parameters, however their names are percent-encoded.

    Args:
        raw_query: as received, without `?`.
        params: decoded names.
        also: whether a parameter of another name, given with its value, both decoded, is left out too.

    Source: WHATWG URL 5.1.
    """

    def kept(part: str) -> bool:
        name, _, value = part.partition("=")
        decoded = unquote_plus(name)
        return decoded not in params and not also(decoded, unquote_plus(value))

    return "&".join(part for part in raw_query.split("&") if kept(part))


def client_address(
    peer: str, forwarded_for: str | None, trusted: Sequence[Network], forwarded: Sequence[str] = ()
) -> str:
    """The address of the nearest client that no trusted proxy vouches for.

    A proxy writes one of the two headers, and most pass on the other one as the client sent it. Which is which cannot
    be seen. So where both came and do not name the same client, neither is believed, and the peer is the client:
    nobody gets the address of another client by sending a header.

    Args:
        peer: the other end of the connection; what is no IP address (a unix socket's path, "") is returned, cut at
            64 characters, and is never trusted.
        forwarded_for: X-Forwarded-For, several headers joined by commas. Read from the right. An entry that is no
            address ends the reading: the proxy that wrote it cannot be trusted with the entries before it.
        trusted: `server.trusted_proxies`.
        forwarded: the lines of the Forwarded header, read in the same way.
    """
    nearest = _address(peer)
    if nearest is None:
        return peer[:MAX_PEER]
    if not (forwarded_for or forwarded) or not is_trusted(nearest, trusted):
        return str(nearest)
    claims = []
    if forwarded_for:
        hops = forwarded_for.rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        claims.append(_nearest_client(nearest, (hop for hop in reversed(hops) if not hop.isspace() and hop), trusted))
    if forwarded:
        claims.append(_nearest_client(nearest, _forwarded_hops(forwarded), trusted))
    return str(claims[0] if len(set(claims)) == 1 else nearest)


def _nearest_client(nearest: Address, hops: Iterable[str], trusted: Sequence[Network]) -> Address:
    """Follows the hops, given from the nearest on, for as long as the one who wrote them is trusted."""
    for hop in hops:
        claimed = _address(hop) if is_trusted(nearest, trusted) else None
        if claimed is None:
            break
        nearest = claimed
    return nearest


def _forwarded_hops(lines: Sequence[str]) -> Iterator[str]:
    """The `for` of each element of Forwarded, the nearest first, at most `MAX_HOPS`; "" for what gives no address.

    A line is only read whole: a quote that a client leaves open would hide what a proxy wrote behind it.
    Source: RFC 7239 4.
    """
    left = MAX_HOPS
    for line in reversed(lines):
        if len(line) > MAX_FORWARDED or not _FORWARDED.fullmatch(line):
            yield ""
            return
        elements = [element for element in _ELEMENT.findall(line) if element.strip()]
        for element in reversed(elements[-left:] if left else []):
            named = [value for name, value in _PAIR.findall(element) if name.lower() == "for"]
            yield re.sub(r"\\(.)", r"\1", named[0].strip('"')) if len(named) == 1 else ""
        left -= min(left, len(elements))


def is_trusted(peer: str | Address, trusted: Sequence[Network]) -> bool:
    """Whether the other end of a connection is a proxy whose word counts."""
    if not trusted:
        return False
    address = _address(peer) if isinstance(peer, str) else peer
    return address is not None and any(address in network for network in trusted)


def address_key(address: str) -> str:
    """The name under which an address is limited: an IPv6 address's /64, anything else as it stands.

    Args:
        address: as `client_address` gives it.
    """
    parsed = _address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((parsed, IPV6_PREFIX), strict=False))
    return address[:MAX_PEER] if parsed is None else str(parsed)


@lru_cache(maxsize=4096)  # every request asks twice, and the same clients come again
def _address(text: str) -> Address | None:
    """The address in `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]:80` or `fe80::1%eth0`; None for anything else."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
