"""Transcripts of Anthropic message streams, and chats translated for them."""

import json
from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.dialects import DIALECTS, Answer

from .transcripts import body_of, failed, same_for_every_cut, told

ANTHROPIC = DIALECTS["anthropic"]


def frame(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n".encode()


START = frame(
    "message_start",
    message={"model": "claude-x", "usage": {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1}},
)
THINK = frame("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}) + frame(
    "content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}
)
TEXT = frame("content_block_start", index=1, content_block={"type": "text", "text": ""}) + frame(
    "content_block_delta", index=1, delta={"type": "text_delta", "text": "你好"}
)
TOOL = frame(
    "content_block_start", index=2, content_block={"type": "tool_use", "id": "t1", "name": "f", "input": {}}
) + frame("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"a":1}'})
END = frame("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}) + frame("message_stop")
WHOLE = START + frame("ping") + THINK + TEXT + frame("content_block_stop", index=1) + END


def answer_() -> Answer:
    return ANTHROPIC.answer()


def payload(**chat: Any) -> dict[str, Any]:
    return body_of(ANTHROPIC.call(chat, "https://api.example/v1", "k"))


def said(*messages: dict[str, Any]) -> Any:
    return payload(messages=list(messages))["messages"]


def test_reader_tells_a_whole_answer() -> None:
    answer = answer_()
    assert told(answer, WHOLE) == [("thinking", "hm"), ("token", "你好")]
    assert (answer.model, answer.finish_reason, answer.ended, answer.skipped) == ("claude-x", "stop", True, 0)
    assert answer.usage == Usage(25, 9)


def test_reader_does_not_depend_on_the_cut() -> None:
    assert same_for_every_cut(answer_, WHOLE)


def test_reader_tells_tool_calls_in_the_shape_of_openai() -> None:
    calls = [json.loads(data) for kind, data in told(answer_(), START + TEXT + TOOL + TOOL) if kind == "tool"]
    assert calls[0] == {"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert calls[1] == {"index": 0, "function": {"arguments": '{"a":1}'}}
    assert [call["index"] for call in calls] == [0, 0, 1, 1]


def test_reader_keeps_the_input_of_tools_it_runs_itself() -> None:
    server = TOOL.replace(b'"tool_use"', b'"server_tool_use"')
    assert told(answer_(), START + server) == []


def test_reader_counts_the_prompt_of_a_cut_answer() -> None:
    answer = answer_()
    answer.feed(START + TEXT)
    assert answer.usage == Usage(25, 2, "estimate")
    assert not answer.complete


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "something_new"),
    ],
)
def test_reader_maps_the_reason(theirs: str, ours: str) -> None:
    answer = answer_()
    answer.feed(frame("message_delta", delta={"stop_reason": theirs}))
    assert (answer.finish_reason, answer.complete) == (ours, True)


def test_reader_reports_an_error_that_comes_first() -> None:
    answer = answer_()
    answer.feed(frame("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    failure = failed(answer).failure()
    assert (failure.code, failure.message, failure.status, failure.retryable) == (
        "overloaded_error",
        "Overloaded",
        503,
        True,
    )


def test_reader_skips_what_it_does_not_know() -> None:
    answer = answer_()
    assert told(answer, b"data: {\n\n" + frame("novelty") + frame("content_block_delta", delta=3) + TEXT)
    assert (answer.skipped, answer.failure) == (3, None)


def test_call_sends_the_credential_and_a_limit() -> None:
    call = ANTHROPIC.call({"messages": [], "model": "claude-x"}, "https://api.example/v1", "k")
    assert call.url == "https://api.example/v1/messages"
    assert (call.headers["x-api-key"], call.headers["anthropic-version"]) == ("k", "2023-06-01")
    assert body_of(call) == {"model": "claude-x", "max_tokens": 4096, "stream": True, "messages": []}


def test_call_maps_what_tunes_the_answer() -> None:
    sent = payload(messages=[], max_tokens=5, max_completion_tokens=9, temperature=1.7, stop="END", user="u", seed=3)
    assert (sent["max_tokens"], sent["temperature"], sent["stop_sequences"]) == (9, 1.0, ["END"])
    assert sent["metadata"] == {"user_id": "u"}
    assert "seed" not in sent


def test_call_joins_the_instructions() -> None:
    sent = payload(
        messages=[
            {"role": "system", "content": "A"},
            {"role": "user", "content": "q"},
            {"role": "developer", "content": "B"},
        ]
    )
    assert sent["system"] == "A\n\nB"
    assert sent["messages"] == [{"role": "user", "content": [{"type": "text", "text": "q"}]}]


def test_call_merges_messages_of_one_role() -> None:
    turns = said(
        {"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": ""}
    )
    assert turns == [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]


def test_call_cuts_the_space_behind_an_answer_to_be_continued() -> None:
    assert (
        said({"role": "user", "content": "a"}, {"role": "assistant", "content": "b "})[1]["content"][0]["text"] == "b"
    )


def test_call_translates_tools_their_calls_and_results() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    turns = said(
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "user", "content": "and?"},
    )
    assert turns[1]["content"] == [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]
    assert [block["type"] for block in turns[2]["content"]] == ["tool_result", "text"]
    assert turns[2]["content"][0]["content"] == [{"type": "text", "text": "42"}]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
    ],
)
def test_call_translates_the_choice_of_tools(choice: Any, expected: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    sent = payload(messages=[], tools=[tool], tool_choice=choice)
    assert sent["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert sent["tool_choice"] == expected


def test_call_forbids_parallel_tools() -> None:
    sent = payload(messages=[], tools=[{"function": {"name": "f"}}], parallel_tool_calls=False)
    assert sent["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


def test_call_translates_images() -> None:
    urls = ("data:image/jpeg;base64,AAAA", "https://h/i.png")
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    sources = [block["source"] for block in said({"role": "user", "content": parts})[0]["content"]]
    assert sources == [
        {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"},
        {"type": "url", "url": "https://h/i.png"},
    ]


def test_call_asks_for_json_in_words() -> None:
    schema = {"type": "object", "required": ["a"]}
    sent = payload(messages=[], response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    assert '"required":["a"]' in sent["system"]


@pytest.mark.parametrize("content", [[{"type": "input_audio", "input_audio": {}}], 5, [5]])
def test_call_refuses_content_it_cannot_say(content: Any) -> None:
    with pytest.raises(GatewayError) as caught:
        said({"role": "user", "content": content})
    assert caught.value.code == "bad_request"
