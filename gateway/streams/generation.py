"""A generation: one paid answer, its log, the pump that fills it, and an end that comes exactly once.

Invariants:

- The log is closed on every way out: done, failed, stopped, abandoned, lost.
- The stream slot, the token reservation, the timers and the upstream connection are given back whatever happened.
- A disconnect is not a cancel: when the last reader leaves, `on_disconnect` decides; a stop is an explicit call.
- Every limit on time, and everybody who ends it from outside, goes by the same door: `abort`.
- Once it has ended, nothing is kept but what a reader who comes back needs: no prompt, no request, no answer twice.

This file knows no client, no frame and no format, and not how an answer is had; `pump.py` does.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock, Timer
from gateway.core.errors import GatewayError
from gateway.core.event import DONE, ERROR, START, Done, Event, Usage
from gateway.core.quota import Gate, Lease
from gateway.observe.account import Account
from gateway.observe.metrics import Metrics, Outcome
from gateway.observe.tracing.span import OFF, Opening, Span, Tracing
from gateway.streams.log import Log, Reader
from gateway.streams.pump import Job, Pump
from gateway.streams.registry import Registry

OUTCOMES: Final[dict[str, Outcome]] = {
    "upstream_stalled": "upstream_stalled",
    "upstream_timeout": "timeout",
    "stream_limit": "timeout",
    "auth_expired": "auth_expired",
    "budget": "budget",
    "drained": "drained",
    "stopped": "stopped",
}
"""Outcomes by error code; every other failure is an `upstream_error`."""
MAX_MODEL: Final = 128
"""Characters of a model's name that are told; a client may ask for one as long as a body."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What all generations of a process share."""

    clock: Clock
    registry: "Registry[Generation]"
    metrics: Metrics
    logger: FilteringBoundLogger
    session: aiohttp.ClientSession
    running: dict[str, "Generation"]
    tracing: Tracing = OFF


class Generation:
    """One paid answer: a log and the task that fills it.

    Args:
        job: what to do.
        log: where its events go.
        lease: the slot and the tokens that it holds; given back at its end.
        engine: the process's shared parts.

    Attributes:
        begun: done when the stream has its first event (None), the upstream answered with something that is no stream
            (the response, passed through until `passed_on` is called), or it failed before either (the error). For who
            started it; gone when the generation has ended.
        gate: how often readers may come back, once somebody has.
        told: whether somebody was told the stream's id; nobody else can come back to it.
    """

    def __init__(self, job: Job, log: Log, lease: Lease, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        self.job = job
        self.log = log
        self.created = int(time.time())
        log.model = job.model
        self.begun: asyncio.Future[aiohttp.ClientResponse | None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._passed: asyncio.Future[None] | None = None  # there while a response is passed through
        self.gate: Gate | None = None
        facts = {"stream_id": log.stream_id, "request_id": job.request_id, "principal": job.principal}
        started = engine.clock.now()
        self.account = Account(
            metrics=engine.metrics,
            logger=engine.logger,
            route=job.route,
            upstream=job.chain[0].name,
            started=started,
            requested=job.model,
            facts=facts,
            span=_span(engine.tracing, job, started),
        )
        self._engine = engine
        self._now = engine.clock.now
        self._lease = lease
        self._pump: Pump | None = None
        self._timers: dict[str, Timer] = {}
        self._task: asyncio.Task[None] | None = None
        self._verdict: tuple[GatewayError, Outcome] | None = None
        self._left: Outcome = "client_gone"
        self.told = False

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The upstream is being asked; the generation is listed as running until it ends."""
        job = self.job
        self._engine.running[self.log.stream_id] = self
        self._engine.metrics.route(job.route).streams_active.inc()
        self.begun.add_done_callback(_mark_retrieved)
        self._limit("stream_limit", job.timeouts.total)
        if job.expires_in is not None:
            self._limit("auth_expired", job.expires_in)
        if job.announce:
            self.log.append([Event(START, "")])
        engine = self._engine
        self._pump = Pump(
            job,
            self.log,
            self._lease,
            self.account,
            engine.clock,
            engine.session,
            engine.logger,
            self._begin,
            self._hand_over,
        )
        self._task = asyncio.get_running_loop().create_task(self._pump.run(), name=f"generation {self.log.stream_id}")
        # A task that is cancelled before its first step never runs, so the end hangs on the task, not in it.
        self._task.add_done_callback(self._end)

    def stop(self) -> None:
        """The user wants no more of it: it ends with what it has."""
        self.abort(GatewayError("stopped"))

    def abort(self, error: GatewayError, outcome: Outcome | None = None) -> None:
        """It ends now, with this error; nothing happens where it has already ended."""
        if self._verdict is None and self._task is not None and not self._task.done():
            self._verdict = (error, outcome or OUTCOMES.get(error.code, "upstream_error"))
            self._task.cancel()

    @property
    def state(self) -> str:
        """`waiting` for the first event, `streaming`, or the outcome."""
        return self.account.outcome or ("streaming" if self.account.first else "waiting")

    # -- its readers ---------------------------------------------------------------------------------------------

    def attach(self, after: int) -> Reader:
        """A reader's place after this sequence number. Leave with `detach`."""
        self._forget("linger")
        self.account.connections += 1
        return Reader(self.log, after, self._engine.clock.wheel)

    def detach(self, reader: Reader, sent_bytes: int, reason: Outcome = "client_gone") -> None:
        """The reader left; the last one to leave a running generation starts the route's `on_disconnect`."""
        reader.close()
        self.account.sent_bytes += sent_bytes
        if self.log.readers:
            return
        if self.log.closed:
            self.account.report(self.log.model)
            return
        self._left = reason
        delay = self._patience()
        if delay == 0:
            self._abandon()
        elif delay is not None:
            self._timers["linger"] = self._engine.clock.wheel.after(delay, self._abandon)

    def _patience(self) -> float | None:
        # Nobody can come back to what cannot be resumed, so waiting for a reader would only cost money.
        after, resume = self.job.stream.on_disconnect.after, self.job.stream.resume
        if self._passed is not None:
            return None if self._passed.done() else 0.0
        return 0.0 if after is not None and not (resume.enabled and self.told) else after

    def _abandon(self) -> None:
        self.abort(GatewayError("abandoned"), self._left)

    # -- the pump ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    async def _hand_over(self, response: aiohttp.ClientResponse) -> None:
        if self.begun.done() or self.log.last:
            raise GatewayError("upstream_protocol", detail="the answer is no stream, but one was already begun")
        self._passed = asyncio.get_running_loop().create_future()
        self.begun.set_result(response)
        if not self.log.readers:
            self._abandon()
        await self._passed

    def passed_on(self) -> None:
        """Nothing more is wanted of the response that is no stream."""
        if self._passed is not None and not self._passed.done():
            self._passed.set_result(None)

    # -- its end -------------------------------------------------------------------------------------------------

    def _end(self, task: "asyncio.Task[None]") -> None:
        failure, outcome = self._judge(task)
        now = self._now()
        for code in list(self._timers):
            self._forget(code)
        usage = self._pump.usage if self._pump is not None else Usage(0, 0, "estimate")
        self._lease.settle(usage.input + usage.output, now)
        self._lease.close(now)
        self._settle_log(failure, usage)
        self.account.settled(usage, self.log.model)
        self.account.finish_reason = self._pump.finish_reason if self._pump is not None else ""
        self.account.ended(outcome, failure, now)
        self._engine.metrics.route(self.job.route).streams_active.dec()
        if self._pump is not None and self._pump.skipped:
            self._engine.logger.warning("events_skipped", count=self._pump.skipped, **self.account.facts)
        if not self.log.readers:
            self.account.report(self.log.model)
        self._release(outcome)

    def _judge(self, task: "asyncio.Task[None]") -> tuple[GatewayError | None, Outcome]:
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return None, "completed"
        if self._verdict is not None:
            return self._verdict
        if error is None:
            return GatewayError("drained"), "drained"
        if isinstance(error, GatewayError):
            return error, OUTCOMES.get(error.code, "upstream_error")
        self._engine.logger.error("generation_failed", exc_info=error, **self.account.facts)
        return GatewayError("internal"), "upstream_error"

    def _settle_log(self, failure: GatewayError | None, usage: Usage) -> None:
        resume = self.job.stream.resume
        self.log.close(self._terminal(failure, usage))
        del self._engine.running[self.log.stream_id]
        self._engine.registry.retire(self.log, resume.ttl if resume.enabled and self._passed is None else 0)
        if not self.begun.done():
            self.begun.set_exception(failure) if failure else self.begun.set_result(None)
        if not self.ended.done():
            self.ended.set_result(None)

    def _release(self, outcome: Outcome) -> None:
        job, text = self.job, self._pump.text if self._pump is not None else ""
        # An error's frames hold the request, as the source and `on_answer` do; logs are kept for minutes.
        self.job = replace(job, source=None, on_answer=None)
        self._task = self._pump = None
        del self.begun
        if job.on_answer is not None and text and outcome in ("completed", "stopped"):
            job.on_answer(text)

    def _terminal(self, failure: GatewayError | None, usage: Usage) -> Event | None:
        pump = self._pump
        if self.job.canonical and pump is not None and (failure is None or failure.code == "stopped"):
            reason = "stopped" if failure is not None else pump.finish_reason or "stop"
            done = Done(reason, usage, pump.text, pump.in_chunks)
            return Event(DONE, msgspec.json.encode(done).decode())
        return None if failure is None else Event(ERROR, failure.to_json())

    # -- its time limits -----------------------------------------------------------------------------------------

    def _limit(self, code: str, seconds: float) -> None:
        self._timers[code] = self._engine.clock.wheel.after(seconds, lambda: self.abort(GatewayError(code)))

    def _forget(self, code: str) -> None:
        if timer := self._timers.pop(code, None):
            timer.cancel()

    def describe(self) -> dict[str, Any]:
        """What `GET /streams` tells of it."""
        return {
            "id": self.log.stream_id,
            "route": self.job.route,
            "principal": self.job.principal,
            "upstream": self.account.upstream,
            "model": self.log.model[:MAX_MODEL],
            "state": self.state,
            "age_s": round(self._now() - self.account.started, 3),
            "events": self.account.events,
            "readers": len(self.log.readers),
            "bytes": self.log.size,
        }


def _span(tracing: Tracing, job: Job, started: float) -> Span:
    dialect = job.chain[0].config.dialect
    return tracing.span(job.trace, Opening(started, job.route, job.model, dialect, job.request_id, job.canonical))


def _mark_retrieved(future: "asyncio.Future[Any]") -> None:
    # A generation may fail when nobody waits for its beginning any more; asyncio need not complain about that.
    if not future.cancelled():
        future.exception()
