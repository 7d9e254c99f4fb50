"""The trace that a request belongs to, read from its `traceparent` and `tracestate` headers.

A malformed `traceparent` is ignored; a malformed `tracestate` is ignored alone. This file does not know what a trace
is used for.

Source: W3C Trace Context, level 2, 3.2 and 3.3.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
MAX_MEMBERS: Final = 32

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]{0,200})?")
_KEY: Final = r"[a-z0-9][a-z0-9_*/-]{0,255}(?:@[a-z][a-z0-9_*/-]{0,13})?"
_VALUE: Final = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_MEMBER: Final = re.compile(rf"(?:{_KEY}={_VALUE})?")


class TraceContext(NamedTuple):
    """The caller's place in a trace.

    Attributes:
        trace_id, parent_id: 128 and 64 bits, never 0.
        flags: 8 bits; the lowest says that the caller records.
        headers: `traceparent` and, where there is one, `tracestate`, to the letter.
    """

    trace_id: int
    parent_id: int
    flags: int
    headers: dict[str, str]


def read_context(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """The context in these headers, None if they hold no valid one.

    Args:
        parents: the values of all `traceparent` headers; more than one make the context invalid.
        states: those of all `tracestate` headers, in order.
    """
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    headers = {TRACEPARENT: parents[0]}
    if state := _valid_state(",".join(states)):
        headers[TRACESTATE] = state
    return TraceContext(int(trace_id, 16), int(parent_id, 16), int(flags, 16), headers)


def _valid_state(state: str) -> str:
    # The white space is stripped first: a pattern that skips it takes quadratic time for a header full of it.
    members = [member.strip(" \t") for member in state.split(",")]
    valid = len(members) <= MAX_MEMBERS and all(map(_MEMBER.fullmatch, members))
    return state if valid else ""
