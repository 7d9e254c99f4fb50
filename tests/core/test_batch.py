"""Joined and held events: nothing lost, doubled, reordered or altered, and every bound kept."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.batch import Holdback, merge
from gateway.core.event import CHUNK, DONE, RESTART, START, THINKING, TOKEN, TOOL, Event


def token(text: str) -> Event:
    return Event(TOKEN, text)


def thinking(text: str) -> Event:
    return Event(THINKING, text)


TOOL_CALL = Event(TOOL, '{"index":0}')
END = Event(DONE, "{}")
EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from([TOKEN, TOKEN, TOKEN, THINKING, TOOL, CHUNK, RESTART]),
        st.sampled_from(["", "Hi", ".", " How", "。", "你好", "🙂" * 5, "\n\n", "A. B"]),
    ),
    max_size=20,
)


# merge


def test_merge_joins_neighbouring_texts_of_one_kind_under_the_last_number() -> None:
    events = [thinking("a"), thinking("b"), token("c"), token("d"), token("e"), END]
    assert merge(events, 10, 100) == [(12, thinking("ab")), (15, token("cde")), (16, END)]


def test_merge_leaves_all_other_events_alone() -> None:
    events = [TOOL_CALL, TOOL_CALL, Event(CHUNK, "1"), Event(CHUNK, "2"), Event(START, ""), token("a"), TOOL_CALL]
    assert merge(events, 0, 100) == list(enumerate(events, 1))


def test_merge_returns_a_single_event_as_it_is() -> None:
    event = token("你好" * 100)
    assert merge([event], 6, 10)[0][1] is event
    assert merge([], 6, 10) == []


def test_merge_fills_a_joined_event_up_to_the_bound_in_bytes() -> None:
    events = [token("你好"), token("abc"), token("。"), token("x" * 20), token("y")]
    assert merge(events, 0, 9) == [(2, token("你好abc")), (3, token("。")), (4, token("x" * 20)), (5, token("y"))]


def test_merge_keeps_the_id_of_the_last_part() -> None:
    assert merge([Event(TOKEN, "a", "1"), Event(TOKEN, "b", "2")], 0, 9) == [(2, Event(TOKEN, "ab", "2"))]


@given(EVENTS, st.integers(0, 1000), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_merge_loses_alters_and_reorders_nothing(events: list[Event], after: int, max_bytes: int) -> None:
    place = after
    for seq, event in merge(events, after, max_bytes):
        run = events[place - after : seq - after]
        assert {part.type for part in run} == {event.type}
        assert "".join(part.data for part in run) == event.data
        assert len(run) == 1 or (event.type in (TOKEN, THINKING) and len(event.data.encode()) <= max_bytes)
        place = seq
    assert place == after + len(events)


# Holdback


def released(*texts: str, hold: Holdback) -> list[list[str]]:
    return [[event.data for event in group] for text in texts for group in hold.feed([token(text)], 0)]


def test_hold_releases_whole_sentences() -> None:
    hold = Holdback("sentence", 1000, 5)
    assert released("Hello", ".", " How", " are", " you?", " I", hold=hold) == [
        ["Hello", "."],
        [" How", " are", " you?"],
    ]
    assert hold.flush() == [token(" I")]


def test_hold_releases_chinese_sentences() -> None:
    hold = Holdback("sentence", 1000, 5)
    assert released("你", "好。", "”", "世界", "！", "是", hold=hold) == [["你", "好。", "”"], ["世界", "！"]]


def test_hold_releases_paragraphs_and_keeps_fences_whole() -> None:
    hold = Holdback("paragraph", 1000, 5)
    groups = released("A. B", "\n\n", "```\n", "x\n\n", "```\n", "C", hold=hold)
    assert groups == [["A. B", "\n\n"], ["```\n", "x\n\n", "```\n"]]


def test_hold_never_splits_an_event_with_a_boundary_inside() -> None:
    hold = Holdback("sentence", 1000, 5)
    assert released("One", ". Two", " three", ". Four. Five", hold=hold) == [
        ["One", ". Two"],
        [" three", ". Four. Five"],
    ]


def test_hold_releases_everything_with_an_event_that_is_no_delta() -> None:
    hold = Holdback("sentence", 1000, 5)
    assert hold.feed([token("Hi"), TOOL_CALL, token("a"), END], 0) == [[token("Hi"), TOOL_CALL], [token("a"), END]]
    assert hold.feed([END], 0) == [[END]]
    assert hold.due is None


def test_hold_releases_the_thinking_when_the_answer_begins() -> None:
    hold = Holdback("sentence", 1000, 5)
    assert hold.feed([thinking("hm"), token("So")], 0) == [[thinking("hm")]]
    assert hold.flush() == [token("So")]


def test_hold_begins_anew_after_a_restart() -> None:
    hold = Holdback("sentence", 1000, 5)
    hold.feed([token("```\ncode"), Event(RESTART, "")], 0)
    assert released("Hi.", " So", hold=hold) == [["Hi."]]


def test_hold_releases_at_its_bound_in_bytes() -> None:
    hold = Holdback("sentence", 9, 5)
    assert released("你", "好", "吗", hold=hold) == [["你", "好", "吗"]]
    assert released("abcdefgh", "好", "x" * 20, hold=hold) == [["abcdefgh"], ["好"], ["x" * 20]]


def test_hold_is_due_when_its_first_event_has_waited_long_enough() -> None:
    hold = Holdback("sentence", 1000, 5)
    assert hold.due is None
    hold.feed([token("a")], 10)
    hold.feed([token("b")], 12)
    assert hold.due == 15
    assert hold.feed([token("c")], 15) == [[token("a"), token("b")]]
    assert hold.due == 20


def test_hold_counts_the_wait_anew_after_each_release() -> None:
    hold = Holdback("sentence", 1000, 5)
    hold.feed([token("One.")], 10)
    assert hold.feed([token(" Two")], 13) == [[token("One.")]]
    assert hold.due == 18
    assert hold.flush() == [token(" Two")]
    assert hold.due is None
    assert hold.flush() == []


@given(EVENTS, st.sampled_from(["sentence", "paragraph"]), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_hold_loses_nothing_and_keeps_its_bound(events: list[Event], kind: str, max_bytes: int, step: int) -> None:
    hold = Holdback("sentence" if kind == "sentence" else "paragraph", max_bytes, 3)
    groups = [group for i in range(0, len(events), step) for group in hold.feed(events[i : i + step], i)]
    last = hold.flush()
    assert [*itertools.chain.from_iterable(groups), *last] == events
    for texts in ([event for event in group if event.type in (TOKEN, THINKING)] for group in [*groups, last]):
        assert len(texts) < 2 or sum(len(event.data.encode()) for event in texts) <= max_bytes
        assert len({event.type for event in texts}) < 2
    assert all(groups)
