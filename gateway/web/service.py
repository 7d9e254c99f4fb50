"""The entrance: every request becomes an exchange and goes through the pipeline to its endpoint."""

import secrets
from collections.abc import Awaitable
from typing import Final, cast

import msgspec
from aiohttp import hdrs, web

from gateway.core.credential import address_key, is_trusted
from gateway.core.limiter import PER_ADDRESS, Lease, Ledger
from gateway.core.limits import Plan
from gateway.web.connection import Connection
from gateway.web.cors import cors_headers
from gateway.web.exchange import Exchange, client_of, listed
from gateway.web.pipeline import serve
from gateway.web.refusals import refuse_crowd, refuse_unheard, refuse_unparsed
from gateway.web.state import Gateway
from gateway.web.unparsed import REQUEST_ID, Unparsed, read_remains, unparsable

UNCOUNTED: Final = Ledger(Plan(PER_ADDRESS), 0.0).take({}, 0.0)
"""What the connection of a trusted proxy holds: nothing."""


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

    def explain(self, unparsed: Unparsed) -> web.Response:
        """The answer to bytes that are no valid HTTP request, in the shape that their client can use."""
        gateway, remains, error = self._gateway, read_remains(unparsed.head), unparsable(unparsed.said)
        snapshot = gateway.snapshot
        endpoint = snapshot.router.match(remains.path).endpoint
        request_id = remains.request_id or secrets.token_hex(8)
        gateway.metrics.route(endpoint.label).request(remains.method, error.status, 0.0)
        refuse_unparsed(gateway, error, endpoint.label, request_id, unparsed.address)
        body, content_type = endpoint.kind.error_body(error.failure(), request_id)
        headers = {"X-Request-Id": request_id, hdrs.SERVER: "gateway"}
        headers |= cors_headers(snapshot.config.cors, snapshot.origins, remains.origin or None)
        response = web.Response(
            body=msgspec.json.encode(body), status=error.status, content_type=content_type, headers=headers
        )
        response.force_close()
        return response

    def admit(self, address: str) -> Lease | None:
        """A connection of this address begins. What it holds, to be closed at its end; None: the address has too many.

        A trusted proxy has as many as it likes: its clients are counted by the addresses that it names, while their
        requests are answered (`pipeline.limit_address`).
        """
        gateway = self._gateway
        if is_trusted(address, gateway.snapshot.trusted):
            return UNCOUNTED
        lease = gateway.addresses.connect(address_key(address), gateway.clock.now())
        if isinstance(lease, Lease):
            return lease
        gateway.metrics.rate_limit("", PER_ADDRESS)
        refuse_crowd(gateway, address)
        return None

    def turn_away(self, address: str) -> None:
        """A connection is refused because there are too many."""
        refuse_unheard(self._gateway, address)

    def _exchange(self, request: web.BaseRequest) -> Exchange:
        gateway = self._gateway
        snapshot = gateway.snapshot
        given = listed(request.headers, "X-Request-Id")
        exchange_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
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
            address=client_of(request, snapshot.trusted),
            endpoint=endpoint,
            path_params=params,
            headers={"X-Request-Id": exchange_id, hdrs.SERVER: "gateway"},
        )
