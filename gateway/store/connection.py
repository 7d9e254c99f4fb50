"""One process's way to Redis: commands with a bound, the lease of this node, and whether the store is there.

          connected, the lease was written, everything that is needed may be done
    away ------------------------------------------------------------------------> up
     ^ |                                                                            |
     | +-- a try every `PAUSE` --+                                                  |
     |                                                                              |
     +--- the connection broke, a command took `PATIENCE`, or was refused for want -+
          of room or rights, or as this is no master any more

Whoever asked for it is told when the store is up, and at each beat while it is.

Invariants:

- Nobody waits for a command longer than `PATIENCE`, or `within` if given. While the store is away nobody waits at all.
- No reply is taken for another command's: see `wire.py`. A connection with a reply that is too late is dropped.
- Between two connections there is a pause, a longer one if the store was up for a moment only.
- The lease of this node is a key that lapses `LEASE` seconds after the last beat. Other nodes take one whose lease has
  lapsed for dead; what this node wrote before is theirs then. A process that stood still for so long (SIGSTOP, a
  machine that slept) notices it by `check`, before it tells a reader anything more. No work that is done at a beat
  holds the next one up.
- No command is repeated by itself: it could have an effect twice.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

import hiredis
import redis.asyncio as redis
from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from gateway.config import Store
from gateway.observe.metrics import Metrics
from gateway.observe.store import StoreMetrics
from gateway.store import health, trouble
from gateway.store.access import CONNECT, Access
from gateway.store.layout import Layout, Script
from gateway.store.trouble import Trouble, UnfitError
from gateway.store.wire import Wire, pack

PATIENCE: Final = 0.25
"""Seconds that a command may take, unless its caller gives it more or less."""
GRACE: Final = 0.01
"""Seconds more for a reply that is there already, but that a busy loop has not read yet."""
LEASE: Final = 3.0
"""Seconds after its last beat for which a node counts as alive."""
BEAT: Final = 1.0
"""Seconds between two beats while the store is there."""
PAUSE: Final = 0.5
"""Seconds between two tries while it is away, at most; the first pause after a loss may be longer, see `MAX_PAUSE`."""
STEADY: Final = 5.0
"""Seconds for which the store has to be up, so that its loss counts as the first one."""
MAX_PAUSE: Final = 8.0
"""Seconds of the pause after several losses, each soon after the store was up. The first pause is `PAUSE`, the next one
is twice as long, and so on."""
LOOK: Final = 15
"""Beats between two looks at the memory of Redis."""
MAX_WAITING: Final = 10_000
"""Commands that wait for a reply. Further ones are refused at once."""

Returned = Callable[[], Awaitable[None]]
Lapsed = Callable[[], None]


class StoreAwayError(Exception):
    """The store did not answer in time, or does not take what it is given."""


class StoreRefusedError(StoreAwayError):
    """The store is there, but refuses this one command, as one of a wrong type or with an id of the past."""


class Connection:
    """This process's way to Redis.

    Args:
        config: where it is.
        logger: the process's log.
        metrics: where the store's own are added.

    Attributes:
        node: this process's name among all that share the store; another one after each start.
        layout: the keys.
        up: whether the store is there.
        required: whether this process is of no use without it.
        last: when it last answered a beat, in seconds of the loop's clock; -inf before.
    """

    def __init__(self, config: Store, logger: FilteringBoundLogger, metrics: Metrics | None = None) -> None:
        self.node = secrets.token_urlsafe(6)
        self.layout = Layout(config.prefix)
        self.up = False
        self.required = config.required
        self.last = float("-inf")
        self._access = Access(config.url, f"gateway-{self.node}")
        self._logger = logger
        self._metrics = StoreMetrics(metrics.registry if metrics else CollectorRegistry(), health.NAMES | {"INFO"})
        self._loop = asyncio.get_running_loop()
        self._state = _State()
        self._callbacks = redis.Redis(protocol=2).response_callbacks
        self._wire: Wire | None = None
        self._waiting: set[asyncio.Future[Any]] = set()
        self._returned: list[Returned] = []
        self._beating: list[Returned] = []
        self._lapsed: list[Lapsed] = []
        self._lost = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: asyncio.Task[None] | None = None

    @property
    def says(self) -> str:
        """What an operator has to know, in one sentence: why the store is away, or what is doubtful; "" for nothing."""
        return self._state.warning if self.up else self._state.says or "Redis was not asked yet"

    def client(self, *, max_connections: int = 1, timeout: float | None = None) -> "redis.Redis":
        """A client of redis-py, for what must not share connections. You must close it.

        Args:
            max_connections: it opens at most so many.
            timeout: seconds for a command; None for one that blocks.
        """
        return self._access.client(max_connections=max_connections, timeout=timeout)

    async def wire(self, broken: Callable[[Exception], None]) -> Wire:
        """A connection of its own on which commands go out in the very turn of the loop. You must close it.

        Args:
            broken: called once when it is lost, with the reason.

        Raises:
            StoreAwayError: there is none.
        """
        try:
            async with asyncio.timeout(CONNECT):
                return (await self._access.open(broken))[0]
        except (OSError, RedisError, UnfitError) as error:
            self.lose(error)
            raise StoreAwayError(trouble.of(error).says) from error

    def when_up(self, returned: Returned) -> None:
        """This is awaited whenever the store is there again, also the first time."""
        self._returned.append(returned)

    def when_beating(self, beating: Returned) -> None:
        """This is awaited at each beat while the store is there, unless the call before still runs."""
        self._beating.append(beating)

    def when_lapsed(self, lapsed: Lapsed) -> None:
        """This is called when the lease may have lapsed unnoticed. Then the store is away until it is asked anew."""
        self._lapsed.append(lapsed)

    def check(self) -> None:
        """Notices where others may have taken this node for dead. To be called before readers are told anything."""
        if self.up and self._loop.time() - self.last > LEASE:
            self.lose(TimeoutError("the lease lapsed"))

    async def start(self) -> None:
        """Begins to beat. Returns when the first try is over, well or not, and those who asked to be told were told."""
        self._task = self._loop.create_task(self._beat(), name="store beat")
        await self._tried.wait()

    async def leave(self) -> None:
        """The lease is given back: to other nodes this one is dead from now on. It may still ask."""
        tasks = {task for task in (self._task, self._told) if task is not None}
        while tasks:
            for task in tasks:
                task.cancel()  # `asyncio.wait_for` of Python 3.11, which redis-py uses, may swallow it once
            _, tasks = await asyncio.wait(tasks, timeout=0.1)
        self._task = self._told = None
        if self.up:
            try:
                await self.call("DEL", self.layout.lease(self.node))
            except StoreAwayError:
                self._logger.info("store_lease_left", seconds=LEASE)  # it lapses by itself

    async def close(self) -> None:
        """The lease is given back, and everything closed."""
        await self.leave()
        self._drop(Trouble("connection", "the gateway ends"))

    async def call(self, *command: bytes | str | int, within: float = PATIENCE) -> Any:
        """The reply to one command, as redis-py gives it.

        Raises:
            StoreRefusedError: Redis refuses this command.
            StoreAwayError: there was no reply in time, or the store is away.
        """
        name = str(command[0])
        reply = await self._ask(name, command, within)
        if isinstance(reply, hiredis.ReplyError):
            raise StoreRefusedError(str(reply)) from reply
        callback = self._callbacks.get(name)
        return reply if callback is None else callback(reply)

    def run(
        self,
        script: Script,
        keys: Sequence[bytes | str],
        arguments: Sequence[bytes | str | int],
        within: float = PATIENCE,
    ) -> Coroutine[Any, Any, Any]:
        """The reply of one script, which is sent in this very turn of the loop. You must await it.

        Raises:
            StoreRefusedError, StoreAwayError: as `call`; here, or when the reply is awaited.
        """
        sent = self._send(("EVALSHA", script.sha, len(keys), *keys, *arguments), within)
        return self._scripted(script, keys, arguments, within, sent)

    async def _scripted(
        self,
        script: Script,
        keys: Sequence[bytes | str],
        arguments: Sequence[bytes | str | int],
        within: float,
        sent: "_Sent",
    ) -> Any:
        reply = await self._reply("EVALSHA", sent)
        if forgotten(reply):
            reply = await self._ask("EVAL", ("EVAL", script.text, len(keys), *keys, *arguments), within)
        if isinstance(reply, hiredis.ReplyError):
            raise StoreRefusedError(str(reply)) from reply
        return reply

    def lose(self, error: BaseException) -> None:
        """The store is away, for this reason. The beat finds out when it is back."""
        if self.up:
            self._lose(trouble.of(error))

    # -- commands --------------------------------------------------------------------------------------------------

    async def _ask(self, name: str, command: Sequence[bytes | str | int], within: float) -> Any:
        """The reply, which may be an error that concerns this command alone."""
        return await self._reply(name, self._send(command, within))

    def _send(self, command: Sequence[bytes | str | int], within: float) -> "_Sent":
        """The command is on its way when this returns."""
        wire = self._wire
        if wire is None or not self.up:
            raise StoreAwayError("the store is away")
        if len(self._waiting) >= MAX_WAITING:
            self._metrics.errors.labels("timeout").inc()
            raise StoreAwayError("too many commands wait for the store")
        future: asyncio.Future[Any] = self._loop.create_future()
        begun = time.perf_counter()  # uvloop's clock knows whole milliseconds only

        def replied(reply: Any) -> None:
            if not future.done():  # whoever asked may be gone
                future.set_result(reply)

        self._waiting.add(future)  # first: the wire may turn out to be broken
        wire.send(pack(command), [replied])
        return _Sent(future, begun, self._loop.call_later(within, self._expire, future))

    async def _reply(self, name: str, sent: "_Sent") -> Any:
        try:
            reply = await sent.future
        finally:
            sent.limit.cancel()
            self._waiting.discard(sent.future)
        self._metrics.replied(name, time.perf_counter() - sent.begun)
        if isinstance(reply, hiredis.ReplyError) and (found := trouble.of_reply(reply)) is not None:
            self._lose(found)
            raise StoreAwayError(found.says)
        return reply

    def _expire(self, future: asyncio.Future[Any]) -> None:
        # If the loop was busy, the reply may be there already, unread.
        self._loop.call_later(GRACE, self._give_up, future)

    def _give_up(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            self._lose(trouble.NO_ANSWER)

    # -- whether it is there ---------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        beats = 0
        while True:
            self._lost.clear()
            self.check()
            if self.up:
                await self._go_on(look=beats % LOOK == 0)
            else:
                await self._try()
            beats += 1
            if self.up:
                try:
                    async with asyncio.timeout(BEAT):
                        await self._lost.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(self._state.pause())

    async def _go_on(self, *, look: bool) -> None:
        try:
            await self.call(*self._lease())
            self.last = self._loop.time()
            if look and self._state.may_look:
                self._remember(await self._ask(str(health.MEMORY[0]), health.MEMORY, PATIENCE))
        except Exception as error:  # noqa: BLE001  # the beat must not end
            self.lose(error)
        else:
            self._tell(self._beating)

    async def _try(self) -> None:
        """Connects, and looks whether everything is there that is needed."""
        wire: Wire | None = None
        try:
            async with asyncio.timeout(CONNECT):
                wire, _ = await self._access.open(self._broken)
                probe = f"{self.layout.prefix}:probe:{self.node}"
                *replies, memory, leased = await wire.ask(*health.probes(probe), health.MEMORY, self._lease())
            if (found := health.judge(replies)) is not None:
                raise UnfitError(found)
            if isinstance(leased, hiredis.ReplyError):
                raise UnfitError(trouble.of_reply(leased) or Trouble("other", "Redis does not keep a simple key"))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is said and tried again
            if wire is not None:
                wire.close()
            self._note(trouble.of(error))
            self._tried.set()
            return
        self._wire, self.up, self.last = wire, True, self._loop.time()
        self._state.since = self.last
        self._metrics.up.set(1)
        self._logger.info("store_up", node=self.node)
        self._state.says = ""
        self._remember(memory)
        self._tell(self._returned, anew=True)

    def _lease(self) -> tuple[str, ...]:
        return "SET", self.layout.lease(self.node), "1", "PX", str(round(LEASE * 1000))

    def _broken(self, error: Exception) -> None:
        self._lose(trouble.of(error))

    def _lose(self, found: Trouble) -> None:
        if not self.up:
            return
        self._state.lost(self._loop.time())
        self._note(found)
        self._drop(found)
        self._lost.set()
        if self._loop.time() - self.last > LEASE:  # whatever was noticed first
            for lapsed in self._lapsed:
                lapsed()

    def _drop(self, found: Trouble) -> None:
        """Nobody waits any more, and no reply is read any more."""
        self.up = False
        self._metrics.up.set(0)
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        for future in self._waiting:
            if not future.done():
                future.set_exception(StoreAwayError(found.says))
        self._waiting.clear()

    def _note(self, found: Trouble) -> None:
        self._metrics.errors.labels(found.kind).inc()
        if found.says != self._state.says:  # once, and not at each try
            self._state.says = found.says
            self._logger.warning("store_away", kind=found.kind, says=found.says)

    def _remember(self, reply: Any) -> None:
        """What Redis replied to `health.MEMORY`."""
        self._state.may_look = not isinstance(reply, hiredis.ReplyError)
        memory = health.memory(reply)
        self._metrics.memory.set(memory.used)
        self._metrics.limit.set(memory.limit)
        if memory.warning and memory.warning != self._state.warning:
            self._logger.warning("store_warning", says=memory.warning)
        self._state.warning = memory.warning

    def _tell(self, told: Sequence[Returned], *, anew: bool = False) -> None:
        """Calls these beside the beat. Where earlier ones still run, they are cancelled if this begins `anew`."""
        before = self._told
        if before is None or before.done() or anew:
            self._told = self._loop.create_task(self._tell_all(tuple(told), before), name="store told")

    async def _tell_all(self, told: Sequence[Returned], before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait([before])
        try:
            for each in told:
                await each()
        except StoreAwayError as error:
            self.lose(error)
        except Exception as error:  # whatever it is, the beat goes on, and all is tried again
            self._logger.error("store_told_failed", exc_info=error)
            self.lose(error)
        finally:
            self._tried.set()


def forgotten(reply: Any) -> bool:
    """Whether Redis does not know the script that was called by its digest: it was started anew, or told to forget."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


class _Sent(NamedTuple):
    """A command on its way: done with its reply; when it was sent; what ends the wait for it."""

    future: asyncio.Future[Any]
    begun: float
    limit: asyncio.TimerHandle


class _State:
    """What is known of the store's past.

    Attributes:
        says: why it is away, "" for unknown.
        warning: what is doubtful about it, "" for nothing.
        may_look: whether Redis tells of its memory.
        since: when it was last up, in seconds of the loop's clock.
    """

    def __init__(self) -> None:
        self.says = ""
        self.warning = ""
        self.may_look = True
        self.since = float("-inf")
        self._losses = 0  # in a row, each within `STEADY` seconds
        self._next = PAUSE

    def lost(self, now: float) -> None:
        """It was up, and is not any more."""
        self._losses = self._losses + 1 if now - self.since < STEADY else 0
        self._next = min(PAUSE * 2.0 ** min(self._losses, 10), MAX_PAUSE)

    def pause(self) -> float:
        """Seconds before the next connection. They differ, so that several nodes do not come at once."""
        longest, self._next = self._next, PAUSE
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
