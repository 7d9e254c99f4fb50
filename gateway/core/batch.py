"""Fewer, larger events: `merge` joins the deltas of a batch; `Holdback` keeps deltas back until a sentence has ended.

Invariants:

- No event is split, altered or reordered. Only neighbouring texts of the same kind are joined. The joined event has the
  sequence number of its last part, so a reader that resumes behind it has received all parts.
- What is held or joined is never larger than `max_bytes`, unless a single event is.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

from gateway.core.boundary import Boundary, Kind
from gateway.core.event import RESTART, THINKING, TOKEN, Event, utf8_length

_TEXTS: Final = frozenset((THINKING, TOKEN))
_TYPE: Final = attrgetter("type")


def merge(events: Sequence[Event], after: int, max_bytes: int) -> list[tuple[int, Event]]:
    """The events with their sequence numbers; runs of tokens and runs of thinking are joined.

    Args:
        events: consecutive entries of a log.
        after: the sequence number before the first of them, at least 0.
        max_bytes: the largest data of a joined event, in bytes of UTF-8; at least 1.
    """
    if len(events) == 1:  # nearly always, while the loop has time
        return [(after + 1, events[0])]
    merged: list[tuple[int, Event]] = []
    for kind, group in groupby(events, _TYPE):
        run = list(group)
        if kind in _TEXTS and len(run) > 1:
            merged += _joined(run, after, max_bytes)
        else:
            merged += enumerate(run, after + 1)  # tool calls, chunks, the end: never joined
        after += len(run)
    return merged


class Holdback:
    """Keeps the deltas of one stream back until they form whole sentences or paragraphs.

    Attributes:
        due: when the held events must be sent, on the clock of `now`; None while nothing is held.

    Args:
        kind: what is kept whole, sentences or paragraphs.
        max_bytes: the data of all held events, in bytes of UTF-8; at least 1.
        max_wait: seconds that the first held event may wait, at least 0.
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
        """The groups of events that may be sent now, oldest first.

        There are four reasons to release what is held:

        1. A sentence ends in the new event. An event is never split, so the whole of it goes with the group; only where
           the boundary is at its very start does it begin the next group.
        2. The new event is a delta of the other kind, or would make the group too large.
        3. The new event is no delta (a tool call, the end): it goes at once, behind what is held.
        4. `due` has passed.

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
                if event.type == RESTART:  # the text begins anew, and with it its sentences
                    self._boundaries = _boundaries(self._kind)
        return released

    def flush(self) -> list[Event]:
        """The held events, which are then no longer held; empty if there are none."""
        held, self._held = self._held, []
        self._size = 0
        self.due = None
        return held

    def _feed_text(self, event: Event, now: float, released: list[list[Event]]) -> None:
        boundary = self._boundaries[event.type].push(event.data)
        size = utf8_length(event.data)
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
    """The run, cut into pieces of at most `max_bytes`."""
    # A character has 4 bytes at most, so the bytes of a short run need not be counted.
    if sum([len(event.data) for event in run]) * 4 <= max_bytes:
        return [run]
    parts: list[list[Event]] = []
    room = 0
    for event in run:
        size = utf8_length(event.data)
        if not parts or size > room:
            parts.append([])
            room = max_bytes
        parts[-1].append(event)
        room -= size
    return parts
