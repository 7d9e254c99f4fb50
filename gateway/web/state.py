"""What handlers share: the process's parts (`Gateway`) and the configuration in force (`Snapshot`).

Invariants:

- A snapshot never changes; a reload makes a new one, and requests that have begun keep theirs.
- What must survive a reload (logs, limits, sessions, connections) lives in `Gateway`, never in a snapshot.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.config import Config, History
from gateway.core.credential import Carriers, Verifier
from gateway.core.limiter import AddressLimiter, Decider
from gateway.core.limits import Plan
from gateway.core.sessions import Sessions
from gateway.identity.revoked import RevokedPrincipals
from gateway.identity.tickets import Tickets
from gateway.observe.metrics import Metrics
from gateway.observe.refusals import Refusals
from gateway.streams.engine import Engine
from gateway.streams.inflight import Inflight
from gateway.streams.registry import Registry
from gateway.streams.turns import Turns
from gateway.upstream.pool import Upstream

if TYPE_CHECKING:
    from gateway.store.revocation import Revocations
    from gateway.store.sessions import SharedSessions
    from gateway.store.shared import Shared
    from gateway.store.tickets import SharedTickets
    from gateway.web.router import Router

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One configuration, made ready to serve.

    Attributes:
        config: as it was read.
        verifiers: asked in this order for the principal of a request; the static keys first, if there are any.
        carriers: what the verifiers read beside the credential that is presented; headers in lower case.
        plans: limits by plan name.
        upstreams: by name.
        router: from path to endpoint.
        trusted: networks of proxies whose `X-Forwarded-For` is believed.
        origins: `cors.origins`.
    """

    config: Config
    verifiers: tuple[Verifier, ...]
    carriers: Carriers
    plans: Mapping[str, Plan]
    upstreams: Mapping[str, Upstream]
    router: "Router"
    trusted: tuple[Network, ...]
    origins: frozenset[str]


@dataclass(slots=True)
class Gateway:
    """The parts of a running process.

    Attributes:
        snapshot: the configuration in force.
        max_streams, max_connections: how many there are file descriptors for.
        inflight: the memory of request bodies.
        arriving: lets in the pieces of large bodies, one after the other.
        refusals: logs refusals of clients.
        draining: whether new streams are refused because the process is about to end.
        sessions: the chat histories by route path.
        ask_workers: asks all other workers of the gateway (`handover.Siblings.ask`); None if there are none.
        shared_tickets: the tickets of all nodes, None where each process has its own. `tickets` then holds those whose
            streams were started or read here.
        revocations: tells other nodes of revocations, None where there are none.
        chats: where other nodes have these too, None where each process has its own.
        shared: the store that several gateways share, None where `store` is the memory of the process.
    """

    clock: Clock
    metrics: Metrics
    logger: FilteringBoundLogger
    engine: Engine
    registry: Registry
    limiter: Decider
    addresses: AddressLimiter
    inflight: Inflight
    refusals: Refusals
    tickets: Tickets
    revoked: RevokedPrincipals
    snapshot: Snapshot
    max_streams: int
    max_connections: int
    draining: bool = False
    arriving: Turns = field(default_factory=Turns)
    sessions: dict[str, Sessions] = field(default_factory=dict)
    ask_workers: Callable[[bytes], Awaitable[list[bytes | None]]] | None = None
    revocations: "Revocations | None" = None
    shared_tickets: "SharedTickets | None" = None
    chats: "SharedSessions | None" = None
    shared: "Shared | None" = None

    def history(self, path: str, history: History | None) -> Sessions | None:
        """The sessions of the route at this path, with the bounds of `history`; None if the route keeps no history."""
        if history is None:
            return None
        sessions = self.sessions.get(path)
        if sessions is None:
            sessions = self.sessions[path] = Sessions(history.turns, history.ttl, session_bytes=history.max_bytes)
            if self.chats is not None:
                self.chats.share(path, sessions)
        else:
            sessions.configure(history.turns, history.ttl, history.max_bytes)  # a reload may have changed them
        return sessions
