"""The loop of one reader: events after a place in a log → frames → one client.

    opening --first frame--> reading <------------------------------------+
                              |  |                                        |
                              |  +--events: encode, write-----------------+
                              |                                           |
                              +--nothing to read yet--> waiting --wake up-+
                                                         |   ^
                                                         +---+
                                         append: `_push` in the same call; the task sleeps on

The task wakes up when a heartbeat or held text is due, when `_push` did not send everything or failed, when the log is
closed, and at `speak`, `expire` and `cut`. A delivery that holds text back (`boundary`) does not push: it wakes up at
every append.

    opening or reading --trimmed--> completed      any write --the client is gone--> client_gone
    reading --the log's end-------> completed      any write --`write_timeout`-----> slow_reader
    reading --`expire` was called-> auth_expired       the reader was cut ---------> drained
                                                   the format raises ---> `run` raises; `fail` may follow
Invariants:

- One connection is sent consecutive events of the log, in order, each once. Its last cursor names the last of them.
- A stream ends with the log's own terminal event and nothing after it. Silence is never an end.
- Comments (heartbeats) stand between frames, never inside one.
- A client that takes nothing for `write_timeout` is cut. Nothing more is encoded for a client until it took what was
  written before.
"""

import math
from collections.abc import Sequence
from typing import Final

from gateway.clock import Clock
from gateway.core.batch import Holdback
from gateway.core.errors import GatewayError
from gateway.core.event import Event
from gateway.core.sse import comment
from gateway.observe.metrics import Outcome, RouteMetrics
from gateway.streams.frames import Frames
from gateway.streams.log import END, NOTHING, TRIMMED, LogState
from gateway.streams.reader import Reader, SentAwayError
from gateway.streams.sink import Sink, SlowReaderError
from gateway.streams.stream import ReaderSettings

READ_LIMIT: Final = 512
"""Events that are encoded in one call, at most."""
READ_BYTES: Final = 64 * 1024
"""Bytes of events that are encoded in one call: more would wait in memory for a client that does not read."""
PUSH_LIMIT: Final = 128
"""Events that are pushed in one call. Their size is not checked: they came with one read of the upstream."""
MAX_HOLD: Final = 2.0
"""Seconds that text is held back while it waits for the end of a sentence or paragraph, at most."""
HEARTBEAT: Final = comment().encode()


class Delivery:
    """Sends one client the events that it lacks, until the log ends.

    Args:
        reader: reads the log, and keeps the place up to which the client was sent events.
        frames: encodes the log's events.
        sink: writes to the client.
        settings: how the route's readers are sent events.
        clock: the shared timers.
        metrics: the route's counters.
    """

    __slots__ = (
        "_clock", "_expired", "_frames", "_heartbeat", "_holdback", "_metrics", "_now", "_reader", "_sink", "_spoke",
    )  # fmt: skip

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
        self._holdback = (
            None if settings.boundary == "event" else Holdback(settings.boundary, settings.max_bytes, MAX_HOLD)
        )
        self._spoke = -math.inf
        self._expired = False

    async def run(self) -> Outcome:
        """Why it ended: `completed` when the log's end was delivered, or that events are trimmed; `auth_expired` when
        the client was told that; `drained` when it was sent away to come back; else `client_gone` or `slow_reader`.

        Raises:
            Exception: what the format raised. Nothing of the events at which it failed was sent. You may call `fail`.
        """
        try:
            place = self._reader.place
            if not self._frames.skip(place):
                await self._write(self._frames.trimmed(place))
            else:
                await self._open()
                await self._deliver_all()
                if self._expired and not self._reader.log.closed:
                    await self.fail(GatewayError("auth_expired"))
                    return "auth_expired"
            await self._sink.end()
        except SlowReaderError:
            return "slow_reader"
        except SentAwayError as away:
            return await self._send_away(away)
        except ConnectionError:
            return "client_gone"
        return "completed"

    async def _send_away(self, away: SentAwayError) -> Outcome:
        try:
            if away.comeback is not None and (data := self._frames.comeback(away.comeback)):
                await self._sink.write(data)
        except (SlowReaderError, ConnectionError):
            return "client_gone"
        return "drained"

    async def fail(self, error: GatewayError) -> None:
        """Sends the client this error in the route's format, and ends the stream.

        Raises:
            Exception: that failed too. Only an abort of the connection can show the client that events are missing.
        """
        await self._write(self._frames.failed(error, self._reader.place))
        await self._sink.end()

    def speak(self) -> None:
        """Makes the task send the client something at once: events, or a comment if there are none."""
        self._spoke = -math.inf
        self._reader.interrupt()

    def expire(self) -> None:
        """Ends this reader's stream with `auth_expired`. The log may go on for readers with other credentials."""
        self._expired = True
        self._reader.interrupt()

    async def _open(self) -> None:
        """Sends the head of the response, together with what there is to send at once."""
        reader = self._reader
        before = reader.place
        data, place = self._frames.first(before)
        if data:
            if events := place.seq - before.seq:
                self._metrics.batch.observe(events)
                self._metrics.bytes.value += len(data)
            reader.move(place)
            await self._write(data)
            return
        reader.move(place)
        got = reader.ready(self._limit())
        if not isinstance(got, LogState):
            await self._take(got)
        if not self._sink.begun:
            await self._write(b"")

    async def _deliver_all(self) -> None:
        reader, holdback = self._reader, self._holdback
        follow = self._push if holdback is None else None
        while True:
            got = reader.ready(self._limit())
            if got is NOTHING:
                await reader.wait(self._patience(), follow)
                got = reader.ready(self._limit())
            if self._sink.unsent:
                self._clock.prepare_write()
                await self._sink.flush()
                self._spoke = self._now()
            if self._expired and not reader.log.closed:
                return
            if got is END or got is TRIMMED:
                await self._close(got)
                return
            if not isinstance(got, LogState):
                await self._take(got)
            elif holdback is not None and holdback.due is not None and holdback.due <= self._now():
                await self._send(holdback.flush())
            if self._now() - self._spoke >= self._heartbeat:
                self._metrics.heartbeats.inc()
                await self._write(HEARTBEAT)

    async def _close(self, end: LogState) -> None:
        """Nothing more can be read: held text is sent, or the client is told that it has missed something."""
        if end is TRIMMED:
            await self._write(self._frames.trimmed(self._reader.place))
        elif self._holdback is not None:
            await self._send(self._holdback.flush())

    def _push(self, events: Sequence[Event]) -> bool:
        # Called by the writer. Not waking this task saves a third of what a window costs. What the socket does not take
        # at once is encoded all the same, and the task is woken to write it.
        if len(events) > PUSH_LIMIT:
            return False
        if data := self._encode(events):
            if self._sink.push(data, self._clock):
                self._spoke = self._now()
            else:
                self._reader.interrupt()
        return True

    async def _take(self, events: Sequence[Event]) -> None:
        if self._holdback is None:
            await self._send(events)
            return
        self._reader.keep(len(events))
        for group in self._holdback.feed(events, self._now()):
            await self._send(group)

    async def _send(self, events: Sequence[Event]) -> None:
        limit = self._limit()
        for start in range(0, len(events), limit):
            if data := self._encode(events[start : start + limit]):
                await self._write(data)

    def _encode(self, events: Sequence[Event]) -> bytes:
        reader, metrics = self._reader, self._metrics
        data, place = self._frames.encode(events, reader.place)
        reader.move(place)
        if data:
            metrics.batch.observe(len(events))
            metrics.bytes.value += len(data)
        return data

    async def _write(self, data: bytes) -> None:
        self._clock.prepare_write()
        await self._sink.write(data)
        self._spoke = self._now()

    def _limit(self) -> int:
        """Events to read in one call: as many as make `READ_BYTES` if they have the average size of this log's."""
        log = self._reader.log
        if log.size <= READ_BYTES:
            return READ_LIMIT
        return max(1, min(READ_LIMIT, READ_BYTES * (log.last - log.first + 1) // log.size))

    def _patience(self) -> float:
        """Seconds until something must be sent even if no event comes. They count from the last bytes sent and not from
        the last event: a format may leave events out, and a proxy on the way would see silence and give up."""
        due = self._spoke + self._heartbeat
        if self._holdback is not None and self._holdback.due is not None:
            due = min(due, self._holdback.due)
        return max(0.001, due - self._now())
