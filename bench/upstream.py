"""The paced upstream: `python -m bench.upstream PORT` answers every POST at the pace that its prompt asks for.

- Answers of one rate wait in one queue, next due first: all have the same period, so whoever was just served goes to
  its end. One timer serves a queue, at most every `TICK` seconds, however many answers are in it.
- The first event goes out at once; the second comes anywhere within a period of it, so that answers which began
  together do not beat together.
- Each event is written by itself and stamped as it is written.
- Who leaves more than `MAX_BUFFER` bytes unread is cut, so that it shows as a loss and never as memory.

This file knows no program that is measured, and reads no more of HTTP than its own clients send.
"""

import asyncio
import re
import sys
import time
from bisect import insort
from collections import deque
from operator import attrgetter
from typing import Final, cast

import uvloop

from bench.marks import END, EVENT, LAST_EVENT, START, STOP, Pace

TICK: Final = 0.001
"""Seconds; uvloop's timers are no finer."""
GOLDEN: Final = 0.618
"""Multiples of it, modulo 1, are spread evenly however many there are."""
MAX_BUFFER: Final = 4 * 1024 * 1024
MAX_REQUEST: Final = 1 << 20
BACKLOG: Final = 4096

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def chunk(data: bytes) -> bytes:
    """One chunk of a body. Source: RFC 9112 7.1."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# Marks are of one length, so the size in front holds for all of them.
SIZE: Final = len(EVENT % (0, 0))
FRAME: Final = b"%x\r\n%b\r\n" % (SIZE, EVENT)
LAST_FRAMES: Final = b"%x\r\n%b\r\n" % (SIZE, LAST_EVENT) + chunk(END) + b"0\r\n\r\n"


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
        more = self._sent + 1 < self._events
        self._transport.write((FRAME if more else LAST_FRAMES) % (self._sent, time.monotonic_ns() // 1000))
        self._sent += 1
        return more

    def stop(self) -> None:
        """The next event is the last one."""
        self._events = self._sent + 1


class Queue:
    """The answers of one rate, next due first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: int) -> None:
        self._loop = loop
        self._period = 1 / rate
        self._answers: deque[Answer] = deque()
        self._waiting: list[Answer] = []
        self._phase = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, answer: Answer, *, waits: bool) -> None:
        """Sends the first event at once and the others when they are due, not before `release` where it `waits`."""
        if not answer.send():
            return
        if waits:
            self._waiting.append(answer)
        else:
            self._add(answer)

    def release(self) -> None:
        """The answers that wait go on."""
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.due = time.monotonic()
            self._add(answer)

    def _add(self, answer: Answer) -> None:
        self._phase = (self._phase + GOLDEN) % 1
        answer.due += self._phase * self._period
        insort(self._answers, answer, key=attrgetter("due"))
        if self._timer is None:
            self._wait()

    def stop(self) -> None:
        """Every answer ends with its next event."""
        for answer in self._answers:
            answer.stop()

    def _wait(self) -> None:
        self._timer = self._loop.call_later(max(TICK, self._answers[0].due - time.monotonic()), self._serve)

    def _serve(self) -> None:
        answers, now = self._answers, time.monotonic()
        while answers and answers[0].due <= now:
            answer = answers.popleft()
            if answer.send():
                answer.due += self._period
                answers.append(answer)
        self._timer = None
        if answers:
            self._wait()


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
        self._queues[pace.rate].start(answer, waits=pace.waits)

    def release(self) -> None:
        """Every answer that waits goes on."""
        for queue in self._queues.values():
            queue.release()

    def stop(self) -> None:
        """Every answer that is not idle ends with its next event."""
        for queue in self._queues.values():
            queue.stop()


class Connection(asyncio.Protocol):
    """One connection of a program; answers follow one another on it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's have the methods but not the class
        self._transport.set_write_buffer_limits(high=MAX_BUFFER)

    def pause_writing(self) -> None:
        """Cuts a reader that is too far behind."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if blank and length and len(body) >= int(length[1]):
            self._buffer = b""
            if STOP.encode() in body:
                self._upstream.stop()
            if START.encode() in body:
                self._upstream.release()
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
