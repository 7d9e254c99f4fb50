"""Revocation: the credentials of a principal are worth nothing from now on, so what they began ends now.

Invariants:

- Its running streams end with `auth_expired`, for all their readers. Its tickets are forgotten.
- A request that had been let in before, and still waits for its body, starts nothing afterwards.

It is for one process. Workers that share a port each have an admin listener, and all of them reload.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from gateway.core.errors import GatewayError
from gateway.core.principal import ADDRESS, KEY
from gateway.streams.engine import Running
from gateway.web.state import Gateway, Snapshot


class Revoked(NamedTuple):
    """What a revocation ended: how many streams and tickets."""

    streams: int
    tickets: int


async def revoke(gateway: Gateway, principal: str) -> Revoked:
    """Ends all that this principal, `kind:id`, has here. Returns when its streams have ended."""
    gateway.revoked.note(principal, gateway.clock.now())
    streams = [each for each in gateway.engine.running.values() if _acts_for(each, principal)]
    for generation in streams:
        generation.abort(GatewayError("auth_expired"))
    tickets = gateway.tickets.revoke(principal)
    gateway.logger.info("principal_revoked", principal=principal, streams=len(streams), tickets=tickets)
    if streams:
        await asyncio.wait([asyncio.shield(generation.ended) for generation in streams])
    return Revoked(len(streams), tickets)


async def revoke_removed(gateway: Gateway, before: Snapshot) -> None:
    """Revokes what the configuration in force admits no more, and the one before it did: keys that were taken out, have
    another secret, have expired, or lost the scope `stream`; and tickets without a credential where one is needed now.
    """
    auth, now = gateway.snapshot.config.auth, time.time()
    good = {
        (key.id, key.digest)
        for key in auth.keys
        if "stream" in key.scopes and (key.expires_at is None or now < key.expires_at)
    }
    for id_ in sorted({key.id for key in before.config.auth.keys if (key.id, key.digest) not in good}):
        await revoke(gateway, f"{KEY}:{id_}")
    if before.config.auth.anonymous and not auth.anonymous:
        for principal in _of_kind(gateway, ADDRESS):
            gateway.tickets.revoke(principal)


def _acts_for(generation: Running, principal: str) -> bool:
    return generation.account.facts["principal"] == principal


def _of_kind(gateway: Gateway, kind: str) -> Iterable[str]:
    return [str(principal) for principal in gateway.tickets.principals if principal.kind == kind]
