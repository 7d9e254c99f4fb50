"""Authentication: finds the principal that a request acts for, by asking one verifier after the other.

    verifiers[0] --None--> verifiers[1] --None--> ... --None--> `auth.anonymous`, and nothing was presented:
       |        |                                               the client's address; otherwise `unauthorized`
       |        +--an awaitable--> this request waits for it, at most `PATIENCE`, and goes on from there
       v
    Principal --> may it use this endpoint? --> exchange.principal

Invariants:

- Every bad credential gets the same answer, whatever is wrong with it.
- Where nothing is presented, a page of another site starts and reads nothing.
- If a verifier raises or does not answer, the request ends with an error.
- A credential that no verifier knows is an error, also with `auth.anonymous`. Only where there are neither verifiers
  nor tickets, what a client presents is ignored.
- A request waits only if a verifier has to wait, and its stream keeps nothing of that in memory.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Iterator
from itertools import chain
from typing import Final

from aiohttp import hdrs

from gateway.core.cookies import strip_cookies
from gateway.core.credential import (
    Facts,
    Presented,
    Refused,
    Verdict,
    address_key,
    cookie_allowed,
    find_credential,
)
from gateway.core.errors import GatewayError
from gateway.core.principal import ADDRESS, Principal
from gateway.identity.tickets import Ticket
from gateway.observe.metrics import AuthFailure
from gateway.web.exchange import Exchange, all_listed, cookie_header, cookies_of, listed
from gateway.web.guard import is_browser, is_of_foreign_page
from gateway.web.state import Snapshot
from gateway.web.tickets import TICKET, redeem

PATIENCE: Final = 10.0
"""Seconds that one request waits for all its verifiers together, at most."""
COME_BACK: Final = 2.0
"""`retry_after`, in seconds, when a verifier did not answer."""


class VerifierError(Exception):
    """A verifier could not reach what it needs. No `ConnectionError`: that would mean that the client is gone."""


def authenticate(exchange: Exchange) -> Awaitable[None] | None:
    """Sets `exchange.principal` if the endpoint needs one. Returns None when done, or an awaitable that does the rest.
    Raises as `identify`."""
    return None if exchange.endpoint.public else identify(exchange)


def identify(exchange: Exchange) -> Awaitable[None] | None:
    """Sets `exchange.principal`. Returns None when done, or an awaitable that does the rest.

    Raises:
        GatewayError: `unauthorized`, `forbidden`, or `overloaded` where a verifier did not answer in time.
        VerifierError: a verifier failed.
    """
    auth, request, now = exchange.snapshot.config.auth, exchange.request, time.time()
    # As one list, so that of two credentials in two lines none counts: a proxy may have checked the other one.
    authorization = listed(request.headers, hdrs.AUTHORIZATION)
    if auth.tickets is not None and not authorization and (text := request.query.get(TICKET)) is not None:
        # A cookie may come along by itself, but the ticket was put into the URL for this request: it alone counts.
        ticket = redeem(exchange, text, now)
        if isinstance(ticket, Awaitable):
            return _wait_for_ticket(exchange, text, ticket)
        _let_in_by_ticket(exchange, text, ticket)
        return None
    cookies = cookies_of(request)
    presented = find_credential(auth.sources, authorization, cookies, request.query, auth.cookie, auth.query_param)
    facts = Facts(exchange.address, request.headers, cookies, request.query)
    # A generator, so that a verifier is asked only when none before it gave a principal.
    verdicts = (verifier.verify(presented, facts, now) for verifier in exchange.snapshot.verifiers)
    refused = None
    try:
        for verdict in verdicts:
            if isinstance(verdict, Principal):
                _let_in(exchange, presented, verdict)
                return None
            if isinstance(verdict, Refused):
                refused = verdict
            elif verdict is not None:
                return _wait(exchange, presented, chain([verdict], verdicts), refused)
    except (ConnectionError, TimeoutError) as error:
        raise VerifierError from error
    _let_in(exchange, presented, refused)
    return None


async def _wait(
    exchange: Exchange, presented: Presented | None, verdicts: Iterator[Verdict], refused: Refused | None
) -> None:
    _let_in(exchange, presented, await waited_for(verdicts, refused))


async def waited_for(verdicts: Iterable[Verdict], refused: Refused | None = None) -> Principal | Refused | None:
    """The first principal among the verdicts, else the last refusal, else None; each is waited for where it has to be.

    Raises:
        GatewayError: `overloaded`, where they did not come in time.
        VerifierError: a verifier failed.
    """
    final: Principal | Refused | None = refused
    try:
        async with asyncio.timeout(PATIENCE) as patience:
            for verdict in verdicts:
                given = await verdict if isinstance(verdict, Awaitable) else verdict
                final = given if given is not None else final
                if isinstance(final, Principal):
                    break
    except (ConnectionError, TimeoutError) as error:
        if patience.expired():
            detail = "a verifier of credentials did not answer in time"
            raise GatewayError("overloaded", retry_after=COME_BACK, detail=detail) from None
        raise VerifierError from error
    return final


async def _wait_for_ticket(exchange: Exchange, text: str, redeemed: Awaitable[Ticket | None]) -> None:
    ticket, auth = await redeemed, exchange.snapshot.config.auth
    # A configuration that lets nobody in without a credential does not let in their tickets either.
    if ticket is not None and ticket.principal.anonymous and not auth.anonymous:
        ticket = None
    _let_in_by_ticket(exchange, text, ticket)


def _let_in_by_ticket(exchange: Exchange, text: str, ticket: Ticket | None) -> None:
    exchange.ticket = ticket
    _let_in(exchange, Presented(text, "query"), ticket.principal if ticket is not None else None)


def _let_in(exchange: Exchange, presented: Presented | None, verdict: Principal | Refused | None) -> None:
    if isinstance(verdict, Refused):
        raise _unauthorized(exchange, verdict.reason, verdict.detail)
    principal = verdict
    if principal is None:
        auth, carried = exchange.snapshot.config.auth, presented is not None or _carries_others(exchange)
        if not auth.anonymous or (carried and (auth.tickets is not None or exchange.snapshot.verifiers)):
            reason: AuthFailure = "missing" if not carried else "unknown"
            if presented is None and carried and not _page_allowed(exchange):
                reason = "origin"
            raise _unauthorized(exchange, reason)
        _check_page(exchange)
        principal = Principal(ADDRESS, address_key(exchange.address), "default", frozenset({"stream"}))
    elif presented is not None and presented.source == "cookie" and not _page_allowed(exchange):
        raise _unauthorized(exchange, "origin")
    exchange.principal = principal
    scope = exchange.endpoint.scope
    if scope not in principal.scopes:
        exchange.gateway.metrics.auth_failure("scope")
        exchange.blamed = "scope"
        raise GatewayError("forbidden", f"This credential's scopes do not include {scope!r}.")


def _check_page(exchange: Exchange) -> None:
    """Returns unless a page of another site asks, whose user may not even see it.

    Raises:
        GatewayError: `forbidden`.
    """
    headers = exchange.request.headers
    if not is_browser(headers):
        return
    told = all_listed(headers, "Origin", "Sec-Fetch-Site", "Referer")
    if is_of_foreign_page(told, listed(headers, hdrs.HOST), exchange.snapshot.origins):
        exchange.gateway.metrics.auth_failure("origin")
        exchange.blamed = "origin"
        raise GatewayError("forbidden", "Pages of this origin may not use this gateway; see cors.origins.")


def _unauthorized(exchange: Exchange, reason: AuthFailure, detail: str = "") -> GatewayError:
    exchange.gateway.metrics.auth_failure(reason)
    exchange.blamed = reason
    return GatewayError("unauthorized", detail=detail)


def _page_allowed(exchange: Exchange) -> bool:
    headers = exchange.request.headers
    return cookie_allowed(listed(headers, hdrs.ORIGIN), listed(headers, "Sec-Fetch-Site"), exchange.snapshot.origins)


def _carries_others(exchange: Exchange) -> bool:
    """Whether the request has a cookie or header that a verifier reads beside the credential that is presented."""
    read, headers = exchange.snapshot.carriers, exchange.request.headers
    if any(name in headers for name in read.headers):
        return True
    cookies = cookie_header(headers) if read.cookies else ""
    return strip_cookies(cookies, read.cookies) != cookies


def own_cookies(snapshot: Snapshot) -> frozenset[str]:
    """The names of the cookies that may be credentials."""
    return snapshot.carriers.cookies | {snapshot.config.auth.cookie}


def own_headers(snapshot: Snapshot) -> frozenset[str]:
    """The names, in lower case, of the headers that may be credentials."""
    return snapshot.carriers.headers | {"authorization"}


def knows_credentials(snapshot: Snapshot) -> bool:
    """Whether what a client sends can be a credential of the gateway, which must not reach an upstream. Tickets are
    apart, as they have a parameter of their own."""
    return bool(snapshot.verifiers) or not snapshot.config.auth.anonymous
