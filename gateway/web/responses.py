"""Answers that are no stream of a log: JSON, and every error in the shape that its client can use.

An EventSource sees neither the status nor the body of a non-200, and never reconnects after one. So an error that will
pass is sent to it as a 200: `retry:` with the time after which a new attempt makes sense, one `error` event, and the
end. An error that lasts keeps its status, which stops the EventSource for good, as it should.

Source: WHATWG HTML 9.2.2 (processing model), RFC 9457 (problem details), OpenAI API reference (errors).
"""

import math
import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web

from gateway.core.cursor import final_cursor
from gateway.core.errors import GatewayError
from gateway.formats import View
from gateway.streams.frames import error_frame
from gateway.web.exchange import Exchange

STREAM_HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of errors that will pass. An EventSource gets such an error as an event."""


def json_response(exchange: Exchange, body: Any, headers: Mapping[str, str] = MappingProxyType({})) -> web.Response:
    """The body as JSON."""
    return json_text(exchange, msgspec.json.encode(body), headers)


def json_text(exchange: Exchange, body: bytes | str, headers: Mapping[str, str] = MappingProxyType({})) -> web.Response:
    """The body, which is JSON already."""
    return web.Response(
        body=body.encode("utf-8", "replace") if isinstance(body, str) else body,
        content_type="application/json",
        headers={**exchange.headers, **headers},
    )


def error_response(exchange: Exchange, error: GatewayError) -> web.Response:
    """The error, in the shape that the client of this request can use."""
    if error.code == "cursor_expired" and not exchange.endpoint.named_streams:
        return _in_band(exchange, error, final_cursor())
    if exchange.is_eventsource and error.status in PASSING:
        return _in_band(exchange, error)
    headers = {**exchange.headers, **error.headers}
    if error.retry_after is not None:
        headers[hdrs.RETRY_AFTER] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    body, content_type = exchange.endpoint.kind.error_body(error.failure(), exchange.id)
    return web.Response(body=msgspec.json.encode(body), status=error.status, content_type=content_type, headers=headers)


def retry_ms(base: float, retry_after: float | None = None) -> int:
    """Milliseconds after which a browser is to reconnect: `retry_after`, plus three to five quarters of `base`.

    Args:
        base: the route's `retry`, in seconds.
        retry_after: seconds before which a new attempt makes no sense.
    """
    # Random, so that many browsers do not reconnect at the same moment; not secret.
    return int(((retry_after or 0.0) + base * random.uniform(0.75, 1.25)) * 1000)  # noqa: S311


def _in_band(exchange: Exchange, error: GatewayError, cursor: str = "") -> web.Response:
    kind = exchange.endpoint.kind
    bare = exchange.request.method == hdrs.METH_GET
    # The `retry:` counts when its line is complete: it needs no block where the format sends nothing for an error.
    text = f"retry: {retry_ms(kind.retry, error.retry_after)}\n"
    text += error_frame(kind.format, View("", "", "", 0), error, cursor, bare=bare)
    return web.Response(body=text.encode(), headers={**STREAM_HEADERS, **exchange.headers})
