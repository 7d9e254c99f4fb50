"""Revocation: the credentials of a principal are worth nothing from now on, so what they began ends now.

Invariants:

- Its running streams end with `auth_expired`, for all their readers. Its tickets are forgotten.
- A request that had been let in before, and still waits for its body, starts nothing afterwards.

Where several nodes share a store, all of them learn of it (`store/revocation.py`); what began at any of them before the
revocation ends. Otherwise it is for one process: workers that share a port each have an admin listener, and all of them
reload.
"""

import asyncio
import time
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from gateway.core.errors import GatewayError
from gateway.core.principal import ADDRESS, KEY
from gateway.streams.engine import Running
from gateway.web.state import Gateway, Snapshot

if TYPE_CHECKING:
    from gateway.store.revocation import Revocation


class Revoked(NamedTuple):
    """What a revocation ended.

    Attributes:
        streams: how many streams of this node.
        tickets: how many tickets.
        everywhere: whether all nodes were told. If not, they will be when the store that they share is back.
    """

    streams: int
    tickets: int
    everywhere: bool


async def revoke(gateway: Gateway, principal: str, key: str = "") -> Revoked:
    """Ends all that this principal has. Returns when its streams at this node have ended.

    Args:
        gateway: this node.
        principal: `kind:id`.
        key: the hash of the static key that a reload removed, "" for any other reason.
    """
    gateway.revoked.note(principal, gateway.clock.now())
    streams = [each for each in gateway.engine.running.values() if _acts_for(each, principal)]
    for generation in streams:
        generation.abort(GatewayError("auth_expired"))
    tickets: int | None = gateway.tickets.revoke(principal)
    if (others := gateway.revocations) is not None:
        tickets = await others.tell(principal, others.key_digest(principal, key) if key else "")
    gateway.logger.info("principal_revoked", principal=principal, streams=len(streams), tickets=tickets or 0)
    if streams:
        await asyncio.wait([asyncio.shield(generation.ended) for generation in streams])
    return Revoked(len(streams), tickets or 0, tickets is not None)


def revoke_here(gateway: Gateway, revocation: "Revocation") -> None:
    """Ends at this node what another node has revoked. Streams end soon after this call.

    Where a reload removed a key there, and this node has another key with that name already, nothing ends: this node
    has revoked the old one itself, when it was reloaded.
    """
    others, before = gateway.revocations, gateway.clock.now() - revocation.age
    assert others is not None, "this is its message"
    for key in gateway.snapshot.config.auth.keys if revocation.key else ():
        principal = f"{KEY}:{key.id}"
        same = others.key_digest(principal, key.digest.hex()) == revocation.key
        if others.digest(principal) == revocation.principal and not same:
            return
    gateway.revoked.note_name(revocation.principal, before)
    meant = cache(lambda principal: others.digest(principal) == revocation.principal)
    streams = [
        each
        for each in gateway.engine.running.values()
        if each.account.started <= before and meant(each.account.facts["principal"])
    ]
    for generation in streams:
        generation.abort(GatewayError("auth_expired"))
    for holder in gateway.tickets.principals:
        if meant(str(holder)):
            gateway.tickets.revoke(str(holder))
    if streams:
        principal = streams[0].account.facts["principal"]
        gateway.logger.info("principal_revoked_elsewhere", principal=principal, streams=len(streams))


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
    gone = {(key.id, key.digest) for key in before.config.auth.keys} - good
    for id_, digest in sorted(gone):
        await revoke(gateway, f"{KEY}:{id_}", digest.hex())
    if before.config.auth.anonymous and not auth.anonymous:
        for principal in _of_kind(gateway, ADDRESS):
            gateway.tickets.revoke(principal)


def _acts_for(generation: Running, principal: str) -> bool:
    return generation.account.facts["principal"] == principal


def _of_kind(gateway: Gateway, kind: str) -> Iterable[str]:
    return [str(principal) for principal in gateway.tickets.principals if principal.kind == kind]
