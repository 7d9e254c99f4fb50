"""Server-sent events on the wire: bytes to events, and text to lines of a block; also bytes to lines, for NDJSON.

Invariants:

- The same bytes give the same events, however they are cut into reads. A line is decoded only when it has ended, so
  half of a character, of a line end or of a byte order mark is never looked at.
- Time is linear in the bytes, however many reads they come in. Memory is bounded by the two caps and one read.
- `Decoder` reads what `data_lines` writes as one event's data: no payload can open a second field or event.

This file does not know what an event means, nor what a last event id or a reconnection time is used for.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.core.event import Event, utf8_length

MAX_LINE: Final = 1 << 20
MAX_EVENT: Final = 4 << 20
MAX_NAME: Final = 256
MAX_EARLY: Final = 64 * 1024
"""Bytes of what may be given before its blank line or line end is there."""

_BOM: Final = b"\xef\xbb\xbf"
_RETRY_DIGITS: Final = 10
_CONTROLS: Final = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)))


class Oversize(ValueError):  # noqa: N818 - named for what is wrong with the input, as faults are throughout
    """A line or an event is longer than its cap. The reader that raised this must not be used any more.

    Attributes:
        whole: the events or lines that became complete in the same call, before the one that is too long.
    """

    def __init__(self, message: str, whole: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.whole = list(whole)


class _WholeLines:
    """Turns reads into the text of all lines that they completed, and keeps the last line until it is complete.

    `overflow` is true once a line was longer than `max_line` bytes; after that no more text comes.
    """

    __slots__ = ("_first", "_looked", "_tail", "max_line", "overflow")

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.overflow = False
        self._tail = bytearray()
        self._first = True
        self._looked = 0  # bytes of the pending line when it was last worth a look

    def text(self, data: bytes) -> str:
        # `data` may end several lines, end none, or end the kept one: only what stands up to its last LF is decoded.
        if self._first:
            data = self._without_bom(data)
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return ""
        whole = data[:end]
        if self._tail:
            whole = bytes(self._tail) + whole
            self._tail.clear()
        if end < len(data):
            self._keep(data[end:])
        if len(whole) > self.max_line:
            whole = self._fitting(whole)
        return whole.decode("utf-8", "replace")

    @property
    def unfinished(self) -> bool:
        return self._first or bool(self._tail)

    @property
    def pending(self) -> bytes:
        return bytes(self._tail)

    def worth_a_look(self) -> bool:
        # Whether the pending line may be its last words: asked again only when it grew by a quarter, so all looks cost
        # no more than a few of the last.
        size = len(self._tail)
        if size < self._looked:
            self._looked = 0
        if not self._looked * 5 // 4 <= size <= MAX_EARLY:
            return False
        self._looked = size
        return True

    def rest(self) -> str:
        rest = self._tail.decode("utf-8", "replace")
        self._tail.clear()
        return rest

    def _without_bom(self, data: bytes) -> bytes:
        data = bytes(self._tail) + data
        self._tail.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._tail += data
            return b""
        self._first = False
        return data.removeprefix(_BOM)

    def _keep(self, data: bytes) -> None:
        if len(self._tail) + len(data) > self.max_line:
            self.overflow = True
        else:
            self._tail += data

    def _fitting(self, whole: bytes) -> bytes:
        end = 0
        for line in whole.split(b"\n"):
            if len(line) > self.max_line:
                self.overflow = True
                return whole[:end]
            end += len(line) + 1
        return whole


class LineSplitter:
    """Lines of UTF-8 text, as in NDJSON: ended by LF or CRLF, empty ones included, one leading byte order mark dropped.

    Args:
        max_line: the most bytes of a line without its LF, at least 1.
        early: whether these bytes are the last line, so that it is given at once: servers leave out its LF. Asked only
            where a read ended with `}`.

    Source: https://github.com/ndjson/ndjson-spec 3.1
    """

    def __init__(self, max_line: int = MAX_LINE, early: Callable[[bytes], bool] | None = None) -> None:
        self._whole = _WholeLines(max_line)
        self._early = early

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completed, without their line ends; invalid UTF-8 is read as U+FFFD.

        Raises:
            Oversize: a line is longer than `max_line`; `Oversize.whole` holds the lines before it.
        """
        text = self._whole.text(data)
        lines = text.replace("\r\n", "\n").split("\n")
        lines.pop()
        if self._whole.overflow:
            raise Oversize(_line_message(self._whole.max_line), lines)
        if self._early is not None and data[-1:] == b"}":
            lines += self._given_early(self._early)
        return lines

    def _given_early(self, early: Callable[[bytes], bool]) -> list[str]:
        return self.close() if self._whole.worth_a_look() and early(self._whole.pending) else []

    def close(self) -> list[str]:
        """The last line, if the text ended without a line end; else nothing."""
        rest = self._whole.rest().removesuffix("\r")
        return [rest] if rest else []


class Decoder:
    """The events of one `text/event-stream`. A block that the stream did not complete gives no event.

    The `type` of an event is `unnamed` if its block names none; its `id` is "" if its own block has none.

    There are three ways through `feed`, which give the same events; the first is taken by nearly all reads:

    1. One block with one data line, and nothing left from earlier reads: the payload is cut out.
    2. Whole blocks, all with one data line (or one event line and one data line): `split` does the work.
    3. Anything else: line by line.

    Attributes:
        retry: the last reconnection time that was sent, in milliseconds; None before there was one.

    Args:
        max_line: the most bytes of a line without its line end, comments included; at least 1.
        max_event: the most bytes of the data lines of one event, with field names and line ends, as UTF-8; at least 1.
        unnamed: the type of an event whose block names none.
        early: whether a block that has these data so far ends the stream, so that its event is given at once: servers
            leave out the blank line behind their last words, and the line end too. Asked only where a read ended inside
            a block; inside a line, only if it ended with `}` or `]`.
        strays: whether lines outside the format that may report a failure are events too, given at once: a field named
            `error` (of the type `error`), and JSON without a field's name (of the type `unnamed`). LLM servers end
            streams with such lines; by the standard they are ignored.

    Source: WHATWG HTML 9.2.5, 9.2.6
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_early",
        "_fresh",
        "_id",
        "_looked",
        "_max_event",
        "_max_plain",
        "_open",
        "_size",
        "_strays",
        "_type",
        "_unnamed",
        "_whole",
        "retry",
    )

    def __init__(
        self,
        max_line: int = MAX_LINE,
        max_event: int = MAX_EVENT,
        unnamed: str = "",
        *,
        strays: bool = False,
        early: Callable[[str], bool] | None = None,
    ) -> None:
        self.retry: int | None = None
        self._early = early
        self._unnamed = unnamed
        self._strays = strays
        self._whole = _WholeLines(max_line)
        self._max_event = max_event
        self._max_plain = min(max_line, max_event // 4)  # a text that can break neither cap, whatever its characters
        self._after_cr = False
        self._fresh = False  # whether the next read begins a block, with nothing of the one before pending
        self._start_block()

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completed, in order; invalid UTF-8 is read as U+FFFD.

        Raises:
            Oversize: a line or an event is too long; `Oversize.whole` holds the events before it.
        """
        if self._fresh and 13 not in data and len(data) <= self._max_plain:
            text = data.decode("utf-8", "replace")
            if text.find("\n") == len(text) - 2 and text[-1] == "\n" and text.startswith("data: "):
                return [Event(self._unnamed, text[6:-2])]
            if text.endswith("\n\n"):
                return _plain(text, self._unnamed) or self._read(text)
        text = self._whole.text(self._with_lf_only(data))
        plain = not self._open and len(text) <= self._max_plain and text.endswith("\n\n")
        events = (_plain(text, self._unnamed) if plain else []) or self._read(text)
        self._fresh = not (self._open or self._after_cr or self._whole.unfinished)
        if self._early is not None:
            if self._whole.unfinished and data[-1:] in (b"}", b"]"):
                self._end_early(self._early, events)
            if len(self._data) > self._looked and not self._whole.unfinished:
                self._give_early(self._early, events)
        if self._whole.overflow:
            raise Oversize(_line_message(self._whole.max_line), events)
        return events

    def _end_early(self, early: Callable[[str], bool], events: list[Event]) -> None:
        if self._data or not self._whole.worth_a_look():
            return
        name, _, value = self._whole.pending.decode("utf-8", "replace").partition(":")
        if name == "data" and early(value.removeprefix(" ")):
            self._field(self._whole.rest(), events)  # what may follow in this line is another event

    def _give_early(self, early: Callable[[str], bool], events: list[Event]) -> None:
        # Once a block, and only if it is short: however small the reads are, they cost no more than their bytes.
        self._looked = len(self._data)
        if self._looked == 1 and self._size <= MAX_EARLY and early(self._data[0]):
            events.append(Event(self._type or self._unnamed, self._data[0], self._id))
            self._data.clear()  # the block goes on, and what may follow in it is another event

    def _with_lf_only(self, data: bytes) -> bytes:
        # A CR ends its line at once. If the next read begins with LF, that was one CRLF, and its LF is dropped.
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if 13 not in data:
            return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _read(self, text: str) -> list[Event]:
        events: list[Event] = []
        lines = text.split("\n")
        lines.pop()  # what follows the last LF: always empty
        for line in lines:
            if line:
                self._field(line, events)
            elif self._open:
                if self._data:
                    events.append(Event(self._type or self._unnamed, "\n".join(self._data), self._id))
                self._start_block()
            if self._size > self._max_event:
                raise Oversize(f"an event is longer than {self._max_event} bytes", events)
        return events

    def rest(self) -> list[Event]:
        """The event that the end of the stream left unfinished; it may be torn, and by the standard it is no event."""
        events = self._read(self._whole.rest() + "\n\n")
        self._start_block()
        return events

    def _start_block(self) -> None:
        self._open = False
        self._type = self._id = ""
        self._data: list[str] = []
        self._looked = 0  # data lines at the last look for an early end
        self._size = 0

    def _field(self, line: str, events: list[Event]) -> None:
        # A line without a known name, a comment among them, leaves no trace, so it cannot fill memory.
        name, _, value = line.partition(":")
        if value.startswith(" "):
            value = value[1:]
        if name == "data":
            self._open = True
            self._data.append(value)
            self._size += utf8_length(line) + 1
        elif name == "event":
            self._open = True
            self._type = value
        elif name == "id" and "\0" not in value:  # WHATWG HTML 9.2.6: an id with NUL is ignored
            self._open = True
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) <= _RETRY_DIGITS:
            self.retry = int(value)
        elif self._strays:
            if name.lower() == "error":
                events.append(Event("error", value))
            elif line.startswith(("{", "[{")):
                events.append(Event(self._unnamed, line))


def data_lines(data: str) -> str:
    r"""The `data:` lines of a payload, one for each of its lines, each ended by LF.

    CR and CRLF inside `data` end a line as LF does, and reach the reader as LF: the format cannot carry them.

    Source: WHATWG HTML 9.2.5
    """
    if "\n" not in data and "\r" not in data:
        return f"data: {data}\n"
    return _prefixed("data: ", data)


def comment(text: str = "") -> str:
    """A block of comment lines with its blank line; readers skip it.

    Source: WHATWG HTML 9.2.5
    """
    return _prefixed(": ", text) + "\n" if text else ":\n\n"


def clean_name(name: str) -> str:
    """An upstream's event name, safe to write in one line: its first 256 characters without control characters."""
    name = name[:MAX_NAME]
    return name if name.isprintable() else name.translate(_CONTROLS)


def _plain(text: str, unnamed: str) -> list[Event]:
    """The events of whole blocks that all are one data line, or all are one event line and one data line; else none."""
    if not text.startswith("data: "):
        return _named(text) if text.startswith("event: ") else []
    payloads = text[6:-2].split("\n\ndata: ")
    events = [Event(unnamed, payload) for payload in payloads if "\n" not in payload]
    return events if len(events) == len(payloads) else []


def _named(text: str) -> list[Event]:
    lines = text.split("\n")
    blocks = zip(lines[0::3], lines[1::3], lines[2::3], strict=False)
    events = [
        Event(name[7:], data[6:])
        for name, data, blank in blocks
        if not blank and name.startswith("event: ") and data.startswith("data: ")
    ]
    return events if len(events) * 3 + 1 == len(lines) else []


def _prefixed(prefix: str, text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join([f"{prefix}{line}\n" for line in lines])


def _line_message(cap: int) -> str:
    return f"a line is longer than {cap} bytes"
