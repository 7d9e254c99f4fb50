"""What is logged of a client that is refused: one place for every refusal of the main listener.

    in the pipeline, by a status or in band    `refuse`            401 403 404 405 408 413 421 429 503 and their like
    by the parser, before there is a request   `refuse_unparsed`   400 431
    before anything was read                   `refuse_unheard`    503, more connections than allowed
                                               `refuse_crowd`      429, more of one address than allowed

An error of a generation that was admitted is no refusal: the generation logs it (`observe/failures.py`).

Nothing of a query, a body or a credential is logged. The path is the route's; where there is none, it is the path that
was asked for, shortened and without what looks like a key.
"""

from typing import Final

from aiohttp import web

from gateway.core.errors import ERROR_KINDS, GatewayError
from gateway.core.limits import Plan
from gateway.observe.failures import cleaned_path
from gateway.web.exchange import Exchange
from gateway.web.state import Gateway

LIMITS: Final = {
    "body_too_large": "server.max_body",
    "headers_too_large": "the size of a request's head",
    "request_timeout": "the time of a request's body",
}
"""Limits that are no plan's, by the code of their error."""
OTHER: Final = "other"


def refuse(exchange: Exchange, error: GatewayError, response: web.StreamResponse) -> None:
    """Logs that this request was refused with this error, which the response tells its client."""
    endpoint, request = exchange.endpoint, exchange.request
    path = endpoint.label if endpoint.label.startswith("/") else cleaned_path(request.rel_url.raw_path)
    exchange.gateway.refusals.note(
        exchange.blamed or _reason(error.code),
        code=error.code,
        status=error.status,
        in_band=response.status != error.status,
        limit=exchange.limit or LIMITS.get(error.code),
        method=request.method[:16],
        path=path,
        principal=str(exchange.principal) if exchange.principal else None,
        address=exchange.address,
        request_id=exchange.id,
        detail=error.detail or None,
    )


def refuse_unparsed(gateway: Gateway, error: GatewayError, label: str, request_id: str, address: str) -> None:
    """Logs that a request made no sense, or that its head was too large.

    Args:
        gateway: what the process shares.
        error: the error.
        label: of the endpoint to which its path leads, where that could be read.
        request_id: in the answer.
        address: the address that sent it.
    """
    gateway.refusals.note(
        _reason(error.code),
        code=error.code,
        status=error.status,
        limit=LIMITS.get(error.code),
        path=label if label.startswith("/") else None,
        address=address,
        request_id=request_id,
    )


def refuse_unheard(gateway: Gateway, address: str) -> None:
    """Logs that a connection was refused because there are too many."""
    gateway.refusals.note(
        "too_many_connections", code="overloaded", status=503, limit="server.max_connections", address=address
    )


def refuse_crowd(gateway: Gateway, address: str) -> None:
    """Logs that a connection was refused because its address has too many."""
    gateway.refusals.note(
        "too_many_connections",
        code="rate_limited",
        status=429,
        limit="limits.per_address.connections",
        address=address,
    )


def limit_of(plan: Plan, name: str) -> str:
    """How a log line names one limit of a plan."""
    return f"plans.{plan.name}.{name}"


def _reason(code: str) -> str:
    return code if code in ERROR_KINDS else OTHER
