"""The composition root: what lasts as long as the process is made here and put together."""

import asyncio
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog
from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.config import Config
from gateway.core.credential import Key, Keyring, Verifier, carriers_of
from gateway.core.errors import GatewayError
from gateway.core.limiter import PER_ADDRESS, AddressLimiter, Limiter
from gateway.core.limits import Plan, make_limits
from gateway.demo import Demo, start_demo
from gateway.dialects import DIALECTS
from gateway.identity.forward import Forward
from gateway.identity.revoked import RevokedPrincipals
from gateway.identity.tickets import Tickets
from gateway.observe.failures import Failures
from gateway.observe.metrics import Metrics
from gateway.observe.refusals import Refusals
from gateway.observe.tracing import from_environment
from gateway.streams.engine import Engine
from gateway.streams.inflight import Inflight
from gateway.streams.registry import Registry
from gateway.upstream.http import new_session
from gateway.upstream.pool import Upstream
from gateway.web.adoption import adopt
from gateway.web.answer_facts import AnswerFacts
from gateway.web.exchange import Endpoint
from gateway.web.failure_details import FailureDetails
from gateway.web.kinds import KINDS, KindFactory
from gateway.web.revocation import revoke_here, revoke_removed
from gateway.web.router import Nowhere, Router
from gateway.web.state import Gateway, Snapshot
from gateway.web.static import static_endpoints
from gateway.web.streams import ReadStream, StopStream
from gateway.web.tickets import IssueTicket

if TYPE_CHECKING:
    from gateway.identity.jwt import JwtVerifier
    from gateway.store.shared import Shared
    from gateway.store.state import SharedState

FD_RESERVE = 64
"""File descriptors that clients and streams never get: for the listeners, the log and the admin listener's clients."""
FD_REFUSING = 16
"""Extra connections, so that a client that gets no stream still gets an HTTP error."""


@dataclass(slots=True)
class App:
    """A gateway with what it needs around it.

    Attributes:
        gateway: what requests share.
        demo: the stand-in for an LLM, None until a configuration needs it.
        kinds: the kinds of route, by their `api`.
        verifiers: asked for the principal of a request when nobody before them knows its credential.
        tokens: the verifier of `auth.jwt`, None where that is empty.
        forwards: the one that asks the team's application now, and earlier ones on which streams still rely.
        state: what it shares with other nodes, None where `store` is memory.
    """

    gateway: Gateway
    demo: Demo | None
    kinds: Mapping[str, KindFactory]
    verifiers: tuple[Verifier, ...]
    tokens: "JwtVerifier | None"
    forwards: list[Forward]
    state: "SharedState | None" = None

    async def reload(self, config: Config) -> None:
        """New requests are served by this configuration; running streams keep theirs, but end if their key is gone."""
        self.demo = await _demo(config, self.demo)
        gateway, before, tokens = self.gateway, self.gateway.snapshot, self.tokens
        self.tokens = _tokens(config, gateway.logger, tokens)
        self.forwards = _forwards(config, gateway.engine, self.forwards)
        verifiers = _asked(self.tokens, self.forwards, self.verifiers)
        gateway.snapshot = _snapshot(config, self.demo, self.kinds, verifiers, before.upstreams)
        _prepare(gateway.metrics, gateway.snapshot)
        gateway.registry.memory.limit = config.server.max_log_bytes
        gateway.inflight.limit = config.server.max_inflight_bytes
        limits = config.limits.per_address
        gateway.addresses.plan = Plan(PER_ADDRESS, make_limits(limits.requests, limits.connections))
        await revoke_removed(gateway, before)
        if tokens is not None and tokens is not self.tokens:
            await tokens.close(self.tokens)

    async def close(self) -> None:
        """Ends the streams that still run, and closes everything that was opened."""
        if self.gateway.shared is not None:
            await self.gateway.shared.hand_over()
        running = list(self.gateway.engine.running.values())
        for generation in running:
            generation.abort(GatewayError("drained"))
        await asyncio.gather(*(generation.ended for generation in running))
        if self.state is not None:
            await self.state.close()
        if self.gateway.shared is not None:
            await self.gateway.shared.close()
        for forward in self.forwards:
            forward.close()
        self.gateway.refusals.flush()
        await self.gateway.engine.session.close()
        await self.gateway.engine.tracing.close()
        if self.tokens is not None:
            await self.tokens.close()
        if self.demo is not None:
            await self.demo.close()


async def make_app(
    config: Config,
    worker: int | None = None,
    *,
    kinds: Mapping[str, KindFactory] = KINDS,
    verifiers: Sequence[Verifier] = (),
) -> App:
    """The gateway of this configuration, ready to serve. Needs a running loop.

    Args:
        config: the configuration.
        worker: this process's number among several workers, None if there is only one.
        kinds: the kinds of route, by their `api`.
        verifiers: asked, in this order, for the principal of a request when nothing that the configuration names knows
            its credential.
    """
    loop = asyncio.get_running_loop()
    clock, logger = Clock(loop), structlog.get_logger()
    metrics = Metrics(version=version("sse-gateway"))
    registry = Registry(clock.wheel, config.server.max_log_bytes, worker)
    demo = await _demo(config, None)
    tracing, failures = from_environment(clock.now, logger), Failures(logger)
    engine = Engine(clock, registry, metrics, logger, new_session(), {}, tracing, failures)
    tokens, forwards = _tokens(config, logger, None), _forwards(config, engine, [])
    snapshot = _snapshot(config, demo, kinds, _asked(tokens, forwards, tuple(verifiers)))
    _prepare(metrics, snapshot)
    per_address = config.limits.per_address
    max_streams, max_connections = _shared_out(_descriptors(), config.server.max_connections)
    metrics.connections_limit.set(max_connections)
    shared = await _shared(config, engine)
    gateway = Gateway(
        clock=clock,
        metrics=metrics,
        logger=logger,
        engine=engine,
        registry=registry,
        limiter=Limiter() if shared is None else shared.limiter,
        inflight=Inflight(config.server.max_inflight_bytes),
        addresses=AddressLimiter(per_address.requests, per_address.connections),
        refusals=Refusals(logger, clock.wheel),
        tickets=Tickets(worker, lambda stream_id, owner: registry.find(stream_id, owner) is not None),
        revoked=RevokedPrincipals(),
        snapshot=snapshot,
        max_streams=max_streams,
        max_connections=max_connections,
        shared=shared,
    )
    if shared is not None:
        shared.adoption.adopt = partial(adopt, gateway)
    return App(gateway, demo, kinds, tuple(verifiers), tokens, forwards, await _share_state(gateway))


async def _shared(config: Config, engine: Engine) -> "Shared | None":
    """The store that other gateways share, None where the memory of this process is the store."""
    if not config.store.shared:
        return None
    from gateway.store.shared import Shared  # it needs redis, which only those install who share a store

    shared = Shared(config.store, engine, engine.clock, engine.logger)
    await shared.start()
    return shared


async def _share_state(gateway: Gateway) -> "SharedState | None":
    """What this process shares with other nodes beside streams, None where the store is its memory."""
    config = gateway.snapshot.config.store
    if gateway.shared is None:
        return None
    from gateway.store.state import SharedState  # as above

    shared = gateway.shared
    state = SharedState(config, shared.connection, gateway.clock, gateway.logger, gateway.tickets, shared.watcher)
    gateway.chats, gateway.shared_tickets, gateway.revocations = state.chats, state.tickets, state.revocations
    gateway.revoked = RevokedPrincipals(state.revocations.digest)
    state.revocations.learned = partial(revoke_here, gateway)
    await state.start()
    return state


def _tokens(config: Config, logger: FilteringBoundLogger, before: "JwtVerifier | None") -> "JwtVerifier | None":
    """The verifier of `auth.jwt`: the one before if nothing changed, with all that it knows."""
    if not config.auth.jwt:
        return None
    if before is not None and before.settings == config.auth.jwt:
        return before
    from gateway.identity.jwt import JwtVerifier  # it takes long, and only those who use tokens need it

    return JwtVerifier(config.auth.jwt, logger, before)


def _asked(
    tokens: "JwtVerifier | None", forwards: Sequence[Forward], given: tuple[Verifier, ...]
) -> tuple[Verifier, ...]:
    """The verifiers behind the static keys, in order."""
    return (*([] if tokens is None else [tokens]), *forwards[:1], *given)


def _forwards(config: Config, engine: Engine, earlier: list[Forward]) -> list[Forward]:
    """What asks the team's application by this configuration, first; then earlier ones on which streams still rely.

    The same settings keep the same one, with what it knows. Where nobody is to be asked any more, nobody's streams go
    on: as a key that a reload removes, a user of the application is nobody then.
    """
    settings, origins = config.auth.forward, frozenset(config.cors.origins)
    if settings is None:
        for forward in earlier:
            forward.close()
        return []
    if earlier and (earlier[0].settings, earlier[0].origins) == (settings, origins):
        first, *others = earlier
    else:
        first, others = Forward(settings, origins, engine.session, engine.clock, engine.logger), earlier
    return [first, *(forward for forward in others if forward.watching)]


def _descriptors() -> int:
    """File descriptors that the process may open. First raises the soft limit to the hard one, 1 Mi at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def _shared_out(descriptors: int, wanted: int) -> tuple[int, int]:
    """The most streams and client connections. A stream needs two descriptors: to its reader and to its upstream."""
    free = max(FD_REFUSING + 2, descriptors - FD_RESERVE)
    streams = (free - FD_REFUSING) // 2
    return streams, min(wanted, free - streams)


async def _demo(config: Config, running: Demo | None) -> Demo | None:
    wanted = any(target.demo for upstream in config.upstreams.values() for target in upstream.targets)
    return await start_demo() if wanted and running is None else running


def _prepare(metrics: Metrics, snapshot: Snapshot) -> None:
    """Sets the names that metrics may use as labels, and the limit that they show beside the memory used."""
    config = snapshot.config
    models = {model for endpoint in snapshot.router.endpoints for model in endpoint.kind.models}
    for upstream in config.upstreams.values():
        models |= {name for name in (upstream.model, *(target.model for target in upstream.targets)) if name}
    metrics.known_models = frozenset(models)
    upstreams = config.upstreams.items()
    providers = {name: DIALECTS[upstream.dialect].provider for name, upstream in upstreams}
    metrics.providers = {name: provider for name, provider in providers.items() if provider}
    metrics.log_limit.set(config.server.max_log_bytes)


def _snapshot(
    config: Config,
    demo: Demo | None,
    kinds: Mapping[str, KindFactory],
    verifiers: tuple[Verifier, ...],
    old: Mapping[str, Upstream] = MappingProxyType({}),
) -> Snapshot:
    demo_url = demo.url if demo is not None else ""
    upstreams: dict[str, Upstream] = {}
    for name, settings in config.upstreams.items():
        # An upstream that a reload does not change is kept, with what it knows of its targets' health and load.
        kept = old.get(name)
        upstreams[name] = kept if kept is not None and kept.config == settings else Upstream(name, settings, demo_url)
    keys = [Key(key.id, key.digest, key.plan, frozenset(key.scopes), key.expires_at) for key in config.auth.keys]
    plans = {
        name: Plan(name, make_limits(plan.requests, plan.streams, plan.tokens)) for name, plan in config.plans.items()
    }
    endpoints = list(_endpoints(config, upstreams, kinds))
    beside = {path: found for _, endpoint in endpoints for path, found in endpoint.kind.beside.items()}
    return Snapshot(
        config=config,
        verifiers=(Keyring(keys), *verifiers) if keys else verifiers,
        carriers=carriers_of(verifiers),
        plans=plans,
        upstreams=upstreams,
        router=Router(endpoints, Endpoint("_none", Nowhere(), public=True), beside.items()),
        trusted=config.server.trusted_proxies,
        origins=frozenset(config.cors.origins),
    )


def _endpoints(
    config: Config, upstreams: dict[str, Upstream], kinds: Mapping[str, KindFactory]
) -> Iterator[tuple[str, Endpoint]]:
    if config.server.demo_page:
        yield from static_endpoints()
        yield "/page/failure", Endpoint("page", FailureDetails(), public=True)
        yield "/page/answer", Endpoint("page", AnswerFacts(), named_streams=True)
    yield "/streams/{id}", Endpoint("/streams", ReadStream(), named_streams=True)
    yield "/streams/{id}/stop", Endpoint("/streams", StopStream(), named_streams=True)
    if config.auth.tickets is not None:
        yield "/tickets", Endpoint("/tickets", IssueTicket())
    for route in config.routes:
        main = upstreams[route.upstream]
        chain = (main, *(upstreams[name] for name in main.config.fallback))
        yield route.path, Endpoint(route.path, kinds[route.api](route, chain))
