"""What the upstream side expects of aiohttp, said as behaviour: an aiohttp that means something else fails here."""

import asyncio
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from gateway.clock import Clock
from gateway.core.errors import GatewayError
from gateway.dialects.base import Call
from gateway.upstream.aiohttp_internals import MAX_HEADS, Body, forget_queue, put_back
from gateway.upstream.http import READ_BUFFER, attempt, body_error, new_session
from gateway.upstream.intake import Intake, Taken
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Hang,
    Pause,
    Reset,
    Script,
    ScriptedUpstream,
    Step,
    WaitFor,
    chunk,
    response,
    sse_head,
)

OK = [response(200, "ok")]
MOST_KEPT = 2 * READ_BUFFER + 256 * 1024
"""Bytes of a body that nobody takes: aiohttp's high-water mark, and one read of the event loop's."""


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


async def test_data_that_is_put_back_is_read_again(session: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream([sse_head(), chunk("ab"), chunk("cd"), LAST_CHUNK]) as upstream:
        with await attempt(session, Call("GET", upstream.url, {}, b""), connect_timeout=1, again=False) as answer:
            assert await answer.content.readexactly(3) == b"abc"
            put_back(answer.content, b"abc")
            assert await answer.content.read() == b"abcd"


@pytest.mark.parametrize("count", [99, 100])
async def test_so_many_heads_may_say_go_on_before_the_answer(session: aiohttp.ClientSession, count: int) -> None:
    async with ScriptedUpstream([b"HTTP/1.1 100 Continue\r\n\r\n" * count, *OK]) as upstream:
        for _ in range(2):  # each request of a connection has as many
            if count < MAX_HEADS:
                assert await ask(session, upstream) == b"ok"
                continue
            with pytest.raises(GatewayError) as error:
                await ask(session, upstream)
            assert error.value.code == "upstream_protocol"


async def test_answers_that_nobody_asked_for_end_an_idle_connection(session: aiohttp.ClientSession) -> None:
    more = response(200, "more") * 1000
    async with ScriptedUpstream([*OK, Pause(0.05), more, Hang()]) as upstream:
        assert await ask(session, upstream) == b"ok"
        await asyncio.wait_for(upstream.exchanges[0].closed.wait(), 2)


async def ask(session: aiohttp.ClientSession, upstream: ScriptedUpstream, *, again: bool = False) -> bytes:
    call = Call("GET", upstream.url, {}, b"")
    with await attempt(session, call, connect_timeout=1, again=again) as answer:
        return await answer.read()


@asynccontextmanager
async def answer_of(*body: bytes | Hang | Cut | WaitFor) -> AsyncIterator[aiohttp.ClientResponse]:
    async with ScriptedUpstream([*body]) as upstream, new_session() as session:
        call = Call("GET", upstream.url, {}, b"")
        with await attempt(session, call, connect_timeout=1, again=False) as answer:
            yield answer


async def relay(answer: aiohttp.ClientResponse, take: Callable[[bytes], Taken]) -> bool:
    return await asyncio.wait_for(Intake(answer, Clock(asyncio.get_running_loop()), 0, 1000).relay(take), 5)


def into(came: list[bytes], taken: Taken = Taken.RELAYED) -> Callable[[bytes], Taken]:
    def take(data: bytes) -> Taken:
        came.append(data)
        return taken

    return take


# -- the body ------------------------------------------------------------------------------------------------------


async def test_two_chunks_in_one_read_are_one_take() -> None:
    go_on, came = asyncio.Event(), list[bytes]()
    async with answer_of(sse_head(), WaitFor(go_on), chunk("a") + chunk("b") + LAST_CHUNK, Hang()) as answer:
        relayed = asyncio.create_task(relay(answer, into(came)))
        go_on.set()
        assert await relayed
    assert came == [b"ab"]


async def test_body_hands_out_what_came_before_an_error() -> None:
    go_on, came = asyncio.Event(), list[bytes]()
    async with answer_of(sse_head(), WaitFor(go_on), chunk("a") + b"no chunk\r\n", Hang()) as answer:
        relayed = asyncio.create_task(relay(answer, into(came)))
        go_on.set()
        with pytest.raises(aiohttp.ClientError) as failure:
            await relayed
    assert (came, body_error(failure.value).code) == ([b"a"], "upstream_protocol")


async def test_body_keeps_what_came_before_it_was_adopted() -> None:
    async with answer_of(sse_head() + chunk("early") + LAST_CHUNK, Hang()) as answer:
        assert Body.adopt(answer.content).take() == b"early"


async def test_body_that_nobody_takes_stops_the_upstream_at_its_bound() -> None:
    size = 16 << 20
    async with answer_of(sse_head(), chunk(b"x" * size) + LAST_CHUNK, Hang()) as answer:
        body, largest, total = Body.adopt(answer.content), 0, 0
        async with asyncio.timeout(10):
            while not (body.ended and not body.size):
                before = -1
                while body.size != before:  # nothing more is read until some of it is taken
                    before = body.size
                    await asyncio.sleep(0)
                largest = max(largest, body.size)
                total += len(body.take()) if body.size else 0
    assert (total, largest <= MOST_KEPT) == (size, True)


async def test_chunks_of_a_read_cost_one_call_into_python_each() -> None:
    """Where chunks begin and end, and the checks of aiohttp's protocol, cost none."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls["aiohttp" if "/aiohttp/" in frame.f_code.co_filename else frame.f_code.co_name] += 1

    came: list[bytes] = []
    async with answer_of(sse_head(), Hang()) as answer:
        reads = Intake(answer, Clock(asyncio.get_running_loop()), 0, 1000)
        reads.relay(into(came))
        ten = b"".join(chunk(b"x") for _ in range(10))
        sys.setprofile(count)
        reads.data_received(ten)
        sys.setprofile(None)
        reads.leave()
    assert (came, calls["feed_data"], calls["aiohttp"]) == ([b"x" * 10], 10, 0)


def bytes_less(things: list[object], forget: Callable[[int], object]) -> float:
    """Bytes of memory that one of the things takes less afterwards."""
    before = tracemalloc.get_traced_memory()[0]
    for number in range(len(things)):
        forget(number)
    return (before - tracemalloc.get_traced_memory()[0]) / len(things)


async def test_stream_takes_a_kilobyte_less_by_its_small_queues() -> None:
    loop = asyncio.get_running_loop()
    tracemalloc.start()
    try:
        protocols = [ResponseHandler(loop) for _ in range(100)]
        bodies = [aiohttp.StreamReader(protocols[0], READ_BUFFER, loop=loop) for _ in range(100)]
        saved = bytes_less([*protocols], lambda number: forget_queue(protocols[number]))
        saved += bytes_less([*bodies], lambda number: Body.adopt(bodies[number]) and None)
    finally:
        tracemalloc.stop()
    assert saved > 1024


# -- the connection while it is relayed ----------------------------------------------------------------------------


async def test_relayed_connection_answers_the_next_request(session: aiohttp.ClientSession) -> None:
    stream = [sse_head(), chunk("a"), LAST_CHUNK]
    async with ScriptedUpstream(stream, OK) as upstream:
        call = Call("GET", upstream.url, {}, b"")
        with await attempt(session, call, connect_timeout=1, again=False) as answer:
            assert await relay(answer, into([]))
        assert (await ask(session, upstream), upstream.connections) == (b"ok", 1)


async def test_answer_that_nobody_asked_for_ends_the_connection(session: aiohttp.ClientSession) -> None:
    go_on, came = asyncio.Event(), list[bytes]()
    stream: list[Step] = [sse_head(), WaitFor(go_on), chunk("a") + LAST_CHUNK + response(200, "stray")]
    async with ScriptedUpstream(stream, OK) as upstream:
        call = Call("GET", upstream.url, {}, b"")
        with await attempt(session, call, connect_timeout=1, again=False) as answer:
            relayed = asyncio.create_task(relay(answer, into(came)))
            go_on.set()
            assert await relayed
        assert (came, await ask(session, upstream), upstream.connections) == ([b"a"], b"ok", 2)


# -- connections between requests; public API, but of a certain meaning --------------------------------------------


async def test_no_second_request_is_sent_by_aiohttp_itself(session: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream(OK, [Reset()], OK) as upstream:
        await ask(session, upstream)
        with pytest.raises(Exception, match="upstream_reset"):
            await ask(session, upstream, again=False)
        assert len(upstream.exchanges) == 2


@pytest.mark.parametrize("spoil", [Cut(), response(200, "stray")], ids=["closed", "spoken on"])
async def test_idle_connection_that_was_spoiled_is_not_handed_out(
    session: aiohttp.ClientSession, spoil: bytes | Cut
) -> None:
    go_on = asyncio.Event()
    first: Script = [*OK, WaitFor(go_on), spoil]
    async with ScriptedUpstream(first, OK) as upstream:
        await ask(session, upstream)
        go_on.set()
        await upstream.exchanges[0].finished.wait()
        for _ in range(5):  # what the kernel has is read in the next turns of the loop
            await asyncio.sleep(0)
        assert await ask(session, upstream) == b"ok"
        assert (len(upstream.exchanges), upstream.connections) == (2, 2)


async def test_second_try_leaves_other_idle_connections_as_they_are(session: aiohttp.ClientSession) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    scripts: list[Script] = [[WaitFor(first), *OK], [WaitFor(first), *OK], [Reset()], OK]
    scripts += [[WaitFor(second), *OK], [WaitFor(second), *OK]]
    async with ScriptedUpstream(*scripts) as upstream:
        for event, number in ((first, 1), (second, 5)):
            both = [asyncio.create_task(ask(session, upstream)) for _ in range(2)]
            await upstream.exchange(number)
            event.set()
            assert await asyncio.gather(*both) == [b"ok", b"ok"]
            if event is first:  # two connections are idle: one will be lost, and the other one passed over
                assert await ask(session, upstream, again=True) == b"ok"
        assert upstream.connections == 3
