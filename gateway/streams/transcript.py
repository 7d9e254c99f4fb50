"""What was written of one answer: the one way into its log while it runs, and the text as far as it was written."""

from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.event import START, TOKEN, Event
from gateway.observe.account import Account
from gateway.streams.log import Log

MAX_ANSWER: Final = 8 * 1024 * 1024
"""Characters an answer may have; the whole text is sent once more with its end, and kept for the history."""


class Transcript:
    """Writes the events of one generation, whichever attempt they come from.

    Args:
        log: where they go. This is its one writer.
        account: counts them.
        canonical: whether the log speaks of one chat answer, whose text is kept unless it comes in chunks.

    Attributes:
        log: as given.
    """

    __slots__ = ("_account", "_canonical", "_characters", "_keeps_text", "_texts", "log")

    def __init__(self, log: Log, account: Account, *, canonical: bool) -> None:
        self.log = log
        self._account = account
        self._canonical = canonical
        self._keeps_text = canonical
        self._texts: list[str] = []
        self._characters = 0

    @property
    def text(self) -> str:
        """The answer as far as it was written."""
        return "".join(self._texts)

    @property
    def in_chunks(self) -> bool:
        """Whether the log holds the upstream's own chunks, so that no last one has to be made up."""
        return not self._keeps_text

    @property
    def empty(self) -> bool:
        """Whether nothing was written yet; an announced `START` is nothing."""
        return not self._account.events

    def begin(self, model: str, *, in_chunks: bool, announced: bool) -> None:
        """An answer speaks for the first time.

        Args:
            model: the model that answers.
            in_chunks: whether its events are the upstream's own chunks.
            announced: whether the log has its `START` already.
        """
        self.log.model = model
        self._keeps_text = self._canonical and not in_chunks
        if self.empty and self._keeps_text and not announced:
            self.log.append([Event(START, "")])

    def write(self, events: list[Event], now: float) -> None:
        """The events are in the log.

        Raises:
            GatewayError: `upstream_oversize`; nothing of them was written.
        """
        self._account.read(len(events), self.log.model, now)
        if self._keeps_text:
            texts = [event.data for event in events if event.type == TOKEN]
            self._texts += texts
            self._characters += sum(map(len, texts))
            if self._characters > MAX_ANSWER:
                raise GatewayError("upstream_oversize", detail="the answer is longer than 8 Mi characters")
        self.log.append(events)

    def void(self) -> None:
        """What was written no longer counts: the answer begins anew."""
        self._texts, self._characters = [], 0
