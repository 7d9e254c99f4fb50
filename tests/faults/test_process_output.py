"""W7: nobody takes what the gateway writes about itself; nobody who is served notices."""

import asyncio
import fcntl
import os
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import request
from tests.kit.upstream import Cut, ScriptedUpstream, openai_answer
from tests.web.stage import eventually

F_SETPIPE_SZ = 1031
ROUTE = {"path": "/chat", "api": "chat", "upstream": "main", "history": None}


class Muted(Gateway):
    """A gateway whose output goes where the shell is told to; it is ready when its admin listener says so."""

    def __init__(self, config: dict[str, Any], directory: Path, redirection: str) -> None:
        super().__init__(config, directory)
        self.command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *self.command]

    async def ready(self) -> None:
        for _ in range(400):
            if await self._answers():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("never ready")

    async def _answers(self) -> bool:
        assert self.running, self.output()
        try:
            async with await request(f"{self.admin}/readyz") as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream([*openai_answer("a", "b"), Cut()]) as upstream:
        yield upstream


def config(upstream: ScriptedUpstream) -> dict[str, Any]:
    return {
        "auth": {"anonymous": True},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": upstream.url}]}},
        "routes": [ROUTE],
    }


async def check_serves(gateway: Gateway, times: int) -> None:
    """Streams are whole, quick, and leave nothing behind."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Ledger(gateway):
        for _ in range(times):
            async with await request(f"{gateway.url}/chat", method="POST", body={"message": "hi"}) as answer:
                assert [message.type async for message in answer.messages()][-1] == "done"
    assert loop.time() - began < 10


CLOSED = (">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2>&1", "> /dev/null 2>&-")


@pytest.mark.parametrize("redirection", CLOSED)
async def test_gateway_serves_with_its_output_closed_or_the_disk_full(
    upstream: ScriptedUpstream, tmp_path: Path, redirection: str
) -> None:
    """W7: closed, or a disk that is full from the start."""
    async with Muted(config(upstream), tmp_path, redirection) as gateway:
        await check_serves(gateway, 20)


async def test_gateway_serves_and_ends_beside_a_full_pipe_nobody_reads(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """W7: nor does a reload wait for the pipe, which may be what is to help."""
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, F_SETPIPE_SZ, 4096)
    async with Muted(config(upstream), tmp_path, f"> {fifo}") as gateway:
        await check_serves(gateway, 30)
        gateway.write_config(config(upstream) | {"routes": [ROUTE, ROUTE | {"path": "/new"}]})
        gateway.send_signal(signal.SIGHUP)
        await eventually(lambda: status(gateway, "/new"), lambda code: code == 200)
        await gateway.stop(timeout=5)
    os.close(reading)


async def status(gateway: Gateway, path: str) -> int:
    async with await request(f"{gateway.url}{path}", method="POST", body={"message": "hi"}) as answer:
        await answer.body()
        return answer.status


async def test_gateway_serves_when_the_disk_fills_and_writes_again_when_it_does_not(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """W7: a file that may not grow any more, until it is emptied."""
    log = tmp_path / "log"
    async with Muted(config(upstream), tmp_path, f">> {log}") as gateway:
        await check_serves(gateway, 2)
        await eventually(lambda: size(log), lambda now: now > 0)
        limits = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, resource.RLIM_INFINITY))
        await check_serves(gateway, 10)
        full = log.stat().st_size
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, limits)
        await check_serves(gateway, 2)
        await eventually(lambda: size(log), lambda now: now > full)


async def size(path: Path) -> int:
    return (await asyncio.to_thread(path.stat)).st_size


async def test_gateway_serves_when_the_reader_of_its_log_goes(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """W7: SIGPIPE ends nothing."""
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    async with Muted(config(upstream), tmp_path, f"> {fifo}") as gateway:
        await check_serves(gateway, 2)
        os.close(reading)
        await check_serves(gateway, 5)
