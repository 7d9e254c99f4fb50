"""The format of proxy routes: the reader is sent the upstream's events as they are.

An upstream may name its own events `error` or `done`. They are never taken for the log's terminal event: the caller
passes the upstream's events to `encode`, and the terminal event to `terminal`.
"""

from typing import Final

import msgspec

from gateway.core.errors import Failure
from gateway.core.event import ERROR, Event
from gateway.core.sse import clean_name, data_lines
from gateway.formats.problem import error_data, error_object
from gateway.formats.view import Encoder, Spec, Stateless, View

_encode: Final = msgspec.json.Encoder().encode
_failure: Final = msgspec.json.Decoder(Failure).decode


class Verbatim(Stateless):
    """The upstream's own events, with their `event` and `data`.

    It is its own encoder, as nothing in it differs between readers.

    Args:
        ids: whether the upstream's ids are sent too. Only where resume is off, as cursors are sent as ids.
    """

    announces_resume: Final = False

    def __init__(self, ids: bool = False) -> None:
        self.spec: Spec = {"format": "verbatim", "ids": ids}
        self._ids = ids

    def open(self, view: View) -> Encoder:
        """The encoder of one reader."""
        return self

    def encode(self, event: Event, index: int) -> str:
        """The block of one event of the upstream, whatever its name."""
        name = clean_name(event.type) if event.type else ""
        block = (f"event: {name}\n" if name else "") + data_lines(event.data)
        return f"{block}id: {event.id}\n" if self._ids and event.id else block

    def terminal(self, event: Event, index: int) -> str:
        """The block of the error that ended the log, named `error`; "" for a stream that ended well.

        What is behind a proxy route may be any API. So the error is told twice in one object: bare, and as the member
        `error` that the SDKs of OpenAI and Anthropic raise. Source: openai/openai-python#3934, `_streaming.py`.
        """
        if event.type != ERROR:
            return ""
        failure = _failure(event.data)
        data = {"type": "error", **error_data(failure), **error_object(failure)}
        return f"event: error\ndata: {_encode(data).decode()}\n"
