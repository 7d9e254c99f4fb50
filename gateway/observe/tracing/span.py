"""What a generation reports to a tracing system, and what its upstreams are told of the trace.

The classes `Span` and `Tracing` in this file record nothing: they pass a client's trace context on, and that is all.

Invariants:

- They are called a few times in a generation, never for an event.
- No prompt, answer, credential or principal is ever given to a span.

This file does not know OpenTelemetry.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from gateway.core.event import Usage
from gateway.dialects.base import Call
from gateway.observe.tracing.context import TRACEPARENT, TRACESTATE, TraceContext


class SpanOpening(NamedTuple):
    """What is known of a generation when it begins.

    Attributes:
        started: the loop's clock, in seconds.
        route: the route's path.
        model: the model asked for, "" if the client named none.
        dialect: the dialect of the upstream that is asked first.
        request_id: the id in logs and in `X-Request-Id`.
        chat: whether a model is asked; False for every proxied stream.
    """

    started: float
    route: str
    model: str
    dialect: str
    request_id: str
    chat: bool


class SpanEnding(NamedTuple):
    """How a generation went. Times are the loop's clock, in seconds, and 0 if something never happened.

    Attributes:
        outcome: as metrics and logs name it.
        error: the code of the failure, "" for none.
        upstream: the upstream that answered or, if none did, was asked last.
        model: the model that answered, "" if none did.
        finish_reason: the upstream's own, "" if it gave none.
        usage: the tokens.
        asked: when an upstream was first asked.
        first: when its first event came.
        finished: when it ended.
        attempts: how often an upstream was asked.
        events: how many events came.
    """

    outcome: str
    error: str
    upstream: str
    model: str
    finish_reason: str
    usage: Usage
    asked: float
    first: float
    finished: float
    attempts: int
    events: int


class Span:
    """The span of one generation; this class does not record it.

    Args:
        headers: the trace context for upstreams, names in lower case.
    """

    __slots__ = ("headers",)
    recording = False

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits; "" without one. Source: W3C Trace Context, level 2, 3.2.2."""
        return self.headers.get(TRACEPARENT, "")[3:35]

    def carry(self, call: Call) -> Call:
        """The call with this span's trace context in place of any other."""
        if not self.headers:
            return call
        others = {name: value for name, value in call.headers.items() if name.lower() not in (TRACEPARENT, TRACESTATE)}
        return msgspec.structs.replace(call, headers={**others, **self.headers})

    def ask(self, upstream: str, dialect: str, url: str) -> None:
        """A target of this upstream is being asked."""

    def attempt_failed(self, upstream: str, code: str) -> None:
        """An attempt failed."""

    def rescue(self, kind: str, result: str) -> None:
        """A broken answer was continued, begun again, or given up."""

    def end(self, ending: SpanEnding) -> None:
        """The generation has ended; called once."""


class Tracing:
    """Begins spans; this class records none."""

    def span(self, context: TraceContext | None, opening: SpanOpening) -> Span:
        """The span of a generation that begins now.

        Args:
            context: the trace that its request belongs to, None for none.
            opening: what is known of it.
        """
        return Span(context.headers) if context is not None else UNTRACED

    async def close(self) -> None:
        """No more spans come. What was recorded is sent, within a bounded time."""


UNTRACED: Final = Span(MappingProxyType({}))
OFF: Final = Tracing()
