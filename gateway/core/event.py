"""The one type that flows: dialects make events, the log keeps them, formats turn them into frames.

Invariants:

- An `Event` never changes after it was made; it is shared by every reader of a log.
- The types below are the gateway's own vocabulary. A log of a `proxy` route holds the upstream's events instead,
  with whatever type the upstream gave them; the route decides which of the two a log speaks, never a single event.

This file does not know how an event is spelled on any wire.
"""

from typing import Final, Literal

import msgspec

START: Final = "start"
"""The stream exists. `data` is empty; who reads it is told the stream's and the session's id."""
THINKING: Final = "thinking"
"""A piece of the model's reasoning. `data` is the text."""
TOKEN: Final = "token"  # noqa: S105 - a kind of event
"""A piece of the answer. `data` is the text."""
TOOL: Final = "tool"
"""A piece of a tool call. `data` is one element of OpenAI's `delta.tool_calls`, as JSON."""
CHUNK: Final = "chunk"
"""One `chat.completion.chunk` of an OpenAI upstream, kept to the letter for an OpenAI client. `data` is its JSON."""
RESTART: Final = "restart"
"""What was sent so far is void; the answer begins anew."""
DONE: Final = "done"
"""The answer is whole. `data` is a `Done`, as JSON."""
ERROR: Final = "error"
"""The answer failed. `data` is an `errors.Failure`, as JSON."""

UsageSource = Literal["usage", "estimate"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of a stream: the triple of WHATWG HTML 9.2.6.

    Attributes:
        type: the event's name; in a gateway log one of the constants of this module, in a proxy log the upstream's
            name, or "" for an event that had none.
        data: the payload, lines joined by LF.
        id: the upstream's own id, "" where it gave none; readers are sent cursors instead when resume is on.
    """

    type: str
    data: str
    id: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens a generation consumed, as the upstream said (`usage`) or as counted from bytes (`estimate`).

    Attributes:
        input: tokens of the prompt, at least 0.
        output: tokens of the answer and its reasoning, at least 0.
        source: who counted.
        cached_input: tokens of `input` that the provider had in its cache, 0 where it does not say.
    """

    input: int
    output: int
    source: UsageSource = "usage"
    cached_input: int = 0


class Done(msgspec.Struct, frozen=True):
    """The data of a `DONE` event.

    Attributes:
        finish_reason: OpenAI's word (`stop`, `length`, `tool_calls`, `content_filter`), or the upstream's own.
        usage: tokens consumed; None only where the dialect has none and nothing was estimated.
        full_text: all `TOKEN` texts joined.
        in_chunks: whether the log holds the upstream's own chunks to the last, finish reason and usage among them.
    """

    finish_reason: str
    usage: Usage | None
    full_text: str
    in_chunks: bool = False
