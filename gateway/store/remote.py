"""A stream of another node, as its readers here see it: its log is filled by the watcher, from Redis.

    loading --all that Redis has was read--> watched --the last entry came--> ended
                                                |
                                                +--Redis has lost it, or its newest events when another node
                                                   went on with it------------> ended, with `cursor_expired`

It is forgotten when its readers have gone, ended or not; the next one loads it again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from gateway.clock import Wheel
from gateway.core.bucket import Gate
from gateway.core.cursor import Place
from gateway.core.errors import Failure, GatewayError
from gateway.core.event import DONE, ERROR, Done, Event
from gateway.observe.metrics import Outcome
from gateway.store.journal import unpacked
from gateway.streams.generation import OUTCOMES
from gateway.streams.log import LogMemory, MemoryLog
from gateway.streams.reader import Reader
from gateway.streams.stream import Stream

MIN_BYTES: Final = 8 * 1024 * 1024
"""Bytes that are kept of the log of another node's stream, also where its own node keeps fewer: a slow reader gets what
Redis has dropped."""
ROOM: Final = 8
"""One part in so many is kept beyond what its own node keeps: Redis drops whole entries, and has a little more."""


class Entry(NamedTuple):
    """One entry of a log in Redis.

    Attributes:
        epoch: of the node that wrote it.
        first: number of its first event, or of the next one where it has none.
        events: what was appended.
        terminal: None while the log goes on; else whether its last event is the terminal one.
        takeovers: see `Log`; None where the entry does not say.
    """

    epoch: int
    first: int
    events: list[Event]
    terminal: bool | None
    takeovers: tuple[int, ...] | None


def read_entry(id_: bytes, fields: dict[bytes, bytes]) -> Entry:
    """The entry with this id and these fields.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        terminal = {None: None, b"0": False, b"1": True}[fields.get(b"t")]
        events = unpacked(fields[b"e"]) if b"e" in fields else []
        said = fields.get(b"o")
        takeovers = None if said is None else tuple(int(number) for number in said.split(b",") if number)
        return Entry(int(id_.partition(b"-")[0]), int(fields[b"f"]), events, terminal, takeovers)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no entry of a log: {error}") from None


class RemoteLog(MemoryLog):
    """The log of another node's stream, as far as it came.

    Args:
        log_bytes: how much its own node keeps, and Redis.
        memory: the bytes of all logs.
        discarded: called when it is no longer kept here.
    """

    __slots__ = ("_discarded",)

    def __init__(self, log_bytes: int, memory: LogMemory, discarded: Callable[[], None]) -> None:
        super().__init__(max(MIN_BYTES, log_bytes + log_bytes // ROOM), memory)
        self._discarded = discarded

    def discard(self) -> None:
        """Drops all events; nothing follows it any more."""
        super().discard()
        self._discarded()

    def skip_to(self, number: int) -> None:
        """Events before this number are not to be had: a reader that lacks them is told so."""
        self._account(-self.size)
        self._events = []
        self.first, self.last = number, number - 1
        for reader in self.readers:
            reader.interrupt()


class Remote:
    """A stream that another node writes. See `Followed`.

    Args:
        stream: what its readers need to know.
        model: the model that answers, as far as it is known.
        outcome: how it ended, "" where it runs.
        memory: the bytes of all logs.
        wheel: the timers.
        came: called when a reader came.
        parted: called when its last reader has left.
        stop: asks its node to stop it.
        extend: tells its node until when, in unix seconds, a credential of its owner is good; None for ever.
        moved: called when another node goes on with it.
        discarded: called when it is no longer kept here.

    Attributes:
        last_id: of the last entry that was read, as Redis writes it.
    """

    def __init__(
        self,
        stream: Stream,
        model: str,
        outcome: str,
        memory: LogMemory,
        wheel: Wheel,
        *,
        came: Callable[[], None],
        parted: Callable[[], None],
        stop: Callable[[], None],
        extend: Callable[[float | None], None],
        moved: Callable[[], None],
        discarded: Callable[[], None],
    ) -> None:
        self.stream = stream
        self.log = RemoteLog(stream.settings.log_bytes, memory, discarded)
        self.log.model = model
        self.gate: Gate | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_id = "0-0"
        self._outcome = outcome
        self._wheel = wheel
        self._came = came
        self._parted = parted
        self._stop = stop
        self._extend = extend
        self._moved = moved

    @property
    def state(self) -> str:
        """`waiting` for the first event, `streaming`, or how it ended, as far as its last event says that."""
        log = self.log
        if self._outcome:
            return self._outcome
        if not log.closed:
            return "streaming" if log.last else "waiting"
        if log.terminal is None:
            return "completed"
        if log.terminal.type == DONE:
            reason = msgspec.json.decode(log.terminal.data, type=Done).finish_reason
            return "stopped" if reason == "stopped" else "completed"
        return OUTCOMES.get(msgspec.json.decode(log.terminal.data, type=Failure).code, "upstream_error")

    def attach(self, place: Place) -> Reader:
        """A reader at this place. After this you must call `detach`, however the reader ends."""
        reader = Reader(self.log, place, self._wheel)
        self._came()
        return reader

    def detach(self, reader: Reader, sent_bytes: int, reason: Outcome = "client_gone") -> None:
        """The reader has left."""
        reader.close()
        if not self.log.readers:
            self._parted()

    def stop(self) -> None:
        """Asks its node to end it. `ended` is done when that is seen here."""
        if not self.log.closed:
            self._stop()

    def extend(self, expires_in: float | None) -> None:
        """Its owner came here with a credential that expires in so many seconds, None for never."""
        if not self.log.closed:
            self._extend(None if expires_in is None else time.time() + expires_in)

    def take(self, id_: bytes, entry: Entry) -> None:
        """This entry follows the last one in Redis."""
        log, self.last_id = self.log, id_.decode()
        if log.closed:
            return
        if entry.takeovers is not None and entry.takeovers != log.takeovers:
            if not self._agrees(entry.takeovers):
                self.lose()
                return
            log.takeovers = entry.takeovers
            self._moved()
        known = log.last + 1 - entry.first
        if known < 0:
            log.skip_to(entry.first)
        events = entry.events[max(0, known) :]
        if entry.terminal is None:
            if events:
                log.append(events)
            return
        terminal = events.pop() if entry.terminal and events else None
        if events:
            log.append(events)
        self._close(terminal)

    def _agrees(self, takeovers: tuple[int, ...]) -> bool:
        """Whether all that was read here is still a part of the stream, with these takeovers."""
        known, last = self.log.takeovers, self.log.last
        return takeovers[: len(known)] == known and all(last <= number for number in takeovers[len(known) :])

    def lose(self) -> None:
        """Its readers here cannot go on: Redis has nothing of it any more, or less than they were sent."""
        if not self.log.closed:
            self._close(Event(ERROR, GatewayError("cursor_expired").to_json()))

    def _close(self, terminal: Event | None) -> None:
        self.log.close(terminal)
        if not self.ended.done():
            self.ended.set_result(None)
