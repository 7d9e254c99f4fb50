"""From another answer's events to what is missing of the first one, for a reader who has part of it already.

Another target is asked in one of two ways, and neither can be trusted to do what was asked:

- *prefilled*: it was given the delivered text, without the white space at its end, as the beginning of its own answer,
  and should go on behind it. Some begin anew all the same; then what they repeat is dropped.
- *anew*: it was asked the question again. What it repeats is dropped; where its text differs, what was delivered is
  void.

Invariant: a reader is never sent a character twice, and never one that does not follow what it has, except after
`RESTART`. This file does not know targets, requests or errors of HTTP.
"""

from collections.abc import Sequence
from typing import Final

from gateway.core.event import THINKING, TOKEN, Event

PROBE: Final = 16
"""Characters at the beginning of the delivered text that nobody says again by chance. Of a shorter text, half of it."""


class DiffersError(Exception):
    """The other answer's text is not that of the first.

    Attributes:
        events: what the other answer says so far.
    """

    def __init__(self, text: str) -> None:
        super().__init__("the second answer differs from the first")
        self.events = [Event(TOKEN, text)] if text else []


class Continuation:
    """Filters the events of the second answer.

    Args:
        delivered: the text the reader has.
        prefilled: whether the target was given that text to go on from, without the white space at its end.
    """

    def __init__(self, delivered: str, *, prefilled: bool) -> None:
        self._delivered = delivered
        self._prefilled = prefilled
        self._held = ""
        self._joined = not delivered
        self._tail = ""

    def feed(self, events: Sequence[Event]) -> list[Event]:
        """The events that the reader lacks.

        Raises:
            DiffersError: this answer goes another way; nothing of it was let through.
        """
        missing: list[Event] = []
        for place, event in enumerate(events):
            try:
                missing += self._filter(event)
            except DiffersError as error:
                error.events += events[place + (event.type == TOKEN) :]
                raise
        return missing

    def close(self) -> list[Event]:
        """What is still held when the second answer is whole. Raises as `feed`."""
        return [] if self._joined else self._go_on()

    def _filter(self, event: Event) -> list[Event]:
        if event.type == THINKING:
            return []  # its thoughts led to an answer of which the reader has the beginning
        if event.type != TOKEN:
            return [*self.close(), event]
        if self._joined:
            return self._fresh(event)
        self._held += event.data
        return self._decide()

    def _decide(self) -> list[Event]:
        held, delivered = self._held, self._delivered
        if held.startswith(delivered):
            return self._join(held[len(delivered) :])
        return [] if delivered.startswith(held) else self._go_on()

    def _go_on(self) -> list[Event]:
        """What is held, taken for the text behind what was delivered."""
        again = _common(self._held, self._delivered).strip()
        if not self._prefilled or len(again) >= min(PROBE, -(-len(self._delivered) // 2)):
            raise DiffersError(self._held)
        self._tail = self._delivered[len(self._delivered.rstrip()) :]
        return self._join(self._held)

    def _join(self, text: str) -> list[Event]:
        self._joined, self._held = True, ""
        return self._fresh(Event(TOKEN, text))

    def _fresh(self, event: Event) -> list[Event]:
        # A target is given no white space at the end of what it is to go on from, so it may say what the reader has.
        if self._tail:
            again = _common(self._tail, event.data)
            self._tail = self._tail[len(again) :] if again == event.data else ""
            event = Event(TOKEN, event.data[len(again) :])
        return [event] if event.data else []


def _common(one: str, other: str) -> str:
    """The characters in which both begin alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]
