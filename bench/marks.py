"""Marks: the numbered and stamped deltas that the upstream writes, and the check that they all arrived, once, in order.

- Every mark has the same length, so the upstream formats a whole chunk of HTTP with one `%`.
- The last mark of an answer has a letter of its own, so that the client knows that there is none after it.
- Stamps are microseconds of CLOCK_MONOTONIC, which all processes of one machine share.

This file does no I/O and asks no clock. It does not know through which program the bytes went.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_EVENTS: Final = 10_000
"""Events of one answer."""
MAX_LINE: Final = 1 << 20
"""Bytes that are kept while a line is not complete."""

EVENT: Final = (
    b'data: {"id":"chatcmpl-123456789","object":"chat.completion.chunk","created":1795170655,"model":"bench-model",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":"t%06d@%013d "},"logprobs":null,'
    b'"finish_reason":null}],"usage":null}\n\n'
)
"""One chunk of an OpenAI answer, in want of a number and a stamp."""
LAST_EVENT: Final = EVENT.replace(b"t%06d", b"z%06d")
END: Final = (
    b'data: {"id":"chatcmpl-123456789","object":"chat.completion.chunk","created":1795170655,"model":"bench-model",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\ndata: [DONE]\n\n'
)

START: Final = "start all answers that wait"
"""The message that lets them go on behind their first event."""
STOP: Final = "stop all answers"
"""The message that makes the next event of every answer its last one."""

_NUMBERED: Final = re.compile(rb"([tz]\d{6})@")
_STAMP: Final = re.compile(rb"@(\d{13})")
_IN_ORDER: Final = [b"t%06d" % number for number in range(MAX_EVENTS)]
_PROMPT: Final = re.compile(rb"(\d{1,5}) events at (\d{1,5}) per second( once told)?")


@dataclass(frozen=True, slots=True)
class Pace:
    """How an answer flows.

    Attributes:
        events: of the whole answer, 1 to `MAX_EVENTS`.
        rate: events a second; 0 sends the first event and then none, so that an answer of more never ends.
        waits: whether nothing follows the first event before the upstream is told to `START`.
    """

    events: int
    rate: int
    waits: bool = False

    @property
    def prompt(self) -> str:
        """The message that asks the upstream for this pace; it passes through every program unchanged."""
        return f"{self.events} events at {self.rate} per second" + (" once told" if self.waits else "")

    @classmethod
    def parse(cls, body: bytes) -> "Pace":
        """The pace that a request asks for, wherever in its body the prompt stands; a single event when none does."""
        asked = _PROMPT.findall(body)
        events, rate, waits = asked[-1] if asked else (1, 1, b"")
        return cls(max(1, min(int(events), MAX_EVENTS)), int(rate), bool(waits))


class Sequence:
    """Checks the marks of one answer while its bytes come in.

    Attributes:
        count: marks so far.
        misplaced: marks that came again or too late.
        complete: whether the last mark was among them.
        ended: whether the answer's own end was seen; what follows it is not looked at.

    Args:
        stamped: whether stamps are read too, which costs the client as much again.
    """

    __slots__ = ("_next", "_rest", "_stamped", "complete", "count", "ended", "misplaced")

    def __init__(self, *, stamped: bool = False) -> None:
        self._stamped = stamped
        self._rest = b""
        self._next = 0
        self.count = 0
        self.misplaced = 0
        self.complete = False
        self.ended = False

    def feed(self, body: bytes) -> list[int]:
        """The stamps in the next bytes of the body, which may be cut anywhere; none unless `stamped`.

        Raises:
            ValueError: a line is longer than `MAX_LINE`.
        """
        if self._rest or not body.endswith(b"\n"):
            body = self._whole_lines(body)
        if self.ended:
            return []
        if b"[DONE]" in body or b"event: done" in body:
            body = self._up_to_end(body)
        self._check(_NUMBERED.findall(body))
        return [int(stamp) for stamp in _STAMP.findall(body)] if self._stamped else []

    @property
    def lost(self) -> int:
        """How many marks are missing or misplaced; an answer without its last mark or its end counts as one more."""
        return max(0, self._next - self.count) + self.misplaced + (not (self.complete and self.ended))

    def _whole_lines(self, body: bytes) -> bytes:
        body = self._rest + body
        end = body.rfind(b"\n") + 1
        self._rest = body[end:]
        if len(self._rest) > MAX_LINE:
            raise ValueError("a line without an end")
        return body[:end]

    def _up_to_end(self, body: bytes) -> bytes:
        self.ended = True  # formats may repeat the whole text behind their end
        return body.partition(b"[DONE]")[0].partition(b"event: done")[0]

    def _check(self, found: list[bytes]) -> None:
        start, self.count = self._next, self.count + len(found)
        self._next += len(found)
        if found != _IN_ORDER[start : self._next]:
            self._place(start, found)

    def _place(self, place: int, found: list[bytes]) -> None:
        for mark in found:
            number = int(mark[1:])
            self.misplaced += number < place
            self.complete = mark.startswith(b"z")
            place = max(place, number + 1)
        self._next = place
