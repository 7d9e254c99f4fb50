"""How mistakes in a config are reported: every problem with its file, line and key.

Invariant: a message says what is allowed, and never holds a value from the file or the environment.
This file does not know how problems are found.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

KeyPath = tuple[str | int, ...]
"""A place in the file: the keys of mappings and the indices of lists that lead there."""


class Problem(NamedTuple):
    """One thing that is wrong, or doubtful.

    Attributes:
        file: the file's name as it was given.
        line: counted from 1.
        key: the dotted key, as in `routes[0].path`; "" for the file as a whole.
        message: what is wrong, and what is allowed.
        warning: whether the config can be used all the same.
    """

    file: str
    line: int
    key: str
    message: str
    warning: bool = False

    def __str__(self) -> str:
        parts = (f"{self.file}:{self.line}", self.key, "warning" if self.warning else "", self.message)
        return ": ".join(part for part in parts if part)


class ConfigError(Exception):
    """The config cannot be used. As text: a line for each problem, as `gateway check` prints it.

    Attributes:
        problems: everything that is wrong, by line; at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: KeyPath) -> str:
    """`path` as people write it, as in `routes[0].path`, on one line and of bounded length."""
    joined = "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in path)
    return joined.removeprefix(".")


def suggestion(name: object, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the name that was probably meant, and all that are allowed."""
    names = sorted(allowed)
    near = get_close_matches(str(name)[:128], names, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}allowed: {', '.join(names[:50]) or 'nothing'}{', …' if len(names) > 50 else ''}"


def _printable(text: str) -> str:
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:64])
    return shown + ("…" if len(text) > 64 else "")
