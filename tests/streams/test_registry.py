"""The registry: who finds which stream, and how long and how much is kept."""

import asyncio
from dataclasses import dataclass
from typing import cast

import pytest

from gateway.clock import Wheel
from gateway.core.cursor import valid_stream_id
from gateway.core.errors import GatewayError
from gateway.core.event import DONE, TOKEN, Event
from gateway.formats import compile_format
from gateway.streams import registry as module
from gateway.streams.log import LOG_OVERHEAD, TRIMMED, LogState, MemoryLog
from gateway.streams.reader import BEGINNING, Reader
from gateway.streams.registry import Kept, Registry
from gateway.streams.stream import ReaderSettings, Stream


@dataclass
class Held:
    """What a registry needs to see of a stream."""

    stream: Stream
    log: MemoryLog


class Streams:
    """A registry with room for `events` events of 1 KiB beside its logs, and what a pump does with it."""

    def __init__(self, logs: int = 100, events: int = 100) -> None:
        self.wheel = Wheel(asyncio.get_running_loop())
        self.registry = Registry(self.wheel, logs * LOG_OVERHEAD + events * 1024)

    def create(self, events: int = 0, owner: str = "me") -> Kept:
        def make(stream_id: str, log: MemoryLog) -> Kept:
            form = compile_format("events")
            stream = Stream(id=stream_id, owner=owner, route="/r", created=0, format=form, settings=ReaderSettings())
            return cast(Kept, Held(stream, log))

        kept = self.registry.create(1 << 20, make)
        kept.log.append([Event(TOKEN, "x" * 928)] * events)
        return kept

    def end(self, kept: Kept, ttl: float = 60.0) -> Kept:
        kept.log.close(Event(DONE, ""))
        self.registry.retire(kept.stream.id, ttl)
        return kept

    def knows(self, kept: Kept) -> bool:
        return self.registry.find(kept.stream.id, kept.stream.owner) is not None

    async def until_forgotten(self, kept: Kept) -> None:
        deadline = self.wheel.now() + 2
        while self.knows(kept):
            await asyncio.sleep(0.005)
            assert self.wheel.now() < deadline, "the log was never forgotten"


@pytest.fixture
async def streams() -> Streams:
    return Streams()


async def test_owner_finds_its_stream_and_nobody_else_does(streams: Streams) -> None:
    kept = streams.create(owner="anna")
    found = streams.registry.find(kept.stream.id, "anna")
    assert found is not None
    assert found.log is kept.log
    assert streams.registry.find(kept.stream.id, "bert") is None
    assert streams.registry.find("x" * 22, "anna") is None


async def test_streams_have_ids_of_their_own(streams: Streams) -> None:
    ids = {streams.create().stream.id for _ in range(50)}
    assert len(ids) == len(streams.registry) == 50
    assert all(map(valid_stream_id, ids))


async def test_ended_stream_is_kept_for_its_ttl(streams: Streams) -> None:
    kept = streams.end(streams.create(3), ttl=0.05)
    assert streams.knows(kept)
    await streams.until_forgotten(kept)
    assert (len(streams.registry), streams.registry.memory.used) == (0, 0)
    assert kept.log.read(0, 9) is TRIMMED


async def test_ended_stream_that_is_read_is_kept_until_the_reader_leaves(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STILL_READ", 0.02)
    kept = streams.create(3)
    reader = Reader(kept.log, BEGINNING, streams.wheel)
    streams.end(kept, ttl=0)
    await asyncio.sleep(0.1)
    assert streams.knows(kept)
    got = await reader.read(9, 0)
    assert not isinstance(got, LogState)
    assert len(got) == 4
    reader.close()
    await streams.until_forgotten(kept)
    assert streams.registry.memory.used == 0


async def test_retiring_a_stream_again_changes_nothing(streams: Streams) -> None:
    kept = streams.end(streams.create(), ttl=60)
    streams.registry.retire(kept.stream.id, 0)
    streams.registry.retire(kept.stream.id, 0)
    await asyncio.sleep(0.1)
    assert streams.knows(kept)


async def test_oldest_ended_stream_goes_first_when_room_is_needed() -> None:
    streams = Streams(logs=2, events=9)
    old, new = streams.end(streams.create(5)), streams.end(streams.create(5))
    streams.create()
    assert (streams.knows(old), streams.knows(new)) == (False, True)


async def test_running_and_read_streams_are_never_dropped() -> None:
    streams = Streams(logs=2, events=9)
    running, read = streams.create(5), streams.create(5)
    reader = Reader(read.log, BEGINNING, streams.wheel)
    streams.end(read)
    with pytest.raises(GatewayError) as refusal:
        streams.create()
    assert (refusal.value.code, refusal.value.status) == ("overloaded", 503)
    assert streams.knows(running)
    assert streams.knows(read)
    reader.close()
    assert streams.create()
    assert not streams.knows(read)


async def test_refusals_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(logs=1, events=1)
    read = streams.create(5)
    Reader(read.log, BEGINNING, streams.wheel)
    streams.end(read)
    timers: list[float] = []
    monkeypatch.setattr(streams.wheel, "after", lambda delay, _: timers.append(delay))
    for _ in range(1000):
        with pytest.raises(GatewayError):
            streams.create()
    assert (timers, len(streams.registry)) == ([], 1)


async def test_many_empty_streams_use_up_the_room_too() -> None:
    streams = Streams(logs=10, events=0)
    ended = [streams.end(streams.create()) for _ in range(30)]
    assert len(streams.registry) <= 10
    assert [streams.knows(kept) for kept in ended[-5:]] == [True] * 5


async def test_room_may_be_changed_while_streams_run(streams: Streams) -> None:
    streams.create(5)
    streams.registry.memory.limit = 1
    with pytest.raises(GatewayError):
        streams.create()
    streams.registry.memory.limit = 1 << 20
    assert streams.create()
