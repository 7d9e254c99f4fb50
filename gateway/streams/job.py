"""What a generation was admitted to do."""

from collections.abc import Callable
from typing import Protocol

import aiohttp
import msgspec

from gateway.config import Stream as StreamConfig
from gateway.config import Timeouts
from gateway.core.principal import Assurance
from gateway.dialects.base import Answer, Call
from gateway.formats import Format
from gateway.observe.tracing.context import TraceContext
from gateway.streams.stream import ReaderSettings
from gateway.upstream.pool import Target, Upstream


class Source(Protocol):
    """How a kind of route asks upstreams, which answers it accepts, and how it reads them."""

    @property
    def repeatable(self) -> bool:
        """Whether the request may be sent again when it is unknown whether the first one had an effect."""

    def call(
        self,
        upstream: Upstream,
        target: Target,
        prefix: str,
        *,
        delivered: int = 0,
        without: frozenset[str] = frozenset(),
    ) -> Call:
        """The request for this target.

        Args:
            upstream: the upstream that is asked.
            target: its target.
            prefix: the text that the target is asked to continue, "" for none.
            delivered: tokens of the answer that the client has; a prefix is continued with what is left of its limit.
            without: what the target has just refused of the things that the gateway adds.
        """

    def names_no_model(self, upstream: Upstream, target: Target) -> bool:
        """Whether this is a chat for which neither the client nor the configuration names a model for this target."""

    async def accept(self, upstream: Upstream, response: aiohttp.ClientResponse, *, canonical: bool) -> Answer | None:
        """What reads this answer's body; None where the answer is no stream and must be passed through.

        Args:
            upstream: the upstream that answered.
            response: its answer.
            canonical: whether the gateway's own events are needed, even where the upstream's chunks could be kept.

        Raises:
            GatewayError: the answer is a refusal or makes no sense.
        """


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation was admitted to do. It never changes, not even when the configuration is reloaded.

    Attributes:
        route: the route's path, as metrics and logs name it.
        source: asks upstreams and reads their answers.
        chain: the upstream that is asked, and its fallbacks.
        stream: the route's stream settings, for the writer.
        timeouts: the route's time limits, in seconds.
        model: the model asked for, "" where none was named.
        principal: the principal that pays, as `str()` gives it.
        request_id: the request that started it.
        trace: the trace that this request belongs to, None without one.
        format: how readers are sent the events.
        readers: the route's stream settings, for readers.
        session_id: the chat session, "" without one.
        announce: whether `START` is appended at once. If not, it is appended before the first event of the answer, and
            not at all where the log has the upstream's own chunks.
        canonical: whether the log holds one chat answer; False for a proxied stream, whatever that contains.
        restarts: whether readers understand `RESTART`.
        several: whether the client asked for several choices, which no rescue can finish.
        input_tokens: estimate for the prompt.
        long: whether the request is so large that writing it takes a while; see `turns.py`.
        expires_in: seconds until the credential expires, None for never.
        assurance: what tells later that it is good for longer, None where that is never so.
        on_answer: called with the whole text of an answer that completed or was stopped.
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
    long: bool = False
    expires_in: float | None = None
    assurance: Assurance | None = None
    on_answer: Callable[[str], None] | None = None
    trace: TraceContext | None = None
