"""A client that reads slowly, or not at all for a while: C4, C5."""

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.kit.ledger import Ledger
from tests.kit.sse_client import Message, Response, allow_connections, request
from tests.kit.upstream import Hang, Pause, Step, chunk, openai_answer, openai_delta, sse_head
from tests.web.stage import EVENTS, Stage, eventually, parsed, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES: list[dict[str, Any]] = [
    {"path": "/chat", "write_timeout": "1s"},
    {"path": "/gzip", "write_timeout": "1s", "compress": True},
    {"path": "/proxy", "api": "proxy", "write_timeout": "1s"},
    {"path": "/patient", "write_timeout": "1m"},
    {"path": "/pausing", "write_timeout": "3s"},
    {"path": "/plain"},
    {"path": "/late", "write_timeout": "3s"},
    {"path": "/cut", "write_timeout": "3s", "on_disconnect": {"after": "0s"}},
]
BLOCK = "x" * 1000
SIZE = 4000
"""Blocks of an answer that fits into no socket's buffers: 4 MB."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage of its own: memory that others gave back would hide what a test takes."""
    async with staged(tmp_path, ROUTES) as stage:
        yield stage


def long_answer(blocks: int = SIZE) -> list[Step]:
    return [sse_head(), *[openai_delta(BLOCK) * 100] * (blocks // 100), *openai_answer()[1:]]


async def unread(stage: Stage, path: str, script: list[Step]) -> tuple[str, Response]:
    question = stage.plays(script)
    return question, await request(stage.url(path, question), headers=EVENTS, receive_buffer=4096)


@pytest.mark.alone
async def test_client_that_never_reads_is_cut_at_write_timeout_and_may_resume(stage: Stage) -> None:
    """C4: not before, though the kernel would give it up at nine tenths of that time."""
    question, response = await unread(stage, "/chat", long_answer())
    began = asyncio.get_running_loop().time()
    stream_id = response.headers["x-stream-id"]
    await left(stage)
    assert 0.95 < asyncio.get_running_loop().time() - began < 2.5
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
    """C4: a byte a second opens no window."""
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


# Many of them.

CROWD = 100
"""Readers of each kind that never read."""
WATCHERS = 20
TICKS = 60
CUT_AFTER = 3.0
"""Seconds of `write_timeout` on the crowd's routes."""


@pytest.mark.alone
async def test_two_hundred_readers_that_never_read_cost_little_are_cut_and_delay_nobody(fresh: Stage) -> None:
    """C4: half of them by POST, while their streams run, half by GET; the latter come back and get all they missed."""
    allow_connections(6 * CROWD)
    alone = await watch(fresh)
    kernel, before = kernel_memory(), await memory(fresh)
    cut = fresh.plays([sse_head(), *[openai_delta(BLOCK) * 100] * 4, Hang()])
    late = [fresh.plays(long_answer(400)) for _ in range(CROWD)]
    began = asyncio.get_running_loop().time()
    posts = [await request_unread(fresh, "/cut", cut) for _ in range(CROWD)]
    gets = [await request_unread(fresh, "/late", question) for question in late]
    watching = asyncio.create_task(watch(fresh))
    await asyncio.sleep(1.5)
    after = await memory(fresh)
    cost, logs = after.resident - before.resident, after.logs - before.logs
    in_kernel = kernel_memory() - kernel
    await no_readers(fresh, "/late", "eventsource")
    await no_readers(fresh, "/cut", "fetch")
    assert CUT_AFTER < asyncio.get_running_loop().time() - began < CUT_AFTER + 4
    beside = await watching
    print(f"200 readers that never read: {cost / 2**20:.0f} MiB, of which logs {logs / 2**20:.0f} MiB")
    print(f"in the kernel, both ends: {in_kernel / 2**20:.0f} MiB")
    print(f"99th percentile of the others' gaps: {alone * 1e3:.0f} ms alone, {beside * 1e3:.0f} ms beside them")
    assert cost - logs < 64 << 20
    assert beside < 2 * alone + 0.25
    await check_outcomes(fresh, posts)
    await asyncio.gather(*(check_resumes(fresh, *pair) for pair in zip(late, gets, strict=True)))


async def check_outcomes(stage: Stage, responses: list[Response]) -> None:
    """Each ended because its only reader was too slow."""
    for response in responses:
        await stage.gateway.logged("stream_end", stream_id=response.headers["x-stream-id"], outcome="slow_reader")
        await response.reset()


async def check_resumes(stage: Stage, question: str, response: Response) -> None:
    """What came before the cut and what comes after it make the whole answer."""
    got = parsed(await response.body())
    assert response.broken
    rest = await whole(await stage.get("/late", question, cursor=got[-1].last_event_id))
    assert (text_of(got) + text_of(rest), rest[-1].type) == (BLOCK * 400, "done")
    assert len(stage.asked(question)) == 1
    await response.close()


async def request_unread(stage: Stage, path: str, question: str) -> Response:
    if path == "/late":
        return await request(stage.url(path, question), headers=EVENTS, receive_buffer=4096)
    return await request(stage.url(path), method="POST", body={"message": question}, receive_buffer=4096)


async def watch(stage: Stage) -> float:
    """The 99th percentile of the gaps between the tokens of ordinary streams, in seconds."""
    steps = [step for _ in range(TICKS) for step in (openai_delta("y"), Pause(0.05))]
    question = stage.plays([sse_head(), *steps, *openai_answer()[1:]])
    heard = await asyncio.gather(*(listen(stage, question) for _ in range(WATCHERS)))
    gaps = sorted(late.at - early.at for messages in heard for early, late in pairwise(messages))
    assert {text_of(messages) for messages in heard} == {"y" * TICKS}
    return gaps[len(gaps) * 99 // 100]


async def listen(stage: Stage, question: str) -> list[Message]:
    return await whole(await stage.get("/patient", question))


async def no_readers(stage: Stage, route: str, transport: str) -> None:
    """Returns when nobody reads from a route any more."""
    sample = f'gateway_connections_active{{route="{route}",transport="{transport}"}}'
    await eventually(lambda: stage.metric(sample), lambda readers: readers == 0, timeout=CUT_AFTER + 5)


class Memory(NamedTuple):
    """Bytes of the gateway: resident, and those of logs among them."""

    resident: int
    logs: float


async def memory(stage: Stage) -> Memory:
    ledger = Ledger(stage.gateway)
    return Memory(ledger.rss(), (await ledger.scrape()).total("gateway_log_bytes"))


def kernel_memory() -> int:
    """Bytes that the kernel keeps for all TCP sockets."""
    words = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
    return int(words.split()[-1]) * os.sysconf("SC_PAGE_SIZE")


async def test_reader_of_large_events_that_never_reads_costs_little_more_than_one_that_does(tmp_path: Path) -> None:
    """C4: at most 256 KiB wait for it in user space, however large what it could be sent."""
    reading, idle = await cost_of_many(tmp_path, reads=True), await cost_of_many(tmp_path, reads=False)
    print(
        f"memory of a stream beside its log: {reading / 1024:.0f} KiB when it is read, {idle / 1024:.0f} KiB when not"
    )
    assert idle - reading < 256 * 1024


async def cost_of_many(directory: Path, *, reads: bool) -> float:
    """Bytes of memory that a stream of 600 KB takes beside its log, in a gateway that has nothing else to do."""
    script: list[Step] = [sse_head(), openai_delta("z" * 3000) * 200, openai_delta("end"), Hang()]
    async with staged(directory, ROUTES) as stage:
        await whole(await stage.get("/patient", stage.plays(long_answer(100))))
        before, responses = await memory(stage), []
        for _ in range(40):
            responses.append((await unread(stage, "/patient", script))[1])
            if reads:
                await read_to_end(responses[-1])
        await asyncio.sleep(0.5)
        after = await memory(stage)
        for response in responses:
            await response.reset()
    return (after.resident - before.resident - after.logs + before.logs) / len(responses)


async def read_to_end(response: Response) -> None:
    async for message in response.messages():
        if text_of([message]).endswith("end"):
            return


@pytest.mark.parametrize(("path", "seconds"), [("/pausing", 2), ("/plain", 10)])
async def test_client_that_pauses_and_then_reads_loses_nothing(stage: Stage, path: str, seconds: float) -> None:
    """C5: longer than any buffer lasts, but not so long as `write_timeout`."""
    question = stage.plays(long_answer())
    response = await stage.get(path, question)
    await asyncio.sleep(seconds)
    messages = await whole(response)
    assert text_of(messages) == BLOCK * SIZE
    assert messages[-1].type == "done"
    assert len(stage.asked(question)) == 1
    assert not response.broken
