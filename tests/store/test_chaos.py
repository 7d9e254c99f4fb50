"""Nodes are killed, paused and ended by chance while readers are cut: no reader sees anything wrong (R5, R6).

`python -m tests.store.chaos` is the same at its full size.
"""

import random
from pathlib import Path

import pytest

from tests.store.chaos import run

pytestmark = pytest.mark.alone


async def test_readers_get_everything_once_whatever_happens_to_nodes(tmp_path: Path, chance: random.Random) -> None:
    """P1 and P2 for each; slots and keys are all back afterwards (the run itself asserts the slots)."""
    figures = await run(tmp_path, streams=20, cuts=60, words=30, seed=chance.randrange(1 << 30), pace=0.15)
    assert figures.wrong == [], figures
    assert figures.left == [], figures
    assert figures.whole + len(figures.told) == 20, figures
