"""The one blocking read of a node: what it is told, and what it bears."""

import asyncio
import time
from pathlib import Path

import pytest
import structlog

from gateway.clock import Wheel
from gateway.store.watcher import Watcher
from gateway.streams.registry import Registry
from tests.kit.redis import Redis
from tests.store.serving import connected


async def test_process_that_stood_still_has_not_lost_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a gateway does that starts on a busy machine: its read has begun, and its time is over before it was sent."""
    monkeypatch.setattr("gateway.store.watcher.BLOCK_MS", 50)
    monkeypatch.setattr("gateway.store.watcher.LATE", 0.1)
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[dict[bytes, bytes]] = loop.create_future()
    async with Redis(tmp_path / "r") as redis, connected(redis.url) as stage:
        connection = stage.connection
        wheel = Wheel(loop)
        watcher = Watcher(connection, Registry(wheel, 1 << 20), wheel, structlog.get_logger())
        watcher.on(b"word", heard.set_result)
        await watcher._begin()
        await asyncio.sleep(0)  # its read begins
        time.sleep(0.4)  # noqa: ASYNC251 - that is what is tested
        await watcher.post(connection.node, b"word", text="hello")
        async with asyncio.timeout(5):
            assert (await heard)[b"text"] == b"hello"
        assert stage.said("store_away") == []
        await watcher.close()
