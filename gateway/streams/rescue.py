"""An answer that broke off, and how another target finishes it.

    broken --ask(prefix)--> asked --the delivered text is repeated, or gone on from--> continued --whole--> completed
                              |
                              |  it differs, and the client understands `RESTART`  --> restarted (no rescue any more)
                              |  it differs, and the client does not               --> failed
                              |  the target fails before anything new was written  --> asked again, elsewhere
    nobody is left to ask --------------------------------------------------------> failed

A rescue is there only while an answer is broken. It is written by the pump, which asks, and by the attempt, whose
events go through `missing`. `failed` always means the error with which the answer broke off: that is what the client
saw, whatever was tried afterwards.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NoReturn

from gateway.core.continuation import Continuation, DiffersError
from gateway.core.errors import GatewayError
from gateway.core.event import RESTART, Event
from gateway.core.retry import may_be_rescued
from gateway.dialects.base import BYTES_PER_TOKEN
from gateway.formats import Completion, View
from gateway.observe.account import Account
from gateway.observe.metrics import Rescue as RescueKind
from gateway.observe.metrics import RescueResult
from gateway.streams.job import Job
from gateway.streams.log import Log, State

MAX_RESCUES: Final = 3
"""How often one answer is taken up again."""


class Rescue:
    """One rescue.

    Args:
        broken: how the answer broke off.
        delivered: the text that the client has of it.
        writer: the upstream that wrote that.
        account: counts what comes of the rescue, and names the upstream that the client's text is from.
        restarts: whether the client understands `RESTART`.

    Attributes:
        broken, delivered: as given.
        restarted: whether the answer began anew, which ends the rescue.
    """

    __slots__ = ("_account", "_continuation", "_kind", "_restarts", "_writer", "broken", "delivered", "restarted")

    def __init__(self, broken: GatewayError, delivered: str, writer: str, account: Account, *, restarts: bool) -> None:
        self.broken = broken
        self.delivered = delivered
        self.restarted = False
        self._writer = writer
        self._account = account
        self._restarts = restarts
        self._kind: RescueKind | None = None
        self._continuation: Continuation | None = None

    @property
    def prefix(self) -> str:
        """The text to go on from; "" where there is none but white space, which is nothing to go on from."""
        return self.delivered.rstrip()

    def ask(self, prefix: str) -> None:
        """Another target is being asked, to go on from this prefix, or the question anew where it is ""."""
        self._kind = "prefill" if prefix else "anew"
        self._continuation = Continuation(self.delivered, prefilled=bool(prefix))

    def missing(self, events: Sequence[Event]) -> list[Event]:
        """The events of the second answer that the client lacks; a `RESTART` is before them where the texts differ.

        Raises:
            GatewayError: they differ, and the client understands no `RESTART`.
        """
        assert self._continuation is not None, "nobody was asked"
        return self._filtered(partial(self._continuation.feed, events))

    def rest(self) -> list[Event]:
        """What the second answer, which is whole, still kept back. Raises as `missing`."""
        assert self._continuation is not None, "nobody was asked"
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

    def complete(self) -> None:
        """The second answer is whole."""
        self._count("completed")

    def fail(self) -> NoReturn:
        """The client is told how the answer broke off of which it has the beginning.

        Raises:
            GatewayError: `broken`, always.
        """
        self._count("failed")
        self._account.upstream = self._writer
        raise self.broken from None

    def _count(self, result: RescueResult) -> None:
        if self._kind is not None:
            self._account.rescue(self._kind, result)


def delivered_text(job: Job, log: Log, error: GatewayError) -> str | None:
    """The text that was delivered of an answer that broke off with this error; None where no rescue can finish it."""
    if not job.canonical or job.several or not may_be_rescued(error):
        return None
    events = log.read(0, log.last)
    if isinstance(events, State):
        return None  # its beginning was trimmed
    completion = Completion()
    for event in events:
        completion.add(event)
    choices = completion.result(View("", "", "", 0), None)["choices"]
    message = choices[0]["message"]
    if len(choices) > 1 or message.get("tool_calls"):
        return None
    return str(message.get("content") or "")


def tokens_of(text: str) -> int:
    """The tokens of a text, estimated from its bytes."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
