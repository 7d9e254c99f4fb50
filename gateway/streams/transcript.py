"""The writer's way into a log: all events of an answer are written here, and the text of the answer is collected."""

from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.event import START, TOKEN, Event
from gateway.observe.account import Account
from gateway.streams.log import Log

MAX_ANSWER: Final = 8 * 1024 * 1024
"""Characters of an answer, at most. The whole text is sent once more with the end, and kept for the history."""


class Transcript:
    """Writes the events of one generation, from all its attempts.

    Args:
        log: the log. Only the transcript writes to it while attempts run.
        account: counts the events.
        canonical: whether the log holds one chat answer. Its text is collected, unless it comes in chunks.

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
        """Whether the log holds the upstream's own chunks; then a format need not make the last one."""
        return not self._keeps_text

    @property
    def empty(self) -> bool:
        """Whether no event of an answer was written yet. An announced `START` does not count."""
        return not self._account.events

    def begin(self, model: str, *, in_chunks: bool, announced: bool) -> None:
        """To be called before the first event of every attempt's answer is written.

        Args:
            model: the model that answers.
            in_chunks: whether its events are the upstream's own chunks.
            announced: whether the log has `START` already.
        """
        self.log.model = model
        self._keeps_text = self._canonical and not in_chunks
        if self.empty and self._keeps_text and not announced:
            self.log.append([Event(START, "")])

    def take_over(self, text: str) -> None:
        """The log has events of an answer already, with this text; another process wrote them."""
        self._texts, self._characters = [text], len(text)
        self._account.take_over(self.log.last)

    def write(self, events: list[Event], now: float) -> None:
        """Counts the events and appends them to the log.

        Raises:
            GatewayError: `upstream_oversize`; none of them was appended.
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
        """Drops the collected text, because the answer begins anew."""
        self._texts, self._characters = [], 0
