"""Authentication: finds the principal that a request acts for, by asking one verifier after the other.

    verifiers[0] --None--> verifiers[1] --None--> ... --None--> the client's address where the configuration lets
       |        |                                               everybody in, `unauthorized` where it does not
       |        +--an awaitable--> this request waits for it, `PATIENCE` at most, and goes on from there
       v
    Principal --> may it use this endpoint? --> exchange.principal

Invariants:

- Every bad credential gets the same answer, whatever is wrong with it.
- A verifier that raises or does not answer lets nobody in: the request ends with an error.
- A credential that no verifier knows is never passed over, unless there is no verifier at all.
- A request waits only where a verifier has to, and its stream keeps nothing of the wait.
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
from gateway.web.exchange import Exchange
from gateway.web.state import Snapshot

PATIENCE: Final = 10.0
"""Seconds that a request waits for its verifiers together."""
COME_BACK: Final = 2.0
"""Seconds after which a client may ask again whose verifiers did not answer."""


class VerifierError(Exception):
    """A verifier could not reach something; the client's own connection is well."""


def authenticate(exchange: Exchange) -> Awaitable[None] | None:
    """None, and `exchange.principal` is set where the endpoint needs one; or the same as something to wait for.

    Raises:
        GatewayError: `unauthorized`, `forbidden`, or `overloaded` where a verifier did not answer in time.
        VerifierError: a verifier failed.
    """
    if exchange.endpoint.public:
        return None
    auth, request, now = exchange.snapshot.config.auth, exchange.request, time.time()
    authorization = request.headers.get(hdrs.AUTHORIZATION)
    presented = find_credential(
        auth.sources, authorization, request.cookies, request.query, auth.cookie, auth.query_param
    )
    facts = Facts(exchange.address, request.headers, request.cookies, request.query)
    # Lazy: a verifier is asked only when all before it did not know the credential.
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
        principal = Principal(ADDRESS, address_key(exchange.address), "default", frozenset({"stream"}))
    elif presented is not None and presented.source == "cookie":
        origin, site = exchange.request.headers.get(hdrs.ORIGIN), exchange.request.headers.get("Sec-Fetch-Site")
        if not cookie_allowed(origin, site, exchange.snapshot.origins):
            raise _unauthorized(exchange, "origin")
    exchange.principal = principal
    scope = exchange.endpoint.scope
    if scope not in principal.scopes:
        exchange.gateway.metrics.auth_failure("scope")
        raise GatewayError("forbidden", f"This credential's scopes do not include {scope!r}.")


def _unauthorized(exchange: Exchange, reason: AuthFailure) -> GatewayError:
    exchange.gateway.metrics.auth_failure(reason)
    return GatewayError("unauthorized")


def knows_credentials(snapshot: Snapshot) -> bool:
    """Whether anything that a client sends is a credential of the gateway's, and must not reach an upstream."""
    return bool(snapshot.verifiers) or not snapshot.config.auth.anonymous
