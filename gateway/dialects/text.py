"""An endpoint that answers with the text itself, as it is written.

Invariants:

- The text does not depend on where the bytes were cut; how it is divided into tokens does.
- No token is longer than `MAX_TOKEN` bytes, so an event has a bound like everywhere else.

There is no end marker, no error and no usage: only HTTP knows whether the body ended well.
"""

import codecs
from typing import ClassVar, Final

from gateway.core.event import TOKEN, Event
from gateway.dialects.base import Answer
from gateway.dialects.sse import SSE

MAX_TOKEN: Final = 64 * 1024

_new_decoder: Final = codecs.getincrementaldecoder("utf-8-sig")


class PlainAnswer(Answer):
    """Makes each read a token. Source: WHATWG Encoding 6 (UTF-8 decode)."""

    eof_ends: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._decoder = _new_decoder("replace")

    def _read(self, data: bytes) -> list[Event]:
        out: list[Event] = []
        for start in range(0, len(data), MAX_TOKEN):
            self._say(TOKEN, self._decoder.decode(data[start : start + MAX_TOKEN]), out)
        return out

    def _rest(self) -> list[Event]:
        out: list[Event] = []
        self._say(TOKEN, self._decoder.decode(b"", final=True), out)
        return out


class Text(SSE):
    """The request of `sse`, answered with plain text."""

    name: ClassVar[str] = "text"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/plain", "text/markdown", "application/octet-stream", ""})
    accept: ClassVar[str] = "text/plain"

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False) -> Answer:
        return PlainAnswer()
