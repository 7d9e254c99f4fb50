"""`/page/failure`: why a stream failed, for the chat page of somebody who runs the gateway and tries it out.

    GET /page/failure?stream=ID     of a stream whose id the page was sent
    GET /page/failure?request=ID    of a request that failed before there was a stream for it: its `X-Request-Id`

The answer is a record as `GET /failures` of the admin listener shows it. It is 404 for everybody but a browser on this
machine (`guard.is_local`), for other principals' failures, and for what is not known (any more). The last failures are
in the memory of each worker; a request that names a stream reaches the worker that had it.
"""

from aiohttp import hdrs, web

from gateway.core.errors import GatewayError
from gateway.observe.failures import Failed
from gateway.web.credentials import identify
from gateway.web.exchange import Exchange, Kind, peer_address
from gateway.web.guard import is_local
from gateway.web.responses import json_response


class FailureDetails(Kind):
    """Shows one failure. Its endpoint is public, so that who may not know of it gets 404 and is asked for no key."""

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        if not is_local(peer_address(exchange.request), exchange.request.headers, exchange.snapshot.trusted):
            raise GatewayError("not_found")
        if (waiting := identify(exchange)) is not None:
            await waiting
        failed = _found(exchange)
        if failed is None:
            raise GatewayError("not_found")
        return json_response(exchange, failed.public(), {hdrs.CACHE_CONTROL: "no-store"})


def _found(exchange: Exchange) -> Failed | None:
    """The newest failure of the caller's that the query names; that of the stream rather than one of its attempts."""
    query, caller = exchange.request.query, str(exchange.caller)
    stream, request = query.get("stream", ""), query.get("request", "")
    own = [
        failed
        for failed in exchange.gateway.engine.failures.recent.newest()
        if failed.principal == caller and (failed.stream_id == stream if stream else failed.request_id == request)
    ]
    return next((failed for failed in own if failed.kind == "stream"), own[0] if own else None)
