"""Cursors: a reader's place in a stream, as the opaque text that browsers send back in `Last-Event-ID`.

    <stream id of 22 characters>.<sequence number>.<token events sent>        ~<22 characters>, the end of any stream

Invariants:

- A cursor is at most 128 bytes of `[A-Za-z0-9._~-]`, so that a cross-origin reconnect with it needs no preflight.
- It holds the unguessable id of its generation, so it is never valid for another one.
- Where several workers share a port, the first character of the id names the worker that has the stream.
- It holds the number of token events that its reader was sent. So `$index` continues correctly after a resume, even
  where several deltas were merged into one event.

A cursor gives no permission: only the owner of a stream may resume it.
"""

import re
import secrets
from typing import Final, NamedTuple

from gateway.core.errors import GatewayError

MAX_CURSOR: Final = 128
WORKERS: Final = 64
"""The number of workers that an id can name."""
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_ID: Final = "[A-Za-z0-9_-]{22}"
_STREAM_ID: Final = re.compile(_ID)
_CURSOR: Final = re.compile(rf"({_ID})\.(\d{{1,15}})\.(\d{{1,15}})", re.ASCII)
_FINAL: Final = re.compile(rf"~{_ID}")


class Place(NamedTuple):
    """How far a reader is in a log.

    Attributes:
        seq: sequence number of the last event that the reader has; 0 before the first.
        tokens: token events that the reader was sent since the answer began. It is the `$index` of the next one.
    """

    seq: int
    tokens: int


class Cursor(NamedTuple):
    """A place in one stream.

    Attributes:
        stream_id: the generation's id; "" for a final cursor, which belongs to no stream.
        seq: sequence number of the last event that the reader has; 0 before the first.
        tokens: token events that the reader has been sent.
    """

    stream_id: str
    seq: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.stream_id}.{self.seq}.{self.tokens}"

    @property
    def place(self) -> Place:
        """The place without its stream."""
        return Place(self.seq, self.tokens)

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow, in whatever stream."""
        return not self.stream_id


def new_stream_id(worker: int | None = None) -> str:
    """A new id in 22 URL-safe characters, with 128 random bits; with 126 where it names a worker.

    Args:
        worker: 0 to 63; None where there is only one process.
    """
    if worker is None:
        return secrets.token_urlsafe(16)
    return _ALPHABET[worker] + secrets.token_urlsafe(16)[:21]  # 21 characters of 6 bits


def worker_of(stream_id: str) -> int:
    """The number of the worker that a valid id names, 0 to 63; a random number if the id was made without."""
    return _ALPHABET.index(stream_id[0])


def valid_stream_id(text: str) -> bool:
    """Whether the text has the form of a stream id."""
    return _STREAM_ID.fullmatch(text) is not None


def final_cursor() -> str:
    """A cursor after which nothing is left to read: a reconnect with it is answered with 204."""
    return f"~{new_stream_id()}"


def parse_cursor(text: str) -> Cursor:
    """The place that a cursor names.

    Raises:
        GatewayError: `bad_cursor`, the text is no cursor of this gateway.
    """
    # Cut before it is matched: the header of a stranger may have any length.
    if match := _CURSOR.fullmatch(text[: MAX_CURSOR + 1]):
        return Cursor(match[1], int(match[2]), int(match[3]))
    if _FINAL.fullmatch(text[: MAX_CURSOR + 1]):
        return Cursor("", 0, 0)
    raise GatewayError("bad_cursor", "Last-Event-ID is not a cursor of this gateway.")
