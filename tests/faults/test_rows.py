"""Every row of the table of faults is named by the tests that cover it: this file finds the one that nobody names.

A test names a row, as `U12`, or several, as `U1-U4` or `C1, C3`, in its own docstring or in its file's. The table in
`README.md` beside this file says more, and is held to the same rows.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NUMBERS = {"U": range(1, 34), "C": range(1, 14), "W": range(1, 9), "X": [1, 2], "H": range(1, 12), "R": range(1, 9)}
ROWS = [f"{kind}{number}" for kind, numbers in NUMBERS.items() for number in numbers]
NAMED = re.compile(r"\b([UCWXHR])(\d{1,2})(?:-\1?(\d{1,2}))?\b")


def rows_in(text: str) -> set[str]:
    """The rows that are named, one by one or as a range."""
    return {
        f"{kind}{number}"
        for kind, first, last in NAMED.findall(text)
        for number in range(int(first), int(last or first) + 1)
    }


def docstrings(path: Path) -> Iterator[str]:
    """Those of a file of tests and of the tests in it."""
    tree = ast.parse(path.read_bytes())
    for node in [tree, *ast.walk(tree)]:
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


@pytest.fixture(scope="module")
def named() -> set[str]:
    here = Path(__file__)
    texts = (text for path in TESTS.rglob("test_*.py") if path != here for text in docstrings(path))
    return set().union(*map(rows_in, texts))


def test_rows_are_found_alone_and_in_ranges() -> None:
    assert rows_in("U1, U3-U5, C2-C3, (X1)") == {"U1", "U3", "U4", "U5", "C2", "C3", "X1"}
    assert rows_in("U1a XU2 SHA1") == set()


@pytest.mark.parametrize("row", ROWS)
def test_row_is_named_by_a_test(named: set[str], row: str) -> None:
    assert row in named


def test_table_has_every_row_and_only_files_that_exist() -> None:
    table = [line.split("|")[1:-1] for line in (Path(__file__).parent / "README.md").read_text().splitlines()]
    lines = [cells for cells in table if cells and rows_in(cells[0])]
    assert [cells[0].strip() for cells in lines] == ROWS
    files = {name for cells in lines for name in re.findall(r"`([\w/]+\.py)`", cells[-1])}
    assert all((TESTS / name).exists() for name in files), [name for name in files if not (TESTS / name).exists()]
    assert all("`" in cells[-1] for cells in lines)
