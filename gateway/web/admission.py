"""Admission: whether a request may start a generation now. A generation costs money, so all that refuses one is here.

Invariants:

- A refusal takes nothing: no slot, no token, no log.
- An admitted generation has a lease, and gives it back however it ends.
"""

import time
from collections.abc import Awaitable
from typing import Any, Final

from gateway.core.cost import amounts
from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.core.limiter import Decision, Lease
from gateway.core.limits import REQUESTS, STREAMS, Amounts, Plan
from gateway.streams.generation import Generation
from gateway.streams.job import Job
from gateway.streams.log import MemoryLog
from gateway.streams.order import Order
from gateway.streams.stream import Stream
from gateway.web.exchange import Exchange
from gateway.web.refusals import limit_of
from gateway.web.tickets import starts_stream, use_ticket

UNRESUMABLE_LOG: Final = 256 * 1024
"""Bytes of the log of a stream that cannot be resumed: enough between the pump and the one reader."""
OUTPUT_RESERVE: Final = 256
"""Output tokens that are reserved before the answer begins; a longer answer takes more as it grows."""


def admit(
    exchange: Exchange, job: Job, max_tokens: int | None = None, again: dict[str, Any] | None = None
) -> Generation | Awaitable[Generation]:
    """A running generation for this request; an awaitable of it where another node's word counts for the limits, too.

    Args:
        exchange: the request, authenticated.
        job: what the request asks for.
        max_tokens: output tokens that the client allows, None where it gives no number.
        again: what the kind of the route needs to ask the same again at another node; None where that cannot be.

    Raises:
        GatewayError: `draining`, `overloaded`, or one of the plan's limits, with the headers that say when to retry.
            The awaitable raises the same.
    """
    _check(exchange)
    decision = _decide(exchange, _demand(job, max_tokens))
    order = None if again is None or exchange.gateway.shared is None else _order(exchange, job, again, max_tokens)
    if isinstance(decision, Decision):
        return _begin(exchange, job, _leased(exchange, decision), order)
    return _admit_together(exchange, job, decision, order)


async def _admit_together(
    exchange: Exchange, job: Job, decision: Awaitable[Decision], order: Order | None
) -> Generation:
    lease = _leased(exchange, await decision)
    try:
        _check(exchange)  # meanwhile a drain may have begun, or the ticket been used
    except GatewayError:
        lease.cancel(exchange.gateway.clock.now())
        raise
    return _begin(exchange, job, lease, order)


def _check(exchange: Exchange) -> None:
    """Refuses what may not start whatever the limits say."""
    gateway, ticket = exchange.gateway, exchange.ticket
    if ticket is not None and not starts_stream(exchange, ticket):  # it was used, or revoked, while the body arrived
        raise GatewayError("unauthorized")
    if gateway.revoked.since(str(exchange.caller), exchange.started):
        raise GatewayError("unauthorized")
    if gateway.draining:
        raise GatewayError("draining", retry_after=2)
    if len(gateway.engine.running) >= gateway.max_streams:
        raise GatewayError("overloaded", retry_after=5, detail="as many streams as file descriptors allow are open")


def _begin(exchange: Exchange, job: Job, lease: Lease, order: Order | None) -> Generation:
    gateway, ticket = exchange.gateway, exchange.ticket
    max_bytes = job.stream.resume.max_bytes if job.stream.resume.enabled else UNRESUMABLE_LOG

    def make(stream_id: str, log: MemoryLog) -> Generation:
        stream = Stream(
            id=stream_id,
            owner=exchange.caller.owner,
            route=job.route,
            created=int(time.time()),
            format=job.format,
            settings=job.readers,
            session_id=job.session_id,
        )
        return Generation(stream, log, job, lease, gateway.engine)

    try:
        generation = gateway.registry.create(max_bytes, make)
    except GatewayError:
        lease.cancel(gateway.clock.now())
        raise
    if ticket is not None:
        use_ticket(exchange, ticket, generation.stream.id)
    generation.keep_memory(exchange.memory)
    exchange.memory = None
    generation.start()
    if gateway.shared is not None and job.stream.resume.enabled:
        gateway.shared.track(generation, order)
    exchange.account = generation.account
    return generation


def _order(exchange: Exchange, job: Job, again: dict[str, Any], max_tokens: int | None) -> Order:
    left, now = expires_in(exchange), time.time()
    return Order(
        route=job.route,
        asked=again,
        model=job.model,
        principal=job.principal,
        owner=exchange.caller.owner,
        plan=exchange.caller.plan,
        request_id=job.request_id,
        expires=None if left is None else now + left,
        renewed=exchange.caller.assurance is not None,
        admitted=now,
        input_tokens=job.input_tokens,
        output_tokens=_reserve(max_tokens),
    )


def admit_reader(exchange: Exchange) -> Lease | Awaitable[Lease]:
    """A slot of the caller's plan for one more reader of a stream; to be closed when it has left.

    Raises:
        GatewayError: as `admit`, where the plan has no slot left.
    """
    decision = _decide(exchange, {STREAMS: 1})
    return _leased(exchange, decision) if isinstance(decision, Decision) else _lease_together(exchange, decision)


async def _lease_together(exchange: Exchange, decision: Awaitable[Decision]) -> Lease:
    return _leased(exchange, await decision)


def _demand(job: Job, max_tokens: int | None) -> Amounts:
    start: dict[str, float] = {REQUESTS: 1, STREAMS: 1}
    if job.canonical:  # of a proxied request, the gateway does not know whether a model is asked
        start |= amounts(Usage(job.input_tokens, _reserve(max_tokens), "estimate"), job.model)
    return start


def _reserve(max_tokens: int | None) -> int:
    return min(max_tokens or OUTPUT_RESERVE, OUTPUT_RESERVE)


def expires_in(exchange: Exchange) -> float | None:
    """Seconds until the request's credential expires as far as is known now, None for never."""
    if exchange.caller.assurance is not None:
        return exchange.caller.assurance.left()
    expires = exchange.caller.expires
    return None if expires is None else max(0.0, expires - time.time())


def plan_of(exchange: Exchange) -> Plan:
    """The caller's plan; the plan `default` if there is none of its name."""
    plans = exchange.snapshot.plans
    return plans.get(exchange.caller.plan) or plans["default"]


def _decide(exchange: Exchange, demand: Amounts) -> Decision | Awaitable[Decision]:
    gateway = exchange.gateway
    return gateway.limiter.decide(plan_of(exchange), str(exchange.caller), demand, gateway.clock.now())


def _leased(exchange: Exchange, decision: Decision) -> Lease:
    """The lease that was decided.

    Raises:
        GatewayError: a refusal was decided.
    """
    outcome, quotas = decision
    kind = exchange.endpoint.kind
    if isinstance(outcome, Lease):
        exchange.headers |= kind.limit_headers(quotas)
        return outcome
    plan = plan_of(exchange)
    exchange.gateway.metrics.rate_limit(plan.name, outcome.limit)
    exchange.limit = limit_of(plan, outcome.limit)
    raise GatewayError(
        outcome.code,
        "" if outcome.retryable else f"This request alone is larger than the plan's {outcome.limit} limit.",
        retry_after=outcome.retry_after,
        retryable=outcome.retryable,
        headers=kind.limit_headers(quotas, outcome),
    )
