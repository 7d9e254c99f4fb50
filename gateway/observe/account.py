"""The figures of one generation: counted while it runs, reported once at its end.

    ask -> answer or attempt_failed -> read, read …     again for each attempt
    settled -> ended -> report                          once; `report` when the readers have gone, too

Invariants:

- Exactly one outcome is counted for a generation and exactly one line is logged, whatever happened and however many
  readers it had.
- Counting never decides anything: without it the generation would run in the same way.
"""

from typing import Final

import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.observe.ended import Ended
from gateway.observe.failures import moment
from gateway.observe.gen_ai import Operation
from gateway.observe.meters import Distribution
from gateway.observe.metrics import Metrics, Outcome, Rescue, RescueResult
from gateway.observe.tracing.span import UNTRACED, Span, SpanEnding

AS_WANTED: Final[frozenset[Outcome]] = frozenset({"completed", "stopped", "client_gone"})
"""Outcomes that are no failure: the answer is whole, or the client wanted no more of it."""
MAX_MODEL: Final = 128
"""Characters of a model's name for operators; a client may send a name as long as a body."""
MAX_REASON: Final = 64
"""Characters of a finish reason, which the upstream chooses."""


class Account(msgspec.Struct, kw_only=True):
    """The figures of one generation. Times are the loop's clock, in seconds.

    Attributes:
        requested: the model that was asked for, "" if the client named none.
        model: the model that answered; known at the end.
        facts: what every log line about this generation holds.
        started: when it was admitted.
        asked: when an upstream was first asked, 0 before that.
        attempts: how often an upstream was asked.
        first: when the first event came, 0 before that.
        last: when the latest events came.
        finished: when the generation ended, 0 before that.
        events: events that were appended to the log.
        sent_bytes: bytes sent to readers that have left.
        connections: readers that there ever were.
        finish_reason: the upstream's, "" if it gave none; known at the end.
        taken_over: of `events`, those that another process wrote.
        restarted: whether the answer began anew.
        span: its span in a tracing system; `UNTRACED` after its end.
    """

    metrics: Metrics
    logger: FilteringBoundLogger
    route: str
    upstream: str
    started: float
    requested: str = ""
    model: str = ""
    facts: dict[str, str] = {}
    asked: float = 0.0
    attempts: int = 0
    first: float = 0.0
    last: float = 0.0
    finished: float = 0.0
    events: int = 0
    sent_bytes: int = 0
    connections: int = 0
    outcome: Outcome | None = None
    usage: Usage = Usage(0, 0, "estimate")
    reported: bool = False
    finish_reason: str = ""
    taken_over: int = 0
    restarted: bool = False
    span: Span = UNTRACED
    _inter_token: Distribution | None = None

    def ask(self, upstream: str, now: float) -> None:
        """An attempt begins: this upstream is asked now."""
        self.upstream = upstream
        self.asked = self.asked or now
        self.attempts += 1
        self._inter_token = None  # bound by the first events, which may come from another upstream than before

    def answer(self, upstream: str, status: int) -> None:
        """The upstream answered with this status."""
        self.metrics.upstream_request(upstream, status)

    def unanswered(self, upstream: str) -> None:
        """The attempt ended, and the upstream had not answered with a status."""
        self.metrics.upstream_request(upstream, None)

    def heard(self, upstream: str) -> None:
        """Of the upstreams that are being asked, this one answers; the others are not heard."""
        self.upstream = upstream
        self._inter_token = None

    def outrun(self, upstream: str, model: str, usage: Usage) -> None:
        """An attempt was stopped because another one was quicker. Its tokens are counted apart from the answer's."""
        self.metrics.model(upstream, model).used(usage)
        self.logger.info("attempt_outrun", upstream=upstream, **self.facts)

    def attempt_failed(self, upstream: str, code: str) -> None:
        """The attempt failed. What follows is another one, or the end of the generation."""
        self.metrics.upstream_error(upstream, code)
        self.span.attempt_failed(upstream, code)

    def rescue(self, kind: Rescue, result: RescueResult) -> None:
        """A broken answer was continued, begun again, or given up."""
        self.restarted = self.restarted or result == "restarted"
        self.metrics.rescue(kind, result)
        self.span.rescue(kind, result)

    def take_over(self, events: int) -> None:
        """The log has so many events already; another process wrote them, and counted them there."""
        self.taken_over = self.events = events
        self.first = self.last = self.started

    def read(self, count: int, model: str, now: float) -> None:
        """`count` events came in one read."""
        if self._inter_token is None:
            self._inter_token = self.metrics.model(self.upstream, model).inter_token
        # Events that came together share the time since the read before: as a reader sees them, on average.
        if self.first:
            self._inter_token.observe((now - self.last) / count)
        else:
            self.first = now
            self.metrics.model(self.upstream, model).first_token.observe(now - self.started)
        self.last = now
        self.events += count

    def ended(self, outcome: Outcome, failure: GatewayError | None, now: float) -> None:
        """The generation has ended. `settled` was called before, so the usage is known."""
        self.outcome = outcome
        self.finished = now
        error = failure.code if failure is not None and outcome not in AS_WANTED else ""
        model = self.model if self.first else ""
        route = self.metrics.route(self.route)
        route.stream_ended(self.upstream, outcome, now - self.started)
        route.events.inc(self.events - self.taken_over)
        if self.taken_over:
            wanted: RescueResult = "restarted" if self.restarted else "completed"
            self.metrics.adoption(wanted if outcome in AS_WANTED else "failed")
        if self.asked:
            route.overhead.observe(self.asked - self.started)
            operation = Operation(
                request_model=self.requested,
                response_model=model,
                error=error,
                served=now - self.started,
                asked=now - self.asked,
                first_token=self.first - self.started if self.first else None,
                usage=self.usage,
            )
            self.metrics.operation(self.upstream, operation)
        span, self.span = self.span, UNTRACED  # what is reported after the end must not touch a closed span
        if span.recording:
            span.end(
                SpanEnding(
                    outcome=outcome,
                    error=error,
                    upstream=self.upstream,
                    model=model,
                    finish_reason=self.finish_reason,
                    usage=self.usage,
                    asked=self.asked,
                    first=self.first,
                    finished=self.finished,
                    attempts=self.attempts,
                    events=self.events,
                )
            )

    def summary(self, stream_id: str, model: str) -> Ended:
        """What the monitor shows of a stream that has ended."""
        return Ended(
            when=moment(),
            id=stream_id,
            route=self.route,
            principal=self.facts["principal"],
            upstream=self.upstream,
            model=model[:MAX_MODEL],
            outcome=self.outcome or "",
            finish_reason=self.finish_reason[:MAX_REASON],
            seconds=round(self.finished - self.started, 3),
            first=round(self.first - self.started, 3) if self.first else None,
            input=self.usage.input,
            output=self.usage.output,
            estimated=self.usage.source == "estimate",
            attempts=self.attempts,
        )

    def settled(self, usage: Usage, model: str) -> None:
        """The tokens that the generation used are known, and the model that they are counted for."""
        self.usage, self.model = usage, model
        if self.asked:
            self.metrics.model(self.upstream, model).used(usage)

    def report(self, model: str) -> None:
        """Logs the one line about the generation, after its readers have gone. Further calls do nothing."""
        if self.reported:
            return
        self.reported = True
        self.logger.info(
            "stream_end",
            **self.facts,
            route=self.route,
            upstream=self.upstream,
            model=model[:MAX_MODEL],
            outcome=self.outcome,
            finish_reason=self.finish_reason[:MAX_REASON] or None,
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
