"""Metrics and log lines: one mixed afternoon of a gateway, and what its books say about it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.contract import METRICS
from tests.kit.ledger import Ledger, Scrape
from tests.kit.program import Gateway, free_port
from tests.kit.sse_client import EventSource, request
from tests.kit.upstream import Cut, Exchange, Hang, ScriptedUpstream, Step, openai_answer, openai_delta, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY = {"Authorization": "Bearer a-key-nobody-may-log"}
PROMPT = "a-prompt-nobody-may-log"
HISTOGRAMS = ("_seconds", "_events")
ELSEWHERE = {
    "gateway_adoptions_total",
    "gateway_rescues_total",
}  # store/test_adoption.py and test_rescue.py make them move
NAMES = {
    f"{name}_count" if name.endswith(HISTOGRAMS) else name: labels
    for name, labels in METRICS.items()
    if name not in ELSEWHERE
}
FIELDS = {
    "ts",
    "level",
    "event",
    "stream_id",
    "request_id",
    "principal",
    "route",
    "upstream",
    "model",
    "outcome",
    "finish_reason",
    "first_token_ms",
    "duration_ms",
    "attempts",
    "events",
    "bytes",
    "connections",
    "input_tokens",
    "output_tokens",
    "usage_source",
}


def answers(exchange: Exchange) -> list[Step]:
    """A question that asks for it is never answered to its end."""
    if "for-ever" in exchange.body.decode():
        return [sse_head(), openai_delta("one"), openai_delta("two"), Hang()]
    return [*openai_answer("one", "two"), Cut()]


def config(url: str) -> dict[str, Any]:
    route = {"api": "chat", "upstream": "main", "history": None, "model": "known"}
    return {
        "server": {"drain": "0s"},
        "auth": {"keys": [{"id": "anna", "key": "a-key-nobody-may-log"}, {"id": "bert", "key": "b", "plan": "tiny"}]},
        "plans": {"tiny": {"requests": "1/h"}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": "100ms", "on_disconnect": {"after": "100ms"}},
        "upstreams": {
            "main": {"dialect": "openai", "targets": [{"url": url}]},
            "gone": {"dialect": "openai", "targets": [{"url": f"http://127.0.0.1:{free_port()}"}], "retries": 0},
        },
        "routes": [
            {"path": "/chat"} | route,
            {"path": "/brief"} | route | {"timeouts": {"idle": "200ms"}},
            {"path": "/gone"} | route | {"upstream": "gone"},
        ],
    }


class Afternoon:
    """A gateway after one of everything.

    Attributes:
        before, after: its metrics.
        ids: request ids by what the request was for.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.ids: dict[str, str] = {}
        self.before = self.during = self.after = Scrape("")

    async def pass_by(self) -> None:
        async with Ledger(self.gateway) as ledger:
            self.before = await ledger.scrape()
            await self.ask("completed", "/chat")
            await self.ask("upstream_stalled", "/brief", "for-ever")
            await self.ask("upstream_error", "/gone")
            await self.ask("unauthorized", "/chat", headers={"Authorization": "Bearer wrong"})
            await self.ask("tiny", "/chat", headers={"Authorization": "Bearer b"})
            await self.ask("limited", "/chat", headers={"Authorization": "Bearer b"})
            await self.leave()
            await self.come_back(ledger)
        await self.gateway.logged("stream_end", outcome="client_gone")
        self.after = await ledger.scrape()

    async def ask(self, name: str, path: str, message: str = PROMPT, headers: dict[str, str] = KEY) -> None:
        body = {"message": f"{PROMPT} {message}"}
        async with await request(f"{self.gateway.url}{path}", method="POST", body=body, headers=headers) as answer:
            self.ids[name] = answer.headers["x-request-id"]
            await answer.body()

    async def leave(self) -> None:
        headers = KEY | {"X-Request-Id": "leaving-1"}
        async with await request(
            f"{self.gateway.url}/chat", method="POST", body={"message": "for-ever"}, headers=headers
        ) as answer:
            self.ids["client_gone"] = answer.headers["x-request-id"]
            await answer.next()

    async def come_back(self, ledger: Ledger) -> None:
        async with EventSource(f"{self.gateway.url}/chat?message=for-ever", headers=KEY) as source:
            await source.until("token")
            source.retry = 0.01
            source.current.parser.retry = None
            await source.drop()
            await source.until("connected")
            await source.current.comment()
            self.ids["resumed"] = source.connections[0].headers["x-request-id"]
            self.during = await ledger.scrape()
            url = f"{self.gateway.url}/streams/{source.current.headers['x-stream-id']}/stop"
            async with await request(url, method="POST", headers=KEY) as stopped:
                assert stopped.status == 200
            await source.until("done")

    def moved(self, name: str, **labels: str) -> float:
        return self.after.total(name, **labels) - self.before.total(name, **labels)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def afternoon(tmp_path_factory: Any) -> AsyncIterator[Afternoon]:
    directory: Path = tmp_path_factory.mktemp("metrics")
    async with ScriptedUpstream(answers) as upstream, Gateway(config(upstream.url), directory) as gateway:
        afternoon = Afternoon(gateway)
        async with asyncio.timeout(20):
            await afternoon.pass_by()
        yield afternoon


async def test_every_metric_of_the_contract_is_there_with_its_labels(afternoon: Afternoon) -> None:
    assert set(NAMES) <= afternoon.after.names
    for name, labels in NAMES.items():
        assert {frozenset(sample.labels) for sample in afternoon.after.matching(name)} == {frozenset(labels)}, name


async def test_each_stream_is_counted_once_by_how_it_ended(afternoon: Afternoon) -> None:
    outcomes = {sample.labels["outcome"]: sample.value for sample in afternoon.after.matching("gateway_streams_total")}
    assert outcomes == {
        "completed": 2,
        "upstream_stalled": 1,
        "upstream_error": 1,
        "client_gone": 1,
        "stopped": 1,
    }
    assert afternoon.moved("gateway_stream_duration_seconds_count") == 6
    assert afternoon.moved("gateway_overhead_seconds_count") == 6


async def test_gauges_rise_while_it_runs_and_fall_to_zero(afternoon: Afternoon) -> None:
    assert afternoon.during.total("gateway_streams_active", route="/chat") == 1
    assert afternoon.during.total("gateway_connections_active", transport="eventsource") == 1
    assert afternoon.during.total("gateway_log_streams") > 0
    assert afternoon.during.total("gateway_log_bytes") > 0
    assert afternoon.after.total("gateway_streams_active") == 0
    assert afternoon.after.total("gateway_connections_active") == 0


async def test_requests_are_counted_by_route_method_and_code(afternoon: Afternoon) -> None:
    name = "gateway_http_requests_total"
    assert afternoon.moved(name, route="/gone", method="POST", code="502") == 1
    assert afternoon.moved(name, route="/chat", code="401") == 1
    assert afternoon.moved(name, route="/chat", code="429") == 1
    assert afternoon.moved(name, route="/streams", method="POST", code="200") == 1
    assert afternoon.moved(name) == afternoon.moved("gateway_http_request_duration_seconds_count")


async def test_upstream_is_counted_by_what_it_answered(afternoon: Afternoon) -> None:
    assert afternoon.moved("gateway_upstream_requests_total", upstream="main", code="200") == 5
    assert afternoon.moved("gateway_upstream_requests_total", upstream="gone", code="none") == 1
    assert afternoon.moved("gateway_upstream_errors_total", upstream="gone", error_type="upstream_unreachable") == 1
    assert afternoon.moved("gateway_upstream_errors_total", upstream="main", error_type="upstream_stalled") == 1
    assert afternoon.moved("gateway_upstream_errors_total") == 2


async def test_tokens_are_counted_by_who_counted_them(afternoon: Afternoon) -> None:
    name = "gateway_tokens_total"
    assert afternoon.moved(name, upstream="main", type="output", source="usage") == 10
    assert afternoon.moved(name, upstream="main", type="input", source="usage") == 6
    assert afternoon.moved(name, upstream="main", type="output", source="estimate") == 6
    assert afternoon.moved("gateway_time_to_first_token_seconds_count", upstream="main") == 5


async def test_events_bytes_and_heartbeats_move(afternoon: Afternoon) -> None:
    for name in ("gateway_events_total", "gateway_sent_bytes_total", "gateway_heartbeats_total"):
        assert afternoon.moved(name) > 0, name
    assert afternoon.moved("gateway_batch_events_count") > 0


async def test_refusals_and_resumes_are_counted(afternoon: Afternoon) -> None:
    assert afternoon.moved("gateway_auth_failures_total") == 1
    assert afternoon.moved("gateway_rate_limited_total", plan="tiny", limit="requests") == 1
    assert afternoon.moved("gateway_resumes_total", result="resumed") == 1


async def test_every_stream_end_has_all_its_fields(afternoon: Afternoon) -> None:
    lines = afternoon.gateway.log_lines("stream_end")
    assert len(lines) == 6
    assert [line for line in lines if set(line) != FIELDS] == []
    assert all(line["duration_ms"] >= (line["first_token_ms"] or 0) >= 0 for line in lines)
    [resumed] = [line for line in lines if line["request_id"] == afternoon.ids["resumed"]]
    assert (resumed["outcome"], resumed["connections"], resumed["principal"]) == ("stopped", 2, "key:anna")
    assert resumed["bytes"] > 0


async def test_request_id_is_in_the_header_and_in_every_line(afternoon: Afternoon) -> None:
    ends = {line["outcome"]: line["request_id"] for line in afternoon.gateway.log_lines("stream_end")}
    for outcome in ("upstream_stalled", "upstream_error", "client_gone"):
        assert ends[outcome] == afternoon.ids[outcome]
    assert afternoon.ids["client_gone"] == "leaving-1"
    requests = [line["request_id"] for line in afternoon.gateway.log_lines("request")]
    assert set(afternoon.ids.values()) <= set(requests)
    assert len(requests) == len(set(requests))


async def test_no_line_and_no_metric_holds_a_secret_or_a_prompt(afternoon: Afternoon) -> None:
    written = "\n".join([*afternoon.gateway.stdout, *afternoon.gateway.stderr])
    labels = "\n".join(value for sample in afternoon.after.samples for value in sample.labels.values())
    assert "nobody-may-log" not in written
    assert "nobody-may-log" not in labels
    assert "one" not in [word for line in afternoon.gateway.log_lines() for word in map(str, line.values())]
