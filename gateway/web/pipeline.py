"""The pipeline that every request goes through on its way to its handler: a list of middlewares, and a loop.

Each of them is a plain function that does one thing. It returns None to let the request pass, or the answer to it, or
something that `answer` awaits before it goes on, or it raises what `answer` shapes into a response. Nothing is wrapped
around the handler but `serve` and `answer`: a stream lives inside its request, where each frame costs a quarter of a
KiB for as long as it lasts. A wait, too, is over before the handler begins.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import hdrs, web

from gateway.core.credential import address_key
from gateway.core.errors import GatewayError
from gateway.core.limiter import PER_ADDRESS, Lease, Refusal
from gateway.web.cors import cors_headers, is_preflight, preflight
from gateway.web.credentials import authenticate
from gateway.web.exchange import Committed, Exchange
from gateway.web.rate_limit_headers import rate_limit_headers
from gateway.web.responses import error_response

Middleware = Callable[[Exchange], web.StreamResponse | Awaitable[None] | None]


async def serve(exchange: Exchange) -> web.StreamResponse:
    """The answer to one request, which is counted and logged once, also where its client left."""
    status = 499
    try:
        response = await answer(exchange)
        # A stream that failed was answered 200; what is counted is how it went.
        failed = exchange.committed is not None and exchange.committed.failed
        status = 500 if failed else response.status
    finally:
        if exchange.place is not None:
            exchange.place.close(exchange.gateway.clock.now())
        _record(exchange, status)
    return response


async def answer(exchange: Exchange) -> web.StreamResponse:
    """What the pipeline or the endpoint answers. This is the boundary of errors:

                   before a head was sent                after it (`exchange.committed`)
    GatewayError   the error as a response               one error event, or the connection is aborted
    anything else  `internal` as a response, logged      the same with `internal`, logged
    the client     nothing: raised, the connection ends  the same
    left
    """
    try:
        for middleware in PIPELINE:
            if (passed := middleware(exchange)) is not None:
                if isinstance(passed, web.StreamResponse):
                    return passed
                await passed
                passed = None  # the stream that may follow is to keep nothing of the wait
        return await exchange.endpoint.kind.answer(exchange)
    except GatewayError as error:
        if error.detail:
            exchange.gateway.logger.info("refused", request_id=exchange.id, code=error.code, detail=error.detail)
        # Not kept in a variable behind this block: the error's traceback holds this frame, and with it the request.
        if exchange.committed is None:
            return error_response(exchange, error)
        return await _end_committed(exchange, exchange.committed, error)
    except ConnectionError:
        raise
    except Exception as error:  # a TimeoutError too: aiohttp would answer it with a head, whatever was sent
        exchange.gateway.logger.error("request_failed", request_id=exchange.id, exc_info=error)
        if exchange.committed is None:
            return error_response(exchange, GatewayError("internal"))
        return await _end_committed(exchange, exchange.committed, GatewayError("internal"))


async def _end_committed(exchange: Exchange, committed: Committed, failure: GatewayError) -> web.StreamResponse:
    """The response whose head was sent, ended: a second head would be read as a part of its body."""
    committed.failed = True
    committed.response.force_close()
    try:
        if committed.fail is not None:
            await committed.fail(failure)
        else:
            exchange.connection.abort()
    except Exception:  # noqa: BLE001  # the client cannot be told, or is gone; why was logged before
        exchange.connection.abort()
    return committed.response


def share(exchange: Exchange) -> web.StreamResponse | None:
    """Tells browsers which pages may read the answer, and answers preflights before anything else is asked."""
    origin = exchange.request.headers.get(hdrs.ORIGIN)
    exchange.headers |= cors_headers(exchange.snapshot.config.cors, exchange.snapshot.origins, origin)
    return preflight(exchange) if is_preflight(exchange.request) else None


def limit_address(exchange: Exchange) -> None:
    """Holds every client address to its request rate and its number of requests at once, whatever its credential."""
    gateway, address, now = exchange.gateway, address_key(exchange.address), exchange.started
    _refuse_address(exchange, gateway.addresses.request(address, now))
    lease = gateway.addresses.connect(address, now)
    if isinstance(lease, Lease):
        exchange.place = lease
    else:
        _refuse_address(exchange, lease)


def check_method(exchange: Exchange) -> None:
    """Refuses methods that the endpoint does not have."""
    exchange.endpoint.check_method(exchange.request.method)


PIPELINE: Final[Sequence[Middleware]] = (share, limit_address, check_method, authenticate)


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
        principal=str(exchange.principal) if exchange.principal else None,
    )


def _refuse_address(exchange: Exchange, refusal: Refusal | None) -> None:
    if refusal is None:
        return
    exchange.gateway.metrics.rate_limit("", PER_ADDRESS)
    raise GatewayError(
        "rate_limited",
        "Too many requests from this address.",
        retry_after=refusal.retry_after,
        headers=rate_limit_headers([refusal.quota], refusal),
    )
