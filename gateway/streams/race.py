"""Attempts beside each other at one answer: a target that is silent for `hedge` gets company, and who speaks is heard.

    alone --silent for `hedge`--> beside another one --an event is about to be written--> alone; the other is cancelled
      ^                               |
      +------ one of them fails ------+

Invariants:

- An attempt that has company claims the log before it writes. That cancels the other in the same turn of the loop, so
  only one of them is heard.
- The slower attempt has not failed.

The race ends when no attempt is left, or when an answer is whole. What a failure means, and which target is asked
beside a silent one, the pump decides.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from gateway.clock import Clock
from gateway.core.errors import GatewayError
from gateway.streams.attempt import Attempt
from gateway.upstream.course import Choice

LOOK: Final = 0.1
"""Seconds between two checks of an attempt that is not silent, but waits for its readers or for the usage."""


class Tried(NamedTuple):
    """An attempt that has ended, and why it failed; None where its answer is whole."""

    attempt: Attempt
    error: GatewayError | None


class Lane:
    """One of the attempts, and the task that it runs in.

    Attributes:
        choice: the target that is asked.
        attempt: the attempt; another one takes its place if the target refuses something that the gateway added.
        task: its task.
        outrun: whether it was cancelled because another attempt was heard, or ended the answer.
    """

    __slots__ = ("attempt", "choice", "outrun", "task")

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.attempt: Attempt | None = None
        self.task: asyncio.Task[Tried] | None = None
        self.outrun = False

    def result(self) -> Tried:
        """What came of a lane that has ended and was not outrun."""
        assert self.task is not None, "the lane was not entered"
        return self.task.result()


class Race:
    """The lanes that run, at most two of them, and the wait for what happens next.

    Args:
        clock: the shared timers.
        hedge: seconds of silence after which an attempt that is alone gets company.
        heard: called with the lane that is about to write, when it had company.

    Attributes:
        lanes: those that run.
        open: whether another attempt may join.
    """

    __slots__ = ("_clock", "_heard", "_hedge", "lanes", "open")

    def __init__(self, clock: Clock, hedge: float, heard: Callable[[Lane], None]) -> None:
        self._clock = clock
        self._hedge = hedge
        self._heard = heard
        self.lanes: list[Lane] = []
        self.open = True

    def enter(self, lane: Lane, run: Coroutine[Any, Any, Tried]) -> None:
        """This lane runs from now on."""
        lane.task = asyncio.get_running_loop().create_task(run)
        self.lanes.append(lane)

    def begin(self, lane: Lane, attempt: Attempt) -> None:
        """This attempt begins in the lane."""
        lane.attempt = attempt
        attempt.claim = lambda: self._claim(lane)

    async def next(self) -> Lane | None:
        """A lane that has ended and has left the race; None where the only lane is silent and another may enter."""
        while True:
            alone = self.open and len(self.lanes) == 1
            wait = self._left(self.lanes[0]) if alone else None
            if wait is not None and wait <= 0:
                return None
            tasks = [lane.task for lane in self.lanes if lane.task is not None]
            await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            for lane in self.lanes:
                if lane.task is not None and lane.task.done():
                    self.lanes.remove(lane)
                    return lane

    def stop(self) -> None:
        """The answer has ended: the lanes that still run are stopped, and nothing that comes of them counts."""
        for lane in self.lanes:
            self._outrun(lane)

    async def close(self) -> list[Lane]:
        """The lanes that had not left the race; none of them runs any more."""
        tasks = [lane.task for lane in self.lanes if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self.lanes

    def _left(self, lane: Lane) -> float:
        """Seconds of silence that are left to a lane; more than 0 where it does not have to speak."""
        attempt = lane.attempt
        if attempt is None or attempt.waits or (attempt.answer is not None and attempt.answer.finished):
            return LOOK
        return attempt.alive_at + self._hedge - self._clock.now()

    def _claim(self, lane: Lane) -> None:
        if len(self.lanes) == 1:
            return
        for other in self.lanes:
            if other is not lane:
                self._outrun(other)
        self._heard(lane)

    def _outrun(self, lane: Lane) -> None:
        if lane.task is not None and not lane.outrun:  # once, as it may be cleaning up
            lane.outrun = True
            lane.task.cancel()
