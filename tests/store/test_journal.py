"""What Redis is told of the streams that a node writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from gateway.config import Store
from gateway.core.event import Event
from gateway.formats import load_format
from gateway.observe.metrics import Metrics
from gateway.store.connection import Connection
from gateway.store.journal import Journal
from gateway.store.layout import ALIVE_MS, KEEP
from gateway.streams.log import LogMemory, MemoryLog
from gateway.streams.stream import ReaderSettings, Stream
from tests.kit.redis import Redis
from tests.kit.sse_client import request
from tests.kit.upstream import ScriptedUpstream, openai_answer
from tests.seams.serving import serving
from tests.web.stage import eventually, setting


class Running:
    """A stream of a chat that runs."""

    state = "streaming"
    kept = 60.0

    def __init__(self) -> None:
        form = load_format("events")
        self.stream = Stream(
            id="A" * 22,
            owner="o",
            route="/chat",
            created=0,
            format=form,
            settings=ReaderSettings(),
            session_id="a-chat",
        )
        self.log = MemoryLog(1 << 16, LogMemory(1 << 20))

    def move(self, comeback: Callable[[], float] | None = None) -> None:
        raise AssertionError(comeback)


async def numbers(redis: Redis, log: str) -> list[str]:
    """The ids of a log's entries."""
    return [entry[0] for entry in await redis.ask("XRANGE", log, "-", "+")]


async def test_stream_that_has_just_ended_is_kept_for_its_time_and_neither_longer_nor_shorter(tmp_path: Path) -> None:
    """The word that it goes on may come after the word that it has ended: they go by two connections."""
    async with Redis(tmp_path / "r") as redis:
        connection = Connection(Store.model_validate({"url": redis.url}), structlog.get_logger(), Metrics())
        journal, ended = Journal(connection, None, structlog.get_logger()), Running()
        await connection.start()
        try:
            journal.track(ended, None)
            ended.log.close(None)
            journal.flush()
            about, log, owned, order = journal.keys_of(ended.stream.id)
            await eventually(lambda: redis.ask("HGET", about.decode(), "s"), "streaming".__eq__)
            await connection.run(KEEP, [owned, about, log, order], (ALIVE_MS, 1))
            assert all([50_000 < await redis.ask("PTTL", key.decode()) <= 60_000 for key in (about, log)])
        finally:
            await journal.close()
            await connection.close()


async def test_what_is_appended_before_anybody_may_come_back_is_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what Redis has lost is put back at once, though nobody reads it."""
    monkeypatch.setattr("gateway.store.journal.OPENING", 60.0)
    async with Redis(tmp_path / "r") as redis:
        connection = Connection(Store.model_validate({"url": redis.url}), structlog.get_logger(), Metrics())
        journal, running = Journal(connection, None, structlog.get_logger()), Running()
        log = journal.keys_of(running.stream.id)[1].decode()
        await connection.start()
        try:
            journal.track(running, None)
            for number in range(3):
                running.log.append([Event("token", str(number))])
                await connection.call("PING")
            assert not await redis.keys("gateway:s:*")
            journal.flush()
            assert await eventually(lambda: numbers(redis, log), bool) == ["1-0", "1-3"]
            await redis.ask("FLUSHALL")
            running.log.append([Event("token", "3")])
            assert await eventually(lambda: numbers(redis, log), bool) == ["1-0", "1-4"]
        finally:
            await journal.close()
            await connection.close()


async def test_answer_that_comes_in_one_piece_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.journal.OPENING", 60.0)
    answer = b"".join(step for step in openai_answer("Hi") if isinstance(step, bytes))
    async with Redis(tmp_path / "r") as redis, ScriptedUpstream(lambda _: [answer]) as upstream:
        config = setting(upstream.url, [{"path": "/chat", "api": "chat"}]) | {"store": redis.url}
        async with serving(config) as gateway, await request(f"{gateway.url}/chat?message=Hello") as reading:
            assert b"event: done" in await reading.body()
            log = f"gateway:l:{reading.headers['x-stream-id']}"
            _begins, *entries = await eventually(lambda: numbers(redis, log), lambda found: len(found) > 1)
            assert len(entries) == 1, entries


async def test_all_that_is_known_of_a_stream_lives_for_as_long_as_it_runs(tmp_path: Path) -> None:
    """Its chat too, where an answer takes longer than any key lives without a word."""
    async with Redis(tmp_path / "r") as redis:
        connection = Connection(Store.model_validate({"url": redis.url}), structlog.get_logger(), Metrics())
        journal = Journal(connection, None, structlog.get_logger())
        await connection.start()
        try:
            journal.track(Running(), None)
            journal.flush()
            keys = await eventually(lambda: redis.keys("gateway:[sla]:*"), lambda keys: len(keys) == 3)
            for key in keys:
                await redis.ask("PEXPIRE", key, 10_000)
            journal._kept_at = float("-inf")  # as long after the last time
            await journal._beat()
            left = {key.split(":")[1]: await redis.ask("PTTL", key) for key in keys}
            assert sorted(name for name, ms in left.items() if ms > 60_000) == ["a", "l", "s"]
        finally:
            await journal.close()
            await connection.close()
