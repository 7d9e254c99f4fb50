"""The streams that can be read in this process: found by id and owner, kept for a while after their end.

Invariants:

- The id of another owner's stream gets the same answer as an id that never existed.
- A log that has ended is kept for its ttl, or for less if a new log needs the memory. A log that is written here or is
  being read is never dropped; that of another node's stream is dropped soon after its last reader has left.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from gateway.clock import Timer, Wheel
from gateway.core.cursor import new_stream_id
from gateway.core.errors import GatewayError
from gateway.streams.log import LogMemory, MemoryLog
from gateway.streams.stream import Followed

STILL_READ: Final = 5.0
"""Seconds after which a log whose time is over is checked again, because it was being read."""


class Kept(Followed, Protocol):
    """What a registry keeps: a stream whose log is in memory, whatever writes it."""

    @property
    def log(self) -> MemoryLog:
        """Its events."""


T = TypeVar("T", bound=Kept)


class Registry:
    """All streams that this process can read.

    Args:
        wheel: the timers.
        max_bytes: bytes that all logs together may keep.
        worker: this process's number where several share a port. It is part of the streams' ids.

    Attributes:
        memory: the bytes that all logs keep together.
    """

    def __init__(self, wheel: Wheel, max_bytes: int, worker: int | None = None) -> None:
        self._wheel = wheel
        self._kept: dict[str, Kept] = {}
        self._ended: dict[str, Timer] = {}
        self._worker = worker
        self.memory = LogMemory(max_bytes)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def readers(self) -> int:
        """Readers that are attached to any of them, running or ended."""
        return sum(len(kept.log.readers) for kept in self._kept.values())

    def create(self, max_bytes: int, make: Callable[[str, MemoryLog], T]) -> T:
        """What `make` builds around a fresh id and a new, empty log.

        Raises:
            GatewayError: `overloaded` when running logs alone fill the memory that logs may take.
        """
        self._make_room()
        if self.memory.spent:
            raise GatewayError("overloaded", retry_after=5, detail="server.max_log_bytes is used up by running streams")
        kept = make(new_stream_id(self._worker), MemoryLog(max_bytes, self.memory))
        self.add(kept)
        return kept

    def add(self, kept: Kept) -> None:
        """Makes this stream readable here, wherever it is written. You must call `retire` when it has ended."""
        self.hide(kept.stream.id)
        self._kept[kept.stream.id] = kept

    def hide(self, stream_id: str) -> None:
        """Nobody finds this stream here any more, if there is one; readers that it has go on.

        To be called only for a stream that is not generated here, or whose generation ends now.
        """
        kept = self._kept.pop(stream_id, None)
        if kept is None:
            return
        if timer := self._ended.pop(stream_id, None):
            timer.cancel()
        name = f"~{stream_id}.{id(kept)}"  # no id of a stream looks like that
        self._kept[name] = kept
        self._keep(name, STILL_READ)

    def holds(self, kept: Kept) -> bool:
        """Whether this is what is found by its id."""
        return self._kept.get(kept.stream.id) is kept

    def kept(self, stream_id: str) -> Kept | None:
        """The stream with this id, whoever owns it; None if there is none."""
        return self._kept.get(stream_id)

    def find(self, stream_id: str, owner: str) -> Kept | None:
        """The owner's stream with this id; None, for whatever reason, if there is none."""
        kept = self._kept.get(stream_id)
        return kept if kept is not None and kept.stream.owner == owner else None

    def retire(self, stream_id: str, ttl: float) -> None:
        """The stream, which is not written here any more, is kept for `ttl` seconds, and then until nobody reads it."""
        if stream_id in self._kept and stream_id not in self._ended:
            self._keep(stream_id, ttl)

    def _keep(self, stream_id: str, seconds: float) -> None:
        self._ended[stream_id] = self._wheel.after(seconds, lambda: self._expire(stream_id))

    def _expire(self, stream_id: str) -> None:
        if self._kept[stream_id].log.readers:
            self._keep(stream_id, STILL_READ)
        else:
            self._drop(stream_id)

    def _make_room(self) -> None:
        for stream_id in list(self._ended) if self.memory.spent else ():
            if not self._kept[stream_id].log.readers:
                self._drop(stream_id)
            if not self.memory.spent:
                return

    def _drop(self, stream_id: str) -> None:
        self._ended.pop(stream_id).cancel()
        self._kept.pop(stream_id).log.discard()
