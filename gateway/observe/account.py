"""What one generation consumed and how it went: counted while it runs, told once at its end.

Invariants:

- Exactly one outcome is counted for a generation, and exactly one line logged, whatever happened and however many
  readers it had.
- Counting never decides anything; the generation would run the same without it.
"""

from dataclasses import dataclass, field
from typing import Final

from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.observe.gen_ai import Operation
from gateway.observe.meters import Distribution
from gateway.observe.metrics import Metrics, Outcome, Rescue, RescueResult
from gateway.observe.tracing.span import UNTRACED, Ending, Span

AS_WANTED: Final[frozenset[Outcome]] = frozenset({"completed", "stopped", "client_gone"})
"""Ends that are nobody's failure."""


@dataclass(slots=True, kw_only=True)
class Account:
    """The figures of one generation; times are the loop's clock, in seconds.

    Attributes:
        requested: the model that was asked for, "" where none was named.
        model: the model that answered; known at the end.
        started: when it was admitted.
        asked: when the upstream was first asked, 0 before.
        attempts: how often upstreams were asked.
        answered: whether the upstream answered with a status.
        first: when the first event came, 0 before.
        finished: when the generation ended, 0 before.
        events: events that went into the log.
        sent_bytes: bytes that readers who left were sent.
        connections: readers it ever had.
        finish_reason: the upstream's, "" where it gave none; known at the end.
        span: what is told of it to a tracing system; `UNTRACED` once it has ended.
    """

    metrics: Metrics
    logger: FilteringBoundLogger
    route: str
    upstream: str
    started: float
    requested: str = ""
    model: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    asked: float = 0.0
    attempts: int = 0
    answered: bool = False
    first: float = 0.0
    last: float = 0.0
    finished: float = 0.0
    events: int = 0
    sent_bytes: int = 0
    connections: int = 0
    outcome: Outcome | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, "estimate"))
    reported: bool = False
    finish_reason: str = ""
    span: Span = UNTRACED
    _inter_token: Distribution | None = None

    def ask(self, upstream: str, now: float) -> None:
        """This upstream is being asked."""
        self.upstream = upstream
        self.asked = self.asked or now
        self.attempts += 1
        self.answered = False
        self._inter_token = None

    def answer(self, status: int) -> None:
        """The upstream answered with this status."""
        self.answered = True
        self.metrics.upstream_request(self.upstream, status)

    def attempt_failed(self, upstream: str, code: str) -> None:
        """An attempt failed; the next one or the end of the generation comes after it."""
        self.metrics.upstream_error(upstream, code)
        self.span.attempt_failed(upstream, code)
        self._unanswered()

    def rescue(self, kind: Rescue, result: RescueResult) -> None:
        """A broken answer was finished, begun anew, or given up."""
        self.metrics.rescue(kind, result)
        self.span.rescue(kind, result)

    def _unanswered(self) -> None:
        if self.asked and not self.answered:
            self.metrics.upstream_request(self.upstream, None)
            self.answered = True

    def read(self, count: int, model: str, now: float) -> None:
        """So many events came at once."""
        if self._inter_token is None:
            self._inter_token = self.metrics.model(self.upstream, model).inter_token
        if self.first:
            self._inter_token.observe((now - self.last) / count)
        else:
            self.first = now
            self.metrics.model(self.upstream, model).first_token.observe(now - self.started)
        self.last = now
        self.events += count

    def ended(self, outcome: Outcome, failure: GatewayError | None, now: float) -> None:
        """The generation ended this way; it was settled before."""
        self.outcome = outcome
        self.finished = now
        route = self.metrics.route(self.route)
        route.stream_ended(self.upstream, outcome, now - self.started)
        route.events.inc(self.events)
        if self.asked:
            route.overhead.observe(self.asked - self.started)
            self.metrics.operation(self.upstream, self._operation(outcome, failure))
        self._unanswered()
        self._end_span(outcome, failure)
        if failure is not None and failure.detail:
            self.logger.warning("stream_failed", code=failure.code, detail=failure.detail, **self.facts)

    def _end_span(self, outcome: Outcome, failure: GatewayError | None) -> None:
        span, self.span = self.span, UNTRACED
        if not span.recording:
            return
        span.end(
            Ending(
                outcome=outcome,
                error=_error(outcome, failure),
                upstream=self.upstream,
                model=self.model if self.first else "",
                finish_reason=self.finish_reason,
                usage=self.usage,
                asked=self.asked,
                first=self.first,
                finished=self.finished,
                attempts=self.attempts,
                events=self.events,
            )
        )

    def _operation(self, outcome: Outcome, failure: GatewayError | None) -> Operation:
        return Operation(
            request_model=self.requested,
            response_model=self.model if self.first else "",
            error=_error(outcome, failure),
            served=self.finished - self.started,
            asked=self.finished - self.asked,
            first_token=self.first - self.started if self.first else None,
            usage=self.usage,
        )

    def settled(self, usage: Usage, model: str) -> None:
        """So many tokens were consumed."""
        self.usage, self.model = usage, model
        if self.asked:
            self.metrics.model(self.upstream, model).used(usage)

    def report(self, model: str) -> None:
        """The one log line of its end, once its readers are gone too; saying it again changes nothing."""
        if self.reported:
            return
        self.reported = True
        self.logger.info(
            "stream_end",
            **self.facts,
            route=self.route,
            upstream=self.upstream,
            model=model,
            outcome=self.outcome,
            first_token_ms=round((self.first - self.started) * 1000, 1) if self.first else None,
            duration_ms=round((self.finished - self.started) * 1000, 1),
            attempts=self.attempts,
            events=self.events,
            bytes=self.sent_bytes,
            connections=self.connections,
            input_tokens=self.usage.input,
            output_tokens=self.usage.output,
            usage_source=self.usage.source,
        )


def _error(outcome: Outcome, failure: GatewayError | None) -> str:
    return failure.code if failure is not None and outcome not in AS_WANTED else ""
