"""JSON that is not quite right, value by value."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import lenient
from gateway.core.lenient import Halves, json_of, mended_text, value_of


def test_halves_of_characters_and_numbers_that_are_none_are_accepted() -> None:
    value = value_of('{"a":"\\udcaf","b":NaN,"c":-Infinity,"d":"x\ty"}')
    assert json.loads(json_of(value)) == {"a": "\ufffd", "b": None, "c": None, "d": "x\ty"}
    assert value_of("{") is None
    assert value_of("[" * 100_000) is None


@given(st.text(st.characters(categories=["Cs", "Lu", "So"])))
def test_mended_text_is_text_that_everybody_reads(text: str) -> None:
    assert mended_text(text).encode().decode() == mended_text(text)
    assert [one for one in mended_text(text) if one != "\ufffd"] == [
        one for one in text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if one != "\ufffd"
    ]


@given(st.text(), st.data())
def test_text_that_is_cut_between_halves_is_whole_again(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-le", "surrogatepass")
    cut = 2 * data.draw(st.integers(0, len(units) // 2))
    halves = Halves()
    parts = [part.decode("utf-16-le", "surrogatepass") for part in (units[:cut], units[cut:])]
    assert "".join(halves.joined("k", part) for part in parts) == text
    assert not halves


def test_halves_are_kept_apart_by_their_text() -> None:
    halves = Halves()
    assert halves.joined("a", "x\ud83d") + halves.joined("b", "\ude00") == "x\ufffd"
    assert bool(halves)
    assert halves.joined("a", "") == ""
    assert halves.joined("a", "\ude00!") == "😀!"
    halves.joined("c", "\ud83d")
    assert (halves.rest(), halves.rest(), bool(halves)) == (["c"], [], False)


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("index_of", "0", 0),
        ("index_of", 2.0, 2),
        ("index_of", True, None),
        ("index_of", "x", None),
        ("index_of", 1e300, None),
        ("word_of", 17, "17"),
        ("word_of", None, ""),
        ("text_of", 5, "5"),
        ("text_of", [{"text": "a"}, "b"], "ab"),
        ("text_of", {"type": "text", "text": "a"}, "a"),
        ("text_of", True, None),
        ("text_of", {}, None),
        ("reason_of", "stop", "stop"),
        ("reason_of", {"type": "stop"}, "stop"),
        ("reason_of", "null", ""),
        ("reason_of", None, ""),
        ("reason_of", 5, None),
        ("arguments_of", {}, ""),
        ("arguments_of", {"a": 1}, '{"a":1}'),
        ("arguments_of", 5, None),
        ("objects_of", {}, ([], 0)),
        ("objects_of", {"a": 1}, ([{"a": 1}], 0)),
        ("objects_of", {"0": {"a": 1}}, ([{"a": 1}], 0)),
        ("objects_of", [{"a": 1}, 5], ([{"a": 1}], 1)),
        ("objects_of", "x", ([], 1)),
    ],
)
def test_value_means(name: str, value: Any, meaning: Any) -> None:
    assert getattr(lenient, name)(value) == meaning


def test_value_of_any_depth_is_mended() -> None:
    value: Any = "\ud800"
    for _ in range(500):
        value = [value]
    assert json_of({"a": value, "b": 1 << 70})
