"""Admission: who may start a generation now. Here money is spent, so here everything is checked that can refuse.

Invariants:

- A refusal takes nothing: no slot, no token, no log.
- What was admitted has a lease, and its generation gives it back whatever becomes of it.
"""

import time
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.quota import Lease, Plan, Refusal
from gateway.streams.generation import Generation
from gateway.streams.job import Job
from gateway.streams.log import MemoryLog
from gateway.streams.stream import Stream
from gateway.web.exchange import Exchange

UNRESUMABLE_LOG: Final = 256 * 1024
"""Bytes kept of a stream that cannot be resumed: enough between the pump and its one reader."""
OUTPUT_RESERVE: Final = 256
"""Output tokens reserved before the first is seen; a longer answer takes more from the budget as it grows."""


def admit(exchange: Exchange, job: Job, max_tokens: int | None = None) -> Generation:
    """A running generation for this request.

    Args:
        exchange: who asks.
        job: what is asked.
        max_tokens: the output tokens the client allows, None where it does not say.

    Raises:
        GatewayError: `draining`, `overloaded`, or one of the plan's limits, with the headers that tell when to retry.
    """
    gateway = exchange.gateway
    _check_capacity(exchange)
    lease = _lease(exchange, _estimate(job, max_tokens))
    max_bytes = job.stream.resume.max_bytes if job.stream.resume.enabled else UNRESUMABLE_LOG

    def make(stream_id: str, log: MemoryLog) -> Generation:
        stream = Stream(
            id=stream_id,
            owner=exchange.who.owner,
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
        now = gateway.clock.now()
        lease.settle(0, now)
        lease.close(now)
        raise
    generation.start()
    return generation


def _estimate(job: Job, max_tokens: int | None) -> int:
    if not job.canonical:
        return 0  # a proxy route asks no model that the gateway knows of
    return job.input_tokens + min(max_tokens or OUTPUT_RESERVE, OUTPUT_RESERVE)


def expires_in(exchange: Exchange) -> float | None:
    """Seconds until the request's credential expires, None for never."""
    expires = exchange.who.expires
    return None if expires is None else max(0.0, expires - time.time())


def plan_of(exchange: Exchange) -> Plan:
    """The limits of who asks."""
    plans = exchange.snapshot.plans
    return plans.get(exchange.who.plan) or plans["default"]


def tell_limits(exchange: Exchange) -> None:
    """The response will say where the principal stands with its limits."""
    gateway, plan = exchange.gateway, plan_of(exchange)
    quotas = gateway.limiter.snapshot(plan, str(exchange.who), gateway.clock.now())
    exchange.headers |= exchange.endpoint.kind.limit_headers(quotas)


def _check_capacity(exchange: Exchange) -> None:
    gateway = exchange.gateway
    if gateway.draining:
        raise GatewayError("draining", retry_after=2)
    if len(gateway.engine.running) >= gateway.max_streams:
        raise GatewayError("overloaded", retry_after=5, detail="as many streams as file descriptors allow are open")


def _lease(exchange: Exchange, tokens: int) -> Lease:
    gateway, plan, now = exchange.gateway, plan_of(exchange), exchange.gateway.clock.now()
    decision = gateway.limiter.admit(plan, str(exchange.who), tokens, now)
    if isinstance(decision, Lease):
        tell_limits(exchange)
        return decision
    raise _refused(exchange, plan, decision)


def _refused(exchange: Exchange, plan: Plan, refusal: Refusal) -> GatewayError:
    gateway = exchange.gateway
    gateway.metrics.rate_limit(plan.name, refusal.limit)
    quotas = gateway.limiter.snapshot(plan, str(exchange.who), gateway.clock.now())
    headers = exchange.endpoint.kind.limit_headers(quotas, refusal)
    message = "" if refusal.retryable else f"This request alone is larger than the plan's {refusal.limit} limit."
    return GatewayError(
        refusal.code, message, retry_after=refusal.retry_after, retryable=refusal.retryable, headers=headers
    )
