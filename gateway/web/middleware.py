"""The pipeline that every request goes through: a list of middlewares, and a loop that stacks them.

Each of them is a function from a handler to a handler and does one thing. Their order is `PIPELINE`'s: what counts
and logs stands outside, what may refuse stands inside of what shapes refusals.
"""

import time
from collections.abc import Sequence
from functools import reduce
from typing import Final

from aiohttp import hdrs, web

from gateway.core.credential import Presented, Principal, address_key, cookie_allowed, find_credential
from gateway.core.errors import GatewayError
from gateway.core.quota import Lease, Refusal, rate_limit_headers
from gateway.metrics import AuthFailure
from gateway.web.cors import cors_headers, is_preflight, preflight
from gateway.web.exchange import Exchange, Handler, Middleware
from gateway.web.responses import error_response


def stack(middlewares: Sequence[Middleware], handler: Handler) -> Handler:
    """The handler inside all middlewares, the first of them outermost."""
    return reduce(lambda inner, outer: outer(inner), reversed(middlewares), handler)


def observe(handler: Handler) -> Handler:
    """Counts and logs every request, once, also those whose client left."""

    async def observed(exchange: Exchange) -> web.StreamResponse:
        status = 499
        try:
            response = await handler(exchange)
            status = response.status
        finally:
            _record(exchange, status)
        return response

    return observed


def shape_errors(handler: Handler) -> Handler:
    """Turns what was raised into an answer; what nobody foresaw becomes `internal` and a line in the log."""

    async def shaped(exchange: Exchange) -> web.StreamResponse:
        try:
            return await handler(exchange)
        except GatewayError as error:
            if error.detail:
                exchange.gateway.logger.info("refused", request_id=exchange.id, code=error.code, detail=error.detail)
            return error_response(exchange, error)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            exchange.gateway.logger.error("request_failed", request_id=exchange.id, exc_info=error)
            return error_response(exchange, GatewayError("internal"))

    return shaped


def share(handler: Handler) -> Handler:
    """Tells browsers which pages may read the answer, and answers preflights before anything else is asked."""

    async def shared(exchange: Exchange) -> web.StreamResponse:
        origin = exchange.request.headers.get(hdrs.ORIGIN)
        exchange.headers |= cors_headers(exchange.snapshot.config.cors, exchange.snapshot.origins, origin)
        if is_preflight(exchange.request):
            return preflight(exchange)
        return await handler(exchange)

    return shared


def limit_address(handler: Handler) -> Handler:
    """Holds every client address to its request rate and its number of requests at once, whoever it claims to be."""

    async def limited(exchange: Exchange) -> web.StreamResponse:
        gateway, address, now = exchange.gateway, address_key(exchange.address), exchange.started
        _refuse_address(exchange, gateway.addresses.request(address, now))
        lease = gateway.addresses.connect(address, now)
        if isinstance(lease, Refusal):
            _refuse_address(exchange, lease)
        assert isinstance(lease, Lease)
        try:
            return await handler(exchange)
        finally:
            lease.close(gateway.clock.now())

    return limited


def check_method(handler: Handler) -> Handler:
    """Refuses methods that the endpoint does not have."""

    async def checked(exchange: Exchange) -> web.StreamResponse:
        exchange.endpoint.check_method(exchange.request.method)
        return await handler(exchange)

    return checked


def authenticate(handler: Handler) -> Handler:
    """Finds out who asks. One answer to every bad credential, whatever is wrong with it."""

    async def authenticated(exchange: Exchange) -> web.StreamResponse:
        if not exchange.endpoint.public:
            exchange.principal = _identify(exchange)
            if "stream" not in exchange.principal.scopes:
                exchange.gateway.metrics.auth_failure("scope")
                raise GatewayError("forbidden", "This credential's scopes do not include 'stream'.")
        return await handler(exchange)

    return authenticated


PIPELINE: Final[Sequence[Middleware]] = (observe, share, shape_errors, limit_address, check_method, authenticate)


def _record(exchange: Exchange, status: int) -> None:
    gateway, request = exchange.gateway, exchange.request
    seconds = gateway.clock.now() - exchange.started
    gateway.metrics.route(exchange.endpoint.label).request(request.method, status, seconds)
    gateway.logger.info(
        "request",
        request_id=exchange.id,
        method=request.method[:16],
        route=exchange.endpoint.label,
        status=status,
        duration_ms=round(seconds * 1000, 1),
        address=exchange.address,
        principal=exchange.principal.id if exchange.principal else None,
    )


def _refuse_address(exchange: Exchange, refusal: Refusal | None) -> None:
    if refusal is None:
        return
    exchange.gateway.metrics.rate_limit("", "address")
    raise GatewayError(
        "rate_limited",
        "Too many requests from this address.",
        retry_after=refusal.retry_after,
        headers=rate_limit_headers([refusal.quota], refusal),
    )


def _identify(exchange: Exchange) -> Principal:
    presented = _presented(exchange)
    anonymous = exchange.snapshot.config.auth.anonymous
    if presented is not None:
        principal = exchange.snapshot.keyring.match(presented.secret, time.time())
        if principal is not None:
            return _believed(exchange, principal, presented)
        if not anonymous or exchange.snapshot.config.auth.keys:
            raise _unauthorized(exchange, "unknown")
    if not anonymous:
        raise _unauthorized(exchange, "missing")
    return Principal(address_key(exchange.address), "default", frozenset({"stream"}), anonymous=True)


def _believed(exchange: Exchange, principal: Principal, presented: Presented) -> Principal:
    headers = exchange.request.headers
    if presented.source == "cookie" and not cookie_allowed(
        headers.get(hdrs.ORIGIN), headers.get("Sec-Fetch-Site"), exchange.snapshot.origins
    ):
        raise _unauthorized(exchange, "origin")
    exchange.credential_source = presented.source
    return principal


def _presented(exchange: Exchange) -> Presented | None:
    auth, request = exchange.snapshot.config.auth, exchange.request
    return find_credential(
        auth.sources,
        request.headers.get(hdrs.AUTHORIZATION),
        request.cookies,
        request.query,
        auth.cookie,
        auth.query_param,
    )


def _unauthorized(exchange: Exchange, reason: AuthFailure) -> GatewayError:
    exchange.gateway.metrics.auth_failure(reason)
    return GatewayError("unauthorized")
