"""The documents, taken apart: their fenced blocks, headings and links.

Only what these documents use is understood: fences of three backticks, ATX headings, inline links. This file does not
know what a block means.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.kit.program import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(r"^( *)```(.*)$")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$")
_LINK = re.compile(r"(?<!\\)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`]*`")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        document, line: where it begins; lines count from 1.
        language: the first word behind the fence, "" for none.
        text: its lines, without the indentation of the fence.
        section: the heading it stands under.
    """

    document: Path
    line: int
    language: str
    text: str
    section: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


class Document:
    """One Markdown file.

    Attributes:
        blocks: its fenced blocks.
        anchors: what links may name behind `#`, as GitHub makes them.
        links: line and target of every inline link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks: list[Block] = []
        self.anchors: set[str] = set()
        self.links: list[tuple[int, str]] = []
        self._read(path.read_text("utf-8").splitlines())

    def _read(self, lines: list[str]) -> None:
        section, begin = "", -1
        for number, line in enumerate(lines):
            if fence := _FENCE.match(line):
                if begin >= 0:
                    self.blocks.append(_block(self.path, lines, begin, number, section))
                begin = -1 if begin >= 0 else number
                assert begin < 0 or len(fence[1]) % 2 == 0
            elif begin < 0:
                section = self._prose(number, line) or section
        assert begin < 0, f"{self.path}:{begin + 1}: the fence is never closed"

    def _prose(self, number: int, line: str) -> str:
        self.links += [(number + 1, target) for target in _LINK.findall(_CODE.sub("", line))]
        heading = _HEADING.match(line)
        if heading is None:
            return ""
        self.anchors.add(anchor(heading[1]))
        return heading[1]


def _block(path: Path, lines: list[str], begin: int, end: int, section: str) -> Block:
    fence = _FENCE.match(lines[begin])
    assert fence is not None
    text = "".join(f"{line.removeprefix(fence[1])}\n" for line in lines[begin + 1 : end])
    return Block(path, begin + 1, (fence[2].split() or [""])[0], text, section)


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def blocks(*languages: str) -> list[Block]:
    """Every block of these languages in every document."""
    return [block for path in DOCUMENTS for block in Document(path).blocks if block.language in languages]


def answered(language: str, answer: str = "text") -> Iterator[tuple[Block, Block | None]]:
    """Every block of this language, with the next block of its section where that is an `answer`."""
    for path in DOCUMENTS:
        found = Document(path).blocks
        for block, following in pairwise([*found, None]):
            if block is not None and block.language == language:
                is_answer = following and (following.language, following.section) == (answer, block.section)
                yield block, following if is_answer else None
