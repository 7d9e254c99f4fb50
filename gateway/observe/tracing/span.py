"""What a generation tells of itself while it runs and when it ends, and what its upstreams are told of its trace.

`Span` and `Tracing` as they stand here record nothing: a client's trace context is passed on, and that is all.

Invariants:

- Told a few times a generation, never for an event.
- No prompt, answer, credential or principal is ever handed to a span.

This file does not know OpenTelemetry.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from gateway.core.event import Usage
from gateway.dialects.base import Call
from gateway.observe.tracing.context import TRACEPARENT, TRACESTATE, TraceContext


class Opening(NamedTuple):
    """What is known of a generation when it begins.

    Attributes:
        started: the loop's clock, in seconds.
        route: the route's path.
        model: the model asked for, "" where none was named.
        dialect: of the upstream that is asked first.
        request_id: as logs and `X-Request-Id` have it.
        chat: whether a model is asked; False for a proxied stream, whatever it is.
    """

    started: float
    route: str
    model: str
    dialect: str
    request_id: str
    chat: bool


class Ending(NamedTuple):
    """How a generation went; times are the loop's clock, in seconds, and 0 where something never happened.

    Attributes:
        outcome: as metrics and logs name it.
        error: the code of the failure, "" where nobody failed.
        upstream: who answered, or was asked last.
        model: the model that answered, "" where none did.
        finish_reason: the upstream's own, "" where it gave none.
        usage: what it used.
        asked: when an upstream was first asked.
        first: when its first event came.
        finished: when it ended.
        attempts: how often upstreams were asked.
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
    """The span of one generation; this one is not recorded.

    Args:
        headers: trace context for upstreams, names in lower case.
    """

    __slots__ = ("headers",)
    recording = False

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def carry(self, call: Call) -> Call:
        """The call with this span's trace context in the place of any other."""
        if not self.headers:
            return call
        others = {name: value for name, value in call.headers.items() if name.lower() not in (TRACEPARENT, TRACESTATE)}
        return msgspec.structs.replace(call, headers={**others, **self.headers})

    def ask(self, upstream: str, dialect: str, url: str) -> None:
        """A target of this upstream is being asked."""

    def attempt_failed(self, upstream: str, code: str) -> None:
        """An attempt failed."""

    def rescue(self, kind: str, result: str) -> None:
        """A broken answer was finished, begun anew, or given up."""

    def end(self, ending: Ending) -> None:
        """The generation has ended; this comes once."""


class Tracing:
    """Begins spans; this one records none."""

    def span(self, context: TraceContext | None, opening: Opening) -> Span:
        """The span of a generation that begins now.

        Args:
            context: what its request said of a trace.
            opening: what is known of it.
        """
        return Span(context.headers) if context is not None else UNTRACED

    async def close(self) -> None:
        """No more spans come; what was recorded is sent, within a bounded time."""


UNTRACED: Final = Span(MappingProxyType({}))
OFF: Final = Tracing()
