"""CORS: which pages of other origins may read the gateway's answers.

Every answer has the headers, errors and streams too: a page that may not read an error cannot show it. A preflight has
no credential, so it must need none.

Source: WHATWG Fetch 3.3 (HTTP extensions), 4.8 (CORS-preflight fetch).
"""

from collections.abc import Collection
from typing import Final

from aiohttp import hdrs, web

from gateway.config import Cors
from gateway.web.exchange import COMMON, NEVER, Exchange, listed

EXPOSED: Final = "X-Stream-Id, X-Request-Id, Retry-After, RateLimit, RateLimit-Policy"
MAX_ASKED: Final = 1024
"""Characters of `Access-Control-Request-Headers` that are repeated in the answer; no honest request has more."""


def cors_headers(cors: Cors, origins: Collection[str], origin: str | None) -> dict[str, str]:
    """The headers for a page of this origin; none that allow anything if it may not read the answer."""
    if origin is None or not origins:
        return {}
    if "*" not in origins and origin not in origins:
        return {hdrs.VARY: "Origin"}
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*" if "*" in origins else origin,
        hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: EXPOSED,
        hdrs.VARY: "Origin",
    }
    if cors.credentials:
        headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
    return headers


def is_preflight(request: web.BaseRequest) -> bool:
    """Whether this is a browser's question before the real request."""
    return request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def preflight(exchange: Exchange) -> web.Response:
    """The answer to a preflight."""
    headers = dict(exchange.headers)
    if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
        asked = listed(exchange.request.headers, hdrs.ACCESS_CONTROL_REQUEST_HEADERS)[:MAX_ASKED]
        methods = exchange.endpoint.kind.methods
        wanted = exchange.request.headers[hdrs.ACCESS_CONTROL_REQUEST_METHOD][:16]
        headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(sorted(methods or COMMON | {wanted} - NEVER))
        headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(int(exchange.snapshot.config.cors.max_age))
        if asked:
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
    return web.Response(status=204, headers=headers)
