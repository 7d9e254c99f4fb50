"""One process's way to Redis: commands with a bound, the lease of this node, and whether the store is there.

          the lease was written, the checks passed, those who asked to be told were told
    away ----------------------------------------------------------------------------------> up
     ^ |                                                                                      |
     | +-- a try every `PAUSE` --+                                                            |
     |                                                                                        |
     +--- a command failed, was refused for want of room or rights, or took `PATIENCE` -------+

Invariants:

- Nobody waits longer than `PATIENCE` for a command, and while the store is away nobody waits at all.
- A command that was given up costs its connection, so that its late reply is never taken for another command's.
- The lease of this node is a key that lapses `LEASE` seconds after the last beat. Other nodes take one whose lease has
  lapsed for dead; what this node wrote before is theirs then. A process that stood still for so long (SIGSTOP, a
  machine that slept) notices it by `check`, before it tells a reader anything more.

The library is redis-py. It may connect again, but it repeats no command: a repeated one could have an effect twice.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from structlog.typing import FilteringBoundLogger

from gateway.config import Store
from gateway.store.layout import Layout, Script

PATIENCE: Final = 0.25
"""Seconds that a command may take."""
CONNECT: Final = 1.0
"""Seconds that a connection may take to open, and a command that no first token waits for: with a slow network, the
command may have to open one."""
LEASE: Final = 3.0
"""Seconds after its last beat for which a node counts as alive."""
BEAT: Final = 1.0
"""Seconds between two beats while the store is there."""
PAUSE: Final = 0.5
"""Seconds between two tries while it is away, at most."""
MAX_CONNECTIONS: Final = 16
"""Connections for commands. Further commands wait for one, as a part of their patience."""

Returned = Callable[[], Awaitable[None]]
Lapsed = Callable[[], None]


class StoreAwayError(Exception):
    """The store did not answer in time, or does not take what it is given."""


class Connection:
    """This process's way to Redis.

    Args:
        config: where it is.
        logger: the process's log.

    Attributes:
        node: this process's name among all that share the store; another one after each start.
        layout: the keys.
        up: whether the store is there.
        last: when it last answered a beat, in seconds of the loop's clock; -inf before.
    """

    def __init__(self, config: Store, logger: FilteringBoundLogger) -> None:
        self.node = secrets.token_urlsafe(6)
        self.layout = Layout(config.prefix)
        self.up = False
        self.last = float("-inf")
        self._config = config
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._commands = self.client(max_connections=MAX_CONNECTIONS, timeout=PATIENCE)
        self._returned: list[Returned] = []
        self._beating: list[Returned] = []
        self._lapsed: list[Lapsed] = []
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def client(self, *, max_connections: int = 1, timeout: float | None = None) -> "redis.Redis":
        """A client of its own, for what must not share connections. You must close it.

        Args:
            max_connections: it opens at most so many.
            timeout: seconds for a command; None for one that blocks.
        """
        pool = redis.BlockingConnectionPool.from_url(
            self._config.url,
            max_connections=max_connections,
            timeout=PATIENCE,
            socket_timeout=timeout,
            socket_connect_timeout=CONNECT,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # replies of one shape, whatever the server speaks
            client_name=f"gateway-{self.node}",
        )
        return redis.Redis.from_pool(pool)

    def when_up(self, returned: Returned) -> None:
        """This is awaited whenever the store is there again, also the first time."""
        self._returned.append(returned)

    def when_beating(self, beating: Returned) -> None:
        """This is awaited at each beat while the store is there. What it raises of `StoreAwayError` ends that."""
        self._beating.append(beating)

    def when_lapsed(self, lapsed: Lapsed) -> None:
        """This is called when the lease may have lapsed unnoticed. Then the store is away until it is asked anew."""
        self._lapsed.append(lapsed)

    def check(self) -> None:
        """Notices where others may have taken this node for dead. To be called before readers are told anything."""
        if self.up and self._loop.time() - self.last > LEASE:
            self.lose(TimeoutError("the lease lapsed"))

    async def start(self) -> None:
        """Begins to beat. Returns when the first try is over, well or not."""
        self._task = self._loop.create_task(self._beat(), name="store beat")
        await self._tried.wait()

    async def leave(self) -> None:
        """The lease is given back: to other nodes this one is dead from now on. It may still ask."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CONNECT)
            self._task = None
        if self.up:
            try:
                await self.call("DEL", self.layout.lease(self.node))
            except StoreAwayError:
                self._logger.info("store_lease_left", seconds=LEASE)  # it lapses by itself

    async def close(self) -> None:
        """The lease is given back, and everything closed."""
        await self.leave()
        self.up = False
        await self._commands.aclose()

    async def call(self, *command: bytes | str | int, within: float = PATIENCE) -> Any:
        """The reply to one command.

        Args:
            command: its words.
            within: seconds; `CONNECT` where no first token waits for it.

        Raises:
            StoreAwayError: none came in time, or the store is away, or refuses.
        """
        if not self.up:
            raise StoreAwayError("the store is away")
        return await self._call(command, within)

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[bytes | str | int], within: float = PATIENCE
    ) -> Any:
        """The reply of one script.

        Raises:
            StoreAwayError: as `call`.
        """
        if not self.up:
            raise StoreAwayError("the store is away")
        return await self._run(script, keys, arguments, within)

    async def _run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[bytes | str | int], within: float
    ) -> Any:
        try:
            return await self._call(("EVALSHA", script.sha, len(keys), *keys, *arguments), within)
        except NoScriptError:  # a Redis that was started anew has forgotten it
            return await self._call(("EVAL", script.text, len(keys), *keys, *arguments), within)

    async def _call(self, command: Sequence[bytes | str | int], within: float) -> Any:
        try:
            async with asyncio.timeout(within):
                return await self._commands.execute_command(*command)  # type: ignore[no-untyped-call]
        except NoScriptError:
            raise
        # uvloop raises `RuntimeError` where redis-py uses a connection that has just been reset.
        except (RedisError, OSError, RuntimeError) as error:
            self.lose(error)
            raise StoreAwayError(type(error).__name__) from error

    def lose(self, error: BaseException) -> None:
        """The store is away, for this reason. The beat finds out when it is back."""
        if self.up:
            self.up = False
            self._logger.warning("store_away", reason=type(error).__name__, detail=str(error)[:200])
            self._wanted.set()
            if self._loop.time() - self.last > LEASE:  # whatever was noticed first
                for lapsed in self._lapsed:
                    lapsed()

    async def _beat(self) -> None:
        while True:
            self._wanted.clear()
            try:
                await self._try()
            except (StoreAwayError, RedisError, OSError) as error:
                self.lose(error)
            except Exception as error:  # whatever it is: without beats, the store never comes back
                self._logger.error("store_beat_failed", exc_info=error)
                self.lose(error)
            self._tried.set()
            pause = BEAT if self.up else PAUSE * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
                await asyncio.sleep(pause / 4)  # it was lost just now: not again at once
            except TimeoutError:
                continue

    async def _try(self) -> None:
        self.check()
        within = PATIENCE if self.up else CONNECT
        await self._call(("SET", self.layout.lease(self.node), "1", "PX", round(LEASE * 1000)), within)
        self.last = self._loop.time()
        if self.up:
            for beating in self._beating:
                await beating()
            return
        self.up = True
        for returned in self._returned:
            await returned()
        self._logger.info("store_up", node=self.node)
