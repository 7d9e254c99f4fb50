"""Everything that the upstream side takes from inside aiohttp; no other file here may.

Each hook says why it is there, what it gains, and which public API would replace it. Each has a test in
tests/upstream/test_aiohttp_internals.py that states what must be true as seen from outside, so that a new aiohttp which
keeps a name but changes its meaning fails too. The measurements are in bench/README.md and docs/adr/.

What needs no private name stays in `http.py`: the connector and the middleware there are public API.
"""

import asyncio
import functools
from typing import Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from gateway.core.few import Few

MAX_HEADS: Final = 100
"""Heads that one request may be answered with: its answer's own, and before it those that only say "go on" (100, 102,
103), of which honest servers send one, or one every few seconds."""


def put_back(content: aiohttp.StreamReader, data: bytes) -> None:
    """The data is read again, before anything else of this body.

    Why: of an answer that is passed on unchanged, the beginning has to be looked at, as it may show our key.
    Public API that would replace it: `StreamReader.unread_data`, which does the same and is deprecated.
    """
    if data:
        if content._buffer_offset:
            content._buffer[0] = content._buffer[0][content._buffer_offset :]
            content._buffer_offset = 0
        content._buffer.appendleft(data)
        content._size += len(data)
        content._cursor -= len(data)


class Body(aiohttp.StreamReader):
    """A response body that hands out all that came in one piece, also what came before an error.

    Why: aiohttp's own reader hands out one HTTP chunk at a time and parses an empty read after each, and it drops what
    came before an error. Gain: 25 % of the CPU of an event, with ten events in a window.
    Public API that would replace it: a `StreamReader.read_nowait` that returns the whole buffer at the price of one
    call, and a way to give the parser another reader.

    It adds no field to aiohttp's reader; `adopt` turns an instance into one.

    Attributes:
        size: bytes that came and were not taken yet.
        ended: whether the body is whole.
        failure: why it broke off or could not be parsed, None where nothing went wrong so far.
    """

    __slots__ = ()

    # aiohttp's own slots under public names: reading one costs what reading the slot does, and no call.
    size: int = vars(aiohttp.StreamReader)["_size"]
    ended: bool = vars(aiohttp.StreamReader)["_eof"]
    failure: BaseException | None = vars(aiohttp.StreamReader)["_exception"]

    @classmethod
    def adopt(cls, content: aiohttp.StreamReader) -> "Body":
        """The same body, read in this way from now on. What came before is kept."""
        content.__class__ = cls  # the parser holds this instance already
        # An empty deque takes 760 bytes for as long as the stream lasts: 2 % of its memory each.
        content._http_chunk_splits = None
        content._buffer = Few(content._buffer)  # type: ignore[assignment]
        return cast(Body, content)

    # Where HTTP chunks begin and end means nothing to an event stream, but the parser calls for both of every chunk.
    # `bool` is a function in C that does nothing: two calls into Python less, 4 % of a window of ten events.
    begin_http_chunk_receiving = staticmethod(bool)  # type: ignore[assignment]
    end_http_chunk_receiving = staticmethod(bool)  # type: ignore[assignment]

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        """The parser found more of the body. Above aiohttp's high-water mark it pauses the transport."""
        self._buffer.append(data)
        self._size += len(data)
        if self._size > self._high_water:
            self._protocol.pause_reading()
        return False

    def take(self) -> bytes:
        """All that came since the last call. Call it only where `size` is not 0; it may let in more at once."""
        buffer = self._buffer
        data = buffer[0] if len(buffer) == 1 else b"".join(buffer)
        buffer.clear()
        self._size = 0
        if self._protocol._reading_paused:
            self._protocol.resume_reading()
        return data


class _BoundedHeads(ResponseHandler):
    """The protocol of a connection on which an upstream cannot send heads without end.

    Those beyond `MAX_HEADS` are dropped and end the connection, also while nothing was asked on it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._heads = 0

    def set_response_params(self, **params: Any) -> None:
        """The next request is sent on this connection."""
        self._heads = 0
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """The parser found one more head."""
        self._heads += 1
        if self._heads <= MAX_HEADS:
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Bytes from the upstream."""
        super().data_received(data)
        if self._heads > MAX_HEADS and not self.is_eof():
            self.set_exception(HttpProcessingError(message="too many heads"))
            if self.transport is not None:
                self.transport.close()


def bound_heads(connector: aiohttp.TCPConnector) -> None:
    """Every new connection of this connector has a bound for the heads that come on it.

    Why: aiohttp parses and passes over any number of answers that only say "go on", and keeps those that nobody asked
    for. One upstream that sent nothing else held the event loop for seconds, and took hundreds of megabytes.
    Public API that would replace it: a limit of the client's parser, as there is one for the lines of a head.
    """
    connector._factory = functools.partial(_BoundedHeads, loop=asyncio.get_running_loop())  # type: ignore[assignment]


def parser_of(protocol: ResponseHandler) -> Any:
    """The parser of the response that a connection is receiving; `feed_data(bytes)[0]` are further, unasked responses.

    Why: `Intake` gives it what a read brought without asking aiohttp's protocol, which sets and checks what only
    WebSockets and read time limits need. Gain: half of the calls for a read, part of the step from 2.1 to 1.9 times
    nginx in scenario C.
    Public API that would replace it: `ResponseHandler.data_received`, at that price.
    """
    return protocol._parser


def forget_queue(protocol: ResponseHandler) -> None:
    """The queue of a connection's responses takes as little memory as it holds.

    Why: it is a deque that is empty while a response is read. Gain: 760 bytes of about 28 KiB a stream.
    Public API that would replace it: none; an aiohttp that makes the queue when it first needs one.
    """
    protocol._buffer = Few(protocol._buffer)  # type: ignore[assignment]
