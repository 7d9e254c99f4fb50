"""Answers that break off, lack their end, or hold what is no part of an answer (U13-U16, U24, U25)."""

from typing import Any

import msgspec
import pytest

from tests.faults.stage import (
    CHATS,
    DIALECTS,
    FAST,
    KINDS,
    PROMPT,
    Stage,
    Way,
    ending,
    head,
    listen,
    opening,
    stage_fixture,
    token,
    ways,
)
from tests.kit.sse_client import request
from tests.kit.upstream import LAST_CHUNK, Cut, Pause, Reset, Step, chunk, http_head, openai_chunk, response, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

stage = stage_fixture(
    FAST | {"first_event": "5s", "idle": "5s"},
    routes=[{"path": "/plain/{path}", "api": "proxy", "upstream": "openai", "stream": {"resume": {"enabled": False}}}],
)

TORN = {
    "openai": b'data: {"choices":[{"index":0,"delta":{"content":"torn',
    "anthropic": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"torn"}}\n',
    "ollama": b'{"message":{"content":"to',
    "sse": b'data: {"content":"torn"}\n',
}
BREAKS: dict[str, list[Step]] = {"fin": [Cut()], "reset": [Reset()], "inside a chunk": [b"ff\r\nda", Cut()]}
ERROR = {"message": "The engine broke.", "type": "server_error", "code": "engine_broke"}


def without_length(dialect: str) -> bytes:
    return http_head(200, "application/x-ndjson" if dialect == "ollama" else "text/event-stream")


@pytest.mark.parametrize("dialect", TORN)
@pytest.mark.parametrize("broken", BREAKS)
async def test_client_of_cut_upstream_gets_whole_events_then_the_error(stage: Stage, dialect: str, broken: str) -> None:
    stage.plays([*opening(dialect, "Hel", "lo"), chunk(TORN[dialect]), *BREAKS[broken]])
    kinds = KINDS if dialect == "openai" else CHATS
    for heard in await stage.fail_all(ways(*kinds, dialect=dialect), "upstream_cut", 502, text="Hello"):
        assert heard.error["retryable"]
        assert "torn" not in heard.body


@pytest.mark.parametrize("dialect", TORN)
@pytest.mark.parametrize("ends", ["close", "last chunk"])
async def test_body_that_ends_without_end_marker_is_a_cut(stage: Stage, dialect: str, ends: str) -> None:
    said = [token(dialect, "Hel"), token(dialect, "lo"), TORN[dialect]]
    start = opening(dialect)[1:]
    if ends == "close":
        stage.plays([without_length(dialect), *said, Cut()])
    else:
        stage.plays([head(dialect), *start, *map(chunk, said), LAST_CHUNK])
    asked = ways(*CHATS, dialect=dialect)
    if dialect == "sse":  # an endpoint of an unknown kind may have no end marker
        await stage.complete_all(asked, "Hello")
    else:
        await stage.fail_all(asked, "upstream_cut", 502, text="Hello", whole=ends == "last chunk")


async def test_everything_that_came_with_the_reset_is_delivered(stage: Stage) -> None:
    stage.plays([*opening("openai"), b"".join(chunk(token("openai", f"{n} ")) for n in range(200)), Reset()])
    await stage.fail_all(ways(*KINDS), "upstream_cut", 502, text="".join(f"{n} " for n in range(200)))


async def test_cut_text_is_no_whole_answer(stage: Stage) -> None:
    stage.plays([*opening("text", "Hello"), Cut()])
    await stage.fail_all(ways(*CHATS, dialect="text"), "upstream_cut", 502, text="Hello")


async def test_cut_at_length_is_no_whole_answer(stage: Stage) -> None:
    stage.plays([http_head(200, "text/event-stream", Content_Length="9999"), token("openai", "Hello"), Cut()])
    await stage.fail_all(ways(*KINDS), "upstream_cut", 502, text="Hello")


@pytest.mark.parametrize("stream", [True, False])
async def test_cut_before_the_second_choice_began_is_no_whole_answer(stage: Stage, stream: bool) -> None:
    stage.plays([*opening("openai", "Hello"), chunk(openai_chunk({}, "stop")), Reset()])
    body = {"model": "m", "n": 2, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}
    async with await request(f"{stage.gateway.url}/openai/openai", method="POST", body=body) as answer:
        heard = await listen(answer)
    assert (heard.status, heard.error["code"], heard.ended) == (200 if stream else 502, "upstream_cut", 0)
    await stage.told(heard, "upstream_error")


async def test_cut_before_first_event_keeps_its_status(stage: Stage) -> None:
    stage.plays([sse_head(), Cut()])
    await stage.fail_all(ways(*KINDS), "upstream_cut", 502)
    await stage.fail_all(ways("openai", "chat", "proxy-get", committed=True), "upstream_cut", 502)


@pytest.mark.parametrize("surplus", [b"garbage\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"], ids=len)
async def test_bytes_behind_a_whole_answer_change_nothing_and_end_the_connection(stage: Stage, surplus: bytes) -> None:
    stage.plays([*opening("text", "Hel"), Pause(0.05), chunk(token("text", "lo")) + LAST_CHUNK + surplus])
    before, asked = stage.upstream.connections, ways(*CHATS, dialect="text")
    for _ in range(2):
        await stage.complete_all(asked, "Hello")
    assert stage.upstream.connections == before + 2 * len(asked)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_whole_answer_completes(stage: Stage, dialect: str) -> None:
    stage.plays([*opening(dialect, "你", "好"), *ending(dialect)])
    await stage.complete_all(ways(*CHATS, dialect=dialect), "你好")


FINISHED: dict[str, list[bytes]] = {
    "openai": [
        openai_chunk({}, "stop"),
        openai_chunk({}, choices=[], usage={"prompt_tokens": 3, "completion_tokens": 7}),
    ],
    "anthropic": [
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"input_tokens":3,"output_tokens":7}}\n\n'
    ],
}
"""A finish reason and the usage. Ollama says these in its end marker, and the others not at all."""


@pytest.mark.parametrize("dialect", FINISHED)
@pytest.mark.parametrize("ends", [[LAST_CHUNK], [LAST_CHUNK, Cut()]], ids=len)
async def test_answer_with_finish_reason_needs_no_end_marker(stage: Stage, ends: list[Step], dialect: str) -> None:
    stage.plays([*opening(dialect, "Hello"), *map(chunk, FINISHED[dialect]), *ends])
    for heard in await stage.complete_all(ways(*CHATS, dialect=dialect), "Hello"):
        line = await stage.told(heard, "completed")
        assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (3, 7, "usage")


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
async def test_event_that_is_no_json_is_skipped_and_counted(stage: Stage, dialect: str) -> None:
    noise = b"oops\n" if dialect == "ollama" else b"data: oops\n\n"
    stage.plays([*opening(dialect, "Hel"), chunk(noise), chunk(token(dialect, "lo")), *ending(dialect)])
    for heard in await stage.complete_all(ways(*CHATS, dialect=dialect), "Hello"):
        line = await stage.gateway.logged("events_skipped", request_id=heard.request_id)
        assert line["count"] == 1


async def test_proxy_passes_what_is_no_json(stage: Stage) -> None:
    stage.plays([sse_head(), chunk(b"data: oops\n\ndata: {\n\n"), LAST_CHUNK])
    for heard in await stage.ask_all(ways("proxy", "proxy-get")):
        assert [message.data for message in heard.messages] == ["oops", "{"]
        await stage.told(heard, "completed")


FAILURES: dict[str, tuple[bytes, str]] = {
    "openai": (b"data: " + msgspec.json.encode({"error": ERROR}) + b"\n\n", "engine_broke"),
    "anthropic": (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
        "overloaded_error",
    ),
    "ollama": (b'{"error":"The engine broke."}\n', "upstream_error"),
    "sse": (b'event: error\ndata: {"code":"engine_broke","message":"The engine broke."}\n\n', "engine_broke"),
}


@pytest.mark.parametrize("dialect", FAILURES)
async def test_error_inside_the_stream_is_told_with_the_providers_code(stage: Stage, dialect: str) -> None:
    said, code = FAILURES[dialect]
    status = 503 if dialect == "anthropic" else 502
    stage.plays([*opening(dialect, "Hello"), chunk(said), *ending(dialect)])
    await stage.fail_all(ways(*CHATS, dialect=dialect), code, status, text="Hello", whole=True)
    stage.plays([*opening(dialect), chunk(said), *ending(dialect)])
    await stage.fail_all(ways(*CHATS, dialect=dialect), code, status, whole=True)


async def test_proxy_relays_the_endpoints_own_error_event(stage: Stage) -> None:
    stage.plays([sse_head(), chunk(b"event: error\ndata: mine\n\n"), LAST_CHUNK])
    for heard in await stage.ask_all(ways("proxy", "proxy-get")):
        assert [(message.type, message.data) for message in heard.messages] == [("error", "mine")]
        await stage.told(heard, "completed")


async def test_upstreams_ids_and_retry_give_way_to_cursors(stage: Stage) -> None:
    stage.plays([sse_head(), chunk(b"retry: 1\nid: theirs\nevent: x\ndata: 1\n\n"), LAST_CHUNK])
    for heard in await stage.ask_all(ways("proxy", "proxy-get")):
        assert "theirs" not in heard.body
        assert heard.retry is not None
        assert heard.retry > 1000
        assert heard.messages[0].last_event_id


async def test_hostile_event_name_is_made_harmless(stage: Stage) -> None:
    name = b"a\x00b\x1b[2J\x7f" + b"n" * 300
    stage.plays([sse_head(), chunk(b"event: %s\nid: 1\x002\ndata: 1\n\n" % name), LAST_CHUNK])
    for heard in await stage.ask_all([*ways("proxy"), Way("proxy", path="/plain/x")]):
        assert [(message.type, message.data) for message in heard.messages] == [("ab[2J" + "n" * 248, "1")]


def counted(dialect: str, read: Any, written: Any) -> list[Step]:
    """The end of an answer that tells these counts."""
    match dialect:
        case "openai":
            usage = {"prompt_tokens": read, "completion_tokens": written}
            said = [openai_chunk({}, "stop"), openai_chunk({}, choices=[], usage=usage if read else None)]
        case "anthropic":
            counts = {"input_tokens": read, "output_tokens": written} if read else None
            delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": counts}
            said = [b"data: " + msgspec.json.encode(delta) + b"\n\n"]
        case _:
            counts = {"prompt_eval_count": read, "eval_count": written} if read else {}
            end = {"message": {"content": ""}, "done": True, "done_reason": "stop"}
            said = [msgspec.json.encode({**end, **counts}) + b"\n"]
    return [*map(chunk, said), LAST_CHUNK]


USAGES = {"none": (None, None), "negative": (-5, -7), "absurd": (1e15, 1e15)}


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize("usage", USAGES)
async def test_senseless_usage_is_replaced_by_an_estimate(stage: Stage, usage: str, dialect: str) -> None:
    stage.plays([*opening(dialect, "Hello, you"), *counted(dialect, *USAGES[usage])])
    for heard in await stage.complete_all(ways(*CHATS, dialect=dialect), "Hello, you"):
        line = await stage.told(heard, "completed")
        assert line["usage_source"] == "estimate"
        assert 0 < line["input_tokens"] < 50
        assert 0 < line["output_tokens"] < 20


@pytest.mark.parametrize("dialect", ["sse", "text"])
async def test_answer_without_counts_is_settled_by_an_estimate(stage: Stage, dialect: str) -> None:
    stage.plays([*opening(dialect, "Hello, you"), *ending(dialect)])
    for heard in await stage.complete_all(ways(*CHATS, dialect=dialect), "Hello, you"):
        line = await stage.told(heard, "completed")
        assert (line["usage_source"], 0 < line["output_tokens"] < 20) == ("estimate", True)


async def test_cut_answer_is_settled_too(stage: Stage) -> None:
    stage.plays([*opening("openai", "Hello, you"), Reset()])
    for heard in await stage.fail_all(ways(*CHATS), "upstream_cut", 502, text="Hello, you"):
        assert (await stage.told(heard, "upstream_error"))["output_tokens"] > 0


async def test_error_page_behind_a_good_answer_is_not_read(stage: Stage) -> None:
    stage.plays([*opening("openai", "Hello"), *ending("openai"), response(500, "{}")])
    await stage.complete_all(ways(*KINDS), "Hello")
    stage.plays([*opening("openai", "Hello"), *ending("openai")])
    await stage.complete_all(ways(*KINDS), "Hello")
