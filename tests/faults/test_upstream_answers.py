"""Answers as real providers send them, over real sockets: ends, errors, bodies (U13, U14, U15b, U16, U28, U31)."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.pair import Play, answers
from tests.faults.stage import (
    FAST,
    PROMPT,
    Heard,
    Stage,
    Way,
    ending,
    once,
    opening,
    stage_fixture,
    token,
)
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Cut,
    Exchange,
    Hang,
    Pause,
    Reset,
    Step,
    chunk,
    http_head,
    openai_answer,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLE = chunk(openai_chunk({"role": "assistant", "content": ""}))
NO_CHATS = ("openai", "whole", "chat")
DIALECTS = ("openai", "anthropic", "ollama", "sse")
RULES = ("auto", "marker", "finish_reason")


def upstreams(url: str) -> dict[str, Any]:
    """For each dialect one with a fallback; for each rule of `end` and dialect one that no other test teaches."""
    made: dict[str, Any] = {"backup": target("openai", f"{url}/backup", model="second") | once()}
    for dialect in DIALECTS:
        made[f"safe-{dialect}"] = target(dialect, f"{url}/safe-{dialect}", model="m", fallback=["backup"]) | once()
        for rule in RULES:
            made[f"{rule}-{dialect}"] = target(dialect, f"{url}/{rule}-{dialect}", model="m", end=rule) | once()
    made["patient"] = target("openai", f"{url}/patient", retries=2, breaker={"failures": 1000})
    return made


def target(dialect: str, url: str, **more: Any) -> dict[str, Any]:
    return {"dialect": dialect, "targets": [{"url": url}], **more}


def routes() -> list[dict[str, Any]]:
    names = [f"{name}-{dialect}" for name in ("safe", *RULES) for dialect in DIALECTS]
    return [
        {"path": f"/{kind}/{name}", "api": kind, "upstream": name, "stream": {"commit_after": "0s"}}
        | ({"model": "m", "history": {}} if kind == "chat" else {})
        for name in [*names, "patient"]
        for kind in ("openai", "chat")
    ]


stage = stage_fixture(FAST | {"first_event": "5s", "idle": "5s"}, upstreams=upstreams, routes=routes())


def to(name: str, *kinds: str) -> list[Way]:
    """One of each kind, at this upstream."""
    return [Way(kind, committed=True, path=f"/{way}/{name}") for kind in kinds or NO_CHATS for way in [Way(kind).route]]


def asked(stage: Stage) -> list[str]:
    """The upstreams that were asked, in this order."""
    return [exchange.target.split("/")[1] for exchange in stage.upstream.exchanges]


FROM_BACKUP = answers("from the backup")


def plays(stage: Stage, first: Sequence[Step] | Play, backup: Play = FROM_BACKUP) -> None:
    """What the upstreams say: the backup, and any other in its dialect."""

    def play(exchange: Exchange) -> Sequence[Step]:
        name = exchange.target.split("/")[1]
        if name == "backup":
            return backup("openai", exchange)
        return first(name.rpartition("-")[2], exchange) if callable(first) else first

    stage.plays(play)


def in_turn(*scripts: Sequence[Step]) -> Play:
    """The nth request plays the nth script."""
    left = iter(scripts)
    return lambda *_: next(left)


def reasons(heard: Heard) -> list[Any]:
    """The finish reasons in an answer, whatever its form."""
    values = [message.json() for message in heard.messages if message.data[:1] == "{"] or [json.loads(heard.body)]
    choices = [choice for value in values for choice in value.get("choices", ())]
    ends = [value["finish_reason"] for value in values if "full_text" in value]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]] or ends or [None]


# -- the end ---------------------------------------------------------------------------------------------------------

BEHIND: dict[str, list[Step]] = {
    "silence": [Hang()],
    "comments": [step for _ in range(60) for step in (chunk(b": still here\n\n"), Pause(0.1))],
    "its body ends": [LAST_CHUNK],
    "reset": [Reset()],
    "closed": [Cut()],
    "malformed framing": [Pause(0.1), b"zz\r\n", Hang()],
    "an error": [chunk(b'data: {"error":{"message":"No.","code":"odd"}}\n\n'), Hang()],
    "a field named error": [chunk(b'error: {"code":500,"message":"No."}\n\n'), Hang()],
    "noise": [chunk(b"data: oops\n\n"), Hang()],
    "an endless line": [chunk(b"data: " + b"x" * 2_000_000), Hang()],
}
REASON = {
    "openai": openai_chunk({}, "stop"),
    "anthropic": b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":2}}\n\n',
}


@pytest.mark.parametrize("dialect", REASON)
@pytest.mark.parametrize("behind", BEHIND)
async def test_whole_answer_completes_whatever_its_connection_does(stage: Stage, behind: str, dialect: str) -> None:
    """U14: within 2 s, by one call, with a fallback too; the connection is dropped."""
    first = [*opening(dialect, "Hel", "lo"), chunk(REASON[dialect]), *BEHIND[behind]]
    plays(stage, first)
    began = asyncio.get_running_loop().time()
    ways_ = to(f"safe-{dialect}")
    for heard in await stage.complete_all(ways_, "Hello"):
        line = await stage.told(heard, "completed")
        assert (line["finish_reason"], line["attempts"]) == ("stop", 1)
        assert reasons(heard) == ["stop"]
    assert asyncio.get_running_loop().time() - began < 3
    assert asked(stage) == [f"safe-{dialect}"] * len(ways_)
    if behind != "its body ends":  # then the connection may be kept
        await stage.hung_up()


async def test_whole_answer_with_malformed_framing_in_one_packet_completes(stage: Stage) -> None:
    """U14, U18."""
    last = chunk(token("openai", "lo") + REASON["openai"]) + b"zz\r\n"
    plays(stage, [sse_head(), openai_delta("Hel"), Pause(0.1), last, Hang()])
    await stage.complete_all(to("safe-openai"), "Hello")


@pytest.mark.parametrize("dialect", REASON)
async def test_whole_answer_is_not_waited_for_longer_than_its_usage(stage: Stage, dialect: str) -> None:
    """U14: the usage comes late, and is counted."""
    usage = openai_chunk({}, choices=[], usage={"prompt_tokens": 3, "completion_tokens": 7})
    if dialect == "anthropic":
        usage = REASON[dialect].replace(b'"output_tokens":2', b'"input_tokens":3,"output_tokens":7')
    plays(stage, [*opening(dialect, "Hi"), chunk(REASON[dialect]), Pause(0.3), chunk(usage), Hang()])
    for heard in await stage.complete_all(to(f"safe-{dialect}"), "Hi"):
        line = await stage.told(heard, "completed")
        assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (3, 7, "usage")


NO_REASON: dict[str, list[Step]] = {
    "openai": [OPENAI_DONE, LAST_CHUNK],
    "anthropic": [chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n'), LAST_CHUNK],
    "ollama": [chunk(b'{"model":"m","message":{"content":""},"done":true}\n'), LAST_CHUNK],
    "sse": [chunk(b"event: done\ndata: {}\n\n"), LAST_CHUNK],
}
WITH_REASON: dict[str, list[Step]] = {
    "sse": [chunk(b'event: done\ndata: {"finish_reason":"stop"}\n\n'), LAST_CHUNK],
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_end_without_a_reason_is_judged_by_what_the_target_does(stage: Stage, dialect: str) -> None:
    """U13: a target that never sends a reason ends with null; once it was seen to send one, that is a cut."""
    silent, name = [*opening(dialect, "Hel", "lo"), *NO_REASON[dialect]], f"auto-{dialect}"
    plays(stage, silent)
    for heard in await stage.complete_all(to(name), "Hello"):
        assert reasons(heard) == [None]
        assert (await stage.told(heard, "completed"))["finish_reason"] is None
    plays(stage, [*opening(dialect, "Hello"), *WITH_REASON.get(dialect, ending(dialect))])
    for heard in await stage.complete_all(to(name), "Hello"):
        assert reasons(heard) == ["stop"]
    plays(stage, silent)
    await stage.fail_all(to(name), "upstream_cut", 502, text="Hello", whole=True)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_rule_of_the_end_is_the_configurations(stage: Stage, dialect: str) -> None:
    """U13: `end: marker` and `end: finish_reason`, whatever the target did before."""
    plays(stage, [*opening(dialect, "Hello"), *WITH_REASON.get(dialect, ending(dialect))])
    for rule in ("marker", "finish_reason"):
        await stage.complete_all(to(f"{rule}-{dialect}", "chat"), "Hello")
    plays(stage, [*opening(dialect, "Hello"), *NO_REASON[dialect]])
    for heard in await stage.complete_all(to(f"marker-{dialect}"), "Hello"):
        assert reasons(heard) == [None]
    await stage.fail_all(to(f"finish_reason-{dialect}"), "upstream_cut", 502, text="Hello", whole=True)


async def test_end_marker_alone_is_no_answer(stage: Stage) -> None:
    """U13: a target that is not known, and says nothing before its marker; `end: marker` accepts that, too."""
    nothing = [sse_head(), ROLE, OPENAI_DONE, LAST_CHUNK]
    plays(stage, nothing)
    await stage.fail_all(to("auto-anthropic"), "upstream_protocol", 502, whole=True)
    await stage.complete_all(to("safe-openai"), "from the backup")
    await stage.complete_all(to("marker-openai"), "")


async def test_choice_without_a_reason_beside_one_with_a_reason_was_cut(stage: Stage) -> None:
    """U13: no reason is made up for it, streamed or gathered."""
    ends = b'data: {"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    plays(stage, [sse_head(), openai_delta("a"), chunk(ends), OPENAI_DONE, LAST_CHUNK])
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "n": 2}
    async with await request(f"{stage.gateway.url}/openai/auto-openai", method="POST", body=body) as answer:
        assert (answer.status, json.loads(await answer.body())["error"]["code"]) == (502, "upstream_cut")


async def test_interrupted_answer_is_rescued(stage: Stage) -> None:
    """U13: llama-cpp-python ends one answer for another with nothing but the marker."""
    plays(stage, [*opening("openai", "Hello"), *ending("openai")])
    await stage.complete_all(to("safe-openai", "chat"), "Hello")
    plays(stage, [*opening("openai", "half an ans"), OPENAI_DONE, LAST_CHUNK], answers("wer"))
    await stage.complete_all(to("safe-openai"), "half an answer")


async def test_finish_reasons_are_counted(stage: Stage) -> None:
    """The metric has every completed answer, by the provider's reason."""

    async def count(reason: str) -> float:
        name = f'gateway_finish_reasons_total{{reason="{reason}",route="/chat/marker-openai"}}'
        return sum(float(line.rpartition(" ")[2]) for line in await stage.metrics() if line.startswith(name))

    for reason, counted in [("length", "length"), ("novel", "other"), (None, "none"), ("stop", "stop")]:
        before = await count(counted)
        end = [chunk(openai_chunk({}, reason))] if reason else []
        plays(stage, [*opening("openai", "Hi"), *end, OPENAI_DONE, LAST_CHUNK])
        [heard] = await stage.complete_all(to("marker-openai", "chat"), "Hi")
        assert reasons(heard) == [reason]
        assert await count(counted) == before + 1


# -- errors ----------------------------------------------------------------------------------------------------------

SAID = b'{"code":"engine_broke","message":"The engine broke.","type":"server_error"}'
SHAPES: dict[str, bytes] = {
    "a field": b"error: %s\n\n" % SAID,
    "an object": b'data: {"error":%s}\n\n' % SAID,
    "an event": b"event: error\ndata: %s\n\n" % SAID,
    "bare": b"data: %s\n\n" % SAID,
    "an array": b'data: [{"error":%s}]\n\n' % SAID,
}
WORDS: dict[str, bytes] = {
    "detail": b'data: {"detail":"The engine broke."}\n\n',
    "words": b"data: Error: The engine broke.\n\n",
}


@pytest.mark.parametrize("shape", [*SHAPES, *WORDS])
async def test_error_outranks_the_end_marker(stage: Stage, shape: str) -> None:
    """U16: before a token and behind one; the fallback answers, or goes on."""
    said = chunk((SHAPES | WORDS)[shape])
    code = "engine_broke" if shape in SHAPES else "upstream_error"
    for start, text in ([], ""), ([ROLE], ""), ([ROLE, openai_delta("half an ans")], "half an ans"):
        script = [sse_head(), *start, said, OPENAI_DONE, LAST_CHUNK]
        plays(stage, script, answers("wer"))
        for heard in await stage.fail_all(to("marker-openai"), code, 502, text=text, whole=True):
            assert heard.error["message"] == "The engine broke."
        await stage.complete_all(to("safe-openai"), text + "wer")


async def test_failed_answer_is_no_part_of_a_chat(stage: Stage) -> None:
    """U16: nothing of it is told again to the model."""
    url = f"{stage.gateway.url}/chat/marker-openai"
    body = {"message": PROMPT, "session_id": "failed-1"}
    plays(stage, [sse_head(), ROLE, openai_delta("half an ans"), chunk(SHAPES["a field"]), OPENAI_DONE, LAST_CHUNK])
    for script in (None, openai_answer("Hi")):
        if script:
            plays(stage, script)
        async with await request(url, method="POST", body=body) as answer:
            await answer.body()
    await stage.at_rest()
    assert "half an ans" not in json.dumps(stage.upstream.exchanges[-1].json())


async def test_reason_that_says_failure_is_rescued_or_told(stage: Stage) -> None:
    """U16: finish_reason `error`."""
    script = [sse_head(), ROLE, openai_delta("half an ans"), chunk(openai_chunk({}, "error")), OPENAI_DONE, LAST_CHUNK]
    plays(stage, script, answers("wer"))
    await stage.fail_all(to("marker-openai"), "upstream_error", 502, text="half an ans", whole=True)
    await stage.complete_all(to("safe-openai"), "half an answer")


async def test_role_is_nothing_delivered_so_the_target_is_asked_again(stage: Stage) -> None:
    """U16: with two retries there are three attempts, streamed and not."""
    failing = [sse_head(), ROLE, chunk(b'data: {"error":{"code":502,"message":"No."}}\n\n'), LAST_CHUNK]
    plays(stage, failing)
    ways_ = to("patient")
    await stage.fail_all(ways_, "upstream_error", 502, whole=True)
    assert asked(stage) == ["patient"] * 3 * len(ways_)
    plays(stage, in_turn(failing, failing, openai_answer("Hi")))
    await stage.complete_all(ways_[:1], "Hi")
    assert asked(stage) == ["patient"] * 3


# -- bodies ----------------------------------------------------------------------------------------------------------

WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 80},
}
WHOLES: dict[str, Any] = {
    "openai": WHOLE,
    "anthropic": {
        "type": "message",
        "model": "m",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 20, "output_tokens": 60},
    },
    "ollama": {
        "model": "m",
        "message": {"role": "assistant", "content": "Hello"},
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": 20,
        "eval_count": 60,
    },
    "sse": {"content": "Hello", "finish_reason": "length", "usage": {"prompt_tokens": 20, "completion_tokens": 60}},
}
LABELS = (
    "application/json",
    "application/x-ndjson",
    "text/plain",
    "application/octet-stream",
    "text/event-stream",
    None,
)


def labelled(label: str | None, *body: bytes) -> list[Step]:
    """A body of this type, which ends with its connection."""
    start = http_head(200, label) if label else b"HTTP/1.1 200 OK\r\n\r\n"
    return [start, *body, Cut()]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_stream_under_any_label_is_delivered(stage: Stage, dialect: str) -> None:
    """U28."""
    said = [*opening(dialect, "Hel", "lo")[1:], *WITH_REASON.get(dialect, ending(dialect))]
    plays(stage, in_turn(*([_chunked_head(label), *said] for label in LABELS)))
    for heard in await stage.complete_all(to(f"marker-{dialect}") * 2, "Hello"):
        assert reasons(heard) == ["stop"]


async def test_stream_with_another_good_status_or_a_pages_label_is_delivered(stage: Stage) -> None:
    """U28: NestJS answers every POST with 201, PHP labels everything as a page; a page itself is none (U17)."""
    said = [*opening("openai", "Hello")[1:], OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
    for status, label in (201, "text/event-stream"), (200, "text/html"), (203, "text/html; charset=utf-8"):
        plays(stage, [http_head(status, label, Transfer_Encoding="chunked"), *said])
        await stage.complete_all(to("marker-openai"), "Hello")
    plays(stage, [*labelled("text/html", b"\n<p>private</p>")])
    await stage.fail_all(to("marker-openai"), "upstream_protocol", 502)


async def test_compressed_refusal_is_read(stage: Stage) -> None:
    """U22, U29: within the bound of a refusal; a bomb of spaces, and another coding, say nothing."""
    said = b'{"error":{"message":"prompt is too long: 5 tokens > 4 maximum"}}'
    for coding, body in (
        ("gzip", gzip.compress(said)),
        ("deflate", zlib.compress(said)),
        ("x-gzip", gzip.compress(said)),
    ):
        plays(stage, [response(400, body, Content_Encoding=coding)])
        await stage.complete_all(to("safe-openai"), "from the backup")
    for coding, body in ("gzip", gzip.compress(b" " * 5_000_000 + said)), ("br", b"\x0b\x02\x80x\x03"):
        plays(stage, [response(400, body, Content_Encoding=coding)])
        await stage.fail_all(to("safe-openai"), "upstream_refused", 400, whole=True)


def _chunked_head(label: str | None) -> bytes:
    kind = f"Content-Type: {label}\r\n" if label else ""
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{kind}\r\n".encode()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("indent", [None, 2], ids=["compact", "indented"])
async def test_whole_answer_for_a_stream_is_delivered(stage: Stage, dialect: str, indent: int | None) -> None:
    """U28: in the shape that the client wanted, with reason and usage."""
    if dialect == "ollama" and indent:
        return  # it sends lines, whatever it sends
    body = json.dumps(WHOLES[dialect], indent=indent).encode()
    plays(stage, in_turn(*(labelled(label, body) for label in LABELS)))
    for heard in await stage.complete_all(to(f"marker-{dialect}") * 2, "Hello"):
        assert reasons(heard) == ["length"]
        line = await stage.told(heard, "completed")
        assert (line["input_tokens"], line["output_tokens"]) == (20, 60)


async def test_whole_answer_whose_connection_stays_open_is_delivered(stage: Stage) -> None:
    """U14, U28."""
    plays(stage, [http_head(200, "application/json"), json.dumps(WHOLE).encode(), Hang()])
    await stage.complete_all(to("safe-openai"), "Hello")
    await stage.hung_up()


async def test_torn_whole_answer_is_a_cut(stage: Stage) -> None:
    """U13, U28: before anything was delivered, so that the fallback answers."""
    plays(stage, [http_head(200, "application/json", Content_Length="9999"), json.dumps(WHOLE).encode()[:-30], Cut()])
    await stage.fail_all(to("marker-openai"), "upstream_cut", 502)
    await stage.complete_all(to("safe-openai"), "from the backup")


@pytest.mark.parametrize("label", ["application/json", "text/plain", "text/event-stream"])
@pytest.mark.parametrize("body", ["{}", "[]", "null", "Internal Server Error", "<!doctype html><p>private</p>"])
async def test_body_that_is_no_answer_is_502_and_shows_nothing_of_it(stage: Stage, label: str, body: str) -> None:
    """U17: whatever its label says."""
    plays(stage, [*labelled(label, body.encode())])
    words = label == "text/event-stream" and body in ("null", "Internal Server Error")
    await stage.fail_all(to("marker-openai"), "upstream_cut" if words else "upstream_protocol", 502)
    await stage.complete_all(to("safe-openai"), "from the backup")


async def test_error_as_the_body_is_what_it_reports(stage: Stage) -> None:
    """U16, U28."""
    too_long = {"error": {"message": "maximum context length is 8192 tokens", "code": "context_length_exceeded"}}
    busy = {"error": {"message": "Slow down.", "code": 429}}
    for body, code, status in (too_long, "context_length_exceeded", 400), (busy, "upstream_rate_limited", 429):
        plays(stage, [response(200, json.dumps(body))])
        await stage.fail_all(to("marker-openai"), code, status, whole=True)
        await stage.complete_all(to("safe-openai"), "from the backup")


# -- odd fields and calls, through the whole gateway -------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_half_a_character_takes_no_text_away(stage: Stage, dialect: str) -> None:
    """U15b."""
    parts = [token(dialect, part) for part in ("KEPT @", "# more", "!@.")]
    halves = [part.replace(b"@", b"\\ud83d").replace(b"#", b"\\ude00") for part in parts]
    plays(stage, [*opening(dialect), *map(chunk, halves), *WITH_REASON.get(dialect, ending(dialect))])
    for heard in await stage.complete_all(to(f"marker-{dialect}"), "KEPT 😀 more!\ufffd."):
        assert "\\ud" not in heard.body


async def test_skipped_parts_are_counted_in_the_log(stage: Stage) -> None:
    """U15b."""
    odd = openai_chunk({"content": "Hi", "tool_calls": 5})
    plays(stage, [sse_head(), chunk(odd), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK])
    for heard in await stage.complete_all(to("marker-openai"), "Hi"):
        assert (await stage.gateway.logged("events_skipped", request_id=heard.request_id))["count"] == 1


async def test_parallel_calls_with_one_index_are_two(stage: Stage) -> None:
    """U31: in a whole answer, and in the numbers of the events of a chat."""
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
    ]
    said = [chunk(openai_chunk({"tool_calls": [one]})) for one in calls]
    plays(stage, [sse_head(), ROLE, *said, chunk(openai_chunk({}, "tool_calls")), OPENAI_DONE, LAST_CHUNK])
    whole, chat = await stage.ask_all([*to("marker-openai", "whole"), *to("marker-openai", "chat")])
    made = json.loads(whole.body)["choices"][0]["message"]["tool_calls"]
    assert [(one["id"], one["function"]["arguments"]) for one in made] == [("a", "{}"), ("b", '{"x":1}')]
    pieces = [message.json() for message in chat.messages if message.type == "tool"]
    assert [(one["index"], one["function"]["arguments"]) for one in pieces] == [(0, ""), (1, '{"x":1}'), (0, "{}")]


async def test_answers_with_filter_results_say_them_once(stage: Stage) -> None:
    """Four chunks that say `safe` are one statement."""
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    parts = [
        chunk(openai_chunk({}, choices=[{"index": 0, "delta": {"content": text}, "content_filter_results": safe}]))
        for text in "abcd"
    ]
    plays(stage, [sse_head(), *parts, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK])
    [heard] = await stage.complete_all(to("marker-openai", "whole"), "abcd")
    assert json.loads(heard.body)["choices"][0]["content_filter_results"] == safe
