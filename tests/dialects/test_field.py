"""What servers were really seen to send: errors, odd fields, calls, bodies (U13-U16, U28, U31)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.event import Usage
from gateway.dialects import DIALECTS, Answer
from gateway.formats import Completion, View
from gateway.formats.completion import text_of

from .transcripts import Make, failed, outcome, same_for_every_cut, told

DONE = "data: [DONE]\n\n"


def chunk(delta: Any = None, **more: Any) -> str:
    """A chunk of one choice; half a character stands in it as an escape, as servers send it."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": None}
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**head, 'choices': [choice | more]})}\n\n"


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, finish_reason="stop")


def text() -> Answer:
    return DIALECTS["openai"].answer()


def kept() -> Answer:
    return DIALECTS["openai"].answer(keep_chunks=True)


def plain() -> Answer:
    return DIALECTS["openai"].answer(keep_chunks=True, keep_usage=True, plain=True)


def anthropic() -> Answer:
    return DIALECTS["anthropic"].answer()


def ollama() -> Answer:
    return DIALECTS["ollama"].answer()


def sse() -> Answer:
    return DIALECTS["sse"].answer()


BOTH = pytest.mark.parametrize("make", [text, kept])


def message(answer: Answer, *reads: str) -> dict[str, Any]:
    """What a client that wants the answer whole gets of these reads."""
    completion = Completion()
    for data in reads:
        for event in answer.feed(data.encode()):
            completion.add(event)
    for event in answer.close():
        completion.add(event)
    found: dict[str, Any] = completion.result(View("s1", "", "", 0), None)["choices"][0]["message"]
    return found


def said(answer: Answer, *reads: str) -> str:
    """The text of an answer that arrives in these reads."""
    return text_of(message(answer, *reads))


# -- errors ------------------------------------------------------------------------------------------------------------

BROKEN = '{"code":"engine_broke","message":"The engine broke.","type":"server_error"}'
ERRORS = {
    "a field named error": f"error: {BROKEN}\n\n",
    "a field named error, in the same block": f"error: {BROKEN}\n",
    "an object": f'data: {{"error":{BROKEN}}}\n\n',
    "a named event": f"event: error\ndata: {BROKEN}\n\n",
    "an array": f'data: [{{"error":{BROKEN}}}]\n\n',
    "bare": f"data: {BROKEN}\n\n",
    "bare JSON, which is no event": f'{{"error":{BROKEN}}}\n\n',
    "detail": 'data: {"detail":"The engine broke."}\n\n',
    "detail in a list": 'data: {"detail":[{"msg":"The engine broke."}]}\n\n',
    "errors": f'data: {{"success":false,"errors":[{BROKEN}]}}\n\n',
    "words": "data: Error: The engine broke.\n\n",
    "words in a field": "error: The engine broke.\n\n",
    "in a string": 'data: "Error: The engine broke."\n\n',
    "an event with a name of failure": f"event: exception\ndata: {BROKEN}\n\n",
    "a stream error": 'event: stream_error\ndata: {"message":"The engine broke."}\n\n',
    "no success": 'data: {"success":false,"message":"The engine broke."}\n\n',
    "error_msg": 'data: {"error_code":336100,"error_msg":"The engine broke."}\n\n',
    "beside null": 'data: {"choices":null,"error_type":"x","error_message":"The engine broke."}\n\n',
    "beside no choices": 'data: {"choices":[],"error_type":"x","error_msg":"The engine broke."}\n\n',
    "a mark": 'data: {"is_error":true,"message":"The engine broke."}\n\n',
    "named for its class": 'data: {"modelStreamErrorException":{"message":"The engine broke."}}\n\n',
    "in a response": 'data: {"response":{"error":{"code":"server_error","message":"The engine broke."}}}\n\n',
    "in data": 'data: {"data":{"error":{"message":"The engine broke."}}}\n\n',
    "in a header": 'data: {"header":{"code":10907,"message":"The engine broke.","status":2}}\n\n',
    "with capitals": 'data: {"Response":{"Error":{"Code":"Broke","Message":"The engine broke."}}}\n\n',
    "ErrorMsg": 'data: {"ErrorMsg":{"Code":4001,"Msg":"The engine broke."}}\n\n',
    "exception": 'data: {"exception":"The engine broke."}\n\n',
    "retcode": 'data: {"retcode":1003,"msg":"The engine broke."}\n\n',
    "a compound name": 'event: llm_error\ndata: {"message":"The engine broke."}\n\n',
    "in a delta": f'data: {{"choices":[{{"index":0,"delta":{{"content":"","error":{BROKEN}}}}}]}}\n\n',
    "beside choices": f'data: {{"error":{BROKEN},"choices":[{{"index":0,"delta":{{"content":"x"}}}}]}}\n\n',
}


@BOTH
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("before", ["", ROLE, ROLE + chunk({"content": "half"})], ids=["first", "role", "text"])
def test_error_in_any_shape_outranks_the_end_marker(make: Make, error: str, before: str) -> None:
    answer = make()
    told(answer, (before + ERRORS[error] + DONE).encode())
    assert (failed(answer).message, failed(answer).status) == ("The engine broke.", 502)
    assert not answer.ended


@BOTH
@pytest.mark.parametrize("missing", ["\n", "\n\n"])
def test_error_is_read_at_once_without_its_line_end(make: Make, missing: str) -> None:
    answer = make()
    answer.feed((chunk({"content": "Hi"}) + ERRORS["an object"].removesuffix(missing)).encode())
    assert failed(answer).code == "engine_broke"


@BOTH
@pytest.mark.parametrize("error", ERRORS)
def test_error_reads_the_same_for_every_cut(make: Make, error: str) -> None:
    before = ROLE + chunk({"content": "half"})
    assert same_for_every_cut(make, (before + ERRORS[error] + DONE).encode(), since=len(before) - 2)


@BOTH
@pytest.mark.parametrize(
    "reason",
    [
        *("error", "ERROR", "abort", "network_error", "insufficient_system_resource", "model_error", "timed_out"),
        *("USER_CANCEL", "engine_shutdown", "rate_limit_exceeded", "MALFORMED_FUNCTION_CALL", "error_finish"),
        *("function_call_filter: UNEXPECTED_TOOL_CALL", "malformed_model_output", "serverOverloaded"),
    ],
)
def test_reason_that_says_failure_is_no_end(make: Make, reason: str) -> None:
    answer = make()
    events = told(answer, (ROLE + chunk({"content": "half"}) + chunk({}, finish_reason=reason) + DONE).encode())
    assert "half" in events[-1][1]
    assert (failed(answer).code, answer.finish_reason, answer.complete) == ("upstream_error", "", False)


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_ollama_that_only_loaded_its_model_has_not_answered(reason: str) -> None:
    """Source: can1357/oh-my-pi#7465."""
    answer = ollama()
    line = {"model": "q", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason}
    told(answer, json.dumps(line).encode() + b"\n")
    assert (failed(answer).code, failed(answer).retryable, answer.ended) == ("upstream_error", True, False)


@BOTH
def test_error_of_a_choice_is_told(make: Make) -> None:
    answer = make()
    broken = chunk({"content": ""}, error={"code": 502, "message": "Provider disconnected"}, finish_reason="error")
    told(answer, (ROLE + broken + DONE).encode())
    assert (failed(answer).code, failed(answer).message) == ("upstream_error", "Provider disconnected")


@BOTH
@pytest.mark.parametrize("error", ERRORS)
def test_error_behind_a_whole_answer_is_none(make: Make, error: str) -> None:
    answer = make()
    told(answer, (ROLE + chunk({"content": "Hi"}) + STOP + ERRORS[error] + DONE).encode())
    assert (answer.failure, answer.finish_reason, answer.ended) == (None, "stop", True)


def test_failure_that_only_its_event_names_has_the_name_as_its_code() -> None:
    """Source: AWS, event streams."""
    for make in (text, kept, anthropic):
        answer = make()
        told(answer, b'event: throttlingException\ndata: {"message":"Too many tokens, please wait."}\n\n')
        assert failed(answer).code == "throttlingException"
        assert answer.failure is not None
        assert answer.failure.means == "upstream_rate_limited"


@BOTH
@pytest.mark.parametrize(
    "noise",
    [
        '{"code":0,"message":"ok"}',
        '{"success":true,"message":"ok"}',
        '{"code":200,"msg":"success"}',
        '{"detail":null}',
        "5",
    ],
)
def test_success_is_no_error(make: Make, noise: str) -> None:
    answer = make()
    assert said(answer, chunk({"content": "Hi"}), f"data: {noise}\n\n", STOP) == "Hi"
    assert (answer.failure, answer.skipped) == (None, 1)


@pytest.mark.parametrize("last", ["data: [DONE]", "data: [DONE]\n", STOP[:-1], f'data: {{"error":{BROKEN}}}\n'])
@BOTH
def test_last_words_count_without_their_blank_line(make: Make, last: str) -> None:
    answer = make()
    assert said(answer, chunk({"content": "Hi"}) + last) == "Hi"
    assert answer.complete or failed(answer).code == "engine_broke"


def test_anthropic_and_ollama_read_errors_in_words() -> None:
    for make, error in [
        (anthropic, "error: Overloaded\n\n"),
        (anthropic, 'data: {"detail":"Overloaded"}\n\n'),
        (anthropic, 'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"error"}}\n\n'),
        (ollama, '{"message":{"content":""},"done":true,"done_reason":"error"}\n'),
        (ollama, 'data: {"error":"Overloaded"}\n'),
        (sse, "data: Error: Overloaded\n\n"),
        (sse, 'data: {"content":"a"}\n\ndata: {"finish_reason":"error"}\n\n'),
    ]:
        answer = make()
        told(answer, error.encode())
        # "Overloaded" is understood; a bare "error" says nothing more.
        assert failed(answer).status == (503 if "Overloaded" in error else 502)
        assert not answer.complete


@pytest.mark.parametrize(
    "error",
    [
        'event: exception\ndata: {"message":"It broke."}\n\n',
        "event: exception\ndata: It broke.\n\n",
        'data: {"status":"error","text":"It broke."}\n\n',
        'data: {"type":"error","content":"It broke."}\n\n',
        'data: {"success":false,"message":"It broke."}\n\n',
    ],
)
def test_home_made_endpoint_that_says_failure_has_failed(error: str) -> None:
    answer = sse()
    assert told(answer, f'data: {{"content":"half"}}\n\n{error}'.encode()) == [("token", "half")]
    assert failed(answer).message == "It broke."
    tools = sse()
    assert said(tools, 'data: {"type":"tool_error","message":"x"}\n\ndata: {"content":"Hi"}\n\n') == "Hi"


@pytest.mark.parametrize(
    "stream",
    [
        "data: data: Hi\ndata: \n\ndata: data:  you\ndata: \n\ndata: data: [DONE]\n\n",
        'data: data: {"content":"Hi"}\n\ndata: data: {"content":" you"}\n\ndata: data: [DONE]\n\n',
        'data: {"content":"Hi"}\ndata: {"content":" you"}\ndata: [DONE]\n\n',
    ],
)
def test_home_made_events_without_blank_lines_or_with_data_twice_are_read(stream: str) -> None:
    answer = sse()
    assert (said(answer, stream), answer.ended, answer.failure) == ("Hi you", True, None)


def test_bare_text_keeps_its_lines() -> None:
    assert said(sse(), 'data: one\ndata: {"two":2}\n\n') == 'one\n{"two":2}'


def test_bare_text_may_speak_of_errors() -> None:
    answer = sse()
    assert told(answer, b"data: Look:\n\ndata: Error: is what it says\n\n")[1] == ("token", "Error: is what it says")


# -- nothing is no answer --------------------------------------------------------------------------------------------

MARKERS: list[tuple[Make, str]] = [
    (text, ROLE + DONE),
    (kept, ROLE + DONE),
    (kept, DONE),
    (anthropic, 'data: {"type":"message_start","message":{}}\n\ndata: {"type":"message_stop"}\n\n'),
    (ollama, '{"message":{"content":""},"done":true}\n'),
]


@pytest.mark.parametrize(("make", "stream"), MARKERS)
def test_end_marker_with_nothing_before_it_is_an_answer_only_where_the_caller_says_so(make: Make, stream: str) -> None:
    answer = make()
    told(answer, stream.encode())
    assert answer.ended
    answer = make()
    answer.may_be_empty = False
    assert told(answer, stream.encode()) == []
    assert (failed(answer).code, answer.ended) == ("upstream_cut", False)


def test_answer_of_another_dialect_makes_no_sense() -> None:
    answer = anthropic()
    answer.may_be_empty = False
    told(answer, (chunk({"content": "Hi"}) + STOP + DONE).encode())
    assert failed(answer).code == "upstream_protocol"


GOOD_OBJECTS = [
    '{"code":0,"message":"success","data":{"id":1}}',
    '{"header":{"code":0,"message":"Success","status":1}}',
    '{"response":{"error":null,"status":"in_progress"}}',
    '{"error_code":0,"error_msg":"ok"}',
    '{"error":{},"choices":[]}',
    '{"is_error":false,"message":"fine"}',
    '{"message":"The model is warming up."}',
    '{"type":"tool_error","message":"a tool failed, and the answer goes on"}',
]


@BOTH
@pytest.mark.parametrize("good", GOOD_OBJECTS)
def test_object_that_reports_no_failure_is_none(make: Make, good: str) -> None:
    assert said(make(), ROLE, chunk({"content": "Hi"}), f"data: {good}\n\n", STOP, DONE) == "Hi"


@BOTH
@pytest.mark.parametrize(
    "sentence", ["Input is too long for requested model.", "prompt is too long: 5 tokens > 4 maximum"]
)
def test_sentence_alone_is_heard_where_its_words_are_known(make: Make, sentence: str) -> None:
    answer = make()
    told(answer, f"data: {json.dumps({'message': sentence})}\n\n{DONE}".encode())
    assert (failed(answer).code, failed(answer).status) == ("context_length_exceeded", 400)


def test_report_in_many_envelopes_is_read_in_bounded_depth() -> None:
    report = '{"response":' * 500 + '{"error":"The engine broke."}' + "}" * 500
    answer = text()
    told(answer, (chunk({"content": "Hi"}) + f"data: {report}\n\n" + STOP).encode())
    assert (answer.failure, answer.skipped) == (None, 1)


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("content_filter: PROHIBITED_CONTENT", "content_filter"),
        ("RECITATION", "content_filter"),
        ("content-filter", "content_filter"),
        ("guardrail_intervened", "content_filter"),
        ("ERROR_LIMIT", "length"),
        ("token_limit", "length"),
    ],
)
def test_reason_has_openais_word(reason: str, word: str) -> None:
    for make in (text, kept):
        answer = make()
        told(answer, (ROLE + chunk({"content": "Hi"}) + chunk({}, finish_reason=reason) + DONE).encode())
        assert (answer.finish_reason, answer.failure) == (word, None)


NOTHING_UNDERSTOOD: list[tuple[Make, str]] = [
    (text, 'data: {"response":"Hi"}\n\n' + STOP + DONE),
    (kept, 'data: {"response":"Hi"}\n\n' + STOP + DONE),
    (kept, ROLE + "data: {'choices': None}\n\n" + STOP + DONE),
    (ollama, 'Hi\n{"message":{"content":""},"done":true,"done_reason":"stop"}\n'),
]


@pytest.mark.parametrize(("make", "stream"), NOTHING_UNDERSTOOD)
def test_answer_of_which_nothing_was_understood_is_not_whole(make: Make, stream: str) -> None:
    answer = make()
    answer.may_be_empty = False
    assert told(answer, stream.encode()) == []
    assert failed(answer).code == "upstream_protocol"


# -- last words without their line end ---------------------------------------------------------------------------------

TORN: list[tuple[Make, str]] = [
    (text, chunk({"content": "Hi"}) + STOP[:-1]),
    (kept, chunk({"content": "Hi"}) + STOP[:-1]),
    (text, chunk({"content": "Hi"}) + DONE[:-1]),
    (text, chunk({"content": "Hi"}) + STOP[:-2]),
    (kept, chunk({"content": "Hi"}) + STOP[:-2]),
    (kept, chunk({"content": "Hi"}) + DONE[:-2]),
    (anthropic, 'data: {"type":"content_block_delta","delta":{"text":"Hi"}}\n\ndata: {"type":"message_stop"}'),
    (kept, "event: x\n" + chunk({"content": "Hi"}) + "id: 4\n" + STOP[:-1]),
    (anthropic, 'data: {"type":"content_block_delta","delta":{"text":"Hi"}}\n\ndata: {"type":"message_stop"}\n'),
    (ollama, '{"message":{"content":"Hi"},"done":false}\n{"message":{"content":""},"done":true}'),
    (ollama, '{"message":{"content":"Hi","thinking":"}"},"done":false}\n{"message":{},"done": true, "x":{}}'),
]


@pytest.mark.parametrize(("make", "stream"), TORN)
def test_last_words_without_a_line_end_are_read_at_once(make: Make, stream: str) -> None:
    answer = make()
    completion = Completion()
    for event in answer.feed(stream.encode()):
        completion.add(event)
    assert text_of(completion.result(View("s1", "", "", 0), None)["choices"][0]["message"]) == "Hi"
    assert answer.complete
    assert same_for_every_cut(make, (stream + "\n\n").encode())


@pytest.mark.parametrize("behind", ["}", " x", '{"message":{"content":"more"}}', "}}]"])
def test_what_stands_behind_the_last_object_in_its_line_is_ignored(behind: str) -> None:
    stream = '{"message":{"content":"Hi"},"done":false}\n{"message":{"content":"!"},"done":true,"done_reason":"stop"}'
    answer = ollama()
    assert said(answer, f"{stream}{behind}\n") == "Hi!"
    assert (answer.finish_reason, answer.ended, answer.skipped) == ("stop", True, 0)
    assert same_for_every_cut(ollama, f"{stream}{behind}\n".encode())


# -- no reason is made up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (text, chunk({"content": "Hi"}) + DONE),
        (kept, chunk({"content": "Hi"}) + DONE),
        (anthropic, 'data: {"type":"message_stop"}\n\n'),
        (ollama, '{"message":{"content":"Hi"},"done":true}\n'),
        (ollama, '{"message":{"tool_calls":[{"function":{"name":"f"}}]},"done":true}\n'),
        (sse, 'data: {"content":"Hi"}\n\nevent: done\ndata: {}\n\n'),
    ],
)
def test_end_without_a_reason_has_none(make: Make, stream: str) -> None:
    answer = make()
    told(answer, stream.encode())
    assert (answer.ended, answer.finished, answer.finish_reason) == (True, False, "")


# -- a role is no part of an answer ------------------------------------------------------------------------------------


def test_kept_chunks_that_say_nothing_wait_for_one_that_does() -> None:
    answer = kept()
    filtered = 'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
    assert answer.feed((filtered + ROLE).encode()) == []
    assert len(answer.feed(chunk({"content": "Hi"}).encode())) == 3
    assert len(answer.feed(ROLE.encode())) == 1


@pytest.mark.parametrize(
    "delta",
    [
        {"role": "assistant", "content": "", "obfuscation": "abcd"},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
        {"role": "assistant", "tool_calls": [{"index": 0, "type": "function", "function": {"arguments": ""}}]},
        {"role": "assistant", "content": "", "annotations": [], "reasoning_details": [{"type": "x", "index": 0}]},
    ],
)
def test_kept_chunk_without_any_text_waits_for_one_that_has_it(delta: dict[str, Any]) -> None:
    answer = kept()
    assert answer.feed(chunk(delta).encode()) == []
    assert len(answer.feed(chunk({"content": "Hi"}).encode())) == 2


@pytest.mark.parametrize("delta", [{}, {"role": "assistant", "content": ""}, {"tool_calls": []}, {"content": None}])
def test_usage_beside_a_choice_without_any_text_is_hidden(delta: dict[str, Any]) -> None:
    counted = chunk(delta).replace('"choices"', '"usage": {"prompt_tokens": 1, "completion_tokens": 2}, "choices"')
    events = told(kept(), (ROLE + chunk({"content": "Hi"}) + STOP + counted + DONE).encode())
    assert [data for _, data in events if "usage" in data] == []
    first = told(kept(), (counted + chunk({"content": "Hi"}) + STOP + DONE).encode())
    assert len(first) == 2 + ("role" in delta)


def test_kept_chunks_that_say_nothing_are_given_out_with_the_end() -> None:
    for end in (STOP, DONE):
        answer = kept()
        assert len(told(answer, (ROLE + end).encode())) == (2 if end is STOP else 1)
    cut = kept()
    assert told(cut, ROLE.encode()) == []


def test_kept_chunks_that_say_nothing_are_not_gathered_for_ever() -> None:
    assert len(kept().feed(ROLE.encode() * 40)) == 40


# -- odd fields --------------------------------------------------------------------------------------------------------

HALVES: list[tuple[list[Any], str]] = [
    (["KEPT \udcaf end"], "KEPT \ufffd end"),
    (["KEPT \ud83d", "\ude00 more"], "KEPT 😀 more"),
    (["KEPT \ud83d", "plain", " more"], "KEPT \ufffdplain more"),
    (["KEPT \ud83d", "\ud83d", "\ude00"], "KEPT \ufffd😀"),
    (["a", "KEPT \ud83d"], "aKEPT \ufffd"),
    (["\ude00 more"], "\ufffd more"),
]


@BOTH
@pytest.mark.parametrize(("texts", "whole"), HALVES)
@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_halves_of_a_character_are_joined_or_replaced(make: Make, texts: list[str], whole: str, field: str) -> None:
    for end in (STOP + DONE, DONE):
        answer = make()
        reads = [ROLE, *(chunk({field: part}) for part in texts), end]
        assert message(answer, *reads)[field] == whole
        assert message(make(), "".join(reads))[field] == whole
        assert (answer.ended, answer.skipped) == (True, 0)


@BOTH
@pytest.mark.parametrize(("texts", "whole"), HALVES)
def test_halves_of_a_character_in_arguments(make: Make, texts: list[str], whole: str) -> None:
    calls = [chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in texts]
    first = chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]})
    [call] = message(make(), ROLE, first, *calls, STOP)["tool_calls"]
    assert call["function"]["arguments"] == whole


@pytest.mark.parametrize(("texts", "whole"), HALVES)
def test_kept_chunks_hold_no_half_of_a_character(texts: list[str], whole: str) -> None:
    events = told(kept(), "".join([ROLE, *(chunk({"content": part}) for part in texts), STOP, DONE]).encode())
    assert "".join(json.loads(data)["choices"][0]["delta"].get("content", "") for _, data in events) == whole
    assert not any("\\ud8" in data or "\\ude" in data or "\\udc" in data for _, data in events)


@pytest.mark.parametrize(("texts", "whole"), HALVES)
def test_halves_of_a_character_in_other_dialects(texts: list[str], whole: str) -> None:
    def anthropic_event(**fields: Any) -> str:
        return f"data: {json.dumps(fields)}\n\n"

    deltas = [anthropic_event(type="content_block_delta", index=0, delta={"text": part}) for part in texts]
    assert said(anthropic(), *deltas, anthropic_event(type="message_delta", delta={"stop_reason": "end_turn"})) == whole
    lines = [json.dumps({"message": {"content": part}, "done": False}) + "\n" for part in texts]
    assert said(ollama(), *lines, '{"message":{"content":""},"done":true,"done_reason":"stop"}\n') == whole
    events = [f"data: {json.dumps({'content': part})}\n\n" for part in texts]
    assert said(sse(), *events, "event: done\ndata: {}\n\n") == whole


def without(*keys: str, **more: Any) -> Callable[[str], str]:
    """A change to the choice of a chunk."""

    def change(data: str) -> str:
        value = json.loads(data[6:])
        choice = value["choices"][0]
        value["choices"] = [{key: member for key, member in choice.items() if key not in keys} | more]
        return f"data: {json.dumps(value)}\n\n"

    return change


ODD: dict[str, str] = {
    "index as a text": chunk({"content": "Hi"}, index="0"),
    "index as a float": chunk({"content": "Hi"}, index=0.0),
    "index below 0": chunk({"content": "Hi"}, index=-1),
    "text in the delta": chunk({"type": "text", "text": "Hi"}),
    "a byte order mark": chunk({"content": "Hi"}).replace("data: ", "data: \ufeff"),
    "a list of chunks": chunk({"content": "Hi"}).replace("data: ", "data: [").replace("\n\n", "]\n\n"),
    "JSON in JSON": f"data: {json.dumps(chunk({'content': 'Hi'})[6:-2])}\n\n",
    "two chunks in one": chunk({"content": "H"})[:-2] + chunk({"content": "i"})[6:],
    "two chunks in one, each with its field": chunk({"content": "H"})[:-2] + chunk({"content": "i"}),
    "index not 0": chunk({"content": "Hi"}, index=1),
    "no index": without("index")(chunk({"content": "Hi"})),
    "index null": chunk({"content": "Hi"}, index=None),
    "calls as an object": chunk({"content": "Hi", "tool_calls": {}}),
    "calls as a text": chunk({"content": "Hi", "tool_calls": ""}),
    "content under message": without("delta")(chunk(message={"role": "assistant", "content": "Hi"})),
    "content under message beside null": chunk(message={"content": "Hi"}).replace('"delta": {}', '"delta": null'),
    "content as a list": chunk({"content": [{"type": "text", "text": "Hi"}]}),
    "content as a list of texts": chunk({"content": ["H", "i"]}),
    "content as an object": chunk({"content": {"type": "text", "text": "Hi"}}),
    "delta as a text": chunk("Hi"),
    "delta as a list": chunk([{"content": "Hi"}]),
    "text of the older API": without("delta")(chunk(text="Hi")),
    "choices as an object": chunk({"content": "Hi"}).replace("[{", "{").replace("}]", "}"),
    "a number that is none": chunk({"content": "Hi"}, logprobs={"content": [{"token": "Hi", "logprob": float("nan")}]}),
    "an infinite number": chunk({"content": "Hi"}, score=float("-inf")),
    "a control character": chunk({"content": "Hi"}).replace('"m"', '"m\t"'),
    "reason false": chunk({"content": "Hi"}, finish_reason=False),
    "reason empty": chunk({"content": "Hi"}, finish_reason=""),
    "reason in quotes": chunk({"content": "Hi"}, finish_reason="null"),
    "usage as a text": chunk({"content": "Hi"}).replace('"m"', '"m", "usage": "none"'),
    "usage as a list": chunk({"content": "Hi"}).replace('"m"', '"m", "usage": []'),
    "usage of texts": chunk({"content": "Hi"}).replace('"m"', '"m", "usage": {"prompt_tokens": "7"}'),
    "model as an object": chunk({"content": "Hi"}).replace('"m"', '{"name": "m"}'),
    "model as a number": chunk({"content": "Hi"}).replace('"m"', "4"),
    "id as a number": chunk({"content": "Hi"}).replace('"x"', "17"),
    "refusal as an object": chunk({"content": "Hi", "refusal": {}}),
    "reasoning as a list": chunk({"content": "Hi", "reasoning_content": []}),
    "error empty": chunk({"content": "Hi"}).replace('"m"', '"m", "error": {}'),
}


@BOTH
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", ["first", "later"])
def test_odd_field_takes_nothing_else_away(make: Make, odd: str, place: str) -> None:
    elsewhere = odd.startswith(("content under", "text of"))  # then it is no repetition of what the deltas said
    index = 1 if "not 0" in odd else 0
    before = "" if place == "first" or elsewhere else chunk({"content": "a"}, index=index)
    answer = make()
    last = chunk({}, index=index, finish_reason="stop")
    assert said(answer, before, ODD[odd], last, DONE) == ("a" if before else "") + "Hi"
    assert answer.failure is None
    assert answer.complete


@BOTH
@pytest.mark.parametrize("odd", ODD)
def test_odd_field_reads_the_same_for_every_cut(make: Make, odd: str) -> None:
    assert same_for_every_cut(make, (ODD[odd] + STOP).encode())


@pytest.mark.parametrize("odd", ODD)
def test_kept_chunk_with_an_odd_field_is_one_that_clients_read(odd: str) -> None:
    [(kind, data), *_] = told(kept(), (ODD[odd] + STOP).encode())
    [choice] = json.loads(data)["choices"]
    assert kind == "chunk"
    assert isinstance(choice["delta"], dict)
    assert type(choice.get("index", 0)) is int or choice["index"] is None
    assert isinstance(choice["delta"].get("tool_calls", []), list)


ANTHROPIC = "".join(
    f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
    for event in (
        {"type": "message_start", "message": {"model": "c"}},
        {"type": "content_block_delta", "index": 0, "delta": {"text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    )
)


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (text, chunk({"content": "Hi"}) + STOP + DONE),
        (kept, chunk({"content": "Hi"}) + STOP + DONE),
        (anthropic, ANTHROPIC),
    ],
)
def test_events_without_blank_lines_or_with_data_twice_are_read(make: Make, stream: str) -> None:
    """As servers send them whose framework writes `data:` too, and those that write one line end."""
    doubled = stream.replace("data: ", "data: data: ")
    for written in (
        stream.replace("\n\n", "\n"),
        stream.replace("\n\n", "\n") + "\n",
        doubled,
        doubled.replace("\n\n", "\ndata: \n\n"),
    ):
        answer = make()
        assert said(answer, written) == "Hi"
        assert (answer.ended, answer.finish_reason, answer.skipped) == (True, "stop", 0)


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_text": "hm"},
        {"thinking": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": [{"text": "hm"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}], "content": ""},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
    ],
)
def test_thoughts_are_read_once_under_whatever_name(delta: dict[str, Any]) -> None:
    for before in ("", chunk({"content": "Hi"})):
        events = told(text(), (before + chunk(delta)).encode())
        assert [data for kind, data in events if kind == "thinking"] == ["hm"]


@BOTH
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("MAX_TOKENS", "length"), ("STOP", "stop"), ("eos_token", "stop"), ("tool_use", "tool_calls"), ("odd", "odd")],
)
def test_reason_is_told_in_openais_words(make: Make, theirs: str, ours: str) -> None:
    answer = make()
    told(answer, (chunk({"content": "Hi"}) + chunk({}, finish_reason=theirs)).encode())
    assert answer.finish_reason == ours


@BOTH
@pytest.mark.parametrize("delta", ["[]", "null", '""', "{}"])
def test_last_chunk_needs_no_delta(make: Make, delta: str) -> None:
    answer = make()
    last = STOP.replace('"delta": {}', f'"delta": {delta}')
    assert said(answer, chunk({"content": "Hi"}), last) == "Hi"
    assert (answer.finish_reason, answer.complete, answer.skipped) == ("stop", True, 0)
    answer = make()
    assert said(answer, chunk({"content": "Hi"}), without("delta")(STOP)) == "Hi"
    assert (answer.finish_reason, answer.skipped) == ("stop", 0)


@BOTH
@pytest.mark.parametrize("reason", [{"type": "length"}, ["length"], {"reason": "length"}])
def test_reason_in_another_form_is_read(make: Make, reason: Any) -> None:
    answer = make()
    told(answer, (chunk({"content": "Hi"}) + chunk({}, finish_reason=reason)).encode())
    assert answer.finish_reason == "length"


@BOTH
@pytest.mark.parametrize("more", [{"finishReason": "length"}, {"finish_details": {"type": "length"}}])
def test_reason_under_another_name_is_read(make: Make, more: dict[str, Any]) -> None:
    """Sources: Gemini (jakobdylanc/llmcord#84); OpenAI (vision preview)."""
    answer = make()
    assert said(answer, chunk({"content": "H"}), chunk({"content": "i"}, **more)) == "Hi"
    assert (answer.finish_reason, answer.complete) == ("length", True)


@BOTH
def test_what_cannot_be_understood_is_counted(make: Make) -> None:
    answer = make()
    odd = chunk({"content": "Hi", "tool_calls": 5, "refusal": True})
    assert said(answer, chunk({"content": True}), odd, STOP) == "Hi"
    assert (answer.skipped, answer.finish_reason) == (3, "stop")


def test_text_under_a_name_that_nobody_knows_is_counted() -> None:
    answer = text()
    assert said(answer, ROLE, chunk({"content": "Hi"}), chunk({"novelty": "x"}), STOP) == "Hi"
    assert answer.skipped == 1


@BOTH
def test_whole_message_at_the_end_is_no_second_answer(make: Make) -> None:
    whole = STOP.replace('"delta": {}', '"message": {"role": "assistant", "content": "Hi"}')
    answer = make()
    assert said(answer, chunk({"content": "H"}), chunk({"content": "i"}), whole) == "Hi"
    assert answer.finish_reason == "stop"


@BOTH
def test_choice_is_the_first_that_says_something_however_its_chunks_are_read(make: Make) -> None:
    """The role alone, a text, a whole message that repeats it, and the call of another choice, each in a read."""
    message = {"role": "assistant", "content": "Hi"}
    other = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}
    parts = [
        ROLE,
        chunk({"content": "Hi"}),
        chunk(message=message),
        chunk(other, index=1),
        chunk({"content": "!"}),
        STOP,
    ]
    reads = [part.encode() for part in parts]
    assert outcome(make, b"".join(reads)) == outcome(make, *reads)
    assert said(make(), *parts) == "Hi!"


@BOTH
@pytest.mark.parametrize(
    ("calls", "arguments"),
    [
        ([{"name": "f", "arguments": {"a": 1}}], '{"a":1}'),
        ([{"name": "f", "arguments": '{"a'}, {"arguments": '":1}'}], '{"a":1}'),
        ([[{"name": ["f"], "arguments": "{}"}]], "{}"),
        ([{"name": "f", "arguments": '"\ud83d'}, {"arguments": '\ude00"'}], '"😀"'),
        ([{"name": "f", "arguments": '"\ud83d'}], '"\ufffd'),
    ],
)
def test_odd_call_of_the_form_before_there_were_tools_is_read(make: Make, calls: list[Any], arguments: str) -> None:
    reads = [ROLE, *(chunk({"function_call": call}) for call in calls), chunk({}, finish_reason="function_call"), DONE]
    found = message(make(), *reads)
    call = found["tool_calls"][0]["function"] if "tool_calls" in found else found["function_call"]
    assert call["arguments"] == arguments
    assert outcome(make, "".join(reads).encode()) == outcome(make, *(read.encode() for read in reads))


@pytest.mark.parametrize("tail", ["", "data: "])
def test_last_line_of_ollama_needs_no_line_end_however_odd_it_is(tail: str) -> None:
    first = '{"model":"m","message":{"content":"a"},"done":false}\n'
    last = '{"model":"m","message":{"content":["b"]},"done":"true","done_reason":["stop"],"eval_count":2}'
    answer = ollama()
    assert said(answer, first, tail + last) == "ab"
    assert (answer.ended, answer.finish_reason) == (True, "stop")


ODD_IN_MID_STREAM = (
    {"delta": {"tool_calls": [{"index": 0, "id": "c", "name": "f", "arguments": "{}"}]}},
    {"delta": {"tool_calls": {"index": 0, "function": {"name": "f"}}}},
    {"delta": {"tool_calls": [{"index": "1", "function": {"name": "f", "arguments": {"a": 1}}}]}},
    {"delta": {"tool_calls": [{"index": 0, "id": 7, "function": {"name": ["f"]}}]}},
    {"delta": {"content": ["a", {"type": "text", "text": "b"}]}},
    {"delta": {"refusal": {"text": "no"}, "reasoning": 5}},
    {"delta": {"function_call": {"name": "f", "arguments": {"a": 1}}}},
    {"delta": {"function_call": {"name": ["f"], "arguments": "{}"}}},
    {"delta": {"content": "a"}, "finish_details": {"type": "stop"}},
    {"delta": {"content": "a"}, "finishReason": "stop"},
    {"delta": {"content": "a"}, "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
)


@BOTH
@pytest.mark.parametrize("odd", ODD_IN_MID_STREAM)
def test_odd_chunk_is_read_alike_wherever_it_comes(make: Make, odd: dict[str, Any]) -> None:
    """In the read of the first chunks, and in one of its own, when chunks are usual and read the quick way."""
    parts = [chunk({"content": "H"}).encode(), chunk({"content": "i"}).encode(), chunk(**odd).encode()]
    assert outcome(make, b"".join(parts)) == outcome(make, *parts)


def test_odd_type_of_an_anthropic_event_is_skipped() -> None:
    assert told(DIALECTS["anthropic"].answer(), b'{"type":{"a":1}}\n{"type":["message_stop"]}\n') == []


@BOTH
def test_usage_is_found_where_servers_put_it(make: Make) -> None:
    counts = '{"prompt_tokens":3,"completion_tokens":4}'
    for last in (
        STOP.replace('"m"', f'"m", "x_groq": {{"usage": {counts}}}'),
        STOP.replace('"index": 0', f'"index": 0, "usage": {counts}'),
    ):
        answer = make()
        told(answer, (chunk({"content": "Hi"}) + last).encode())
        assert answer.usage == Usage(3, 4)


@BOTH
@pytest.mark.parametrize(
    "cached", ['"prompt_tokens_details":{"cached_tokens":2}', '"cached_tokens":2', '"prompt_cache_hit_tokens":2']
)
def test_tokens_from_the_cache_are_found_where_servers_put_them(make: Make, cached: str) -> None:
    """Sources: OpenAI; Moonshot; DeepSeek."""
    answer = make()
    last = f'data: {{"choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":4,{cached}}}}}\n\n'
    told(answer, (chunk({"content": "Hi"}) + STOP + last).encode())
    assert answer.usage == Usage(3, 4, cached_input=2)


def test_anthropic_reads_odd_fields() -> None:
    answer = anthropic()
    stream = (
        'data: {"type":"message_start","message":{"model":5,"usage":[]}}\n\n'
        'data: {"type":"content_block_start","index":"0","content_block":{"type":"text","text":null}}\n\n'
        'data: {"type":"content_block_delta","index":"0","delta":{"type":"text_delta","text":"Hi"}}\n\n'
        'data: {"type":"content_block_start","index":1,'
        '"content_block":{"type":"tool_use","id":7,"name":"f","input":""}}\n\n'
        'data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{}"}}\n\n'
        'data: {"type":"message_delta","delta":{"stop_reason":["tool_use"]},"usage":5}\n\n'
        "data: [DONE]\n\n"
    )
    found = message(answer, stream)
    assert (found["content"], found["tool_calls"]) == ("Hi", [call("f", "{}", "7")])
    assert (answer.finish_reason, answer.ended, answer.skipped, answer.model) == ("tool_calls", True, 0, "5")


def call(name: str, arguments: str, id_: str) -> dict[str, Any]:
    return {"type": "function", "id": id_, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("input_", "deltas", "arguments"),
    [
        ({}, ['{"a"', ":1}"], '{"a":1}'),
        ("", ['{"a":1}'], '{"a":1}'),
        (None, ['{"a":1}'], '{"a":1}'),
        ({"a": 1}, [], '{"a":1}'),
        ({"a": 1}, ['{"a":1}'], '{"a":1}'),
        ({}, [], "{}"),
        ("", [], "{}"),
        ({}, [""], "{}"),
    ],
)
def test_anthropic_arguments_come_once(input_: Any, deltas: list[str], arguments: str) -> None:
    block = {"type": "tool_use", "id": "t", "name": "f", "input": input_}
    events = [
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": {"partial_json": piece}} for piece in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    ]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    pieces = [json.loads(data) for kind, data in told(anthropic(), stream.encode()) if kind == "tool"]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == arguments
    assert [piece["index"] for piece in pieces] == [0] * len(pieces)


@pytest.mark.parametrize(
    "line",
    [
        '{"message":"Hi"}',
        '{"response":"Hi"}',
        '{"message":{"content":["Hi"]}}',
        '{"message":{"content":"Hi","tool_calls":{}}}',
        '{"message":{"content":"Hi","tool_calls":""}}',
        '{"message":{"content":"Hi"},"eval_count":NaN}',
        '{"message":{"content":"Hi"},"done":"false"}',
        'data: {"message":{"content":"Hi"}}',
    ],
)
def test_ollama_reads_odd_fields(line: str) -> None:
    answer = ollama()
    end = '{"message":{"content":""},"done":true,"done_reason":"stop"}'
    assert said(answer, f"{line}\n{end}\n") == "Hi"
    assert (answer.finish_reason, answer.ended, answer.failure) == ("stop", True, None)


# -- tool calls --------------------------------------------------------------------------------------------------------


def pieces(*deltas: list[dict[str, Any]]) -> str:
    return "".join(chunk({"tool_calls": delta}) for delta in deltas)


def piece(name: str | None = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {**more, "function": {key: value for key, value in function.items() if value is not None}}


CALLS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "as they should be": (
        pieces([piece("f", "", index=0, id="a")], [piece(None, '{"x"', index=0)], [piece(None, ":1}", index=0)]),
        [("f", '{"x":1}')],
    ),
    "index 0 twice, different ids": (
        pieces([piece("f", '{"x":1}', index=0, id="a")], [piece("f", '{"x":2}', index=0, id="b")]),
        [("f", '{"x":1}'), ("f", '{"x":2}')],
    ),
    "index 0 twice, in pieces": (
        pieces(
            [piece("f", "", index=0, id="a")],
            [piece(None, "{}", index=0)],
            [piece("g", "", index=0, id="b")],
            [piece(None, '{"y":2}', index=0)],
        ),
        [("f", "{}"), ("g", '{"y":2}')],
    ),
    "index 0 twice in one delta": (
        pieces([piece("f", "{}", index=0, id="a"), piece("g", "{}", index=0, id="b")]),
        [("f", "{}"), ("g", "{}")],
    ),
    "index 0 twice, new names only": (
        pieces([piece("f", '{"x":1}', index=0)], [piece("g", '{"x":2}', index=0)]),
        [("f", '{"x":1}'), ("g", '{"x":2}')],
    ),
    "index 0 twice, the same name and id, whole": (
        pieces([piece("f", '{"x":1}', index=0, id="call_0")], [piece("f", '{"x":2}', index=0, id="call_0")]),
        [("f", '{"x":1}'), ("f", '{"x":2}')],
    ),
    "index 0 twice, alternating": (
        pieces(
            [piece("f", "{", index=0, id="a")],
            [piece("g", "{", index=0, id="b")],
            [piece("f", "}", index=0, id="a")],
            [piece("g", "}", index=0, id="b")],
        ),
        [("f", "{}"), ("g", "{}")],
    ),
    "no index, in pieces": (
        pieces([piece("f", "", id="a")], [piece(None, '{"x"')], [piece("", ":1}", id="")]),
        [("f", '{"x":1}')],
    ),
    "no index, two calls": (
        pieces([piece("f", '{"x"', id="a")], [piece(None, ":1}")], [piece("g", "{", id="b")], [piece(None, "}")]),
        [("f", '{"x":1}'), ("g", "{}")],
    ),
    "no index, two whole calls in one delta": (
        pieces([piece("f", "{}"), piece("g", "{}")]),
        [("f", "{}"), ("g", "{}")],
    ),
    "index null": (
        pieces([piece("f", "{", index=None, id="a")], [piece(None, "}", index=None, id=None)]),
        [("f", "{}")],
    ),
    "index as a text": (
        pieces(
            [piece("f", "{", index="0", id="a")], [piece(None, "}", index="0")], [piece("g", "{}", index="1", id="b")]
        ),
        [("f", "{}"), ("g", "{}")],
    ),
    "id and name in every piece": (
        pieces(
            [piece("f", '{"x"', index=0, id="a")],
            [piece("f", ":1", index=0, id="a")],
            [piece("f", "}", index=0, id="a")],
        ),
        [("f", '{"x":1}')],
    ),
    "the same id at two indices": (
        pieces([piece("f", "{}", index=0, id="call_0")], [piece("g", "{}", index=1, id="call_0")]),
        [("f", "{}"), ("g", "{}")],
    ),
    "indices that do not begin with 0": (
        pieces([piece("f", "{", index=1, id="a")], [piece(None, "}", index=1)], [piece("g", "{}", index=2, id="b")]),
        [("f", "{}"), ("g", "{}")],
    ),
    "no arguments": (pieces([piece("f", "", index=0, id="a")]), [("f", "{}")]),
    "arguments null": (pieces([{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}]), [("f", "{}")]),
    "arguments as an object": (pieces([piece("f", {"x": 1}, index=0, id="a")]), [("f", '{"x":1}')]),
    "arguments as an empty object": (pieces([piece("f", {}, index=0, id="a")]), [("f", "{}")]),
    "no function around it": (pieces([{"index": 0, "id": "a", "name": "f", "arguments": "{}"}]), [("f", "{}")]),
    "its name in pieces": (
        pieces([piece("get_", "", index=0, id="a")], [{"index": 0, "function": {"name": "weather"}}])
        + pieces([{"index": 0, "function": {"arguments": "{}"}}]),
        [("get_weather", "{}")],
    ),
    "its name grows": (
        pieces([piece("get", "", index=0, id="a")], [piece("get_weather", "", index=0, id="a")])
        + pieces([{"index": 0, "function": {"arguments": "{}"}}]),
        [("get_weather", "{}")],
    ),
    "an id for every piece": (
        pieces([piece("f", "", index=0, id="a")], [{"index": 0, "id": "b", "function": {"arguments": '{"x":1}'}}]),
        [("f", '{"x":1}')],
    ),
    "empty arguments before the real ones": (
        pieces([piece("f", "{}", index=0, id="a")], [{"index": 0, "function": {"arguments": '{"x"'}}])
        + pieces([{"index": 0, "function": {"arguments": ":1}"}}]),
        [("f", '{"x":1}')],
    ),
    "arguments null as a text": (pieces([piece("f", "null", index=0, id="a")]), [("f", "{}")]),
    "arguments blank": (pieces([piece("f", " ", index=0, id="a")]), [("f", "{}")]),
    "one call as an object": (chunk({"tool_calls": piece("f", "{}", index=0, id="a")}), [("f", "{}")]),
    "an id that is a number": (pieces([piece("f", "{}", index=0, id=17)]), [("f", "{}")]),
    "no id": (pieces([piece("f", "{}", index=0)], [piece("g", "{}", index=1)]), [("f", "{}"), ("g", "{}")]),
    "an empty call": (pieces([{}], [piece("f", "{}", index=0, id="a")]), [("f", "{}")]),
}


@BOTH
@pytest.mark.parametrize("calls", CALLS)
def test_every_call_is_told_once(make: Make, calls: str) -> None:
    stream, expected = CALLS[calls]
    for end in (chunk({}, finish_reason="tool_calls"), DONE):
        found = message(make(), ROLE, stream, end)["tool_calls"]
        assert [(call["function"]["name"], call["function"]["arguments"]) for call in found] == expected
        ids = [call["id"] for call in found]
        assert all(isinstance(id_, str) and id_ for id_ in ids)
        assert len(set(ids)) == len(ids)
        assert all(call["type"] == "function" for call in found)


@pytest.mark.parametrize("calls", CALLS)
def test_translated_pieces_have_the_right_numbers(calls: str) -> None:
    stream, expected = CALLS[calls]
    events = told(text(), (ROLE + stream + chunk({}, finish_reason="tool_calls")).encode())
    gathered: dict[int, list[str]] = {}
    for kind, data in events:
        assert kind == "tool"
        function = json.loads(data)["function"]
        name, arguments = gathered.setdefault(json.loads(data)["index"], ["", ""])
        gathered[json.loads(data)["index"]] = [name + function.get("name", ""), arguments + function["arguments"]]
    assert [tuple(gathered[number]) for number in range(len(expected))] == expected


def test_ids_that_a_conversation_has_are_given_another() -> None:
    answer = text()
    answer.salt, answer.taken = "s", frozenset({"call_0"})
    events = told(answer, pieces([piece("f", "{}", index=0, id="call_0")]).encode())
    assert json.loads(events[0][1])["id"] == "call_0_s0"
    other = ollama()
    other.salt = "t"
    events = told(other, b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{}}}]}}\n')
    assert json.loads(events[0][1])["id"] == "call_t0"


def test_legacy_function_call_is_a_call() -> None:
    stream = chunk({"function_call": {"name": "f", "arguments": "{"}}) + chunk({"function_call": {"arguments": "}"}})
    [made] = message(text(), ROLE, stream, STOP)["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": "{}"}
    assert message(kept(), ROLE, stream, STOP)["function_call"] == {"name": "f", "arguments": "{}"}


# -- bodies ------------------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 80}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "logprobs": None, "finish_reason": "length"}
    ],
    "usage": USAGE,
}


@pytest.mark.parametrize("spelled", [json.dumps(WHOLE), json.dumps(WHOLE, indent=2), f"\n {json.dumps(WHOLE)}\n\n"])
@pytest.mark.parametrize("make", [text, kept, plain])
def test_whole_answer_for_a_stream_request_is_read(make: Make, spelled: str) -> None:
    answer = make()
    events = told(answer, spelled.encode())
    assert (answer.model, answer.finish_reason, answer.usage) == ("m", "length", Usage(20, 60))
    assert (answer.ended, answer.whole, answer.failure) == (True, True, None)
    if make is plain:
        assert events == [("whole", spelled.strip())]
    else:
        assert said(make(), spelled) == "Hello"
    assert same_for_every_cut(make, spelled.encode())


@pytest.mark.parametrize("make", [text, kept, plain])
def test_whole_answer_in_an_array_is_read(make: Make) -> None:
    answer = make()
    assert said(answer, json.dumps([WHOLE])) == "Hello"
    assert (answer.finish_reason, answer.ended, answer.whole, answer.failure) == ("length", True, True, None)


@pytest.mark.parametrize("make", [text, kept, plain, anthropic])
@pytest.mark.parametrize("spelled", ["[{}]", '[{"a":[{}]}]', "[[{}]]", "[]"])
def test_array_without_an_answer_is_none(make: Make, spelled: str) -> None:
    answer = make()
    assert told(answer, spelled.encode()) == []
    assert failed(answer).code == "upstream_protocol"


def test_whole_answer_becomes_the_chunks_of_a_stream() -> None:
    events = told(DIALECTS["openai"].answer(keep_chunks=True, keep_usage=True), json.dumps(WHOLE).encode())
    first, last, usage = (json.loads(data) for _, data in events)
    assert first["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": "Hello"},
        "logprobs": None,
        "finish_reason": None,
    }
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert (usage["choices"], usage["usage"]) == ([], USAGE)
    assert {chunk["object"] for chunk in (first, last, usage)} == {"chat.completion.chunk"}
    assert len(told(kept(), json.dumps(WHOLE).encode())) == 2


def test_whole_answer_is_read_before_its_body_ends() -> None:
    for make in (text, kept, plain):
        answer = make()
        data = json.dumps(WHOLE).encode()
        assert answer.feed(data[:100]) == []
        assert answer.feed(data[100:])
        assert answer.ended


def test_whole_answer_holds_no_half_of_a_character() -> None:
    value = json.dumps(WHOLE).replace("Hello", "KEPT \\udcaf end")
    [(kind, data)] = told(plain(), value.encode())
    assert (kind, json.loads(data)["choices"][0]["message"]["content"]) == ("whole", "KEPT \ufffd end")
    assert said(text(), value) == said(kept(), value) == "KEPT \ufffd end"


def test_whole_answer_without_a_reason_has_none() -> None:
    for make in (text, kept, plain):
        answer = make()
        told(answer, json.dumps(WHOLE).replace('"length"', "null").encode())
        assert (answer.ended, answer.finished, answer.whole) == (True, False, True)


@pytest.mark.parametrize("make", [text, kept, plain])
def test_whole_answer_that_failed_is_a_failure(make: Make) -> None:
    answer = make()
    assert told(answer, json.dumps(WHOLE).replace('"length"', '"error"').encode()) == []
    assert failed(answer).code == "upstream_error"


@pytest.mark.parametrize("make", [text, kept])
def test_whole_answer_tells_its_tool_calls(make: Make) -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}, piece("g", '{"x":1}', id="b")]
    whole = json.dumps(WHOLE).replace('"content": "Hello"', f'"content": null, "tool_calls": {json.dumps(calls)}')
    found = message(make(), whole)["tool_calls"]
    assert [one["function"] for one in found] == [piece("f", "{}")["function"], piece("g", '{"x":1}')["function"]]


@BOTH
def test_chunks_in_one_list_are_read(make: Make) -> None:
    pieces = [json.loads(part[6:]) for part in (chunk({"content": "Hi"}), STOP)]
    answer = make()
    assert said(answer, json.dumps(pieces)) == "Hi"
    assert (answer.finished, answer.failure) == (True, None)


@pytest.mark.parametrize(("theirs", "ours"), [("", "{}"), (None, "{}"), ({"x": 1}, '{"x":1}'), ("{}", "{}")])
def test_calls_of_a_plain_answer_have_arguments_that_clients_read(theirs: Any, ours: str) -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": theirs}}]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "tool_calls": calls},
        "finish_reason": "stop",
    }
    body = json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "extra": 1.0})
    ((_, whole),) = told(plain(), body.encode())
    assert json.loads(whole)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == ours
    assert (whole == body) == (theirs == ours)


def test_chunks_line_by_line_are_read() -> None:
    lines = "\n".join(part[6:].strip() for part in (ROLE, chunk({"content": "He"}), chunk({"content": "llo"}), STOP))
    for make in (text, kept, plain):
        answer = make()
        assert said(answer, lines) == "Hello"
        assert (answer.finish_reason, answer.skipped, answer.failure) == ("stop", 0, None)
        assert same_for_every_cut(make, lines.encode())


def test_lines_of_an_unknown_endpoint_are_read() -> None:
    lines = '{"content":"He"}\n{"content":"l\\ud83d"}\n\n{"content":"\\ude00"}\r\n{"content":"o\\ud83d"}'
    assert said(sse(), lines) == "Hel😀o\ufffd"
    assert same_for_every_cut(sse, lines.encode())


def test_events_are_read_for_a_plain_request() -> None:
    answer = plain()
    assert said(answer, ROLE, chunk({"content": "Hi"}), STOP, DONE) == "Hi"
    assert (answer.whole, answer.ended) == (False, True)


ANTHROPIC_WHOLE = {
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "u", "name": "g", "input": {}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 5, "output_tokens": 9},
}


def test_whole_anthropic_message_is_read() -> None:
    answer = anthropic()
    found = message(answer, json.dumps(ANTHROPIC_WHOLE))
    assert (found["content"], found["reasoning_content"]) == ("Hello", "hm")
    assert found["tool_calls"] == [call("f", '{"a":1}', "t"), call("g", "{}", "u")]
    assert (answer.finish_reason, answer.usage, answer.model) == ("tool_calls", Usage(5, 9), "claude-x")
    assert (answer.ended, answer.whole, answer.skipped) == (True, True, 0)
    assert same_for_every_cut(anthropic, json.dumps(ANTHROPIC_WHOLE).encode())


def test_whole_anthropic_message_without_its_type_is_read() -> None:
    body = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}
    answer = anthropic()
    assert said(answer, json.dumps(body)) == "Hi"
    assert (answer.ended, answer.finish_reason) == (True, "stop")


def test_indented_ollama_object_is_read() -> None:
    body = {"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": True, "done_reason": "stop"}
    for end in ("\n", ""):
        answer = ollama()
        assert said(answer, json.dumps(body, indent=2) + end) == "Hi"
        assert (answer.ended, answer.finish_reason) == (True, "stop")


def test_whole_ollama_object_is_read() -> None:
    end = '"done":true,"done_reason":"length","prompt_eval_count":1,"eval_count":2'
    line = f'{{"model":"q","message":{{"content":"Hello"}},{end}}}'
    answer = ollama()
    assert said(answer, line) == "Hello"
    assert (answer.finish_reason, answer.usage, answer.ended) == ("length", Usage(1, 2), True)


def test_whole_object_of_an_unknown_endpoint_is_read() -> None:
    for value in (
        {"response": "Hello"},
        {"text": "Hello", "finish_reason": "stop"},
        {"content": "Hello", "done": True},
    ):
        for spelled in (json.dumps(value), json.dumps(value, indent=1)):
            assert said(sse(), spelled) == "Hello"


@pytest.mark.parametrize("make", [text, kept, plain, anthropic])
@pytest.mark.parametrize("body", ["{}", "[]", '{"a":1}', '{"message":"hi"}', "<html>x</html>", " \n<!doctype html>"])
def test_body_that_is_no_answer_makes_no_sense(make: Make, body: str) -> None:
    answer = make()
    assert told(answer, body.encode()) == []
    assert failed(answer).code == "upstream_protocol"


@pytest.mark.parametrize("make", [text, kept, plain, anthropic, sse])
def test_body_without_a_label_that_is_words_makes_no_sense(make: Make) -> None:
    answer = make()
    answer.labelled = False
    assert told(answer, b"Internal Server Error") == []
    assert failed(answer).code == "upstream_protocol"


@pytest.mark.parametrize("make", [text, kept, plain, anthropic, ollama, sse])
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        ({"message": "This model's maximum context length is 8192 tokens."}, "context_length_exceeded", 400),
        ({"code": 429, "message": "Slow down"}, "upstream_rate_limited", 429),
        ({"type": "invalid_request_error", "message": "Bad tools"}, "upstream_refused", 400),
        ({"message": "secret words"}, "upstream_protocol", 502),
    ],
)
def test_error_as_the_body_is_what_its_status_should_have_been(make: Make, error: Any, code: str, status: int) -> None:
    answer = make()
    answer.labelled = False
    told(answer, json.dumps({"error": error}).encode())
    assert (failed(answer).code, failed(answer).status) == (code, status)
    assert "secret" not in failed(answer).message


@pytest.mark.parametrize("make", [text, kept, plain, anthropic])
def test_torn_json_is_a_cut(make: Make) -> None:
    answer = make()
    assert told(answer, json.dumps(WHOLE)[:-20].encode()) == []
    assert (answer.complete, answer.failure) == (False, None)


def test_endless_json_has_a_bound() -> None:
    answer = text()
    answer.feed(b'{"choices": [')
    for _ in range(10):
        answer.feed(b" " * (1 << 20))
    assert failed(answer).code == "upstream_oversize"


def about_block(kind: str, index: int, **more: Any) -> str:
    """An event of Anthropic's about the block with this index."""
    return f"data: {json.dumps({'type': f'content_block_{kind}', 'index': index, **more})}\n\n"


def piece_of(index: int, text: str) -> str:
    """One more piece of the arguments of a call."""
    return about_block("delta", index, delta={"type": "input_json_delta", "partial_json": text})


def test_anthropic_calls_side_by_side_keep_their_arguments() -> None:
    stream = (
        about_block("start", 0, content_block={"type": "tool_use", "id": "a", "name": "f", "input": {}})
        + about_block("start", 1, content_block={"type": "tool_use", "id": "b", "name": "g", "input": {}})
        + about_block("start", 2, content_block={"type": "tool_use", "id": "c", "name": "h", "input": {}})
        + piece_of(1, '{"y":')
        + piece_of(0, '{"x":1}')
        + piece_of(1, "2}")
        + "".join(about_block("stop", index) for index in range(3))
        + 'data: {"type":"message_delta","delta":{"stop_reason":"tool_use"}}\n\n'
    )
    calls = message(anthropic(), stream)["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [
        ("a", '{"x":1}'),
        ("b", '{"y":2}'),
        ("c", "{}"),
    ]


def test_half_of_a_character_stays_in_its_own_choice() -> None:
    """A choice that ends takes none of what another one has begun."""

    def delta(index: int, delta: Any, reason: str | None = None) -> str:
        return f"data: {json.dumps({'choices': [{'index': index, 'delta': delta, 'finish_reason': reason}]})}\n\n"

    def call(text: str) -> Any:
        return {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": text}}]}

    stream = (
        delta(0, {"content": "one \ud83d"})
        + delta(1, {"content": "two \ud83d"})
        + delta(2, call("three \ud83d"))
        + delta(1, {"content": "\ude01"}, "stop")
        + delta(0, {"content": "\ude00"})
        + delta(0, {"content": " \ud83d"}, "length")
        + delta(2, call("\ude02"), "tool_calls")
        + DONE
    )
    answer, completion = kept(), Completion()
    answer.choices = 3
    for event in answer.feed(stream.encode()):
        completion.add(event)
    choices = completion.result(View("s1", "", "", 0), None)["choices"]
    assert [choice["message"]["content"] for choice in choices[:2]] == ["one 😀 \ufffd", "two 😁"]
    assert choices[2]["message"]["tool_calls"][0]["function"]["arguments"] == "three 😂"


def test_half_of_a_character_before_content_in_parts_is_a_part() -> None:
    parts = chunk({"content": [{"type": "text", "text": "end"}]}, finish_reason="stop")
    events = told(kept(), (ROLE + chunk({"content": "a\ud83d"}) + parts + DONE).encode())
    assert [delta["content"] for delta in map(_delta_of, events)] == [
        "",
        "a",
        [{"type": "text", "text": "end"}, {"type": "text", "text": "\ufffd"}],
    ]


def _delta_of(event: tuple[str, str]) -> Any:
    return json.loads(event[1])["choices"][0]["delta"]


def test_half_of_a_character_stays_in_its_own_anthropic_call() -> None:
    stream = (
        about_block("start", 0, content_block={"type": "tool_use", "id": "a", "name": "f", "input": {}})
        + piece_of(0, "one \ud83d")
        + about_block("start", 1, content_block={"type": "tool_use", "id": "b", "name": "g", "input": {}})
        + piece_of(1, "two \ud83d")
        + about_block("stop", 1)
        + piece_of(0, "\ude00")
        + about_block("stop", 0)
        + 'data: {"type":"message_delta","delta":{"stop_reason":"tool_use"}}\n\n'
    )
    calls = message(anthropic(), stream)["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ["one 😀", "two \ufffd"]


@pytest.mark.parametrize("reason", ["NULL", "Null", "None", "NONE", "undefined", "FINISH_REASON_UNSPECIFIED", " "])
@pytest.mark.parametrize("name", ["openai", "anthropic", "ollama", "sse"])
def test_word_for_nothing_is_no_reason(name: str, reason: str) -> None:
    """It stands in every chunk. So an answer that fails behind it has failed."""
    broke = json.dumps({"error": json.loads(BROKEN)})
    streams = {
        "openai": chunk({"content": "half"}, finish_reason=reason) + f"data: {broke}\n\n",
        "anthropic": 'data: {"type":"content_block_delta","index":0,"delta":{"text":"half"}}\n\n'
        + f'data: {{"type":"message_delta","delta":{{"stop_reason":"{reason}"}}}}\n\ndata: {broke}\n\n',
        "ollama": json.dumps({"message": {"content": "half"}, "done": False, "done_reason": reason}) + f"\n{broke}\n",
        "sse": f'data: {{"content":"half","finish_reason":"{reason}"}}\n\ndata: {broke}\n\n',
    }
    for answer in (DIALECTS[name].answer(), *([kept()] if name == "openai" else [])):
        events = told(answer, (streams[name] + DONE).encode())
        assert len(events) == 1
        assert (answer.finish_reason, answer.complete, failed(answer).code) == ("", False, "engine_broke")


MORE_ERRORS = (
    '{"Message":"The engine broke.","Code":"Broke"}',
    '{"ok":false,"msg":"The engine broke."}',
    '{"fault":{"faultstring":"The engine broke.","detail":{"errorcode":"x"}}}',
    '{"error":["The engine broke."]}',
    '{"error":[{"message":"The engine broke."}]}',
    '{"detail":{"error":"The engine broke."}}',
    '{"detail":{"error":{"message":"The engine broke."}}}',
    '{"type":"about:blank","title":"The engine broke.","status":500}',
    '{"status":"error","message":"The engine broke."}',
    '{"code":"Broke","message":"The engine broke."}',
    '{"object":"error","message":"The engine broke.","code":50000}',
)


@pytest.mark.parametrize("error", MORE_ERRORS)
def test_error_in_any_object_outranks_the_end_behind_it_in_every_dialect(error: str) -> None:
    """Its sentence is no text of the answer, though other servers have the text where it stands."""
    beginnings = {
        "openai": chunk({"content": "half"}),
        "anthropic": 'data: {"type":"content_block_delta","index":0,"delta":{"text":"half"}}\n\n',
        "ollama": '{"model":"m","message":{"content":"half"},"done":false}\n',
        "sse": 'data: {"content":"half"}\n\n',
    }
    ends = {
        "openai": STOP + DONE,
        "anthropic": 'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
        "ollama": '{"model":"m","done":true,"done_reason":"stop"}\n',
        "sse": DONE,
    }
    for name, begin in beginnings.items():
        answer = DIALECTS[name].answer()
        block = f"{error}\n" if name == "ollama" else f"data: {error}\n\n"
        assert told(answer, (begin + block + ends[name]).encode()) == [("token", "half")]
        assert failed(answer).message.endswith("The engine broke.")
        assert failed(answer).code != "about:blank"


@pytest.mark.parametrize("end", ["data: [DONE]\n\n", "event: end\ndata: {}\n\n", ""])
def test_answer_of_an_unknown_endpoint_of_which_nothing_was_understood_is_no_empty_answer(end: str) -> None:
    answer = sse()
    assert told(answer, f'data: {{"utterance":"Hi"}}\n\n{end}'.encode()) == []
    assert (answer.ended, failed(answer).code) == (False, "upstream_protocol")


def test_second_anthropic_answer_in_one_body_is_not_read() -> None:
    start = 'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1}}}\n\n'
    first = 'data: {"type":"content_block_delta","index":0,"delta":{"text":"one"}}\n\n'
    stop = 'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n'
    answer = anthropic()
    assert said(answer, start + first + stop + start + first.replace("one", "two") + stop) == "one"
    assert (answer.ended, answer.usage) == (True, Usage(1, 2))


@BOTH
@pytest.mark.parametrize(
    "usage",
    [
        ['{"input_tokens":3,"output_tokens":4}'],
        ['{"prompt_tokens":3,"completion_tokens":4}', '{"prompt_tokens":0,"completion_tokens":0}'],
    ],
)
def test_usage_under_other_names_and_before_zeros_is_kept(make: Make, usage: list[str]) -> None:
    answer = make()
    counts = "".join(f'data: {{"choices":[],"usage":{each}}}\n\n' for each in usage)
    told(answer, (chunk({"content": "Hi"}) + STOP + counts + DONE).encode())
    assert answer.usage == Usage(3, 4)


@pytest.mark.parametrize(
    "delta",
    [
        {"thoughts": "why"},
        {"thinking_content": "why"},
        {"reasoning_summary": "why"},
        {"content": [{"type": "reasoning", "text": "why"}]},
        {"content": [{"type": "thinking", "text": "why"}]},
    ],
)
def test_thoughts_are_no_text_of_the_answer(delta: dict[str, Any]) -> None:
    stream = chunk(delta) + chunk({"content": "Hi"}) + STOP + DONE
    assert told(text(), stream.encode()) == [("thinking", "why"), ("token", "Hi")]


@pytest.mark.parametrize("name", ["thinking", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("more", ['"x":1', '"tool_calls":{}'], ids=["typed", "lenient"])
def test_ollamas_thoughts_are_read_under_whatever_name(name: str, more: str) -> None:
    line = f'{{"message":{{"{name}":"why","content":"Hi",{more}}},"done":false}}\n'
    end = '{"message":{"content":""},"done":true,"done_reason":"stop"}\n'
    assert told(ollama(), (line + end).encode()) == [("thinking", "why"), ("token", "Hi")]


def test_error_in_place_of_a_stream_keeps_its_sentence_for_the_log() -> None:
    answer = text()
    answer.labelled = False
    told(answer, b'{"error":{"message":"The engine broke.","type":"server_error"}}')
    assert (failed(answer).code, failed(answer).sentence) == ("upstream_protocol", "The engine broke.")
