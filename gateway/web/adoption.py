"""Going on with a stream whose node is gone: its order becomes a job again, by the configuration of this node."""

import time
from typing import Final

import msgspec

from gateway.core.cost import amounts
from gateway.core.errors import GatewayError
from gateway.core.event import START, Usage
from gateway.core.limiter import Lease
from gateway.core.limits import STREAMS
from gateway.streams.generation import Generation
from gateway.streams.job import Job
from gateway.streams.log import LogState, MemoryLog
from gateway.streams.order import NotHereError, Order
from gateway.streams.rescue import delivered_text, delivered_tokens
from gateway.streams.stream import Stream
from gateway.web.kinds.base import RouteKind
from gateway.web.state import Gateway

COMEBACK: Final = 20.0
"""Seconds that readers of a lost node have to come back, whatever `on_disconnect` says: they did not leave. Those of a
node that ended are asked to come back within 15."""


def adopt(gateway: Gateway, order: Order, stream: Stream, log: MemoryLog) -> Generation:
    """A running generation that goes on with this log, which holds what was delivered.

    Its limits were decided when it was admitted: it takes its slot, whether it fits or not, and its tokens are paid for
    up to here.

    Raises:
        NotHereError: another node may be able to.
        GatewayError: `upstream_cut` where it cannot go on, `auth_expired` where its owner may no longer.
    """
    admitted, now = gateway.clock.now() - (time.time() - order.admitted), time.time()
    if order.renewed and order.expires is not None:
        # Whoever was asked about it meanwhile is gone. Its owner has until then to come back, and to be asked about.
        order = msgspec.structs.replace(order, expires=max(order.expires, now + COMEBACK))
    if order.expires is not None and order.expires <= now:
        raise GatewayError("auth_expired")
    if gateway.revoked.since(order.principal, admitted):
        raise GatewayError("auth_expired")
    job = _job(gateway, order, stream)
    broken = GatewayError("upstream_cut", detail="its node is gone")
    events = log.read(0, log.last)
    begun = not isinstance(events, LogState) and any(event.type != START for event in events)
    if begun and (delivered_text(job, log, broken) is None or not job.chain[0].config.rescue):
        raise broken
    log.max_bytes = job.stream.resume.max_bytes
    delivered = max(order.output_tokens, delivered_tokens(log))
    generation = Generation(stream, log, job, _lease(gateway, order, delivered), gateway.engine)
    generation.admitted = admitted
    gateway.registry.add(generation)
    generation.start(broken if begun else None)
    generation.await_readers(COMEBACK)
    return generation


def _job(gateway: Gateway, order: Order, stream: Stream) -> Job:
    if gateway.draining:
        raise NotHereError("this node ends, too")
    kind = gateway.snapshot.router.match(order.route).endpoint.kind
    job = kind.again(gateway, order, stream) if isinstance(kind, RouteKind) else None
    if job is None:
        raise NotHereError("its route is not there, or another one")
    return job


def _lease(gateway: Gateway, order: Order, delivered: int) -> Lease:
    plans = gateway.snapshot.plans
    plan = plans.get(order.plan) or plans["default"]
    lease = gateway.limiter.take(plan, order.principal, {STREAMS: 1.0}, gateway.clock.now())
    # As in any rescue, neither the question nor what was delivered counts a second time.
    lease.carry(amounts(Usage(order.input_tokens, delivered, "estimate"), order.model))
    return lease
