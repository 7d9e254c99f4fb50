"""The floors of coverage that single files have, beside that of the whole program.

    coverage json --quiet -o - | python -m tests.kit.floors

These five files are where every stream passes; most of their branches are taken only when something fails.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

FLOOR: Final = 95.0
"""Percent of a file's branches."""
FILES: Final = (
    "gateway/streams/pump.py",
    "gateway/streams/delivery.py",
    "gateway/upstream/intake.py",
    "gateway/web/connection.py",
    "gateway/web/pipeline.py",
)


def below(files: Mapping[str, Any], names: tuple[str, ...] = FILES, floor: float = FLOOR) -> list[str]:
    """A line for each file whose branches are taken too seldom, or that was not measured at all.

    Args:
        files: `files` of coverage's JSON report.
        names: of the files that have the floor.
        floor: in percent.
    """
    lines = []
    for name in names:
        if name not in files:
            lines.append(f"{name}: not measured")
            continue
        summary = files[name]["summary"]
        taken, all_ = summary["covered_branches"], summary["num_branches"]
        if 100 * taken < floor * all_:
            missing = ", ".join(f"{start}->{end}" for start, end in files[name]["missing_branches"])
            lines.append(f"{name}: {taken} of {all_} branches, less than {floor:g} %; missing {missing}")
    return lines


if __name__ == "__main__":
    problems = below(msgspec.json.decode(sys.stdin.buffer.read())["files"])
    sys.exit("\n".join(problems) or 0)
