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
- A credential that no verifier knows is an error, also with `auth.anonymous`. Only where there are no verifiers at all,
  what a client presents is ignored.
- A request waits only if a verifier has to wait, and its stream keeps nothing of that in memory.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from itertools import chain
from typing import Final

from aiohttp import hdrs

from gateway.core.credential import (
    Facts,
    Presented,
    Verdict,
    address_key,
    cookie_allowed,
    find_credential,
)
from gateway.core.errors import GatewayError
from gateway.core.principal import ADDRESS, Principal
from gateway.observe.metrics import AuthFailure
from gateway.web.exchange import Exchange, cookies_of, listed
from gateway.web.guard import is_browser, is_of_foreign_page
from gateway.web.state import Snapshot

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
    authorization = listed(request.headers, hdrs.AUTHORIZATION)
    cookies = cookies_of(request)
    presented = find_credential(auth.sources, authorization, cookies, request.query, auth.cookie, auth.query_param)
    facts = Facts(exchange.address, request.headers, cookies, request.query)
    # A generator, so that a verifier is asked only when all verifiers before it returned None.
    verdicts = (verifier.verify(presented, facts, now) for verifier in exchange.snapshot.verifiers)
    try:
        for verdict in verdicts:
            if isinstance(verdict, Principal):
                _let_in(exchange, presented, verdict)
                return None
            if verdict is not None:
                return _wait(exchange, presented, chain([verdict], verdicts))
    except (ConnectionError, TimeoutError) as error:
        raise VerifierError from error
    _let_in(exchange, presented, None)
    return None


async def _wait(exchange: Exchange, presented: Presented | None, verdicts: Iterator[Verdict]) -> None:
    principal = None
    try:
        async with asyncio.timeout(PATIENCE) as patience:
            for verdict in verdicts:
                principal = await verdict if isinstance(verdict, Awaitable) else verdict
                if principal is not None:
                    break
    except (ConnectionError, TimeoutError) as error:
        if patience.expired():
            detail = "a verifier of credentials did not answer in time"
            raise GatewayError("overloaded", retry_after=COME_BACK, detail=detail) from None
        raise VerifierError from error
    _let_in(exchange, presented, principal)


def _let_in(exchange: Exchange, presented: Presented | None, principal: Principal | None) -> None:
    if principal is None:
        if not exchange.snapshot.config.auth.anonymous or (presented is not None and exchange.snapshot.verifiers):
            raise _unauthorized(exchange, "missing" if presented is None else "unknown")
        _check_page(exchange)
        principal = Principal(ADDRESS, address_key(exchange.address), "default", frozenset({"stream"}))
    elif presented is not None and presented.source == "cookie":
        headers = exchange.request.headers
        origin, site = listed(headers, hdrs.ORIGIN), listed(headers, "Sec-Fetch-Site")
        if not cookie_allowed(origin, site, exchange.snapshot.origins):
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
    told = {name: listed(headers, name) for name in ("Origin", "Sec-Fetch-Site", "Referer") if name in headers}
    if is_of_foreign_page(told, listed(headers, hdrs.HOST), exchange.snapshot.origins):
        exchange.gateway.metrics.auth_failure("origin")
        exchange.blamed = "origin"
        raise GatewayError("forbidden", "Pages of this origin may not use this gateway; see cors.origins.")


def _unauthorized(exchange: Exchange, reason: AuthFailure) -> GatewayError:
    exchange.gateway.metrics.auth_failure(reason)
    exchange.blamed = reason
    return GatewayError("unauthorized")


def knows_credentials(snapshot: Snapshot) -> bool:
    """Whether what a client sends can be a credential of the gateway, which must not reach an upstream."""
    return bool(snapshot.verifiers) or not snapshot.config.auth.anonymous
