"""A primary that is down for a while: the fallback serves all, single probes find out when it is back (U26)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.faults.stage import Stage, Way
from tests.kit.upstream import Exchange, Hang, ScriptedUpstream, Step, openai_answer, response

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPEN = 0.5
CHAT = Way("chat", committed=True, path="/u26/chat")
TIMES = {"connect": "1s", "first_event": "200ms", "idle": "300ms", "total": "20s"}


def main(url: str) -> dict[str, Any]:
    breaker = {"failures": 3, "open": f"{int(OPEN * 1000)}ms"}
    return {"dialect": "openai", "targets": [{"url": url}], "retries": 0, "breaker": breaker}


def counted(stage: Stage) -> int:
    return len(stage.upstream.exchanges)


async def reached(stage: Stage, count: int) -> None:
    """Returns when the primary has read so many requests. The gateway may have given the last one up before that."""
    async with asyncio.timeout(5):
        while counted(stage) < count:  # noqa: ASYNC110 - nothing tells when it is read
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with ScriptedUpstream(openai_answer("from the fallback")) as backup:

        def upstreams(url: str) -> dict[str, Any]:
            return {
                "u26": main(url) | {"fallback": ["spare"]},
                "alone": main(url),
                "spare": {"dialect": "openai", "targets": [{"url": backup.url}]},
            }

        routes = [
            {"path": CHAT.path, "api": "chat", "model": "m", "upstream": "u26"},
            {"path": "/alone/chat", "api": "chat", "model": "m", "upstream": "alone"},
        ]
        directory = tmp_path_factory.mktemp("u26")
        async with Stage.opened(directory, TIMES, upstreams=upstreams, routes=routes) as stage:
            yield stage


async def texts(stage: Stage, count: int) -> list[str]:
    """What so many requests at once were answered."""
    return [heard.text for heard in await stage.ask_all([CHAT] * count)]


async def gauge(stage: Stage, upstream: str) -> float:
    lines = await stage.metrics()
    [line] = [line for line in lines if line.startswith("gateway_breaker_open") and f'upstream="{upstream}"' in line]
    return float(line.split()[-1])


DOWN: dict[str, list[Step]] = {"fails": [response(503, "")], "silent": [Hang()]}


@pytest.mark.parametrize("how", DOWN)
async def test_primary_that_is_down_is_left_alone_and_taken_back(stage: Stage, how: str) -> None:
    stage.plays(DOWN[how])
    for _ in range(3):
        assert await texts(stage, 1) == ["from the fallback"]
    await reached(stage, 3)
    assert await gauge(stage, "u26") == 1.0
    assert await texts(stage, 20) == ["from the fallback"] * 20
    assert counted(stage) == 3, "an open breaker lets nothing through"
    await asyncio.sleep(OPEN)
    assert await texts(stage, 20) == ["from the fallback"] * 20
    await reached(stage, 4)
    assert counted(stage) == 4, "one probe, however many ask"
    stage.plays(openai_answer("from the primary"))
    await asyncio.sleep(OPEN)
    assert await texts(stage, 1) == ["from the primary"]
    assert (await texts(stage, 20), await gauge(stage, "u26")) == (["from the primary"] * 20, 0.0)
    assert counted(stage) == 21


async def test_probe_that_a_client_leaves_makes_room_for_the_next(stage: Stage) -> None:
    stage.plays(DOWN["fails"])
    await texts(stage, 3)
    stage.plays([Hang()])
    await asyncio.sleep(OPEN)
    async with await CHAT.send(stage.gateway.url) as answer:
        await stage.upstream.exchange()
        await answer.reset()
    stage.plays(openai_answer("from the primary"))
    async with asyncio.timeout(3):
        while await texts(stage, 1) != ["from the primary"]:
            pass
    assert await gauge(stage, "u26") == 0


@pytest.mark.alone
async def test_slow_failures_do_not_keep_the_primary_out(stage: Stage) -> None:
    """Calls that were sent before the breaker opened fail later, and put nothing off."""

    def first_two_hang(exchange: Exchange) -> list[Step]:
        return [Hang()] if counted(stage) <= 2 else DOWN["fails"]

    stage.plays(first_two_hang)
    began = asyncio.get_running_loop().time()
    await texts(stage, 8)
    stage.plays(openai_answer("from the primary"))
    async with asyncio.timeout(3):
        while await texts(stage, 1) != ["from the primary"]:
            pass
    assert asyncio.get_running_loop().time() - began < OPEN + 0.2


async def test_target_that_nobody_can_stand_in_for_stays_in_service(stage: Stage) -> None:
    way = Way("chat", path="/alone/chat")
    stage.plays(DOWN["fails"])
    for _ in range(5):
        await stage.fail_all([way], "upstream_unavailable", 503, whole=True)
    assert counted(stage) == 5
    stage.plays(openai_answer("from the primary"))
    await stage.complete_all([way], "from the primary")


async def test_refusals_and_rate_limits_open_no_breaker(stage: Stage) -> None:
    for script in [response(429, "")], [response(401, "")], [response(400, "")]:
        stage.plays(script)
        await stage.ask_all([CHAT] * 4)
        assert (counted(stage), await gauge(stage, "u26")) == (4, 0.0)
