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
- A target that refuses something that the gateway added to the request (the text to be continued, `stream_options`) is
  asked once more at once, without it. That is no failed attempt.
- Where a target is silent for `hedge`, another one is asked beside it; `race.py` has the drawing.
- The course bounds the number of attempts. Each attempt is counted, its connection is closed, and its target's breaker
  learns how it ended.

There are three lifetimes. A `Pump` lives as long as its generation, an `Attempt` as long as one call, a `Rescue` as
long as an answer is broken. The pump does not end the log: the generation does, in whatever way `run` ends.
"""

import asyncio
import random
from collections.abc import Awaitable

from gateway.core.cost import amounts
from gateway.core.errors import GatewayError, forget_frames
from gateway.core.event import Usage
from gateway.core.retry import FAULTS, SILENT, counts_against_target, may_be_rescued
from gateway.streams.attempt import Attempt, Work
from gateway.streams.evidence import failed_attempt
from gateway.streams.question import Question
from gateway.streams.race import Lane, Race, Tried
from gateway.streams.rescue import MAX_RESCUES, Rescue, delivered_text, delivered_tokens, tokens_of
from gateway.upstream.course import Choice, Course


class Pump:
    """Fills the log of one generation.

    Args:
        work: what the generation works with.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_beside",
        "_course",
        "_failed",
        "_now",
        "_outrun",
        "_rescue",
        "_rescues",
        "_work",
    )

    def __init__(self, work: Work) -> None:
        self._work = work
        self._now = work.engine.clock.now
        self._course = Course(work.job.chain, random.random, again=work.job.source.repeatable)
        self._answered: Attempt | None = None  # the last attempt that was answered with a stream
        self._asked: Attempt | None = None  # the last attempt
        self._failed: dict[GatewayError, Attempt] = {}  # bounded, as the course bounds the attempts
        self._rescue: Rescue | None = None
        self._rescues = 0
        self._beside = 0  # attempts that were made beside another one
        self._outrun = 0  # tokens of attempts that another one was quicker than

    async def run(self) -> None:
        """Returns when the log holds a whole answer, or an answer that is no stream was passed on.

        Raises:
            GatewayError: no target gives a whole answer. Nothing more will be written.
        """
        whole = False
        while not whole:
            whole = self._judge(await self._ask(await self._choose()))

    def go_on(self, broken: GatewayError) -> None:
        """The log has the beginning of the answer, which another process wrote; it broke off with this error.

        To be called before `run`, and only where `delivered_text` is not None.
        """
        work = self._work
        delivered = delivered_text(work.job, work.transcript.log, broken)
        assert delivered is not None, "nobody can go on with it"
        work.transcript.take_over(delivered)
        writer, tokens = work.job.chain[0].name, delivered_tokens(work.transcript.log)
        self._rescue = Rescue(broken, delivered, writer, work.account, restarts=work.job.restarts, tokens=tokens)
        self._rescues = 1

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
        # The upstream counted the delivered text as a part of its prompt, unless its count is too small for that.
        prompt = usage.input - carried if usage.input > carried else usage.input
        return Usage(prompt, usage.output + carried, usage.source, min(usage.cached_input, prompt))

    @property
    def spent(self) -> Usage:
        """The tokens that the answer cost, with those of attempts that were not heard."""
        usage = self.usage
        return Usage(usage.input + self._outrun, usage.output, usage.source, usage.cached_input)

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

    def _ask(self, choice: Choice) -> Awaitable[Tried]:
        """Asks one target; where that is silent, perhaps another one beside it."""
        job, hedge = self._work.job, choice.upstream.config.hedge
        if hedge is None or not (job.canonical and job.source.repeatable):
            return self._try(Lane(choice), self._rescue)
        return self._race(choice, hedge)

    def _judge(self, tried: Tried) -> bool:
        """True when the answer is whole; False when it failed and another target may be asked. Otherwise raises."""
        if tried.error is not None:
            self._consider(tried.attempt, tried.error)
            return False
        if self._rescue is not None:
            self._rescue.complete()
        return True

    async def _try(self, lane: Lane, rescue: Rescue | None, race: Race | None = None) -> Tried:
        """Asks the lane's target, again without what it refused of the things that the gateway added."""
        choice, target = lane.choice, lane.choice.target
        prefix = rescue.prefix if rescue is not None and not target.rejects_prefill else ""
        question = Question(self._work.job, self._work.engine, self._work.account, choice, prefix)
        with choice.upstream.use(target) as call:
            while True:
                attempt = Attempt(self._work, choice, call, rescue, question)
                self._enlist(lane, attempt, race)
                try:
                    try:
                        await attempt.run()
                    finally:
                        self._keep(lane, attempt)
                except GatewayError as error:
                    # Each turn leaves out something more, so there are few of them.
                    lighter = None if attempt.wrote else question.lighter(error)
                    if lighter is None:
                        await question.hide_quotes(error, self._work.transcript.text)
                        self._blame(attempt, call, error)
                        forget_frames(error)
                        return Tried(attempt, error)
                    question = lighter
                else:
                    break
            self._credit(attempt, call)
            return Tried(attempt, None)

    def _enlist(self, lane: Lane, attempt: Attempt, race: Race | None) -> None:
        """The attempt is about to be made."""
        if race is not None:
            race.begin(lane, attempt)
            attempt.others = self._beside * self._work.job.input_tokens
        self._asked = attempt

    def _keep(self, lane: Lane, attempt: Attempt) -> None:
        """Takes over the answer and the rescue of an attempt that has ended, unless another attempt was heard."""
        if lane.outrun:
            return
        if attempt.answer is not None:
            self._answered = attempt
        self._rescue = attempt.rescue

    def _blame(self, attempt: Attempt, call: int, error: GatewayError) -> None:
        """Counts a failure, where the target is to blame for it."""
        if _is_blameless(attempt, error):
            return
        # Of a proxied endpoint, the client chose the path; how long its events take says nothing about the target.
        chosen = not self._work.job.canonical and attempt.status is not None and error.code in SILENT
        if counts_against_target(error) and not chosen:
            attempt.choice.target.breaker.fail(self._now(), call)
        self._work.account.attempt_failed(attempt.choice.upstream.name, error.code)
        self._note(attempt, error)

    def _credit(self, attempt: Attempt, call: int) -> None:
        """Counts an answer. An error that was passed on, and that the client may have caused by its request, does not
        count at all: it neither harms a healthy target nor helps a failing one."""
        status, breaker = attempt.status or 0, attempt.choice.target.breaker
        if attempt.answer is not None or status < 400:
            breaker.succeed(call)
        elif status in FAULTS:
            breaker.fail(self._now(), call)

    def _consider(self, attempt: Attempt, error: GatewayError) -> None:
        """Returns when another target may be asked after this failure; otherwise raises."""
        work, choice, rescue = self._work, attempt.choice, self._rescue
        if _is_blameless(attempt, error):
            raise error
        # Three cases: 1. Nothing was written at all: ask again, as long as the time for a first event is not over.
        # 2. This attempt of a rescue added nothing: ask again for the same rescue. 3. The answer broke off: rescue it.
        if work.transcript.empty:
            self._course.failed(choice, error, self._patience)
        elif rescue is not None and not attempt.wrote:
            try:
                self._course.failed(choice, error, work.job.timeouts.first_event)
            except GatewayError:
                rescue.fail()
        else:
            self._begin_rescue(choice, error)

    @property
    def _patience(self) -> float:
        """Seconds that are left until the answer must have begun."""
        return self._work.account.started + self._work.job.timeouts.first_event - self._now()

    def _begin_rescue(self, choice: Choice, error: GatewayError) -> None:
        self._rescue = self._new_rescue(choice, error, restarts=self._work.job.restarts)
        if self._rescue is None:
            raise error
        self._rescues += 1
        self._course.rescue(choice, error)

    def _new_rescue(self, choice: Choice, error: GatewayError, *, restarts: bool) -> Rescue | None:
        """A rescue of the answer that this target has begun, None where there can be none."""
        work = self._work
        allowed = choice.upstream.config.rescue and self._rescues < MAX_RESCUES
        delivered = delivered_text(work.job, work.transcript.log, error) if allowed else None
        if delivered is None:
            return None
        tokens = delivered_tokens(work.transcript.log, self._counted)
        return Rescue(error, delivered, choice.upstream.name, work.account, restarts=restarts, tokens=tokens)

    # -- attempts beside each other --------------------------------------------------------------------------------

    async def _race(self, choice: Choice, hedge: float) -> Tried:
        """Like `_try`, but while the target is silent for `hedge`, another one is asked beside it."""
        race = Race(self._work.engine.clock, hedge, self._heard)
        self._enter(race, choice, self._rescue)
        try:
            while True:
                ended = await race.next()
                if ended is None:
                    self._ask_beside(race)
                elif ended.outrun:
                    self._count_outrun(ended)
                else:
                    tried = ended.result()
                    if not race.lanes:
                        return tried
                    if tried.error is None or self._is_final(tried.attempt, tried.error):
                        race.stop()
                        return tried
                    self._leave_to(race.lanes[0], tried)
        finally:
            for lane in await race.close():
                if lane.outrun:
                    self._count_outrun(lane)

    def _enter(self, race: Race, choice: Choice, rescue: Rescue | None) -> None:
        lane = Lane(choice)
        race.enter(lane, self._try(lane, rescue, race))

    def _ask_beside(self, race: Race) -> None:
        """Asks another target beside the only one, which is silent. Where that cannot be, the race stays as it is."""
        work, silent = self._work, race.lanes[0]
        rescue = self._rescue
        if not work.transcript.empty:
            # The answer has not broken off yet, so no other text may replace it.
            rescue = self._new_rescue(silent.choice, GatewayError("upstream_stalled"), restarts=False)
        possible = rescue is not None or work.transcript.empty
        choice = self._course.beside(silent.choice, self._now()) if possible and self._afford(silent) else None
        if choice is None:
            race.open = False
            return
        self._beside += 1
        self._rescues += rescue is not None
        assert silent.attempt is not None, "a lane that is silent has begun"
        silent.attempt.others = self._beside * work.job.input_tokens
        self._enter(race, choice, rescue)

    def _afford(self, silent: Lane) -> bool:
        """Whether the tokens suffice for one more attempt beside this one; then they are taken."""
        work, attempt = self._work, silent.attempt
        assert attempt is not None, "a lane that is silent has begun"
        said = attempt.carried + (attempt.answer.deltas if attempt.answer is not None else 0)
        used = Usage(work.job.input_tokens * (self._beside + 2), said, "estimate")
        return work.lease.spend(amounts(used, work.transcript.log.model), self._now())

    def _is_final(self, attempt: Attempt, error: GatewayError) -> bool:
        """Whether the answer ends with this failure, so that the attempt beside it must not go on either."""
        if error.code == "budget":
            return True
        if attempt.wrote:
            return not may_be_rescued(error)
        return self._work.transcript.empty and self._course.ends_with(attempt.choice, error)

    def _leave_to(self, other: Lane, tried: Tried) -> None:
        """One of two attempts failed; the other one goes on alone."""
        assert tried.error is not None, "it failed"
        choice = tried.attempt.choice
        self._course.drop(choice, tried.error)
        self._heard(other)
        if self._rescue is not None and tried.attempt.rescue is None:
            self._rescue.broke(tried.error, restarts=self._work.job.restarts)

    def _count_outrun(self, lane: Lane) -> None:
        """Counts what an attempt cost that was not heard."""
        attempt, target, upstream = lane.attempt, lane.choice.target, lane.choice.upstream
        if attempt is None:
            return  # it was stopped before it began
        said = attempt.answer.deltas if attempt.answer is not None else 0
        usage = Usage(self._work.job.input_tokens + attempt.carried, said, "estimate")
        self._outrun += usage.input + usage.output
        model = target.model or upstream.config.model or self._work.job.model
        self._work.account.outrun(upstream.name, model, usage)

    def _heard(self, lane: Lane) -> None:
        """Of the attempts beside each other, this one goes on."""
        self._work.account.heard(lane.choice.upstream.name)
        self._rescue = lane.attempt.rescue if lane.attempt is not None else None

    @property
    def _counted(self) -> int:
        """Tokens of the answer so far, as its provider counted them; 0 where it did not."""
        attempt = self._answered
        usage = attempt.answer.usage if attempt is not None and attempt.answer is not None else None
        if attempt is None or usage is None or usage.source != "usage":
            return 0
        return usage.output + attempt.carried

    def _note(self, attempt: Attempt, error: GatewayError) -> None:
        self._failed[error] = attempt
        self._work.engine.failures.note(failed_attempt(self._work, attempt, error))


def _is_blameless(attempt: Attempt, error: GatewayError) -> bool:
    """Whether the target is not to blame: the tokens are used up, or the error is the one that its rescue is about."""
    return error.code == "budget" or (attempt.rescue is not None and error is attempt.rescue.broken)
