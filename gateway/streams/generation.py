"""A generation: one paid answer, its log, the pump that fills it, and an end that comes exactly once.

                   start()                    the pump returned, raised or was cancelled
    made ---------------------> running --------------------------------------------> ended --ttl--> forgotten
                                |     ^                                                 ^
          the last reader left  |     |  a reader came                                  |
                                v     |                                                 |
                              lingering --`on_disconnect`--> abort: cancels the pump ---+

Everything that ends a generation from outside calls `abort`: a stop, a time limit, an expired credential, a drain, a
reader that did not come back. The first call decides the error and the outcome.

Invariants:

- The log is closed on every way out: done, failed, stopped, abandoned, lost.
- The stream slot, the token reservation, the timers and the upstream connection are given back whatever happened.
- A disconnect is not a cancel: when the last reader leaves, `on_disconnect` decides; a stop is an explicit call.
- What only a running generation needs is in `_Run`, which is dropped at its end. After that only what a returning
  reader needs stays in memory: no prompt, no request, no second copy of the answer.

How an answer is obtained is the pump's part. How it is sent to a client is the delivery's.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec

from gateway.clock import Timer
from gateway.core.bucket import Gate
from gateway.core.cost import amounts
from gateway.core.cursor import Place
from gateway.core.errors import GatewayError, forget_frames
from gateway.core.event import DONE, ERROR, START, Done, Event, Usage
from gateway.core.limiter import Lease
from gateway.observe.account import AS_WANTED, MAX_MODEL, Account
from gateway.observe.metrics import Outcome
from gateway.observe.tracing.span import SpanOpening
from gateway.streams.attempt import Work
from gateway.streams.engine import Engine
from gateway.streams.evidence import note_failed_stream
from gateway.streams.inflight import Reservation
from gateway.streams.job import Job
from gateway.streams.log import MemoryLog
from gateway.streams.opening import Opening
from gateway.streams.pump import Pump
from gateway.streams.reader import Reader
from gateway.streams.stream import Stream
from gateway.streams.transcript import Transcript

OUTCOMES: Final[dict[str, Outcome]] = {
    "upstream_stalled": "upstream_stalled",
    "upstream_timeout": "timeout",
    "stream_limit": "timeout",
    "auth_expired": "auth_expired",
    "budget": "budget",
    "drained": "drained",
    "stopped": "stopped",
    "abandoned": "client_gone",
}
"""Outcomes by error code; every other failure is an `upstream_error`."""


class _Run:
    """What a generation needs only until it ends.

    Attributes:
        memory: the memory that the request takes: to ask again, it is kept until the end.
        task: the task in which the pump runs.
        timers: its time limits, each by the code of its error; and `linger`, the wait for a reader.
        verdict: the error and the outcome of the first `abort`, None before.
        passed_through: done when the body of an answer that is no stream was relayed; None without such an answer.
        left: why the last reader left.
        moved: whether another process goes on with it.
        elsewhere: until when it counts as read at another node, in the loop's time.
    """

    __slots__ = (
        "elsewhere",
        "job",
        "lease",
        "left",
        "memory",
        "moved",
        "opening",
        "passed_through",
        "pump",
        "task",
        "timers",
        "transcript",
        "verdict",
    )

    def __init__(self, job: Job, lease: Lease, transcript: Transcript) -> None:
        self.memory: Reservation | None = None
        self.job = job
        self.lease = lease
        self.transcript = transcript
        self.opening = Opening()
        self.pump: Pump | None = None
        self.task: asyncio.Task[None] | None = None
        self.timers: dict[str, Timer] = {}
        self.verdict: tuple[GatewayError, Outcome] | None = None
        self.passed_through: asyncio.Future[None] | None = None
        self.left: Outcome = "client_gone"
        self.moved = False
        self.elsewhere = 0.0


class Generation:
    """One paid answer: a log and the task that fills it.

    Args:
        stream: what its readers need to know.
        log: its events.
        job: what was asked for.
        lease: the stream slot and the tokens that it holds; given back at its end.
        engine: what all generations share.

    Attributes:
        stream, log: as given.
        account: what it used and how it ended.
        admitted: when its request was admitted, on the loop's clock; earlier than its start if another process had it.
        ended: done when it has ended.
        gate: limits how often readers come back; None until one does.
        id_sent: whether a client was sent the stream's id. Without the id, nobody can come back to the stream.
        kept: seconds for which it can be read after its end.
    """

    __slots__ = ("_engine", "_run", "account", "admitted", "ended", "gate", "id_sent", "kept", "log", "stream")

    def __init__(self, stream: Stream, log: MemoryLog, job: Job, lease: Lease, engine: Engine) -> None:
        self.stream = stream
        self.log = log
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gate: Gate | None = None
        self.id_sent = False
        self.kept = job.stream.resume.ttl if job.stream.resume.enabled else 0.0
        self._engine = engine
        log.model = job.model
        started, dialect = engine.clock.now(), job.chain[0].config.dialect
        self.admitted = started
        opening = SpanOpening(started, job.route, job.model, dialect, job.request_id, job.canonical)
        self.account = Account(
            metrics=engine.metrics,
            logger=engine.logger,
            route=job.route,
            upstream=job.chain[0].name,
            started=started,
            requested=job.model,
            facts={"stream_id": stream.id, "request_id": job.request_id, "principal": job.principal},
            span=engine.tracing.span(job.trace, opening),
        )
        self._run: _Run | None = _Run(job, lease, Transcript(log, self.account, canonical=job.canonical))

    def keep_memory(self, memory: Reservation | None) -> None:
        """The memory that the request takes is given back when this ends. To be called before `start`."""
        self._running.memory = memory

    def start(self, broken: GatewayError | None = None) -> None:
        """Starts the pump. The generation is listed as running until it ends.

        Args:
            broken: how the answer broke off whose beginning is in the log already; None where none is.
        """
        run, engine = self._running, self._engine
        job = run.job
        engine.running[self.stream.id] = self
        engine.metrics.route(job.route).streams_active.inc()
        self._limit("stream_limit", job.timeouts.total)
        if job.expires_in is not None:
            self._limit("auth_expired", job.expires_in)
        if job.assurance is not None:
            job.assurance.rely(self)
        if job.announce and not self.log.last:
            self.log.append([Event(START, "")])
        run.pump = Pump(Work(job, run.transcript, run.lease, self.account, engine, self))
        if broken is not None:
            run.pump.go_on(broken)
        run.task = asyncio.get_running_loop().create_task(run.pump.run(), name=f"generation {self.stream.id}")
        # A callback of the task, because a task that is cancelled before its first step runs no code of its own.
        run.task.add_done_callback(self._end)

    def stop(self) -> None:
        """Ends it with what it has, because the user wants no more. `ended` is done when it has ended."""
        self.abort(GatewayError("stopped"))

    def abort(self, error: GatewayError, outcome: Outcome | None = None) -> None:
        """Ends it now, with this error. Does nothing where it has ended, or an earlier call has decided how it ends."""
        run = self._run
        if run is not None and run.verdict is None and run.task is not None and not run.task.done():
            run.verdict = (error, outcome or OUTCOMES.get(error.code, "upstream_error"))
            run.task.cancel()

    def move(self, comeback: Callable[[], float] | None = None) -> None:
        """Another node writes this stream from now on. It ends here, and its readers are cut off to come back to it.

        Args:
            comeback: gives the seconds after which the next of them is asked to come back; None to ask none.
        """
        if self._run is not None:
            self._run.moved = True
        for reader in self.log.readers:
            reader.cut(comeback() if comeback is not None else None)
        self._engine.registry.hide(self.stream.id)
        self.abort(GatewayError("drained"))

    @property
    def commit_after(self) -> float:
        """Seconds that the client's headers wait for the upstream's real status."""
        return self._running.job.stream.commit_after

    @property
    def opening(self) -> Opening:
        """How its answer opens. To be asked for in the same turn of the loop as `start`, while it still runs."""
        return self._running.opening

    async def opened(self, *, within: float | None = None) -> Opening:
        """How its answer opened. You must call this in the same turn of the loop as `start`, while it still runs.

        Args:
            within: seconds to wait; after them the answer is a stream, whatever the upstream says. None for no limit.
        """
        run = self._running  # `_run` may be None when the wait is over
        opening, task = run.opening, run.task
        limit = None if within is None else asyncio.get_running_loop().call_later(within, opening.as_stream)
        try:
            await opening.decided()
        finally:
            if limit is not None:
                limit.cancel()
        if task is not None and task.done():
            await asyncio.sleep(0)  # an answer that came in one piece ends in this turn, and is sent in one piece
        return opening

    @property
    def state(self) -> str:
        """`waiting` for the first event, `streaming`, or the outcome."""
        return self.account.outcome or ("streaming" if self.account.first else "waiting")

    @property
    def _running(self) -> _Run:
        assert self._run is not None, "the generation has ended"
        return self._run

    # -- its readers ---------------------------------------------------------------------------------------------

    def attach(self, place: Place) -> Reader:
        """A reader at this place. After this you must call `detach`, however the reader ends."""
        self._forget("linger")
        self.account.connections += 1
        return Reader(self.log, place, self._engine.clock.wheel)

    def detach(self, reader: Reader, sent_bytes: int, reason: Outcome = "client_gone") -> None:
        """The reader left; the last one to leave a running generation starts the route's `on_disconnect`."""
        reader.close()
        self.account.sent_bytes += sent_bytes
        if self.log.readers:
            return
        run = self._run
        if self.log.closed or run is None:
            self.account.report(self.log.model)
            return
        run.left = reason
        self._linger(run, self._patience(run))

    def read_elsewhere(self, seconds: float) -> None:
        """It is read at another node. That counts for so many seconds."""
        if self._run is not None:
            self._run.elsewhere = self._engine.clock.now() + seconds

    def left_elsewhere(self, seconds: float) -> None:
        """A reader at another node left. Where there are others, they say so within so many seconds."""
        run = self._run
        if run is None:
            return
        run.elsewhere = self._engine.clock.now() + seconds
        if not self.log.readers and "linger" in run.timers:
            self._forget("linger")
            self._linger(run, self._patience(run))

    def await_readers(self, seconds: float) -> None:
        """It goes on at this node, and readers that it had before need at least so long to come back."""
        run = self._running
        self.id_sent = True
        delay = self._patience(run)
        if delay is not None and not self.log.readers:
            self._linger(run, max(delay, seconds))

    def _linger(self, run: _Run, delay: float | None) -> None:
        elsewhere = run.elsewhere - self._engine.clock.now()
        if delay == 0 and elsewhere <= 0:
            self._abandon()
        elif delay is not None:
            run.timers["linger"] = self._engine.clock.wheel.after(max(delay, elsewhere), self._abandon_unread)

    def _abandon_unread(self) -> None:
        """Nobody has read it for long enough, unless somebody does at another node."""
        run = self._running
        if run.elsewhere > self._engine.clock.now():
            self._linger(run, self._patience(run))
        else:
            self._abandon()

    def _patience(self, run: _Run) -> float | None:
        """Seconds without a reader after which the generation is abandoned, None for never."""
        if run.passed_through is not None:
            return None if run.passed_through.done() else 0.0
        # To wait for a reader that cannot come back would only cost money.
        after, resume = run.job.stream.on_disconnect.after, run.job.stream.resume
        return 0.0 if after is not None and not (resume.enabled and self.id_sent) else after

    def _abandon(self) -> None:
        self.abort(GatewayError("abandoned"), self._running.left)

    def extend(self, expires_in: float | None) -> None:
        """Its owner came with a credential that expires in so many seconds, None for never. The answer goes on until
        the last of its owner's credentials has expired."""
        timer = self._run.timers.get("auth_expired") if self._run is not None else None
        if timer is None:
            return
        if expires_in is None:
            self._forget("auth_expired")
        else:
            timer.deadline = max(timer.deadline, self._engine.clock.now() + expires_in)

    # -- its pump ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The first event is about to be written."""
        self._running.opening.as_stream()

    async def pass_through(self, response: aiohttp.ClientResponse) -> None:
        """Returns when the body of this answer, which is no stream, was passed on to the client.

        Raises:
            GatewayError: `upstream_protocol`; the client was sent the beginning of a stream before.
        """
        run = self._running
        if self.log.last or not run.opening.pass_through(response):
            raise GatewayError("upstream_protocol", detail="the answer is no stream, but one was already begun")
        run.passed_through = asyncio.get_running_loop().create_future()
        if not self.log.readers:
            self._abandon()
        await run.passed_through

    def passed_through(self) -> None:
        """The response that is no stream was passed on, as far as its client wanted it."""
        passed_through = self._run.passed_through if self._run is not None else None
        if passed_through is not None and not passed_through.done():
            passed_through.set_result(None)

    # -- its end -------------------------------------------------------------------------------------------------

    def _end(self, task: "asyncio.Task[None]") -> None:
        run, engine, account = self._running, self._engine, self.account
        pump, job, now = run.pump, run.job, engine.clock.now()
        assert pump is not None, "it ends only after its start"
        failure, outcome = self._judge(run, task)
        if job.on_answer is not None and run.transcript.text and outcome in ("completed", "stopped"):
            # Before any reader sees the end: the next question of a quick client may come to another node.
            _remember(job.on_answer, run.transcript.text)
        usage = pump.usage
        run.lease.settle(amounts(pump.spent, self.log.model), now)
        self._give_back(run, now)

        if run.passed_through is not None:
            self.kept = 0.0
        self.log.close(self._terminal(run, pump, failure, usage))
        self._unlist(engine)
        # The first call that decides wins: an answer that failed before it opened is an error, any other a stream.
        if failure is not None:
            run.opening.fail(failure)
        run.opening.as_stream()
        if not self.ended.done():
            self.ended.set_result(None)

        account.settled(usage, self.log.model)
        account.finish_reason = pump.finish_reason or ""
        if outcome == "completed" and job.canonical:
            engine.metrics.route(job.route).finished(account.finish_reason)
        if failure is not None and outcome not in AS_WANTED and not run.moved:
            # Before the account ends, which closes the span and forgets the trace.
            note_failed_stream(engine.failures, account, pump.blamed(failure), failure, outcome)
        account.ended(outcome, failure, now)
        engine.ended.add(account.summary(self.stream.id, self.log.model))
        engine.metrics.route(job.route).streams_active.dec()
        if pump.skipped:
            engine.logger.warning("events_skipped", count=pump.skipped, **account.facts)
        if not self.log.readers:
            account.report(self.log.model)

        # The job holds the request, and so does the traceback of an error. Logs are kept for minutes after this.
        self._run = None
        forget_frames(None if task.cancelled() else task.exception())

    def _unlist(self, engine: Engine) -> None:
        # Where it moved to another node, this one may have gone on with the stream again since.
        if engine.running.get(self.stream.id) is self:
            del engine.running[self.stream.id]
        if engine.registry.holds(self):
            engine.registry.retire(self.stream.id, self.kept)

    def _give_back(self, run: _Run, now: float) -> None:
        """Gives back what was held for as long as it ran."""
        for code in list(run.timers):
            self._forget(code)
        if run.job.assurance is not None:
            run.job.assurance.leave(self)
        run.lease.close(now)
        if run.memory is not None:
            run.memory.close()

    def _judge(self, run: _Run, task: "asyncio.Task[None]") -> tuple[GatewayError | None, Outcome]:
        """How the pump ended: the failure, None for none, and the outcome."""
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return None, "completed"
        if run.verdict is not None:
            return run.verdict
        if error is None:
            return GatewayError("drained"), "drained"  # cancelled, but not by `abort`: the process ends
        if isinstance(error, GatewayError):
            return error, OUTCOMES.get(error.code, "upstream_error")
        self._engine.logger.error("generation_failed", exc_info=error, **self.account.facts)
        return GatewayError("internal"), "upstream_error"

    def _terminal(self, run: _Run, pump: Pump, failure: GatewayError | None, usage: Usage) -> Event | None:
        """The last event of the log; None where the end of the response's body says that the stream has ended."""
        if run.job.canonical and (failure is None or failure.code == "stopped"):
            reason = "stopped" if failure is not None else pump.finish_reason or None
            done = Done(reason, usage, run.transcript.text, run.transcript.in_chunks)
            return Event(DONE, msgspec.json.encode(done).decode())
        return None if failure is None else Event(ERROR, failure.to_json())

    # -- its time limits -----------------------------------------------------------------------------------------

    def renew(self, seconds: float) -> None:
        """The credential that it was started with is good for so many seconds from now on; 0: it is no longer good."""
        if seconds <= 0:
            self.abort(GatewayError("auth_expired"))
        elif self._run is not None:
            self._forget("auth_expired")
            self._limit("auth_expired", seconds)

    def _limit(self, code: str, seconds: float) -> None:
        self._running.timers[code] = self._engine.clock.wheel.after(seconds, lambda: self.abort(GatewayError(code)))

    def _forget(self, code: str) -> None:
        if self._run is not None and (timer := self._run.timers.pop(code, None)):
            timer.cancel()

    def describe(self, now: float) -> dict[str, Any]:
        """Its entry in the answer to `GET /streams`, as of this moment of the loop's clock."""
        return {
            "id": self.stream.id,
            "route": self.stream.route,
            "principal": self.account.facts["principal"],
            "upstream": self.account.upstream,
            "model": self.log.model[:MAX_MODEL],
            "state": self.state,
            "age_s": round(now - self.account.started, 3),
            "events": self.account.events,
            "readers": len(self.log.readers),
            "bytes": self.log.size,
        }


def _remember(on_answer: Callable[[str], None], text: str) -> None:
    """Hands the text of an answer over. What fails there takes nothing of the answer's end with it."""
    try:
        on_answer(text)
    except Exception as error:  # noqa: BLE001 - whatever it is
        context = {"message": "an answer was not remembered", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
