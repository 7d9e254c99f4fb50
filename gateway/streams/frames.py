"""The bytes that one reader is sent: events and a place go in, frames and the next place come out.

    frame = ["retry: …" LF] block ["id: " cursor LF] LF          one for each event that the format sends
    cursor = `core/cursor.py`

Invariants:

- `id:` is the last line of its block. Many client libraries take a cursor when its line is complete, and not when its
  block is: a connection that breaks inside an event must not leave them with the cursor of that event.
- The first frame has the `retry:`. Many client libraries take a block without data for an event with empty data. So
  one is sent only to a `GET`, for a cursor that has no event to go with: before the first event, if the format has no
  opening one, and at the end, if the format sends nothing for it.

Nothing here waits or writes. A stateful format remembers the events before; else only the `retry:` is remembered, until
it was sent.
"""

from collections.abc import Sequence

import msgspec

from gateway.core.batch import merge
from gateway.core.cursor import Place, cursor_prefix, final_cursor
from gateway.core.errors import Failure, GatewayError
from gateway.core.event import ERROR, RESTART, START, TOKEN, Event
from gateway.formats import Format, View
from gateway.streams.log import Log
from gateway.streams.stream import Stream


class Frames:
    """Encodes the log of one stream for one reader.

    Args:
        stream: the stream that is read.
        log: its events. Here it gives the model's name, and the terminal event.
        cursors: whether frames carry cursors (and the first one a `retry:`).
        retry_ms: base of the client's reconnection time, in milliseconds.
        resumed: whether the client came back with a cursor.
        bare: whether a cursor may be sent in a block without data. Not to a `POST`, which an EventSource never sends.
    """

    __slots__ = (
        "_bare", "_encode", "_encoder", "_format", "_literal", "_log", "_max_merged", "_model", "_prefix", "_retry",
        "_retry_ms", "_takeovers", "_view",
    )  # fmt: skip

    def __init__(
        self, stream: Stream, log: Log, *, cursors: bool, retry_ms: int, resumed: bool = False, bare: bool = True
    ) -> None:
        self._log = log
        self._format = stream.format
        self._view = stream.view(log.model, resumed=resumed)
        self._encoder = stream.format.open(self._view)
        self._encode = self._encoder.encode
        self._literal: str | None = getattr(self._encoder, "literal", None)
        self._model = log.model
        self._takeovers = log.takeovers
        self._prefix = self._cursor_prefix() if cursors else ""
        self._bare = bare
        self._retry = f"retry: {retry_ms}\n" if cursors else ""
        self._retry_ms = retry_ms
        self._max_merged = stream.settings.max_bytes if stream.settings.merge else 0

    def skip(self, place: Place) -> bool:
        """Whether a reader can go on from this place. For a stateful format the log must still have its beginning."""
        if not self._format.stateful or not place.seq:
            return True
        events = self._log.read(0, place.seq)
        if not isinstance(events, Sequence):
            return False
        self._encoder.skip(events)
        return True

    def first(self, place: Place) -> tuple[bytes, Place]:
        """What a reader at this place is sent first, and the place behind it; b"" where that is the next event.

        The `retry:` and a cursor come as early as possible, so that a client that is cut off before the first token
        comes back to this stream. There are three ways for them:

        1. On the opening event, if the log begins with one that the format sends.
        2. On that event anew, where it says that the stream was resumed.
        3. In a block without data. A client that came back needs none: it has a cursor.
        """
        if self._view.resumed:
            block = self._encoder.encode(Event(START, ""), place.tokens) if self._format.announces_resume else ""
            return (self._with_retry(self._frame(block, place)) if block else b""), place
        events = self._log.read(place.seq, 1)
        if isinstance(events, Sequence) and events[0].type == START:
            data, place = self.encode(events, place)
            if data:
                return data, place
        return (self._with_retry(self._frame("", place)) if self._prefix and self._bare else b""), place

    def encode(self, events: Sequence[Event], place: Place) -> tuple[bytes, Place]:
        """The frames of the events that follow a place, and the place behind them.

        Args:
            events: some of the log's, in order; the first has the sequence number `place.seq + 1`.
            place: how far the reader was.
        """
        log, encode, literal = self._log, self._encode, self._literal
        if self._model is not log.model or self._takeovers is not log.takeovers:
            self._learn()
        prefix = self._prefix
        seq, index = place.seq, place.tokens
        last = seq + len(events)
        terminal = log.terminal if log.closed and last == log.last else None
        if terminal is not None:
            events = events[:-1]
        text = ""
        numbered = merge(events, seq, self._max_merged) if self._max_merged else enumerate(events, seq + 1)
        # This loop runs for every event of every reader, so nothing but the encoder is called in it.
        for number, event in numbered:
            kind, data = event.type, event.data
            if kind == literal and "\n" not in data and "\r" not in data:
                text += f"data: {data}\n{prefix}{number}.{index}\n\n" if prefix else f"data: {data}\n\n"
                continue
            if kind == RESTART:
                index = 0  # its own block, too, belongs to the answer that begins
            block = encode(event, index)
            if kind == TOKEN:
                index += 1
            if block:
                text += f"{block}{prefix}{number}.{index}\n\n" if prefix else f"{block}\n"
        if terminal is not None:
            text += self._end(terminal, Place(last, index))
        if text and self._retry:
            return self._with_retry(text), Place(last, index)
        return text.encode("utf-8", "replace"), Place(last, index)

    def comeback(self, seconds: float) -> bytes:
        """What asks the client to come back in so many seconds; b"" for one that reads no cursors.

        A line and no block: it counts when it is complete (WHATWG HTML 9.2.6), and no library takes it for an event.
        """
        return f"retry: {round(seconds * 1000)}\n".encode() if self._prefix else b""

    def trimmed(self, place: Place) -> bytes:
        """The frame for a reader whose next events were trimmed, with a cursor after which nothing is left to read."""
        return self._error(GatewayError("cursor_expired"), final_cursor(), place)

    def failed(self, error: GatewayError, place: Place) -> bytes:
        """The frame that ends the stream of a reader at this place, with a cursor after which nothing is left."""
        return self._error(error, final_cursor() if self._prefix else "", place)

    def _learn(self) -> None:
        """Takes over what the log has learned since the last call: the model, and that another node goes on with it."""
        self._model = self._view.model = self._log.model
        self._takeovers = self._log.takeovers
        self._prefix = self._cursor_prefix() if self._prefix else ""

    def _cursor_prefix(self) -> str:
        return f"id: {cursor_prefix(self._view.stream_id, len(self._takeovers))}"

    def _end(self, terminal: Event, place: Place) -> str:
        block = self._encoder.terminal(terminal, place.tokens)
        if block and terminal.type == ERROR:
            # Readers that were cut at the same moment must not come back at the same moment: `retry_ms` differs.
            retry_after = msgspec.json.decode(terminal.data, type=Failure).retry_after
            if retry_after is not None:
                block = f"retry: {round(retry_after * 1000) + self._retry_ms}\n{block}"
        # The cursor is sent even where the format sends nothing for the end: with it, a reconnect is answered 204.
        return self._frame(block, place) if block or (self._prefix and self._bare) else ""

    def _error(self, error: GatewayError, cursor: str, place: Place) -> bytes:
        return error_frame(self._format, self._view, error, cursor, place.tokens, bare=self._bare).encode()

    def _frame(self, block: str, place: Place) -> str:
        # Where the block is several blocks, the last one has the cursor: a reader that was cut off between them comes
        # back with an older cursor, and gets all of them.
        return f"{block}{self._prefix}{place.seq}.{place.tokens}\n\n" if self._prefix else f"{block}\n"

    def _with_retry(self, text: str) -> bytes:
        """The first text that this reader is sent; an error that it begins with may name a time of its own."""
        retry, self._retry = self._retry, ""
        return (text if text.startswith("retry: ") else retry + text).encode("utf-8", "replace")


def error_frame(
    format_: Format, view: View, error: GatewayError, cursor: str = "", index: int = 0, *, bare: bool = True
) -> str:
    """One error in the route's format, as a whole frame; "" where there is nothing to send.

    Args:
        format_: the route's.
        view: what the format may mention of the stream.
        error: the error.
        cursor: one after which nothing is left to read, where the stream cannot be resumed; "" for none.
        index: token events that the reader was sent before.
        bare: whether the cursor is sent where the format sends nothing for an error.
    """
    block = format_.open(view).terminal(Event(ERROR, error.to_json()), index)
    if cursor and (block or bare):
        return f"{block}id: {cursor}\n\n"
    return f"{block}\n" if block else ""
