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
from gateway.formats.view import View

_encode: Final = msgspec.json.Encoder().encode
_failure: Final = msgspec.json.Decoder(Failure).decode


class Verbatim:
    """The upstream's own events, `event` and `data` kept.

    Args:
        ids: pass the upstream's ids on (resume is off, so no cursor takes their place).
    """

    announces_resume: Final = False

    def __init__(self, ids: bool = False) -> None:
        self._ids = ids

    def encode(self, event: Event, view: View) -> str:
        """The block of one upstream event; whatever its name is, it is never taken for the log's own."""
        name = clean_name(event.type) if event.type else ""
        head = f"event: {name}\n" if name else ""
        if self._ids and event.id:
            head += f"id: {event.id}\n"
        return head + data_lines(event.data)

    def terminal(self, event: Event, view: View) -> str:
        """The error that ended the log; a stream that ended well gets nothing appended."""
        return self.encode_error(event) if event.type == ERROR else ""

    def encode_error(self, event: Event) -> str:
        """The block of an `ERROR` event, named `error`."""
        return f"event: error\ndata: {_encode(error_data(_failure(event.data))).decode()}\n"
