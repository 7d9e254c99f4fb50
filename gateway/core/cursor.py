"""Cursors: a reader's place in a stream, as the opaque text that browsers send back in `Last-Event-ID`.

    <stream id of 22 characters>.<sequence number>.<token events sent>        ~<22 characters>, the end of any stream
    <stream id>.<takeovers>-<sequence number>.<token events sent>             where another node went on with the stream

Invariants:

- A cursor is at most 128 bytes of `[A-Za-z0-9._~-]`, so that a cross-origin reconnect with it needs no preflight.
- It holds the unguessable id of its generation, so it is never valid for another one.
- Where several workers share a port, the first character of the id names the worker that has the stream.
- It holds the number of token events that its reader was sent. So `$index` continues correctly after a resume, even
  where several deltas were merged into one event.

What a node wrote that then was lost, before another one went on with the stream, has the same sequence numbers as what
the other one wrote instead. The number of takeovers tells them apart.

A cursor gives no permission: only the owner of a stream may resume it.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from gateway.core.errors import GatewayError

MAX_CURSOR: Final = 128
WORKERS: Final = 64
"""The number of workers that an id can name."""
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
LENGTH: Final = 22
"""Characters of a stream's id."""
_ID: Final = "[A-Za-z0-9_-]{22}"
PARAMETER: Final = "last_event_id"
"""The query parameter that holds a cursor; a value that is no cursor is an error."""
_SPELLINGS: Final = frozenset({"lasteventid", "evslasteventid"})
"""The names that client libraries have for it (`lastEventId`, `Last-Event-ID`, `evs_last_event_id` …), without `-`, `_`
and capitals. An upstream may have a parameter of the same name. So they count only where their value is a cursor."""
_STREAM_ID: Final = re.compile(_ID)
_CURSOR: Final = re.compile(rf"({_ID})\.(?:([1-9]\d{{0,3}})-)?(\d{{1,15}})\.(\d{{1,15}})", re.ASCII)
_FINAL: Final = re.compile(rf"~{_ID}")


class Place(msgspec.Struct, frozen=True, gc=False):
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
        takeovers: how often other nodes had gone on with the stream when the reader was sent that.
    """

    stream_id: str
    seq: int
    tokens: int
    takeovers: int = 0

    def __str__(self) -> str:
        return f"{cursor_prefix(self.stream_id, self.takeovers)}{self.seq}.{self.tokens}"

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
    return worker_letter(worker) + secrets.token_urlsafe(16)[:21]  # 21 characters of 6 bits


def worker_letter(worker: int) -> str:
    """The character with which ids and tickets begin that name this worker, 0 to 63."""
    return _ALPHABET[worker]


def worker_of(stream_id: str) -> int:
    """The number of the worker that a valid id names, 0 to 63; a random number if the id was made without."""
    return _ALPHABET.index(stream_id[0])


def valid_stream_id(text: str) -> bool:
    """Whether the text has the form of a stream id."""
    return _STREAM_ID.fullmatch(text) is not None


def cursor_prefix(stream_id: str, takeovers: int) -> str:
    """What all cursors of a stream begin with, before the sequence number."""
    return f"{stream_id}.{takeovers}-" if takeovers else f"{stream_id}."


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
        return Cursor(match[1], int(match[3]), int(match[4]), int(match[2] or 0))
    if _FINAL.fullmatch(text[: MAX_CURSOR + 1]):
        return Cursor("", 0, 0)
    raise GatewayError("bad_cursor", "Last-Event-ID is not a cursor of this gateway.")


def is_cursor(text: str) -> bool:
    """Whether the text has the form of a cursor."""
    text = text[: MAX_CURSOR + 1]
    return _CURSOR.fullmatch(text) is not None or _FINAL.fullmatch(text) is not None


def is_cursor_parameter(name: str, value: str) -> bool:
    """Whether a parameter of a query, name and value decoded, is the gateway's own, and no part of what is asked."""
    if name == PARAMETER:
        return True
    return name.lower().replace("-", "").replace("_", "") in _SPELLINGS and is_cursor(value)


def cursor_sent(header: str | None, query: Iterable[tuple[str, str]]) -> str | None:
    """The cursor that a client sent, which may be malformed; None where it sent none.

    A library adds its parameter behind the URL that it was given, which may have an older one. So the last one counts.

    Args:
        header: its `Last-Event-ID`; wins unless it is empty.
        query: the names and values of its query, decoded, in their order.
    """
    if header:
        return header
    sent = [value for name, value in query if value and is_cursor_parameter(name, value)]
    return next((value for value in reversed(sent) if is_cursor(value)), sent[-1] if sent else None)
