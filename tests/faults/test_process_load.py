"""A thousand streams at once through one process: all whole, all on time, and nothing left afterwards."""

import asyncio
from typing import Any, NamedTuple

import pytest

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger, Scrape
from tests.kit.program import Gateway
from tests.kit.sse_client import allow_connections, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    OPENAI_USAGE,
    Cut,
    Pause,
    ScriptedUpstream,
    Step,
    openai_delta,
    sse_head,
)

pytestmark = pytest.mark.alone

STREAMS = 1000
SECONDS = 5
HEARTBEAT = 0.4
KEY = {"Authorization": "Bearer load"}


def config(upstream: ScriptedUpstream) -> dict[str, Any]:
    return {
        "auth": {"keys": [{"id": "load", "key": "load"}]},
        "plans": {"default": {"streams": STREAMS}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": f"{int(HEARTBEAT * 1000)}ms", "resume": {"ttl": "1s"}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": upstream.url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


def slow_answer() -> list[Step]:
    beats = [step for second in range(SECONDS) for step in (openai_delta(f"{second} "), Pause(1.0))]
    return [sse_head(), *beats, OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK, Cut()]


class Heard(NamedTuple):
    """One stream: its types, text, heartbeats, and the longest silence in seconds."""

    types: list[str]
    text: str
    heartbeats: int
    silence: float


async def listen(gateway: Gateway) -> Heard:
    async with await request(f"{gateway.url}/chat", method="POST", body={"message": "hi"}, headers=KEY) as answer:
        loop = asyncio.get_running_loop()
        messages, at, silence = [], loop.time(), 0.0
        while data := await answer.read():
            silence, at = max(silence, loop.time() - at), loop.time()
            messages += answer.parser.feed(data)
        text = "".join(message.json()["text"] for message in messages if message.type == "token")
        return Heard([message.type for message in messages], text, len(answer.parser.comments), silence)


@pytest.mark.timeout(120)
async def test_thousand_streams_at_once_are_whole_and_leave_nothing(start_gateway: StartGateway) -> None:
    allow_connections(2 * STREAMS)
    async with ScriptedUpstream(slow_answer()) as upstream:
        gateway = await start_gateway(config(upstream))
        async with Ledger(gateway, patience=10) as ledger:
            resting = ledger.rss()
            async with asyncio.timeout(60):
                listening = [asyncio.ensure_future(listen(gateway)) for _ in range(STREAMS)]
                await all_open(ledger)
                peak = ledger.rss()
                heard = await asyncio.gather(*listening)
            scrape = await ledger.scrape()
        check_whole(heard)
        await check_forgotten(gateway, ledger)
    report(heard, scrape, resting, peak)
    assert scrape.total("gateway_streams_total", outcome="completed") == STREAMS
    assert (peak - resting) / STREAMS < 400_000
    lines = [line for line in gateway.log_lines("stream_end") if line["outcome"] != "stopped"]
    assert len({line["stream_id"] for line in lines}) == len(lines) == STREAMS
    assert {(line["outcome"], line["output_tokens"], line["connections"]) for line in lines} == {("completed", 5, 1)}


async def all_open(ledger: Ledger) -> None:
    for _ in range(200):
        if len(await ledger.streams()) == STREAMS:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the streams were never all open at once")


def check_whole(heard: list[Heard]) -> None:
    whole = "".join(f"{second} " for second in range(SECONDS))
    assert {one.text for one in heard} == {whole}
    assert {(one.types[0], one.types[-1], one.types.count("done")) for one in heard} == {("connected", "done", 1)}
    # Two heartbeats fit into every second of silence; a busy machine may lose some to lateness, but not half.
    assert min(one.heartbeats for one in heard) >= SECONDS
    assert sorted(one.silence for one in heard)[STREAMS // 2] < HEARTBEAT + 0.4


async def check_forgotten(gateway: Gateway, ledger: Ledger) -> None:
    """Every slot is free again, and after the ttl no log is left."""
    async with await request(f"{gateway.url}/chat", method="POST", body={"message": "hi"}, headers=KEY) as answer:
        assert f'"streams";r={STREAMS - 1}' in answer.headers["ratelimit"]
        url = f"{gateway.url}/streams/{answer.headers['x-stream-id']}"
        async with await request(url, method="DELETE", headers=KEY) as stopped:
            assert (await stopped.json())["state"] == "stopped"
        await answer.body()
    for _ in range(200):
        scrape = await ledger.scrape()
        if scrape.total("gateway_log_streams") == 0:
            break
        await asyncio.sleep(0.05)
    assert (scrape.total("gateway_log_streams"), scrape.total("gateway_log_bytes")) == (0, 0)


def report(heard: list[Heard], scrape: Scrape, resting: int, peak: int) -> None:
    silences = sorted(one.silence for one in heard)
    late = {s.labels["le"]: int(s.value) for s in scrape.matching("gateway_event_loop_lag_seconds_bucket")}
    each = (peak - resting) / STREAMS / 1024
    print(f"\n{STREAMS} streams: RSS {resting >> 20} -> {peak >> 20} MiB ({each:.0f} KiB each)")
    print(f"longest silence p50 {silences[STREAMS // 2]:.2f} s, max {silences[-1]:.2f} s; heartbeat {HEARTBEAT} s")
    print(f"loop lag, {late['+Inf']} looks: <=10ms {late['0.01']}, <=50ms {late['0.05']}, <=250ms {late['0.25']}")
    print(f"heartbeats {int(scrape.total('gateway_heartbeats_total'))}")
