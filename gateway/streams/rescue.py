"""An answer that broke off, and how another target finishes it.

    broken --ask(prefix)--> asked --the delivered text is repeated, or continued--> continued --whole--> completed
                              |
                              |  it differs, and the client understands `RESTART`  --> restarted (no rescue any more)
                              |  it differs, and the client does not               --> failed
                              |  the target fails before anything new was written  --> asked again, elsewhere
                              |  the target fails after that                       --> broken: another rescue
    no target is left to ask -----------------------------------------------------> failed

A `Rescue` exists only while an answer is broken. The pump makes it and says how it ended (`complete`, `fail`). Each of
its attempts calls `ask`, and passes its events through `missing`. The error of `failed` is always the one with which
the first answer broke off: the client has the beginning of that answer, whatever was tried afterwards.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import msgspec

from gateway.core.continuation import Continuation, DiffersError
from gateway.core.errors import GatewayError
from gateway.core.event import CHUNK, RESTART, THINKING, TOKEN, Event, utf8_length
from gateway.core.retry import may_be_rescued
from gateway.dialects.base import BYTES_PER_TOKEN, read
from gateway.formats import Completion, View
from gateway.formats.completion import text_of
from gateway.observe.account import Account
from gateway.observe.metrics import Rescue as RescueKind
from gateway.observe.metrics import RescueResult
from gateway.streams.job import Job
from gateway.streams.log import Log, LogState

MAX_RESCUES: Final = 3
"""Rescues of one answer, at most."""
LIKE_A_TOKEN: Final = 12
"""A delta of so many bytes, at most, is taken for one token: hardly one in a hundred is longer, in any language."""
MAX_TOKEN: Final = 16
"""Bytes of a token, on average over a whole answer, at most."""


class Rescue:
    """One rescue.

    Args:
        broken: the error with which the answer broke off.
        delivered: the text of it that the client has.
        writer: the upstream that wrote this text.
        account: counts how the rescue ended, and names the upstream whose text the client has.
        restarts: whether the client understands `RESTART`.
        tokens: of the answer that the client has, as `delivered_tokens` counts them; those of the text if None.

    Attributes:
        broken, delivered, tokens: as given.
        restarted: whether the answer began anew, which ends the rescue.
    """

    __slots__ = (
        "_account",
        "_continuation",
        "_kind",
        "_restarts",
        "_writer",
        "broken",
        "delivered",
        "restarted",
        "tokens",
    )

    def __init__(
        self,
        broken: GatewayError,
        delivered: str,
        writer: str,
        account: Account,
        *,
        restarts: bool,
        tokens: int | None = None,
    ) -> None:
        self.broken = broken
        self.delivered = delivered
        self.tokens = tokens_of(delivered) if tokens is None else tokens
        self.restarted = False
        self._writer = writer
        self._account = account
        self._restarts = restarts
        self._kind: RescueKind | None = None
        self._continuation: Continuation | None = None

    @property
    def prefix(self) -> str:
        """The delivered text without the white space at its end, for a target to continue; "" if that is all it is."""
        return self.delivered.rstrip()

    def ask(self, prefix: str) -> None:
        """A target is being asked to continue this prefix; where it is "", to answer the question anew."""
        self._kind = "prefill" if prefix else "anew"
        self._continuation = Continuation(self.delivered, prefilled=bool(prefix))

    def missing(self, events: Sequence[Event]) -> list[Event]:
        """The events of the second answer that the client lacks. Where the texts differ, `RESTART` is the first.

        Raises:
            GatewayError: the texts differ, and the client does not understand `RESTART`.
        """
        assert self._continuation is not None, "no target was asked"
        return self._filtered(partial(self._continuation.feed, events))

    def rest(self) -> list[Event]:
        """What was held back of the second answer, which is whole now. Raises as `missing`."""
        assert self._continuation is not None, "no target was asked"
        return self._filtered(self._continuation.close)

    def _filtered(self, feed: Callable[[], list[Event]]) -> list[Event]:
        try:
            return feed()
        except DiffersError as error:
            if not self._restarts:
                self.fail()
            self.restarted = True
            self._count("restarted")
            return [Event(RESTART, ""), *error.events]

    def broke(self, error: GatewayError, *, restarts: bool) -> None:
        """The answer, which was only silent when the rescue began, has broken off with this error."""
        self.broken = error
        self._restarts = restarts

    def complete(self) -> None:
        """The second answer is whole."""
        self._count("completed")

    def fail(self) -> NoReturn:
        """Ends the rescue with the error of the answer that the client has the beginning of.

        Raises:
            GatewayError: `broken`, always.
        """
        self._count("failed")
        self._account.upstream = self._writer  # not the target that was asked last: nothing of it was delivered
        raise self.broken from None

    def _count(self, result: RescueResult) -> None:
        if self._kind is not None:
            self._account.rescue(self._kind, result)


def delivered_text(job: Job, log: Log, error: GatewayError) -> str | None:
    """The delivered text of an answer that broke off with this error; None where no rescue can finish the answer."""
    if not job.canonical or job.several or not may_be_rescued(error):
        return None
    events = log.read(0, log.last)
    if isinstance(events, LogState):
        return None  # its beginning was trimmed
    completion = Completion()
    for event in events:
        completion.add(event)
    choices = completion.result(View("", "", "", 0), None)["choices"]
    message = choices[0]["message"]
    if len(choices) > 1 or message.get("tool_calls"):
        return None
    return text_of(message)


def delivered_tokens(log: Log, counted: int = 0) -> int:
    """The tokens of the answer in the log, thinking included.

    Args:
        log: of an answer whose beginning was not trimmed.
        counted: its provider's count, 0 for none. It is ignored if its tokens would be longer than any real ones: some
            servers count reads.
    """
    events = log.read(0, log.last)
    texts = [text for event in events for text in _texts(event)] if not isinstance(events, LogState) else []
    sizes = [utf8_length(text) for text in texts]
    if counted * MAX_TOKEN >= sum(sizes):
        return counted
    # Most providers send a token at a time, so a short text is one. A longer one holds several.
    return sum(1 if size <= LIKE_A_TOKEN else -(-size // BYTES_PER_TOKEN) for size in sizes if size)


def _texts(event: Event) -> list[str]:
    """The texts of thinking and answer in one event."""
    if event.type in (TOKEN, THINKING):
        return [event.data]
    if event.type != CHUNK:
        return []
    chunk = read(_CHUNK, event.data)
    deltas = [choice.delta for choice in chunk.choices or () if choice.delta] if chunk is not None else []
    return [text for delta in deltas for text in (delta.content, delta.reasoning_content) if isinstance(text, str)]


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


def tokens_of(text: str) -> int:
    """The tokens of a text, estimated from its bytes and rounded up."""
    return -(-utf8_length(text) // BYTES_PER_TOKEN)
