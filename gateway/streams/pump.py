"""The pump: asks upstreams until one has answered in whole, and writes what it says into the log.

Invariants:

- Until the first event was written, a failure means another attempt, where `core/retry.py` says that it may help.
- After that it means a rescue: another target goes on from what was delivered, or its repetition is dropped. A reader
  never gets a character twice; where the texts differ, what it has is declared void (`RESTART`) or the stream fails.
- Attempts are bounded by the course; every one of them is counted, its connection closed, its target's health noted.
- A target that says nothing for `first_event`, or falls silent for `idle`, is given up.

This file knows no reader, and does not end the log: the generation does, on whatever way this ends.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, Protocol

import aiohttp
from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock, Deadline
from gateway.config import Stream as StreamConfig
from gateway.config import Timeouts
from gateway.core.continuation import Continuation, DiffersError
from gateway.core.errors import GatewayError
from gateway.core.event import RESTART, START, TOKEN, Event, Usage
from gateway.core.quota import Lease
from gateway.core.retry import counts_against_target, may_be_rescued
from gateway.dialects.base import BYTES_PER_TOKEN, Answer, Call
from gateway.formats import Completion, Format, View
from gateway.observe.account import Account
from gateway.observe.metrics import Rescue, RescueResult
from gateway.observe.tracing.context import TraceContext
from gateway.streams.log import Log, State
from gateway.upstream.course import Choice, Course
from gateway.upstream.http import attempt
from gateway.upstream.intake import Intake, Taken
from gateway.upstream.pool import Target, Upstream

MAX_ANSWER: Final = 8 * 1024 * 1024
"""Characters an answer may have; the whole text is sent once more with its end, and kept for the history."""
MAX_RESCUES: Final = 3
"""How often one answer is taken up again."""

HandOver = Callable[[aiohttp.ClientResponse], Awaitable[None]]


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
        source: asks upstreams and reads their answers; None in a generation that has ended.
        chain: who is asked, and who else when they cannot answer.
        stream: the route's stream settings.
        timeouts: the route's time limits, in seconds.
        model: the model asked for, "" where none was named.
        principal: who pays.
        request_id: the request that started it.
        trace: the trace which that request belongs to, None without one.
        format: how readers are told; carried for them, the pump never looks.
        merge: whether readers may be sent several deltas as one.
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
    source: Source | None
    chain: tuple[Upstream, ...]
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
    restarts: bool = False
    several: bool = False
    input_tokens: int = 0
    expires_in: float | None = None
    on_answer: Callable[[str], None] | None = None
    trace: TraceContext | None = None


class Pump:
    """Fills one log.

    Args:
        job: what to do.
        log: where events go; this is its one writer.
        lease: the tokens it may use.
        account: where its doings are counted.
        clock: the shared timers.
        session: the HTTP client.
        logger: told of every attempt that failed and was made good.
        begun: called once, when the first event is about to be written.
        hand_over: takes an answer that is no stream, and returns when its body was passed on.
    """

    __slots__ = (
        "_account",
        "_answer",
        "_begun",
        "_broken",
        "_call",
        "_carried",
        "_characters",
        "_choice",
        "_clock",
        "_continuation",
        "_course",
        "_deadline",
        "_delivered",
        "_hand_over",
        "_heard",
        "_how",
        "_job",
        "_lease",
        "_log",
        "_logger",
        "_now",
        "_paid",
        "_prefilled",
        "_rescues",
        "_seen",
        "_session",
        "_source",
        "_texts",
        "_whole",
        "_writer",
        "_wrote",
    )

    def __init__(
        self,
        job: Job,
        log: Log,
        lease: Lease,
        account: Account,
        clock: Clock,
        session: aiohttp.ClientSession,
        logger: FilteringBoundLogger,
        begun: Callable[[], None],
        hand_over: HandOver,
    ) -> None:
        assert job.source is not None, "the generation has ended"
        self._job = job
        self._source = job.source
        self._log = log
        self._lease = lease
        self._account = account
        self._clock = clock
        self._now = clock.now
        self._session = session
        self._logger = logger
        self._begun = begun
        self._hand_over = hand_over
        self._course = Course(job.chain, random.random, again=job.source.repeatable)
        self._heard = 0.0
        self._answer: Answer | None = None
        self._seen: Answer | None = None
        self._continuation: Continuation | None = None
        self._broken: GatewayError | None = None
        self._delivered = ""
        self._prefilled = False
        self._carried = 0
        self._paid = 0
        self._wrote = False
        self._rescues = 0
        self._how: Rescue | None = None
        self._writer = ""
        self._call = 0
        self._texts: list[str] = []
        self._characters = 0
        self._whole = job.canonical

    # -- what came of it -------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The answer as far as it was written."""
        return "".join(self._texts)

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, "" when it did not say."""
        return self._answer.finish_reason if self._answer is not None else ""

    @property
    def in_chunks(self) -> bool:
        """Whether the log has the upstream's own last chunk, so that none has to be made up."""
        return not self._whole

    @property
    def skipped(self) -> int:
        """Events of the last answer that were not understood."""
        return self._answer.skipped if self._answer is not None else 0

    @property
    def usage(self) -> Usage:
        """Tokens of what was completed: the upstream's own count, or an estimate where it gave none."""
        answer = self._answer
        if answer is None:
            return Usage(0, 0, "estimate")  # nobody was asked, or nobody answered with a stream
        usage, carried = answer.usage, self._carried
        if usage is None or (answer.deltas and not usage.output):  # some say 0 for whatever they sent
            output = max(answer.deltas + carried, _tokens(self._delivered))
            return Usage(self._job.input_tokens, output, "estimate")
        return Usage(max(0, usage.input - carried), usage.output + carried, usage.source)

    # -- attempts --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Returns when the log holds a whole answer.

        Raises:
            GatewayError: there is none to be had; what the log holds is all there will be.
        """
        whole = False
        while not whole:
            whole = await self._ask(await self._choose())

    async def _choose(self) -> Choice:
        try:
            choice = self._course.next(self._now())
            while choice.delay:
                await asyncio.sleep(choice.delay)
                choice = self._course.next(self._now())
        except GatewayError:
            if self._broken is None:
                raise
            self._give_up(self._broken)
        return choice

    async def _ask(self, choice: Choice) -> bool:
        """Whether that made the answer whole; where not, the course knows what failed."""
        with choice.upstream.use(choice.target) as self._call:
            try:
                await self._try(choice)
            except GatewayError as error:
                self._consider(choice, error)
                return False
            self._succeed(choice)
            return True

    async def _try(self, choice: Choice) -> None:
        # An answer that begins with nothing but white space is nothing to go on from.
        self._prefilled = bool(self._delivered.strip()) and not choice.target.rejects_prefill
        try:
            await self._attempt(choice)
        except GatewayError as error:
            if not (self._prefilled and error.code == "upstream_refused"):
                raise
            self._prefilled = False
            self._note(choice, error)
            before = self._answer
            try:
                await self._attempt(choice)
            finally:  # who refuses the plain question too did not refuse it for the prefix
                choice.target.rejects_prefill = self._answer is not before

    async def _attempt(self, choice: Choice) -> None:
        job, upstream = self._job, choice.upstream
        self._wrote = False
        if self._broken is not None:
            self._how = "prefill" if self._prefilled else "anew"
            self._continuation = Continuation(self._delivered, prefilled=self._prefilled)
        self._account.ask(upstream.name, self._now())
        self._account.span.ask(upstream.name, upstream.config.dialect, choice.target.url)
        with Deadline(self._clock.wheel, _timeout, self._last_heard) as self._deadline:
            self._deadline.set(job.timeouts.first_event)
            with await attempt(
                self._session,
                self._call_for(choice),
                connect_timeout=job.timeouts.connect,
                again=self._source.repeatable,
                verify_tls=upstream.config.verify_tls,
            ) as response:
                self._account.answer(response.status)
                canonical = self._broken is not None
                answer = await self._source.accept(upstream, response, canonical=canonical)
                if answer is None:
                    self._deadline.clear()
                    choice.target.breaker.begin(self._call)
                    await self._hand_over(response)
                    return
                self._answer, self._carried = answer, _tokens(self._delivered) if self._prefilled else 0
                self._choice, self._paid = choice, self._bytes_paid()
                await self._read(response, answer)

    def _last_heard(self) -> float:
        return self._heard

    def _call_for(self, choice: Choice) -> Call:
        prefix = self._delivered.rstrip() if self._prefilled else ""
        return self._account.span.carry(self._source.call(choice.upstream, choice.target, prefix))

    def _consider(self, choice: Choice, error: GatewayError) -> None:
        if error is self._broken or error.code == "budget":
            raise error  # no fault of the one that was asked
        now = self._now()
        if counts_against_target(error):
            choice.target.breaker.fail(now, self._call)
        self._account.attempt_failed(choice.upstream.name, error.code)
        if not self._account.events:
            self._course.failed(error, self._account.started + self._job.timeouts.first_event - now)
        elif self._broken is not None and not self._wrote:
            self._retry_rescue(self._broken, error)
        else:
            self._begin_rescue(choice, error)
        self._note(choice, error)

    def _succeed(self, choice: Choice) -> None:
        choice.target.breaker.succeed(self._call)
        if self._broken is not None:
            self._count_rescue("completed")

    def _note(self, choice: Choice, error: GatewayError) -> None:
        self._logger.info(
            "attempt_failed",
            upstream=choice.upstream.name,
            code=error.code,
            detail=error.detail,
            **self._account.facts,
        )

    # -- rescue ----------------------------------------------------------------------------------------------------

    def _begin_rescue(self, choice: Choice, error: GatewayError) -> None:
        delivered = self._rescuable(choice, error)
        if delivered is None:
            raise error
        self._rescues += 1
        self._delivered = delivered
        self._broken = error
        self._writer = choice.upstream.name
        self._course.rescue(error)

    def _retry_rescue(self, broken: GatewayError, error: GatewayError) -> None:
        try:
            self._course.failed(error, self._job.timeouts.first_event)
        except GatewayError:
            self._give_up(broken)

    def _give_up(self, broken: GatewayError) -> NoReturn:
        """The reader is told how the answer that it has the beginning of broke off."""
        self._count_rescue("failed")
        self._account.upstream = self._writer
        raise broken from None

    def _count_rescue(self, result: RescueResult) -> None:
        if self._how is not None:
            self._account.rescue(self._how, result)

    def _rescuable(self, choice: Choice, error: GatewayError) -> str | None:
        """The text that was delivered, or None when the answer cannot or may not be finished elsewhere."""
        wanted = self._job.canonical and not self._job.several and choice.upstream.config.rescue
        if not wanted or not may_be_rescued(error) or self._rescues >= MAX_RESCUES:
            return None
        events = self._log.read(0, self._log.last)
        if isinstance(events, State):
            return None  # its beginning was trimmed
        completion = Completion()
        for event in events:
            completion.add(event)
        choices = completion.result(View("", "", "", 0), None)["choices"]
        message = choices[0]["message"]
        if len(choices) > 1 or message.get("tool_calls"):
            return None
        return str(message.get("content") or "")

    def _missing(self, filtered: Callable[[], list[Event]]) -> list[Event]:
        try:
            return filtered()
        except DiffersError as error:
            return self._void(error.events)

    def _void(self, events: list[Event]) -> list[Event]:
        """What a reader is told whose text does not go on as the other answer does."""
        assert self._broken is not None
        if not self._job.restarts:
            self._give_up(self._broken)
        self._count_rescue("restarted")
        self._continuation = self._broken = self._how = None
        self._delivered, self._texts, self._characters, self._carried = "", [], 0, 0
        return [Event(RESTART, ""), *events]

    # -- one answer ------------------------------------------------------------------------------------------------

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        batch = self._job.stream.batch
        intake = Intake(response, self._clock, batch.interval, batch.max_bytes)
        try:
            while not await intake.relay(self._take):
                if answer.ended:
                    break
                await self._wait_for_room()
            else:
                self._write(answer, answer.close())
        except (aiohttp.ClientError, ConnectionError):
            if not answer.complete:
                raise
        finally:
            intake.leave()
        self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        if answer.failure is not None:
            raise answer.failure
        if not (answer.complete or answer.eof_ends):
            raise GatewayError("upstream_cut", detail="the body ended without an end marker")
        continuation, self._continuation = self._continuation, None
        if continuation is not None:
            self._write(answer, self._missing(continuation.close))

    def _take(self, data: bytes) -> Taken:
        answer = self._answer
        assert answer is not None, "nobody answers"
        events = answer.feed(data)
        if events:
            self._write(answer, events)
        elif answer is self._seen:
            self._heard = self._now()
        if answer.failure is not None:
            raise answer.failure
        if answer.ended or self._log.full:
            return Taken.ENOUGH
        return Taken.RELAYED if events else Taken.NOTHING

    def _write(self, answer: Answer, events: list[Event]) -> None:
        if not events:
            return
        self._heard = now = self._now()  # also where a rescue has heard all of it before
        if answer is not self._seen:
            self._first_event(answer)
        if self._continuation is not None:
            events = self._missing(partial(self._continuation.feed, events))
            if not events:
                return
        self._wrote = True
        self._account.read(len(events), self._log.model, now)
        if self._whole:
            self._collect(events)
        self._log.append(events)
        if answer.size > self._paid:
            self._pay(answer, now)

    def _first_event(self, answer: Answer) -> None:
        choice, self._seen = self._choice, answer
        self._log.model = answer.model or choice.target.model or choice.upstream.config.model or self._log.model
        self._whole = self._job.canonical and not answer.in_chunks
        choice.target.breaker.begin(self._call)
        self._deadline.set(self._job.timeouts.idle, _stall)
        if not self._account.events:
            self._begun()
            if self._whole and not self._job.announce:
                self._log.append([Event(START, "")])

    def _pay(self, answer: Answer, now: float) -> None:
        if not self._lease.spend(self._job.input_tokens + self._carried + answer.deltas, now):
            raise GatewayError("budget")
        self._paid = self._bytes_paid()

    def _bytes_paid(self) -> int:
        """Bytes that an answer may have before there is something to pay; asking at each event would cost more."""
        return BYTES_PER_TOKEN * (self._lease.reserved - self._job.input_tokens - self._carried)

    def _collect(self, events: list[Event]) -> None:
        texts = [event.data for event in events if event.type == TOKEN]
        self._texts += texts
        self._characters += sum(map(len, texts))
        if self._characters > MAX_ANSWER:
            raise GatewayError("upstream_oversize", detail="the answer is longer than 8 Mi characters")

    async def _wait_for_room(self) -> None:
        self._deadline.clear()  # the upstream is not to blame for a stall that slow readers cause
        await self._log.room()
        self._deadline.set(self._job.timeouts.idle, _stall)


def _timeout() -> GatewayError:
    return GatewayError("upstream_timeout")


def _stall() -> GatewayError:
    return GatewayError("upstream_stalled")


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
