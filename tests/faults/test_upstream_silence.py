"""Upstreams that fall silent: before the head, before the first event, in the middle, or never (U11, U12, U21)."""

import asyncio
from typing import Any

import pytest

from tests.faults.stage import CHATS, DIALECTS, KINDS, STREAMS, Stage, Way, ending, opening, stage_fixture, token, ways
from tests.kit.upstream import Exchange, Hang, Pause, Step, chunk, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

PING = {
    "openai": b": still here\n\n",
    "anthropic": b'event: ping\ndata: {"type":"ping"}\n\n',
    "ollama": b"\n",
    "sse": b"event: ping\ndata: {}\n\n",
}
BRIEF = {"total": "500ms", "idle": "1s"}
SHORT: list[dict[str, Any]] = [
    {"path": f"/short/{dialect}", "api": "chat", "model": "m", "upstream": dialect, "timeouts": dict(BRIEF)}
    for dialect in DIALECTS
]

stage = stage_fixture(routes=SHORT)


@pytest.mark.parametrize("script", [[Hang()], [sse_head(), Hang()], [sse_head(), chunk(b": hi\n\n"), Hang()]], ids=len)
async def test_upstream_without_first_event_is_given_up_in_time(stage: Stage, script: list[Step]) -> None:
    stage.plays(script)
    began = asyncio.get_running_loop().time()
    for heard in await stage.fail_all(ways(*KINDS), "upstream_timeout", 504, "timeout"):
        assert heard.error["retryable"]
        assert heard.retry or not heard.is_stream
    assert 0.3 < asyncio.get_running_loop().time() - began < 2


@pytest.mark.parametrize("dialect", DIALECTS[1:])
async def test_upstream_of_any_kind_without_first_event_is_given_up(stage: Stage, dialect: str) -> None:
    signs = [chunk(PING[dialect])] if dialect in PING else []
    scripts: list[list[Step]] = [[Hang()], [*opening(dialect), *signs, Hang()]]
    for script in scripts:
        stage.plays(script)
        await stage.fail_all(ways(*CHATS, dialect=dialect), "upstream_timeout", 504, "timeout")


async def test_committed_client_of_silent_upstream_gets_heartbeats_then_the_error(stage: Stage) -> None:
    stage.plays([Hang()])
    for heard in await stage.fail_all(ways(*STREAMS, committed=True), "upstream_timeout", 504, "timeout"):
        assert len(heard.comments) >= 2


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_client_of_stalled_upstream_gets_heartbeats_then_the_error(stage: Stage, dialect: str) -> None:
    stage.plays([*opening(dialect, "Hel", "lo"), Hang()])
    kinds = KINDS if dialect == "openai" else CHATS
    heard = await stage.fail_all(
        ways(*kinds, dialect=dialect), "upstream_stalled", 504, "upstream_stalled", text="Hello"
    )
    assert all(one.error["retryable"] for one in heard)
    assert all(len(one.comments) >= 2 for one in heard if one.is_stream)


@pytest.mark.parametrize("dialect", PING)
async def test_upstream_that_pings_is_alive(stage: Stage, dialect: str) -> None:
    pings = [step for _ in range(5) for step in (Pause(0.15), chunk(PING[dialect]))]
    stage.plays([*opening(dialect, "Hel"), *pings, chunk(token(dialect, "lo")), *ending(dialect)])
    await stage.complete_all(ways(*CHATS, dialect=dialect), "Hello")


async def test_upstream_that_never_ends_is_ended(stage: Stage) -> None:
    def endless(exchange: Exchange) -> list[Step]:
        dialect = exchange.target.split("/")[1]
        return [*opening(dialect), *(step for _ in range(99) for step in (chunk(token(dialect, "a")), Pause(0.05)))]

    stage.plays(endless)
    asked = [Way("chat", dialect, path=f"/short/{dialect}") for dialect in DIALECTS]
    for heard in await stage.ask_all(asked):
        assert (heard.error["code"], heard.ended) == ("stream_limit", 0)
        assert 3 < len(heard.text) < 15
        await stage.told(heard, "timeout")
    await stage.hung_up()
