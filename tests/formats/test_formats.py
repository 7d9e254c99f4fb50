"""Formats: events in, blocks out, to the letter."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Failure, GatewayError
from gateway.core.event import CHUNK, DONE, ERROR, RESTART, START, THINKING, TOKEN, TOOL, WHOLE, Done, Event, Usage
from gateway.core.sse import Decoder
from gateway.formats import (
    Completion,
    Format,
    OpenAIFormat,
    Verbatim,
    View,
    compile_format,
    error_object,
    problem,
)

STARTED = Event(START, "")
HI, YOU = Event(TOKEN, "Hi, "), Event(TOKEN, "你好。")
CALL = Event(TOOL, '{"index":0,"id":"c1","function":{"name":"f","arguments":"{}"}}')
FAILURE = Failure("upstream_cut", "It broke off.", True, 2.5, 502)
FAILED = Event(ERROR, msgspec.json.encode(FAILURE).decode())
ENDED = Done("stop", Usage(3, 4), "Hi, 你好。")
OVER = Event(DONE, msgspec.json.encode(ENDED).decode())


def view(**changes: Any) -> View:
    return View(**{"stream_id": "s1", "session_id": "c9", "model": "m", "created": 7, **changes})


def sent(form: Format, *events: Event, to: View | None = None) -> list[str]:
    """The blocks of these events for one reader, the tokens counted as a delivery counts them."""
    encoder, index, blocks = form.open(to or view()), 0, []
    for event in events:
        blocks.append(encoder.encode(event, index))
        index = 0 if event.type == RESTART else index + (event.type == TOKEN)
    return blocks


# --- presets


def test_events_preset_sends_every_kind() -> None:
    blocks = sent(compile_format("events"), STARTED, Event(THINKING, "hm"), HI, YOU, CALL, OVER, FAILED)
    assert blocks == [
        'event: connected\ndata: {"stream_id":"s1","session_id":"c9","resumed":false}\n',
        'event: thinking\ndata: {"text":"hm"}\n',
        'event: token\ndata: {"text":"Hi, ","index":0}\n',
        'event: token\ndata: {"text":"你好。","index":1}\n',
        f"event: tool\ndata: {CALL.data}\n",
        'event: done\ndata: {"full_text":"Hi, 你好。","finish_reason":"stop",'
        '"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n',
        'event: error\ndata: {"code":"upstream_cut","message":"It broke off.","retryable":true,"retry_after":2.5}\n',
    ]


def test_data_preset_sends_content_and_done() -> None:
    blocks = sent(compile_format("data"), STARTED, Event(THINKING, "hm"), HI, CALL, OVER, FAILED)
    assert blocks == [
        "",
        "",
        'data: {"content":"Hi, "}\n',
        "",
        "data: [DONE]\n",
        'data: {"error":{"code":"upstream_cut","message":"It broke off.","retryable":true,"retry_after":2.5}}\n',
    ]


def test_typed_preset_sends_types() -> None:
    assert sent(compile_format("typed"), STARTED, HI, OVER, FAILED) == [
        'data: {"type":"start"}\n',
        'data: {"type":"chunk","content":"Hi, "}\n',
        'data: {"type":"done"}\n',
        'data: {"type":"error","message":"It broke off."}\n',
    ]


def test_restart_is_told_and_counts_anew() -> None:
    again = Event(RESTART, "")
    assert sent(compile_format("events"), HI, again, HI)[1:] == [
        "event: restart\ndata: {}\n",
        'event: token\ndata: {"text":"Hi, ","index":0}\n',
    ]
    assert sent(compile_format("data"), again) == ['data: {"content":"","restart":true}\n']
    assert sent(compile_format("typed"), again) == ['data: {"type":"restart"}\n']


def test_unknown_usage_is_null() -> None:
    over = Event(DONE, '{"finish_reason":"stop","usage":null,"full_text":""}')
    assert '"usage":null' in compile_format("events").open(view()).encode(over, 0)


def test_resume_is_announced_only_by_a_start_that_tells() -> None:
    assert compile_format("events").announces_resume
    assert not compile_format("typed").announces_resume
    assert not compile_format({"start": {"data": "$$resumed"}}).announces_resume
    assert not compile_format({"start": None}).announces_resume
    resumed = compile_format("events").open(view(resumed=True)).encode(STARTED, 0)
    assert '"resumed":true' in resumed


# --- mappings of one's own


def test_mapping_replaces_whole_kinds_of_its_preset() -> None:
    form = compile_format({"preset": "events", "done": {"event": "end", "data": "{}"}, "token": {"json": "$text"}})
    assert sent(form, HI, OVER, Event(THINKING, "hm")) == [
        'data: "Hi, "\n',
        "event: end\ndata: {}\n",
        'event: thinking\ndata: {"text":"hm"}\n',
    ]


def test_mapping_keeps_types_alone_and_text_inside_strings() -> None:
    body = {
        "all": ["$retryable", "$retry_after", 1, None, {}, []],
        "said": "[$code] $message ($retry_after s) $$5 100%",
    }
    block = compile_format({"error": {"json": body}}).open(view()).encode(FAILED, 0)
    assert msgspec.json.decode(block.removeprefix("data: ")) == {
        "all": [True, 2.5, 1, None, {}, []],
        "said": "[upstream_cut] It broke off. (2.5 s) $5 100%",
    }


def test_mapping_sends_percent_signs_as_they_are() -> None:
    form = compile_format({"token": {"event": "50%s", "json": {"%s": "$text"}}, "done": {"data": "%d%%"}})
    assert sent(form, HI, OVER) == ['event: 50%s\ndata: {"%s":"Hi, "}\n', "data: %d%%\n"]


def test_mapping_sends_null_as_json() -> None:
    form = compile_format({"done": {"json": None}, "start": {"data": ""}})
    assert sent(form, OVER, STARTED) == ["data: null\n", "data: \n"]


def test_mapping_data_splits_lines_and_ends_no_block() -> None:
    form = compile_format({"token": {"event": "字", "data": "$index:$text"}})
    assert sent(form, Event(TOKEN, "a\r\n\nid: 1\r%s")) == ["event: 字\ndata: 0:a\ndata: \ndata: id: 1\ndata: %s\n"]


def test_mapping_leaves_out_null_kinds_and_foreign_events() -> None:
    assert sent(compile_format({"token": None, "done": None}), HI, OVER, Event(CHUNK, "{}")) == ["", "", ""]


def test_tool_json_of_several_lines_is_joined() -> None:
    assert sent(compile_format({"tool": {"json": "$tool"}}), Event(TOOL, '{\n"a":1}')) == ['data: {"a":1}\n']


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("event", "unknown preset 'event'; allowed: events, data, typed, openai"),
        (3, "unknown preset 3; allowed"),
        ({"preset": "openai"}, "openai cannot be changed in parts; allowed: events, data, typed"),
        ({"preset": []}, "unknown preset []"),
        ({"tokens": None}, "unknown key tokens; allowed: preset, start, thinking, token"),
        ({"token": "x"}, "token: 'x' is neither null nor a mapping"),
        ({"token": {"jason": 1}}, "token: unknown key jason; allowed: event, json, data"),
        ({"token": {"event": "x"}}, "token: json or data is missing"),
        ({"token": {"json": 1, "data": ""}}, "token: json and data exclude each other"),
        ({"token": {"data": 1}}, "token.data: 1 is no string"),
        ({"token": {"json": {"a": ["$txt"]}}}, "token.json.a[0]: unknown placeholder $txt; allowed: $text, $stream_id"),
        ({"token": {"json": "$usage"}}, "token.json: unknown placeholder $usage"),
        ({"done": {"json": {1: 2}}}, "done.json: the key 1 is no string"),
        ({"done": {"json": {"a": b"x"}}}, "done.json.a: b'x' is no JSON value"),
        ({"done": {"json": 1 << 70}}, "is no JSON value"),
        ({"done": {"event": "a\nid: 1", "data": ""}}, "done.event: 'a\\nid: 1' is no event name"),
        ({"done": {"event": "x" * 129, "data": ""}}, "done.event"),
        ({"done": {"event": "", "data": ""}}, "done.event: '' is no event name"),
    ],
)
def test_author_of_a_wrong_format_is_told_what_is_allowed(spec: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        compile_format(spec)


def test_author_of_a_bottomless_format_is_refused() -> None:
    body: Any = []
    for _ in range(40):
        body = [body]
    with pytest.raises(ValueError, match="32 levels"):
        compile_format({"done": {"json": body}})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reaches_an_eventsource_whole(text: str) -> None:
    for name in ("events", "data", "typed", "openai"):
        block = compile_format(name).open(view()).encode(Event(TOKEN, text), 0) + "\n"
        (event,) = Decoder().feed(block.encode())
        assert text in _strings(msgspec.json.decode(event.data))


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [found for item in inner for found in _strings(item)]
    return [value] if isinstance(value, str) else []


# --- OpenAI


def chunks(block: str) -> list[Any]:
    events = Decoder().feed(f"{block}\n".encode())
    return [event.data if event.data == "[DONE]" else msgspec.json.decode(event.data) for event in events]


def test_openai_spells_a_chat_log_as_chunks() -> None:
    blocks = sent(OpenAIFormat(), STARTED, Event(THINKING, "hm"), HI, CALL, OVER)
    answers = [chunk for block in blocks for chunk in chunks(block)]
    assert [answer["choices"][0]["delta"] for answer in answers[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Hi, "},
        {"tool_calls": [msgspec.json.decode(CALL.data)]},
        {},
    ]
    assert [answer["choices"][0]["finish_reason"] for answer in answers[:-1]] == [None] * 4 + ["stop"]
    assert answers[-1] == "[DONE]"


def test_openai_chunk_names_stream_time_and_model() -> None:
    assert sent(OpenAIFormat(), HI) == [
        'data: {"id":"chatcmpl-s1","object":"chat.completion.chunk","created":7,"model":"m",'
        '"choices":[{"index":0,"delta":{"content":"Hi, "},"finish_reason":null}]}\n'
    ]


def test_openai_client_gets_usage_when_it_asked() -> None:
    _, usage, end = chunks(OpenAIFormat(include_usage=True).open(view()).encode(OVER, 0))
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert end == "[DONE]"


def test_openai_passes_upstream_chunks_to_the_letter() -> None:
    blocks = sent(OpenAIFormat(), Event(CHUNK, '{ "x": 1.0 }'), in_chunks())
    assert blocks == ['data: { "x": 1.0 }\n', "data: [DONE]\n"]


def test_openai_makes_up_no_usage_behind_upstream_chunks() -> None:
    assert sent(OpenAIFormat(include_usage=True), in_chunks()) == ["data: [DONE]\n"]


def in_chunks() -> Event:
    return Event(DONE, msgspec.json.encode(msgspec.structs.replace(ENDED, in_chunks=True)).decode())


def test_openai_error_is_the_last_block() -> None:
    assert sent(OpenAIFormat(), FAILED) == [
        'data: {"error":{"message":"It broke off.","type":"server_error","param":null,'
        '"code":"upstream_cut","retryable":true,"retry_after":2.5}}\n'
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_openai_error_object_has_the_type_of_its_status(status: int, kind: str) -> None:
    assert error_object(Failure("x", "y", False, None, status))["error"]["type"] == kind


# --- proxy


def test_verbatim_keeps_names_and_data() -> None:
    blocks = sent(Verbatim(), Event("", "a\nb"), Event("error", "mine"), Event("done", "", id="7"))
    assert blocks == ["data: a\ndata: b\n", "event: error\ndata: mine\n", "event: done\ndata: \n"]


def test_verbatim_passes_ids_when_told() -> None:
    assert sent(Verbatim(ids=True), Event("x", "", id="7")) == ["event: x\ndata: \nid: 7\n"]


def test_verbatim_cleans_hostile_names() -> None:
    assert sent(Verbatim(), Event("a\x00\rb", "x"), Event("\x01", "x")) == ["event: ab\ndata: x\n", "data: x\n"]


def test_verbatim_ends_with_the_logs_own_error_or_nothing() -> None:
    encoder = Verbatim().open(view())
    assert encoder.terminal(OVER, 0) == ""
    assert encoder.terminal(FAILED, 0) == (
        'event: error\ndata: {"type":"error","code":"upstream_cut","message":"It broke off.","retryable":true,'
        '"retry_after":2.5,"error":{"message":"It broke off.","type":"server_error","param":null,"code":"upstream_cut",'
        '"retryable":true,"retry_after":2.5}}\n'
    )


def test_other_formats_end_as_they_encode() -> None:
    for form in (compile_format("events"), OpenAIFormat()):
        encoder = form.open(view())
        assert encoder.terminal(FAILED, 0) == encoder.encode(FAILED, 0)


# --- not streamed


def completed(*events: Event, done: Done | None = ENDED) -> dict[str, Any]:
    completion = Completion()
    for event in events:
        completion.add(event)
    return completion.result(view(), done)


def chunk(delta: Any, **more: Any) -> Event:
    body = {"id": "up1", "model": "big", "created": 1, "choices": [{"index": 0, "delta": delta, **more}]}
    return Event(CHUNK, msgspec.json.encode(body).decode())


def test_completion_of_a_chat_log() -> None:
    assert completed(STARTED, Event(THINKING, "hm"), HI, YOU, OVER) == {
        "id": "chatcmpl-s1",
        "created": 7,
        "model": "m",
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi, 你好。", "reasoning_content": "hm"},
                "finish_reason": "stop",
            }
        ],
    }


def test_completion_joins_deltas_and_repeats_no_label() -> None:
    whole = completed(
        chunk({"role": "assistant", "content": "Hi"}),
        chunk({"role": "assistant", "content": "!"}, finish_reason=None),
        chunk({}, finish_reason="length"),
    )
    (choice,) = whole["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "Hi!"}, "finish_reason": "length"}
    assert (whole["id"], whole["model"], whole["created"]) == ("up1", "big", 1)


def test_completion_joins_tool_calls_by_index() -> None:
    def piece(index: int, arguments: str, **more: Any) -> Event:
        return chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments}, **more}]})

    whole = completed(piece(0, '{"a', id="c1", type="function"), piece(1, "[]", id="c2"), piece(0, '":1}', id=""))
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"arguments": '{"a":1}'}},
            {"id": "c2", "type": "function", "function": {"arguments": "[]"}},
        ],
    }


def test_completion_keeps_choices_apart_and_joins_logprobs() -> None:
    whole = completed(
        Event(CHUNK, '{"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}}]}'),
        chunk({}, logprobs={"content": [{"token": "a"}]}),
        chunk({}, logprobs={"content": [{"token": "b"}]}),
    )
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["a", "b"]
    assert whole["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_completion_takes_statements_as_they_are() -> None:
    """Only texts and lists of pieces grow: a filter that says `safe` four times has said `safe`."""
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    also = {"violence": {"filtered": False, "severity": "low"}}
    whole = completed(
        chunk({"content": "a"}, content_filter_results=safe),
        chunk({"content": "b"}, content_filter_results=safe | also),
        chunk({"content": "c", "annotations": [{"url": "x"}]}, matched_stop=7, stop_reason="x"),
        chunk({"annotations": [{"url": "x"}, {"url": "y"}]}, stop_reason="x", finish_reason="stop"),
    )
    [choice] = whole["choices"]
    assert choice["content_filter_results"] == safe | also
    assert (choice["matched_stop"], choice["stop_reason"], choice["finish_reason"]) == (7, "x", "stop")
    assert choice["message"] == {
        "role": "assistant",
        "content": "abc",
        "annotations": [{"url": "x"}, {"url": "y"}],
    }


def test_completion_repeats_no_list_beside_the_choices() -> None:
    """Perplexity sends all its sources with every chunk."""
    events = [
        Event(CHUNK, '{"choices":[{"index":0,"delta":{"content":"a"}}],"citations":["x","y"]}'),
        Event(CHUNK, '{"id":"","model":"","choices":[{"index":0,"delta":{"content":"b"}}],"citations":["x","y"]}'),
    ]
    whole = completed(chunk({"content": ""}), *events)
    assert (whole["citations"], whole["id"], whole["model"]) == (["x", "y"], "up1", "big")


GROWS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "audio": (
        [{"audio": {"id": "a", "transcript": "Hi", "data": "QQ"}}, {"audio": {"transcript": "!", "data": "=="}}],
        {"id": "a", "transcript": "Hi!", "data": "QQ=="},
    ),
    "refusal": ([{"refusal": "No"}, {"refusal": "."}], "No."),
    "reasoning": ([{"reasoning": "h"}, {"reasoning": "m"}], "hm"),
    "function_call": (
        [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}],
        {"name": "f", "arguments": "{}"},
    ),
    "reasoning_details": (
        [{"reasoning_details": [{"type": "reasoning.text", "text": text, "index": 0}]} for text in ("h", "m")],
        [{"type": "reasoning.text", "text": "hm", "index": 0}],
    ),
    "content": (
        [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]} for text in ("h", "m")]
        + [{"content": "Y"}, {"content": "es"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Yes"}],
    ),
}


@pytest.mark.parametrize("field", GROWS)
def test_completion_joins_what_comes_in_pieces(field: str) -> None:
    deltas, whole = GROWS[field]
    assert completed(*map(chunk, deltas))["choices"][0]["message"][field] == whole


def test_completion_joins_the_probabilities_of_the_older_api() -> None:
    whole = completed(
        chunk({}, logprobs={"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0]}),
        chunk({}, logprobs={"tokens": ["b"], "token_logprobs": [-2.0], "text_offset": [1]}),
        chunk({}, logprobs=None),
    )
    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -2.0],
        "text_offset": [0, 1],
    }


def test_completion_makes_up_no_reason() -> None:
    done = msgspec.structs.replace(ENDED, finish_reason=None)
    assert completed(HI, done=done)["choices"][0]["finish_reason"] is None
    assert completed(chunk({"content": "x"}), done=done)["choices"][0]["finish_reason"] is None
    event = Event(DONE, msgspec.json.encode(done).decode())
    [last, _] = chunks(OpenAIFormat().open(view()).encode(event, 0))
    assert last["choices"][0]["finish_reason"] is None
    assert '"finish_reason":null' in sent(compile_format("events"), event)[0]


SENT_WHOLE = (
    '{ "id":"w1","object":"chat.completion","created":1,"model":"big","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"Hi","tool_calls":[{"id":"c1","type":"function","function":'
    '{"name":"f","arguments":""}}]},"finish_reason":"length"}],"usage":{"total_tokens":1.0}}'
)


def test_completion_keeps_a_whole_answer_to_the_letter() -> None:
    completion = Completion()
    completion.add(Event(WHOLE, SENT_WHOLE))
    assert completion.letter == SENT_WHOLE
    assert completion.result(view(), None) == msgspec.json.decode(SENT_WHOLE)
    completion.add(Event(RESTART, ""))
    assert completion.letter == ""


def test_openai_spells_a_whole_answer_as_one_chunk() -> None:
    """A reader that follows the stream of a client that wants its answer whole."""
    [block, end] = sent(OpenAIFormat(), Event(WHOLE, SENT_WHOLE), in_chunks())
    [made] = chunks(block)
    assert (made["object"], made["choices"][0]["finish_reason"]) == ("chat.completion.chunk", "length")
    assert made["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert end == "data: [DONE]\n"


def test_completion_takes_the_upstreams_usage_first() -> None:
    usage = Event(CHUNK, '{"choices":[],"usage":{"total_tokens":9},"system_fingerprint":"fp"}')
    whole = completed(chunk({"content": "x"}), usage)
    assert (whole["usage"], whole["system_fingerprint"]) == ({"total_tokens": 9}, "fp")


def test_completion_begins_anew_after_a_restart() -> None:
    assert completed(HI, Event(RESTART, ""), YOU)["choices"][0]["message"]["content"] == "你好。"


def test_completion_of_nothing_has_one_empty_choice() -> None:
    (choice,) = completed(done=None)["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": None}


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[]",
        "null",
        '{"choices":1}',
        '{"choices":[1,{"index":"x","delta":3}]}',
        '{"choices":null}',
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
    ],
)
def test_completion_survives_hostile_chunks(data: str) -> None:
    whole = completed(Event(CHUNK, data), chunk({"content": "x"}))
    assert whole["choices"][0]["message"]["content"] == "x"


def test_completion_survives_changing_types() -> None:
    for values, left in ((["a", {"b": 1}, [1], "c"], "ac"), ([[{"index": 0}], [{"index": 0, "a": "x"}], "c"], "c")):
        whole = completed(*[chunk({"content": value}) for value in values])
        assert whole["choices"][0]["message"]["content"] == left


def test_completion_refuses_an_endless_answer() -> None:
    completion = Completion(max_chars=5)
    completion.add(HI)
    with pytest.raises(GatewayError, match="upstream_oversize"):
        completion.add(YOU)


# --- problems


def test_problem_has_the_members_of_rfc_9457() -> None:
    assert problem(FAILURE, "/streams/s1") == {
        "type": "about:blank",
        "title": "Bad Gateway",
        "status": 502,
        "detail": "It broke off.",
        "code": "upstream_cut",
        "message": "It broke off.",
        "retryable": True,
        "retry_after": 2.5,
        "instance": "/streams/s1",
    }
    assert problem(Failure("stopped", "x", False, None, 499), "")["title"] == "Client Closed Request"
