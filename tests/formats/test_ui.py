"""The AI SDK's UI message stream: what each kind of event becomes, and that a reader who comes back goes on rightly."""

import msgspec
import pytest

from gateway.core.errors import GatewayError
from gateway.core.event import DONE, ERROR, RESTART, START, THINKING, TOKEN, TOOL, Done, Event
from gateway.formats import Encoder, UIFormat, View, compile_format, load_format

VIEW = View("stream-1", "chat", "m", 0)


def done(reason: str | None = "stop") -> Event:
    return Event(DONE, msgspec.json.encode(Done(reason, None, "")).decode())


def piece(index: int, **fields: object) -> Event:
    name, arguments = fields.pop("name", None), fields.pop("arguments", None)
    function = {"name": name, "arguments": arguments}
    return Event(TOOL, msgspec.json.encode({"index": index, "function": function, **fields}).decode())


def sent(encoder: Encoder, *events: Event) -> list[str]:
    blocks = [encoder.terminal(e, 0) if e.type in (DONE, ERROR) else encoder.encode(e, 0) for e in events]
    assert all(block == "" or block.endswith("\n") for block in blocks)
    return [line.removeprefix("data: ") for block in blocks for line in block.split("\n") if line]


ANSWER = [Event(START, ""), Event(THINKING, "hm"), Event(TOKEN, "a"), Event(TOKEN, "字"), done()]
WHOLE = [
    '{"type":"start","messageId":"stream-1"}',
    '{"type":"reasoning-start","id":"1"}',
    '{"type":"reasoning-delta","id":"1","delta":"hm"}',
    '{"type":"reasoning-end","id":"1"}',
    '{"type":"text-start","id":"2"}',
    '{"type":"text-delta","id":"2","delta":"a"}',
    '{"type":"text-delta","id":"2","delta":"字"}',
    '{"type":"text-end","id":"2"}',
    '{"type":"finish","finishReason":"stop"}',
    "[DONE]",
]


def test_parts_are_opened_filled_and_closed() -> None:
    assert sent(compile_format("ui").open(VIEW), *ANSWER) == WHOLE


@pytest.mark.parametrize("had", range(1, len(ANSWER)))
def test_reader_that_comes_back_goes_on_within_a_part(had: int) -> None:
    before = sent(UIFormat().open(VIEW), *ANSWER[:had])
    encoder = UIFormat().open(VIEW)
    encoder.skip(ANSWER[:had])
    assert before + sent(encoder, *ANSWER[had:]) == WHOLE


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("length", ',"finishReason":"length"'),
        ("content_filter", ',"finishReason":"content-filter"'),
        ("tool_calls", ',"finishReason":"tool-calls"'),
        ("stopped", ',"finishReason":"other"'),
        (None, ""),
    ],
)
def test_finish_reason_has_the_sdk_s_name_and_none_is_made_up(reason: str | None, told: str) -> None:
    assert sent(UIFormat().open(VIEW), done(reason)) == [f'{{"type":"finish"{told}}}', "[DONE]"]


def test_error_is_told_in_a_sentence() -> None:
    events = [Event(TOKEN, "a"), Event(ERROR, GatewayError("upstream_cut", "It broke.").to_json())]
    assert sent(UIFormat().open(VIEW), *events)[2:] == ['{"type":"error","errorText":"It broke."}', "[DONE]"]


def test_tool_calls_are_whole_when_the_next_part_begins() -> None:
    events = [
        piece(0, id="c1", name="f", arguments='{"a":'),
        piece(0, arguments="1}"),
        piece(1, id="c2", name="g"),
        Event(TOKEN, "x"),
        piece(2, arguments="{"),
        piece(2, name="h", arguments="!"),
        done("tool_calls"),
    ]
    assert sent(UIFormat().open(VIEW), *events) == [
        '{"type":"tool-input-start","toolCallId":"c1","toolName":"f"}',
        '{"type":"tool-input-delta","toolCallId":"c1","inputTextDelta":"{\\"a\\":"}',
        '{"type":"tool-input-delta","toolCallId":"c1","inputTextDelta":"1}"}',
        '{"type":"tool-input-available","toolCallId":"c1","toolName":"f","input":{"a":1}}',
        '{"type":"tool-input-start","toolCallId":"c2","toolName":"g"}',
        '{"type":"tool-input-available","toolCallId":"c2","toolName":"g","input":{}}',
        '{"type":"text-start","id":"1"}',
        '{"type":"text-delta","id":"1","delta":"x"}',
        '{"type":"text-end","id":"1"}',
        '{"type":"tool-input-start","toolCallId":"stream-1-2","toolName":"h"}',
        '{"type":"tool-input-delta","toolCallId":"stream-1-2","inputTextDelta":"{!"}',
        '{"type":"tool-input-error","toolCallId":"stream-1-2","toolName":"h","input":"{!",'
        '"errorText":"The model\'s input for this tool is not valid JSON."}',
        '{"type":"finish","finishReason":"tool-calls"}',
        "[DONE]",
    ]


def test_message_that_is_continued_keeps_its_id_on_any_machine() -> None:
    again = load_format(UIFormat("mine").spec)
    assert sent(again.open(VIEW), Event(START, ""), Event(RESTART, "")) == ['{"type":"start","messageId":"mine"}']
    assert load_format(UIFormat().spec).spec == "ui"
