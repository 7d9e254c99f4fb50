"""One call to one target: from asking to the end of its answer.

    asking --a head that is accepted--> answered --first event--> speaking --a finish reason--> finished --> done
       |                                   |                         |                             |
       |  `connect`, `first_event`         |  `first_event`          |  `idle`                     |  `AFTERWORDS`
       |                                   |                         |                             |  (time limits)
       +-----------------------------------+-------------------------+--refused, cut, silent       |
                                                                     |   --> GatewayError          |
                                                                     +--its end marker, or the end of its body--> done
       |
       +--a head that is no stream--> passed on --its body was relayed--> done

`first_event` runs from the question to the first event; comments of the upstream do not stop it. `idle` starts anew
with every read of a speaking answer, comments included, and stands still while the log is full. A plain answer, which
is no stream, says nothing until it is whole: it has `first_event` and `idle` together until its first byte, and `idle`
from then on.

A target may refuse what the gateway added to the client's request. The pump then makes another attempt without it
(`Question.lighter`); when that is answered, the target is remembered as one that refuses it.

An answer that has a finish reason is whole, whatever becomes of its connection: only its usage may still come, and that
is waited for at most `AFTERWORDS`. An end marker without a finish reason makes an answer whole only as far as `end` of
the upstream allows it.

Two callers drive an attempt. `run` asks the target and waits for the end. While the answer comes, the intake calls
`_take` with the bytes of every read. Both write events through the transcript, but only those that the readers lack,
and take the tokens of those events from the lease.

An attempt knows nothing of the attempts before, beside and after it; the pump does.
"""

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, Protocol

import aiohttp
import msgspec

from gateway.clock import Deadline, Timer
from gateway.core.cost import amounts
from gateway.core.errors import GatewayError
from gateway.core.event import Event, Usage
from gateway.core.limiter import Lease
from gateway.core.limits import TOKENS
from gateway.dialects.base import BYTES_PER_TOKEN, Answer
from gateway.dialects.openai import size_of
from gateway.observe.account import Account
from gateway.streams.engine import Engine
from gateway.streams.job import Job
from gateway.streams.question import Question
from gateway.streams.rescue import Rescue
from gateway.streams.transcript import Transcript
from gateway.upstream.course import Choice
from gateway.upstream.http import attempt
from gateway.upstream.intake import ENOUGH, INCOMPLETE, RELAYED, Intake, Taken

AFTERWORDS: Final = 1.5
"""Seconds after a finish reason for the usage and the end marker. Only a wait for slow readers makes them longer."""


class Host(Protocol):
    """The generation, as its pump sees it."""

    def begin(self) -> None:
        """The first event is about to be written."""

    async def pass_through(self, response: aiohttp.ClientResponse) -> None:
        """Returns when the body of this answer, which is no stream, was passed on to the client.

        Raises:
            GatewayError: the client was sent the beginning of a stream before.
        """


class Work(msgspec.Struct, frozen=True):
    """What one generation works with, from its first attempt to its last.

    Attributes:
        job: what was asked for.
        transcript: writes its events into the log.
        lease: the tokens that it may use.
        account: counts what it does.
        engine: what all generations share.
        host: the generation.
    """

    job: Job
    transcript: Transcript
    lease: Lease
    account: Account
    engine: Engine
    host: Host


class Attempt:
    """One call to one target.

    Args:
        work: what the generation works with.
        choice: the target.
        call: the number by which the target's breaker knows this call.
        rescue: the rescue that this attempt is part of, None for none.
        question: what the target is asked.

    Attributes:
        choice, question: as given.
        rescue: as given; None once the answer began anew.
        answer: turns the upstream's bytes into events; None before its head was accepted.
        wrote: whether any event of this attempt was written.
        alive_at: when it last gave a sign of life, or else was begun, on the loop's clock in seconds.
        waits: whether its silence is not its own: its readers are slow.
        claim: called before events are written; None where the attempt is not part of a race.
        others: tokens that attempts beside it have used of the same lease.
        carried: tokens of the prefix. The upstream counts them as its prompt, the client as part of the answer.
        asked: whether the request was sent.
        status: the HTTP status that it was answered with, None before that.
    """

    __slots__ = (
        "_afterwords",
        "_begun",
        "_call",
        "_deadline",
        "_intake",
        "_log",
        "_now",
        "_paid",
        "_speaking",
        "_transcript",
        "_work",
        "alive_at",
        "answer",
        "asked",
        "carried",
        "choice",
        "claim",
        "others",
        "question",
        "rescue",
        "status",
        "waits",
        "wrote",
    )

    def __init__(self, work: Work, choice: Choice, call: int, rescue: Rescue | None, question: Question) -> None:
        self.choice = choice
        self.rescue = rescue
        self.answer: Answer | None = None
        self.wrote = False
        self.carried = 0
        self.alive_at = work.engine.clock.now()
        self.waits = False
        self.claim: Callable[[], None] | None = None
        self.others = 0
        self.question = question
        self.asked = False
        self.status: int | None = None
        self._work = work
        self._transcript = work.transcript
        self._log = work.transcript.log
        self._now = work.engine.clock.now
        self._call = call
        self._paid = 0.0
        self._begun = False  # whether a plain answer's first byte is here
        self._speaking = False
        self._intake: Intake | None = None
        self._afterwords: Timer | None = None  # runs once the answer has its finish reason

    def run(self) -> Awaitable[None]:
        """Asks the target. It is done when the answer is whole, or was passed on.

        Raises:
            GatewayError: the target refused, could not be reached or was silent; its answer broke off or is too long.
        """
        return self._ask_unnamed() if self.question.names_no_model else self._ask()

    async def _ask_unnamed(self) -> None:
        await self.question.learn_model()
        try:
            await self._ask()
        except GatewayError as error:
            if self._speaking or not await self.question.lacked_a_model(error):
                raise
            await self._ask()

    async def _ask(self) -> None:
        self.asked, self.status = False, None
        try:
            with Deadline(self._work.engine.clock.wheel, _timeout, self._last_alive) as self._deadline:
                await self._send()
        except GatewayError as error:
            # A proxied endpoint may go on behind its last word. Where it does not, nothing is missing.
            # (Of a chat, the code may be that of another attempt, which this one was to rescue.)
            answer = None if self._work.job.canonical else self.answer
            if error.code != "upstream_stalled" or answer is None or not answer.complete:
                raise
        finally:
            # Each of them knows this attempt, and with it the request: a circle would keep both until the collector
            # comes, which may take minutes.
            del self._deadline
            self._intake = None
            if self.asked and self.status is None:
                self._work.account.unanswered(self.choice.upstream.name)

    async def _send(self) -> None:
        work, job, account, question = self._work, self._work.job, self._work.account, self.question
        upstream, target = self.choice.upstream, self.choice.target
        if job.long:
            async with work.engine.turns:
                call = question.put(self.rescue)
        else:
            call = question.put(self.rescue)
        self.asked = True
        account.ask(upstream.name, self._now())
        account.span.ask(upstream.name, upstream.config.dialect, target.url)
        self._deadline.set(job.timeouts.first_event + (job.timeouts.idle if question.plain else 0.0))
        with await attempt(
            work.engine.session,
            account.span.carry(call),
            connect_timeout=job.timeouts.connect,
            again=job.source.repeatable,
            verify_tls=upstream.config.verify_tls,
        ) as response:
            del call  # its body is a copy of the prompt, which is not needed for as long as the answer lasts
            self.status = response.status
            account.answer(upstream.name, response.status)
            answer = await job.source.accept(upstream, response, canonical=self.rescue is not None)
            if answer is None:
                self._deadline.clear()
                if response.status < 400:
                    target.breaker.begin(self._call)
                await work.host.pass_through(response)
                return
            self.answer = answer
            self.carried = question.delivered
            question.accepted()
            self._paid = self._bytes_paid(0)
            await self._read(response, answer)

    def _last_alive(self) -> float:
        # Until the first event, nothing else is a sign of life.
        return self.alive_at if self._speaking or self._begun else 0.0

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        job, log = self._work.job, self._log
        clock = self._work.engine.clock
        intake = self._intake = Intake(response, clock, job.stream.batch.interval, job.stream.batch.max_bytes)
        try:
            while not await intake.relay(self._take):
                if answer.ended or (self._afterwords is not None and self._afterwords.cancelled):
                    break
                # The upstream is not to blame for a wait that slow readers cause.
                self._deadline.clear()
                self._end_afterwords()
                self.waits = True
                await log.room()
                self.waits, self.alive_at = False, self._now()
                if answer.finished:
                    self._await_afterwords()
                else:
                    self._deadline.set(job.timeouts.idle, _stall)
            else:
                self._write(answer.close())
        except (aiohttp.ClientError, ConnectionError):
            if not answer.complete:
                raise
        finally:
            intake.close()
            self._end_afterwords()
        if answer.failure is not None:
            raise answer.failure
        self._check_whole(answer)
        if self.rescue is not None:
            self._write(self.rescue.rest(), kept_back=True)

    def _check_whole(self, answer: Answer) -> None:
        """Returns when the answer is whole.

        Raises:
            GatewayError: `upstream_cut`.
        """
        target, end = self.choice.target, self.choice.upstream.config.end
        if answer.finished:
            # Some servers give whole answers a reason and streams none: a whole answer says nothing about streams.
            target.sends_reasons = target.sends_reasons or not answer.whole
            return
        if not (answer.ended or answer.eof_ends):
            raise GatewayError("upstream_cut", detail="the body ended without an end marker")
        # A reason for one of several choices shows, too, that the target sends them.
        sends = target.sends_reasons or bool(answer.finish_reason)
        needs_reason = end == "finish_reason" or (end == "auto" and sends)
        if needs_reason and not answer.whole and self._work.job.canonical:
            raise GatewayError("upstream_cut", detail="the end marker came without a finish reason")

    def _await_afterwords(self) -> None:
        """The answer has its finish reason: from now on silence is no failure, and it ends soon."""
        assert self._intake is not None, "no answer has begun"
        self._deadline.clear()
        self._afterwords = self._work.engine.clock.wheel.after(AFTERWORDS, self._intake.stop)

    def _end_afterwords(self) -> None:
        if self._afterwords is not None:
            self._afterwords.cancel()
            self._afterwords = None

    # -- while the answer comes: called for every read -----------------------------------------------------------------

    def _take(self, data: bytes) -> Taken:
        answer = self.answer
        assert answer is not None, "no answer has begun"
        events = answer.feed(data)
        if events:
            self._write(events)
        elif self._speaking:
            self.alive_at = self._now()
        elif self.question.plain:
            self._begin(data)
        if answer.failure is not None:
            raise answer.failure
        if answer.ended or self._log.full:
            return ENOUGH
        if answer.finish_reason and self._afterwords is None and answer.finished:
            self._await_afterwords()
        return RELAYED if events else INCOMPLETE

    def _write(self, events: list[Event], *, kept_back: bool = False) -> None:
        """Writes events of this answer to the log, without those that a rescue drops; it drops no `kept_back` ones."""
        if not events:
            return
        self.alive_at = self._now()  # also for events that a rescue drops: the target is not silent
        if not self._speaking:
            self._speak()
        if self.rescue is not None and not kept_back:
            events = self.rescue.missing(events)
            if not events:
                return
        transcript, answer = self._transcript, self.answer
        if self.rescue is not None and self.rescue.restarted:
            self.rescue = None
            self.carried = 0
            transcript.void()
        if self.claim is not None:
            self.claim()
        if not self.wrote:
            self._begin_writing()
        if answer is not None and answer.size > self._paid and not self._pays(answer.size):
            self._write_paid(answer, events)
        transcript.write(events, self.alive_at)

    def _speak(self) -> None:
        """The first event of this answer is here; a rescue may drop it."""
        self._speaking = True
        self.choice.target.breaker.begin(self._call)
        self._deadline.set(self._work.job.timeouts.idle, _stall)

    def _begin_writing(self) -> None:
        """The first event that the readers lack is about to be written."""
        work, answer, choice = self._work, self.answer, self.choice
        assert answer is not None, "no answer has begun"
        self.wrote = True
        if work.transcript.empty:
            work.host.begin()
        model = answer.model or choice.target.model or choice.upstream.config.model or work.transcript.log.model
        work.transcript.begin(model, in_chunks=answer.in_chunks, announced=work.job.announce)

    def _begin(self, data: bytes) -> None:
        """A piece of a plain answer is here, which is not whole yet.

        What begins like a stream, or with white space only, is no piece of one: its first event has to come in time.
        """
        self.alive_at = self._now()
        if not self._begun and data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
            self._begun = True
            self.choice.target.breaker.begin(self._call)
            self._deadline.set(self._work.job.timeouts.idle, _stall)

    def _pays(self, size: int) -> bool:
        """Whether the budget has room for an answer of so many bytes; then they are paid for."""
        output = self.carried + -(-size // BYTES_PER_TOKEN)
        used = Usage(self._work.job.input_tokens + self.others, output, "estimate")
        if not self._work.lease.spend(amounts(used, self._log.model), self.alive_at):
            return False
        self._paid = self._bytes_paid(size)
        return True

    def _write_paid(self, answer: Answer, events: list[Event]) -> NoReturn:
        """Of events that the budget has no room for, those are written that it has room for, and one more.

        Raises:
            GatewayError: `budget`.
        """
        sizes = [size_of(event) for event in events]
        size, count = answer.size - sum(sizes), 0
        for said in sizes:
            count += 1
            size += said
            if not self._pays(size):
                break
        self._transcript.write(events[:count], self.alive_at)
        raise GatewayError("budget")

    def _bytes_paid(self, size: int) -> float:
        """Bytes up to which the answer is paid for. Comparing bytes at each event is cheaper than asking the lease."""
        before = self._work.job.input_tokens + self.others + self.carried
        return BYTES_PER_TOKEN * (self._work.lease.due(TOKENS, before + size // BYTES_PER_TOKEN) - before)


def _timeout() -> GatewayError:
    return GatewayError("upstream_timeout")


def _stall() -> GatewayError:
    return GatewayError("upstream_stalled")
