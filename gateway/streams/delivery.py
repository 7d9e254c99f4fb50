"""The reader loop: a place in a log → frames → one client.

    opening --first frame--> reading <--------------------------+
                              |  |                              |
          nothing to read yet |  | events: encode, write -------+
                              v  |                              |
                           waiting --append: push in that call--+   the task sleeps on
                              |
                              +-- heartbeat due, hold due, push could not write, interrupt: the task wakes, and reads

    reading --the log's end--> completed        any write --client gone--> client_gone
    reading --trimmed--------> completed        any write --write_timeout-> slow_reader

Invariants:

- What one connection is sent is a run of the log's events, in order, each once; its cursors tell where it ends.
- A stream ends with the log's own terminal event and nothing after it. Silence is never an end.
- Comments (heartbeats) stand between frames, never inside one.
- A client that takes nothing for `write_timeout` is cut, and nothing more is encoded for it until it took what was
  written before.

A delivery does not know whether what it sends is new or a replay, nor where the log is written.
"""

import math
from collections.abc import Sequence
from typing import Final

from gateway.clock import Clock
from gateway.core.batch import Hold
from gateway.core.errors import GatewayError
from gateway.core.event import Event
from gateway.core.sse import comment
from gateway.observe.metrics import Outcome, RouteMetrics
from gateway.streams.frames import Frames
from gateway.streams.log import END, TRIMMED, State
from gateway.streams.reader import Reader
from gateway.streams.sink import Sink, SlowReaderError
from gateway.streams.stream import ReaderSettings

READ_LIMIT: Final = 512
"""Events that are encoded at once, at most."""
READ_BYTES: Final = 64 * 1024
"""Bytes of events that are encoded at once: more would wait in memory for a client that does not read."""
PUSH_LIMIT: Final = 128
"""Events that are encoded at once without a look at how large they are; that many came with one read, or fewer."""
MAX_HOLD: Final = 2.0
"""Seconds that text is held back at most while it waits for the end of a sentence or paragraph."""
HEARTBEAT: Final = comment().encode()


class Delivery:
    """Sends one reader what it has not got yet, until the log ends.

    Args:
        reader: its place in the log.
        frames: spells the log's events for it.
        sink: the way to the client.
        settings: how the route's readers are sent events.
        clock: the shared timers.
        metrics: the route's counters.
    """

    __slots__ = ("_clock", "_frames", "_heartbeat", "_hold", "_metrics", "_now", "_reader", "_sink", "_spoke")

    def __init__(
        self,
        reader: Reader,
        frames: Frames,
        sink: Sink,
        settings: ReaderSettings,
        *,
        clock: Clock,
        metrics: RouteMetrics,
    ) -> None:
        self._reader = reader
        self._frames = frames
        self._sink = sink
        self._clock = clock
        self._now = clock.now
        self._metrics = metrics
        self._heartbeat = settings.heartbeat
        self._hold = None if settings.boundary == "event" else Hold(settings.boundary, settings.max_bytes, MAX_HOLD)
        self._spoke = -math.inf

    async def run(self) -> Outcome:
        """Why it ended: `completed` when the log's end was delivered, else `client_gone` or `slow_reader`.

        Raises:
            Exception: whatever the format raised; nothing of the events that it failed at was sent. `fail` may follow.
        """
        try:
            place = self._reader.place
            if not self._frames.skip(place):
                await self._write(self._frames.trimmed(place))
            else:
                await self._write(self._frames.first(place).encode())
                await self._follow()
            await self._sink.end()
        except SlowReaderError:
            return "slow_reader"
        except ConnectionError:
            return "client_gone"
        return "completed"

    async def fail(self, error: GatewayError) -> None:
        """The client was sent this error as the last of its stream, in the route's shape.

        Raises:
            Exception: that failed too, so only an abort can tell the client that this is not the end.
        """
        await self._write(self._frames.failed(error, self._reader.place))
        await self._sink.end()

    def speak(self) -> None:
        """The client is sent something at once, if only a comment."""
        self._spoke = -math.inf
        self._reader.interrupt()

    async def _follow(self) -> None:
        reader, hold = self._reader, self._hold
        follow = self._push if hold is None else None
        while True:
            got = await reader.read(self._limit(), self._patience(), follow)
            if self._sink.unsent:
                await self._sink.flush()
                self._spoke = self._now()
            if got is END:
                if hold is not None:
                    await self._send(hold.flush())
                return
            if got is TRIMMED:
                await self._write(self._frames.trimmed(reader.place))
                return
            if not isinstance(got, State):
                await self._take(got)
            elif hold is not None and hold.due is not None and hold.due <= self._now():
                await self._send(hold.flush())
            if self._now() - self._spoke >= self._heartbeat:
                self._metrics.heartbeats.inc()
                await self._write(HEARTBEAT)

    def _push(self, events: Sequence[Event]) -> bool:
        # Without waking this task, which is a third of what a window costs. What cannot leave at once is encoded too,
        # and the task woken to write it.
        if len(events) > PUSH_LIMIT:
            return False
        if data := self._encode(events):
            if self._sink.push(data, self._clock):
                self._spoke = self._now()
            else:
                self._reader.interrupt()
        return True

    async def _take(self, events: Sequence[Event]) -> None:
        if self._hold is None:
            await self._send(events)
            return
        self._reader.hold(len(events))
        for group in self._hold.feed(events, self._now()):
            await self._send(group)

    async def _send(self, events: Sequence[Event]) -> None:
        limit = self._limit()
        for start in range(0, len(events), limit):
            if data := self._encode(events[start : start + limit]):
                await self._write(data)

    def _encode(self, events: Sequence[Event]) -> bytes:
        data, place = self._frames.encode(events, self._reader.place)
        self._reader.move(place)
        if data:
            self._metrics.batch.observe(len(events))
            self._metrics.bytes.value += len(data)
        return data

    async def _write(self, data: bytes) -> None:
        await self._sink.write(data)
        self._spoke = self._now()

    def _limit(self) -> int:
        """Events to read at once: as many as make `READ_BYTES` where they are as large as the log's are on average."""
        log = self._reader.log
        if log.size <= READ_BYTES:
            return READ_LIMIT
        return max(1, min(READ_LIMIT, READ_BYTES * (log.last - log.first + 1) // log.size))

    def _patience(self) -> float:
        """Seconds until something is to be sent though nothing comes. They count from what the client was last sent:
        events that a format leaves out do not keep a proxy from giving up."""
        due = self._spoke + self._heartbeat
        if self._hold is not None and self._hold.due is not None:
            due = min(due, self._hold.due)
        return max(0.001, due - self._now())
