"""The reader loop: a log goes in, the bytes for one client come out. No socket, no upstream."""

import asyncio
import gzip
from collections.abc import Sequence
from typing import Any, Final

import pytest

from gateway.clock import Clock
from gateway.config import Stream as Config
from gateway.core.cursor import Place
from gateway.core.errors import GatewayError
from gateway.core.event import CHUNK, DONE, ERROR, RESTART, START, THINKING, TOKEN, Event
from gateway.core.sse import Decoder
from gateway.formats import Encoder, Format, OpenAIFormat, Spec, View, compile_format
from gateway.observe.metrics import Metrics
from gateway.streams.delivery import Delivery
from gateway.streams.frames import Frames
from gateway.streams.log import LogMemory, MemoryLog
from gateway.streams.reader import BEGINNING, Reader
from gateway.streams.sink import MAX_WRITE, Gzip, Sink
from gateway.streams.stream import Stream, reader_settings

ID = "x" * 22
DATA = compile_format("data")


class Socket:
    """All ends that a sink knows: takes bytes, and may stall or break as a client does."""

    chunked = False

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ended = False
        self.writing_paused = False
        self.gone = False
        self.transport = Line(self)

    async def write(self, data: bytes, *, drain: bool = True) -> None:
        assert not drain, "its own drain has no time limit"
        if self.gone:
            raise ConnectionResetError
        self.written.append(data)

    async def write_eof(self) -> None:
        self.ended = True

    async def drained(self) -> None:
        await asyncio.get_running_loop().create_future()

    @property
    def text(self) -> str:
        return b"".join(self.written).decode()


class Line:
    """A socket's transport."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.waiting = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self._socket.gone

    def write(self, data: bytes) -> None:
        self._socket.written.append(data)


class Desk:
    """One log and one client of it."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock(asyncio.get_running_loop())
        self.log = MemoryLog(1 << 20, LogMemory(1 << 20))
        self.socket = Socket()
        config = Config.model_validate({"merge": False} | options.pop("stream", {}))
        config = config.model_copy(update={"merge": options.pop("merge", False)})
        settings = reader_settings(config)
        self.stream = Stream(
            id=ID, owner="me", route="/r", created=0, format=options.pop("format", DATA), settings=settings
        )
        self.reader = Reader(self.log, options.pop("place", BEGINNING), self.clock.wheel)
        zipper = Gzip() if options.pop("gzip", False) else None
        sink = Sink(self.socket, self.socket, settings.write_timeout, zipper)  # type: ignore[arg-type]
        self.frames = Frames(self.stream, self.log, **{"cursors": True, "retry_ms": 2000} | options)
        metrics = Metrics().route("/r")
        self.delivery = Delivery(self.reader, self.frames, sink, settings, clock=self.clock, metrics=metrics)

    def says(self, *texts: str) -> None:
        self.log.append([Event(TOKEN, text) for text in texts])

    def ends(self, failure: GatewayError | None = None) -> None:
        done = '{"finish_reason":"stop","usage":null,"full_text":""}'
        self.log.close(Event(DONE, done) if failure is None else Event(ERROR, failure.to_json()))

    async def run(self) -> str:
        return await asyncio.wait_for(self.delivery.run(), 5)


async def test_client_is_sent_the_log_and_its_end() -> None:
    desk = Desk()
    desk.says("a", "b")
    desk.ends()
    assert await desk.run() == "completed"
    assert desk.socket.ended
    assert desk.socket.text == (
        f"retry: 2000\nid: {ID}.0.0\n\n"
        f'data: {{"content":"a"}}\nid: {ID}.1.1\n\n'
        f'data: {{"content":"b"}}\nid: {ID}.2.2\n\n'
        f"data: [DONE]\nid: {ID}.3.2\n\n"
    )


async def test_what_comes_before_writes_is_done_before_each_write_to_a_client() -> None:
    """A store has an event before any reader has it."""
    desk, prepared = Desk(), list[tuple[int, int]]()
    desk.clock.before_writes = lambda: prepared.append((len(desk.socket.written), desk.log.last))
    desk.says("at the start")
    task = asyncio.create_task(desk.delivery.run())
    await asyncio.sleep(0)
    desk.says("pushed")
    await asyncio.sleep(0)
    desk.ends()
    assert await asyncio.wait_for(task, 5) == "completed"
    assert prepared == [(0, 1), (1, 1), (2, 2), (3, 3)]  # the first frame, then an event each


async def test_client_that_comes_back_is_sent_what_follows_its_cursor() -> None:
    desk = Desk(place=Place(1, 1), cursors=False)
    desk.says("a", "b")
    desk.ends()
    await desk.run()
    assert desk.socket.text == 'data: {"content":"b"}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("cursors", [True, False])
async def test_chunk_is_sent_as_it_is_and_its_lines_as_lines(cursors: bool) -> None:
    desk = Desk(format=OpenAIFormat(), cursors=cursors)
    data = ['{"n":1}', '{"n":\n2}', '{"n":\r\n3}', '{"n":\r4}']
    desk.log.append([Event(CHUNK, one) for one in data])
    desk.ends()
    await desk.run()
    read = [event for event in Decoder(unnamed=CHUNK).feed(desk.socket.text.encode()) if '{"n":' in event.data]
    assert [event.data for event in read] == ['{"n":1}', '{"n":\n2}', '{"n":\n3}', '{"n":\n4}']
    assert [event.id for event in read] == [f"{ID}.{number}.0" if cursors else "" for number in range(1, 5)]


def indexed() -> Format:
    """A format whose blocks say the index."""
    blocks = {kind: {"data": f"{kind} $index"} for kind in ("token", "restart", "error")}
    return compile_format(blocks | dict.fromkeys(("start", "thinking", "tool", "done")))


async def test_answer_that_begins_anew_is_counted_from_its_restart() -> None:
    desk = Desk(format=indexed(), cursors=False)
    desk.says("a", "b")
    desk.log.append([Event(RESTART, ""), Event(TOKEN, "c")])
    desk.ends(GatewayError("upstream_cut"))
    await desk.run()
    told = ["token 0", "token 1", "restart 0", "token 0", "error 1"]
    assert [line.removeprefix("data: ") for line in desk.socket.text.splitlines() if "data" in line] == told


async def test_client_whose_place_is_gone_is_told_at_which_index() -> None:
    desk = Desk(format=indexed(), place=Place(1, 7), cursors=False)
    desk.says("a", "b", "c")
    desk.log.first = 3
    assert await desk.run() == "completed"
    assert "data: error 7\nid: ~" in desk.socket.text


@pytest.mark.parametrize("cursors", [True, False])
async def test_crowd_that_was_cut_is_told_when_to_come_back(cursors: bool) -> None:
    desk = Desk(cursors=cursors, retry_ms=1900)
    desk.ends(GatewayError("drained", retry_after=7.5))
    await desk.run()
    *_, last, rest = desk.socket.text.split("\n\n")
    assert "retry: 9400\ndata: " in last
    assert rest == ""
    assert ("\nid: " in last) == cursors


@pytest.mark.parametrize("failure", [None, GatewayError("upstream_cut")])
async def test_end_without_a_time_to_come_back_names_none(failure: GatewayError | None) -> None:
    desk = Desk()
    desk.ends(failure)
    await desk.run()
    assert desk.socket.text.count("retry:") == 1  # the first block's


async def test_silence_is_filled_with_heartbeats_between_blocks() -> None:
    desk = Desk(stream={"heartbeat": "100ms"})
    running = asyncio.ensure_future(desk.run())
    await asyncio.sleep(0.35)
    desk.ends()
    assert await running == "completed"
    blocks = desk.socket.text.split("\n\n")
    assert blocks.count(":") in (2, 3)
    assert all(block == ":" or ":\n" not in block for block in blocks)


async def test_events_that_the_format_leaves_out_put_off_no_heartbeat() -> None:
    desk = Desk(stream={"heartbeat": "100ms"})
    running = asyncio.ensure_future(desk.run())
    for _ in range(14):
        await asyncio.sleep(0.025)
        desk.log.append([Event(THINKING, "hm")])
    desk.ends()
    assert await running == "completed"
    assert desk.socket.text.split("\n\n").count(":") in (2, 3)


async def test_client_that_takes_nothing_is_given_up() -> None:
    desk = Desk(stream={"write_timeout": "1s"})
    desk.socket.writing_paused = True
    desk.says("a")
    assert await desk.run() == "slow_reader"
    assert not desk.socket.ended


async def test_client_that_is_gone_is_noticed_at_the_next_write() -> None:
    desk = Desk()
    desk.socket.gone = True
    assert await desk.run() == "client_gone"


async def test_long_replay_is_written_in_bounded_pieces() -> None:
    desk = Desk()
    desk.says(*["x" * 1000] * 100)
    desk.ends()
    await desk.run()
    assert len(desk.socket.text) > 100_000
    assert max(map(len, desk.socket.written)) <= MAX_WRITE


async def test_every_piece_of_a_compressed_stream_can_be_read_at_once() -> None:
    desk = Desk(gzip=True)
    running = asyncio.ensure_future(desk.run())
    desk.says("a")
    await asyncio.sleep(0.05)
    desk.ends()
    await running
    assert gzip.decompress(b"".join(desk.socket.written)).decode().endswith(f"data: [DONE]\nid: {ID}.2.1\n\n")


async def test_text_is_held_until_its_sentence_ends_and_released_at_the_end() -> None:
    desk = Desk(stream={"batch": {"boundary": "sentence"}}, cursors=False, merge=True)
    running = asyncio.ensure_future(desk.run())
    for text in ("你", "好。", "再"):
        desk.says(text)
        await asyncio.sleep(0.02)
    assert "你好。" in desk.socket.text
    assert "再" not in desk.socket.text
    desk.ends()
    await running
    assert desk.socket.text.endswith('data: {"content":"再"}\n\ndata: [DONE]\n\n')


async def test_end_that_a_format_does_not_send_still_moves_the_cursor() -> None:
    desk = Desk(format=compile_format({"preset": "data", "done": None}))
    desk.ends()
    await desk.run()
    assert desk.socket.text.endswith(f"id: {ID}.1.0\n\n")


async def test_reader_whose_place_is_gone_is_told_so_once() -> None:
    desk = Desk(format=compile_format("events"))
    desk.log.append([Event(START, "")])
    desk.log.first = 2
    assert await desk.run() == "completed"
    last = desk.socket.text.split("\n\n")[-2]
    assert last.rpartition("\n")[2].startswith("id: ~")
    assert '"code":"cursor_expired"' in last


async def test_large_event_for_a_reader_who_waits_is_written_in_bounded_pieces() -> None:
    desk = Desk()
    running = asyncio.ensure_future(desk.run())
    await asyncio.sleep(0)
    desk.says("z" * 200_000)
    desk.says("y")
    desk.ends()
    assert await running == "completed"
    assert max(map(len, desk.socket.written)) <= MAX_WRITE
    assert desk.socket.text.count("z") == 200_000
    assert desk.socket.text.index('"y"') > desk.socket.text.rindex("z")


async def test_format_that_fails_for_one_reader_fails_that_reader_alone() -> None:
    desk = Desk()
    running = asyncio.ensure_future(desk.run())
    await asyncio.sleep(0)
    desk.log.append([Event(TOKEN, "\ud800")])
    desk.says("the writer goes on")
    with pytest.raises(UnicodeEncodeError):
        await running


async def test_final_cursor_stands_with_the_last_block_of_an_end() -> None:
    desk = Desk(format=OpenAIFormat())
    desk.says("a")
    desk.ends()
    await desk.run()
    finish, end = desk.socket.text.split("\n\n")[-3:-1]
    assert finish.startswith("data: ")
    assert '"finish_reason":"stop"' in finish
    assert end == f"data: [DONE]\nid: {ID}.2.1"


async def test_burst_that_is_too_large_to_push_is_read_by_the_readers_task() -> None:
    desk = Desk()
    running = asyncio.ensure_future(desk.run())
    await asyncio.sleep(0)
    desk.says(*["x"] * 1000)
    desk.says("y")
    desk.ends()
    assert await running == "completed"
    assert desk.socket.text.count('"x"') == 1000
    assert desk.socket.text.endswith(
        f'data: {{"content":"y"}}\nid: {ID}.1001.1001\n\ndata: [DONE]\nid: {ID}.1002.1001\n\n'
    )


async def test_replay_of_events_that_the_format_leaves_out_writes_nothing_and_moves_on() -> None:
    desk = Desk()
    desk.log.append([Event(THINKING, "hm")] * 1000)
    desk.ends()
    assert await desk.run() == "completed"
    assert desk.socket.text == f"retry: 2000\nid: {ID}.0.0\n\ndata: [DONE]\nid: {ID}.1001.0\n\n"


async def test_client_that_stops_taking_while_it_follows_is_sent_the_rest_when_it_takes_again() -> None:
    desk = Desk()
    running = asyncio.ensure_future(desk.run())
    await asyncio.sleep(0)
    desk.says("a")
    desk.socket.transport.waiting = 1  # the kernel took a part of it
    desk.says("b")
    desk.says("c")
    await asyncio.sleep(0)
    desk.socket.transport.waiting = 0
    desk.ends()
    assert await running == "completed"
    assert [desk.socket.text.count(f'"{text}"') for text in "abc"] == [1, 1, 1]
    assert desk.socket.text.index('"a"') < desk.socket.text.index('"b"') < desk.socket.text.index('"c"')


class Counted:
    """A format that numbers its blocks, so that a resume needs the log from its beginning."""

    stateful: Final = True
    announces_resume: Final = False
    spec: Spec = "counted"

    def open(self, view: View) -> Encoder:
        return self

    def skip(self, events: Sequence[Event]) -> None:
        raise AssertionError("the events are gone")

    def encode(self, event: Event, index: int) -> str:
        return f"data: {event.data}\n"

    def terminal(self, event: Event, index: int) -> str:
        return f"event: {event.type}\ndata: {event.data}\n"


async def test_reader_whose_format_needs_events_that_are_gone_is_told_so_once() -> None:
    desk = Desk(format=Counted(), place=Place(2, 2))
    desk.says("a", "b", "c")
    desk.log.first = 2
    assert await desk.run() == "completed"
    assert desk.socket.text.count("cursor_expired") == 1
    assert '"c"' not in desk.socket.text
