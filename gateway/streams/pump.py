"""The pump: asks one target after the other until an answer is whole, and lets other targets finish a broken answer.

            +----------------------- wait, ask again ------------------------+
            v                                                                |
    choosing --target--> attempt --failed, nothing was written---------------+
        |                   |                                                |
        |                   +--failed, something was written: a rescue ------+
        |                   |
        |                   +--failed; asking again is wrong, or no rescue is allowed--> run() raises
        |                   |
        |                   +--whole, or passed on--> run() returns
        |
        +--no target is left--> run() raises

- A failure before the first event was written leads to another attempt, where `core/retry.py` says that it may help.
- A failure after that leads to a rescue: another target continues the delivered text, or repeats it, and the repetition
  is dropped. A reader never gets a character twice. Where the texts differ, the stream begins anew with `RESTART`, or
  it fails.
- A target that refuses to continue a text is asked once more at once, without that text.
- The course bounds the number of attempts. Each attempt is counted, its connection is closed, and its target's breaker
  learns how it ended.

There are three lifetimes. A `Pump` lives as long as its generation, an `Attempt` as long as one call, a `Rescue` as
long as an answer is broken. The pump does not end the log: the generation does, in whatever way `run` ends.
"""

import asyncio
import random

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.core.retry import counts_against_target
from gateway.streams.attempt import Attempt, Work
from gateway.streams.evidence import failed_attempt
from gateway.streams.rescue import MAX_RESCUES, Rescue, delivered_text, tokens_of
from gateway.upstream.course import Choice, Course


class Pump:
    """Fills the log of one generation.

    Args:
        work: what the generation works with.
    """

    __slots__ = ("_answered", "_asked", "_course", "_failed", "_now", "_rescue", "_rescues", "_work")

    def __init__(self, work: Work) -> None:
        self._work = work
        self._now = work.engine.clock.now
        self._course = Course(work.job.chain, random.random, again=work.job.source.repeatable)
        self._answered: Attempt | None = None  # the last attempt that was answered with a stream
        self._asked: Attempt | None = None  # the last attempt
        self._failed: dict[GatewayError, Attempt] = {}  # bounded, as the course bounds the attempts
        self._rescue: Rescue | None = None
        self._rescues = 0

    async def run(self) -> None:
        """Returns when the log holds a whole answer, or an answer that is no stream was passed on.

        Raises:
            GatewayError: no target gives a whole answer. Nothing more will be written.
        """
        whole = False
        while not whole:
            whole = await self._ask(await self._choose())

    # -- what came of it ---------------------------------------------------------------------------------------------

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, "" when the upstream did not say."""
        answer = self._answered.answer if self._answered is not None else None
        return answer.finish_reason if answer is not None else ""

    @property
    def skipped(self) -> int:
        """Events of the last answer that were not understood."""
        answer = self._answered.answer if self._answered is not None else None
        return answer.skipped if answer is not None else 0

    @property
    def usage(self) -> Usage:
        """Tokens of the question and of what was answered: the upstream's count, or an estimate where it gave none."""
        attempt = self._answered
        if attempt is None or attempt.answer is None:
            return Usage(0, 0, "estimate")  # no target was asked, or none answered with a stream
        answer, carried, usage = attempt.answer, attempt.carried, attempt.answer.usage
        if usage is None or (answer.deltas and not usage.output):  # some servers report 0, whatever they sent
            delivered = self._rescue.delivered if self._rescue is not None else ""
            output = max(answer.deltas + carried, tokens_of(delivered))
            return Usage(self._work.job.input_tokens, output, "estimate")
        return Usage(max(0, usage.input - carried), usage.output + carried, usage.source)

    def blamed(self, failure: GatewayError) -> Attempt | None:
        """The attempt that failed with this error; the last one where none did, None where no target was asked."""
        return self._failed.get(failure, self._asked)

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
        """Asks one target. True when the answer is whole; False when it failed and another target may be asked."""
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
                    self._note(attempt, error)
                    attempt = Attempt(self._work, choice, call, self._rescue, "")
                    try:
                        await self._run(attempt)
                    finally:
                        # If it refuses without the prefix too, the prefix was not the reason.
                        target.rejects_prefill = attempt.answer is not None
            except GatewayError as error:
                self._consider(attempt, call, error)
                return False
            target.breaker.succeed(call)
            if self._rescue is not None:
                self._rescue.complete()
            return True

    async def _run(self, attempt: Attempt) -> None:
        self._asked = attempt
        try:
            await attempt.run()
        except GatewayError as error:
            attempt.hide_quotes(error)
            raise
        finally:
            if attempt.answer is not None:
                self._answered = attempt
            self._rescue = attempt.rescue

    def _consider(self, attempt: Attempt, call: int, error: GatewayError) -> None:
        """Returns when another target may be asked after this failure; otherwise raises."""
        work, choice, rescue = self._work, attempt.choice, self._rescue
        if error.code == "budget" or (rescue is not None and error is rescue.broken):
            raise error  # the target is not to blame
        now = self._now()
        if counts_against_target(error):
            choice.target.breaker.fail(now, call)
        work.account.attempt_failed(choice.upstream.name, error.code)
        self._note(attempt, error)
        # Three cases: 1. Nothing was written at all: ask again, as long as the time for a first event is not over.
        # 2. This attempt of a rescue added nothing: ask again for the same rescue. 3. The answer broke off: rescue it.
        if work.transcript.empty:
            self._course.failed(error, work.account.started + work.job.timeouts.first_event - now)
        elif rescue is not None and not attempt.wrote:
            try:
                self._course.failed(error, work.job.timeouts.first_event)
            except GatewayError:
                rescue.fail()
        else:
            self._begin_rescue(choice, error)

    def _begin_rescue(self, choice: Choice, error: GatewayError) -> None:
        work = self._work
        allowed = choice.upstream.config.rescue and self._rescues < MAX_RESCUES
        delivered = delivered_text(work.job, work.transcript.log, error) if allowed else None
        if delivered is None:
            raise error
        self._rescues += 1
        self._rescue = Rescue(error, delivered, choice.upstream.name, work.account, restarts=work.job.restarts)
        self._course.rescue(error)

    def _note(self, attempt: Attempt, error: GatewayError) -> None:
        self._failed[error] = attempt
        self._work.engine.failures.note(failed_attempt(self._work, attempt, error))
