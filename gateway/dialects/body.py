"""What an answer's body is: its first bytes say it, whatever the Content-Type says.

                the first byte that is no white space
    Sniffer ----+-- `{` or `[` --> Gathered --+-- its first value may be the whole answer --> one event, `BODY`
                |                             +-- its first value is a piece of one -------> an event for it, and one
                |                                                                            for each further line
                +-- `<` ------------------> a page ---------------------------------------> `NoAnswerError`
                +-- anything else --------> Decoder: server-sent events ------------------> an event for each block

A JSON value is looked for when the body ends, and before that when a read may have completed it: a server that leaves
its connection open behind a whole answer is not waited for. The next look is taken only after the bytes grew by a
quarter, so that all looks together cost no more than a few of the last one.
"""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.core.event import Event
from gateway.core.lenient import value_of
from gateway.core.sse import Decoder, LineSplitter, Oversize
from gateway.core.weight import is_heavy

BODY: Final = "a whole body"
"""The type of the event whose data is a whole JSON body. Compare it with `is`: an upstream may name events so too."""
MAX_WHOLE: Final = 8 << 20
"""Bytes of a JSON body, at most."""

IsPiece = Callable[[Any], bool]
"""Whether a JSON value is a piece of an answer, so that more of them follow."""

_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode
_BLANK: Final = b" \t\r\n"
_LAST: Final = re.compile(
    r'"(?:finish_reason|finishReason|stop_reason)"\s*:\s*"|"type"\s*:\s*"message_stop"|"error"\s*:\s*[{"]'
)
_first_value: Final = json.JSONDecoder(strict=False).raw_decode


class NoAnswerError(Exception):
    """The body is neither events nor JSON."""


class Sniffer:
    """The first bytes of a body. `feed` gives what must be fed with them and with all that follow.

    Args:
        unnamed: the type of the events that the upstream does not name.
        is_piece: as said above.
    """

    __slots__ = ("_bytes", "_is_piece", "_unnamed")

    def __init__(self, unnamed: str, is_piece: IsPiece) -> None:
        self._unnamed = unnamed
        self._is_piece = is_piece
        self._bytes = b""

    def feed(self, data: bytes) -> tuple["Decoder | Gathered", bytes] | None:
        """What reads the body, and the bytes to begin with; None while the bytes do not say it.

        Raises:
            NoAnswerError: the body is a page.
        """
        self._bytes += data.lstrip(_BLANK) if not self._bytes else data
        begins = self._bytes.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)[:1]
        if not begins or codecs.BOM_UTF8.startswith(self._bytes):
            return None
        if begins == b"<":
            raise NoAnswerError
        if begins in b"{[":
            return Gathered(self._unnamed, self._is_piece), self._bytes
        return Decoder(unnamed=self._unnamed, strays=True, early=_is_last), self._bytes


def _is_last(data: str) -> bool:
    """Whether the data of an event ends an answer: the end marker, or JSON with a finish reason or an error."""
    return data.strip() == "[DONE]" or (_LAST.search(data) is not None and isinstance(value_of(data), dict))


class Gathered:
    """A body of JSON: one value, or pieces of an answer, one a line.

    Attributes:
        value: what the data of the `BODY` event means; None before there is one.
    """

    __slots__ = ("_bytes", "_is_piece", "_lines", "_looked", "_over", "_unnamed", "value")

    def __init__(self, unnamed: str, is_piece: IsPiece) -> None:
        self._unnamed = unnamed
        self._is_piece = is_piece
        self._bytes = bytearray()
        self._looked = 0  # how many bytes there were at the last look
        self._lines: LineSplitter | None = None
        self._over = False
        self.value: Any = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completed.

        Raises:
            Oversize: a line or the value is longer than its cap, or holds too much to be read.
        """
        if self._lines is not None:
            return self._of_lines(self._lines.feed(data))
        if self._over:
            return []
        if len(self._bytes) + len(data) > MAX_WHOLE:
            raise Oversize(f"a JSON body is longer than {MAX_WHOLE} bytes")
        self._bytes += data
        may_be_whole = b"\n" in data or data.rstrip(_BLANK)[-1:] in (b"}", b"]")
        if not may_be_whole or len(self._bytes) < self._looked * 5 // 4:
            return []
        self._looked = len(self._bytes)
        return [] if self._is_torn() else self._look()

    def rest(self) -> list[Event]:
        """The events that the end of the body completes; a torn value is none.

        Raises:
            Oversize: the value holds too much to be read.
        """
        if self._lines is not None:
            return self._of_lines(self._lines.close())
        events = [] if self._over else self._look()
        return events if self._lines is None else events + self._of_lines(self._lines.close())

    def _is_torn(self) -> bool:
        """Whether more of the value must come. Finding that out makes no objects; parsing makes all that are there."""
        try:
            _skip(self._bytes)
        except msgspec.DecodeError as error:
            # It takes a text that ends soon behind half a character for one that was truncated, too.
            return "truncated" in str(error) and b"\\u" not in self._bytes[-16:]
        except RecursionError:
            return False
        return False

    def _look(self) -> list[Event]:
        if is_heavy(self._bytes):
            raise Oversize("a JSON body has too many values, or too long numbers")
        # In this form bytes that are no UTF-8 survive, so that what follows the value can be made bytes again.
        text = self._bytes.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").lstrip()
        value, end = value_of(text), len(text)
        if value is None:
            try:
                value, end = _first_value(text)
            except (ValueError, RecursionError):
                return []
        self._bytes.clear()
        data = _as_bytes(text[:end].rstrip()).decode("utf-8", "replace")
        if "\ufffd" in data:
            value = value_of(data)  # some bytes were no UTF-8, and are replaced now
        if not self._is_piece(value):
            self._over, self.value = True, value
            return [Event(BODY, data)]
        self._lines = LineSplitter()
        # The line end stands for that of the value: what follows is not the beginning of the text.
        return [Event(self._unnamed, data), *self._of_lines(self._lines.feed(b"\n" + _as_bytes(text[end:])))]

    def _of_lines(self, lines: list[str]) -> list[Event]:
        return [Event(self._unnamed, line) for line in lines if line.strip()]


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
