"""How much memory request bodies may take at once, with what is made of them, until they are answered.

    reserve --it fits, at once or within `PATIENCE`--> Reservation: change*, close
        \\-----it does not---------------------------> None

Invariants:

- What is reserved together is never above `limit`. A body that alone is larger counts as much as the largest that fits.
- At most one body waits because it turned out to take more than was reserved for it: if several did, each would wait
  for what the others have.
- Large bodies leave a share of it to small ones, so that those are served while large ones wait.
- Of the large ones that wait, the one that has waited longest is next; so of the small ones.
- What was taken is given back exactly once, however often a reservation is closed.
"""

import asyncio
from collections import deque
from typing import Final

PATIENCE: Final = 5.0
"""Seconds that a body waits for its place."""
LARGE: Final = 256 * 1024
"""Bytes of memory from which on a body is large."""
FOR_SMALL: Final = 8
"""The part of the limit that large bodies leave to small ones: an eighth."""
MAX_WAITING: Final = 10_000
"""Bodies that wait at once; one more is refused without a wait."""

Waiting = deque[tuple[int, "asyncio.Future[None]"]]


class Inflight:
    """The memory of all request bodies of a process.

    Args:
        limit: bytes. May be changed; what is reserved stays reserved.
        patience: seconds that a body waits.
    """

    def __init__(self, limit: int, patience: float = PATIENCE) -> None:
        self.limit = limit
        self.used = 0
        """Bytes that are reserved now."""
        self._patience = patience
        self._growing = False
        self._small: Waiting = deque()
        self._large: Waiting = deque()

    async def reserve(self, size: int) -> "Reservation | None":
        """A reservation of so many bytes, or None because they did not become free in time."""
        size = self.counted(size)
        return Reservation(self, size) if await self.take(size) else None

    def counted(self, size: int) -> int:
        """As much of this size as counts."""
        return min(size, self._ceiling(size))

    async def take(self, size: int) -> bool:
        """Whether so many bytes were taken, after a wait if need be."""
        waiting = self._large if size >= LARGE else self._small
        if not waiting and self.used + size <= self._ceiling(size):
            self.used += size
            return True
        if len(waiting) >= MAX_WAITING:
            return False
        place, given = (size, asyncio.get_running_loop().create_future()), False
        waiting.append(place)
        try:
            async with asyncio.timeout(self._patience):
                await place[1]
                given = True
        except TimeoutError:
            return False
        finally:
            if not given:
                self._leave(place, waiting)
        return True

    async def grow(self, size: int) -> bool:
        """As `take`, for a body that has something already."""
        if self._growing:
            return False
        self._growing = True
        try:
            return await self.take(size)
        finally:
            self._growing = False

    def give_back(self, size: int) -> None:
        """So many bytes are free again, for those that wait."""
        self.used -= size
        for waiting in (self._small, self._large):
            while waiting and self.used + waiting[0][0] <= self._ceiling(waiting[0][0]):
                taken, future = waiting.popleft()
                if not future.cancelled():
                    self.used += taken
                    future.set_result(None)

    def _leave(self, place: "tuple[int, asyncio.Future[None]]", waiting: Waiting) -> None:
        """It waits no longer. If it was given its place in the very moment in which it gave up, it gives that back."""
        size, future = place
        if place in waiting:
            waiting.remove(place)
            self.give_back(0)  # the next one may be smaller, and fit
        elif not future.cancelled():
            self.give_back(size)

    def _ceiling(self, size: int) -> int:
        return self.limit - self.limit // FOR_SMALL if size >= LARGE else self.limit


class Reservation:
    """What one body takes. Whoever gets one must close it.

    Attributes:
        size: bytes, as far as they count.
    """

    __slots__ = ("_inflight", "size")

    def __init__(self, inflight: Inflight, size: int) -> None:
        self._inflight: Inflight | None = inflight
        self.size = size

    async def change(self, size: int) -> bool:
        """Whether it has this size now. In order to grow it may wait, unless another one waits already. False:
        its size is unchanged."""
        inflight = self._inflight
        assert inflight is not None, "it is closed"
        size = inflight.counted(size)
        if size > self.size:
            if not await inflight.grow(size - self.size):
                return False
        else:
            inflight.give_back(self.size - size)
        self.size = size
        return True

    def close(self) -> None:
        """Everything is given back; calling it again does nothing."""
        inflight, self._inflight = self._inflight, None
        if inflight is not None:
            inflight.give_back(self.size)
