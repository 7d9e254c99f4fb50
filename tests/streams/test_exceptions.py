"""A part raises where nobody foresaw it: one error, never a second head, connections closed, counted once (H11).

Formats, and what is passed on, are in tests/web/test_boundary.py; verifiers in tests/seams/test_verifier.py.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.core.event import TOKEN, Event
from gateway.core.sse import LineSplitter
from gateway.dialects import DIALECTS, Answer, Call, Dialect
from gateway.dialects.base import UnitAnswer, post
from gateway.streams.log import MemoryLog
from tests.kit.sse_client import request
from tests.kit.upstream import Hang, Pause, ScriptedUpstream, Step, chunk, http_head
from tests.seams.serving import serving
from tests.web.stage import EVENTS, parsed


class BrittleAnswer(UnitAnswer):
    """Lines of text, of which it cannot bear one."""

    def __init__(self) -> None:
        super().__init__(LineSplitter())

    def _translate_one(self, unit: str, out: list[Event]) -> None:
        if unit == "bad":
            raise ZeroDivisionError("a secret answer")
        self._say(TOKEN, unit, out)


class Brittle(Dialect):
    """A dialect whose answers break, or whose question does."""

    name = "brittle"
    provider = "brittle"
    stream_types = frozenset({"text/x-brittle"})

    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        if chat["messages"][-1]["content"] == "unspeakable":
            raise ZeroDivisionError("a secret prompt")
        return post(url, {}, {})

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return BrittleAnswer()


def says(*lines: str) -> list[Step]:
    head = http_head(content_type="text/x-brittle", Transfer_Encoding="chunked")
    return [head, *(step for line in lines for step in (chunk(f"{line}\n"), Pause(0.05))), Hang()]


def config(url: str) -> dict[str, Any]:
    return {
        "auth": {"anonymous": True},
        "upstreams": {"main": {"dialect": "brittle", "targets": [{"url": url}], "retries": 0}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "merge": False}],
    }


async def ended_badly(script: Sequence[Step], message: str, heard: list[str], asked: int) -> None:
    """The answer to a message is what is heard, then one error; everything is closed, logged and counted once."""
    with capture_logs() as lines:
        async with ScriptedUpstream(script) as upstream, serving(config(upstream.url)) as gateway, asyncio.timeout(10):
            async with await request(f"{gateway.url}/chat?message={message}", headers=EVENTS) as answer:
                await answer.body()
                raw = bytes(answer.raw)
            for exchange in upstream.exchanges:
                await exchange.closed.wait()
            assert len(upstream.exchanges) == asked
            app = gateway.app.gateway
            assert (len(app.engine.running), app.registry.readers) == (0, 0)
            samples = [sample for metric in app.metrics.registry.collect() for sample in metric.samples]
            ended = [sample for sample in samples if sample.name == "gateway_streams_total" and sample.value]
            assert [(sample.labels["outcome"], sample.value) for sample in ended] == [("upstream_error", 1)]
    messages = parsed(raw)
    assert [message.json().get("text") for message in messages if message.type == "token"] == heard
    assert [message.type for message in messages if message.type in ("error", "done")] == ["error"]
    assert messages[-1].json()["code"] == "internal"
    assert b"HTTP/1.1" not in raw, "a second head"
    assert b"secret" not in raw
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["generation_failed"]


@pytest.fixture(autouse=True)
def _brittle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIALECTS, "brittle", Brittle())


async def test_dialect_that_raises_in_mid_stream_ends_it_with_one_error_event() -> None:
    """H11"""
    await ended_badly(says("good", "bad"), "hi", ["good"], 1)


async def test_dialect_that_raises_at_the_first_event_ends_it_with_one_error_event() -> None:
    """H11"""
    await ended_badly(says("bad"), "hi", [], 1)


async def test_dialect_that_cannot_ask_ends_it_with_one_error_event() -> None:
    """H11"""
    await ended_badly(says("good"), "unspeakable", [], 0)


async def test_log_that_raises_in_mid_stream_ends_it_with_one_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """H11"""
    append = MemoryLog.append

    def brittle(self: MemoryLog, events: Sequence[Event]) -> None:
        if any(event.data == "worse" for event in events):
            raise ZeroDivisionError("a secret answer")
        append(self, events)

    monkeypatch.setattr(MemoryLog, "append", brittle)
    await ended_badly(says("good", "worse"), "hi", ["good"], 1)
