"""The queue for what hardly ever waits, and the sets that many hold."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.few import MAX_CHARACTERS, MAX_SETS, Few, shared


@given(st.lists(st.one_of(st.none(), st.integers())))
def test_queue_gives_back_what_a_deque_would(steps: list[int | None]) -> None:
    few, model = Few[int](), deque[int]()
    for step in steps:
        if step is not None:
            few.append(step)
            model.append(step)
        elif model:
            assert few.popleft() == model.popleft()
    assert list(few) == list(model)


def test_empty_queue_has_no_first_item() -> None:
    with pytest.raises(IndexError):
        Few[int]().popleft()


def test_equal_sets_are_one_and_large_ones_and_too_many_are_not_kept() -> None:
    names = [frozenset({"temperature", "top_p"}) for _ in range(2)]
    assert shared(names[0]) is shared(names[1])
    large = [frozenset({"x" * MAX_CHARACTERS, "y"}) for _ in range(2)]
    assert [shared(each) is each for each in large] == [True, True]
    for number in range(MAX_SETS):
        shared(frozenset({f"name {number}"}))
    late = [frozenset({"came", "late"}) for _ in range(2)]
    assert [shared(each) is each for each in late] == [True, True]
    assert shared(names[1]) is shared(names[0])
