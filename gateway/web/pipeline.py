"""The pipeline that every request goes through before its handler: a list of middlewares, and a loop.

A middleware is a plain function that does one thing:

    it returns None              the request passes
    it returns a response        that is the answer
    it returns an awaitable      `answer` awaits it, then the request passes
    it raises a `GatewayError`   `answer` makes a response of it

Middlewares run before the handler and are not wrapped around it: a stream lives as long as its handler, and each Python
frame around it would cost a quarter of a KiB for all that time. Only `serve` and `answer` are around a handler.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web

from gateway.core.credential import address_key, is_trusted
from gateway.core.errors import GatewayError
from gateway.core.limiter import PER_ADDRESS, Lease, Refusal
from gateway.web.aiohttp_internals import answer_as_http_1
from gateway.web.cors import cors_headers, is_preflight, preflight
from gateway.web.credentials import authenticate
from gateway.web.exchange import Committed, Exchange, listed, peer_address
from gateway.web.guard import authority_of, is_browser, is_known_host
from gateway.web.rate_limit_headers import rate_limit_headers
from gateway.web.refusals import refuse
from gateway.web.responses import error_response
from gateway.web.tickets import release_ticket
from gateway.web.unparsed import has_known_version

Middleware = Callable[[Exchange], web.StreamResponse | Awaitable[None] | None]


async def serve(exchange: Exchange) -> web.StreamResponse:
    """The answer to one request. The request is counted and logged exactly once, also if its client left."""
    status = 499
    # The parser reads nothing behind a request for another protocol. The client is told, and the connection ends.
    other_protocol = hdrs.UPGRADE in exchange.request.headers or not has_known_version(exchange.request)
    if other_protocol:
        exchange.headers[hdrs.CONNECTION] = "close"
    try:
        response = await answer(exchange)
        if other_protocol:
            response.force_close()
        # The head of a stream that failed said 200, but it is counted and logged as 500.
        failed = exchange.committed is not None and exchange.committed.failed
        status = 500 if failed else response.status
    finally:
        exchange.free_body()
        if exchange.ticket is not None:
            release_ticket(exchange, exchange.ticket)
        if exchange.slot is not None:
            exchange.slot.close(exchange.gateway.clock.now())
        _record(exchange, status)
    return response


async def answer(exchange: Exchange) -> web.StreamResponse:
    """The answer of the pipeline or of the endpoint. This is the boundary of errors:

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
                passed = None  # a stream must not keep the finished wait in memory
        answered = await exchange.endpoint.kind.answer(exchange)
        return answered if isinstance(answered, web.StreamResponse) else await answered
    except GatewayError as error:
        # Not kept in a variable behind this block: the error's traceback holds this frame, and with it the request.
        if exchange.committed is None:
            response = error_response(exchange, error)
            _note(exchange, error, response)
            return response
        return await _end_committed(exchange, exchange.committed, error)
    except ConnectionError:
        raise
    except Exception as error:  # a TimeoutError too: aiohttp would answer it with a head, whatever was sent
        exchange.gateway.logger.error("request_failed", request_id=exchange.id, exc_info=error)
        if exchange.committed is None:
            return error_response(exchange, GatewayError("internal"))
        return await _end_committed(exchange, exchange.committed, GatewayError("internal"))


async def _end_committed(exchange: Exchange, committed: Committed, failure: GatewayError) -> web.StreamResponse:
    """Ends a response whose head was sent. A client would read a second head as a part of the body."""
    committed.failed = True
    committed.response.force_close()
    try:
        if committed.fail is not None:
            await committed.fail(failure)
        else:
            exchange.connection.abort()
    except Exception:  # noqa: BLE001  # no error can be sent, or the client is gone; the failure was logged before
        exchange.connection.abort()
    return committed.response


def share(exchange: Exchange) -> None:
    """Adds the CORS headers, which errors have too."""
    headers = exchange.request.headers
    origin = listed(headers, hdrs.ORIGIN) if hdrs.ORIGIN in headers else None
    exchange.headers |= cors_headers(exchange.snapshot.config.cors, exchange.snapshot.origins, origin)


def check_version(exchange: Exchange) -> None:
    """Refuses a request of another version than HTTP/1.0 and 1.1, whatever it asks for."""
    if not has_known_version(exchange.request):
        answer_as_http_1(exchange.request)
        raise GatewayError("bad_request", "The request's first line must end in HTTP/1.1 or HTTP/1.0.")


def allow_page(exchange: Exchange) -> web.StreamResponse | None:
    """Answers preflights before anything that a preflight cannot have is asked for."""
    return preflight(exchange) if is_preflight(exchange.request) else None


def limit_address(exchange: Exchange) -> None:
    """Refuses an address that sends requests too fast, or too many at once, whatever their credentials.

    What came over a connection of the address's own was counted with that connection (`WebService.admit`).
    """
    gateway, address, now = exchange.gateway, address_key(exchange.address), exchange.started
    _refuse_address(exchange, gateway.addresses.request(address, now))
    if not is_trusted(peer_address(exchange.request), exchange.snapshot.trusted):
        return
    lease = gateway.addresses.connect(address, now)
    if isinstance(lease, Lease):
        exchange.slot = lease
    else:
        _refuse_address(exchange, lease)


def check_name(exchange: Exchange) -> None:
    """Refuses browsers that ask an anonymous gateway under a name that somebody else may own (DNS rebinding)."""
    config, request = exchange.snapshot.config, exchange.request
    if not config.auth.anonymous or not is_browser(request.headers):
        return
    origins = exchange.snapshot.origins
    if ("*" in origins and hdrs.ORIGIN in request.headers) or listed(request.headers, hdrs.ORIGIN) in origins:
        return  # a page of that origin may use the gateway under any name, and no other page can give itself its origin
    names = {listed(request.headers, hdrs.HOST), authority_of(request.raw_path)} - {""}
    if all(is_known_host(name, config.server.listen.host, *config.server.hosts) for name in names):
        return
    raise GatewayError(
        "unknown_host",
        "Without credentials, browsers may ask this gateway by IP address, as localhost, or by a name in server.hosts.",
    )


def check_method(exchange: Exchange) -> None:
    """Refuses methods that the endpoint does not allow."""
    exchange.endpoint.check_method(exchange.request.method)


def check_target(exchange: Exchange) -> None:
    """Refuses a path or query that is no UTF-8, which would be read with other characters than its client meant."""
    target = exchange.request.raw_path
    if exchange.endpoint.kind.any_encoding or ("%" not in target and target.isascii()):
        return
    try:
        unquote_to_bytes(target.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise GatewayError("bad_request", "The path or the query is not valid UTF-8; encode it as UTF-8.") from None


PIPELINE: Final[Sequence[Middleware]] = (
    share,
    check_version,
    allow_page,
    limit_address,
    check_name,
    check_target,
    check_method,
    authenticate,
)


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


def _note(exchange: Exchange, error: GatewayError, response: web.StreamResponse) -> None:
    """Logs an error that is sent instead of an answer, unless it is a generation's own, which that has logged."""
    account = exchange.account
    if account is None:
        refuse(exchange, error, response)
    elif account.outcome in (None, "completed"):
        exchange.gateway.logger.warning(
            "answer_not_sent", code=error.code, detail=error.detail, route=account.route, **account.facts
        )


def _refuse_address(exchange: Exchange, refusal: Refusal | None) -> None:
    if refusal is None:
        return
    exchange.gateway.metrics.rate_limit("", PER_ADDRESS)
    exchange.limit = f"limits.per_address.{'requests' if refusal.code == 'rate_limited' else 'connections'}"
    raise GatewayError(
        "rate_limited",
        "Too many requests from this address.",
        retry_after=refusal.retry_after,
        headers=rate_limit_headers([refusal.quota], refusal),
    )
