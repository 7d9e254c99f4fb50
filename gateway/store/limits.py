r"""The limits of all principals over all nodes together.

    decide --> Redis is there: one script (`ledger.py`), awaited at most `PATIENCE`   --> lease or refusal
           \-> it is away, or does not answer: by this node's part (`shares.py`)      --> lease or refusal, at once

    leases --operations--> queued with their principal's shares --> `_write`: one script for what has gathered;
                                                                    `GATHERING` or `LEISURE` (`shares.py`) comes before,
                                                                    where it is not urgent

Invariants:

- A start is one script; one that lacks only a slot asks again (`GIVING_BACK`). It carries along what is queued for
  the same principal, so that a slot that was given back on this node is free for the next start here.
- A principal's operations are sent in order, one batch at a time: a batch that was not answered is sent again.
- What a start took whose client left meanwhile is given back, whether or not Redis has answered.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Final

import msgspec

from gateway.core.limiter import Decision, Lease, Refusal
from gateway.core.limits import Amounts, Hold, Plan, Quota
from gateway.store.connection import BEAT, LEASE, PATIENCE, Connection, StoreAwayError
from gateway.store.layout import ALIVE_MS
from gateway.store.ledger import CENSUS, LEDGER, Operation
from gateway.store.shares import LEISURE, Batch, Shares

LEDGERS_AT_ONCE: Final = 64
"""Principals of whom operations are sent in one script, at most."""
KEEP: Final = ALIVE_MS / 1000 / 3
"""Seconds between two times that the slots of running streams are written again, so that they live on in Redis, also if
it has lost them."""
MAX_SHARES: Final = 20_000
"""Principals of whom something is kept here, besides those who hold something."""
SWEEP: Final = 4
"""Of them examined for rest whenever one is added."""
RECENT: Final = 60.0
"""Seconds for which what was heard of a principal who holds nothing is kept."""
GIVING_BACK: Final = (0.03, 0.06)
"""Seconds after which a start that lacks only a slot asks again, once after each: a client that has just read the end
of an answer on one node, and asks another one, is faster than the slot that is given back."""
LAST_WORDS: Final = 1.0
"""Seconds that giving everything back may take at the end."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class SharedLimiter:
    """The limits of all principals, over all nodes together.

    Args:
        connection: this process's way to Redis.
        now: the clock of `decide`, in seconds.

    Attributes:
        node: this node's name.
        nodes: how many nodes were last seen alive, this one included.
    """

    def __init__(self, connection: Connection, now: Callable[[], float]) -> None:
        self.node = connection.node
        self.nodes = 1
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._leases = connection.layout.lease("")
        self._now = now
        self._shares: OrderedDict[tuple[str, str], Shares] = OrderedDict()
        self._waiting: dict[Shares, None] = {}
        self._wake = asyncio.Event()
        self._gathered: asyncio.TimerHandle | None = None
        self._closed = False
        self._numbers = count(1)
        self._names = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._counted = self._kept = now()
        connection.when_up(self._return)

    def start(self) -> None:
        """Begins to send what is queued."""
        self._tasks = [
            self._loop.create_task(self._write(), name="limits written"),
            self._loop.create_task(self._beat(), name="nodes counted"),
        ]

    async def close(self) -> None:
        """What is queued is sent, if Redis is there. Close the leases before this."""
        self._closed = True  # the library may keep a cancellation for itself
        self._write_now()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._send_waiting()
        except TimeoutError:
            return  # slots lapse with this node's lease

    # -- decisions -------------------------------------------------------------------------------------------------

    def decide(self, plan: Plan, principal: str, demand: Amounts, now: float) -> Decision | Awaitable[Decision]:
        """The decision; an awaitable of it while Redis is there and a limit can refuse. See `Limiter.admit`."""
        shares = self._shares_of(plan, principal, now)
        if self.up and shares.bounded:
            return self._decide(shares, demand, now)
        return shares.decide_alone(self._name(), demand, now, _local(shares, demand, now))

    def take(self, plan: Plan, principal: str, demand: Amounts, now: float) -> Lease:
        """See `Decider`. Nobody is asked; Redis is told in the background."""
        return self._shares_of(plan, principal, now).take(self._name(), demand, now)

    async def quotas(self, plan: Plan, principal: str) -> list[Quota]:
        """Where the principal stands over all nodes.

        Raises:
            StoreAwayError: Redis is away.
        """
        shares = self._shares_of(plan, principal, self._now())
        if shares.wire:
            await self._send([Batch(shares, 0, [], [])])
        return shares.quotas()

    async def _decide(self, shares: Shares, demand: Amounts, now: float) -> Decision:
        name, local = self._name(), _local(shares, demand, now)
        takes = not isinstance(local, Refusal)
        start = ("start", name, shares.demand(demand), takes)
        asked, until = False, now + PATIENCE
        shares.starting += 1
        try:
            for pause in (*GIVING_BACK, 0.0):
                while shares.flight is not None and (left := until - self._now()) > 0:
                    await asyncio.wait([shares.flight], timeout=left)
                batch = shares.batch() if shares.flight is None else Batch(shares, 0, [], [])
                asked = asked or (takes and self.up)
                waits = await self._send([batch], start, max(0.01, until - self._now()))
                waited = self._now() > until - PATIENCE / 2
                if not pause or waited or self.nodes == 1 or not shares.lacks_slots(waits):
                    break
                await asyncio.sleep(pause)
        except StoreAwayError:
            decision = shares.decide_alone(name, demand, self._now(), local, doubtful=asked)
            if self.up:  # it is back already
                shares.rejoin(self._now())
            return decision
        except asyncio.CancelledError:  # its client left
            shares.give_up(name, demand, local, asked=asked)
            raise
        finally:
            shares.starting -= 1
        return shares.decide(name, demand, waits, local)

    def _name(self) -> str:
        return f"{self.node}:{next(self._names):x}"

    def _shares_of(self, plan: Plan, principal: str, now: float) -> Shares:
        key = (plan.name, principal)
        shares = self._shares.get(key)
        if shares is not None:
            shares.adopt(plan, now)
            return shares
        self._make_room(now)
        shares = self._shares[key] = Shares(self, self._connection.layout.ledger(*key), plan, now)
        return shares

    def _make_room(self, now: float) -> None:
        # The map is a clock's face: who is not at rest goes to the end.
        for _ in range(min(SWEEP, len(self._shares))):
            key, shares = self._shares.popitem(last=False)
            crowded = len(self._shares) >= MAX_SHARES and shares.idle
            if not crowded and not (shares.at_rest(now) and now - shares.used > RECENT):
                self._shares[key] = shares

    # -- what is sent ------------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether the store is there."""
        return self._connection.up

    def number(self) -> int:
        """See `Writer`."""
        return next(self._numbers)

    def send(self, shares: Shares) -> None:
        """See `Writer`."""
        self._waiting[shares] = None
        self._write_now()

    def tell(self, shares: Shares, within: float) -> None:
        """See `Writer`."""
        self._waiting[shares] = None
        gathered = self._gathered
        if gathered is not None:
            if within >= LEISURE or gathered.when() <= self._loop.time() + within:
                return
            gathered.cancel()
        self._gathered = self._loop.call_later(within, self._write_now)

    def _write_now(self) -> None:
        if self._gathered is not None:
            self._gathered.cancel()
            self._gathered = None
        self._wake.set()

    async def _write(self) -> None:
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            await self._send_waiting()

    async def _send_waiting(self) -> None:
        while self.up and self._waiting:
            batches = []
            for shares in list(self._waiting)[:LEDGERS_AT_ONCE]:
                del self._waiting[shares]
                if shares.flight is None and shares.waiting:  # who sends for it now calls `send` again afterwards
                    batches.append(shares.batch())
            if batches:
                try:
                    await self._send(batches)
                except StoreAwayError:
                    return  # it is sent when the store is back

    async def _send(
        self, batches: Sequence[Batch], start: Operation | None = None, within: float = PATIENCE
    ) -> list[float]:
        """What the start was answered, if there is one: it is an operation behind those of the last batch.

        Raises:
            StoreAwayError: the store is away; whether the batches arrived is not known.
        """
        flight = self._loop.create_future()
        flying = [batch for batch in batches if batch.operations]
        for batch in flying:
            batch.shares.flight = flight
        told = [(batch.shares.wire, batch.number, batch.operations) for batch in batches]
        if start is not None:
            told[-1] = (*told[-1][:2], [*told[-1][2], start])
        keys = [batch.shares.key for batch in batches]
        try:
            answer = await self._connection.run(LEDGER, keys, (self.node, self._leases, _encode(told)), within)
            answers: Any = _decode(answer)[1]
            now = self._now()
            for batch, (said, stands) in zip(batches, answers, strict=True):
                batch.shares.sent(batch, said, stands, now)
            waits: list[float] = answers[-1][0][-1] if start is not None else []
            return waits
        except BaseException:
            for batch in batches:
                batch.shares.failed(batch)
            raise
        finally:
            flight.set_result(None)
            for batch in flying:
                batch.shares.flight = None
                if batch.shares.waiting:
                    self.send(batch.shares)

    # -- this node among others --------------------------------------------------------------------------------------

    async def _return(self) -> None:
        """The store is there again."""
        now = self._now()
        for shares in self._shares.values():
            shares.rejoin(now)
        # Else the first start would have to send the whole script.
        await self._connection.call("SCRIPT", "LOAD", LEDGER.text)
        await self._count_nodes()

    async def _beat(self) -> None:
        while not self._closed:
            await asyncio.sleep(BEAT)
            if self.up:
                try:
                    await self._count_nodes()
                except StoreAwayError:
                    continue  # the last number counts

    async def _count_nodes(self) -> None:
        layout = self._connection.layout
        keys, arguments = [layout.nodes, layout.counts(self.node)], (self.node, ALIVE_MS, self._leases)
        alive, lost = await self._connection.run(CENSUS, keys, arguments)
        self.nodes = max(1, alive)
        now = self._now()
        # Redis may have lost its data; a process that was stopped for longer than its lease has lost its slots.
        if lost or now - self._counted > LEASE or now - self._kept > KEEP:
            self._kept = now
            for shares in self._shares.values():
                shares.register()
        self._counted = now


def _local(shares: Shares, demand: Amounts, now: float) -> "Refusal | tuple[Hold, ...]":
    """What the limits say that this node keeps for itself: a refusal, or what was taken of them."""
    return shares.local.refusal(demand) or shares.local.holds(demand, now)
