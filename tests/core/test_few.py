"""The queue for what hardly ever waits."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.few import Few


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
