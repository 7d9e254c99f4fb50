"""What every format is: it opens an encoder for each reader, and that turns events into blocks.

                  open(view)              encode(event, index), once for each event
    Format ---------------------> Encoder ----------------------------------------------> blocks
    one a route                   one a reader

A reader that comes back gets a new encoder. Where a format keeps state between events (it opens and closes blocks),
`skip` brings the new encoder to where the old one was: it is given what the reader has already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.core.event import Event

Spec = str | Mapping[str, Any]
"""A format as JSON has it: the name of one, or a mapping."""


@dataclass(slots=True)
class View:
    """What a format may tell one reader, apart from the events. Only the model changes while a reader reads.

    Attributes:
        stream_id: the generation's public id.
        session_id: the chat session, "" where there is none.
        model: the model's name as clients are told it.
        created: when the generation began, in unix seconds.
        resumed: whether this reader came back with a cursor.
    """

    stream_id: str
    session_id: str
    model: str
    created: int
    resumed: bool = False


class Encoder(Protocol):
    """Spells the events of one log for one reader, in the order in which they stand there."""

    def encode(self, event: Event, index: int) -> str:
        """The block of one event, each line ended by LF; "" when it is not sent.

        Args:
            event: the next event.
            index: token events that the reader was sent before it, since the answer began.
        """

    def terminal(self, event: Event, index: int) -> str:
        """The block of the log's own last event, `DONE` or `ERROR`; "" when it is not sent."""

    def skip(self, events: Sequence[Event]) -> None:
        """The reader has these events, which are the log's first. Called before any other method, and only where the
        format is `stateful`."""


class Format(Protocol):
    """One way to spell the events of a log."""

    @property
    def announces_resume(self) -> bool:
        """Whether the `start` block tells if the stream was resumed, so that a reader who came back needs one too."""

    @property
    def stateful(self) -> bool:
        """Whether what an event looks like depends on the events before it."""

    @property
    def spec(self) -> Spec:
        """What `load_format` makes this format of again, on whatever machine."""

    def open(self, view: View) -> Encoder:
        """The encoder of one reader, at the beginning of the log."""


class Stateless:
    """What formats share that remember nothing from one event to the next."""

    __slots__ = ()
    stateful: Final = False

    def skip(self, events: Sequence[Event]) -> None:
        """Nothing: no event depends on these."""


def unsent(source: Any, view: View, index: int) -> str:
    """The block of what a format does not send."""
    return ""
