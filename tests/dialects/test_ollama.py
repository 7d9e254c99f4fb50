"""Transcripts of Ollama chats, and chats translated for it."""

import json
from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.dialects import DIALECTS, Answer

from .transcripts import body_of, failed, same_for_every_cut, told

OLLAMA = DIALECTS["ollama"]
TEXT = '{"model":"qwen3","message":{"role":"assistant","content":"你好"},"done":false}\n'.encode()
THINK = b'{"model":"qwen3","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\r\n'
CALL = b'{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},"done":false}\n'
END = b'{"message":{"content":"!"},"done":true,"done_reason":"stop","prompt_eval_count":11,"eval_count":3}\n'


def answer_() -> Answer:
    return OLLAMA.answer()


def payload(**chat: Any) -> dict[str, Any]:
    return body_of(OLLAMA.call(chat, "http://h:11434", ""))


def test_reader_tells_a_whole_answer() -> None:
    answer = answer_()
    assert told(answer, THINK + TEXT + b"\n" + END + TEXT) == [("thinking", "hm"), ("token", "你好"), ("token", "!")]
    assert (answer.model, answer.finish_reason, answer.ended, answer.skipped) == ("qwen3", "stop", True, 0)
    assert answer.usage == Usage(11, 3)


def test_reader_does_not_depend_on_the_cut() -> None:
    assert same_for_every_cut(answer_, THINK + TEXT + CALL + b"{torn\n" + END)


def test_reader_tells_tool_calls_in_the_shape_of_openai() -> None:
    answer = answer_()
    calls = [json.loads(data) for kind, data in told(answer, CALL + CALL + END) if kind == "tool"]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert [call["index"] for call in calls] == [0, 1]
    assert answer.finish_reason == "tool_calls"


def test_reader_takes_a_last_line_without_lf() -> None:
    answer = answer_()
    assert told(answer, TEXT + END[:-1]) == [("token", "你好"), ("token", "!")]
    assert answer.ended


def test_reader_drops_a_torn_tail() -> None:
    answer = answer_()
    assert told(answer, TEXT + END[:-9]) == [("token", "你好")]
    assert (answer.complete, answer.skipped) == (False, 0)


def test_reader_reports_an_error() -> None:
    answer = answer_()
    assert told(answer, TEXT + b'{"error":"model runner stopped"}\n' + TEXT) == [("token", "你好")]
    assert (failed(answer).code, failed(answer).message) == ("upstream_error", "model runner stopped")


def test_reader_skips_noise() -> None:
    answer = answer_()
    assert told(answer, b'nonsense\n{"a":1}\n[]\n' + TEXT) == [("token", "你好")]
    assert answer.skipped == 3


def test_reader_reports_an_oversize_line_after_the_whole_ones() -> None:
    answer = answer_()
    assert told(answer, TEXT + b"x" * 3_000_000) == [("token", "你好")]
    assert failed(answer).code == "upstream_oversize"


@pytest.mark.parametrize("url", ["http://h", "http://h/", "http://h/api", "http://h/api/chat"])
def test_call_finds_the_api(url: str) -> None:
    assert OLLAMA.call({"messages": []}, url, "").url == "http://h/api/chat"


def test_call_maps_what_tunes_the_answer() -> None:
    sent = payload(messages=[], model="m", temperature=0.5, max_tokens=9, stop=["a"], seed=1, think=True)
    assert sent["options"] == {"temperature": 0.5, "num_predict": 9, "stop": ["a"], "seed": 1}
    assert (sent["stream"], sent["think"]) == (True, True)


def test_call_asks_for_json() -> None:
    schema = {"type": "object"}
    assert payload(messages=[], response_format={"type": "json_object"})["format"] == "json"
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert payload(messages=[], response_format=wanted)["format"] == schema


def test_call_translates_images_and_refuses_their_urls() -> None:
    def ask(url: str) -> Any:
        parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
        return payload(messages=[{"role": "user", "content": parts}])["messages"]

    assert ask("data:image/png;base64,AAAA") == [{"role": "user", "content": "what?", "images": ["AAAA"]}]
    with pytest.raises(GatewayError, match="bad_request"):
        ask("https://h/i.png")


def test_call_names_the_tool_of_a_result() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    sent = payload(
        messages=[{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "42"}],
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    assert sent["messages"][0]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]
    assert sent["messages"][1] == {"role": "tool", "content": "42", "tool_name": "f"}
    assert sent["tools"] == [{"type": "function", "function": {"name": "f"}}]


def left_out(**chat: Any) -> set[str]:
    return set(OLLAMA.call({"messages": [], **chat}, "http://h", "").left_out)


def test_call_asks_for_a_whole_answer_as_the_client_does() -> None:
    assert body_of(OLLAMA.call({"messages": []}, "http://h", "", plain=True))["stream"] is False
    assert payload(messages=[])["stream"] is True


def test_call_keeps_ollamas_own_parameters() -> None:
    sent = payload(messages=[], options={"num_ctx": 8192, "temperature": 0.1}, min_p=0.05, temperature=0.9, think=False)
    assert sent["options"] == {"num_ctx": 8192, "temperature": 0.1, "min_p": 0.05}
    assert sent["think"] is False
    assert payload(messages=[], keep_alive="1h", format="json")["keep_alive"] == "1h"


@pytest.mark.parametrize(("effort", "think"), [("none", False), ("minimal", "low"), ("high", "high")])
def test_call_thinks_as_hard_as_it_is_asked_to(effort: str, think: bool | str) -> None:
    assert payload(messages=[], reasoning_effort=effort)["think"] == think


def test_call_sends_the_one_tool_that_is_chosen_and_says_that_it_cannot_force_it() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    chat = {"messages": [], "tools": tools, "tool_choice": {"type": "function", "function": {"name": "g"}}}
    assert [tool["function"]["name"] for tool in payload(**chat)["tools"]] == ["g"]
    assert left_out(**chat) == {"tool_choice"}


def test_call_gives_thoughts_back() -> None:
    sent = payload(messages=[{"role": "assistant", "content": "a", "reasoning_content": "hm"}])
    assert sent["messages"] == [{"role": "assistant", "content": "a", "thinking": "hm"}]


def test_call_names_what_it_leaves_out() -> None:
    marked = [{"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]}]
    assert left_out(messages=marked, logit_bias={"1": 5}, parallel_tool_calls=False) == {
        "logit_bias",
        "messages.content.cache_control",
        "parallel_tool_calls",
    }
