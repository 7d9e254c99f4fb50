"""Which requests of browsers are accepted where no credential is asked for, as on the admin listener. The headers must
do; and for what concerns only the one who runs the gateway, the connection.

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
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

LOCAL: Final = "localhost"
_FORWARDED: Final = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
"""Headers of proxies, beside all that begin with `x-forwarded`."""


def is_known_host(host: str | None, configured: str) -> bool:
    """Whether a `Host` header names this listener by a name that nobody else controls.

    Args:
        host: the header, None if there was none; browsers always send one.
        configured: the host in `server.admin_listen`.
    """
    if host is None:
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    return name in (LOCAL, configured.lower()) or name.endswith(f".{LOCAL}") or _is_address(name)


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether the request comes from a page of this listener, or from no page at all.

    Source: Fetch Metadata Request Headers 2.2, RFC 6454 7.
    """
    origin = headers.get("Origin")
    # A client that is no browser sends neither header. "none" means that the user typed the address.
    ours = origin is None or origin.partition("://")[2] == headers.get("Host")
    return ours and headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def is_local(peer: str, headers: Mapping[str, str]) -> bool:
    """Whether a page of this listener asks from this very machine, with no proxy in between that says so.

    Args:
        peer: the address at the other end of the connection.
        headers: of the request.
    """
    names = {name.lower() for name in headers}
    forwarded = names & _FORWARDED or any(name.startswith("x-forwarded") for name in names)
    return (
        not forwarded and _is_loopback(peer) and is_known_host(headers.get("Host"), LOCAL) and is_same_origin(headers)
    )


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
