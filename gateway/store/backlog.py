"""What is yet to be written to Redis, in the background: at once while Redis is there, else when it is back.

    put --> waiting --> being written --> done
               ^             |
               +-- Redis is away, or went away meanwhile

Invariants:

- Nobody waits for a write. One that was begun may have had its effect although no reply came, and is made again: so a
  write must be one that may be repeated.
- There is one write for each key. A newer one takes the place of one that waits.
- At most `limit` wait; beyond that the oldest is given up, and so is one that failed `TRIES` times.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from itertools import islice
from typing import Final

from structlog.typing import FilteringBoundLogger

from gateway.store.connection import Connection, StoreAwayError

AT_ONCE: Final = 4
"""Writes on the way at once."""
TRIES: Final = 10
"""Failures after which a write is given up: Redis came back so often that it is the write's own fault."""
LAST: Final = 1.0
"""Seconds that what waits at the end of the process may take."""

Write = Callable[[], Awaitable[None]]
"""Writes, and raises `StoreAwayError` where that did not work."""


class Backlog:
    """Writes of one kind.

    Args:
        connection: this process's way to Redis.
        logger: the process's log.
        kind: what they write, for the log.
        limit: writes that wait, at most.
    """

    def __init__(self, connection: Connection, logger: FilteringBoundLogger, kind: str, limit: int) -> None:
        self._connection = connection
        self._logger = logger
        self._kind = kind
        self._limit = limit
        self._waiting: OrderedDict[Hashable, tuple[Write, int]] = OrderedDict()
        self._said = False
        self._task: asyncio.Task[None] | None = None
        connection.when_up(self._begin)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, key: Hashable, write: Write) -> None:
        """To be written soon, under this key."""
        self._waiting[key] = write, 0
        if len(self._waiting) > self._limit:
            self.give_up(next(iter(self._waiting)), "too many wait")
        if self._connection.up:
            self._start()

    def give_up(self, key: Hashable, reason: str) -> None:
        """What waits under this key is not written. The log says so once, until Redis was away and is back."""
        self._waiting.pop(key, None)
        if not self._said:
            self._said = True
            self._logger.warning("store_write_given_up", kind=self._kind, reason=reason)

    async def written(self, timeout: float | None = None) -> None:
        """Returns when nothing is on its way: all is written, or waits for Redis to be back. `timeout` in seconds."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)

    async def close(self) -> None:
        """Waits for what can still be written, for a moment."""
        await self.written(LAST)
        if self._task is not None:
            self._task.cancel()

    async def _begin(self) -> None:
        self._said = False
        self._start()

    def _start(self) -> None:
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"store {self._kind}")

    async def _run(self) -> None:
        while self._waiting and self._connection.up:
            await asyncio.gather(*(self._write(key) for key in list(islice(self._waiting, AT_ONCE))))

    async def _write(self, key: Hashable) -> None:
        write, failures = self._waiting.pop(key)
        try:
            await write()
        except StoreAwayError as error:
            if failures + 1 >= TRIES:
                self.give_up(key, str(error))
            elif key not in self._waiting:
                self._waiting[key] = write, failures + 1
                self._waiting.move_to_end(key, last=False)
