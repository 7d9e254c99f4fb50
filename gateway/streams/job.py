"""What a generation was admitted to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from gateway.config import Stream as StreamConfig
from gateway.config import Timeouts
from gateway.dialects.base import Answer, Call
from gateway.formats import Format
from gateway.observe.tracing.context import TraceContext
from gateway.streams.stream import ReaderSettings
from gateway.upstream.pool import Target, Upstream


class Source(Protocol):
    """What a kind of route wants from upstreams: how to ask, what is an answer, how to read it."""

    @property
    def repeatable(self) -> bool:
        """Whether the request may be sent twice when nobody knows what became of the first."""

    def call(self, upstream: Upstream, target: Target, prefix: str) -> Call:
        """The request for this target; with a prefix, it is asked to go on from that text."""

    async def accept(self, upstream: Upstream, response: aiohttp.ClientResponse, *, canonical: bool) -> Answer | None:
        """The reader of this answer, or None where it is no stream and is to be passed through.

        Args:
            upstream: who answered.
            response: its answer.
            canonical: whether the gateway's own events are wanted, even where the upstream's could be kept.

        Raises:
            GatewayError: the answer is a refusal or makes no sense.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a generation was admitted to do; a snapshot that no reload changes.

    Attributes:
        route: the route's path, as metrics and logs name it.
        source: asks upstreams and reads their answers.
        chain: the upstream that is asked, and its fallbacks.
        stream: the route's stream settings, for the writer.
        timeouts: the route's time limits, in seconds.
        model: the model asked for, "" where none was named.
        principal: the principal that pays, as `str()` gives it.
        request_id: the request that started it.
        trace: the trace which that request belongs to, None without one.
        format: how readers are sent the events.
        readers: the route's stream settings, for readers.
        session_id: the chat session, "" without one.
        announce: whether the log opens with a `START` event before an upstream has said anything; otherwise an answer
            of the gateway's own events opens with one.
        canonical: whether the log speaks of one chat answer (False: a proxied stream, whatever it is).
        restarts: whether readers understand `RESTART`.
        several: whether more than one answer was asked for at once, which no rescue can take up again.
        input_tokens: estimate for the prompt.
        expires_in: seconds until the credential expires, None for never.
        on_answer: told the whole text of an answer that completed or was stopped.
    """

    route: str
    source: Source
    chain: tuple[Upstream, ...]
    stream: StreamConfig
    timeouts: Timeouts
    model: str
    principal: str
    request_id: str
    format: Format
    readers: ReaderSettings
    session_id: str = ""
    announce: bool = False
    canonical: bool = True
    restarts: bool = False
    several: bool = False
    input_tokens: int = 0
    expires_in: float | None = None
    on_answer: Callable[[str], None] | None = None
    trace: TraceContext | None = None
