"""Everything that the browsers' side takes from inside aiohttp; no other file of `web/` or `admin/` may.

Each hook says why it is there, what it gains, and which public API would replace it. Each has a test in
tests/web/test_aiohttp_internals.py that states what must be true as seen from outside, so that a new aiohttp which
keeps a name but changes its meaning fails too. The measurements are in bench/README.md and docs/adr/.

The last two functions need no private name, only a certain meaning of public ones; they are tested there too.
"""

import asyncio
from collections.abc import Mapping

from aiohttp import HttpVersion10, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import _ErrInfo

from gateway.core.few import Few


def heads_parsed(protocol: web.RequestHandler) -> int:
    """How many request heads came on a connection so far, those included that nobody has begun to answer.

    Why: the time limit of a head ends when the head is whole, which only the parser knows, and a FIN behind a whole
    request means something else than a FIN on an idle connection.
    Public API that would replace it: a callback for a parsed head. `Server.requests_count` counts when an answer
    begins, which is later, and over all connections.
    """
    return protocol._request_count


def ends_malformed(protocol: web.RequestHandler) -> bool:
    """Whether the last thing that was read on a connection, and that nobody has begun to answer, is no valid request.

    Why: the parser quotes such bytes in its message and drops them. The answer needs what can be read of them, such as
    the origin of a page, which may not read the answer otherwise.
    Public API that would replace it: an error that carries the head as far as it was read.
    """
    return bool(protocol._messages) and isinstance(protocol._messages[-1][0], _ErrInfo)


def unfinished_body(protocol: web.RequestHandler) -> StreamReader | None:
    """The body that is being received, of the request in front of what `ends_malformed` tells of; None without one.

    Why: where a later part of a body is malformed, the parser tells nobody who waits for that body.
    Public API that would replace it: none; an aiohttp that fails the body, as it does for a client's connection.
    """
    request = protocol._current_request
    body = request.content if request is not None else None
    if len(protocol._messages) > 1:
        body = protocol._messages[-2][1]
    return None if body is None or body.is_eof() else body


def is_answering(protocol: web.RequestHandler) -> bool:
    """Whether a handler runs for a request of this connection.

    Why: a FIN that comes while a stream is sent, and one that comes behind it, mean different things.
    Public API that would replace it: none. A coroutine of ours around each handler would, for half a KiB a stream.
    """
    return protocol._current_request is not None


class Holding(web.RequestHandler):
    """aiohttp's side of a connection, which tells when its parser takes no more bytes and when it does again.

    Why: a large read is parsed in pieces, and what is left of it must wait while the parser takes no more: the parser
    would keep it, and parse all of it at a stretch later.
    Public API that would replace it: a parser that takes a bounded piece of what it has, and says so.
    """

    __slots__ = ()

    @property
    def holds(self) -> bool:
        """Whether the parser takes no more for now: a body, or the queue of requests, is full."""
        return self._reading_paused or self._buffer_paused

    def goes_on(self) -> None:
        """It takes more again: the connection is to be read."""
        super()._resume_transport_reading()

    def stops(self) -> None:
        """The connection is not to be read until `goes_on`."""
        self._pause_transport_reading()

    def _resume_transport_reading(self) -> None:
        self.goes_on()


def forget_queue(protocol: web.RequestHandler) -> None:
    """The queue of a new connection's requests takes as little memory as it holds.

    Why: it is a deque that is empty while a request is answered. Gain: 760 bytes of about 28 KiB a stream.
    Public API that would replace it: none; an aiohttp that makes the queue when it first needs one.
    """
    protocol._messages = Few()  # type: ignore[assignment]


def forget_body(content: StreamReader) -> None:
    """A request's body that was read to its end takes no memory any more.

    Why: aiohttp keeps the reader until the answer has ended, and with it a deque with room for 64 pieces. Gain: 760
    bytes of about 28 KiB a stream.
    Public API that would replace it: none; an aiohttp that drops an empty buffer at the end of a body.
    """
    content._buffer = Few()  # type: ignore[assignment]


def answer_as_http_1(request: web.BaseRequest) -> None:
    """The answer to a request of another version is one of HTTP/1.0, and ends the connection.

    Why: aiohttp begins each answer with the version of its request. No client understands `HTTP/0.9 400 Bad Request`,
    and one of HTTP/2.0 promises what does not follow.
    Public API that would replace it: a version that a response can choose.
    """
    request._cache["version"] = HttpVersion10


def event_stream(request: web.BaseRequest, headers: Mapping[str, str]) -> web.StreamResponse:
    """A response of unknown length whose headers leave together with the first block that is written.

    So a client that has the headers has its first cursor too, and both cost one segment. aiohttp holds back the headers
    of a `web.Response`, and sends those of a `web.StreamResponse` at once. HTTP/1.0 has no chunks, only the close tells
    where the body ends, and a `web.Response` cannot do that; there the headers leave in a segment of their own.
    """
    if request.version < (1, 1):
        plain = web.StreamResponse(headers=headers)
        plain.force_close()
        return plain
    response = web.Response(headers=headers)
    response.enable_chunked_encoding()
    return response


async def drain(protocol: BaseProtocol) -> None:
    """Returns when a connection's write buffer is below its high-water mark.

    Raises:
        ConnectionError: the connection is lost.
    """
    if protocol.transport is None:
        raise ConnectionResetError("the connection is lost")
    await StreamWriter(protocol, asyncio.get_running_loop()).drain()
