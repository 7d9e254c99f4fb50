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
