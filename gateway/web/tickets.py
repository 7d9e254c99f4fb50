"""`POST /tickets`, and tickets as credentials: what the requests around a ticket say to the store of tickets."""

import time
from collections.abc import Awaitable
from typing import Final

from aiohttp import hdrs, web

from gateway.core.credential import address_key
from gateway.core.cursor import parse_cursor, valid_stream_id
from gateway.core.errors import GatewayError
from gateway.identity.tickets import Ticket
from gateway.web.body import parsed, read_small_body
from gateway.web.exchange import Exchange, Kind
from gateway.web.responses import json_response

TICKET: Final = "ticket"
"""The query parameter that holds a ticket."""
MAX_BODY: Final = 4096
"""Bytes of the body that asks for a ticket."""


class IssueTicket(Kind):
    """`POST /tickets`: `{"ticket", "expires_in"}`. With `{"stream_id"}`, the ticket only reads that stream."""

    methods = frozenset({"POST"})

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        exchange.headers[hdrs.CACHE_CONTROL] = "no-store"
        stream_id = await stream_wanted(exchange.request)
        gateway, caller, now = exchange.gateway, exchange.caller, time.time()
        if stream_id is not None and not await _is_readable(exchange, stream_id):
            raise GatewayError("not_found", "There is no such stream.")
        ttl, shared = _ttl(exchange), gateway.shared_tickets
        if shared is not None:
            ticket = await shared.issue(caller, ttl, stream_id or "")
        else:
            ticket = gateway.tickets.issue(caller, ttl, now, stream_id or "")
        left = ttl if caller.expires is None else min(ttl, max(0.0, caller.expires - now))
        return json_response(exchange, {"ticket": ticket, "expires_in": int(left)})


async def stream_wanted(request: web.BaseRequest) -> str | None:
    """The `stream_id` in the body that asks for a ticket, None where it has none. May be asked twice.

    Raises:
        GatewayError: `bad_request`, `body_too_large` or `request_timeout`; `not_found` for what can be no stream.
    """
    body = await read_small_body(request, MAX_BODY)
    fields = await parsed(body) if body.strip() else {}
    if unknown := sorted(fields.keys() - {"stream_id"}):
        raise GatewayError(
            "bad_request", f"The body may have 'stream_id' and nothing else, but has {unknown[0][:64]!r}."
        )
    stream_id = fields.get("stream_id")
    if stream_id is not None and not isinstance(stream_id, str):
        raise GatewayError("bad_request", "'stream_id' must be a string.")
    if stream_id is not None and not valid_stream_id(stream_id):
        raise GatewayError("not_found", "There is no such stream.")
    return stream_id


async def _is_readable(exchange: Exchange, stream_id: str) -> bool:
    gateway, owner = exchange.gateway, exchange.caller.owner
    if gateway.registry.find(stream_id, owner) is not None:
        return True
    return gateway.shared is not None and await gateway.shared.has(stream_id, owner)


def redeem(exchange: Exchange, text: str, now: float) -> Ticket | Awaitable[Ticket | None] | None:
    """The ticket, if it is a credential for this request; or an awaitable of it.

    Args:
        exchange: the request.
        text: the ticket as it was sent.
        now: unix seconds.

    Raises:
        GatewayError: `auth_unavailable`, only from the awaitable: nobody can say at the moment.
    """
    endpoint, request = exchange.endpoint, exchange.request
    if not endpoint.kind.by_ticket or request.method not in ("GET", "POST"):
        return None

    def proof(stream_id: str) -> bool:
        try:
            cursor = parse_cursor(request.headers.get("Last-Event-ID", ""))
        except GatewayError:
            return False
        return cursor.is_final or cursor.stream_id == stream_id

    address, tickets = address_key(exchange.address), exchange.gateway.shared_tickets or exchange.gateway.tickets
    return tickets.redeem(text, endpoint.label, address, now, proof, starts=not endpoint.named_streams)


def starts_stream(exchange: Exchange, ticket: Ticket) -> bool:
    """Whether the request's ticket may start a stream now."""
    return (exchange.gateway.shared_tickets or exchange.gateway.tickets).starts(ticket)


async def claim_ticket(exchange: Exchange, ticket: Ticket) -> None:
    """Where several nodes share tickets, this request alone may start the ticket's stream. You must call
    `release_ticket` when the request ends.

    Raises:
        GatewayError: `auth_unavailable`: another request was first, or nobody can say at the moment.
    """
    if (shared := exchange.gateway.shared_tickets) is not None:
        await shared.claim(ticket, _life(exchange))


def release_ticket(exchange: Exchange, ticket: Ticket) -> None:
    """The request ends: if it has started no stream with its ticket, another one may."""
    if (shared := exchange.gateway.shared_tickets) is not None:
        shared.release(ticket)


def use_ticket(exchange: Exchange, ticket: Ticket, stream_id: str) -> None:
    """The request's ticket has started or found its stream."""
    if (shared := exchange.gateway.shared_tickets) is not None:
        shared.use(ticket, stream_id, _ttl(exchange), _life(exchange))
    else:
        exchange.gateway.tickets.use(ticket, stream_id, _ttl(exchange), time.time())


def ticket_read_out(exchange: Exchange, ticket: Ticket) -> None:
    """The stream of the request's ticket was read to its end."""
    (exchange.gateway.shared_tickets or exchange.gateway.tickets).read_out(ticket)


def _life(exchange: Exchange) -> float:
    """Seconds for which any stream can be read, from its start to the end of its log."""
    return max(route.timeouts.total + route.stream.resume.ttl for route in exchange.snapshot.config.routes)


def _ttl(exchange: Exchange) -> float:
    settings = exchange.snapshot.config.auth.tickets
    assert settings is not None, "without it no ticket is redeemed, and nothing is at this path"
    return settings.ttl
