"""Revocation: the credentials of a principal are worth nothing from now on, so what they began ends now.

Invariants:

- Its running streams end with `auth_expired`, for all their readers. Its tickets are forgotten.
- A request that had been let in before, and still waits for its body, starts nothing afterwards.
- What a verifier remembers of the principal is forgotten, so that the next request is judged anew.

    DELETE at one worker's admin listener --> revoke_everywhere --> revoke
                                                    |               the streams and tickets of this worker
                                                    +--"revoke key:web"--> each other worker: revoke_for_worker

A reload revokes in each worker for itself, because all of them reload. Where several nodes share a store, all of them
learn of a revocation (`store/revocation.py`), and what began at any of them before it ends.
"""

import asyncio
import time
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gateway.config import Auth
from gateway.core.credential import Remembering
from gateway.core.errors import GatewayError
from gateway.core.principal import ADDRESS, JWT, KEY, USER
from gateway.streams.engine import Running
from gateway.web.state import Gateway, Snapshot

if TYPE_CHECKING:
    from gateway.store.revocation import Revocation

ORDER: Final = b"revoke "
"""Begins what one worker asks of another; behind it is the principal."""


class Revoked(NamedTuple):
    """What a revocation ended.

    Attributes:
        streams, tickets: how many.
        everywhere: whether all nodes were told. If not, they will be when the store that they share is back.
        silent: how many workers of the gateway did not say that they ended theirs.
    """

    streams: int
    tickets: int
    everywhere: bool = True
    silent: int = 0


async def revoke_everywhere(gateway: Gateway, principal: str) -> Revoked:
    """As `revoke`, by all workers of this gateway."""
    if gateway.ask_workers is None:
        return await revoke(gateway, principal)
    own, answers = await asyncio.gather(
        revoke(gateway, principal), gateway.ask_workers(ORDER + principal.encode("utf-8", "surrogatepass"))
    )
    others = [msgspec.json.decode(answer, type=tuple[int, int]) for answer in answers if answer is not None]
    streams, tickets = (sum(each[place] for each in (own[:2], *others)) for place in (0, 1))
    return Revoked(streams, tickets, own.everywhere, len(answers) - len(others))


async def revoke_for_worker(gateway: Gateway, question: bytes) -> bytes:
    """The answer to another worker that asks for a revocation.

    Raises:
        ConnectionAbortedError: it asks for something else.
    """
    if not question.startswith(ORDER):
        raise ConnectionAbortedError("another worker asked for what is not known here")
    revoked = await revoke(gateway, question.removeprefix(ORDER).decode("utf-8", "surrogatepass"))
    return msgspec.json.encode((revoked.streams, revoked.tickets))


async def revoke(gateway: Gateway, principal: str, key: str = "") -> Revoked:
    """Ends all that this principal has. Returns when its streams at this node have ended.

    Args:
        gateway: this node.
        principal: `kind:id`.
        key: the hash of the static key that a reload removed, "" for any other reason.
    """
    gateway.revoked.note(principal, gateway.clock.now())
    for verifier in gateway.snapshot.verifiers:
        if isinstance(verifier, Remembering):
            verifier.forget(principal)
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
        if each.admitted <= before and meant(each.account.facts["principal"])
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
    another secret, have expired, or lost the scope `stream`; the principals of issuers of tokens that were taken out or
    have another secret; tickets of the application's users where it is asked no more (its streams end with the verifier
    that asked), and tickets without a credential where one is needed now.
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
    earlier = before.config.auth
    for issuer in sorted({name for name, *_ in _trusted(earlier) - _trusted(auth)}):
        await _revoke_issuer(gateway, issuer, [entry.issuer for entry in (*earlier.jwt, *auth.jwt)])
    kinds = {ADDRESS} if earlier.anonymous and not auth.anonymous else set()
    kinds |= {USER} if earlier.forward is not None and auth.forward is None else set()
    for principal in (str(each) for each in gateway.tickets.principals if each.kind in kinds):
        gateway.tickets.revoke(principal)


def _trusted(auth: Auth) -> set[tuple[str, str, str | None]]:
    """What makes an issuer of tokens trusted. Other keys than a secret change in the usual course of things."""
    return {(entry.issuer, entry.audience, entry.secret) for entry in auth.jwt}


async def _revoke_issuer(gateway: Gateway, issuer: str, issuers: Iterable[str]) -> None:
    """Revokes all principals of this issuer, and of none whose name only begins like its own."""
    beginning = f"{JWT}:{issuer}:"
    others = tuple(f"{JWT}:{name}:" for name in issuers if name.startswith(f"{issuer}:"))
    found = {each.account.facts["principal"] for each in gateway.engine.running.values()}
    found |= {str(principal) for principal in gateway.tickets.principals}
    gateway.revoked.note_all(beginning, gateway.clock.now())
    revoked = [name for name in sorted(found) if name.startswith(beginning) and not name.startswith(others)]
    await asyncio.gather(*(revoke(gateway, name) for name in revoked))


def _acts_for(generation: Running, principal: str) -> bool:
    return generation.account.facts["principal"] == principal
