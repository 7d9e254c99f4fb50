"""An endpoint that answers with the text itself while it is being written.

Invariants:

- The text does not depend on how the bytes were cut into reads; its division into tokens does.
- No token is longer than `MAX_TOKEN` bytes, so events have a bound here as everywhere.

There is no end marker, no error and no usage. Only HTTP can say whether the body ended well.
"""

import codecs
from typing import ClassVar, Final

from gateway.core.event import TOKEN, Event
from gateway.dialects.base import Answer, UnitAnswer
from gateway.dialects.sse import SSE

MAX_TOKEN: Final = 1024
"""Bytes. A budget ends an answer within one event, so an event must not be a large part of one."""

_new_decoder: Final = codecs.getincrementaldecoder("utf-8-sig")


class _Pieces:
    """The text of each read, in pieces of at most `MAX_TOKEN` bytes."""

    def __init__(self) -> None:
        self._decoder = _new_decoder("replace")

    def feed(self, data: bytes) -> list[str]:
        # A character that is cut between two pieces waits in the decoder for its rest.
        return [self._decoder.decode(data[start : start + MAX_TOKEN]) for start in range(0, len(data), MAX_TOKEN)]

    def close(self) -> str:
        return self._decoder.decode(b"", final=True)


class PlainAnswer(UnitAnswer):
    """Makes a token of each read. Source: WHATWG Encoding 6 (UTF-8 decode)."""

    eof_ends: ClassVar[bool] = True

    def __init__(self) -> None:
        self._pieces = _Pieces()
        super().__init__(self._pieces)

    def _translate_one(self, unit: str, out: list[Event]) -> None:
        self._say(TOKEN, unit, out)

    def _rest(self) -> list[Event]:
        return self._translate([self._pieces.close()])


class Text(SSE):
    """The request of `sse`, answered with plain text."""

    name: ClassVar[str] = "text"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/plain", "text/markdown", "application/octet-stream", ""})
    sniffs: ClassVar[bool] = False
    gives_reasons: ClassVar[bool] = False
    accept: ClassVar[str] = "text/plain"

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return PlainAnswer()
