"""Which call a piece belongs to; the transcripts of whole answers are in `tests/dialects/test_field.py`."""

import pytest

from gateway.core.pieces import MAX_CALLS, ToolCalls, chunk_of


def numbers(*pieces: tuple[int | None, str, str, str]) -> list[int | None]:
    calls = ToolCalls()
    return [calls.number(*piece) for piece in pieces]


def test_pieces_of_one_index_are_one_call() -> None:
    assert numbers((0, "a", "f", ""), (0, "", "", "{"), (1, "b", "g", "{"), (0, "", "", "}")) == [0, 0, 1, 0]


def test_another_id_or_name_begins_another_call() -> None:
    assert numbers((0, "a", "f", "{}"), (0, "b", "f", "{}"), (0, "", "g", "{}"), (None, "c", "h", "")) == [0, 1, 2, 3]


def test_whole_arguments_behind_whole_arguments_begin_another_call() -> None:
    assert numbers((0, "a", "f", "{}"), (0, "a", "f", " {}"), (0, "a", "f", "")) == [0, 1, 1]


@pytest.mark.parametrize(
    ("pieces", "name"),
    [
        ([(0, "a", "get_", ""), (0, "", "weather", ""), (0, "", "", "{}")], "get_weather"),
        ([(0, "a", "get_", ""), (0, "a", "weather", ""), (0, "a", "", "{}")], "get_weather"),
        ([(None, "a", "get", ""), (None, "", "_wea", ""), (None, "", "ther", "")], "get_weather"),
        ([(0, "a", "get", ""), (0, "a", "get_weather", ""), (0, "", "", "{}")], "get_weather"),
        ([(0, "a", "f", ""), (0, "a", "f", "{"), (0, "a", "f", "}")], "f"),
        ([(0, "a", "", ""), (0, "", "f", "{}")], "f"),
    ],
)
def test_name_in_pieces_is_one_name(pieces: list[tuple[int | None, str, str, str]], name: str) -> None:
    calls = ToolCalls()
    assert {calls.number(*piece) for piece in pieces} == {0}
    assert calls.name(0) == name


def test_another_name_begins_another_call_where_it_is_no_piece() -> None:
    assert numbers((0, "", "f", ""), (0, "", "g", "")) == [0, 1]
    assert numbers((0, "a", "f", ""), (0, "b", "g", "")) == [0, 1]
    assert numbers((0, "a", "f", ""), (0, "", "g", "{}")) == [0, 1]
    assert numbers((0, "a", "f" * 200, ""), (0, "", "g" * 200, "")) == [0, 1]


def test_another_id_alone_begins_nothing() -> None:
    assert numbers((0, "a", "f", ""), (0, "b", "", '{"x"'), (0, "c", "", ":1}")) == [0, 0, 0]
    assert numbers((0, "a", "f", "{"), (0, "b", "g", "{"), (0, "a", "", "}"), (0, "b", "", "}")) == [0, 1, 0, 1]


def test_repeated_labels_begin_nothing() -> None:
    assert numbers((None, "a", "f", '{"x":{}'), (None, "a", "f", ',"y":1}'), (None, "", "f", "")) == [0, 0, 0]


def test_pieces_without_anything_go_on_with_the_latest() -> None:
    assert numbers((None, "", "", "{"), (None, "", "", "}"), (7, "b", "g", "{"), (None, "", "", "}")) == [0, 0, 1, 1]


def test_calls_have_a_bound() -> None:
    calls = ToolCalls()
    made = [calls.number(index, "", "", "") for index in range(MAX_CALLS + 5)]
    assert made[-6:] == [MAX_CALLS - 1, *[None] * 5]
    assert len(calls) == MAX_CALLS
    assert calls.number(3, "", "", "{") == 3


def test_whole_answer_is_one_chunk() -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}, {"id": "b"}]}
    whole = {"object": "chat.completion", "choices": [{"message": called, "finish_reason": "x"}, None], "usage": {}}
    calls = [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}, {"index": 1, "id": "b"}]
    assert chunk_of(whole) == {
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "finish_reason": "x",
                "delta": {"role": "assistant", "tool_calls": calls},
            }
        ],
        "usage": {},
    }
    assert chunk_of({})["choices"] == []
