"""A file's branches are counted against its floor."""

import pytest

from tests.kit.floors import FILES, below
from tests.kit.program import ROOT


@pytest.mark.parametrize(
    ("taken", "said"), [(19, []), (18, ["a.py: 18 of 20 branches, less than 95 %; missing 7->9, 8->-1"])]
)
def test_file_below_its_floor_is_told_with_what_it_misses(taken: int, said: list[str]) -> None:
    summary = {"covered_branches": taken, "num_branches": 20}
    assert below({"a.py": {"summary": summary, "missing_branches": [[7, 9], [8, -1]]}}, ("a.py",)) == said


def test_file_that_was_not_measured_is_below_its_floor() -> None:
    assert below({}, ("a.py",)) == ["a.py: not measured"]


def test_files_with_a_floor_are_there() -> None:
    assert all((ROOT / name).is_file() for name in FILES)
