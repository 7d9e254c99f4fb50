"""The stream on the wire, contract section 4: headers, prelude, batches, heartbeats, gzip, formats, one end."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import Message, Parser, Response
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    OPENAI_USAGE,
    Hang,
    Pause,
    Reset,
    Step,
    WaitFor,
    chunk,
    openai_answer,
    openai_chunk,
    openai_delta,
    sse_head,
)
from tests.web.stage import EVENTS, Stage, completion, events_answer, parsed, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW = {"batch": {"interval": "1s"}}
CUSTOM = {
    "preset": "events",
    "start": None,
    "token": {"json": ["$index", "$text"]},
    "thinking": {"event": "hm", "data": "$text"},
    "done": {"event": "end", "data": "{}"},
    "error": {"event": "oops", "json": {"why": "$code", "again": "$retryable"}},
}
ROUTES: list[dict[str, Any]] = [
    {"path": "/chat"},
    {"path": "/slow", **SLOW},
    {"path": "/slow-single", "merge": False, **SLOW},
    {"path": "/openai-slow", "api": "openai", **SLOW},
    {"path": "/proxy-slow", "api": "proxy", **SLOW},
    {"path": "/at-once", "batch": {"interval": "0s"}},
    {"path": "/large", "batch": {"interval": "1s", "max_bytes": "1KiB"}},
    {"path": "/sentence", "batch": {"boundary": "sentence"}},
    {"path": "/paragraph", "batch": {"boundary": "paragraph"}},
    {"path": "/beating", "heartbeat": "100ms", "commit_after": "0s"},
    {"path": "/openai-beating", "api": "openai", "heartbeat": "100ms", "commit_after": "0s"},
    {"path": "/proxy-beating", "api": "proxy", "heartbeat": "100ms", "commit_after": "0s"},
    {"path": "/gzip", "compress": True, "heartbeat": "100ms"},
    {"path": "/unresumable", "resume": {"enabled": False}},
    {"path": "/held", "commit_after": "300ms"},
    {"path": "/openai", "api": "openai"},
    {"path": "/proxy", "api": "proxy"},
    {"path": "/proxy-unresumable", "api": "proxy", "resume": {"enabled": False}},
    *({"path": f"/format/{name}", "format": name, "merge": False} for name in ("events", "data", "typed", "openai")),
    {"path": "/format/custom", "format": CUSTOM, "merge": False},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES) as stage:
        yield stage


def now() -> float:
    return asyncio.get_running_loop().time()


async def first_token(response: Response) -> Message:
    async for message in response.messages():
        if message.type in ("token", "message"):
            return message
    raise EOFError("no token")


# Headers and prelude.


OPENINGS = {
    "/chat": rb"retry: (\d+)\nevent: connected\ndata: .*\nid: (.+)\n\nevent: token\n",
    "/format/typed": rb'retry: (\d+)\ndata: \{"type":"start"\}\nid: (.+)\n\ndata: ',
    "/format/data": rb"retry: (\d+)\nid: (.+)\n\ndata: ",
    "/proxy": rb"retry: (\d+)\nid: (.+)\n\ndata: ",
    "/openai": rb"retry: (\d+)\ndata: .*\nid: (.+)\n\ndata: ",
}
"""How a stream begins on each route: `/openai` is POSTed to."""


@pytest.mark.parametrize("route", list(OPENINGS))
async def test_stream_has_the_promised_headers_and_opening(stage: Stage, route: str) -> None:
    question = stage.plays(events_answer("x") if route == "/proxy" else openai_answer("x"))
    async with await stage.ask(route, question, headers=EVENTS) as response:
        raw = await response.body()
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    stream_id = response.headers["x-stream-id"]
    opening = re.match(OPENINGS[route], raw)
    assert opening, raw[:200]
    assert 1500 <= int(opening[1]) <= 2500
    cursor = opening[2].decode()
    assert re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", cursor)
    assert cursor.startswith(f"{stream_id}.")
    assert len(stream_id) == 22
    assert raw.count(b"retry:") == 1


POSTED = ["/chat", "/slow", "/format/events", "/format/data", "/format/typed", "/format/openai", "/format/custom"]


@pytest.mark.parametrize("route", [*POSTED, "/beating", "/unresumable", "/openai", "/openai-beating"])
async def test_post_is_never_sent_a_block_without_data(stage: Stage, route: str) -> None:
    """Nor is anybody without resume. Heartbeats are comments, and come only when the upstream is silent for long."""
    question = stage.plays(openai_answer("x", "y"))
    body = completion(question, stream=True) if route.startswith("/openai") else {"message": question}
    async with await stage.post(route, body, headers=EVENTS) as response:
        raw = await response.body()
    blocks = [block.split("\n") for block in raw.decode().split("\n\n")[:-1] if block != ":" or route != "/beating"]
    assert len(blocks) >= 3
    assert all(any(line.startswith("data:") for line in block) for block in blocks), raw
    last = blocks if route != "/format/openai" else [*blocks[:3], blocks[-1]]  # its end is several blocks
    assert all(block[-1].startswith("id: ") == (route != "/unresumable") for block in last), raw


async def test_head_of_a_post_goes_out_in_time_with_nothing_behind_it(stage: Stage) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), WaitFor(go_on), *openai_answer("late")[1:]])
    async with await stage.post("/proxy-beating", {"messages": [{"content": question}]}, headers=EVENTS) as response:
        assert response.status == 200
        go_on.set()
        raw = await response.body()
    assert raw.lstrip(b":\n").startswith(b"retry: ")


# A connection that breaks inside an event.


class Hasty:
    """A client that takes an id when its line is complete, and not when its block is, as many libraries do."""

    def __init__(self, cursor: str = "") -> None:
        self.cursor = cursor
        self.texts: list[str] = []
        self._strict = Parser()

    def feed(self, raw: bytes) -> None:
        for line in raw.split(b"\n")[:-1]:  # the rest is torn
            if line.startswith(b"id: "):
                self.cursor = line[4:].decode()
        self.texts += [message.data for message in self._strict.feed(raw)]


@pytest.mark.parametrize("route", ["/format/events", "/format/data", "/format/typed", "/format/custom"])
async def test_connection_that_breaks_at_any_byte_of_an_event_loses_nothing(stage: Stage, route: str) -> None:
    """One token, and the end, whatever the client makes of an id line. Only the last byte of a block is let through:
    where it alone is missing, such a client has the cursor already."""
    question = stage.plays(openai_answer("one", "two"))
    async with await stage.get(route, question) as response:
        raw = await response.body()
    complete = Hasty()
    complete.feed(raw)
    second = raw.index(b"two")
    token = (raw.rindex(b"\n\n", 0, second) + 2, raw.index(b"\n\n", second) + 1)
    end = (raw[:-2].rindex(b"\n\n") + 2, len(raw) - 1)
    seen: dict[str, list[Message]] = {}
    for at in [*range(*token), *range(*end)]:
        client = Hasty()
        client.feed(raw[:at])
        rest = seen.get(client.cursor)
        if rest is None:
            async with await stage.get(f"/streams/{client.cursor.partition('.')[0]}", cursor=client.cursor) as response:
                assert response.status == 200, raw[:at]
                rest = seen[client.cursor] = parsed(await response.body())
        told = [message.data for message in rest if message.type != "connected"]
        assert client.texts + told == complete.texts, raw[:at]
    assert len(seen) == 2
    assert len(stage.asked(question)) == 1


async def test_client_that_breaks_off_inside_an_event_comes_back_over_a_real_socket(stage: Stage) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("one"), WaitFor(go_on), *openai_answer("two", "three")[1:]])
    client = Hasty()
    async with await stage.post("/format/events", {"message": question}, headers=EVENTS) as response:
        raw = b""
        while b"one" not in raw:
            raw += await response.read()
        client.feed(raw[: raw.index(b"one")])
        await response.reset()
    go_on.set()
    headers = EVENTS | {"Last-Event-ID": client.cursor}
    async with await stage.post("/format/events", {"message": question}, headers=headers) as response:
        rest = parsed(await response.body())
    assert text_of(rest) == "onetwothree"
    assert len(stage.asked(question)) == 1


async def test_every_event_has_a_cursor_that_never_repeats(stage: Stage) -> None:
    raw = await body_of(stage, "/format/events", openai_answer(*"abc"))
    ids = re.findall(rb"^id: (.+)$", raw, re.MULTILINE)
    assert len(ids) == len(set(ids)) == 5
    assert len(parsed(raw)) == 5


async def test_stream_without_resume_has_no_cursors(stage: Stage) -> None:
    raw = await body_of(stage, "/unresumable", openai_answer("x"))
    assert b"id:" not in raw.replace(b'_id":', b"")
    assert b"retry:" not in raw
    ids = b"id: 7\nevent: tick\ndata: x\n\n"
    assert await body_of(stage, "/proxy-unresumable", [sse_head(), chunk(ids), LAST_CHUNK]) == (
        b"event: tick\ndata: x\nid: 7\n\n"
    )


async def body_of(stage: Stage, route: str, script: list[Step]) -> bytes:
    async with await stage.ask(route, stage.plays(script)) as response:
        assert response.status == 200
        return await response.body()


# Headers are held for the upstream's real status.


@pytest.mark.alone
async def test_headers_are_held_for_commit_after_and_no_longer(stage: Stage) -> None:
    began = now()
    async with await stage.get("/held", stage.plays([Hang()])) as response:
        assert response.status == 200
    assert 0.25 < now() - began < 0.6


@pytest.mark.alone
async def test_headers_go_out_with_the_first_event(stage: Stage) -> None:
    began = now()
    async with await stage.get("/chat", stage.plays([sse_head(), openai_delta("x"), Hang()])) as response:
        assert text_of([await first_token(response)]) == "x"
    assert now() - began < 0.5


# Batches.


@pytest.mark.alone
async def test_first_event_of_a_burst_is_never_delayed_and_later_ones_for_one_interval(stage: Stage) -> None:
    async def listen(route: str, events: int) -> None:
        deltas = [openai_delta(text) for text in "abcdef"]
        question = stage.plays([sse_head(), deltas[0], Pause(0.3), *deltas[1:], Hang()])
        began = now()
        async with await stage.ask(route, question) as response:
            first, *rest = [await first_token(response) for _ in range(1 + events)]
        assert first.at - began < 0.25, route
        assert "f" in rest[-1].data.replace("finish", ""), route
        assert all(0.5 < message.at - first.at < 1.2 for message in rest), route
        assert rest[-1].at - rest[0].at < 0.1, route

    await asyncio.gather(
        listen("/slow", 1), listen("/slow-single", 5), listen("/openai-slow", 5), listen("/proxy-slow", 5)
    )


@pytest.mark.alone
async def test_first_event_after_a_pause_is_not_delayed_either(stage: Stage) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("a"), WaitFor(go_on), openai_delta("b"), Hang()])
    async with await stage.get("/slow", question) as response:
        assert await first_token(response)
        await asyncio.sleep(1.2)
        began = now()
        go_on.set()
        assert (await first_token(response)).at - began < 0.2


async def test_interval_0_sends_each_event_at_once(stage: Stage) -> None:
    steps = [step for text in "abcde" for step in (openai_delta(text), Pause(0.03))]
    messages = await whole(await stage.get("/at-once", stage.plays([sse_head(), *steps, *openai_answer()[1:]])))
    tokens = [message for message in messages if message.type == "token"]
    assert [token.json()["text"] for token in tokens] == list("abcde")
    assert all(late.at - early.at > 0.015 for early, late in pairwise(tokens))


@pytest.mark.alone
async def test_batch_is_sent_when_it_is_large_enough(stage: Stage) -> None:
    question = stage.plays([sse_head(), openai_delta("a"), Pause(0.1), *[openai_delta("b" * 90)] * 40, Hang()])
    async with await stage.get("/large", question) as response:
        first = await first_token(response)
        assert (await first_token(response)).at - first.at < 0.5


async def test_merged_deltas_lose_no_character_and_keep_within_max_bytes(stage: Stage) -> None:
    texts = ["字" * 100, *["é😀"] * 300, "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace")]
    messages = await whole(await stage.get("/large", stage.plays(openai_answer(*texts))))
    assert text_of(messages) == "".join(texts)
    tokens = [message.json()["text"] for message in messages if message.type == "token"]
    assert len(tokens) < 20
    assert max(len(token.encode()) for token in tokens) <= 1024


async def test_merge_joins_no_deltas_of_different_kinds(stage: Stage) -> None:
    thoughts = [chunk(openai_chunk({"reasoning_content": text})) for text in "xy"]
    deltas = b"".join([*thoughts, openai_delta("a"), openai_delta("b")])  # in one read, or the first would go ahead
    answer = [sse_head(), deltas, *openai_answer()[1:]]
    messages = await whole(await stage.get("/slow", stage.plays(answer)))
    assert [message.type for message in messages] == ["connected", "thinking", "token", "done"]
    assert [message.json()["text"] for message in messages[1:3]] == ["xy", "ab"]


# Boundaries.


async def spoken(stage: Stage, route: str, text: str) -> list[str]:
    """The token events of an answer that comes as one character every few milliseconds."""
    steps = [step for letter in text for step in (openai_delta(letter), Pause(0.004))]
    messages = await whole(await stage.get(route, stage.plays([sse_head(), *steps, *openai_answer()[1:]])))
    return [message.json()["text"] for message in messages if message.type == "token"]


async def test_sentences_arrive_whole(stage: Stage) -> None:
    text = "你好。今天是3.14号！“真的？”是的。 Mr. Li said 2.5 is fine. Next one? Yes"
    heard = await spoken(stage, "/sentence", text)
    assert "".join(heard) == text
    assert len(heard) > 3
    assert all(piece.rstrip().endswith(("。", "！", "？", "”", ".", "?")) for piece in heard[:-1])


async def test_paragraphs_arrive_whole_and_code_is_not_cut(stage: Stage) -> None:
    text = "第一段。还有。\n\n```py\na = 1\n\nb = 2\n```\n\nThird.\n\nEnd"
    heard = await spoken(stage, "/paragraph", text)
    assert "".join(heard) == text
    assert len(heard) > 1
    assert all(piece.count("```") % 2 == 0 for piece in heard)
    assert all(piece.endswith("\n") for piece in heard[:-1])


async def test_held_text_is_let_go_in_time_when_its_sentence_does_not_end(stage: Stage) -> None:
    question = stage.plays([sse_head(), openai_delta("No end"), Hang()])
    async with await stage.get("/sentence", question) as response:
        began = now()
        assert (await first_token(response)).at - began < 2.3


async def test_held_text_comes_before_the_end(stage: Stage) -> None:
    broken: list[Step] = [sse_head(), openai_delta("No end"), Reset()]
    for script in (openai_answer("No end"), broken):
        messages = await whole(await stage.get("/sentence", stage.plays(script)))
        assert text_of(messages) == "No end"
        assert messages[-1].type in ("done", "error")


# Heartbeats.


async def test_heartbeats_come_before_the_first_event_and_between_events_never_inside_one(stage: Stage) -> None:
    async def listen(route: str) -> None:
        long = chunk(openai_chunk({"content": "x" * 5000}))
        steps: list[Step] = [Pause(0.5), sse_head(), Pause(0.3), long[:2000], Pause(0.3), long[2000:], Pause(0.5)]
        raw = await body_of(stage, route, [*steps, *openai_answer("y")[1:]])
        blocks = raw.decode().split("\n\n")
        comments = [block.startswith(":") for block in blocks]
        assert not any("\n:" in block for block in blocks), route
        first = next(number for number, block in enumerate(blocks) if "x" * 5000 in block)
        assert sum(comments[:first]) >= 6, route
        assert sum(comments[first:]) >= 3, route

    await asyncio.gather(listen("/beating"), listen("/openai-beating"), listen("/proxy-beating"))


async def test_heartbeats_are_left_out_while_events_flow(stage: Stage) -> None:
    steps = [step for _ in range(20) for step in (openai_delta("x"), Pause(0.04))]
    raw = await body_of(stage, "/beating", [sse_head(), *steps, *openai_answer()[1:]])
    assert raw.count(b"\n:") <= 2


# Compression.


async def test_each_event_of_a_compressed_stream_is_readable_when_it_arrives(stage: Stage) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("one"), WaitFor(go_on), *openai_answer("two")[1:]])
    headers = EVENTS | {"Accept-Encoding": "gzip, deflate, br"}
    inflate, text = zlib.decompressobj(31), b""
    async with asyncio.timeout(5), await stage.get("/gzip", question, headers=headers) as response:
        assert response.headers["content-encoding"] == "gzip"
        assert "Accept-Encoding" in response.headers["vary"]
        while b'"one"' not in text:
            text += inflate.decompress(await response.read())
        assert text.endswith(b"\n\n")
        while not text.endswith(b":\n\n"):
            text += inflate.decompress(await response.read())
        go_on.set()
        while data := await response.read():
            text += inflate.decompress(data)
    assert inflate.eof
    assert text_of(parsed(text)) == "onetwo"


@pytest.mark.parametrize("accepted", [None, "identity", "br", "gzip;q=0", "gzip; q=0.000"])
async def test_stream_is_not_compressed_for_who_does_not_accept_it(stage: Stage, accepted: str | None) -> None:
    headers = EVENTS | ({"Accept-Encoding": accepted} if accepted else {})
    async with await stage.get("/gzip", stage.plays(openai_answer("x")), headers=headers) as response:
        assert "content-encoding" not in response.headers
        assert text_of([message async for message in response.messages()]) == "x"


# Formats.

TOOL = {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
ANSWER: list[Step] = [
    sse_head(),
    chunk(openai_chunk({"reasoning_content": "hm"})),
    openai_delta("你"),
    openai_delta("好"),
    chunk(openai_chunk(TOOL)),
    OPENAI_STOP,
    OPENAI_USAGE,
    OPENAI_DONE,
    LAST_CHUNK,
]
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


async def spelled(stage: Stage, name: str, script: list[Step]) -> list[tuple[str, str]]:
    messages = await whole(await stage.get(f"/format/{name}", stage.plays(script), session_id="s-1"))
    return [(message.type, message.data) for message in messages]


async def test_format_events(stage: Stage) -> None:
    question = stage.plays(ANSWER)
    response = await stage.get("/format/events", question, session_id="s-1")
    messages = await whole(response)
    start, *middle, end = [(message.type, message.json()) for message in messages]
    stream_id = response.headers["x-stream-id"]
    assert start == ("connected", {"stream_id": stream_id, "session_id": "s-1", "resumed": False})
    assert middle[:3] == [
        ("thinking", {"text": "hm"}),
        ("token", {"text": "你", "index": 0}),
        ("token", {"text": "好", "index": 1}),
    ]
    assert middle[3] == ("tool", TOOL["tool_calls"][0])
    assert end == ("done", {"full_text": "你好", "finish_reason": "stop", "usage": USAGE})


async def test_format_data(stage: Stage) -> None:
    assert await spelled(stage, "data", ANSWER) == [
        ("message", '{"content":"你"}'),
        ("message", '{"content":"好"}'),
        ("message", "[DONE]"),
    ]


async def test_format_typed(stage: Stage) -> None:
    assert await spelled(stage, "typed", ANSWER) == [
        ("message", '{"type":"start"}'),
        ("message", '{"type":"chunk","content":"你"}'),
        ("message", '{"type":"chunk","content":"好"}'),
        ("message", '{"type":"done"}'),
    ]


async def test_format_openai(stage: Stage) -> None:
    messages = await whole(await stage.get("/format/openai", stage.plays(ANSWER)))
    chunks = [message.json() for message in messages[:-1]]
    assert messages[-1].data == "[DONE]"
    assert {message.type for message in messages} == {"message"}
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "scripted")}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "你好"
    assert [delta for delta in deltas if "tool_calls" in delta] == [TOOL]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]


async def test_format_of_ones_own(stage: Stage) -> None:
    assert await spelled(stage, "custom", ANSWER) == [
        ("hm", "hm"),
        ("message", '[0,"你"]'),
        ("message", '[1,"好"]'),
        ("tool", '{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":"{}"}}'),
        ("end", "{}"),
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("events", lambda message: (message.type == "error") and message.json()["code"]),
        ("data", lambda message: message.json()["error"]["code"]),
        ("typed", lambda message: message.json()["type"] == "error" and message.json()["message"] and "upstream_cut"),
        ("openai", lambda message: message.json()["error"]["code"]),
        ("custom", lambda message: (message.type == "oops") and message.json()["why"]),
    ],
)
async def test_cut_answer_ends_in_every_format_with_one_error(stage: Stage, name: str, code: Any) -> None:
    cut: list[Step] = [sse_head(), openai_delta("whole"), openai_delta("torn")[:-20], Reset()]
    messages = await whole(await stage.get(f"/format/{name}", stage.plays(cut)))
    assert code(messages[-1]) == "upstream_cut"
    assert "whole" in "".join(message.data for message in messages[:-1])
    assert not any("torn" in message.data or "[DONE]" in message.data for message in messages)


async def test_proxy_stream_that_ended_well_gets_nothing_appended(stage: Stage) -> None:
    raw = await body_of(stage, "/proxy", events_answer("a", "b"))
    assert [message.data for message in parsed(raw)] == ["a", "b"]
