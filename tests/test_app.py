"""The composition root: what a reload replaces, what it keeps, and what is left after the end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.app import App, make_app
from gateway.config import ChatRoute, Config
from gateway.core.limiter import Decision, Lease
from gateway.core.limits import make_limits
from gateway.core.principal import Principal
from gateway.core.rate import Rate
from gateway.core.sessions import Sessions

TINY = {"dialect": "openai", "targets": [{"url": "http://127.0.0.1:9/v1"}], "model": "tiny"}


def config(**changes: Any) -> Config:
    return Config.model_validate(
        {
            "server": {"max_log_bytes": "2MiB"},
            "auth": {"keys": [{"id": "anna", "key": "k"}]},
            "upstreams": {"main": {"dialect": "openai", "targets": [{"url": "http://127.0.0.1:9/v1"}], "model": "big"}},
            "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "model": "small"}],
        }
        | changes
    )


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = await make_app(config())
    yield app
    await app.close()


async def test_reload_replaces_the_snapshot_and_leaves_the_old_one_whole(app: App) -> None:
    old = app.gateway.snapshot
    await app.reload(config(auth={"keys": [{"id": "bert", "key": "b"}]}, plans={"small": {"streams": 1}}))
    new = app.gateway.snapshot
    assert (who(old, "k"), who(old, "b"), who(new, "k"), who(new, "b")) == ("anna", None, None, "bert")
    assert ("small" in old.plans, "small" in new.plans) == (False, True)


async def test_reload_keeps_the_health_of_an_upstream_until_its_settings_change(app: App) -> None:
    old = app.gateway.snapshot.upstreams["main"]
    await app.reload(config(plans={"small": {"streams": 1}}))
    assert app.gateway.snapshot.upstreams["main"] is old
    await app.reload(config(upstreams={"main": TINY}))
    new = app.gateway.snapshot.upstreams["main"]
    assert new is not old
    assert (old.config.model, new.config.model) == ("big", "tiny")


def who(snapshot: Any, key: str) -> str | None:
    principal: Principal | None = snapshot.verifiers[0].match(key, 0.0)
    return principal.id if principal is not None else None


async def test_reload_keeps_what_streams_and_limits_live_in(app: App) -> None:
    gateway = app.gateway
    decision = gateway.limiter.decide(gateway.snapshot.plans["default"], "key:anna", {"streams": 1}, 0.0)
    assert isinstance(decision, Decision)
    assert isinstance(decision.outcome, Lease)
    before = (gateway.registry, gateway.limiter, gateway.addresses, gateway.engine, gateway.metrics)
    await app.reload(config())
    assert (gateway.registry, gateway.limiter, gateway.addresses, gateway.engine, gateway.metrics) == before


async def test_reload_changes_bounds_that_live_on(app: App) -> None:
    limits = {"per_address": {"requests": "7/s", "connections": 3}}
    await app.reload(config(server={"max_log_bytes": "5MiB"}, limits=limits))
    assert app.gateway.registry.memory.limit == 5 << 20
    assert app.gateway.addresses.plan.limits == make_limits(Rate(7, 1.0), 3)


async def test_reload_changes_the_models_that_metrics_know(app: App) -> None:
    assert app.gateway.metrics.known_models == {"big", "small"}
    await app.reload(config(routes=[{"path": "/chat", "api": "chat", "upstream": "main", "model": "tiny"}]))
    assert app.gateway.metrics.known_models == {"big", "tiny"}


def sessions(app: App) -> Sessions:
    """The sessions of the only route, as a request finds them."""
    [route] = app.gateway.snapshot.config.routes
    assert isinstance(route, ChatRoute)
    history = app.gateway.history(route.path, route.history)
    assert history is not None
    return history


async def test_reload_changes_how_long_sessions_are_remembered(app: App) -> None:
    history = sessions(app)
    for number in range(3):
        history.add("anna", "s", f"q{number}", "a", 0.0)
    short = {"path": "/chat", "api": "chat", "upstream": "main", "history": {"turns": 1, "ttl": "1h"}}
    await app.reload(config(routes=[short]))
    assert sessions(app) is history
    history.add("anna", "s", "q3", "a", 0.0)
    assert [message["content"] for message in history.get("anna", "s", 0.0)] == ["q3", "a"]


async def test_demo_is_started_when_first_asked_for_and_only_once(app: App) -> None:
    demo = {"main": {"dialect": "openai", "targets": [{"url": "demo:"}]}}
    assert app.demo is None
    await app.reload(config(upstreams=demo))
    first = app.demo
    await app.reload(config(upstreams=demo))
    assert first is not None
    assert app.demo is first
    assert app.gateway.snapshot.upstreams["main"].targets[0].url == first.url.rstrip("/")


async def test_nothing_runs_after_the_end() -> None:
    before = asyncio.all_tasks()
    app = await make_app(config(upstreams={"main": {"dialect": "openai", "targets": [{"url": "demo:"}]}}))
    await app.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert app.gateway.engine.session.closed
