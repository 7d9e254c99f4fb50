"""Finishes a broken answer with the events of a second answer, for a reader that has the beginning of the first.

A second target is asked in one of two ways, and it may not do what it was asked for:

- *prefilled*: it was given the delivered text, without the white space at its end, as the beginning of its own answer,
  and should continue it. Some targets begin anew all the same; then the text that they repeat is dropped.
- *anew*: it was asked the question again. The text that it repeats is dropped. Where its text differs, the delivered
  text is void.

Invariant: a reader is never sent a character twice, and never one that does not follow what it has, except after
`RESTART`.
"""

from collections.abc import Sequence
from typing import Final

from gateway.core.event import THINKING, TOKEN, Event

PROBE: Final = 16
"""A second answer that begins with this many characters of the delivered text begins anew; that is no chance. Where the
delivered text is short, half of it is enough."""


class DiffersError(Exception):
    """The second answer's text is not that of the first.

    Attributes:
        events: the second answer so far.
    """

    def __init__(self, text: str) -> None:
        super().__init__("the second answer differs from the first")
        self.events = [Event(TOKEN, text)] if text else []


class Continuation:
    """Filters the events of the second answer.

    Args:
        delivered: the text that the reader has.
        prefilled: whether the target was asked to continue that text, without the white space at its end.
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
            DiffersError: this answer's text differs; none of its events were given out before.
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
        """The events that are still held when the second answer is whole. Raises as `feed`."""
        return [] if self._joined else self._go_on()

    def _filter(self, event: Event) -> list[Event]:
        if event.type == THINKING:
            return []  # thoughts come before an answer, and the reader has the beginning of the answer already
        if event.type != TOKEN:
            return [*self.close(), event]
        if self._joined:
            return self._fresh(event)
        self._held += event.data
        return self._decide()

    def _decide(self) -> list[Event]:
        # Three cases: 1. All of the delivered text was repeated, and the rest is new. 2. What came so far may become a
        # repetition: hold it. 3. It is no repetition.
        held, delivered = self._held, self._delivered
        if held.startswith(delivered):
            return self._join(held[len(delivered) :])
        return [] if delivered.startswith(held) else self._go_on()

    def _go_on(self) -> list[Event]:
        """What is held, as the text that follows the delivered one, unless it is a second beginning that differs."""
        again = _common(self._held, self._delivered).strip()
        if not self._prefilled or len(again) >= min(PROBE, -(-len(self._delivered) // 2)):
            raise DiffersError(self._held)
        self._tail = self._delivered[len(self._delivered.rstrip()) :]
        return self._join(self._held)

    def _join(self, text: str) -> list[Event]:
        self._joined, self._held = True, ""
        return self._fresh(Event(TOKEN, text))

    def _fresh(self, event: Event) -> list[Event]:
        # The prefix was sent without the white space at its end, so the target may begin with white space that the
        # reader has already.
        if self._tail:
            again = _common(self._tail, event.data)
            self._tail = self._tail[len(again) :] if again == event.data else ""
            event = Event(TOKEN, event.data[len(again) :])
        return [event] if event.data else []


def _common(one: str, other: str) -> str:
    """The longest beginning that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]
