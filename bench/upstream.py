"""The paced upstream: `python -m bench.upstream PORT` answers every POST at the pace that its prompt asks for.

- Answers of one rate wait in one queue, next due first: all have the same period, so whoever was just served goes to
  its end. One timer serves a queue, at most every `TICK` seconds, however many answers are in it.
- Each event is written by itself and stamped as it is written.
- Who leaves more than `MAX_BUFFER` bytes unread is cut, so that it shows as a loss and never as memory.

This file knows no program that is measured, and reads no more of HTTP than its own clients send.
"""

import asyncio
import re
import sys
import time
from collections import deque
from typing import Final

import uvloop

from bench.marks import END, EVENT, Pace

TICK: Final = 0.001
"""Seconds; uvloop's timers are no finer."""
MAX_BUFFER: Final = 4 * 1024 * 1024
MAX_REQUEST: Final = 1 << 20
BACKLOG: Final = 4096

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def chunk(data: bytes) -> bytes:
    """One chunk of a body. Source: RFC 9112 7.1."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# Marks are of one length, so the size in front holds for all of them.
FRAME: Final = b"%x\r\n%b\r\n" % (len(EVENT % (0, 0)), EVENT)
LAST: Final = chunk(END) + b"0\r\n\r\n"


class Answer:
    """One answer on its way.

    Attributes:
        due: when its next event is to be written, in seconds of `time.monotonic`.
    """

    __slots__ = ("_events", "_sent", "_transport", "due")

    def __init__(self, transport: asyncio.WriteTransport, events: int, due: float) -> None:
        self._transport = transport
        self._events = events
        self._sent = 0
        self.due = due

    def send(self) -> bool:
        """Writes the next event, and the end behind the last. Whether there is more to come."""
        if self._transport.is_closing():
            return False
        self._transport.write(FRAME % (self._sent, time.monotonic_ns() // 1000))
        self._sent += 1
        if self._sent < self._events:
            return True
        self._transport.write(LAST)
        return False


class Queue:
    """The answers of one rate, next due first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: int) -> None:
        self._loop = loop
        self._period = 1 / rate
        self._answers: deque[Answer] = deque()

    def start(self, answer: Answer) -> None:
        """Sends the first event at once and the others when they are due."""
        if not self._answers:
            self._loop.call_later(max(TICK, self._period), self._serve)
        self._pass(answer)

    def _pass(self, answer: Answer) -> None:
        if answer.send():
            answer.due += self._period
            self._answers.append(answer)

    def _serve(self) -> None:
        answers, now = self._answers, time.monotonic()
        while answers and answers[0].due <= now:
            self._pass(answers.popleft())
        if answers:
            self._loop.call_later(max(TICK, answers[0].due - time.monotonic()), self._serve)


class Upstream:
    """All answers of the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queues: dict[int, Queue] = {}

    def answer(self, transport: asyncio.WriteTransport, pace: Pace) -> None:
        """Starts an answer of this pace on an idle connection."""
        transport.write(HEAD)
        answer = Answer(transport, pace.events, time.monotonic())
        if pace.rate == 0:
            answer.send()
            return
        if pace.rate not in self._queues:
            self._queues[pace.rate] = Queue(self._loop, pace.rate)
        self._queues[pace.rate].start(answer)


class Connection(asyncio.Protocol):
    """One connection of a program; answers follow one another on it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.set_write_buffer_limits(high=MAX_BUFFER)

    def pause_writing(self) -> None:
        """Cuts a reader that is too far behind."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if blank and length and len(body) >= int(length[1]):
            self._buffer = b""
            self._upstream.answer(self._transport, Pace.parse(body))
        elif len(self._buffer) > MAX_REQUEST:
            self._transport.abort()


async def serve(port: int) -> None:
    """Serves until it is ended by a signal."""
    loop = asyncio.get_running_loop()
    upstream = Upstream(loop)
    server = await loop.create_server(lambda: Connection(upstream), "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
