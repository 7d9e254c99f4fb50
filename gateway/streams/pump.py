"""The pump: asks one target after the other until an answer is whole, and has broken answers finished elsewhere.

            +----------------------- wait, ask again ------------------------+
            v                                                                |
    choosing --target--> attempt --failed, nothing was written---------------+
        |                   |
        |                   +--failed, something was written--> rescue, as far as allowed: choose another target
        |                   |
        |                   +--whole, or passed on--> run() returns
        |
        +--nobody is left, or asking again is wrong--> run() raises

- Until the first event was written, a failure means another attempt, where `core/retry.py` says that it may help.
- After that it means a rescue: another target goes on from what was delivered, or its repetition is dropped. A reader
  never gets a character twice; where the texts differ, what it has is declared void (`RESTART`) or the stream fails.
- Attempts are bounded by the course; every one of them is counted, its connection closed, its target's health noted.

Three lifetimes: the pump's is the generation's, an `Attempt`'s is one call, a `Rescue` is there while an answer is
broken. The pump knows no reader, and does not end the log: the generation does, however this ends.
"""

import asyncio
import random

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.core.retry import counts_against_target
from gateway.streams.attempt import Attempt, Work
from gateway.streams.rescue import MAX_RESCUES, Rescue, delivered_text, tokens_of
from gateway.upstream.course import Choice, Course


class Pump:
    """Fills the log of one generation.

    Args:
        work: what the generation works with.
    """

    __slots__ = ("_answered", "_course", "_now", "_rescue", "_rescues", "_work")

    def __init__(self, work: Work) -> None:
        self._work = work
        self._now = work.engine.clock.now
        self._course = Course(work.job.chain, random.random, again=work.job.source.repeatable)
        self._answered: Attempt | None = None  # the last attempt that was answered with a stream
        self._rescue: Rescue | None = None
        self._rescues = 0

    async def run(self) -> None:
        """Returns when the log holds a whole answer, or another one was passed on.

        Raises:
            GatewayError: there is none to be had; what the log holds is all there will be.
        """
        whole = False
        while not whole:
            whole = await self._ask(await self._choose())

    # -- what came of it ---------------------------------------------------------------------------------------------

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, "" when it did not say."""
        answer = self._answered.answer if self._answered is not None else None
        return answer.finish_reason if answer is not None else ""

    @property
    def skipped(self) -> int:
        """Events of the last answer that were not understood."""
        answer = self._answered.answer if self._answered is not None else None
        return answer.skipped if answer is not None else 0

    @property
    def usage(self) -> Usage:
        """Tokens of what was completed: the upstream's own count, or an estimate where it gave none."""
        attempt = self._answered
        if attempt is None or attempt.answer is None:
            return Usage(0, 0, "estimate")  # nobody was asked, or nobody answered with a stream
        answer, carried, usage = attempt.answer, attempt.carried, attempt.answer.usage
        if usage is None or (answer.deltas and not usage.output):  # some say 0 for whatever they sent
            delivered = self._rescue.delivered if self._rescue is not None else ""
            output = max(answer.deltas + carried, tokens_of(delivered))
            return Usage(self._work.job.input_tokens, output, "estimate")
        return Usage(max(0, usage.input - carried), usage.output + carried, usage.source)

    # -- the course --------------------------------------------------------------------------------------------------

    async def _choose(self) -> Choice:
        """The next target, once it may be asked."""
        try:
            choice = self._course.next(self._now())
            while choice.delay:
                await asyncio.sleep(choice.delay)
                choice = self._course.next(self._now())
        except GatewayError:
            if self._rescue is None:
                raise
            self._rescue.fail()
        return choice

    async def _ask(self, choice: Choice) -> bool:
        """Whether that made the answer whole; where not, the course knows what failed."""
        target = choice.target
        prefix = self._rescue.prefix if self._rescue is not None and not target.rejects_prefill else ""
        with choice.upstream.use(target) as call:
            attempt = Attempt(self._work, choice, call, self._rescue, prefix)
            try:
                try:
                    await self._run(attempt)
                except GatewayError as error:
                    if not (prefix and error.code == "upstream_refused"):
                        raise
                    self._note(choice, error)
                    attempt = Attempt(self._work, choice, call, self._rescue, "")
                    try:
                        await self._run(attempt)
                    finally:
                        # It may refuse without the prefix too; then the prefix was not the reason.
                        target.rejects_prefill = attempt.answer is not None
            except GatewayError as error:
                self._consider(attempt, call, error)
                return False
            target.breaker.succeed(call)
            if self._rescue is not None:
                self._rescue.complete()
            return True

    async def _run(self, attempt: Attempt) -> None:
        try:
            await attempt.run()
        finally:
            if attempt.answer is not None:
                self._answered = attempt
            self._rescue = attempt.rescue

    def _consider(self, attempt: Attempt, call: int, error: GatewayError) -> None:
        """Returns when another target may be asked after this failure; else it raises."""
        work, choice, rescue = self._work, attempt.choice, self._rescue
        if error.code == "budget" or (rescue is not None and error is rescue.broken):
            raise error  # no fault of the target
        now = self._now()
        if counts_against_target(error):
            choice.target.breaker.fail(now, call)
        work.account.attempt_failed(choice.upstream.name, error.code)
        if work.transcript.empty:
            self._course.failed(error, work.account.started + work.job.timeouts.first_event - now)
        elif rescue is not None and not attempt.wrote:
            try:
                self._course.failed(error, work.job.timeouts.first_event)
            except GatewayError:
                rescue.fail()
        else:
            self._begin_rescue(choice, error)
        self._note(choice, error)

    def _begin_rescue(self, choice: Choice, error: GatewayError) -> None:
        work = self._work
        allowed = choice.upstream.config.rescue and self._rescues < MAX_RESCUES
        delivered = delivered_text(work.job, work.transcript.log, error) if allowed else None
        if delivered is None:
            raise error
        self._rescues += 1
        self._rescue = Rescue(error, delivered, choice.upstream.name, work.account, restarts=work.job.restarts)
        self._course.rescue(error)

    def _note(self, choice: Choice, error: GatewayError) -> None:
        self._work.engine.logger.info(
            "attempt_failed",
            upstream=choice.upstream.name,
            code=error.code,
            detail=error.detail,
            **self._work.account.facts,
        )
