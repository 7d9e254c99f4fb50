"""docs/security.md names, for every attack, tests that exist."""

import ast
import re
from functools import cache

from tests.kit.program import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text("utf-8")
ATTACKS = TEXT[TEXT.index("## Attacks") :]
ROWS = [line for line in ATTACKS.splitlines() if line.startswith("| ") and not line.startswith("| attack ")]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@cache
def names_in(path: str) -> set[str]:
    """The names of a file's tests; none where there is no such file."""
    file = ROOT / path
    if not file.exists():
        return set()
    nodes = ast.walk(ast.parse(file.read_bytes()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_attack_has_a_test() -> None:
    assert len(ROWS) > 50
    assert [row for row in ROWS if not NAMED.search(row.rsplit("|", 2)[1])] == []


def test_every_test_that_is_named_exists() -> None:
    assert [f"{path}::{name}" for path, name in NAMED.findall(ATTACKS) if name not in names_in(path)] == []
