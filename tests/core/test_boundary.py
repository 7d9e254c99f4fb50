"""Boundaries as readers would draw them, and the same for every cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.boundary import Boundary, Kind


def cuts(text: str, kind: Kind = "sentence") -> list[int]:
    """All boundaries of `text`, found by pushing it one character at a time."""
    boundary = Boundary(kind)
    found = [(at, boundary.push(char)) for at, char in enumerate(text)]
    return [at + offset for at, offset in found if offset is not None]


def parts(text: str, kind: Kind = "sentence") -> list[str]:
    edges = [0, *cuts(text, kind), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges) if a < b]


def whole(text: str, kind: Kind = "sentence") -> bool:
    return not cuts(text + "X", kind)


def pushes(*pieces: str, kind: Kind = "sentence") -> list[int | None]:
    boundary = Boundary(kind)
    return [boundary.push(piece) for piece in pieces]


# What is reported


def test_sentence_is_cut_before_the_piece_that_brings_its_space() -> None:
    assert pushes("Hello", ".", " How", " are") == [None, None, 0, None]
    assert pushes("Hello. How") == [6]


def test_sentence_whose_space_came_with_it_is_cut_before_the_next_piece() -> None:
    assert pushes("Hello. ", "How") == [None, 0]
    assert pushes("你好。", "世界") == [None, 0]


def test_push_reports_the_last_of_several_boundaries() -> None:
    assert pushes("One. Two. Three") == [9]
    assert pushes("一。二。三") == [4]


def test_line_is_cut_behind_its_line_feed() -> None:
    assert pushes("Done.\n", "Next") == [6, None]
    assert pushes("a\n\n", "b", kind="paragraph") == [3, None]


# Sentences


@pytest.mark.parametrize(
    "text",
    [
        "Hello. |How are you? |Fine! |Well… |Yes",
        'He said "stop." |Then (he left.) |**Bold.** |The end',
        "我来了。|你呢？|好！|走；|他说……|完",
        "“好。”|他说。|（真的！）|「はい。」|そう",
        "他说。|“你好。”|然后",
        '他说。|"你好。"|然后。|**重点。**|**又一**',
        "你好!|世界?|是",
        "I came. |So did I. |Version 2 is 3.14. |Ok",
        "Really?! |No way... |Ok",
        "See https://a.b/c.d?e=1. |Open main.py. |Run `x.y`. |Ok",
        "Is it? |yes, it is",
        "वह आया। |फिर",
    ],
)
def test_sentence_ends_where_a_reader_would_end_it(text: str) -> None:
    assert parts(text.replace("|", "")) == text.split("|")


@pytest.mark.parametrize(
    "text",
    [
        "Pi is 3.14 and v1.2.3 of example.com/a.b?c=d!e is in file.tar.gz ",
        "Mr. Smith, Dr. Who and Prof. Li, e.g. Ann, i.e. Bob, etc. Then the U.S. Army, J. R. Tolkien ",
        "Nr. 5, z.B. Haus, bzw. Hof, d.h. Stadt, No. 7, Fig. 3, p. 12, Jan. 5 ",
        "wait... what",
        "1. ",
        "  - **2.** ",
        "10. ",
        '"Really?" he said, "yes." and left ',
        "approx. five. and more ",
        "我…我不知道",
        "a comma. , b",
    ],
)
def test_sentence_goes_on_where_a_reader_would_read_on(text: str) -> None:
    assert whole(text)


def test_sentence_ends_with_list_items_headings_and_blank_lines() -> None:
    text = "# Title\n|Intro\nsoft break\n\n|- one\n|  * two\n|1. First\n|2) Second\n|3、第三\n|一、甲\n|（1）乙\n|End"
    assert parts(text.replace("|", "")) == text.split("|")


def test_answer_no_is_a_sentence_but_number_5_is_not() -> None:
    assert parts("No. That is No. 5") == ["No. ", "That is No. 5"]


# Fences


@pytest.mark.parametrize("kind", ["sentence", "paragraph"])
@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```"])
def test_fence_is_whole_and_ends_in_one_boundary(kind: Kind, fence: str) -> None:
    code = f"{fence}python\na. B\n\n你好。C\n``\n~~\n{fence}\n"
    assert cuts(code + "After", kind) == [len(code)]
    assert cuts(code + "\n\nAfter", kind) == [len(code)]


def test_fence_is_closed_only_by_its_own_kind_and_length() -> None:
    assert parts("````\nA. B\n```\nC. D\n~~~~\n```` x\n`````  \nE") == [
        "````\nA. B\n```\nC. D\n~~~~\n```` x\n`````  \n",
        "E",
    ]


def test_fence_marker_may_be_cut_between_pushes() -> None:
    assert pushes("``", "`py\nA. ", "B\n`", "``", "\n", "C") == [None, None, None, None, 1, None]


def test_code_span_of_three_ticks_is_no_fence() -> None:
    assert parts("```x``` is code\nNow. Next") == ["```x``` is code\nNow. ", "Next"]


def test_fence_that_never_closes_costs_no_memory() -> None:
    boundary = Boundary("sentence")
    assert all(boundary.push("code. Code 你好。\n") is None for _ in [boundary.push("```\n"), *range(1000)])
    assert sum(len(value) for value in vars(boundary).values() if isinstance(value, str)) < 1000


# Paragraphs


def test_paragraph_ends_at_a_blank_line_once() -> None:
    text = "\n\na. B\nc\n\n|\n\nd\r\n\r\n|e\n \t\n|f"
    assert parts(text.replace("|", ""), "paragraph") == text.split("|")


# Every cut

TEXTS = st.lists(
    st.sampled_from(
        ["Hello", "we", "3", "1.", ".", "...", "!", "?", "…", "。", "！", "”", '"', "**", "*", ")", "好", "Dr"]
    )
    | st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "```", "~~~", "`", "- ", "# ", "1. ", "e.g.", "No", "U.S."]),
    max_size=30,
).map("".join)


def place(text: str, offset: int) -> int:
    """The boundary's place whatever part of its white space it was reported at."""
    return offset + len(text[offset:]) - len(text[offset:].lstrip())


@given(TEXTS, st.sampled_from(["sentence", "paragraph"]), st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=300, deadline=None)
def test_every_cut_shows_boundaries_of_the_whole_text_and_misses_none_it_ends_on(
    text: str, kind: Kind, at: list[int]
) -> None:
    edges = [0, *sorted(min(i, len(text)) for i in at), len(text)]
    boundary = Boundary(kind)
    for start, end in itertools.pairwise(edges):
        offset = boundary.push(text[start:end])
        before, now = cuts(text[:start], kind), cuts(text[:end], kind)
        assert (offset is None) == (len(before) == len(now))
        assert offset is None or place(text, start + offset) == place(text, now[-1])
        assert offset is None or 0 <= offset <= end - start


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_is_cut_in_order_and_never_twice_in_one_place(text: str) -> None:
    places = [place(text, offset) for offset in cuts(text)]
    assert places == sorted(set(places))
