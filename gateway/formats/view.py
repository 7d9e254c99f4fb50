"""What every format is: events and a reader's view in, blocks out.

This file does not know any format.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from gateway.core.event import Event


@dataclass(slots=True)
class View:
    """What a format may tell one reader, apart from the events.

    Attributes:
        stream_id: the generation's public id.
        session_id: the chat session, "" where there is none.
        model: the model's name as clients are told it.
        created: when the generation began, in unix seconds.
        index: token events sent to this reader since the answer began, at least 0; formats count it.
        resumed: whether this reader came back with a cursor.
    """

    stream_id: str
    session_id: str
    model: str
    created: int
    index: int = 0
    resumed: bool = False


class Format(Protocol):
    """One way to spell the events of a log."""

    @property
    def announces_resume(self) -> bool:
        """Whether the `start` block tells if the stream was resumed, so that a reader who came back needs one too."""

    def encode(self, event: Event, view: View) -> str:
        """The block of one event, each line ended by LF; "" when it is not sent. Counts `view.index`."""

    def terminal(self, event: Event, view: View) -> str:
        """The block of the log's own last event, `DONE` or `ERROR`; "" when it is not sent."""


def unsent(source: Any, view: View) -> str:
    """The block of what a format does not send."""
    return ""
