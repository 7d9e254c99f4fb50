"""The format of proxy routes: what came from the upstream goes on to the reader.

- An upstream's event is never taken for the log's own, whatever its name; only the caller knows which is which.

This file does not know what any event means.
"""

from typing import Final

import msgspec

from gateway.core.errors import Failure
from gateway.core.event import ERROR, Event
from gateway.core.sse import clean_name, data_lines
from gateway.formats.problem import error_data
from gateway.formats.view import Encoder, Spec, Stateless, View

_encode: Final = msgspec.json.Encoder().encode
_failure: Final = msgspec.json.Decoder(Failure).decode


class Verbatim(Stateless):
    """The upstream's own events, `event` and `data` kept.

    It is its own encoder, as nothing in it differs between readers.

    Args:
        ids: pass the upstream's ids on (resume is off, so no cursor takes their place).
    """

    announces_resume: Final = False

    def __init__(self, ids: bool = False) -> None:
        self.spec: Spec = {"format": "verbatim", "ids": ids}
        self._ids = ids

    def open(self, view: View) -> Encoder:
        """The encoder of one reader."""
        return self

    def encode(self, event: Event, index: int) -> str:
        """The block of one upstream event; whatever its name is, it is never taken for the log's own."""
        name = clean_name(event.type) if event.type else ""
        head = f"event: {name}\n" if name else ""
        if self._ids and event.id:
            head += f"id: {event.id}\n"
        return head + data_lines(event.data)

    def terminal(self, event: Event, index: int) -> str:
        """The error that ended the log, named `error`; a stream that ended well gets nothing appended."""
        if event.type != ERROR:
            return ""
        return f"event: error\ndata: {_encode(error_data(_failure(event.data))).decode()}\n"
