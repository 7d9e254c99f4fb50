"""One call to one target: from asking to the end of its answer.

    asking --a head that is accepted--> answered --first event--> speaking --whole--> done
       |                                   |                         |
       |  `connect`, `first_event`         |  `first_event`          |  `idle`          the time limits in each state
       |                                   |                         |
       +-----------------------------------+-------------------------+--refused, cut, silent--> GatewayError
       |
       +--a head that is no stream--> passed on --its body was relayed--> done

`first_event` runs from the question to the first event; comments of the upstream do not stop it. `idle` starts anew
with every read of a speaking answer, comments included, and stands still while the log is full.

Two callers drive an attempt. `run` asks the target and waits for the end. While the answer comes, the intake calls
`_take` with the bytes of every read. Both write events through the transcript, but only those that the readers lack,
and take the tokens of those events from the lease.

An attempt knows nothing of the attempts before and after it; the pump does.
"""

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_plus, urlsplit

import aiohttp

from gateway.clock import Deadline
from gateway.core.cost import amounts
from gateway.core.errors import GatewayError
from gateway.core.event import Event, Usage
from gateway.core.limiter import Lease
from gateway.core.limits import TOKENS
from gateway.core.sentence import without_keys, without_quotes
from gateway.dialects.base import BYTES_PER_TOKEN, Answer
from gateway.observe.account import Account
from gateway.streams.engine import Engine
from gateway.streams.job import Job
from gateway.streams.rescue import Rescue, tokens_of
from gateway.streams.transcript import Transcript
from gateway.upstream.course import Choice
from gateway.upstream.http import attempt
from gateway.upstream.intake import Intake, Taken


class Host(Protocol):
    """The generation, as its pump sees it."""

    def begin(self) -> None:
        """The first event is about to be written."""

    async def pass_through(self, response: aiohttp.ClientResponse) -> None:
        """Returns when the body of this answer, which is no stream, was passed on to the client.

        Raises:
            GatewayError: the client was sent the beginning of a stream before.
        """


@dataclass(frozen=True, slots=True)
class Work:
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
        prefix: the text that the target is asked to continue, "" for none.

    Attributes:
        choice: as given.
        rescue: as given; None once the answer began anew.
        answer: turns the upstream's bytes into events; None before its head was accepted.
        wrote: whether any event of this attempt was written.
        carried: tokens of the prefix. The upstream counts them as its prompt, the client as part of the answer.
    """

    __slots__ = (
        "_call",
        "_deadline",
        "_heard",
        "_now",
        "_paid",
        "_prefix",
        "_speaking",
        "_work",
        "answer",
        "carried",
        "choice",
        "rescue",
        "wrote",
    )

    def __init__(self, work: Work, choice: Choice, call: int, rescue: Rescue | None, prefix: str) -> None:
        self.choice = choice
        self.rescue = rescue
        self.answer: Answer | None = None
        self.wrote = False
        self.carried = 0
        self._work = work
        self._now = work.engine.clock.now
        self._call = call
        self._prefix = prefix
        self._heard = 0.0
        self._paid = 0.0
        self._speaking = False

    async def run(self) -> None:
        """Returns when the answer is whole, or was passed on.

        Raises:
            GatewayError: the target refused, could not be reached or was silent; its answer broke off or is too long.
        """
        work, job, account, target = self._work, self._work.job, self._work.account, self.choice.target
        upstream, clock = self.choice.upstream, work.engine.clock
        if self.rescue is not None:
            self.rescue.ask(self._prefix)
        account.ask(upstream.name, self._now())
        account.span.ask(upstream.name, upstream.config.dialect, target.url)
        with Deadline(clock.wheel, _timeout, self._last_heard) as self._deadline:
            self._deadline.set(job.timeouts.first_event)
            with await attempt(
                work.engine.session,
                account.span.carry(job.source.call(upstream, target, self._prefix)),
                connect_timeout=job.timeouts.connect,
                again=job.source.repeatable,
                verify_tls=upstream.config.verify_tls,
            ) as response:
                account.answer(response.status)
                answer = await job.source.accept(upstream, response, canonical=self.rescue is not None)
                if answer is None:
                    self._deadline.clear()
                    target.breaker.begin(self._call)
                    await work.host.pass_through(response)
                    return
                self.answer = answer
                self.carried = tokens_of(self.rescue.delivered) if self.rescue is not None and self._prefix else 0
                self._paid = self._bytes_paid(0)
                await self._read(response, answer)

    def hide_quotes(self, error: GatewayError) -> None:
        """Takes out of a provider's sentence its quotes of this attempt's request, and the key that it was asked with.

        The request may hold what its own reader must not see, as a route's `system` text.
        """
        if not error.sentence:
            return
        upstream = self.choice.upstream
        # Built anew, so that no request is kept for as long as its answer lasts.
        asked = self._work.job.source.call(upstream, self.choice.target, self._prefix)
        request = asked.body or unquote_plus(urlsplit(asked.url).query).encode()
        sent = [value.rpartition(" ")[2] for value in upstream.config.headers.values()]  # as `Bearer …`
        sentence = without_keys(error.sentence, upstream.config.api_key, *sent)
        error.reword(without_quotes(sentence, request))

    def _last_heard(self) -> float:
        return self._heard

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        job, log = self._work.job, self._work.transcript.log
        intake = Intake(response, self._work.engine.clock, job.stream.batch.interval, job.stream.batch.max_bytes)
        try:
            while not await intake.relay(self._take):
                if answer.ended:
                    break
                self._deadline.clear()  # the upstream is not to blame for a wait that slow readers cause
                await log.room()
                self._deadline.set(job.timeouts.idle, _stall)
            else:
                self._write(answer.close())
        except (aiohttp.ClientError, ConnectionError):
            if not answer.complete:
                raise
        finally:
            intake.leave()
        if answer.failure is not None:
            raise answer.failure
        if not (answer.complete or answer.eof_ends):
            raise GatewayError("upstream_cut", detail="the body ended without an end marker")
        if self.rescue is not None:
            self._write(self.rescue.rest(), kept_back=True)

    # -- while the answer comes: called for every read -----------------------------------------------------------------

    def _take(self, data: bytes) -> Taken:
        answer = self.answer
        assert answer is not None, "no answer has begun"
        events = answer.feed(data)
        if events:
            self._write(events)
        elif self._speaking:
            self._heard = self._now()
        if answer.failure is not None:
            raise answer.failure
        if answer.ended or self._work.transcript.log.full:
            return Taken.ENOUGH
        return Taken.RELAYED if events else Taken.NOTHING

    def _write(self, events: list[Event], *, kept_back: bool = False) -> None:
        """The events of this answer are in the log, less what a rescue drops; of `kept_back` ones it drops nothing."""
        if not events:
            return
        self._heard = self._now()  # also for events that a rescue drops: the target is not silent
        if not self._speaking:
            self._speak()
        if self.rescue is not None and not kept_back:
            events = self.rescue.missing(events)
            if not events:
                return
        transcript, answer = self._work.transcript, self.answer
        if self.rescue is not None and self.rescue.restarted:
            self.rescue = None
            self.carried = 0
            transcript.void()
        self.wrote = True
        transcript.write(events, self._heard)
        if answer is not None and answer.size > self._paid:
            self._pay(answer)

    def _speak(self) -> None:
        """The first event of this answer is here."""
        work, answer, choice = self._work, self.answer, self.choice
        assert answer is not None, "no answer has begun"
        self._speaking = True
        choice.target.breaker.begin(self._call)
        self._deadline.set(work.job.timeouts.idle, _stall)
        if work.transcript.empty:
            work.host.begin()
        model = answer.model or choice.target.model or choice.upstream.config.model or work.transcript.log.model
        work.transcript.begin(model, in_chunks=answer.in_chunks, announced=work.job.announce)

    def _pay(self, answer: Answer) -> None:
        used = Usage(self._work.job.input_tokens, self.carried + answer.deltas, "estimate")
        if not self._work.lease.spend(amounts(used, self._work.transcript.log.model), self._heard):
            raise GatewayError("budget")
        self._paid = self._bytes_paid(answer.size)

    def _bytes_paid(self, size: int) -> float:
        """Bytes up to which the answer is paid for. Comparing bytes at each event is cheaper than asking the lease."""
        before = self._work.job.input_tokens + self.carried
        return BYTES_PER_TOKEN * (self._work.lease.due(TOKENS, before + size // BYTES_PER_TOKEN) - before)


def _timeout() -> GatewayError:
    return GatewayError("upstream_timeout")


def _stall() -> GatewayError:
    return GatewayError("upstream_stalled")
