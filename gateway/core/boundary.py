"""Where sentences and paragraphs end in a text that is still being written.

Invariants:

- A boundary depends on the text alone, not on how it is cut into pushes: each boundary found in any cut is a boundary
  of the whole text, and a text that is pushed one character at a time gives all of them, each once.
- There is no boundary inside a fenced code block, and one behind the line that closes it.
- State is bounded: a few hundred characters of the current line, however long the line, the fence or the text.

At the end of a sentence, any place in the white space behind it is the boundary. It is known when the next character
comes, and given as the earliest place of that white space inside the text that is being pushed. So pieces that begin
with their space, as models write them (`Hello.`, ` How`), are never cut. The boundary of a line or a paragraph is
exactly behind its line feed.

There is no dictionary. A short list of abbreviations stands in for one; in doubt a sentence goes on. This file does
not know who writes, or how long somebody waits for a boundary.
"""

import re
from typing import Final, Literal

Kind = Literal["sentence", "paragraph"]

_WIDE_STOPS: Final = "。！？；｡"
_STOPS: Final = ".!?…؟।॥۔։" + _WIDE_STOPS
_CLOSERS: Final = "\"'”’»)]}*_`」』）】》〉］｝"
_PAIRED: Final = {'"': '"', "'": "'", "`": "`", "*": "**", "_": "__"}
"""Closing marks that look like opening ones, and what must stand an odd number of times before them to be open."""

_SENTENCE: Final = re.compile(f"[{re.escape(_STOPS)}\n]")
_PARAGRAPH: Final = re.compile("\n")

_OPENING_FENCE: Final = re.compile(r"(?:[>\s]|[-*+]\s|\d{1,9}[.)]\s)*(`{3,}(?=[^`]*$)|~{3,})")
_FENCE_LINE: Final = re.compile(r"(?:[>\s]|[-*+]\s|\d{1,9}[.)]\s)*(?:```|~~~)")
_ITEM: Final = re.compile(
    r"[>\s]*(?:[-*+•·]\s|#{1,6}\s|\(?\d{1,9}[.)]\s|（?\d{1,9}[、．）]|[一二三四五六七八九十]{1,3}、)"
)
_ORDINAL: Final = re.compile(r"[\W_]*(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z]|[ivxIVX]{1,5})")
_INITIALS: Final = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")

_ABBREVIATIONS: Final = """
    mr mrs ms dr prof st sr jr vs etc cf al ca approx dept est gen gov hon inc ltd corp rev sen rep capt lt sgt mt ave
    blvd messrs nr dipl ing bzw usw ggf evtl inkl exkl zzgl sog vgl str tel allg bspw mme mlle sra dra
"""
_BEFORE_NUMBERS: Final = """
    no nos p pp vol fig figs abb ch sec art eq s bd kap jan feb apr jun jul aug sep sept oct nov dec
"""
_NEVER_LAST: Final = frozenset(_ABBREVIATIONS.split())
_NOT_LAST_BEFORE_NUMBERS: Final = frozenset(_BEFORE_NUMBERS.split())

_HEAD: Final = 80
_TAIL: Final = 256
_RUN: Final = 8


class Boundary:
    """Finds the boundaries of one text, pushed piece by piece.

    Sentences end at `. ! ? …` before white space and at `。！？；……` anywhere, closing quotes and brackets included; at
    the end of a list item, of a heading, of a line that ends in a stop; and at a blank line. They do not end at the
    point of a number, an abbreviation, an initial or a list's number, nor at points before a small letter.
    Paragraphs end at blank lines.

    Args:
        kind: what to find.

    Source: UAX #29 5.1 (SB6 to SB8a), CommonMark 4.5
    """

    def __init__(self, kind: Kind) -> None:
        self._sentences = kind == "sentence"
        self._stops = _SENTENCE if self._sentences else _PARAGRAPH
        self._head = ""  # of the current line: tells lists, headings and fences
        self._tail = ""  # of the current line: tells abbreviations and open quotes
        self._fence = ""  # the marker that opened a code block, "" outside of one
        self._run = ""  # the stops and closing marks that wait for a decision
        self._wide = False  # whether the run needs no white space behind it
        self._digit_wanted = False  # whether the run follows a word like "No." that a number may follow
        self._gap = -1  # where the white space behind the run began in this push, -1 for none yet
        self._content = False  # whether anything but white space came since the last boundary

    def push(self, text: str) -> int | None:
        """The place in `text` of the last boundary that `text` made known, from 0 to its length; None if there is none.

        0 means that the text pushed before ended a sentence or paragraph.
        """
        found = None
        at = 0
        if self._gap >= 0:
            self._gap = 0
        while (at := self._skip(text, at)) < len(text):
            char = text[at]
            if char == "\n":
                at += 1
                found = at if self._end_line() else found
            elif not self._run:
                self._stop(char)
                at += 1
            elif self._continues(char, at):
                at += 1
            else:
                cut = self._decide(char, at)
                found = found if cut is None else cut
        return found

    def _skip(self, text: str, at: int) -> int:
        """The place of the next character that may decide something, at least `at`."""
        if self._run:
            return at
        stop = (_PARAGRAPH if self._fence else self._stops).search(text, at)
        end = stop.start() if stop else len(text)
        self._keep(text[at:end])
        return end

    def _keep(self, piece: str) -> None:
        if len(self._head) < _HEAD:
            self._head = (self._head + piece).lstrip()[:_HEAD]
        if self._sentences and not self._fence:
            self._tail = (self._tail + piece)[-_TAIL:]
        if not self._content and piece and not piece.isspace():
            self._content = True

    def _stop(self, char: str) -> None:
        """Begins to wait for what follows a stop, unless the stop ends no sentence."""
        word = _last_word(self._tail)
        if not _FENCE_LINE.match(self._head) and not (char == "." and self._abbreviates(word)):
            self._run = char
            self._wide = char in _WIDE_STOPS or (char in "!?" and self._tail[-1:] >= "\u2e80")
            self._digit_wanted = char == "." and word.casefold() in _NOT_LAST_BEFORE_NUMBERS
        self._keep(char)

    def _abbreviates(self, word: str) -> bool:
        if word.casefold() in _NEVER_LAST or _INITIALS.fullmatch(word):
            return True
        initial = len(word) == 1 and word.isupper() and word != "I"
        return initial or bool(_ORDINAL.fullmatch(self._head))

    def _continues(self, char: str, at: int) -> bool:
        """Whether `char` continues the run of stops and closing marks, or the white space behind it."""
        if self._gap < 0 and (char in _STOPS or self._closes(char)):
            self._run = (self._run + char)[-_RUN:]
            self._wide = self._wide or char in _WIDE_STOPS or self._run.endswith("……")
        elif char.isspace() and not self._wide:
            self._gap = at if self._gap < 0 else self._gap
        else:
            return False
        self._keep(char)
        return True

    def _closes(self, char: str) -> bool:
        # Behind a stop that needs white space, a mark can only be closing. Behind a wide stop the next sentence may
        # begin at once, with an opening mark that looks the same: there a mark closes only what the line has opened.
        if char not in _CLOSERS or not self._wide or char not in _PAIRED:
            return char in _CLOSERS
        return self._tail.count(_PAIRED[char]) % 2 == 1

    def _decide(self, char: str, at: int) -> int | None:
        """The place of the boundary, now that `char` follows; None if there is none."""
        ends = self._wide or (self._gap >= 0 and self._begins(char))
        cut = at if self._gap < 0 else self._gap
        self._forget()
        if not ends:
            return None
        self._content = False
        return cut

    def _begins(self, char: str) -> bool:
        """Whether a sentence may begin with `char`, behind the run and white space."""
        if char in _STOPS or char in ",;:":
            return False
        if self._digit_wanted and char.isdigit():
            return False
        return not char.islower() or self._run[-1] in "!?"

    def _forget(self) -> None:
        self._run = ""
        self._gap = -1

    def _end_line(self) -> bool:
        """Whether the line feed at the end of the current line is a boundary."""
        head, stopped = self._head, bool(self._run)
        self._head = self._tail = ""
        self._forget()
        if self._fence:
            ends = self._closes_fence(head)
        elif fence := _OPENING_FENCE.match(head):
            self._fence = fence[1]
            ends = False
        else:
            ends = self._content and (not head or (self._sentences and (stopped or bool(_ITEM.match(head)))))
        self._content = self._content and not ends
        return ends

    def _closes_fence(self, line: str) -> bool:
        marker = line.strip("> \t\r")
        if len(marker) < len(self._fence) or marker.strip(self._fence[0]):
            return False
        self._fence = ""
        return True


def _last_word(text: str) -> str:
    if not text or text[-1].isspace():
        return ""
    return text.rsplit(None, 1)[-1].lstrip("([{\"'“‘（「『*_")
