"""W5: file descriptors or memory run out; new streams are refused early, what runs goes on, and it heals by itself."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import EventSource, Response, request
from tests.kit.upstream import Cut, Exchange, Hang, ScriptedUpstream, Step, openai_answer, openai_delta, sse_head
from tests.web.stage import EVENTS, UNLIMITED, eventually

DESCRIPTORS = 128
STREAMS = 24
CONNECTIONS = 40
"""What the gateway makes of `DESCRIPTORS`."""
BUSY = 0.5
"""Share of a core that a gateway which has nothing to do stays well below."""


def answers(exchange: Exchange) -> list[Step]:
    """A question that says so is answered at once, any other never to its end."""
    if "quick" in exchange.body.decode():
        return [*openai_answer("a"), Cut()]
    return [sse_head(), openai_delta("x" * 1000) * (600 if "large" in exchange.body.decode() else 1), Hang()]


def config(url: str, **server: Any) -> dict[str, Any]:
    return {
        "server": {"drain": "0s"} | server,
        "auth": {"anonymous": True},
        "limits": UNLIMITED,
        "stream": {"heartbeat": "200ms", "on_disconnect": {"after": "0s"}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": url}], "breaker": {"failures": 1000}}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(answers) as upstream:
        yield upstream


@asynccontextmanager
async def confined(directory: Path, upstream: ScriptedUpstream) -> AsyncIterator[Gateway]:
    """A gateway that may open no more than `DESCRIPTORS` files."""
    gateway = Gateway(config(upstream.url), directory)
    gateway.command = ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh", *gateway.command]
    async with gateway:
        yield gateway


async def post(gateway: Gateway, message: str = "hi") -> Response:
    return await request(f"{gateway.url}/chat", method="POST", body={"message": message})


async def begun(gateway: Gateway, message: str = "hi") -> Response:
    """A stream whose first token came."""
    answer = await post(gateway, message)
    assert answer.status == 200, await answer.body()
    while (await answer.next() or pytest.fail("ended")).type != "token":
        pass
    return answer


async def quick(gateway: Gateway) -> int:
    """The status of a short stream."""
    async with await post(gateway, "quick") as answer:
        await answer.body()
        return answer.status


async def check_refuses(gateway: Gateway) -> None:
    """A new stream is refused in its client's own way, soon; the admin listener answers."""
    async with asyncio.timeout(2):
        async with await post(gateway) as refused:
            assert (refused.status, (await refused.json())["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
        async with await request(f"{gateway.url}/chat?message=hi", headers=EVENTS) as answer:
            [error] = [message async for message in answer.messages()]
            assert (answer.status, error.json()["code"], error.json()["retryable"]) == (200, "overloaded", True)
            assert (answer.parser.retry or 0) >= 5000
        async with await request(f"{gateway.admin}/readyz") as ready:
            assert ready.status == 200


async def load(gateway: Gateway, seconds: float = 0.6) -> float:
    """The share of a core that the gateway takes for a while."""
    before = cpu(gateway)
    await asyncio.sleep(seconds)
    return (cpu(gateway) - before) / seconds


def cpu(gateway: Gateway) -> float:
    fields = Path(f"/proc/{gateway.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def exhausted(gateway: Gateway) -> Iterator[None]:
    """Not one more descriptor is to be had by the gateway."""
    limits = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir(f"/proc/{gateway.pid}/fd"))) + 1
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limits)


async def test_streams_beyond_the_descriptors_are_refused_and_fit_again(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with confined(tmp_path, upstream) as gateway, Ledger(gateway):
        running = [await begun(gateway) for _ in range(STREAMS)]
        await check_refuses(gateway)
        assert await load(gateway) < BUSY
        await running.pop().close()
        assert await eventually(lambda: quick(gateway), lambda status: status == 200)
        for answer in running:
            await answer.comment()
            await answer.close()


async def test_connections_beyond_the_descriptors_are_refused_and_fit_again(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with confined(tmp_path, upstream) as gateway, Ledger(gateway):
        stream = await begun(gateway)
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        crowd = [await asyncio.open_connection(host, int(port)) for _ in range(3 * DESCRIPTORS)]
        told = [await reader.read(1000) for reader, _ in crowd[CONNECTIONS:]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in told)
        assert await load(gateway) < BUSY
        async with await request(f"{gateway.admin}/metrics") as metrics:
            assert metrics.status == 200
        await stream.comment()
        for _, writer in crowd:
            writer.transport.abort()
        assert await eventually(lambda: quick(gateway), lambda status: status == 200)
        await stream.close()


async def test_gateway_without_a_descriptor_to_accept_with_does_not_spin_and_recovers(
    start_gateway: StartGateway, upstream: ScriptedUpstream
) -> None:
    gateway = await start_gateway(config(upstream.url))
    stream = await begun(gateway)
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with exhausted(gateway):
        crowd = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        assert await load(gateway, 1.0) < BUSY
        await stream.comment()
    assert await eventually(lambda: quick_or_none(gateway), lambda status: status == 200)
    await stream.comment()
    await stream.close()
    for _, writer in crowd:
        writer.transport.abort()


async def quick_or_none(gateway: Gateway) -> int | None:
    try:
        return await quick(gateway)
    except OSError:
        return None


async def test_streams_beyond_the_memory_of_all_logs_are_refused_and_fit_again(
    start_gateway: StartGateway, upstream: ScriptedUpstream
) -> None:
    gateway = await start_gateway(config(upstream.url, max_log_bytes="1MiB"))
    async with Ledger(gateway) as ledger, AsyncExitStack() as stack:
        running = [await stack.enter_async_context(await begun(gateway, "large")) for _ in range(2)]
        await eventually(ledger.scrape, lambda scrape: scrape.total("gateway_log_bytes") > 1 << 20)
        await check_refuses(gateway)
        await running.pop().close()  # its log has ended, and gives way
        assert await eventually(lambda: quick(gateway), lambda status: status == 200)
        await running.pop().comment()


async def test_reader_of_a_running_stream_comes_back_while_new_ones_are_refused(
    start_gateway: StartGateway, upstream: ScriptedUpstream
) -> None:
    gateway = await start_gateway(config(upstream.url, max_log_bytes="1MiB") | {"stream": {"heartbeat": "200ms"}})
    async with EventSource(f"{gateway.url}/chat?message=large", retry=0.01) as source:
        await source.until("token")
        other = await begun(gateway, "large")
        await eventually(Ledger(gateway).scrape, lambda scrape: scrape.total("gateway_log_bytes") > 1 << 20)
        await check_refuses(gateway)
        source.retry, source.current.parser.retry = 0.01, None
        await source.drop()
        assert (await source.next()).type in ("token", "connected")
        assert len(source.connections) == 2
        await other.close()
