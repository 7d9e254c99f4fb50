"""What a format is: it opens an encoder for each reader, and the encoder turns events into blocks.

                  open(view)              encode(event, index), once for each event
    Format ---------------------> Encoder ----------------------------------------------> blocks
    one a route                   one a reader

A reader that comes back gets a new encoder. If a format keeps state between events (it opens and closes parts of an
answer), `skip` brings the new encoder into the state of the old one: it is given the events that the reader has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.core.event import Event

Spec = str | Mapping[str, Any]
"""A format as a JSON value: its name, or a mapping."""


@dataclass(slots=True)
class View:
    """What a format may send to one reader, apart from the events. Only `model` changes while the reader reads.

    Attributes:
        stream_id: the generation's public id.
        session_id: the chat session, "" where there is none.
        model: the model's name as clients see it.
        created: when the generation began, in unix seconds.
        resumed: whether this reader came back with a cursor.
    """

    stream_id: str
    session_id: str
    model: str
    created: int
    resumed: bool = False


class Encoder(Protocol):
    """Turns the events of one log into blocks for one reader. It is given the events in the order of the log.

    It may have an attribute `literal`, the type of events whose block is their data and nothing else. They are then
    sent without asking `encode`, which saves a third of what a frame costs.
    """

    def encode(self, event: Event, index: int) -> str:
        """The block of one event, each line ended by LF; "" when it is not sent.

        Args:
            event: the next event.
            index: number of token events before it, since the answer began.
        """

    def terminal(self, event: Event, index: int) -> str:
        """The block of the log's own last event, `DONE` or `ERROR`; "" when it is not sent."""

    def skip(self, events: Sequence[Event]) -> None:
        """The reader has these events, which are the log's first. Called before any other method, and only where the
        format is `stateful`."""


class Format(Protocol):
    """One way to send the events of a log."""

    @property
    def announces_resume(self) -> bool:
        """Whether the `start` block says if the stream was resumed. If so, a reader that comes back is sent one too."""

    @property
    def stateful(self) -> bool:
        """Whether the block of an event depends on the events before it."""

    @property
    def spec(self) -> Spec:
        """The value from which `load_format` makes this format again, on any machine."""

    def open(self, view: View) -> Encoder:
        """The encoder of one reader, at the beginning of the log."""


class Stateless:
    """Base of the formats and encoders that remember nothing from one event to the next."""

    __slots__ = ()
    stateful: Final = False

    def skip(self, events: Sequence[Event]) -> None:
        """Does nothing, as no later block depends on these events."""


def unsent(source: Any, view: View, index: int) -> str:
    """The block, "", of an event that a format does not send."""
    return ""
