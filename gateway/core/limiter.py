r"""Who may start what now: one decision over all limits of a principal's plan, and the lease that it gives.

    demand -> Limiter.admit --> Refusal   nothing was taken
                            \-> Lease     everything was taken;  spend*  settle?  close

Invariants:

- A decision takes everything that was demanded or nothing.
- A slot is given back exactly once, however often its lease is closed.
- A ledger at rest equals no ledger, so forgetting it loses nothing. Others are forgotten only above `max_keys`.

`now` is any clock that does not run backwards, in seconds; the wall clock plays no part.
"""

import math
from collections import OrderedDict
from collections.abc import Awaitable
from itertools import islice
from typing import Final, NamedTuple, Protocol

from gateway.core.limits import REQUESTS, STREAMS, Amounts, Hold, Plan, Quota, make_limits
from gateway.core.rate import Rate

PER_ADDRESS: Final = "address"
"""The name under which an `AddressLimiter` refuses, whichever of its limits it was."""
SWEEP: Final = 4
"""Ledgers examined for rest whenever one is added; more than one, so that the map shrinks to those in use."""
SAMPLE: Final = 64
"""Ledgers examined for rest, then for age, before one is evicted: this bounds the time that a full map costs."""
STRIDE: Final = 64
"""Units of one limit after which limits that grow along with it, such as money, are asked again."""
ONE_REQUEST: Final[Amounts] = {REQUESTS: 1}
ONE_CONNECTION: Final[Amounts] = {STREAMS: 1}


class Refusal(NamedTuple):
    """Nothing was taken.

    Attributes:
        limit: the name of the limit that refused; of several the one to wait longest for.
        retry_after: seconds after which the same demand may fit, None when it is larger than the whole limit.
        quota: where the principal stands with that limit.
        code: the key of `errors.ERROR_KINDS`.
    """

    limit: str
    retry_after: float | None
    quota: Quota
    code: str = "rate_limited"

    @property
    def retryable(self) -> bool:
        """Whether the same demand can ever fit."""
        return self.retry_after is not None


class Ledger:
    """What one principal has used under one plan. The map and open leases share it: a lease settles even if the map
    has dropped it.

    Attributes:
        used: when something was last taken or given back.
    """

    __slots__ = ("_plan", "_standings", "used")

    def __init__(self, plan: Plan, now: float) -> None:
        self._plan = plan
        self._standings = [limit.standing(now) for limit in plan.limits]
        self.used = now

    def drain(self, plan: Plan, now: float) -> None:
        """All limits are those of `now`, and from now on those of `plan`, which a reload may have changed."""
        if plan is not self._plan:
            self._adopt(plan, now)
        for standing in self._standings:
            standing.drain(now)

    def _adopt(self, plan: Plan, now: float) -> None:
        # What was used of a limit stays used when its numbers change, and is forgotten when the limit goes.
        if plan.limits != self._plan.limits:
            before, self._standings = self._standings, []
            for limit in plan.limits:
                kept = next((s for s in before if s.limit.name == limit.name and type(s.limit) is type(limit)), None)
                if kept is not None:
                    before.remove(kept)
                    kept.limit = limit
                self._standings.append(kept or limit.standing(now))
        self._plan = plan

    def at_rest(self, now: float) -> bool:
        """Whether this ledger equals a new one."""
        self.drain(self._plan, now)
        return all(standing.at_rest for standing in self._standings)

    @property
    def occupied(self) -> bool:
        """Whether there is something that only the close of a lease gives back, such as the slot of a stream."""
        return any(standing.occupied for standing in self._standings)

    def quotas(self) -> list[Quota]:
        """Where the principal stands, one entry for each limit that is told."""
        return [quota for standing in self._standings if (quota := standing.quota()) is not None]

    def refusal(self, demand: Amounts) -> Refusal | None:
        """The refusal to wait longest for, None when everything fits."""
        longest, refusing = 0.0, None
        for standing in self._standings:
            wait = standing.wait(standing.limit.units(demand) or 0)
            if wait is None:
                wait = math.inf
            if wait > longest:
                longest, refusing = wait, standing
        if refusing is None:
            return None
        limit, quota = refusing.limit, refusing.quota()
        assert quota is not None, "a limit that refuses is told"
        return Refusal(limit.name, None if longest == math.inf else longest, quota, limit.code)

    def take(self, demand: Amounts, now: float) -> "Lease":
        """Everything demanded is taken, whether it fits or not."""
        return Lease(self, self.holds(demand, now))

    def holds(self, demand: Amounts, now: float) -> tuple[Hold, ...]:
        """What a lease holds for which everything demanded was taken, whether it fits or not."""
        self.used = now
        holds = [s.take(s.limit.units(demand) or 0) for s in self._standings]
        return tuple([hold for hold in holds if hold is not None])


class Lease:
    """What one admission took and may hand back. Whoever gets one must settle what was reserved, and close it."""

    __slots__ = ("_holds", "_ledger")

    def __init__(self, ledger: Ledger, holds: tuple[Hold, ...]) -> None:
        self._ledger = ledger
        self._holds = holds

    def carry(self, used: Amounts) -> None:
        """So many units count as reserved here; a lease that is lost has taken them, and nobody hands them back."""
        for hold in self._holds:
            if hold.grows:
                hold.reserved += hold.limit.units(used) or 0

    def reserved(self, name: str) -> float:
        """Units taken of this limit so far, infinite where the plan has no such limit."""
        return min((hold.reserved for hold in self._holds if hold.limit.name == name), default=math.inf)

    def due(self, name: str, used: float) -> float:
        """Units of this limit at which to call `spend` next; infinite where no limit can refuse.

        Args:
            name: a limit of which the stream counts its use.
            used: of it in all. Limits of another name that grow along with it are asked every `STRIDE` units.
        """
        others = any(hold.grows and hold.limit.name != name for hold in self._holds)
        due = min((hold.due for hold in self._holds if hold.limit.name == name), default=math.inf)
        return min(due, used + STRIDE) if others else due

    def spend(self, used: Amounts, now: float) -> bool:
        """Whether the stream may go on: what exceeds the reservations was taken.

        Args:
            used: in all since the lease began; a limit that is not named has nothing to spend.
            now: seconds.
        """
        for hold in self._holds:
            units = hold.limit.units(used)
            if units is not None and not hold.spend(units, now):
                return False
        return True

    def settle(self, used: Amounts, now: float) -> None:
        """What was reserved is replaced by what was used; only the first call counts, before or after `close`.

        Args:
            used: in all since the lease began. What was reserved of a limit that is not named stays spent.
            now: seconds.
        """
        for hold in self._holds:
            units = hold.limit.units(used)
            if units is not None:
                hold.settle(units, now)

    def cancel(self, now: float) -> None:
        """Nothing was begun: everything that can be handed back is, and the lease is closed."""
        for hold in self._holds:
            hold.settle(0, now)
        self.close(now)

    def close(self, now: float) -> None:
        """The slots are free; calling it again does nothing. What nobody settled stays spent."""
        for hold in self._holds:
            hold.close()
        self._ledger.used = max(self._ledger.used, now)


class Decision(NamedTuple):
    """What was decided of a demand, and where the principal stands after it.

    Attributes:
        outcome: a lease that holds everything demanded, or a refusal and nothing was taken.
        quotas: one entry for each limit that is told.
    """

    outcome: Lease | Refusal
    quotas: list[Quota]


class Decider(Protocol):
    """Who decides about demands: the `Limiter`, in the memory of this process, or one for several nodes together."""

    def decide(self, plan: Plan, principal: str, demand: Amounts, now: float) -> "Decision | Awaitable[Decision]":
        """The decision; an awaitable of it where somebody else has to be asked. Arguments as for `Limiter.admit`."""

    def take(self, plan: Plan, principal: str, demand: Amounts, now: float) -> Lease:
        """A lease that holds everything demanded, whether it fits or not: another node decided about it before."""


class Limiter:
    """The limits of all principals, in memory.

    Args:
        max_keys: ledgers kept, at least 1. Those at rest go first, then of a sample the one longest unused, one
            without open streams if there is any; what that one had used is forgotten.
    """

    def __init__(self, max_keys: int = 100_000) -> None:
        self._max_keys = max_keys
        self._ledgers: OrderedDict[tuple[str, str], Ledger] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ledgers)

    def admit(self, plan: Plan, principal: str, demand: Amounts, now: float) -> Lease | Refusal:
        """A lease that holds everything demanded, or a refusal and nothing was taken.

        Args:
            plan: the principal's plan.
            principal: as `str()` gives it.
            demand: what is asked for, by the limits' names; a name that the plan does not limit counts nothing.
            now: seconds.
        """
        ledger = self._ledger(plan, principal, now)
        return ledger.refusal(demand) or self._take(ledger, plan, principal, demand, now)

    def take(self, plan: Plan, principal: str, demand: Amounts, now: float) -> Lease:
        """See `Decider`. Arguments as for `admit`."""
        return self._take(self._ledger(plan, principal, now), plan, principal, demand, now)

    def _take(self, ledger: Ledger, plan: Plan, principal: str, demand: Amounts, now: float) -> Lease:
        key = (plan.name, principal)
        if key not in self._ledgers:
            self._make_room(now)
            self._ledgers[key] = ledger
        return ledger.take(demand, now)

    def decide(self, plan: Plan, principal: str, demand: Amounts, now: float) -> Decision:
        """As `admit`, with where the principal stands after it."""
        ledger = self._ledger(plan, principal, now)
        outcome = ledger.refusal(demand) or self._take(ledger, plan, principal, demand, now)
        return Decision(outcome, ledger.quotas())

    def touch(self, plan: Plan, principal: str, now: float) -> Refusal | None:
        """None and one request was taken, or a refusal: for requests that start no generation."""
        decision = self.admit(plan, principal, ONE_REQUEST, now)
        return decision if isinstance(decision, Refusal) else None

    def snapshot(self, plan: Plan, principal: str, now: float) -> list[Quota]:
        """Where the principal stands, one entry for each limit that is told. Makes no ledger."""
        return self._ledger(plan, principal, now).quotas()

    def _ledger(self, plan: Plan, principal: str, now: float) -> Ledger:
        ledger = self._ledgers.get((plan.name, principal)) or Ledger(plan, now)
        ledger.drain(plan, now)
        return ledger

    def _make_room(self, now: float) -> None:
        for _ in range(min(SWEEP, len(self._ledgers))):
            self._examine(now)
        for _ in range(min(SAMPLE, len(self._ledgers))):
            if len(self._ledgers) < self._max_keys:
                return
            self._examine(now)
        if len(self._ledgers) >= self._max_keys:
            sample = islice(self._ledgers.items(), SAMPLE)
            key, _ = min(sample, key=lambda item: (item[1].occupied, item[1].used))
            del self._ledgers[key]

    def _examine(self, now: float) -> None:
        # The map is a clock's face and not in order of use: a ledger that is not at rest goes to the end.
        key, ledger = self._ledgers.popitem(last=False)
        if not ledger.at_rest(now):
            self._ledgers[key] = ledger


class AddressLimiter:
    """The limits of all client addresses, whatever credential their requests carry. It refuses as `address`.

    Args:
        requests: requests of one address in a window, None is unlimited.
        connections: connections of one address at once, None is unlimited.
        max_keys: as for `Limiter`.
    """

    def __init__(self, requests: Rate | None, connections: int | None, max_keys: int = 100_000) -> None:
        self._limiter = Limiter(max_keys)
        self.plan = Plan(PER_ADDRESS, make_limits(requests, connections))
        """May be replaced: connections that are open stay counted."""

    def __len__(self) -> int:
        return len(self._limiter)

    def request(self, address: str, now: float) -> Refusal | None:
        """None and one request was taken, or a refusal.

        Args:
            address: as `credential.address_key` gives it.
            now: seconds.
        """
        refusal = self._limiter.touch(self.plan, address, now)
        return refusal and refusal._replace(limit=PER_ADDRESS)

    def connect(self, address: str, now: float) -> Lease | Refusal:
        """A lease on one connection, to be closed with it, or a refusal. Arguments as for `request`."""
        decision = self._limiter.admit(self.plan, address, ONE_CONNECTION, now)
        return decision._replace(limit=PER_ADDRESS) if isinstance(decision, Refusal) else decision
