"""The pump: one upstream answer, relayed into one log, by one writer, ended exactly once.

Invariants:

- `Generation` is the only writer of its log and closes it on every way out: done, failed, stopped, abandoned, lost.
- The stream slot, the token reservation, the timers and the upstream connection are given back whatever happened.
- A disconnect is not a cancel: when the last reader leaves, `on_disconnect` decides; a stop is an explicit call.
- Every limit on time, and everybody who ends it from outside, goes by the same door: `abort`.
- Once it has ended, nothing is kept but what a reader who comes back needs: no prompt, no request, no answer twice.

This file knows no client, no frame and no format.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.account import Account
from gateway.clock import Clock, Timer
from gateway.config import Stream as StreamConfig
from gateway.config import Timeouts
from gateway.core.errors import GatewayError
from gateway.core.event import DONE, ERROR, START, TOKEN, Done, Event, Usage
from gateway.core.quota import Gate, Lease
from gateway.dialects.base import Answer, Call
from gateway.eventlog.memory import Log, Reader
from gateway.eventlog.registry import Registry
from gateway.formats import Format
from gateway.metrics import Metrics, Outcome
from gateway.upstream.http import attempt
from gateway.upstream.intake import Intake, Taken
from gateway.upstream.pool import Target, Upstream

MAX_ANSWER: Final = 8 * 1024 * 1024
"""Characters an answer may have; the whole text is sent once more with its end, and kept for the history."""

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


class Source(Protocol):
    """What a kind of route wants from an upstream: how to ask, what is an answer, how to read it."""

    def call(self, target: Target) -> Call:
        """The request for this target."""

    async def accept(self, response: aiohttp.ClientResponse) -> Answer | None:
        """The reader of this answer, or None where it is no stream and is to be passed through.

        Raises:
            GatewayError: the answer is a refusal or makes no sense.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a generation was admitted to do; a snapshot that no reload changes.

    Attributes:
        route: the route's path, as metrics and logs name it.
        source: asks the upstream and reads its answer; None in a generation that has ended.
        upstream: who is asked.
        stream: the route's stream settings.
        timeouts: the route's time limits, in seconds.
        model: the model asked for, "" where none was named.
        principal: who pays.
        request_id: the request that started it.
        session_id: the chat session, "" without one.
        announce: whether the log opens with a `START` event before the upstream has said anything.
        canonical: whether the log speaks the gateway's own events (False: the upstream's).
        format: how readers are told; the pump carries it and never looks.
        merge: whether readers may be sent several deltas as one.
        input_tokens: estimate for the prompt.
        expires_in: seconds until the credential expires, None for never.
        on_answer: told the whole text of an answer that completed or was stopped.
    """

    route: str
    source: Source | None
    upstream: Upstream
    stream: StreamConfig
    timeouts: Timeouts
    model: str
    principal: str
    request_id: str
    format: Format
    merge: bool = False
    session_id: str = ""
    announce: bool = False
    canonical: bool = True
    input_tokens: int = 0
    expires_in: float | None = None
    on_answer: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """What all generations of a process share."""

    clock: Clock
    registry: "Registry[Generation]"
    metrics: Metrics
    logger: FilteringBoundLogger
    session: aiohttp.ClientSession
    running: dict[str, "Generation"]


class Generation:
    """One paid answer: a log and the task that fills it.

    Args:
        job: what to do.
        log: where its events go.
        lease: the slot and the tokens that it holds; given back at its end.
        engine: the process's shared parts.

    Attributes:
        begun: done when the stream has its first event (None), the upstream answered with something that is no stream
            (the response, to be passed through until `passed` is set), or it failed before either (the error). For
            who started it; gone when the generation has ended.
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
        self.passed = asyncio.Event()
        self.gate: Gate | None = None
        facts = {"stream_id": log.stream_id, "request_id": job.request_id, "principal": job.principal}
        self.account = Account(
            metrics=engine.metrics,
            logger=engine.logger,
            route=job.route,
            upstream=job.upstream.name,
            started=engine.clock.now(),
            facts=facts,
        )
        self._engine = engine
        self._now = engine.clock.now
        self._lease = lease
        self._answer: Answer | None = None
        self._texts: list[str] = []
        self._characters = 0
        self._timers: dict[str, Timer] = {}
        self._task: asyncio.Task[None] | None = None
        self._verdict: tuple[GatewayError, Outcome] | None = None
        self._left: Outcome = "client_gone"
        self._passing = False
        self.told = False

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The upstream is being asked; the generation is listed as running until it ends."""
        job = self.job
        self._engine.running[self.log.stream_id] = self
        self._engine.metrics.route(job.route).streams_active.inc()
        self.begun.add_done_callback(_mark_retrieved)
        self._limit("upstream_timeout", job.timeouts.first_event)
        self._limit("stream_limit", job.timeouts.total)
        if job.expires_in is not None:
            self._limit("auth_expired", job.expires_in)
        if job.announce:
            self.log.append([Event(START, "")])
        self._task = asyncio.get_running_loop().create_task(self._relay(), name=f"generation {self.log.stream_id}")
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
        if self._passing:
            return None if self.passed.is_set() else 0.0
        return 0.0 if after is not None and not (resume.enabled and self.told) else after

    def _abandon(self) -> None:
        self.abort(GatewayError("abandoned"), self._left)

    # -- the pump ------------------------------------------------------------------------------------------------

    async def _relay(self) -> None:
        job, upstream, source = self.job, self.job.upstream, self.job.source
        assert source is not None, "the generation has ended"
        with upstream.use(upstream.pick()) as target:
            call = source.call(target)
            self.account.asked = self._now()
            async with attempt(
                self._engine.session,
                call,
                connect_timeout=job.timeouts.connect,
                verify_tls=upstream.config.verify_tls,
            ) as response:
                self.account.answer(response.status)
                answer = await source.accept(response)
                if answer is None:
                    await self._hand_over(response)
                else:
                    self._answer = answer
                    await self._pump(response, answer)

    async def _hand_over(self, response: aiohttp.ClientResponse) -> None:
        if self.begun.done() or self.log.last:
            raise GatewayError("upstream_protocol", detail="the answer is no stream, but one was already begun")
        self._forget("upstream_timeout")
        self._passing = True
        self.begun.set_result(response)
        if not self.log.readers:
            self._abandon()
        await self.passed.wait()

    async def _pump(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        batch = self.job.stream.batch
        intake = Intake(response, self._engine.clock, batch.interval, batch.max_bytes)
        while not await intake.relay(lambda data: self._take(answer, data)):
            if answer.ended:
                return
            await self._wait_for_room()
        self._append(answer, answer.close())
        if answer.failure is not None:
            raise answer.failure
        if not (answer.complete or answer.eof_ends):
            raise GatewayError("upstream_cut", detail="the body ended without an end marker")

    def _take(self, answer: Answer, data: bytes) -> Taken:
        events = answer.feed(data)
        self._append(answer, events)
        if answer.failure is not None:
            raise answer.failure
        if answer.ended or self.log.full:
            return Taken.ENOUGH
        return Taken.RELAYED if events else Taken.NOTHING

    def _append(self, answer: Answer, events: list[Event]) -> None:
        now = self._now()
        if idle := self._timers.get("upstream_stalled"):
            idle.deadline = now + self.job.timeouts.idle
        if not events:
            return
        if not self.account.first:
            self._first_event(answer)
        self.account.read(len(events), self.log.model, now)
        if self.job.canonical:
            self._collect(events)
        self.log.append(events)
        if not self._lease.spend(self.job.input_tokens + answer.deltas, now):
            raise GatewayError("budget")

    def _first_event(self, answer: Answer) -> None:
        self.log.model = answer.model or self.log.model
        self._forget("upstream_timeout")
        self._limit("upstream_stalled", self.job.timeouts.idle)
        if not self.begun.done():
            self.begun.set_result(None)

    def _collect(self, events: list[Event]) -> None:
        texts = [event.data for event in events if event.type == TOKEN]
        self._texts += texts
        self._characters += sum(map(len, texts))
        if self._characters > MAX_ANSWER:
            raise GatewayError("upstream_oversize", detail="the answer is longer than 8 Mi characters")

    async def _wait_for_room(self) -> None:
        # The upstream is not to blame for a stall that slow readers cause.
        self._forget("upstream_stalled")
        await self.log.room()
        self._limit("upstream_stalled", self.job.timeouts.idle)

    # -- its end -------------------------------------------------------------------------------------------------

    def _end(self, task: "asyncio.Task[None]") -> None:
        failure, outcome = self._judge(task)
        now = self._now()
        for code in list(self._timers):
            self._forget(code)
        usage = self._usage()
        self._lease.settle(usage.input + usage.output, now)
        self._lease.close(now)
        self._settle_log(failure, usage)
        self.account.settled(usage, self.log.model)
        self.account.ended(outcome, failure, now)
        self._engine.metrics.route(self.job.route).streams_active.dec()
        if self._answer is not None and self._answer.skipped:
            self._engine.logger.warning("events_skipped", count=self._answer.skipped, **self.account.facts)
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
        self._engine.registry.retire(self.log, resume.ttl if resume.enabled and not self._passing else 0)
        if not self.begun.done():
            self.begun.set_exception(failure) if failure else self.begun.set_result(None)
        self.ended.set_result(None)

    def _release(self, outcome: Outcome) -> None:
        job, text = self.job, "".join(self._texts)
        # An error's frames hold the request, as the source and `on_answer` do; logs are kept for minutes.
        self.job = replace(job, source=None, on_answer=None)
        self._task = self._answer = None
        self._texts = []
        del self.begun
        if job.on_answer is not None and text and outcome in ("completed", "stopped"):
            job.on_answer(text)

    def _usage(self) -> Usage:
        if self._answer is None:
            return Usage(0, 0, "estimate")  # nobody was asked, or nobody answered with a stream
        usage = self._answer.usage
        if usage is None or (self._answer.deltas and not usage.output):  # some say 0 for whatever they sent
            return Usage(self.job.input_tokens, self._answer.deltas, "estimate")
        return usage

    def _terminal(self, failure: GatewayError | None, usage: Usage) -> Event | None:
        whole = failure is None or failure.code == "stopped"
        if whole and self.job.canonical:
            said = self._answer.finish_reason if self._answer is not None else ""
            reason = "stopped" if failure is not None else said or "stop"
            return Event(DONE, msgspec.json.encode(Done(reason, usage, "".join(self._texts))).decode())
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
            "upstream": self.job.upstream.name,
            "state": self.state,
            "age_s": round(self._now() - self.account.started, 3),
            "events": self.account.events,
            "readers": len(self.log.readers),
            "bytes": self.log.size,
        }


def _mark_retrieved(future: "asyncio.Future[Any]") -> None:
    # A generation may fail when nobody waits for its beginning any more; asyncio need not complain about that.
    if not future.cancelled():
        future.exception()
