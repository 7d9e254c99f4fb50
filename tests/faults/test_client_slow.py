"""A client that reads slowly, or not at all for a while: C4, C5."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import Response, request
from tests.kit.upstream import Hang, Pause, Step, chunk, openai_answer, openai_delta, sse_head
from tests.web.stage import EVENTS, Stage, eventually, parsed, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES: list[dict[str, Any]] = [
    {"path": "/chat", "write_timeout": "1s"},
    {"path": "/gzip", "write_timeout": "1s", "compress": True},
    {"path": "/proxy", "api": "proxy", "write_timeout": "1s"},
    {"path": "/patient", "write_timeout": "1m"},
]
BLOCK = "x" * 1000
SIZE = 4000
"""Blocks of an answer that fits into no socket's buffers: 4 MB."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES) as stage:
        yield stage


def long_answer(blocks: int = SIZE) -> list[Step]:
    return [sse_head(), *[openai_delta(BLOCK) * 100] * (blocks // 100), *openai_answer()[1:]]


async def unread(stage: Stage, path: str, script: list[Step]) -> tuple[str, Response]:
    question = stage.plays(script)
    return question, await request(stage.url(path, question), headers=EVENTS, receive_buffer=4096)


async def test_client_that_never_reads_is_cut_at_write_timeout_and_may_resume(stage: Stage) -> None:
    question, response = await unread(stage, "/chat", long_answer())
    began = asyncio.get_running_loop().time()
    stream_id = response.headers["x-stream-id"]
    await left(stage)
    assert 0.8 < asyncio.get_running_loop().time() - began < 2.5
    raw = await response.body()
    assert response.broken
    got = parsed(raw)
    rest = await whole(await stage.get("/chat", question, cursor=got[-1].last_event_id))
    assert text_of(got) + text_of(rest) == BLOCK * SIZE
    assert rest[-1].type == "done"
    assert len(stage.asked(question)) == 1
    await stage.gateway.logged("stream_end", stream_id=stream_id, outcome="completed")
    await response.close()


async def left(stage: Stage) -> None:
    """Returns when no EventSource reads from `/chat` any more."""
    sample = 'gateway_connections_active{route="/chat",transport="eventsource"}'
    await eventually(lambda: stage.metric(sample), lambda readers: readers == 0)


async def test_proxy_client_that_never_reads_is_cut_while_the_stream_runs(stage: Stage) -> None:
    block = chunk(f"data: {BLOCK}\n\n") * 100
    _, response = await unread(stage, "/proxy", [sse_head(), *[block] * 40, Hang()])
    stream_id = response.headers["x-stream-id"]
    await asyncio.sleep(1.6)
    raw = await response.body()
    assert response.broken
    assert parsed(raw)
    async with await request(stage.url(f"/streams/{stream_id}"), method="DELETE") as stopped:
        assert stopped.status == 200
    await response.close()


async def test_client_that_reads_a_byte_a_second_is_cut_at_write_timeout(stage: Stage) -> None:
    _, response = await unread(stage, "/chat", long_answer())
    began = asyncio.get_running_loop().time()

    async def sip() -> None:
        while not response.broken and len(response.raw) < 64:
            await response._reader.readexactly(1)
            await asyncio.sleep(1)

    sipping = asyncio.create_task(sip())
    await left(stage)
    assert asyncio.get_running_loop().time() - began < 4
    sipping.cancel()
    await response.close()


async def test_unread_streams_cost_little_memory_and_delay_nobody(stage: Stage) -> None:
    await whole(await stage.get("/patient", stage.plays(long_answer(100))))
    before = rss(stage)
    script = [sse_head(), openai_delta(BLOCK) * 200, Hang()]  # 200 KB each: their log, and what waits to be sent
    idle = [(await unread(stage, "/patient", script))[1] for _ in range(40)]
    await asyncio.sleep(0.5)
    cost = (rss(stage) - before) / len(idle)
    print(f"memory of a stream that nobody reads: {cost / 1024:.0f} KiB, of which its log about 300")
    steps = [step for _ in range(30) for step in (openai_delta("y"), Pause(0.01))]
    began = asyncio.get_running_loop().time()
    quick = await whole(await stage.get("/patient", stage.plays([sse_head(), *steps, *openai_answer()[1:]])))
    assert text_of(quick) == "y" * 30
    assert quick[-1].at - began < 1
    assert cost < (300 + 256) * 1024
    for response in idle:
        await response.reset()


def rss(stage: Stage) -> int:
    status = Path(f"/proc/{stage.gateway.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


async def test_client_that_pauses_and_then_reads_loses_nothing(stage: Stage) -> None:
    question = stage.plays(long_answer())
    response = await stage.get("/patient", question)
    await asyncio.sleep(3)
    messages = await whole(response)
    assert text_of(messages) == BLOCK * SIZE
    assert messages[-1].type == "done"
    assert len(stage.asked(question)) == 1
