"""Fewer, larger events: `merge` joins the deltas of a batch, `Hold` keeps deltas back until a sentence ends.

Invariants:

- No event is split, altered or reordered; only neighbouring texts of one kind are joined, and the joined event stands
  at the place of its last part, so a reader who has seen it has seen them all.
- What is held or joined never exceeds `max_bytes`, unless a single event does.

This file does not know who reads, how an event is spelled, or what time it is: `now` is handed in.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

from gateway.core.boundary import Boundary, Kind
from gateway.core.event import RESTART, THINKING, TOKEN, Event

_TEXTS: Final = frozenset((THINKING, TOKEN))
_TYPE: Final = attrgetter("type")


def merge(events: Sequence[Event], after: int, max_bytes: int) -> list[tuple[int, Event]]:
    """The events with their sequence numbers, runs of tokens and runs of thinking joined.

    Args:
        events: consecutive entries of a log.
        after: the sequence number before the first of them, at least 0.
        max_bytes: of UTF-8 in the data of a joined event, at least 1.
    """
    if len(events) == 1:
        return [(after + 1, events[0])]
    merged: list[tuple[int, Event]] = []
    for kind, group in groupby(events, _TYPE):
        run = list(group)
        if kind in _TEXTS and len(run) > 1:
            merged += _joined(run, after, max_bytes)
        else:
            merged += enumerate(run, after + 1)
        after += len(run)
    return merged


class Hold:
    """Keeps the deltas of one stream back until they make whole sentences or paragraphs.

    Attributes:
        due: when what is held must go, on the clock of `now`; None while nothing is held.

    Args:
        kind: what is kept whole.
        max_bytes: of UTF-8 in the data of all held events, at least 1.
        max_wait: seconds the first held event may wait, at least 0.
    """

    def __init__(self, kind: Kind, max_bytes: int, max_wait: float) -> None:
        self.due: float | None = None
        self._kind = kind
        self._max_bytes = max_bytes
        self._max_wait = max_wait
        self._held: list[Event] = []
        self._size = 0
        self._boundaries = _boundaries(kind)

    def feed(self, events: Sequence[Event], now: float) -> list[list[Event]]:
        """The groups that may go now, oldest first; each ends on a boundary, at a limit, or with no delta at all.

        An event goes whole: a boundary inside it lets it go with what was held before it. Any event that is not a
        delta goes at once and takes along what is held; a delta of the other kind first lets go what is held.

        Args:
            events: what the log holds next.
            now: seconds, never less than at the call before.
        """
        released: list[list[Event]] = []
        if self.due is not None and now >= self.due:
            released.append(self.flush())
        for event in events:
            if event.type in _TEXTS:
                self._feed_text(event, now, released)
            else:
                released.append([*self.flush(), event])
                if event.type == RESTART:
                    self._boundaries = _boundaries(self._kind)
        return released

    def flush(self) -> list[Event]:
        """What is held, which is then held no more; empty if nothing is."""
        held, self._held = self._held, []
        self._size = 0
        self.due = None
        return held

    def _feed_text(self, event: Event, now: float, released: list[list[Event]]) -> None:
        boundary = self._boundaries[event.type].push(event.data)
        size = _utf8_length(event.data)
        if self._held and (boundary == 0 or self._held[0].type != event.type or self._size + size > self._max_bytes):
            released.append(self.flush())
        if not self._held:
            self.due = now + self._max_wait
        self._held.append(event)
        self._size += size
        if boundary or self._size >= self._max_bytes:
            released.append(self.flush())


def _boundaries(kind: Kind) -> dict[str, Boundary]:
    return {text: Boundary(kind) for text in _TEXTS}


def _joined(run: list[Event], after: int, max_bytes: int) -> list[tuple[int, Event]]:
    joined: list[tuple[int, Event]] = []
    for part in _parts(run, max_bytes):
        after += len(part)
        last = part[-1]
        whole = last if len(part) == 1 else Event(last.type, "".join([event.data for event in part]), last.id)
        joined.append((after, whole))
    return joined


def _parts(run: list[Event], max_bytes: int) -> list[list[Event]]:
    """The run cut into pieces that fit; 4 is the most bytes a character can take."""
    if sum([len(event.data) for event in run]) * 4 <= max_bytes:
        return [run]
    parts: list[list[Event]] = []
    room = 0
    for event in run:
        size = _utf8_length(event.data)
        if not parts or size > room:
            parts.append([])
            room = max_bytes
        parts[-1].append(event)
        room -= size
    return parts


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
