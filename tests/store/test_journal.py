"""What Redis is told of the streams that a node writes."""

from collections.abc import Callable
from pathlib import Path

import structlog

from gateway.config import Store
from gateway.formats import load_format
from gateway.observe.metrics import Metrics
from gateway.store.connection import Connection
from gateway.store.journal import Journal
from gateway.store.layout import ALIVE_MS, KEEP
from gateway.streams.log import LogMemory, MemoryLog
from gateway.streams.stream import ReaderSettings, Stream
from tests.kit.redis import Redis
from tests.web.stage import eventually


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
