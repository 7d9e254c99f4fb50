"""Transcripts of Anthropic message streams, and chats translated for them."""

import json
import re
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
    assert answer.usage == Usage(25, 9, cached_input=20)


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


def left_out(**chat: Any) -> set[str]:
    return set(ANTHROPIC.call({"messages": [], **chat}, "https://api.example/v1", "k").left_out)


def test_call_asks_for_a_whole_answer_as_the_client_does() -> None:
    call = ANTHROPIC.call({"messages": [], "model": "claude-x"}, "https://api.example/v1", "k", plain=True)
    assert "stream" not in body_of(call)
    assert (call.plain, call.headers["Accept"]) == (True, "application/json")


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("claude-opus-4-7", 128_000),
        ("claude-opus-4-1-20250805", 32_000),
        ("claude-sonnet-4-5", 64_000),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", 64_000),
        ("anthropic/claude-3.5-sonnet", 8192),
        ("claude-3-haiku-20240307", 4096),
        ("some-other-model", 4096),
    ],
)
def test_call_without_a_limit_has_the_models_own(model: str, limit: int) -> None:
    assert payload(messages=[], model=model)["max_tokens"] == limit


def test_call_leaves_blank_texts_out() -> None:
    parts = [{"type": "text", "text": " \n"}, {"type": "text", "text": "a"}, {"type": "text", "text": ""}]
    assert said({"role": "user", "content": " "}, {"role": "user", "content": parts}) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}]}
    ]


@pytest.mark.parametrize("named", ["image/jpg", "IMAGE/JPEG", "image/pjpeg"])
def test_call_names_media_types_as_they_are_registered(named: str) -> None:
    [message] = said({"role": "user", "content": [{"type": "image_url", "image_url": f"data:{named};base64,QQ=="}]})
    assert message["content"][0]["source"]["media_type"] == "image/jpeg"


def test_call_keeps_marks_of_the_cache_on_parts_messages_and_tools() -> None:
    mark = {"type": "ephemeral"}
    sent = payload(
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "A", "cache_control": mark}]},
            {"role": "user", "content": "q", "cache_control": mark},
        ],
        tools=[{"type": "function", "function": {"name": "f"}, "cache_control": mark}],
    )
    assert sent["system"] == [{"type": "text", "text": "A", "cache_control": mark}]
    assert sent["messages"][0]["content"] == [{"type": "text", "text": "q", "cache_control": mark}]
    assert sent["tools"][0]["cache_control"] == mark
    assert left_out(messages=[{"role": "user", "content": "q", "cache_control": mark}]) == set()


@pytest.mark.parametrize(("effort", "limit", "budget"), [("low", 64_000, 2048), ("high", 4096, 3276)])
def test_call_thinks_within_the_limit(effort: str, limit: int, budget: int) -> None:
    sent = payload(messages=[], model="claude-sonnet-4-5", reasoning_effort=effort, max_tokens=limit, temperature=0.2)
    assert sent["thinking"] == {"type": "enabled", "budget_tokens": budget}
    assert "temperature" not in sent  # which Anthropic refuses beside it


def test_call_tells_an_effort_to_models_that_decide_themselves() -> None:
    sent = payload(messages=[], model="claude-opus-4-7", reasoning_effort="medium")
    assert (sent["thinking"], sent["output_config"]) == ({"type": "adaptive"}, {"effort": "medium"})


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 900},
        {"tools": [{"function": {"name": "f"}}], "tool_choice": "required"},
        {"messages": [{"role": "tool", "tool_call_id": "a", "content": "1"}]},
    ],
)
def test_call_does_not_think_where_anthropic_would_refuse_it(more: dict[str, Any]) -> None:
    chat = {"messages": [], "model": "claude-sonnet-4-5", "reasoning_effort": "low", **more}
    assert "thinking" not in payload(**chat)
    assert left_out(**chat) == {"reasoning_effort"}


def test_call_keeps_thinking_that_is_asked_for_in_anthropics_own_words() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000}
    assert payload(messages=[], thinking=thinking, reasoning_effort="high")["thinking"] == thinking


def test_call_maps_ids_to_anthropics_alphabet_the_same_in_call_and_result() -> None:
    calls = [{"id": theirs, "function": {"name": "f"}} for theirs in ("functions.Bash:0", "functions_Bash_0", "a-1")]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in calls]
    turns = said({"role": "assistant", "tool_calls": calls}, *results)
    made = [block["id"] for block in turns[0]["content"]]
    assert made == [block["tool_use_id"] for block in turns[1]["content"]]
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", name) for name in made)
    assert (len(set(made)), made[1:]) == (3, ["functions_Bash_0", "a-1"])


def test_call_tells_calls_with_one_id_apart() -> None:
    call = {"id": "call_0", "function": {"name": "f"}}
    result = {"role": "tool", "tool_call_id": "call_0", "content": "x"}
    asks = {"role": "assistant", "tool_calls": [call]}
    turns = said(asks, result, asks, result)
    assert [turn["content"][0].get("id") or turn["content"][0]["tool_use_id"] for turn in turns] == [
        "call_0",
        "call_0",
        "call_0_2",
        "call_0_2",
    ]


def test_call_tells_who_the_user_is() -> None:
    assert payload(messages=[], metadata={"user_id": "u1"})["metadata"] == {"user_id": "u1"}
    assert payload(messages=[], safety_identifier="u2")["metadata"] == {"user_id": "u2"}
    assert left_out(metadata={"topic": "x"}) == {"metadata"}


def test_call_gives_every_schema_its_type() -> None:
    tools = [{"function": {"name": "f", "parameters": {"properties": {"a": {}}}}}]
    assert payload(messages=[], tools=tools)["tools"][0]["input_schema"] == {"type": "object", "properties": {"a": {}}}


def test_call_says_that_it_leaves_a_blank_stop_out() -> None:
    chat = {"messages": [], "stop": ["\n", "END"]}
    assert (payload(**chat)["stop_sequences"], left_out(**chat)) == (["END"], {"stop"})


def test_call_names_what_it_leaves_out() -> None:
    chat = {
        "messages": [{"role": "user", "name": "Ann", "content": "q"}],
        "seed": 0,
        "frequency_penalty": 0.5,
        "presence_penalty": 0,
        "logit_bias": {},
        "store": False,
        "verbosity": "low",
        "n": 1,
    }
    assert left_out(**chat) == {"seed", "frequency_penalty", "verbosity", "messages.name"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("tool_choice", "sometimes"),
        ("reasoning_effort", "enormous"),
    ],
)
def test_call_refuses_by_name_what_it_cannot_express(name: str, value: Any) -> None:
    for dialect in (ANTHROPIC, DIALECTS["ollama"]):
        with pytest.raises(GatewayError, match=f"'{name}'") as refusal:
            dialect.call({"messages": [], name: value}, "http://h", "")
        assert (refusal.value.code, refusal.value.status) == ("bad_request", 400)


@pytest.mark.parametrize(
    "message",
    [{"role": "function", "name": "f", "content": "1"}, {"role": "wizard"}, {"role": "user", "audio": {"id": "a"}}],
)
def test_call_refuses_messages_it_cannot_express(message: dict[str, Any]) -> None:
    with pytest.raises(GatewayError, match="does not take"):
        said(message)


def test_call_sends_a_refusal_of_the_model_as_its_text() -> None:
    content = [{"type": "refusal", "refusal": "I will not."}]
    for message in ({"content": None, "refusal": "I will not."}, {"content": content}):
        assert said({"role": "assistant", **message})[0]["content"] == [{"type": "text", "text": "I will not."}]


def test_prefilled_call_does_not_think() -> None:
    chat = {"messages": [], "model": "claude-sonnet-4-5", "reasoning_effort": "high"}
    assert "thinking" not in payload(**ANTHROPIC.prefilled(chat, "The quick"))
