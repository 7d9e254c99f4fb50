"""The bytes that one reader is sent: events and a place go in, frames and the next place come out.

    frame = ["retry: …" LF] ["id: " cursor LF] block LF          one for each event that the format sends
    cursor = stream id "." sequence number "." token index

Nothing here waits, writes or counts. Only a stateful format remembers anything between two calls.
"""

from collections.abc import Sequence

import msgspec

from gateway.core.batch import merge
from gateway.core.cursor import Place, final_cursor
from gateway.core.errors import Failure, GatewayError
from gateway.core.event import ERROR, RESTART, START, TOKEN, Event
from gateway.core.sse import comment
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
    """

    __slots__ = ("_encoder", "_format", "_log", "_max_merged", "_prefix", "_retry_ms", "_view")

    def __init__(self, stream: Stream, log: Log, *, cursors: bool, retry_ms: int, resumed: bool = False) -> None:
        self._log = log
        self._format = stream.format
        self._view = stream.view(log.model, resumed=resumed)
        self._encoder = stream.format.open(self._view)
        self._prefix = f"id: {stream.id}." if cursors else ""
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

    def first(self, place: Place) -> str:
        """The first text that a reader at this place is sent; never empty."""
        text = ""
        if self._prefix:
            text = f"retry: {self._retry_ms}\n{self._prefix}{place.seq}.{place.tokens}\n\n"
        if self._view.resumed and self._format.announces_resume:
            text += self._encoder.encode(Event(START, ""), place.tokens) + "\n"
        return text or comment()

    def encode(self, events: Sequence[Event], place: Place) -> tuple[bytes, Place]:
        """The frames of the events that follow a place, and the place behind them.

        Args:
            events: some of the log's, in order; the first has the sequence number `place.seq + 1`.
            place: how far the reader was.
        """
        log, view, encode, prefix = self._log, self._view, self._encoder.encode, self._prefix
        stateful = self._format.stateful
        if view.model is not log.model:
            view.model = log.model
        seq, index = place
        last = seq + len(events)
        terminal = log.terminal if log.closed and last == log.last else None
        if terminal is not None:
            events = events[:-1]
        text = ""
        numbered = merge(events, seq, self._max_merged) if self._max_merged else enumerate(events, seq + 1)
        # This loop runs for every event of every reader, so nothing but the encoder is called in it.
        for number, event in numbered:
            kind = event.type
            if kind == RESTART:
                index = 0  # its own block, too, belongs to the answer that begins
            block = encode(event, index)
            if kind == TOKEN:
                index += 1
            if block:
                if stateful:
                    block = self._behind_all(block, Place(number, index))
                    text += f"{block}\n"
                else:
                    text += f"{prefix}{number}.{index}\n{block}\n" if prefix else f"{block}\n"
        if terminal is not None:
            text += self._end(terminal, Place(last, index))
        return text.encode("utf-8", "replace"), Place(last, index)

    def trimmed(self, place: Place) -> bytes:
        """The frame for a reader whose next events were trimmed, with a cursor after which nothing is left to read."""
        error = GatewayError("cursor_expired")
        return error_frame(self._format, self._view, error, final_cursor(), place.tokens).encode()

    def failed(self, error: GatewayError, place: Place) -> bytes:
        """The frame that ends the stream of a reader at this place, with a cursor after which nothing is left."""
        cursor = final_cursor() if self._prefix else ""
        return error_frame(self._format, self._view, error, cursor, place.tokens).encode()

    def _end(self, terminal: Event, place: Place) -> str:
        block = self._encoder.terminal(terminal, place.tokens)
        if block and terminal.type == ERROR:
            # Readers that were cut at the same moment must not come back at the same moment: `retry_ms` differs.
            retry_after = msgspec.json.decode(terminal.data, type=Failure).retry_after
            if retry_after is not None:
                block = f"retry: {round(retry_after * 1000) + self._retry_ms}\n{block}"
        # The cursor is sent even where the format sends nothing for the end: with it, a reconnect is answered 204.
        return f"{self._behind_all(block, place)}\n" if block or self._prefix else ""

    def _behind_all(self, block: str, place: Place) -> str:
        """The block with its cursor. Where it is several blocks, the last one has the cursor: a reader that was cut off
        between them comes back with an older cursor, and gets all of them."""
        if not self._prefix:
            return block
        before, gap, last = block.rpartition("\n\n")
        return f"{before}{gap}{self._prefix}{place.seq}.{place.tokens}\n{last}"


def error_frame(format_: Format, view: View, error: GatewayError, cursor: str = "", index: int = 0) -> str:
    """One error in the route's format, as a whole frame.

    Args:
        format_: the route's.
        view: what the format may mention of the stream.
        error: the error.
        cursor: one after which nothing is left to read, where the stream cannot be resumed; "" for none.
        index: token events that the reader was sent before.
    """
    block = format_.open(view).terminal(Event(ERROR, error.to_json()), index)
    return f"id: {cursor}\n{block}\n" if cursor else f"{block}\n"
