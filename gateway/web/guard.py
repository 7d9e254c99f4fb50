"""Which requests of browsers are accepted where no credential is asked for: on the admin listener, and on the main one
of an anonymous gateway. The headers must do; and for what concerns only the one who runs the gateway, the connection.

Invariants:

- A page of another site cannot change anything here. A request that changes something must come from our own page, or
  from a client that is no browser and therefore sends neither `Origin` nor `Sec-Fetch-Site`.
- A name that an attacker points at this machine (DNS rebinding) makes his page "our own" origin. So the streams are
  only shown under an IP address, as localhost, or under the name that the listener was configured with: nobody else
  can give those names away.

- Somebody is taken to run the gateway only where the browser is on this very machine, and no proxy is in between.

Probes and metrics are answered under any name: Kubernetes and Prometheus use names of their own, and those answers do
not say who uses the gateway. This file does not know paths.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOCAL: Final = "localhost"
_FORWARDED: Final = re.compile(
    r"forwarded|via|(x-|true-)?(real|client|remote|cluster)-.*(ip|addr)|x-(forward|original-|envoy-|amzn-|azure-).*|cf-.*"
    r"|fly-.*|fastly-.*|cdn-loop",
    re.IGNORECASE,
)
"""Names of headers that proxies add and no browser sends."""
_OF_BROWSERS: Final = (
    *("Accept-Language", "Origin", "Referer", "Upgrade-Insecure-Requests"),
    *("Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Sec-WebSocket-Key"),
)


def is_known_host(host: str | None, *configured: str) -> bool:
    """Whether a `Host` header names this listener by a name that nobody else controls.

    Args:
        host: the header, None if there was none; browsers always send one.
        configured: the host in `server.admin_listen`; or that in `server.listen`, and `server.hosts`.
    """
    if host is None:
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    return (
        name == LOCAL or name in map(str.lower, configured) or name.endswith(f".{LOCAL}") or _address(name) is not None
    )


def authority_of(target: str) -> str:
    """The host and port in a request's target, "" where it has none; whoever believes the target needs no `Host`.

    Source: RFC 9112 3.2.2.
    """
    scheme, _, rest = target.partition("://")
    return re.split(r"[/?#]", rest, maxsplit=1)[0] if scheme.isalpha() else ""


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether the request comes from a page of this listener, or from no page at all.

    Source: Fetch Metadata Request Headers 2.2, RFC 6454 7.
    """
    origin = headers.get("Origin")
    # A client that is no browser sends neither header. "none" means that the user typed the address.
    ours = origin is None or origin.partition("://")[2] == headers.get("Host")
    return ours and headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def is_browser(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent the request, as far as headers tell.

    A page may choose `Accept-Language` and, in some browsers, `User-Agent`, but it cannot leave them out. What a
    browser says about the page (`Origin`, `Sec-Fetch-Site`) it leaves out under a name without TLS.
    """
    return any(name in headers for name in _OF_BROWSERS) or headers.get("User-Agent", "").startswith("Mozilla/")


def is_of_foreign_page(headers: Mapping[str, str], host: str, origins: Collection[str]) -> bool:
    """Whether a browser says that a page caused the request that is neither this listener's own nor allowed.

    An address that the user typed has no page. A page of another port of this machine is a foreign one.

    Args:
        headers: of the request; of several lines of one header, all must be allowed.
        host: the `Host` header.
        origins: `cors.origins`.

    Source: Fetch Metadata Request Headers 2.2; RFC 6454 7; WHATWG Fetch, "request origin".
    """
    site = headers.get("Sec-Fetch-Site")
    if "Origin" in headers:
        origin = headers["Origin"]
        # The browser knows which port it asked; a `Host` may not say it, and so be that of a page of another port.
        own = _is_own(origin, host) if site is None else site == "same-origin"
        return not (own or origin in origins or "*" in origins)
    if site is not None:
        return site not in ("same-origin", "none")
    referer = headers.get("Referer", "")
    return bool(referer) and not (_is_own(referer, host) or _origin(referer) in origins or "*" in origins)


def _is_own(url: str, host: str) -> bool:
    """Whether a page at this URL is this listener's own. Some proxies leave the port out of `Host`."""
    try:
        page = urlsplit(url)
        return page.netloc == host or (page.hostname is not None and page.hostname == host.lower())
    except ValueError:
        return False


def _origin(url: str) -> str:
    try:
        page = urlsplit(url)
    except ValueError:
        return ""
    return f"{page.scheme}://{page.netloc}"


def is_local(peer: str, headers: Mapping[str, str], proxies: Iterable[Network] = ()) -> bool:
    """Whether a page of this listener asks from this very machine, with no proxy in between that can be noticed.

    A proxy on this machine that adds nothing to a request, and gives it a name of this machine as `Host`, cannot be
    noticed unless it is in `server.trusted_proxies`.

    Args:
        peer: the address at the other end of the connection.
        headers: of the request.
        proxies: the networks of `server.trusted_proxies`.
    """
    address, host = _address(peer), headers.get("Host")
    if address is None or not address.is_loopback or any(address in network for network in proxies):
        return False
    if any(_FORWARDED.fullmatch(name) for name in headers):
        return False
    # A browser on this machine that asked for another address of it would not come from the loopback.
    return is_known_host(host, LOCAL) and (host is None or _is_here(host)) and is_same_origin(headers)


def _is_here(host: str) -> bool:
    """Whether a `Host` that is an address is one of the loopback; names were judged before."""
    address = _address(urlsplit(f"//{host}").hostname or "")
    return address is None or address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address, an IPv4 one also where it is written as IPv6; None for anything else."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
