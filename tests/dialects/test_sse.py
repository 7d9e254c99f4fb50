"""Transcripts of SSE endpoints nobody specified."""

import pytest

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.dialects import DIALECTS, Answer

from .transcripts import body_of, failed, same_for_every_cut, told

SSE = DIALECTS["sse"]


def answer_() -> Answer:
    return SSE.answer()


def tokens(*payloads: str) -> list[str]:
    return [data for _, data in told(answer_(), *(f"data: {payload}\n\n".encode() for payload in payloads))]


def test_reader_tells_bare_text_as_it_stands() -> None:
    answer = answer_()
    assert told(answer, "data: 你好\n\ndata:  world\n\ndata: 42\n\ndata: [DONE]\n\ndata: x\n\n".encode()) == [
        ("token", "你好"),
        ("token", " world"),
        ("token", "42"),
    ]
    assert (answer.ended, answer.skipped) == (True, 0)


@pytest.mark.parametrize("key", ["content", "text", "token", "delta", "response", "chunk"])
def test_reader_tells_text_under_its_usual_names(key: str) -> None:
    assert tokens(f'{{"{key}":"Hi"}}', f'{{"{key}":" there"}}') == ["Hi", " there"]


def test_reader_tells_json_strings() -> None:
    assert tokens('"Hi\\n"', '"there"') == ["Hi\n", "there"]


def test_reader_skips_noise_between_json() -> None:
    answer = answer_()
    assert len(told(answer, b'data: {"text":"a"}\n\ndata: {"text":\n\ndata: {"b":1}\n\ndata: {"text":"c"}\n\n')) == 2
    assert answer.skipped == 2


def test_reader_tells_json_the_model_writes_as_text() -> None:
    assert tokens("Look:", '{"a": 1}', "{", '"q"') == ["Look:", '{"a": 1}', "{", '"q"']


def test_reader_understands_openai_chunks() -> None:
    answer = answer_()
    hello = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    stop = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    assert told(answer, hello + hello + stop) == [("token", "Hi"), ("token", "Hi")]
    assert (answer.model, answer.complete, answer.ended) == ("m", True, False)


@pytest.mark.parametrize("name", ["done", "end", "complete", "close", "finish"])
def test_reader_ends_at_a_named_event(name: str) -> None:
    answer = answer_()
    assert told(answer, f'data: a\n\nevent: {name}\ndata: {{"full_text":"a"}}\n\n'.encode()) == [("token", "a")]
    assert answer.ended


@pytest.mark.parametrize("end", ['{"type":"done"}', '{"type":"end"}', '{"type":"complete","content":"Hi"}'])
def test_reader_ends_at_a_typed_object_without_repeating_its_text(end: str) -> None:
    assert tokens('{"type":"chunk","content":"Hi"}', end, '{"content":"x"}') == ["Hi"]


def test_reader_ends_after_the_text_of_a_done_object() -> None:
    assert tokens('{"content":"a","done":false}', '{"content":"b","done":true}', '{"content":"c"}') == ["a", "b"]


def test_reader_takes_reason_and_usage_from_the_end() -> None:
    answer = answer_()
    told(answer, b'event: done\ndata: {"finish_reason":"length","usage":{"input_tokens":3,"output_tokens":4}}\n\n')
    assert (answer.finish_reason, answer.usage) == ("length", Usage(3, 4))


@pytest.mark.parametrize("name", ["ping", "heartbeat", "connected", "start", "metadata"])
def test_reader_ignores_housekeeping(name: str) -> None:
    answer = answer_()
    events = f'event: {name}\ndata: {{"text":"x"}}\n\ndata: {{"type":"{name}","text":"x"}}\n\ndata: a\n\n'
    assert told(answer, events.encode()) == [("token", "a")]
    assert answer.skipped == 0


def test_reader_tells_thinking() -> None:
    assert told(answer_(), b'event: thinking\ndata: {"text":"hm"}\n\ndata: {"type":"reasoning","text":"so"}\n\n') == [
        ("thinking", "hm"),
        ("thinking", "so"),
    ]


@pytest.mark.parametrize(
    "event",
    ["event: error\ndata: no luck", 'data: {"error":"no luck"}', 'data: {"type":"error","message":"no luck"}'],
)
def test_reader_reports_errors(event: str) -> None:
    answer = answer_()
    assert told(answer, f"data: a\n\n{event}\n\ndata: b\n\n".encode()) == [("token", "a")]
    assert (failed(answer).code, failed(answer).message) == ("upstream_error", "no luck")


def test_reader_leaves_the_end_of_the_body_to_http() -> None:
    answer = answer_()
    told(answer, b"data: a\n\n")
    assert (answer.complete, answer.eof_ends, DIALECTS["openai"].answer().eof_ends) == (False, True, False)


def test_reader_does_not_depend_on_the_cut() -> None:
    whole = 'data: {"content":"你好"}\r\n\r\nevent: ping\ndata:\n\ndata: {oops\n\nevent: done\ndata: {}\n\n'
    assert same_for_every_cut(answer_, whole.encode())


def test_call_sends_the_last_question_and_the_session() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    call = SSE.call({"messages": messages, "session_id": "s1", "model": "m"}, "http://h/chat?x=1", "k")
    assert (call.url, call.headers["Authorization"]) == ("http://h/chat?x=1", "Bearer k")
    assert body_of(call) == {"message": "c", "messages": messages, "session_id": "s1", "stream": True}


def test_call_refuses_tools_and_names_what_it_leaves_out() -> None:
    sse = DIALECTS["sse"]
    with pytest.raises(GatewayError, match="'tools'"):
        sse.call({"messages": [], "tools": [{"function": {"name": "f"}}]}, "http://h", "")
    assert sse.call({"messages": [], "temperature": 0.5}, "http://h", "").left_out == {"temperature"}
