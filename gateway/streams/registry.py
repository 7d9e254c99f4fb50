"""Which streams exist: found by id and owner, kept for a while after their end, bounded in bytes.

Invariants:

- An id of somebody else's log is answered exactly as an id that never was.
- A log that ended is kept for its ttl, or less where all logs together need the room. A running log and one that is
  being read are never dropped.
"""

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from gateway.clock import Timer, Wheel
from gateway.core.cursor import new_stream_id
from gateway.core.errors import GatewayError
from gateway.streams.log import Budget, Log

STILL_READ: Final = 5.0
"""Seconds after which a log that somebody was reading when it should have gone is looked at again."""


class Entry(Protocol):
    """What a registry keeps: anything with a log."""

    @property
    def log(self) -> Log:
        """Its log."""


T = TypeVar("T", bound=Entry)


class Registry(Generic[T]):
    """All logs of this process, each with what keeps it.

    Args:
        wheel: where logs time out.
        max_bytes: what all logs together may keep.
        worker: named by the ids of the streams, where several processes share a port.
    """

    def __init__(self, wheel: Wheel, max_bytes: int, worker: int | None = None) -> None:
        self._wheel = wheel
        self._entries: dict[str, T] = {}
        self._ended: dict[str, Timer] = {}
        self._worker = worker
        self.budget = Budget(max_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def readers(self) -> int:
        """Who is attached to any of them, running or ended."""
        return sum(len(entry.log.readers) for entry in self._entries.values())

    def create(self, owner: str, max_bytes: int, make: Callable[[Log], T]) -> T:
        """What `make` builds around a new, empty log with a fresh id.

        Raises:
            GatewayError: `overloaded` when running logs alone fill the memory that logs may take.
        """
        self._make_room()
        if self.budget.spent:
            raise GatewayError("overloaded", retry_after=5, detail="server.max_log_bytes is used up by running streams")
        log = Log(new_stream_id(self._worker), owner, max_bytes, self.budget)
        entry = self._entries[log.stream_id] = make(log)
        return entry

    def find(self, stream_id: str, owner: str) -> T | None:
        """The owner's stream of this id, or None, whatever the reason."""
        entry = self._entries.get(stream_id)
        return entry if entry is not None and entry.log.owner == owner else None

    def retire(self, log: Log, ttl: float) -> None:
        """An ended log is kept for `ttl` seconds more, or until its last reader is gone."""
        if log.stream_id in self._entries and log.stream_id not in self._ended:
            self._keep(log.stream_id, ttl)

    def _keep(self, stream_id: str, seconds: float) -> None:
        self._ended[stream_id] = self._wheel.after(seconds, lambda: self._expire(stream_id))

    def _expire(self, stream_id: str) -> None:
        if self._entries[stream_id].log.readers:
            self._keep(stream_id, STILL_READ)
        else:
            self._drop(stream_id)

    def _make_room(self) -> None:
        for stream_id in list(self._ended) if self.budget.spent else ():
            if not self._entries[stream_id].log.readers:
                self._drop(stream_id)
            if not self.budget.spent:
                return

    def _drop(self, stream_id: str) -> None:
        self._ended.pop(stream_id).cancel()
        self._entries.pop(stream_id).log.discard()
