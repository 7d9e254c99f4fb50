"""Which requests the admin listener accepts from browsers. It asks for no credential, so the headers must do.

Invariants:

- A page of another site cannot change anything here. A request that changes something must come from our own page, or
  from a client that is no browser and therefore sends neither `Origin` nor `Sec-Fetch-Site`.
- A name that an attacker points at this machine (DNS rebinding) makes his page "our own" origin. So the streams are
  only shown under an IP address, as localhost, or under the name that the listener was configured with: nobody else
  can give those names away.

Probes and metrics are answered under any name: Kubernetes and Prometheus use names of their own, and those answers do
not say who uses the gateway. This file does not know paths.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

LOCAL: Final = "localhost"


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


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
