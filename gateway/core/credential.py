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
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple, Protocol
from urllib.parse import unquote_plus

import msgspec

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
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    query: Mapping[str, str]


Verdict = Principal | None | Awaitable[Principal | None]
"""The principal; None for a credential that is not valid, or not this verifier's; or something to wait for that gives
one of the two."""


class Verifier(Protocol):
    """Knows one kind of credential."""

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Verdict:
        """The principal that the request acts for.

        Args:
            presented: the credential where the configuration looks for one, None where there is none. A cookie among
                them counts only from an allowed page, which the caller sees to.
            facts: the rest of the request. A verifier that believes another cookie must ask `cookie_allowed` itself.
            now: unix seconds by the wall clock.

        Raises:
            Exception: it cannot be found out; the request ends with an error.
        """


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


def strip_cookie(cookie_header: str, name: str) -> str:
    """The Cookie header without the named cookie, "" when nothing is left.

    Source: RFC 6265 4.2.1.
    """
    pairs = cookie_header.split(";")
    kept = [pair for pair in pairs if pair.partition("=")[0].strip() != name]
    return cookie_header if len(kept) == len(pairs) else ";".join(kept).lstrip()


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """The address of the nearest client that no trusted proxy vouches for.

    Args:
        peer: the other end of the connection; what is no IP address (a unix socket's path, "") is returned, cut at
            64 characters, and is never trusted.
        forwarded_for: X-Forwarded-For, several headers joined by commas. Read from the right. An entry that is no
            address ends the reading: the proxy that wrote it cannot be trusted with the entries before it.
        trusted: `server.trusted_proxies`.
    """
    nearest = _address(peer)
    if nearest is None:
        return peer[:MAX_PEER]
    for hop in reversed((forwarded_for or "").rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
        claimed = _address(hop) if any(nearest in network for network in trusted) else None
        if claimed is None:
            break
        nearest = claimed
    return str(nearest)


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether the other end of a connection is a proxy whose word counts."""
    address = _address(peer) if trusted else None
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
