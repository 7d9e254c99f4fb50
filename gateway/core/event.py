"""The one type that flows: dialects make events, the log keeps them, formats turn them into frames.

Invariants:

- An `Event` never changes after it was made; all readers of a log share it.
- The types below are the gateway's own. The log of a `proxy` route holds the upstream's events instead, with the
  upstream's types. The route decides which of the two a log holds; no log holds both.

This file does not know how an event looks on any wire.
"""

from typing import Final, Literal

import msgspec

START: Final = "start"
"""The stream exists. `data` is empty; formats add the ids of the stream and the session for each reader."""
THINKING: Final = "thinking"
"""A piece of the model's reasoning. `data` is the text."""
TOKEN: Final = "token"  # noqa: S105 - a kind of event
"""A piece of the answer. `data` is the text."""
TOOL: Final = "tool"
"""A piece of a tool call. `data` is one element of OpenAI's `delta.tool_calls`, as JSON."""
CHUNK: Final = "chunk"
"""One `chat.completion.chunk` of an OpenAI upstream, kept to the letter for an OpenAI client. `data` is its JSON."""
WHOLE: Final = "whole"
"""One `chat.completion` of an OpenAI upstream, kept to the letter for an OpenAI client that wants its answer whole.
`data` is its JSON. It is the only event of its log beside the end."""
RESTART: Final = "restart"
"""What was sent so far is void; the answer begins anew."""
DONE: Final = "done"
"""The answer is whole. `data` is a `Done`, as JSON."""
ERROR: Final = "error"
"""The answer failed. `data` is an `errors.Failure`, as JSON."""

UsageSource = Literal["usage", "estimate"]


class Event(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One event of a stream: the triple of WHATWG HTML 9.2.6.

    Attributes:
        type: the event's name: one of the constants above, or on a proxy route the upstream's name, "" if it had none.
        data: the payload, lines joined by LF.
        id: the upstream's own id, "" if it gave none. Where resume is on, readers get cursors instead.
    """

    type: str
    data: str
    id: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The tokens of one generation.

    Attributes:
        input: tokens of the prompt, at least 0.
        output: tokens of the answer and its reasoning, at least 0.
        source: `usage` if the upstream counted, `estimate` if the gateway guessed from bytes.
        cached_input: tokens of `input` that the provider had in its cache, 0 where it does not say.
    """

    input: int
    output: int
    source: UsageSource = "usage"
    cached_input: int = 0


class Done(msgspec.Struct, frozen=True):
    """The data of a `DONE` event.

    Attributes:
        finish_reason: OpenAI's word (`stop`, `length`, `tool_calls`, `content_filter`), or the upstream's own. None if
            the upstream gave none: it is never made up.
        usage: the tokens; None only where the upstream gave none and nothing was estimated.
        full_text: all `TOKEN` texts joined.
        in_chunks: whether the whole log consists of the upstream's own chunks, with finish reason and usage in them.
    """

    finish_reason: str | None
    usage: Usage | None
    full_text: str
    in_chunks: bool = False


def utf8_length(text: str) -> int:
    """The bytes of a text in UTF-8; half a character, which JSON can carry, counts as one."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
