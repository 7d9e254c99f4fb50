"""The entrance: every request becomes an exchange and goes through the pipeline to its endpoint."""

import re
import secrets
from collections.abc import Awaitable
from typing import Final, cast

from aiohttp import hdrs, web

from gateway.core.credential import client_address
from gateway.web.connection import Connection
from gateway.web.exchange import Exchange, peer_address
from gateway.web.pipeline import serve
from gateway.web.refusals import refuse_unheard, refuse_unparsed
from gateway.web.responses import unparsable, unparsable_response
from gateway.web.state import Gateway

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class WebService:
    """Answers requests to the main listener.

    Args:
        gateway: what the process shares; its snapshot may be replaced at any time.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """An awaitable of the answer to one request. When this returns, the request has begun for its connection."""
        return serve(self._exchange(request))

    def explain(self, status: int, message: str, address: str) -> web.Response:
        """The answer to bytes that are no valid HTTP request."""
        error = unparsable(message)
        self._gateway.metrics.route("_none").request("other", status, 0.0)
        refuse_unparsed(self._gateway, error, address)
        return unparsable_response(error)

    def turn_away(self, address: str) -> None:
        """A connection is refused because there are too many."""
        refuse_unheard(self._gateway, address)

    def _exchange(self, request: web.BaseRequest) -> Exchange:
        gateway = self._gateway
        snapshot = gateway.snapshot
        given = request.headers.get("X-Request-Id", "")
        exchange_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        endpoint, params = snapshot.router.match(request.rel_url.raw_path)
        connection = cast(Connection, request.protocol)
        connection.begin()
        return Exchange(
            request=request,
            connection=connection,
            gateway=gateway,
            snapshot=snapshot,
            id=exchange_id,
            started=gateway.clock.now(),
            address=client_address(peer_address(request), request.headers.get(hdrs.X_FORWARDED_FOR), snapshot.trusted),
            endpoint=endpoint,
            path_params=params,
            headers={"X-Request-Id": exchange_id, hdrs.SERVER: "gateway"},
        )
