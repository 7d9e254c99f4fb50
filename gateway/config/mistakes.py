"""Where a mistake in YAML begins, which is often far above the line where a parser stumbles over it.

The parser reads on as long as it can: past a quote or a bracket that was never closed, and past a colon without a space
behind it, which makes a key a part of the text. Each of these is looked for in what was read before the parser gave up;
where none is found, the parser's own place and words are used.

This file knows nothing of what the document says.
"""

import re
from typing import Any, Final, NamedTuple

import yaml

_GLUED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*:(?!//)\S")
"""A key and its value without the space between them. A URL is none."""
FULL_COLON: Final = "\N{FULLWIDTH COLON}"
"""What a Chinese or Japanese keyboard writes in place of a colon."""
_OPENING: Final = {"[": "]", "{": "}"}
_KEY_PLACE: Final = re.compile(r"\s*(- +)*")
"""What stands before a key on its line."""


class Mistake(NamedTuple):
    """What is wrong with a text that is no YAML.

    Attributes:
        line: where it begins, counted from 1.
        reason: what it is.
    """

    line: int
    reason: str


def is_glued(text: str) -> bool:
    """Whether a text seems to be a key and its value, with no space behind the colon."""
    return _GLUED.match(text) is not None


def mistake(text: str, error: yaml.MarkedYAMLError) -> Mistake:
    """What is wrong with `text`, given what the parser said of it."""
    at = error.problem_mark or error.context_mark
    if at is None:
        return Mistake(1, _words(error))
    begin = error.context_mark or at
    before = _tokens(text, at.index)
    stumble = _Stumble(text, error.context or "", error.problem or "", begin, at, before)
    found = (search(stumble) for search in (_quote, _reference, _bracket, _colon, _indentation))
    return next((wrong for wrong in found if wrong is not None), Mistake(at.line + 1, _words(error)))


class _Stumble(NamedTuple):
    """Where and why the parser gave up.

    Attributes:
        text: the document.
        context, problem: the parser's words.
        begin: the beginning of what it was reading.
        at: the place that made no sense.
        before: the tokens before that place.
    """

    text: str
    context: str
    problem: str
    begin: Any
    at: Any
    before: list[Any]

    @property
    def last(self) -> Any:
        """The last scalar before the place, None for none."""
        return next((token for token in reversed(self.before) if isinstance(token, yaml.ScalarToken)), None)


def _quote(stumble: _Stumble) -> Mistake | None:
    """A quote without an end. The rest of the file is one text, or all up to the next quote: then the first thing that
    makes no sense stands behind that quote, on its line."""
    last, line = stumble.last, stumble.at.line
    if "quoted scalar" in stumble.context and stumble.problem.startswith("found unexpected"):
        return Mistake(stumble.begin.line + 1, "a quote is opened here and never closed")
    if last is not None and last.style in ("'", '"') and last.start_mark.line < last.end_mark.line == line:
        return Mistake(last.start_mark.line + 1, f"a quote is opened here and not closed before line {line + 1}")
    return None


def _reference(stumble: _Stumble) -> Mistake | None:
    """A reference such as `${NAME}` between brackets and without quotes, where its brace opens a mapping."""
    if not stumble.context.startswith(("while parsing a flow", "while parsing a node")):
        return None
    for opened in reversed(_open([*stumble.before, *_token_at(stumble)])):
        start = opened.start_mark
        if stumble.text[start.index - 1 : start.index + 1] == "${":
            return Mistake(start.line + 1, 'inside [ ] or { } a reference has to be in quotes, as "${NAME}"')
    return None


def _bracket(stumble: _Stumble) -> Mistake | None:
    """A bracket without an end."""
    if not stumble.context.startswith(("while parsing a flow", "while parsing a node")):
        return None
    for opened in reversed(_open(stumble.before)):
        if not _is_closed(stumble.text, opened.start_mark.index):
            bracket = stumble.text[opened.start_mark.index]
            return Mistake(opened.start_mark.line + 1, f"a {bracket} is opened here and never closed")
    return None


def _colon(stumble: _Stumble) -> Mistake | None:
    """A colon without a space behind it: a line that is no key, or that goes on in the next line."""
    last, begin = stumble.last, stumble.begin
    if stumble.problem.startswith("could not find expected ':'"):
        line = stumble.text[begin.index : begin.index + 256].split("\n", 1)[0]
        if FULL_COLON in line:
            return Mistake(begin.line + 1, f"the colon here is {FULL_COLON}; write an ASCII colon and a space")
        glued = is_glued(line)
        return Mistake(begin.line + 1, f"a {'space is missing after a colon' if glued else 'colon is missing'}")
    swallowed = stumble.problem.startswith("mapping values") and last is not None and last.plain
    if swallowed and last.start_mark.line < stumble.at.line and _is_at_key(stumble.text, last):
        first = stumble.text[last.start_mark.index :].split("\n", 1)[0]
        if FULL_COLON in first:
            return Mistake(
                last.start_mark.line + 1, f"the colon here is {FULL_COLON}; write an ASCII colon and a space"
            )
        glued = is_glued(last.value)
        return Mistake(
            last.start_mark.line + 1, f"a {'space is missing after a colon' if glued else 'colon is missing'}"
        )
    return None


def _indentation(stumble: _Stumble) -> Mistake | None:
    """A key that stands under none of those before it."""
    line = stumble.at.line + 1
    first = next((token for token in stumble.before if isinstance(token, yaml.BlockMappingStartToken)), None)
    if stumble.problem.startswith("expected '<document start>'") and first is not None and first.start_mark.column:
        return Mistake(first.start_mark.line + 1, f"the key here is indented, unlike the one in line {line}")
    if stumble.problem.startswith("expected <block end>") and stumble.problem.endswith(("mapping start>'", "'-'")):
        return Mistake(line, "the indentation here fits none of the lines before")
    return None


def _tokens(text: str, end: int) -> list[Any]:
    """The tokens that begin before the index `end`, up to the first one that cannot be read.

    Nothing is read that the parser has not read: its own limit on nesting keeps it from more, which can take hours.
    """
    scanner, tokens = yaml.SafeLoader(text), []
    try:
        while scanner.check_token() and scanner.peek_token().start_mark.index < end:  # type: ignore[no-untyped-call]
            tokens.append(scanner.get_token())  # type: ignore[no-untyped-call]
    except yaml.YAMLError:
        # Read already, and kept back because they might have been a key.
        tokens += [token for token in scanner.tokens if token.start_mark.index < end]
    return tokens


def _open(tokens: list[Any]) -> list[Any]:
    """The brackets that are open behind these tokens, the outermost first."""
    opened: list[Any] = []
    for token in tokens:
        if isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken):
            opened.append(token)
        elif isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken) and opened:
            opened.pop()
    return opened


def _is_closed(text: str, start: int) -> bool:
    """Whether the bracket at `start` is closed somewhere behind it, quotes and comments left out."""
    depth, quote, before = 0, "", " "
    for line in text[start:].splitlines():
        for char in line:
            if quote:
                quote = "" if char == quote else quote
            elif char in "'\"" and before in " [{,:":
                quote = char
            elif char == "#" and before == " ":
                break
            elif char in _OPENING:
                depth += 1
            elif char in _OPENING.values():
                depth -= 1
                if not depth:
                    return True
            before = char
        before = " "
    return False


def _is_at_key(text: str, token: Any) -> bool:
    """Whether nothing but indentation and dashes stands before the token on its line."""
    index: int = token.start_mark.index
    return _KEY_PLACE.fullmatch(text[text.rfind("\n", 0, index) + 1 : index]) is not None


def _token_at(stumble: _Stumble) -> list[Any]:
    """The bracket at which the parser gave up; empty for none."""
    return [token for token in _tokens(stumble.text, stumble.at.index + 1)[len(stumble.before) :] if _open([token])]


def _words(error: yaml.MarkedYAMLError) -> str:
    """What the parser said, in plain words where they are known."""
    said = " ".join(part for part in (error.context, error.problem) if part)
    return next((plain for pattern, plain in PLAIN if pattern.search(said)), said or "the text makes no sense")


PLAIN: Final = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"found character '\\t'", "there is a tab, which YAML does not take for space here; write spaces"),
        (r"found character '.'", "a value cannot begin with this character; put it in quotes"),
        (r"scanning an alias", 'a value cannot begin with * outside quotes; write "*"'),
        (r"scanning an anchor", "a value cannot begin with & outside quotes; put it in quotes"),
        (r"scanning a double-quoted.*escape", "a backslash inside \" \" begins an escape; write ' ' around the text"),
        (r"scanning a block scalar", "behind | or > the line ends; the text begins in the next line"),
        (
            r"mapping values are not",
            "no colon can be here; put the text in quotes, or indent the key as those beside it",
        ),
        (r"parsing a flow \w+ expected ',' or '[]}]', but got '[<:]", "a comma is missing before this, or a quote"),
        (
            r"parsing a block .*but found '<scalar>'",
            "text stands behind a closing quote; write a quote inside ' ' twice",
        ),
        (r"parsing a block .*but found '[]}]'", "a bracket is closed here that was never opened"),
        (r"found another document", "a second document begins here (---); allowed: one"),
    )
)
"""What the parser says, and plain words for it. The first row that fits counts."""
