"""The load client: many streams at once, every event checked, the latency of some measured.

- A `Load` opens its streams with at most `OPENING` of them still without a first event, so that it measures streams
  and not a stampede.
- Only `SAMPLED` streams look at stamps; all of them check numbers.
- It runs in the process of the bench itself, whose CPU is shown beside the program's.

This file does not know which program it talks to.
"""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Final, Self, cast

from bench.marks import START, STOP, Pace, Sequence

KEY: Final = "sk-bench"
OPENING: Final = 64
SAMPLED: Final = 10
FIRST_SECONDS: Final = 20.0
"""How long a stream may take to its first event, beyond which the run has failed."""
OPEN_SECONDS: Final = 40.0
"""How long all streams of a load together may take."""
FINISH_SECONDS: Final = 60.0
MAX_CHUNK: Final = 1 << 20
MAX_HEAD: Final = 1 << 16

PATHS: Final = {"openai": "/v1/chat/completions", "chat": "/api/chat"}
_STREAM_ID: Final = re.compile(rb"\r\nx-stream-id: *([\w-]+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class StreamError(Exception):
    """A program did not answer as a streaming proxy must."""


def micros() -> int:
    """Now, as upstream stamps tell it."""
    return time.monotonic_ns() // 1000


def request(api: str, prompt: str) -> bytes:
    """A whole HTTP request with this prompt to a route of this kind, `openai` or `chat`."""
    question: dict[str, object] = {"message": prompt}
    if api == "openai":
        messages = [{"role": "user", "content": prompt}]
        question = {"model": "bench-model", "stream": True, "messages": messages}
    body = json.dumps(question)
    return (
        f"POST {PATHS[api]} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def following(stream_id: str) -> bytes:
    """A whole HTTP request for the events of a stream, from its first one on."""
    return (
        f"GET /streams/{stream_id} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    ).encode()


class Chunks:
    """Takes the chunked coding off a body. Source: RFC 9112 7.1, without trailers.

    Attributes:
        ended: whether the last chunk was seen.
    """

    __slots__ = ("_rest", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The content of all chunks that are complete now.

        Raises:
            ValueError: what should be a chunk is none, or is larger than `MAX_CHUNK`.
        """
        data = self._rest + data if self._rest else data
        parts, at = [], 0
        while (line := data.find(b"\r\n", at)) >= 0 and not self.ended:
            start = line + 2
            size = int(data[at:line], 16)
            if size > MAX_CHUNK:
                raise ValueError("chunk too large")
            if len(data) < start + size + 2:
                break
            parts.append(data[start : start + size])
            self.ended = size == 0
            at = start + size + 2
        self._rest = data[at:]
        return b"".join(parts)


class Stream(asyncio.Protocol):
    """One request and the check of its answer.

    Attributes:
        sequence: the marks so far.
        bytes: of the answer so far, its head included.
        sent, first_event: when the request went out and the first mark came in, by `micros`; 0 before.
        latencies: from writing at the upstream to the receipt here, in microseconds; of sampled streams only.
        gap: the longest time without a byte since `first_event` or since it was last set to 0, in microseconds.
        stream_id: the gateway's name for it, "" before the head and where there is none.
        opened: done with the first mark.
        closed: done with the answer or with the connection, whichever ends first.
    """

    def __init__(self, request: bytes, *, sampled: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self._sampled = sampled
        self._head = b""
        self._chunks: Chunks | None = None
        self.transport: asyncio.Transport | None = None
        self.sequence = Sequence(stamped=sampled)
        self.bytes = 0
        self.sent = 0
        self.first_event = 0
        self.stream_id = ""
        self.gap = 0
        self._latest = 0
        self.latencies: list[int] = []
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's have the methods but not the class
        self.sent = micros()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = micros()
        self.gap = max(self.gap, now - self._latest) if self._latest else 0
        self._latest = now
        self.bytes += len(data)
        try:
            if self._chunks is None:
                data = self._after_head(data)
            if data and self._chunks is not None:
                self._take(self._chunks.feed(data), now)
        except (StreamError, ValueError) as error:
            self._end(StreamError(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(StreamError("the connection ended before the answer"))

    def close(self) -> None:
        """Ends the connection, whether or not the answer is complete."""
        if self.transport is not None:
            self.transport.abort()

    def _after_head(self, data: bytes) -> bytes:
        self._head += data
        head, blank, rest = self._head.partition(b"\r\n\r\n")
        if not blank and len(head) < MAX_HEAD:
            return b""
        if head[9:12] != b"200" or not _CHUNKED.search(head):
            raise StreamError(f"not a stream: {self._head[:500]!r}")
        if found := _STREAM_ID.search(head):
            self.stream_id = found[1].decode()
        self._chunks = Chunks()
        return rest

    def _take(self, body: bytes, now: int) -> None:
        assert self._chunks is not None
        if body:
            stamps = self.sequence.feed(body)
            if stamps:
                self.latencies += [now - stamp for stamp in stamps]
        if not self.first_event and self.sequence.count:
            self.first_event = now
            if not self.opened.done():  # nobody waits any more when the load was given up
                self.opened.set_result(None)
        if self._chunks.ended:
            self._end(StreamError(f"an answer without events: {body[:500]!r}"))

    def _end(self, error: StreamError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # told to whoever waits; nobody has to
        if not self.closed.done():
            self.closed.set_result(None)
        self.close()


async def connect(port: int, request: bytes, *, sampled: bool = False) -> Stream:
    """A stream whose request is on its way to this port of 127.0.0.1."""
    stream = Stream(request, sampled=sampled)
    await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", port)
    return stream


async def exchange(port: int, request: bytes) -> Stream:
    """A stream whose answer is complete.

    Raises:
        StreamError: there was no such answer.
        TimeoutError: nor within `FIRST_SECONDS`.
    """
    async with asyncio.timeout(FIRST_SECONDS):
        stream = await connect(port, request)
        try:
            await stream.opened
            await stream.closed
        finally:
            stream.close()
    return stream


@dataclass(frozen=True, slots=True)
class Count:
    """What a load had received at one moment."""

    events: int
    bytes: int


class Load:
    """Many streams of one kind, whose connections end with the block.

    Args:
        port: of the program.
        api: of its route.
        pace: of every answer.
    """

    def __init__(self, port: int, api: str, pace: Pace) -> None:
        self._port = port
        self._request = request(api, pace.prompt)
        self._gate = asyncio.Semaphore(OPENING)
        self.streams: list[Stream] = []

    async def __aenter__(self) -> Self:
        return self

    async def open(self, streams: int) -> None:
        """Returns when all of so many streams have had their first event.

        Raises:
            StreamError: one was refused or had no event within `FIRST_SECONDS`, or all took longer than `OPEN_SECONDS`.
        """
        try:
            async with asyncio.timeout(OPEN_SECONDS), asyncio.TaskGroup() as group:
                for number in range(streams):
                    group.create_task(self._open(sampled=number < SAMPLED))
        except TimeoutError:
            opened = sum(stream.sequence.count > 0 for stream in self.streams)
            raise StreamError(f"{opened} of {streams} streams had an event after {OPEN_SECONDS:.0f} s") from None
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise StreamError(f"{len(errors.exceptions)} streams did not open, such as: {first!r}") from errors

    async def _open(self, *, sampled: bool) -> None:
        async with self._gate, asyncio.timeout(FIRST_SECONDS):
            stream = await connect(self._port, self._request, sampled=sampled)
            self.streams.append(stream)
            await stream.opened

    async def start(self, upstream: int) -> None:
        """Lets answers go on that wait to be told; the upstream is at this port."""
        await exchange(upstream, request("openai", START))

    def count(self) -> Count:
        """What came in so far, by all streams together."""
        return Count(sum(s.sequence.count for s in self.streams), sum(s.bytes for s in self.streams))

    def open_streams(self) -> int:
        """How many answers are still going on."""
        return sum(not stream.closed.done() for stream in self.streams)

    def latencies(self, *, forget: bool = False) -> list[int]:
        """The latencies of the sampled streams since they were last forgotten, in microseconds."""
        found = [latency for stream in self.streams for latency in stream.latencies]
        if forget:
            for stream in self.streams:
                stream.latencies.clear()
        return found

    def longest_gap(self, *, forget: bool = False) -> float:
        """Seconds that the least served stream was without a byte since it was last forgotten."""
        longest = max(stream.gap for stream in self.streams) / 1e6
        if forget:
            for stream in self.streams:
                stream.gap = 0
        return longest

    async def finish(self, upstream: int) -> int:
        """How many events were lost, doubled or out of order, once the upstream at this port was told to end.

        An answer that has not ended within `FINISH_SECONDS` is a loss.
        """
        await exchange(upstream, request("openai", STOP))
        await asyncio.wait([stream.closed for stream in self.streams], timeout=FINISH_SECONDS)
        return sum(stream.sequence.lost for stream in self.streams)

    async def __aexit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.close()
