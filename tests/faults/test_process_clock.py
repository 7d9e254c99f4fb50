"""W6: the wall clock jumps by an hour, and only what is a date takes notice."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import EventSource, Response, request
from tests.kit.upstream import LAST_CHUNK, Cut, ScriptedUpstream, Step, WaitFor, openai_answer, openai_delta, sse_head
from tests.web.stage import UNLIMITED, text_of

HOUR = 3600.0
HEARTBEAT = 0.2
WALL = """
import os, time

def shifted(real=time.time):
    with open(os.environ["WALL_CLOCK"]) as file:
        return real() + float(file.read())

time.time = shifted
"""
"""Runs before the gateway does: the process's wall clock is off by what a file says."""


def config(url: str) -> dict[str, Any]:
    soon = datetime.fromtimestamp(time.time() + HOUR / 2, UTC)
    return {
        "auth": {"keys": [{"id": "ann", "key": "a"}, {"id": "bob", "key": "b", "expires": soon}]},
        "plans": {"default": {"requests": "100/min", "streams": 3, "tokens": "100000/min"}},
        "limits": UNLIMITED,
        "stream": {"heartbeat": f"{HEARTBEAT * 1000:.0f}ms", "resume": {"ttl": "1m"}, "write_timeout": "5s"},
        "timeouts": {"first_event": "20s", "idle": "20s", "total": "1m"},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main"}],
    }


class Clock:
    """The wall clock of a gateway.

    Args:
        directory: for its file and what makes the gateway look at it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(WALL)
        self._file = directory / "wall"
        self.env = {"PYTHONPATH": str(directory), "WALL_CLOCK": str(self._file)}
        self.jump(0)

    def jump(self, seconds: float) -> None:
        """From now on it is wrong by so much."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._file)


async def ask(gateway: Gateway, key: str) -> Response:
    headers = {"Authorization": f"Bearer {key}"}
    return await request(f"{gateway.url}/chat", method="POST", body={"message": "hi"}, headers=headers)


async def status(gateway: Gateway, key: str) -> int:
    async with await ask(gateway, key) as answer:
        return answer.status


async def beats(answer: Response) -> float:
    """Seconds between two heartbeats, measured over five."""
    await answer.comment()
    began = asyncio.get_running_loop().time()
    for _ in range(5):
        await answer.comment()
    return (asyncio.get_running_loop().time() - began) / 5


@pytest.mark.alone
async def test_jump_of_the_wall_clock_moves_no_timer(start_gateway: StartGateway, tmp_path: Path) -> None:
    """W6: streams, heartbeats, limits and resume go on; a key that has expired by that clock starts nothing new."""
    go_on, clock = asyncio.Event(), Clock(tmp_path / "clock")
    script: list[Step] = [
        sse_head(),
        openai_delta("one"),
        WaitFor(go_on),
        *openai_answer("two")[1:-1],
        LAST_CHUNK,
        Cut(),
    ]
    async with ScriptedUpstream(script) as upstream:
        gateway = await start_gateway(config(upstream.url), env=clock.env)
        async with await ask(gateway, "b") as bob, EventSource(f"{gateway.url}/chat?message=hi&token=a") as ann:
            got = await ann.until("token")
            for jump in (HOUR, -HOUR):
                clock.jump(jump)
                assert await status(gateway, "b") == (401 if jump > 0 else 200)
                assert await status(gateway, "a") == 200
                assert HEARTBEAT * 0.5 < await beats(bob) < HEARTBEAT * 2.5
                ann.retry, ann.current.parser.retry = 0.01, None
                await ann.drop()
                got += await ann.take(1)  # it was here before, and is told so
            go_on.set()
            got += await ann.until("done")
            assert text_of([message async for message in bob.messages()]) == "onetwo"
        assert text_of(got) == "onetwo"
        scrape = await Ledger(gateway).scrape()
        assert scrape.total("gateway_stream_duration_seconds_sum") < 60
