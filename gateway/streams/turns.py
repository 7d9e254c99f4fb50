"""Work that takes milliseconds at a stretch, such as parsing megabytes: one piece of it in a turn of the loop."""

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

T = TypeVar("T")

LONG: Final = 64 * 1024
"""Bytes of JSON from which on reading or writing it is such work. Less takes no millisecond."""


class Turns:
    """Whoever has such work does it in `async with turns:`. All else has its turn between two pieces.

    A piece begins in a turn in which no other has run, and who has done it goes on in a turn in which none runs. So the
    loop is held up by one piece at most, however many come at once. The one that has waited longest is next.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._lock.release()


STEPS: Final = 4
"""Steps in one turn, where they take about a millisecond each."""


async def finished(steps: Generator[None, None, T], at_once: int = STEPS) -> T:
    """The value of work that is done in steps; all else has its turn behind `at_once` of them."""
    done = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        done += 1
        if done % at_once == 0:
            await asyncio.sleep(0)
