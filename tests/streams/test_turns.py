"""H6: long work is done piece by piece: one piece in a turn of the loop, whoever has how many."""

import asyncio
from collections.abc import Generator

import pytest

from gateway.streams.turns import STEPS, Turns, finished


class Loop:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.turn = 0
        self._count()

    def _count(self) -> None:
        self.turn += 1
        self._handle = asyncio.get_running_loop().call_soon(self._count)

    def stop(self) -> None:
        self._handle.cancel()


async def test_no_two_pieces_are_done_in_one_turn_nor_what_follows_them() -> None:
    loop, turns, worked = Loop(), Turns(), []

    async def work() -> None:
        async with turns:
            worked.append(loop.turn)
        worked.append(loop.turn)  # what follows may be long, too

    await asyncio.gather(*(work() for _ in range(20)))
    loop.stop()
    assert len(set(worked)) == len(worked) == 40


async def test_work_that_fails_or_is_cancelled_leaves_its_place() -> None:
    turns = Turns()

    async def fails() -> None:
        async with turns:
            raise ValueError

    async def hangs() -> None:
        async with turns:
            await asyncio.Event().wait()

    with pytest.raises(ValueError):  # noqa: PT011
        await fails()
    hanging, waiting = asyncio.ensure_future(hangs()), asyncio.ensure_future(hangs())
    await asyncio.sleep(0)
    waiting.cancel()
    hanging.cancel()
    await asyncio.gather(hanging, waiting, return_exceptions=True)
    async with asyncio.timeout(1), turns:
        pass


async def test_steps_are_parted_by_turns() -> None:
    loop, worked = Loop(), []

    def steps() -> Generator[None, None, str]:
        for _ in range(10 * STEPS):
            worked.append(loop.turn)
            yield
        return "done"

    assert await finished(steps()) == "done"
    loop.stop()
    assert max(worked.count(turn) for turn in worked) == STEPS
