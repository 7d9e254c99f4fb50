"""Two workers in one loop: what is handed from the first to the second, and what is not."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway.clock import Clock
from gateway.core.cursor import new_stream_id
from gateway.web import handover
from gateway.web.connection import Handler, Server
from gateway.web.handover import MAX_WORDS, Siblings
from gateway.web.unparsed import MAX_HEADERS, Unparsed

Ask = Callable[[str], Awaitable[str]]


def says(name: str) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=f"{name} {(await request.read()).decode()}")

    return handler


def explain(unparsed: Unparsed) -> web.StreamResponse:
    return web.Response(status=400, text=unparsed.said)


def server(handler: Handler) -> Server:
    return Server(handler, explain, Clock(asyncio.get_running_loop()), 100)


async def replies(question: bytes) -> bytes:
    return b"second: " + question


@asynccontextmanager
async def first_of_two(second: bool = True) -> AsyncIterator[tuple[str, Ask]]:
    """What both are called, and a way to ask the first; the second is there or is not."""
    name, loop = secrets.token_hex(8), asyncio.get_running_loop()
    servers = [server(Siblings(0, 2, name).share(says("first"))), server(says("second"))]
    receiving = [loop.create_task(Siblings(1, 2, name).receive(servers[1], replies))] if second else []
    async with await loop.create_server(servers[0], "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]

        async def ask(raw: str) -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw.encode())
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer.decode().rpartition("\r\n\r\n")[2]

        yield name, ask
    for task in receiving:
        task.cancel()
    await asyncio.gather(*receiving, *(each.shutdown(0) for each in servers), return_exceptions=True)


def question(*fields: str, body: str = "", worker: int = 1) -> str:
    head = [
        f"Last-Event-ID: {new_stream_id(worker)}.0.0",
        "Host: x",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(["POST /chat HTTP/1.1", *head, *fields, "", body])


async def test_reader_is_handed_to_the_worker_of_its_stream_with_all_it_said() -> None:
    async with first_of_two() as (_, ask):
        assert await ask(question(body="hello")) == "second hello"
        assert await ask(question(worker=0)) == "first "
        assert await ask(question(worker=2)) == "first "  # nobody


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId", "Last-Event-ID", "evs_last_event_id"])
async def test_cursor_in_the_query_is_handed_over_under_any_of_its_names(name: str) -> None:
    async with first_of_two() as (_, ask):
        query = f"{name}={new_stream_id(0)}.0.0&{name}={new_stream_id(1)}.0.0"
        assert await ask(f"GET /chat?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == "second "


async def test_question_why_a_stream_failed_is_handed_to_its_worker() -> None:
    async with first_of_two() as (_, ask):
        for worker, answered in ((1, "second "), (0, "first ")):
            head = f"GET /page/failure?stream={new_stream_id(worker)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            assert await ask(head) == answered


async def test_reader_of_a_worker_that_is_not_there_is_answered_where_it_is() -> None:
    async with first_of_two(second=False) as (_, ask):
        assert await ask(question(body="hello")) == "first hello"


@pytest.mark.parametrize("count", [MAX_HEADERS - 2, MAX_HEADERS])
async def test_request_with_as_many_headers_as_there_may_be_is_answered(count: int) -> None:
    async with first_of_two() as (_, ask):
        answer = await ask(question(*(f"X-{number}: y" for number in range(4, count))))
        assert answer == ("second " if count < MAX_HEADERS else "first ")


async def test_worker_hands_nothing_to_another_users_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async with first_of_two(second=False) as (name, ask):
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.bind(f"\0gateway-{name}-1")
            impostor.listen()
            monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
            assert await ask(question(body="hello")) == "first hello"
            taken, _ = impostor.accept()
            with taken:
                assert taken.recv(99) == b""


# Questions among workers.


async def test_worker_asks_all_others_that_live() -> None:
    async with first_of_two() as (name, _):
        assert await Siblings(0, 4, name).ask(b"revoke key:web") == [b"second: revoke key:web"]
        long = b"x" * (MAX_WORDS - 8)
        assert await Siblings(0, 2, name).ask(long) == [b"second: " + long]
        assert await Siblings(1, 2, name).ask(b"nobody but itself") == []


async def test_worker_that_does_not_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs, and one that is asked too much."""
    async with first_of_two() as (name, _):
        assert await Siblings(0, 2, name).ask(b"x" * (MAX_WORDS + 1)) == [None]
    monkeypatch.setattr(handover, "PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(f"\0gateway-{name}-2")
        hanging.listen()
        assert await Siblings(0, 3, name).ask(b"hello") == [None]


async def test_worker_asks_nothing_of_another_users_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async with first_of_two(second=False) as (name, _):
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.bind(f"\0gateway-{name}-1")
            impostor.listen()
            monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
            assert await Siblings(0, 2, name).ask(b"hello") == []
            taken, _ = impostor.accept()
            with taken:
                assert taken.recv(99) == b""
