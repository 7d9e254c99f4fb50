"""Which requests of a browser the admin listener believes: it asks for no credential, so the browser's word must do.

Invariants:

- A page of another site cannot make anything happen here: what changes something must come from our own page, or from
  something that is no browser and says so by saying nothing.
- A name that an attacker points at this machine (DNS rebinding) makes his page our "own" origin. So who wants the
  streams has to call the listener by an IP address, as localhost, or by the name it was configured to listen on: no
  name that somebody else can give away.

Probes and metrics are asked for under any name: Kubernetes and Prometheus have their own for every process, and
nothing there tells who is using the gateway. This file does not know paths.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

LOCAL: Final = "localhost"


def is_known_host(host: str | None, configured: str) -> bool:
    """Whether a `Host` header names this listener in a way that nobody else can.

    Args:
        host: the header, None where there was none, which no browser does.
        configured: the host that `server.admin_listen` names.
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
    ours = origin is None or origin.partition("://")[2] == headers.get("Host")
    return ours and headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
