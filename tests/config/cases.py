"""Tables of configs: pieces of YAML under a heading, and the lines that `gateway check` prints for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest


def cases(table: str) -> Iterator[object]:
    """Every case of a table beside this file: under which heading it stands, the YAML, the expected lines."""
    heading = ""
    for block in Path(__file__).with_name(table).read_text("utf-8").split("\n\n"):
        if block.startswith("["):
            heading = block
        elif not block.startswith("#"):
            yaml, *expected = block.strip().split("\n> ")
            yield pytest.param(heading, yaml, expected, id=f"{heading} {yaml[:60]}")
