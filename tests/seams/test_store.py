"""A store that is defined outside the package runs the contract of every log; and a reader needs no generation.

It keeps events as lines of JSON, as something would that puts them elsewhere. The second half is a reader on a machine
that generates nothing: it has a stream, written down as JSON, and a log that somebody fills.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gateway.core.bucket import Gate
from gateway.core.cursor import Place, new_stream_id
from gateway.core.event import DONE, TOKEN, Done, Event, Usage
from gateway.formats import Format, OpenAIFormat, Verbatim, compile_format
from gateway.observe.metrics import Outcome
from gateway.streams.log import END, NOTHING, TRIMMED, Attached, Log, MemoryLog, ReadResult
from gateway.streams.reader import Reader
from gateway.streams.stream import ReaderSettings, Stream
from tests.kit.sse_client import request
from tests.seams.serving import serving
from tests.streams.log_contract import LogContract
from tests.web.stage import EVENTS, parsed, setting


class LinesLog:
    """A log that keeps each event as a line of JSON."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.first, self.last, self.size = 1, 0, 0
        self.closed = self.full = self.doubtful = False
        self.takeovers: tuple[int, ...] = ()
        self.model = ""
        self.terminal: Event | None = None
        self.readers: tuple[Attached, ...] = ()
        self._lines: list[bytes] = []
        self._changed = asyncio.Event()

    def append(self, events: Sequence[Event]) -> None:
        for event in events:
            self._lines.append(json.dumps([event.type, event.data, event.id]).encode())
            self.size += len(self._lines[-1])
        self.last += len(events)
        self._trim()
        for reader in self.readers:
            reader.offer(events)

    def close(self, terminal: Event | None) -> None:
        for reader in self.readers:
            reader.interrupt()
        if terminal is not None:
            self.append([terminal])
        self.terminal, self.closed, self.full = terminal, True, False

    def read(self, after: int, limit: int) -> ReadResult:
        if after < self.first - 1:
            return TRIMMED
        if after >= self.last:
            return END if self.closed else NOTHING
        start = after - self.first + 1
        return [Event(*json.loads(line)) for line in self._lines[start : start + limit]]

    async def room(self) -> None:
        while self.full:
            self._changed.clear()
            await self._changed.wait()

    def moved(self) -> None:
        if self.full:
            self._trim()

    def _trim(self) -> None:
        needed = min((reader.after for reader in self.readers), default=self.last)
        while self.size > self.max_bytes and self.first <= needed:
            self.size -= len(self._lines.pop(0))
            self.first += 1
        self.full = self.size > self.max_bytes and not self.closed
        self._changed.set()


class TestLinesLog(LogContract):
    def make(self, max_bytes: int) -> Log:
        return LinesLog(max_bytes)


class Elsewhere:
    """A stream that another machine generates: this one has what readers need, and a log that is filled from there."""

    def __init__(self, stream: Stream, log: MemoryLog, gateway: Any) -> None:
        self.gate: Gate | None = None
        self.stream, self.log = stream, log
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.left: list[Outcome] = []
        self._wheel = gateway.clock.wheel

    @property
    def state(self) -> str:
        return "stopped" if self.ended.done() else "streaming"

    def attach(self, place: Place) -> Reader:
        return Reader(self.log, place, self._wheel)

    def detach(self, reader: Reader, sent_bytes: int, reason: Outcome = "client_gone") -> None:
        reader.close()
        self.left.append(reason)

    def extend(self, expires_in: float | None) -> None:
        """Its machine knows until when it may go on."""

    def stop(self) -> None:
        done = Done("stopped", Usage(1, 2), "ab")
        self.log.close(Event(DONE, msgspec.json.encode(done).decode()))
        self.ended.set_result(None)


ANSWER = [Event(TOKEN, "a"), Event(TOKEN, "b")]


def written(**changes: Any) -> bytes:
    """A stream as its own machine writes it down."""
    token = {"json": {"text": "$text", "at": "$index", "of": "$session_id"}}
    form = compile_format({"preset": "events", "token": token})
    facts: dict[str, Any] = {
        "id": new_stream_id(),
        "owner": "addr:",
        "route": "/chat",
        "created": 7,
        "format": form,
        "settings": ReaderSettings(heartbeat=0.1),
        "session_id": "s1",
    }
    return Stream(**facts | changes).to_json()


async def test_reader_reads_a_stream_that_is_generated_somewhere_else() -> None:
    async with serving(setting("http://127.0.0.1:9", [{"path": "/chat"}])) as gateway:
        registry = gateway.app.gateway.registry
        stream = Stream.from_json(written())
        elsewhere = Elsewhere(stream, MemoryLog(1 << 20, registry.memory), gateway.app.gateway)
        registry.add(elsewhere)
        elsewhere.log.append(ANSWER)
        async with await request(f"{gateway.url}/streams/{stream.id}", headers=EVENTS) as answer:
            got = [await answer.next() for _ in ANSWER]
            assert [message and message.json() for message in got] == [
                {"text": "a", "at": 0, "of": "s1"},
                {"text": "b", "at": 1, "of": "s1"},
            ]
            async with await request(f"{gateway.url}/streams/{stream.id}/stop", method="POST") as stopped:
                assert await stopped.json() == {"id": stream.id, "state": "stopped"}
            end = await answer.next()
            assert end is not None
            assert (end.type, end.json()["full_text"]) == ("done", "ab")
            await answer.body()
        cursor = f"{stream.id}.1.1"
        async with await request(f"{gateway.url}/chat", headers=EVENTS, last_event_id=cursor) as answer:
            assert [message.type for message in parsed(await answer.body())] == ["connected", "message", "done"]
        assert elsewhere.left == ["completed", "completed"]
        assert gateway.app.gateway.engine.running == {}


@pytest.mark.parametrize("form", [OpenAIFormat(include_usage=True), Verbatim(ids=True), compile_format("typed")])
def test_stream_is_the_same_when_it_was_written_down_and_read_again(form: Format) -> None:
    stream = Stream.from_json(written(format=form, settings=ReaderSettings(boundary="sentence", merge=True)))
    assert stream.format.spec == form.spec
    assert type(stream.format) is type(form)
    assert stream.to_json() == Stream.from_json(stream.to_json()).to_json()
    assert (stream.settings.boundary, stream.settings.merge, stream.owner) == ("sentence", True, "addr:")


def test_stream_of_an_unknown_format_is_refused() -> None:
    data = written().replace(b'"preset":"events"', b'"preset":"nobody"')
    with pytest.raises(ValueError, match="unknown preset 'nobody'"):
        Stream.from_json(data)
