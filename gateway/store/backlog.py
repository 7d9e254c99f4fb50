"""What is yet to be written to Redis, in the background: at once while Redis is there, else when it is back.

    put --> waiting --> being written --> done
               ^             |
               +-- Redis is away, or went away meanwhile

Invariants:

- Nobody waits for a write. One that was begun may have had its effect although no reply came, and is made again: so a
  write must be one that may be repeated.
- One write waits for each key. A newer one takes its place.
- A write that need not wait begins within `put`, so that what it sends at once is on its way when that returns.
- At most `limit` wait; beyond that the oldest is given up, and so is one that Redis refuses or that
  failed `TRIES` times.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

from structlog.typing import FilteringBoundLogger

from gateway.store.connection import Connection, StoreAwayError, StoreRefusedError

AT_ONCE: Final = 8
"""Writes on the way at once. Two of them may be of one key."""
TRIES: Final = 10
"""Failures after which a write is given up: Redis came back so often that it is the write's own fault."""
LAST: Final = 1.0
"""Seconds that what waits at the end of the process may take."""

Write = Callable[[], Awaitable[None]]
"""Begins to write, and returns an awaitable of the end. Either raises `StoreAwayError` where that did not work."""


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
        self._writing: set[asyncio.Task[None]] = set()
        connection.when_up(self.begin)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, key: Hashable, write: Write) -> None:
        """To be written soon, under this key."""
        self._waiting[key] = write, 0
        if len(self._waiting) > self._limit:
            self.give_up(next(iter(self._waiting)), "too many wait")
        self._start()

    def give_up(self, key: Hashable, reason: str) -> None:
        """What waits under this key is not written. The log says so once, until Redis was away and is back."""
        self._waiting.pop(key, None)
        if not self._said:
            self._said = True
            self._logger.warning("store_write_given_up", kind=self._kind, reason=reason)

    async def written(self) -> None:
        """Returns when nothing is on its way: all is written, or waits for Redis to be back."""
        while self._writing:
            await asyncio.wait(self._writing)

    async def close(self) -> None:
        """Waits for what can still be written, for a moment."""
        try:
            async with asyncio.timeout(LAST):
                await self.written()
        except TimeoutError:
            self._logger.warning("store_write_given_up", kind=self._kind, reason="the process ends")
        for task in self._writing:
            task.cancel()

    async def begin(self) -> None:
        """Redis is there: what waits is written."""
        self._said = False
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._writing) < AT_ONCE and self._connection.up:
            key, (write, failures) = self._waiting.popitem(last=False)
            try:
                begun = write()
            except StoreAwayError as error:
                self._failed(key, write, failures, error)
                continue
            ended = self._end(key, write, failures, begun)
            task = asyncio.get_running_loop().create_task(ended, name=f"store {self._kind}")
            self._writing.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.result()
            self._start()

    async def _end(self, key: Hashable, write: Write, failures: int, begun: Awaitable[None]) -> None:
        try:
            await begun
        except StoreAwayError as error:
            self._failed(key, write, failures, error)

    def _failed(self, key: Hashable, write: Write, failures: int, error: StoreAwayError) -> None:
        if isinstance(error, StoreRefusedError) or failures + 1 >= TRIES:
            self.give_up(key, str(error))
        elif key not in self._waiting:
            self._waiting[key] = write, failures + 1
            self._waiting.move_to_end(key, last=False)
