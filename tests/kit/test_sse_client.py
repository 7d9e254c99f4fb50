"""The strict client, against the specification's own examples and a scripted server."""

import pytest

from tests.kit.sse_client import EventSource, Parser, State, request
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Hang,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    http_head,
    response,
    sse_head,
)


def parse(raw: bytes) -> list[tuple[str, str, str]]:
    parser = Parser()
    return [message[:3] for message in parser.feed(raw) + parser.flush()]


@pytest.mark.parametrize(
    ("raw", "messages"),
    [  # each block of the examples of 9.2.6, then the field rules one by one
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
        (
            b": test\n\ndata: a\nid: 1\n\ndata:b\nid\n\ndata:  c\n\n",
            [("message", "a", "1"), ("message", "b", ""), ("message", " c", "")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
        (b"data:test\n\ndata: test\n\n", [("message", "test", "")] * 2),
        (b"event: add\r\ndata: 1\r\n\r\nevent: x\r\rdata: 2\r\r", [("add", "1", ""), ("message", "2", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
        (b"id: 7\n\ndata: a\n\n", [("message", "a", "7")]),
        (b"id: 1\0\ndata: \xff\n\n", [("message", "\ufffd", "")]),
    ],
)
def test_parser_reads_what_the_specification_says(raw: bytes, messages: list[tuple[str, str, str]]) -> None:
    assert parse(raw) == messages
    cut = Parser()
    pieces = [message for byte in raw for message in cut.feed(bytes([byte]))]
    assert [message[:3] for message in pieces + cut.flush()] == messages


def test_parser_moves_its_last_event_id_without_an_event() -> None:
    parser = Parser("old")
    assert parser.feed(b"retry: 1500\nid: new\n") == []
    assert (parser.last_event_id, parser.retry) == ("old", 1500)
    assert parser.feed(b"\n") == []
    assert parser.last_event_id == "new"


async def test_source_reconnects_with_the_last_event_id_and_stops_at_204() -> None:
    first: list[Step] = [sse_head(), chunk("retry: 1\nid: a\n\ndata: 1\nid: b\n\nda"), chunk("ta: torn"), Cut()]
    second: list[Step] = [http_head(), b"data: 2\nid: c\n\n", Cut()]
    async with ScriptedUpstream(first, second, [response(204, "")]) as server, EventSource(server.url) as source:
        assert [message.data async for message in source] == ["1", "2"]
        assert [e.headers.get("last-event-id") for e in server.exchanges] == [None, "b", "c"]
        assert source.state is State.CLOSED
        assert [c.broken for c in source.connections] == [True, False, False]


async def test_source_closes_for_good_at_a_status() -> None:
    async with ScriptedUpstream([response(429, "{}")]) as server, EventSource(server.url) as source:
        with pytest.raises(EOFError, match="429"):
            await source.next()


async def test_source_reconnects_after_a_drop_before_the_first_event() -> None:
    first: list[Step] = [http_head(), b"retry: 1\nid: a\n\n", Hang()]
    second: list[Step] = [http_head(), b"data: x\n\n", Cut()]
    async with ScriptedUpstream(first, second) as server, EventSource(server.url) as source:
        with pytest.raises(TimeoutError):
            await source.next(timeout=0.1)
        await source.drop()
        assert (await source.next())[:3] == ("message", "x", "")
        assert server.exchanges[1].headers["last-event-id"] == "a"


async def test_request_reads_a_whole_body_of_each_framing() -> None:
    chunked = [sse_head(), chunk("ab"), chunk("c"), LAST_CHUNK]
    async with ScriptedUpstream(chunked, [response(200, "abc")], [http_head(), b"abc", Cut()]) as server:
        for _ in range(3):
            async with await request(server.url, method="POST", body={"n": 1}) as answer:
                assert await answer.body() == b"abc"
                assert not answer.broken
        assert [exchange.json() for exchange in server.exchanges] == [{"n": 1}] * 3


async def test_request_sees_a_reset_as_a_broken_body() -> None:
    script: list[Step] = [sse_head(), chunk("data: 1\n\n"), Reset()]
    async with ScriptedUpstream(script) as server, await request(server.url) as answer:
        assert [message.data async for message in answer.messages()] == ["1"]
        assert answer.broken
