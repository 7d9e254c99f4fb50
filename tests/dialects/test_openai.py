"""Transcripts of OpenAI chat.completions streams, as they should be and as they are."""

import json

import pytest

from gateway.core.event import Usage
from gateway.dialects import DIALECTS, Answer

from .transcripts import Make, body_of, failed, same_for_every_cut, state, told

OPENAI = DIALECTS["openai"]
ROLE = (
    b'data: {"model":"m-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
)
HELLO = b'data: {"model":"m-1","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}\n\n'
NIHAO = 'data: {"model":"m-1","choices":[{"index":0,"delta":{"content":"你好。"},"finish_reason":null}]}\n\n'.encode()
STOP = b'data: {"model":"m-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
USAGE = b'data: {"model":"m-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + HELLO + NIHAO + STOP + USAGE + DONE


def payload(frame: bytes) -> tuple[str, str]:
    return "chunk", frame.decode()[6:-2]


def text() -> Answer:
    return OPENAI.answer()


def kept() -> Answer:
    return OPENAI.answer(keep_chunks=True)


def test_text_reader_tells_a_whole_answer() -> None:
    answer = text()
    assert told(answer, WHOLE) == [("token", "Hello"), ("token", "你好。")]
    assert (answer.model, answer.finish_reason, answer.ended) == ("m-1", "stop", True)
    assert answer.usage == Usage(7, 2)
    assert answer.deltas == 4  # 14 bytes of UTF-8


def test_chunk_reader_keeps_chunks_to_the_letter_and_hides_the_usage() -> None:
    answer = kept()
    assert told(answer, WHOLE) == [payload(frame) for frame in (ROLE, HELLO, NIHAO, STOP)]
    assert (answer.model, answer.finish_reason, answer.usage) == ("m-1", "stop", Usage(7, 2))
    assert answer.deltas == 4


def test_chunk_reader_keeps_the_usage_for_who_asked() -> None:
    assert told(OPENAI.answer(keep_chunks=True, keep_usage=True), WHOLE)[-1] == payload(USAGE)


def test_chunk_reader_keeps_no_names_and_numbers_of_the_upstreams_own() -> None:
    answer, frames = kept(), [ROLE, HELLO, b"id: 1\n" + HELLO, b"event: message\nid: 2\n" + HELLO, HELLO, DONE]
    events = [event for frame in frames for event in answer.feed(frame)]
    assert [(event.type, event.data, event.id) for event in events] == [
        (*payload(frame), "") for frame in (ROLE, HELLO, HELLO, HELLO, HELLO)
    ]


@pytest.mark.parametrize("make", [text, kept])
def test_reader_does_not_depend_on_the_cut(make: Make) -> None:
    assert same_for_every_cut(make, b"\xef\xbb\xbf: hi\r\n\r\n" + WHOLE)


@pytest.mark.parametrize("make", [text, kept])
def test_reader_takes_an_answer_without_done_as_complete(make: Make) -> None:
    answer = make()
    told(answer, HELLO + STOP + USAGE)
    assert (answer.complete, answer.ended, answer.usage) == (True, False, Usage(7, 2))


@pytest.mark.parametrize("make", [text, kept])
def test_reader_never_takes_a_cut_answer_as_complete(make: Make) -> None:
    answer = make()
    assert len(told(answer, HELLO + NIHAO[:-1])) == 1
    assert not answer.complete


@pytest.mark.parametrize("make", [text, kept])
def test_reader_ignores_what_follows_done(make: Make) -> None:
    assert len(told(make(), HELLO + DONE + HELLO, HELLO)) == 1


@pytest.mark.parametrize("make", [text, kept])
def test_reader_keeps_text_reason_and_usage_of_one_chunk(make: Make) -> None:
    usage = b'{"prompt_tokens":1,"completion_tokens":1}'
    last = HELLO.replace(b"null}]}", b'"length"}],"usage":' + usage + b"}")
    answer = make()
    assert len(told(answer, HELLO + last)) == 2
    assert (answer.finish_reason, answer.usage) == ("length", Usage(1, 1))


@pytest.mark.parametrize("make", [text, kept])
@pytest.mark.parametrize(
    "noise", [b"{not json", b"[]", b'"x"', b"null", b'{"a":1}', b'{"choices":[null]}', b"[" * 100_000]
)
def test_reader_skips_noise_and_goes_on(make: Make, noise: bytes) -> None:
    answer = make()
    assert len(told(answer, HELLO + b"data: " + noise + b"\n\n" + HELLO)) == 2
    assert (answer.skipped, answer.failure) == (1, None)


@pytest.mark.parametrize("make", [text, kept])
def test_reader_takes_empty_choices_as_normal(make: Make) -> None:
    answer = make()
    told(answer, b'data: {"choices":[],"prompt_filter_results":[]}\n\ndata: {"choices":null,"usage":{}}\n\n' + HELLO)
    assert (answer.skipped, answer.usage, answer.failure) == (0, None, None)


@pytest.mark.parametrize("make", [text, kept])
@pytest.mark.parametrize("count", ["-1", "1e30", '"7"', "true", "null", "[]"])
def test_reader_drops_absurd_usage(make: Make, count: str) -> None:
    answer = make()
    told(answer, f'data: {{"choices":[],"usage":{{"prompt_tokens":{count},"completion_tokens":1}}}}\n\n'.encode())
    assert answer.usage is None


@pytest.mark.parametrize("make", [text, kept])
def test_reader_reports_an_error_object_under_the_providers_code(make: Make) -> None:
    answer = make()
    error = b'data: {"error":{"message":"slow\\u0000 down","type":"requests","code":"rate_limit_exceeded"}}\n\n'
    assert len(told(answer, HELLO + error + HELLO)) == 1
    failure = failed(answer).failure()
    assert (failure.code, failure.message, failure.status, failure.retryable) == (
        "rate_limit_exceeded",
        "slow  down",
        429,
        True,
    )


@pytest.mark.parametrize("make", [text, kept])
def test_reader_reports_a_named_error_event(make: Make) -> None:
    answer = make()
    told(answer, b'event: error\ndata: {"error":{"message":"boom","type":"server_error"}}\n\n')
    assert (failed(answer).code, failed(answer).status) == ("server_error", 502)


@pytest.mark.parametrize("make", [text, kept])
def test_reader_reports_an_oversize_line_after_the_whole_events(make: Make) -> None:
    answer = make()
    assert len(told(answer, HELLO, HELLO + b"data: " + b"x" * 3_000_000, HELLO)) == 2
    assert failed(answer).code == "upstream_oversize"


def test_chunk_reader_waits_for_the_last_of_several_choices() -> None:
    def frame(index: int, reason: str) -> bytes:
        return b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":%s}]}\n\n' % (index, reason.encode())

    answer = kept()
    answer.feed(frame(0, "null") + frame(1, "null") + frame(0, '"stop"'))
    assert not answer.complete
    answer.feed(frame(1, '"length"'))
    assert (answer.complete, answer.finish_reason) == (True, "stop")


def test_text_reader_reads_the_first_choice_only() -> None:
    second = HELLO.replace(b'"index":0', b'"index":1')
    assert told(text(), second + HELLO) == [("token", "Hello")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_text_reader_tells_thinking(key: str) -> None:
    thought = ROLE.replace(b'"content":""', f'"content":null,"{key}":"hm"'.encode())
    assert told(text(), thought + thought + HELLO) == [("thinking", "hm"), ("thinking", "hm"), ("token", "Hello")]


def test_text_reader_tells_content_in_parts() -> None:
    parts = b'[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"Yes"}]'
    assert told(text(), HELLO.replace(b'"Hello"', parts)) == [("thinking", "hm"), ("token", "Yes")]


def test_text_reader_tells_tool_calls_one_by_one() -> None:
    calls = b'[{"index":0,"id":"a","function":{"name":"f","arguments":""}},{"index":1,"function":{"arguments":"{"}}]'
    events = told(text(), HELLO + HELLO.replace(b'"content":"Hello"', b'"tool_calls":' + calls))[1:]
    assert [json.loads(data) for kind, data in events if kind == "tool"] == json.loads(calls)


def test_text_reader_tells_a_refusal_as_text() -> None:
    assert told(text(), HELLO.replace(b'"content":', b'"refusal":')) == [("token", "Hello")]


def test_ordinary_and_first_chunks_are_read_alike() -> None:
    first, later = text(), text()
    later.feed(ROLE)
    assert told(first, HELLO + NIHAO) == told(later, HELLO + NIHAO)
    assert state(first) == state(later)


def test_call_asks_for_a_stream_with_usage_and_keeps_the_rest() -> None:
    chat = {"model": "m", "messages": [], "logit_bias": {"1": 2}, "stream_options": {"x": 1}}
    call = OPENAI.call(chat, "https://api.example/v1/", "k")
    assert (call.method, call.url) == ("POST", "https://api.example/v1/chat/completions")
    assert call.headers["Authorization"] == "Bearer k"
    assert body_of(call) == {**chat, "stream": True, "stream_options": {"x": 1, "include_usage": True}}
    assert chat["stream_options"] == {"x": 1}


def test_call_keeps_a_query_and_sends_no_empty_credential() -> None:
    call = OPENAI.call({"messages": []}, "http://h/openai/deployments/d?api-version=1", "")
    assert call.url == "http://h/openai/deployments/d/chat/completions?api-version=1"
    assert "Authorization" not in call.headers


def test_reader_of_several_choices_knows_a_cut_from_an_end_before_all_have_begun() -> None:
    answer = kept()
    answer.choices = 2
    answer.feed(HELLO + STOP)
    assert not answer.complete
    answer.close()
    assert answer.complete  # a server that knows of no second choice


def test_reader_of_several_choices_needs_no_end_when_all_have_finished() -> None:
    answer = kept()
    answer.choices = 2
    for frame in (HELLO, STOP):
        answer.feed(frame + frame.replace(b'"index":0', b'"index":1'))
    assert answer.complete


def test_call_for_a_whole_answer_is_the_clients_own() -> None:
    chat = {"model": "m", "messages": [], "stream": False, "seed": 1}
    call = DIALECTS["openai"].call(chat, "http://h/v1", "", plain=True)
    assert body_of(call) == chat
    assert (call.added, call.headers["Accept"]) == (frozenset(), "application/json")


def test_call_says_what_it_added_of_its_own_accord() -> None:
    mine = DIALECTS["openai"].call({"messages": []}, "http://h", "")
    theirs = DIALECTS["openai"].call({"messages": [], "stream_options": {"include_usage": True}}, "http://h", "")
    assert (set(mine.added), set(theirs.added)) == ({"stream_options"}, set())


def test_chunk_reader_hides_a_usage_that_comes_with_an_empty_choice() -> None:
    counts = b'"usage":{"prompt_tokens":3,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":2}}'
    counted = b'data: {"model":"m","choices":[{"index":0,"delta":{}}],%s}\n\n' % counts
    spoken = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"x"}}],%s}\n\n' % counts
    openai = DIALECTS["openai"]
    for keep_usage, expected in ((False, 1), (True, 2)):
        answer = openai.answer(keep_chunks=True, keep_usage=keep_usage)
        assert len(told(answer, spoken + counted + b"data: [DONE]\n\n")) == expected
        assert answer.usage == Usage(3, 5, cached_input=2)
