"""Going on with a stream whose node is gone: its order becomes a job again, by the configuration of this node."""

import time
from typing import Final

from gateway.core.cost import amounts
from gateway.core.errors import GatewayError
from gateway.core.event import START, Usage
from gateway.core.limiter import Lease
from gateway.core.limits import STREAMS
from gateway.streams.generation import Generation
from gateway.streams.log import MemoryLog, State
from gateway.streams.order import Order
from gateway.streams.rescue import delivered_text
from gateway.streams.stream import Stream
from gateway.web.kinds.base import RouteKind
from gateway.web.state import Gateway

COMEBACK: Final = 20.0
"""Seconds that readers of a lost node have to come back, whatever `on_disconnect` says: they did not leave. Those of a
node that ended are asked to come back within 15."""


def adopt(gateway: Gateway, order: Order, stream: Stream, log: MemoryLog) -> Generation:
    """A running generation that goes on with this log, which holds what was delivered.

    Its limits were decided when it was admitted: it takes its slot and its tokens, whether they fit or not.

    Raises:
        GatewayError: `upstream_cut` where it cannot go on, `auth_expired` where its owner may no longer.
    """
    if gateway.draining:
        raise GatewayError("upstream_cut", detail="this node ends, too")
    kind = gateway.snapshot.router.match(order.route).endpoint.kind
    job = kind.again(gateway, order, stream) if isinstance(kind, RouteKind) else None
    if job is None:
        raise GatewayError("upstream_cut", detail="its route is not there, or another one")
    if order.expires is not None and order.expires <= time.time():
        raise GatewayError("auth_expired")
    if gateway.revoked.since(order.principal, gateway.clock.now() - (time.time() - stream.created)):
        raise GatewayError("auth_expired")
    broken = GatewayError("upstream_cut", detail="its node is gone")
    events = log.read(0, log.last)
    begun = not isinstance(events, State) and any(event.type != START for event in events)
    if begun and (delivered_text(job, log, broken) is None or not job.chain[0].config.rescue):
        raise broken
    log.max_bytes = job.stream.resume.max_bytes
    generation = Generation(stream, log, job, _lease(gateway, order), gateway.engine)
    gateway.registry.add(generation)
    generation.start(broken if begun else None)
    generation.await_readers(COMEBACK)
    return generation


def _lease(gateway: Gateway, order: Order) -> Lease:
    plans = gateway.snapshot.plans
    demand = {STREAMS: 1.0} | amounts(Usage(order.input_tokens, 0, "estimate"), order.model)
    plan = plans.get(order.plan) or plans["default"]
    return gateway.limiter.take(plan, order.principal, demand, gateway.clock.now())
