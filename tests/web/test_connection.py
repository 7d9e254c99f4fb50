"""A client's connection: its states, its limits, and what a FIN means in each state."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from gateway.clock import Clock
from gateway.core.limiter import ONE_CONNECTION, Lease, Ledger
from gateway.core.limits import Plan, make_limits
from gateway.web import connection
from gateway.web.connection import HEAD_TIME, REFUSAL, Connection, ConnectionState, Handler, Server, limit_silence
from tests.web.raw import GET, Client, connected, explain, listening, protocol_of

LARGE = b"x" * (8 << 20)


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=f"hello {request.rel_url}")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the code under test has no event for it
            await asyncio.sleep(0)


class Held:
    """A handler that answers when it is let go, and what became of it.

    Attributes:
        begun: set when it runs.
        go_on: lets it answer.
        cancelled: set when its connection was closed meanwhile.
    """

    def __init__(self, first: Callable[[Connection], None] = lambda _: None) -> None:
        self.begun, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._first = first

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self._first(protocol_of(request))
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await hello(request)


# -- states --------------------------------------------------------------------------------------------------------


def state_of(connection: Connection) -> ConnectionState:
    """Its state now; mypy would take what it read from the attribute before for what it is still."""
    return connection.state


async def test_connection_goes_through_its_states() -> None:
    handler = Held()
    async with listening(handler) as place, connected(place) as client:
        seen = place.connection
        assert state_of(seen) is ConnectionState.HEAD
        seen.data_received(GET)
        assert state_of(seen) is ConnectionState.ASKED
        await handler.begun.wait()
        assert state_of(seen) is ConnectionState.ANSWERING
        seen.data_received(GET + GET[:9])
        assert state_of(seen) is ConnectionState.ANSWERING
        handler.go_on.set()
        answers = b""
        while answers.count(b"hello") < 2:
            answers += await client.read()
        assert state_of(seen) is ConnectionState.IDLE
        seen.data_received(GET[9:12])
        assert state_of(seen) is ConnectionState.HEAD
        seen.data_received(GET[12:])
        await client.until(b"hello")
        assert state_of(seen) is ConnectionState.IDLE


@pytest.mark.parametrize("first", [b"", GET], ids=["new", "kept alive"])
async def test_head_that_does_not_come_in_time_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    async with listening(hello) as place:
        monkeypatch.setattr(connection, "HEAD_TIME", 0.2)
        async with connected(place) as client:
            if first:
                client.send(first)
                await client.until(b"hello")
            for part in (GET[:5], GET[5:9]):
                client.send(part)
            assert await client.rest() == b""
    assert HEAD_TIME == 10


async def test_head_that_makes_no_sense_is_explained() -> None:
    async with listening(hello) as place, connected(place) as client:
        client.send(b"no request\r\n\r\n")
        answer = await client.rest()
    assert b" 400 " in answer
    assert b"explained: " in answer


class Door:
    """Lets so many in, and notes who was turned away because there were too many in all."""

    def __init__(self, places: int) -> None:
        self.turned_away: list[str] = []
        self._ledger = Ledger(Plan("door", make_limits(streams=places)), 0.0)

    @property
    def places(self) -> int:
        [quota] = self._ledger.quotas()
        return quota.remaining

    def admit(self, address: str) -> Lease | None:
        return None if self._ledger.refusal(ONE_CONNECTION) else self._ledger.take(ONE_CONNECTION, 0.0)

    def turn_away(self, address: str) -> None:
        self.turned_away.append(address)


async def test_door_is_told_who_came_who_left_and_who_was_one_too_many() -> None:
    async with listening(hello, max_connections=1) as place:
        place.server.door = door = Door(1)
        async with connected(place) as first:
            first.send(GET)
            await first.until(b"hello")
            assert door.places == 0
            async with connected(place) as second:
                assert await second.rest() == REFUSAL
            assert door.turned_away == ["127.0.0.1"]
        await until(lambda: door.places == 1)


async def test_connection_that_parts_is_closed_behind_what_was_written() -> None:
    async with listening(hello) as place, connected(place) as client:
        seen = place.connection
        client.send(GET)
        await client.until(b"hello")
        seen.part()
        assert await client.rest() == b""
        await until(lambda: seen.transport is None)
        seen.part()  # what is said to a connection that is lost does no harm
        seen.abort()


async def test_client_beyond_the_limit_is_refused_until_another_leaves() -> None:
    async with listening(hello, max_connections=1) as place, connected(place) as first:
        async with connected(place) as second:
            assert await second.rest() == REFUSAL
        first.socket.close()
        await until(lambda: not place.server.connections)
        async with connected(place) as third:
            third.send(GET)
            await third.until(b"hello")


async def test_refused_client_that_speaks_is_not_heard() -> None:
    async with listening(hello, max_connections=0) as place:
        with socket.create_connection(("127.0.0.1", place.port)) as sock:
            sock.setblocking(False)
            client = Client(sock)
            client.send(GET)
            assert (await client.read()).startswith(b"HTTP/1.1 503 ")


async def test_connections_of_a_unix_socket_have_no_limits_of_tcp(tmp_path: object) -> None:
    loop = asyncio.get_running_loop()
    server = Server(hello, explain, Clock(loop), 1)
    path = f"{tmp_path}/socket"
    async with await loop.create_unix_server(server, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert b"hello" in await reader.read()
        writer.close()
        await writer.wait_closed()
    limit_silence(None, 1)


# -- a FIN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", GET[:9]], ids=["new", "head"])
async def test_fin_before_a_request_closes(first: bytes) -> None:
    async with listening(hello) as place, connected(place) as client:
        client.send(first)
        client.finish()
        assert await client.rest() == b""


async def test_fin_on_an_idle_connection_closes() -> None:
    async with listening(hello) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello")
        client.finish()
        assert await client.rest() == b""


async def test_request_with_a_fin_behind_it_is_answered_and_the_connection_closed() -> None:
    async with listening(hello) as place, connected(place) as client:
        client.send(GET)
        client.finish()
        assert (await client.rest()).endswith(b"hello /")


async def test_requests_before_a_fin_are_all_answered() -> None:
    async with listening(hello) as place, connected(place) as client:
        client.send(GET * 3)
        client.finish()
        assert (await client.rest()).count(b"hello /") == 3


async def test_handler_may_take_a_fin_behind_the_request_for_a_close() -> None:
    """The FIN comes before the handler begins; on a socket that depends on who is quicker."""
    outcomes: list[object] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            protocol_of(request).check_open()
        except ConnectionError as error:
            outcomes.append(type(error))
        return await hello(request)

    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello")
        place.connection.data_received(GET)
        assert place.connection.eof_received()
        assert (await client.rest()).endswith(b"hello /")
    assert outcomes == [ConnectionResetError]


async def test_fin_while_an_answer_is_made_cancels_its_handler() -> None:
    handler = Held()
    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await handler.begun.wait()
        client.finish()
        await asyncio.wait_for(handler.cancelled.wait(), 5)


async def test_fin_before_or_in_a_stream_makes_it_speak_and_go_on() -> None:
    for early in (True, False):
        spoken = asyncio.Event()

        def outlive(protocol: Connection, spoken: asyncio.Event = spoken) -> None:
            protocol.outlive_fin(spoken.set)

        handler = Held(outlive)
        async with listening(handler) as place, connected(place) as client:
            client.send(GET)
            if not early:
                await handler.begun.wait()
            client.finish()
            await asyncio.wait_for(spoken.wait(), 5)
            assert place.connection.state is ConnectionState.ANSWERING
            await asyncio.sleep(0.05)  # probes find that the client is still there
            handler.go_on.set()
            assert (await client.rest()).endswith(b"hello /")


async def test_stream_that_is_over_lets_a_fin_close_again() -> None:
    spoken: list[bool] = []

    def twice(protocol: Connection) -> None:
        protocol.outlive_fin(lambda: spoken.append(True))
        protocol.outlive_fin(None)

    handler = Held(twice)
    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await handler.begun.wait()
        client.finish()
        await asyncio.wait_for(handler.cancelled.wait(), 5)
    assert spoken == []


async def test_what_an_answer_that_is_over_wanted_to_say_is_not_said() -> None:
    spoken: list[bool] = []
    handler = Held(lambda protocol: protocol.outlive_fin(lambda: spoken.append(True)))
    handler.go_on.set()
    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello")
        client.finish()
        assert await client.rest() == b""
    assert spoken == []


async def test_client_that_closed_in_a_stream_is_found_by_what_is_said() -> None:
    def outlive(protocol: Connection) -> None:
        assert protocol.transport is not None
        transport = protocol.transport
        protocol.outlive_fin(lambda: transport.write(b": comment\n"))

    handler = Held(outlive)
    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await handler.begun.wait()
        client.socket.close()
        await asyncio.wait_for(handler.cancelled.wait(), 1)


# -- a client that does not read -----------------------------------------------------------------------------------


def writes(then: Callable[[Connection], Awaitable[object]], outcomes: list[object]) -> Handler:
    """A handler that writes more than the client reads, and waits as it is told."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        protocol = protocol_of(request)
        protocol.begin_stream(20)
        assert protocol.transport is not None
        protocol.transport.write(LARGE)
        try:
            await then(protocol)
        finally:
            outcomes.append(protocol.transport.get_write_buffer_size() if protocol.transport is not None else None)
        return await hello(request)

    return handler


@pytest.mark.parametrize(("wait", "most"), [(Connection.drained, connection.WRITE_HIGH), (Connection.flushed, 0)])
async def test_handler_waits_for_a_slow_client(wait: Callable[[Connection], Awaitable[object]], most: int) -> None:
    left: list[object] = []
    async with listening(writes(wait, left)) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello /")
    assert isinstance(left[0], int)
    assert left[0] <= most


async def test_nothing_is_left_to_flush_of_what_the_kernel_has() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await protocol_of(request).flushed()
        return await hello(request)

    async with listening(handler) as place, connected(place) as client:
        client.send(GET)
        await client.until(b"hello /")


async def test_flush_to_a_client_that_is_cut_ends() -> None:
    async def cut(protocol: Connection) -> None:
        asyncio.get_running_loop().call_later(0.05, protocol.abort)
        await protocol.flushed()

    left: list[object] = []
    async with listening(writes(cut, left)) as place, connected(place) as client:
        client.send(GET)
        await until(lambda: bool(left))  # it reads only then, so that the cut finds something to cut
        assert len(await client.rest()) < len(LARGE)
    assert left == [None]


async def test_connection_that_is_lost_can_be_cut_again() -> None:
    async with listening(hello) as place, connected(place):
        lost = place.connection
        lost.abort()
        await until(lambda: lost.transport is None)
        lost.abort()
        lost.begin_stream(20)
        await lost.flushed()
        assert lost.eof_received() is None
