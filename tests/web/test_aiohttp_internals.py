"""What the browsers' side expects of aiohttp, said as behaviour: an aiohttp that means something else fails here."""

import asyncio
import tracemalloc
from collections.abc import Callable, Sequence
from typing import cast

import pytest
from aiohttp import StreamReader, web
from aiohttp.http_writer import StreamWriter

from gateway.web import connection
from gateway.web.aiohttp_internals import (
    answer_as_http_1,
    drain,
    ends_malformed,
    event_stream,
    forget_body,
    forget_queue,
    heads_parsed,
    is_answering,
    unfinished_body,
)
from tests.web.raw import GET, connected, listening, protocol_of

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
LARGE = b"x" * (8 << 20)
HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Stream-Id": "abc"}


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=f"hello {request.rel_url}")


def bytes_less(things: Sequence[object], forget: Callable[[int], None]) -> float:
    """Bytes of memory that one of the things takes less afterwards."""
    before = tracemalloc.get_traced_memory()[0]
    for number in range(len(things)):
        forget(number)
    return (before - tracemalloc.get_traced_memory()[0]) / len(things)


# -- reading -------------------------------------------------------------------------------------------------------


async def test_parser_holds_while_a_body_is_full_and_goes_on_when_it_is_read() -> None:
    """And so it is asked for the rest of a large read only then."""
    reads = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await reads.wait()
        return web.Response(text=str(len(await request.read())))

    async with listening(handler) as place, connected(place) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000)
        while not place.connection.holds:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        assert not place.connection.parse_piece()
        reads.set()
        await client.until(b"200000")
        assert not place.connection.holds


# -- requests ------------------------------------------------------------------------------------------------------


async def test_heads_are_counted_when_they_are_whole_and_before_they_are_answered() -> None:
    go_on = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await go_on.wait()
        return await hello(request)

    async with listening(handler) as place, connected(place) as client:
        counts = []
        for part in (GET[:9], GET[9:] + GET[:9], GET[9:] + GET):
            place.connection.data_received(part)
            counts.append(heads_parsed(place.connection))
        go_on.set()
        answers = b""
        while answers.count(b"hello /") < 3:
            answers += await client.read()
    assert counts == [0, 1, 3]


async def test_connection_answers_while_its_handler_runs_and_no_longer() -> None:
    answering = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        answering.append(is_answering(protocol_of(request)))
        await asyncio.sleep(0)
        answering.append(is_answering(protocol_of(request)))
        return await hello(request)

    async with listening(handler) as place, connected(place) as client:
        answering.append(is_answering(place.connection))
        client.send(GET)
        await client.until(b"hello /")
        answering.append(is_answering(place.connection))
    assert answering == [False, True, True, False]


async def test_bytes_that_are_no_request_are_told_from_a_body_that_goes_wrong() -> None:
    seen, bodies = asyncio.Event(), []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.set()
        with pytest.raises(web.RequestPayloadError):
            await request.read()
        return web.Response(text="told")

    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with listening(handler) as place, connected(place) as client:
        client.send(chunked)
        await seen.wait()
        assert not ends_malformed(place.connection)
        web.RequestHandler.data_received(place.connection, b"zz\r\n")
        assert ends_malformed(place.connection)
        bodies.append(unfinished_body(place.connection))
        assert bodies[0] is not None
        bodies[0].set_exception(web.RequestPayloadError("malformed"))
        bodies[0].feed_eof()
        assert unfinished_body(place.connection) is None
        assert b"told" in await client.until(b"told")
    async with listening(hello) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello")
        web.RequestHandler.data_received(place.connection, b"no request\r\n\r\n")
        assert ends_malformed(place.connection)
        assert unfinished_body(place.connection) is None


async def test_malformed_rest_of_a_body_ends_the_connection_with_one_answer() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return web.Response(text=f"read {await request.read()!r}")
        except web.RequestPayloadError:
            return web.Response(text="told")

    async with listening(handler) as place, connected(place) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        while not place.server.requests_count:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        client.send(b"zz\r\n")
        answer = await client.rest()
    assert answer.count(b"HTTP/1.") == 1
    assert answer.endswith(b"told")


async def test_requests_that_came_together_are_answered_in_their_order() -> None:
    async with listening(hello) as place, connected(place) as client:
        client.send(b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(9)))
        answers = b""
        while b"hello /8" not in answers:
            answers += await client.read()
    assert [answers.index(b"hello /%d" % number) for number in range(9)] == sorted(
        answers.index(b"hello /%d" % number) for number in range(9)
    )


async def test_request_whose_body_was_forgotten_is_followed_by_the_next() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        forget_body(request.content)
        return web.Response(body=body + (b" at its end" if request.content.at_eof() else b""))

    async with listening(handler) as place, connected(place) as client:
        for _ in range(2):
            client.send(POST)
            await client.until(b"body at its end")


async def test_stream_takes_a_kilobyte_less_by_its_small_queues() -> None:
    loop = asyncio.get_running_loop()
    async with listening(hello) as place:
        tracemalloc.start()
        try:
            protocols = [web.RequestHandler(place.server, loop=loop) for _ in range(100)]
            bodies = [StreamReader(protocols[0], 1 << 16, loop=loop) for _ in range(100)]
            saved = bytes_less(protocols, lambda number: forget_queue(protocols[number]))
            saved += bytes_less(bodies, lambda number: forget_body(bodies[number]))
        finally:
            tracemalloc.stop()
    assert saved > 1024


async def test_connection_is_not_closed_as_idle_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`keep_alive(True)` stops the timer of an idle connection; one begins anew behind the answer."""
    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.05)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.15)
        return await hello(request)

    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello /")
        assert await client.rest() == b""


# -- streams -------------------------------------------------------------------------------------------------------


async def test_headers_of_a_stream_leave_in_one_segment_with_its_first_block() -> None:
    prepared, go_on = asyncio.Event(), asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = event_stream(request, HEADERS)
        writer = cast(StreamWriter, await response.prepare(request))
        response.headers.clear()
        prepared.set()
        await go_on.wait()
        await writer.write(b"id: 1\n\n", drain=False)
        await writer.write_eof()
        return response

    async with listening(handler) as place, connected(place) as client:
        for before in (0, 2):  # the connection serves the next request as well
            client.send(GET)
            await prepared.wait()
            assert client.nothing_came()
            go_on.set()
            answer = await client.until(b"0\r\n\r\n")
            assert place.segments() - before == 2  # the other one has the last chunk
            head, _, body = answer.lower().partition(b"\r\n\r\n")
            assert b"\r\nx-stream-id: abc\r\n" in head
            assert b"\r\ntransfer-encoding: chunked\r\n" in head + b"\r\n"
            assert b"content-length" not in head
            assert body == b"7\r\nid: 1\n\n\r\n0\r\n\r\n"
            prepared.clear()
            go_on.clear()


async def test_headers_of_a_stream_leave_alone_with_an_empty_first_block() -> None:
    go_on = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = event_stream(request, HEADERS)
        writer = cast(StreamWriter, await response.prepare(request))
        await writer.write(b"", drain=False)
        await go_on.wait()
        await writer.write(b"id: 1\n\n", drain=False)
        await writer.write_eof()
        return response

    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        head = await client.until(b"\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")
        go_on.set()
        assert await client.until(b"0\r\n\r\n") == b"7\r\nid: 1\n\n\r\n0\r\n\r\n"


async def test_stream_to_an_old_client_has_no_chunks_and_ends_by_the_close() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = event_stream(request, HEADERS)
        await response.prepare(request)
        response.headers.clear()
        await response.write(b"id: 1\n\n")
        return response

    async with listening(handler) as place, connected(place) as client:
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await client.rest()).lower().partition(b"\r\n\r\n")
    assert (b"transfer-encoding" in head, b"content-length" in head, body) == (False, False, b"id: 1\n\n")


@pytest.mark.parametrize("first_line", [b"GET /", b"GET / HTTP/0.9", b"GET / HTTP/2.0"])
async def test_request_of_another_version_is_answered_by_one_that_clients_know(first_line: bytes) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.version not in ((1, 0), (1, 1))
        answer_as_http_1(request)
        return await hello(request)

    async with listening(handler) as place, connected(place) as client:
        client.send(first_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.0 200 OK\r\n")


async def test_headers_that_were_sent_take_no_memory() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        responses = [event_stream(request, HEADERS) for _ in range(100)]
        tracemalloc.start()
        try:
            for response in responses:
                response.headers.update({f"X-{number}": "value" for number in range(9)})
            saved = bytes_less(responses, lambda number: responses[number].headers.clear())
        finally:
            tracemalloc.stop()
        return web.Response(text=f"saved {saved > 512}")

    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"saved True")


# -- a client that does not read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [True, False], ids=["reads at last", "leaves"])
async def test_drain_waits_until_the_client_read_or_left(reads: bool) -> None:
    full, outcome = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        protocol, response = protocol_of(request), event_stream(request, HEADERS)
        writer = cast(StreamWriter, await response.prepare(request))
        await writer.write(LARGE, drain=False)
        full.set()
        try:
            await drain(protocol)
            outcome.set_result(protocol.writing_paused)
        except BaseException as error:
            outcome.set_result(type(error))
            raise
        return response

    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await full.wait()
        await asyncio.sleep(0.05)
        assert not outcome.done()
        if reads:
            await client.until(b"0\r\n\r\n")
            assert await outcome is False
        else:
            client.socket.close()
            assert await asyncio.wait_for(outcome, 5) is asyncio.CancelledError


async def test_drain_of_a_lost_connection_is_a_connection_error() -> None:
    async with listening(hello) as place, connected(place) as client:
        lost = place.connection
        client.socket.close()
        while lost.transport is not None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await drain(lost)
