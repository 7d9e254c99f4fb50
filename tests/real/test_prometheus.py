"""The real Prometheus beside a gateway under a mixed load with faults: every query, rule and alert runs and finds data.

The load has every way a stream can end but `drained`, which is counted in the moment the process goes. Prometheus runs
with the shipped configuration, on ports and in a directory of its own, and looks once a second.
"""

import asyncio
import math
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import pytest
import pytest_asyncio
import yaml

from gateway.observe.metrics import Outcome
from grafana.boards import BOARDS
from tests.kit.program import ROOT, Gateway, Program, find_program, free_port
from tests.kit.redis import Redis
from tests.kit.sse_client import EventSource, Response, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    OPENAI_USAGE,
    Exchange,
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    openai_answer,
    openai_delta,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMETHEUS = ROOT / "prometheus"
ROUNDS = 3
LIFETIME = 6.0
"""Seconds after which the credential of one stream expires."""
OUTCOMES = set(get_args(Outcome)) - {"drained"}
"""Those that a scrape can see: what is drained is counted as the process exits."""
UNFILLED: dict[tuple[str, str], str] = {}
"""Panels that this load does not fill, by dashboard and title, with the reason; none at present."""


# -- the load ----------------------------------------------------------------------------------------------------------


def answer(exchange: Exchange) -> list[Step]:
    """What the upstream says to a question."""
    asked = exchange.body.decode()
    if exchange.target.startswith("/backup"):
        return openai_answer("the ", "rest")
    if "hang" in asked:
        return [sse_head(), openai_delta("one"), Pause(0.02), openai_delta("two"), Hang()]
    if "cut" in asked:
        return [sse_head(), openai_delta("a beginning "), Pause(0.02), Reset()]
    if "flood" in asked:
        return [sse_head(), *[openai_delta("x" * 1000) * 100] * 40, Hang()]
    tokens = [step for word in ("so", "it", "goes") for step in (openai_delta(word), Pause(0.02))]
    return [sse_head(), *tokens, OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]


def config(url: str, admin: str) -> dict[str, Any]:
    soon = datetime.fromtimestamp(time.time() + LIFETIME, UTC).isoformat()
    dead = [{"url": f"http://127.0.0.1:{free_port()}"} for _ in range(2)]
    chat = {"api": "chat", "upstream": "main", "history": None, "model": "known"}
    return {
        "server": {"drain": "3s", "admin_listen": admin},
        "auth": {
            "keys": [
                {"id": "web", "key": "web"},
                {"id": "soon", "key": "soon", "expires": soon},
                {"id": "poor", "key": "poor", "plan": "poor"},
                {"id": "tiny", "key": "tiny", "plan": "tiny"},
            ]
        },
        "plans": {"poor": {"tokens": "500/min"}, "tiny": {"requests": "1/h"}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": "100ms", "on_disconnect": {"after": "100ms"}, "commit_after": "0s"},
        "upstreams": {
            "main": {
                "dialect": "openai",
                "targets": [{"url": f"{url}/main"}],
                "retries": 0,
                "breaker": {"failures": 1000},
                "fallback": ["backup"],
            },
            "backup": {"dialect": "openai", "targets": [{"url": f"{url}/backup"}], "model": "second"},
            "alone": {"dialect": "openai", "targets": [{"url": f"{url}/alone"}], "breaker": {"failures": 1000}},
            "gone": {"dialect": "openai", "targets": dead, "retries": 0, "breaker": {"failures": 1}},
        },
        "routes": [
            {"path": "/chat"} | chat,
            {"path": "/idle"} | chat | {"upstream": "alone", "timeouts": {"idle": "300ms"}},
            {"path": "/brief"} | chat | {"upstream": "alone", "timeouts": {"total": "300ms"}},
            {"path": "/slow"} | chat | {"write_timeout": "1s", "on_disconnect": {"after": "0s"}},
            {"path": "/gone"} | chat | {"upstream": "gone"},
        ],
    }


class Load:
    """Users of one gateway, of every kind."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def ask(self, path: str, message: str, key: str = "web", **options: Any) -> Response:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.gateway.url}{path}"
        return await request(url, method="POST", body={"message": message}, headers=headers, **options)

    async def read(self, path: str, message: str, key: str = "web") -> None:
        async with await self.ask(path, message, key) as response:
            await response.body()

    async def round(self) -> None:
        """One of everything, at the same time."""
        await asyncio.gather(
            self.read("/chat", "good"),
            self.read("/chat", "cut"),
            self.read("/idle", "hang"),
            self.read("/brief", "hang"),
            self.read("/gone", "good"),
            self.read("/chat", "good", key="tiny"),
            self.read("/chat", "flood", key="poor"),
            self.read("/chat", "good", key="nobody's"),
            self.leave(),
            self.stall(),
            self.come_back_and_stop(),
        )

    async def leave(self) -> None:
        async with await self.ask("/chat", "hang") as response:
            await response.next()

    async def stall(self) -> None:
        async with await self.ask("/slow", "flood", receive_buffer=4096) as response:
            stream = response.headers["x-stream-id"]
            await self.gateway.logged("stream_end", stream_id=stream, outcome="slow_reader")

    async def come_back_and_stop(self) -> None:
        headers = {"Authorization": "Bearer web"}
        async with EventSource(f"{self.gateway.url}/chat?message=hang", headers=headers) as source:
            await source.until("token")
            source.retry = 0.01
            source.current.parser.retry = None
            await source.drop()
            await source.until("connected")
            stream = source.current.headers["x-stream-id"]
            async with await request(f"{self.gateway.url}/streams/{stream}/stop", method="POST", headers=headers):
                await source.until("done")

    async def refuse_a_configuration(self) -> None:
        self.gateway.write_config("routes: nonsense\n")
        self.gateway.send_signal(signal.SIGHUP)
        await self.gateway.logged("reload_failed")
        self.gateway.write_config(self.gateway.config)


# -- Prometheus --------------------------------------------------------------------------------------------------------


class Prometheus(Program):
    """Debian's Prometheus with the shipped configuration, which looks at one gateway once a second.

    Args:
        target: the gateway's admin listener, without a scheme.
        directory: for its files.

    Attributes:
        url: of its API.
    """

    def __init__(self, target: str, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(shipped(target)), encoding="utf-8")
        options = {
            "config.file": path,
            "storage.tsdb.path": directory / "data",
            "web.listen-address": f"127.0.0.1:{port}",
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        super().__init__([find_program("prometheus", "prometheus"), *flags], cwd=directory)

    async def ready(self) -> None:
        """Return when it answers."""
        await self.said(lambda line: "Server is ready to receive web requests" in line, "that it is ready")

    async def get(self, path: str, **parameters: Any) -> Any:
        """The data of an API call; fails with what Prometheus says of it."""
        async with await request(f"{self.url}/api/v1/{path}?{urlencode(parameters)}") as response:
            body = await response.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    async def scraped(self, metric: str = "up", value: int = 1) -> None:
        """Return when a metric had this value in a scrape that began after now."""
        asked = time.time()
        for _ in range(150):  # a scrape tells nobody that it was
            times = await self.found(f"timestamp({metric}) and {metric} == {value}")
            if any(float(one["value"][1]) > asked for one in times):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"no scrape had {metric} at {value}")

    async def found(self, expr: str) -> list[dict[str, Any]]:
        """The result of an expression now."""
        result: list[dict[str, Any]] = (await self.get("query", query=expr))["result"]
        return result

    async def seen(self, expr: str, begin: float) -> bool:
        """Whether an expression had a value at any time since `begin`."""
        data = await self.get("query_range", query=expr, start=begin, end=time.time(), step=1)
        return any(math.isfinite(float(value)) for series in data["result"] for _, value in series["values"])


def shipped(target: str) -> dict[str, Any]:
    """`prometheus.yml` for one gateway, at a faster pace."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    config["scrape_configs"] = [
        one | {"static_configs": [{"targets": [target]}]}
        for one in config["scrape_configs"]
        if one["job_name"] == "gateway"
    ]
    return config


class Scene:
    """What Prometheus has seen.

    Attributes:
        prometheus: running; the gateway is gone.
        began: when the load began, in seconds since 1970.
    """

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.began = time.time()

    async def play(self, gateway: Gateway, redis: Redis) -> None:
        load = Load(gateway)
        expiring = asyncio.create_task(load.read("/chat", "hang", key="soon"))
        await self.prometheus.scraped()
        await redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for _ in range(ROUNDS):
            await load.round()
            await self.prometheus.scraped()
        await expiring
        await load.refuse_a_configuration()
        await self.prometheus.scraped("gateway_config_last_reload_successful", 0)
        await self.drain(gateway, load)

    async def drain(self, gateway: Gateway, load: Load) -> None:
        async with await load.ask("/chat", "hang") as response:
            gateway.send_signal(signal.SIGTERM)
            await self.prometheus.scraped("gateway_draining")
            await response.body()
        assert await gateway.wait() == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    admin = f"127.0.0.1:{free_port()}"
    async with (
        ScriptedUpstream(answer) as upstream,
        Redis(tmp_path_factory.mktemp("redis") / "data", maxmemory="64mb") as redis,
        Prometheus(admin, tmp_path_factory.mktemp("prometheus")) as watcher,
    ):
        shared = config(upstream.url, admin) | {"store": redis.url}
        async with Gateway(shared, tmp_path_factory.mktemp("gateway")) as gateway:
            scene = Scene(watcher)
            async with asyncio.timeout(50):
                await scene.play(gateway, redis)
        yield scene


def substituted(expr: str) -> str:
    """An expression as Grafana sends it, with everything chosen."""
    for name in ("job", "instance", "route", "upstream"):
        expr = expr.replace(f"${name}", ".*")
    expr = expr.replace("$__rate_interval", "5s")
    assert "$" not in expr, expr
    return expr


def queries(board: str) -> Iterator[tuple[str, str]]:
    for panel in BOARDS[board]["panels"]:
        yield from ((panel["title"], substituted(target["expr"])) for target in panel.get("targets", ()))


@pytest.mark.parametrize("board", BOARDS)
async def test_every_panel_of_a_dashboard_is_filled(scene: Scene, board: str) -> None:
    for title, expr in queries(board):
        filled = await scene.prometheus.seen(expr, scene.began)
        assert filled != ((board, title) in UNFILLED), (title, expr)


async def test_checker_sees_an_empty_panel(scene: Scene) -> None:
    assert not await scene.prometheus.seen('gateway_streams_total{outcome="bliss"}', scene.began)
    assert not await scene.prometheus.seen("rate(gateway_streams_total[5s]) / 0 * 0", scene.began)


@pytest.mark.parametrize("board", BOARDS)
async def test_every_variable_of_a_dashboard_has_values(scene: Scene, board: str) -> None:
    for variable in BOARDS[board]["templating"]["list"][1:]:
        call = substituted(variable["query"]["query"]).removeprefix("label_values(").removesuffix(")")
        selector, _, label = call.rpartition(", ")
        values = await scene.prometheus.get(f"label/{label}/values", **{"match[]": selector, "start": scene.began})
        assert values, variable["name"]


async def test_load_ended_streams_in_every_way(scene: Scene) -> None:
    found = await scene.prometheus.get("label/outcome/values", start=scene.began)
    assert set(found) == OUTCOMES


async def test_every_rule_runs_and_every_recorded_series_is_filled(scene: Scene) -> None:
    groups = (await scene.prometheus.get("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 22
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        if rule["type"] == "recording":
            assert await scene.prometheus.seen(rule["name"], scene.began), rule["name"]
        else:
            await scene.prometheus.found(rule["query"])


@pytest.mark.parametrize("alert", ["GatewayReloadFailed", "GatewayBreakerOpen"])
async def test_alert_saw_what_went_wrong(scene: Scene, alert: str) -> None:
    assert await scene.prometheus.seen(f'ALERTS{{alertname="{alert}"}}', scene.began)


async def test_dashboards_are_right_about_the_load(scene: Scene) -> None:
    last = await scene.prometheus.found('sum(last_over_time(gateway_rescues_total{result="completed"}[1m]))')
    assert float(last[0]["value"][1]) == ROUNDS
    tokens = "gen_ai_client_token_usage_sum"
    selector = '{gen_ai_response_model="_other", gen_ai_token_type="output"}'
    assert await scene.prometheus.found(f"last_over_time({tokens}{selector}[1m]) > 0")


# -- promtool ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules/gateway.yml", "alerts/gateway.yml"],
        ["test", "rules", "tests/gateway.yml"],
    ],
    ids=" ".join,
)
async def test_promtool_accepts_the_shipped_files(arguments: list[str]) -> None:
    command = [find_program("promtool", "prometheus"), *arguments]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    promtool = await asyncio.create_subprocess_exec(*command, cwd=PROMETHEUS, stdout=pipe, stderr=both)
    said, _ = await promtool.communicate()
    assert promtool.returncode == 0, said.decode()
