"""From a second answer to what a reader lacks of the first."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.continuation import PROBE, Continuation, DiffersError
from gateway.core.event import THINKING, TOKEN, TOOL, Event

CALL = Event(TOOL, '{"index":0}')


def tokens(*texts: str) -> list[Event]:
    return [Event(TOKEN, text) for text in texts]


def let_through(delivered: str, *texts: str, prefilled: bool) -> str:
    """What a reader is sent of these texts, one event each."""
    continuation = Continuation(delivered, prefilled=prefilled)
    events = [event for text in texts for event in continuation.feed(tokens(text))] + continuation.close()
    assert all(event.type == TOKEN and event.data for event in events)
    return "".join(event.data for event in events)


def test_answer_that_goes_on_is_let_through_at_once() -> None:
    continuation = Continuation("The quick brown", prefilled=True)
    assert continuation.feed(tokens(" fox")) == tokens(" fox")
    assert continuation.feed(tokens(" jumps")) == tokens(" jumps")
    assert continuation.close() == []


@pytest.mark.parametrize("prefilled", [True, False])
def test_repetition_is_dropped(prefilled: bool) -> None:
    continuation = Continuation("Hello", prefilled=prefilled)
    assert continuation.feed(tokens("He")) == []
    assert continuation.feed(tokens("llo, wor")) == tokens(", wor")
    assert continuation.feed(tokens("ld")) == tokens("ld")


def test_other_answer_differs_and_nothing_of_it_is_lost() -> None:
    continuation = Continuation("Hello", prefilled=False)
    assert continuation.feed(tokens("He")) == []
    with pytest.raises(DiffersError) as caught:
        continuation.feed([*tokens("y", " you"), CALL])
    assert caught.value.events == [*tokens("Hey", " you"), CALL]


def test_repetition_that_turns_away_differs_though_it_was_prefilled() -> None:
    with pytest.raises(DiffersError):
        let_through("The quick brown fox", "The quick brown hare", prefilled=True)
    with pytest.raises(DiffersError):
        let_through("Hello wo", "Hello there", prefilled=True)


def test_answer_may_go_on_with_a_word_that_it_began_with() -> None:
    assert let_through("The cat sees the dog. ", "The dog runs.", prefilled=True) == "The dog runs."


def test_answer_that_ends_before_it_said_what_the_reader_has_differs() -> None:
    with pytest.raises(DiffersError) as caught:
        let_through("Hello", "Hell", prefilled=False)
    assert caught.value.events == tokens("Hell")


def test_answer_that_was_whole_has_nothing_more() -> None:
    assert let_through("Hello", prefilled=True) == ""
    assert let_through("Hello", "Hello", prefilled=False) == ""


@pytest.mark.parametrize(
    ("delivered", "said", "fresh"),
    [
        ("one ", " two", "two"),
        ("one ", "two", "two"),
        ("def f():\n", "\n    return", "    return"),
        ("def f():\n    ", "\n    return", "return"),
        ("one\n", "\n\ntwo", "\ntwo"),
        ("one\n\n", "\ntwo", "two"),
        ("one", " two", " two"),
    ],
)
def test_white_space_that_the_reader_has_is_not_said_again(delivered: str, said: str, fresh: str) -> None:
    assert let_through(delivered, said, prefilled=True) == fresh
    assert let_through(delivered, *said, prefilled=True) == fresh


def test_thoughts_of_the_second_answer_are_dropped() -> None:
    continuation = Continuation("Hello", prefilled=True)
    assert continuation.feed([Event(THINKING, "Hm."), *tokens(" you")]) == tokens(" you")


def test_tool_call_follows_what_was_held() -> None:
    assert Continuation("Hello", prefilled=True).feed([*tokens(" you"), CALL]) == [*tokens(" you"), CALL]
    assert Continuation("Hello", prefilled=False).feed([*tokens("Hello"), CALL]) == [CALL]


def test_tool_call_in_place_of_the_text_differs_and_is_kept() -> None:
    with pytest.raises(DiffersError) as caught:
        Continuation("Hello", prefilled=False).feed([*tokens("He"), CALL])
    assert caught.value.events == [*tokens("He"), CALL]


def test_reader_who_has_nothing_is_sent_everything() -> None:
    assert let_through("", " He", "llo", prefilled=False) == " Hello"


# For every text, every place where it broke off, and every way it is cut into events.

TEXTS = st.text(alphabet="ab \n你.", min_size=1, max_size=60)


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, str]:
    """What was delivered, and the rest."""
    whole = draw(TEXTS)
    place = draw(st.integers(0, len(whole)))
    return whole[:place], whole[place:]


def pieces(draw: Any, text: str) -> list[str]:
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)]


@given(broken(), st.data(), st.booleans())
def test_delivered_and_let_through_are_the_whole_answer_when_it_is_repeated(
    answer: tuple[str, str], data: st.DataObject, prefilled: bool
) -> None:
    delivered, rest = answer
    texts = pieces(data.draw, delivered + rest)
    assert let_through(delivered, *texts, prefilled=prefilled) == rest


@given(broken(), st.data())
def test_delivered_and_let_through_are_the_whole_answer_when_it_goes_on(
    answer: tuple[str, str], data: st.DataObject
) -> None:
    delivered, rest = "Zyx: " + answer[0], answer[1]  # which no rest begins with
    kept = delivered.rstrip()
    assert let_through(delivered, *pieces(data.draw, (delivered + rest)[len(kept) :]), prefilled=True) == rest


@given(TEXTS, TEXTS, st.data(), st.booleans())
def test_whatever_is_said_nothing_is_let_through_that_does_not_follow(
    delivered: str, said: str, data: st.DataObject, prefilled: bool
) -> None:
    texts = pieces(data.draw, said)
    try:
        fresh = let_through(delivered, *texts, prefilled=prefilled)
    except DiffersError:
        fresh = None
    repeated = said.startswith(delivered) and fresh == said[len(delivered) :]
    went_on = fresh is not None and said.endswith(fresh) and not said[: len(said) - len(fresh)].strip()
    assert repeated or (went_on and prefilled) or (fresh is None and not said.startswith(delivered))


@given(st.text(alphabet="ab ", min_size=PROBE * 2, max_size=80), st.integers(PROBE, PROBE * 2 - 1), st.data())
def test_long_agreement_is_a_repetition(delivered: str, place: int, data: st.DataObject) -> None:
    said = delivered[:place] + "#"
    if len(delivered[:place].strip()) >= PROBE:
        with pytest.raises(DiffersError):
            let_through(delivered, *pieces(data.draw, said), prefilled=True)
