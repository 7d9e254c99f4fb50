"""What this node holds of one principal's plan, while all nodes count together and while it counts alone.

             Redis is there                                      Redis is away
    start    one script decides (`ledger.py`)                    decided here, by 1/N of each limit
    spend    from the share taken ahead; the next one is         from this node's part, at once
             asked for before it is used up
    end      what was not used is handed back, in the            counted here
             background
                                 back: the slots that are held are taken again, and what was taken here is added

Invariants:

- Nothing here waits: what Redis has to be told or asked is queued, and the `Writer` hears of it.
- A lease that Redis does not know is not handed back there. All others are, in the order in which things happened.
- Units on credit are used while the answer about the next share is on its way. They are at most one more share of the
  stream, or this node's part of what was free when Redis last said so. A piece of an answer that comes at once may take
  all that was free then: a stream may be one event beyond its budget.
"""

import asyncio
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from gateway.core.bucket import SLACK, Bucket
from gateway.core.limiter import Decision, Lease, Ledger, Refusal
from gateway.core.limits import (
    Amounts,
    BudgetLimit,
    Hold,
    Limit,
    Plan,
    Quota,
    RateLimit,
    SlotLimit,
    rate_quota,
    slot_quota,
    slot_wait,
    taken_ahead,
)
from gateway.core.rate import Rate
from gateway.store.ledger import BUDGET, NEVER, RATE, SLOTS, UNLIMITED, Operation

SHARED: Final[Mapping[type[Limit], int]] = {RateLimit: RATE, SlotLimit: SLOTS, BudgetLimit: BUDGET}
"""The limits that have a shared form. All others are kept by each node for itself."""
GATHERING: Final = 0.02
"""Seconds for which what is not urgent waits for more of its kind, or for a start that takes it along: waking Redis
costs more than what it then does. Shorter than the first pause of a start that lacks a slot, so that it finds the slot
when it asks again."""
LEISURE: Final = 0.25
"""Seconds for which what is given back waits, and a question for more where there is credit, while all limits of the
principal are far from full."""
FAR: Final = 4
"""A limit of which at most one in so many is used is far from full."""
MANY_SLOTS: Final = 32
"""A limit of fewer slots is never far from full: a client or two could use it up while a slot is given back."""
AT_ONCE: Final = 500
"""Operations and members of slots that are sent at once, at most."""


class Part(NamedTuple):
    """One limit of a plan that has a shared form.

    Attributes:
        kind: RATE, SLOTS or BUDGET.
        name: the limit's; a second limit of the same name and kind has `#1` behind it, and so on.
        limit: the plan's.
    """

    kind: int
    name: str
    limit: Limit

    @property
    def rate(self) -> Rate:
        """That of a RATE or BUDGET."""
        assert isinstance(self.limit, RateLimit)
        return self.limit.rate

    @property
    def amount(self) -> int | None:
        """How many SLOTS there are, None without a limit."""
        assert isinstance(self.limit, SlotLimit)
        return self.limit.amount

    def units(self, amounts: Amounts) -> float:
        """How many units of this limit the amounts come to."""
        return self.limit.units(amounts) or 0

    def quota(self, level: float) -> Quota | None:
        """What a principal is told who stands so high."""
        if isinstance(self.limit, SlotLimit):
            return slot_quota(self.limit, level)
        assert isinstance(self.limit, RateLimit)
        return rate_quota(self.limit, level)

    @property
    def far(self) -> float:
        """The highest level that is far from full, below 0 where none is."""
        if self.kind != SLOTS:
            return self.rate.amount / FAR
        if self.amount is None:
            return math.inf
        return self.amount / FAR if self.amount >= MANY_SLOTS else -1.0

    @property
    def wire(self) -> tuple[int, str, int, float]:
        """As the script reads it."""
        if self.kind == SLOTS:
            return SLOTS, self.name, UNLIMITED if self.amount is None else self.amount, 0
        return self.kind, self.name, *self.rate


class Writer(Protocol):
    """Who sends what is queued.

    Attributes:
        nodes: how many nodes were last seen alive, this one included.
    """

    nodes: int

    @property
    def up(self) -> bool:
        """Whether the store is there."""

    def send(self, shares: "Shares") -> None:
        """Something of these is to be told or asked, at once."""

    def tell(self, shares: "Shares", within: float) -> None:
        """Something of these is to be told or asked, within so many seconds."""

    def number(self) -> int:
        """The number of a new batch, higher than all before."""


class Batch(NamedTuple):
    """What is sent of one ledger in one script.

    Attributes:
        shares: whose.
        number: by which its repetition is noticed; 0 where repeating it does no harm.
        operations: what is to be done.
        asking: who asks for more; the last operations are theirs.
    """

    shares: "Shares"
    number: int
    operations: list[Operation]
    asking: list["SharedBudget"]


class SharedSlots(Hold):
    """The slots of one lease.

    Attributes:
        name: the part's.
        members: what they are in Redis.
        known: whether Redis was told of them.
    """

    __slots__ = ("_shares", "known", "members", "name")

    def __init__(self, shares: "Shares", part: Part, units: float, members: list[str], known: bool) -> None:
        super().__init__(part.limit, units)
        self.name = part.name
        self.members = members
        self.known = known
        self._shares = shares

    def close(self) -> None:
        if self.reserved:
            self._shares.close(self)
            self.reserved = 0


class SharedBudget(Hold):
    """What one lease holds of a budget.

    Attributes:
        name: the part's.
        lease: the lease's name in Redis.
        known: whether Redis was told of it.
        alone: units of `reserved` that were taken from this node's part; Redis has not been told of them.
        asks: whether the next share was asked for, and not answered yet.
        used: units that `spend` has let the lease use.
        lent: units of it that are on credit.
    """

    __slots__ = ("_ahead", "_settled", "_shares", "alone", "asks", "known", "lease", "lent", "name", "used")

    grows = True

    def __init__(self, shares: "Shares", part: Part, units: float, lease: str, known: bool, ahead: int) -> None:
        super().__init__(part.limit, units)
        self.name = part.name
        self.lease = lease
        self.known = known
        self.alone = 0.0 if known else units
        self.asks = False
        self.used = 0.0
        self.lent = 0.0
        self._shares = shares
        self._ahead = ahead
        self._settled = False

    @property
    def due(self) -> float:
        """Units at which to call `spend` next: before the share is used up, so that the next one is there in time."""
        return self.reserved if self.asks else self.reserved - self._ahead // 2

    def spend(self, units: float, now: float) -> bool:
        shares = self._shares
        if self._settled:
            return units <= self.reserved
        if shares.alone_now(now) is not None:
            return units <= self.reserved or shares.spend_alone(self, units - self.reserved, now)
        if units > self.reserved and not shares.lend(self, units - self.reserved, self._ahead, now):
            return False
        self.used = units
        if units > self.reserved - self._ahead // 2 and not self.asks:
            self.asks = True
            shares.ask(self, urgent=self.lent > self._ahead // 2)
        return True

    def answer(self, fits: bool, units: float, ahead: int) -> None:
        """The question for the next share was answered."""
        self.asks = False
        self.reserved += units
        # Where nothing was left to take ahead, it is asked for again when there is no other way.
        self._ahead = ahead if fits and self.reserved > self.used else 0

    def settle(self, units: float, now: float) -> None:
        if not self._settled:
            self._settled = True
            self._shares.settle(self, units, now)

    def close(self) -> None:
        self._shares.leave(self)


class OwnPart:
    """This node's part of one rate or budget, while it counts alone.

    Args:
        rate: of the whole.
        nodes: how many share it.
        level: that of the whole, as far as is known.
        now: seconds.
    """

    __slots__ = ("_bucket", "_known", "_rate", "_since", "_whole")

    def __init__(self, rate: Rate, nodes: int, level: float, now: float) -> None:
        self._whole = rate.amount
        self._rate = Rate(max(1, rate.amount // nodes), rate.seconds)
        self._bucket = Bucket(now)
        self._bucket.level = self._known = level / nodes
        self._since = now

    @property
    def rate(self) -> Rate:
        """Of this part."""
        return self._rate

    def level(self, now: float) -> float:
        """How much stands in it."""
        self._bucket.drain(self._rate, now)
        return self._bucket.level

    def wait(self, units: float, now: float) -> float | None:
        """As `Bucket.wait`. What fits the whole is let in when this part is empty, though it is larger."""
        self._bucket.drain(self._rate, now)
        return None if units > self._whole else self._bucket.wait(self._rate, min(units, self._rate.amount))

    def take(self, units: float, *, known: bool = False) -> None:
        """Units are taken, or handed back if below 0. If `known`, Redis has them or will be told in another way."""
        level = max(self._bucket.level, min(self._bucket.level + units, 2.0 * self._whole))
        self._bucket.level = level if units > 0 else max(0.0, self._bucket.level + units)
        self._known += units if known else 0

    def added(self, now: float) -> float:
        """Units that stand here, and of which Redis was not told."""
        drained = (now - self._since) * self._rate.amount / self._rate.seconds
        return max(0.0, self.level(now) - max(0.0, self._known - drained))


class Shares:
    """What this node holds of one principal's plan.

    Args:
        writer: sends what is queued here.
        key: of the ledger in Redis.
        plan: the principal's.
        now: seconds.

    Attributes:
        key: as given.
        local: the limits that have no shared form.
        wire: the others, as the script reads them.
        flight: done when the batch that is being sent was answered, or not; None while there is none.
        starting: starts that are being decided.
        used: when something was last decided.
    """

    def __init__(self, writer: Writer, key: str, plan: Plan, now: float) -> None:
        self.key = key
        self.flight: asyncio.Future[None] | None = None
        self.starting = 0
        self.used = now
        self._writer = writer
        self._plan = self._local_plan = Plan(plan.name)
        self._parts: dict[str, Part] = {}
        self._slot_parts: list[Part] = []
        self._budget_parts: list[Part] = []
        self._far: list[float] = []  # for each part, the highest level that is far from full
        self.local = Ledger(self._local_plan, now)
        self.wire: list[tuple[int, str, int, float]] = []
        self._slots: set[SharedSlots] = set()
        self._taken: dict[str, float] = {}  # slots of this node, by part
        self._budgets: dict[SharedBudget, None] = {}  # oldest first
        self._asking: dict[SharedBudget, None] = {}
        self._queued: list[Operation] = []
        self._sent: list[Operation] = []  # not known to have arrived
        self._number = 0
        self._levels: dict[str, float] = {}  # how high each part stood when that was last heard
        self._heard = now
        self._ample = False  # whether all of them were far from full then
        self._lent: dict[str, float] = {}
        self._alone: dict[str, OwnPart] | None = None
        self.adopt(plan, now)

    def adopt(self, plan: Plan, now: float) -> None:
        """The limits are those of `plan` from now on, which a reload may have changed."""
        self.used = now
        if plan is not self._plan:
            if plan.limits != self._plan.limits:
                self._adopt(plan)
            self._plan = plan
        self.local.drain(self._local_plan, now)

    def _adopt(self, plan: Plan) -> None:
        self._parts = {}
        for limit in plan.limits:
            kind = SHARED.get(type(limit))
            if kind is not None:
                same = sum(part.kind == kind and part.limit.name == limit.name for part in self._parts.values())
                name = f"{limit.name}#{same}" if same else limit.name
                self._parts[name] = Part(kind, name, limit)
        parts = list(self._parts.values())
        self.wire = [part.wire for part in parts]
        self._slot_parts = [part for part in parts if part.kind == SLOTS]
        self._budget_parts = [part for part in parts if part.kind == BUDGET]
        self._far = [part.far for part in parts]
        self._local_plan = Plan(plan.name, tuple(limit for limit in plan.limits if type(limit) not in SHARED))

    @property
    def bounded(self) -> bool:
        """Whether a limit that all nodes share can refuse."""
        return any(part.kind != SLOTS or part.amount is not None for part in self._parts.values())

    @property
    def idle(self) -> bool:
        """Whether forgetting this loses nothing but what is known of other nodes, and what was used alone."""
        return not (self._slots or self._budgets or self.starting or self.flight or self.waiting)

    @property
    def waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self._queued or self._sent or self._asking)

    def at_rest(self, now: float) -> bool:
        """Whether it is idle, and nothing is used of what this node counts alone."""
        return self.idle and self._alone is None and self.local.at_rest(now)

    # -- decisions -------------------------------------------------------------------------------------------------

    def demand(self, demand: Amounts) -> list[float]:
        """The units that are demanded of each part."""
        return [part.units(demand) for part in self._parts.values()]

    def lacks_slots(self, waits: Sequence[float]) -> bool:
        """Whether these waits are for slots that may be given back, and for nothing else."""
        kinds = {part.kind for part, wait in zip(self._parts.values(), waits, strict=False) if wait}
        return kinds == {SLOTS} and NEVER not in waits

    def decide(
        self, lease: str, demand: Amounts, waits: Sequence[float], local: "Refusal | tuple[Hold, ...]"
    ) -> Decision:
        """What was decided together.

        Args:
            lease: its name in Redis.
            demand: by the limits' names.
            waits: what the script answered.
            local: what the limits say that are kept here: a refusal, or what was taken of them.
        """
        quotas = self._quotas()
        refusal = None
        if waits or isinstance(local, Refusal):
            refusal = self._longest([None if wait == NEVER else wait for wait in waits], quotas, local)
        outcome = self._outcome(refusal, lease, demand, local, known=True)
        return self._told(outcome, quotas)

    def decide_alone(
        self, lease: str, demand: Amounts, now: float, local: "Refusal | tuple[Hold, ...]", *, doubtful: bool = False
    ) -> Decision:
        """What this node decides by its own part of each limit.

        Args:
            lease: as for `decide`.
            demand: by the limits' names.
            now: seconds.
            local: as for `decide`.
            doubtful: whether Redis was asked before, and may have taken everything for this lease or may yet.
        """
        if doubtful and self._alone is None:
            self._alone = {}
        alone = self.alone_now(now)
        parts = list(self._parts.values())
        waits = [0.0 if alone is None else self._wait(part, part.units(demand), now) for part in parts]
        refusal = self._longest(waits, {part.name: self._own_quota(part, now) for part in parts}, local)
        if doubtful:
            # Whether or not Redis was reached, what is decided here is what counts.
            self._queue(*(self._undo(lease, demand) if refusal else [("force", lease, self.demand(demand))]))
        if refusal is None and alone is not None:
            self._take_alone(demand, now, known=doubtful)
        outcome = self._outcome(refusal, lease, demand, local, known=doubtful or alone is None)
        if alone is None:
            for part in self._slot_parts:
                if units := part.units(demand):
                    self._queue(("open", part.name, *_members(lease, units)))
        return self._told(outcome, {part.name: self._own_quota(part, now) for part in parts})

    def take(self, lease: str, demand: Amounts, now: float) -> Lease:
        """A lease for which everything is taken, whether it fits or not. Arguments as for `decide_alone`."""
        alone = self.alone_now(now)
        if alone is None:
            self._queue(("force", lease, self.demand(demand)))
        else:
            self._take_alone(demand, now, known=False)
        outcome = self._outcome(None, lease, demand, self.local.holds(demand, now), known=alone is None)
        assert isinstance(outcome, Lease), "nothing refuses"
        return outcome

    def _take_alone(self, demand: Amounts, now: float, *, known: bool) -> None:
        for part in self._parts.values():
            if part.kind != SLOTS:
                self._own(part, now).take(part.units(demand), known=known)

    def give_up(self, lease: str, demand: Amounts, local: "Refusal | tuple[Hold, ...]", *, asked: bool) -> None:
        """Nobody waits for a decision any more: what was taken for it, or may be taken yet, is given back.

        Args:
            lease, demand, local: as for `decide`.
            asked: whether Redis was asked.
        """
        if not isinstance(local, Refusal):
            self._hand_back(local)
        if asked:
            self._queue(*self._undo(lease, demand))

    def _hand_back(self, local: tuple[Hold, ...]) -> None:
        for hold in local:
            hold.settle(0, self.used)
            hold.close()

    def quotas(self) -> list[Quota]:
        """Where the principal stands, as was last heard."""
        quotas = self._quotas().values()
        return [*(quota for quota in quotas if quota is not None), *self.local.quotas()]

    def _quotas(self) -> dict[str, Quota | None]:
        levels = self._levels
        return {name: part.quota(levels.get(name, 0.0)) for name, part in self._parts.items()}

    def _told(self, outcome: Lease | Refusal, quotas: Mapping[str, Quota | None]) -> Decision:
        return Decision(outcome, [*(quota for quota in quotas.values() if quota is not None), *self.local.quotas()])

    def _longest(
        self,
        waits: Sequence[float | None],
        quotas: Mapping[str, Quota | None],
        local: "Refusal | tuple[Hold, ...]",
    ) -> Refusal | None:
        """The refusal to wait longest for, None when everything fits."""
        refusal = local if isinstance(local, Refusal) else None
        longest = 0.0 if refusal is None else _seconds(refusal.retry_after)
        for part, wait in zip(self._parts.values(), waits, strict=False):  # none at all: everything fits
            if _seconds(wait) > longest:
                longest = _seconds(wait)
                quota = quotas[part.name]
                assert quota is not None, "a limit that refuses is told"
                refusal = Refusal(part.limit.name, wait, quota, part.limit.code)
        return refusal

    def _outcome(
        self,
        refusal: Refusal | None,
        lease: str,
        demand: Amounts,
        local: "Refusal | tuple[Hold, ...]",
        *,
        known: bool,
    ) -> Lease | Refusal:
        if isinstance(local, Refusal):
            assert refusal is not None, "one limit refuses"
            return refusal
        if refusal is not None:
            self._hand_back(local)
            return refusal
        holds = [*local, *(self._budget(part, part.units(demand), lease, known) for part in self._budget_parts)]
        for part in self._slot_parts:
            if units := part.units(demand):
                slots = SharedSlots(self, part, units, _members(lease, units), known)
                self._slots.add(slots)
                self._taken[part.name] = self._taken.get(part.name, 0.0) + units
                holds.append(slots)
        return Lease(self.local, tuple(holds))

    def _budget(self, part: Part, units: float, lease: str, known: bool) -> "SharedBudget":
        budget = SharedBudget(self, part, units, lease, known, taken_ahead(part.rate, len(self._budgets)))
        if units:
            self._budgets[budget] = None
        return budget

    def _undo(self, lease: str, demand: Amounts) -> list[Operation]:
        budgets = (part for part in self._budget_parts if part.units(demand))
        slots = ((part.name, part.units(demand)) for part in self._slot_parts)
        return [
            *(("settle", part.name, lease, 0, 0) for part in budgets),
            *(("close", name, *_members(lease, units)) for name, units in slots if units),
        ]

    # -- while a lease runs, and at its end --------------------------------------------------------------------------

    def ask(self, hold: SharedBudget, *, urgent: bool) -> None:
        """The next share is asked for; at once where it is `urgent`, as credit is running out."""
        self._budgets[hold] = self._asking[hold] = None
        if urgent:
            self._writer.send(self)
        else:
            self._tell()

    def lend(self, hold: SharedBudget, units: float, share: int, now: float) -> bool:
        """Whether so many units may be used while the answer about the next share is on its way."""
        part, before = self._parts.get(hold.name), self._lent.get(hold.name, 0.0)
        if part is None:
            return True  # a reload took the limit away
        total = before - hold.lent + units
        level = self._levels.get(hold.name, 0.0)
        room = part.rate.amount - level
        drained = (now - self._heard) * part.rate.amount / part.rate.seconds
        part_of_room = (room + min(level, drained)) / self._writer.nodes
        at_once = not hold.lent and total <= room
        if not (units <= share or total <= part_of_room + SLACK or at_once):
            return False
        self._lent[hold.name] = total
        hold.lent = units
        return True

    def settle(self, hold: SharedBudget, units: float, now: float) -> None:
        """The lease has used so many units in all."""
        self.leave(hold)
        shared, alone = hold.reserved - hold.alone, self.alone_now(now)
        part = self._parts.get(hold.name)
        if alone is not None and part is not None:
            beyond = max(0.0, units - shared)
            self._own(part, now).take(beyond - hold.alone)
            units -= beyond
        if hold.known and (shared or units):
            self._give_back(("settle", hold.name, hold.lease, units, shared))

    def leave(self, hold: SharedBudget) -> None:
        """The lease takes no more of a budget. It may settle yet."""
        self._budgets.pop(hold, None)
        self._asking.pop(hold, None)
        self._return_credit(hold)

    def close(self, hold: SharedSlots) -> None:
        """The slots of a lease are free."""
        self._slots.discard(hold)
        self._taken[hold.name] -= hold.reserved
        if hold.known:
            self._give_back(("close", hold.name, *hold.members))

    def _return_credit(self, hold: SharedBudget) -> None:
        if hold.lent:
            self._lent[hold.name] -= hold.lent
            hold.lent = 0.0

    # -- what is sent ------------------------------------------------------------------------------------------------

    def _queue(self, *operations: Operation) -> None:
        self._queued += operations
        self._writer.tell(self, GATHERING)

    def _give_back(self, operation: Operation) -> None:
        self._queued.append(operation)
        self._tell()

    def _tell(self) -> None:
        self._writer.tell(self, LEISURE if self._ample else GATHERING)

    def batch(self) -> Batch:
        """What is to be sent next. After this you must call `sent` or `failed`, and not `batch` before that."""
        if not self._sent and self._queued:
            self._sent, self._queued = self._queued[:AT_ONCE], self._queued[AT_ONCE:]
            self._number = self._writer.number()
        asking: list[SharedBudget] = []
        if not self._queued:  # what is queued may be about the same leases, and comes first
            asking, self._asking = list(self._asking), {}
        more = [("more", hold.name, hold.lease, hold.reserved, hold.used) for hold in asking]
        return Batch(self, self._number if self._sent else 0, [*self._sent, *more], asking)

    def sent(self, batch: Batch, answers: Sequence[tuple[bool, float]], stands: Sequence[float], now: float) -> None:
        """The batch was answered.

        Args:
            batch: as it was sent.
            answers: for each who asked: whether what it has used fits, and the units that it got.
            stands: how high each part stands.
            now: seconds.
        """
        if batch.number:
            self._sent = []
        for hold, (fits, units) in zip(batch.asking, answers, strict=False):
            part = self._parts.get(hold.name)
            hold.answer(fits, units, taken_ahead(part.rate, len(self._budgets)) if part is not None else 0)
            self._return_credit(hold)
        self.hear(stands, now)

    def hear(self, stands: Sequence[float], now: float) -> None:
        """So high each part stands."""
        self._levels = dict(zip(self._parts, stands, strict=False))
        self._heard = now
        self._ample = bool(stands) and all(map(operator.le, stands, self._far))

    def failed(self, batch: Batch) -> None:
        """Nobody knows whether the batch arrived. It is sent again, but for questions: they are asked anew."""
        for hold in batch.asking:
            hold.asks = False

    # -- alone ---------------------------------------------------------------------------------------------------------

    def alone_now(self, now: float) -> "dict[str, OwnPart] | None":
        """This node's parts, where it counts alone; None while all count together."""
        if self._alone is None and not self._writer.up:
            self._alone = {}
        return self._alone

    def _own(self, part: Part, now: float) -> OwnPart:
        assert self._alone is not None, "it counts alone"
        own = self._alone.get(part.name)
        if own is None:
            drained = (now - self._heard) * part.rate.amount / part.rate.seconds
            level = max(0.0, self._levels.get(part.name, 0.0) - drained)
            own = self._alone[part.name] = OwnPart(part.rate, self._writer.nodes, level, now)
        return own

    def _own_slots(self, part: Part) -> int | None:
        amount = part.amount
        return amount if not amount else max(1, amount // self._writer.nodes)

    def _wait(self, part: Part, units: float, now: float) -> float | None:
        if part.kind != SLOTS:
            return self._own(part, now).wait(units, now)
        own, amount = self._own_slots(part), part.amount
        if own is not None and amount is not None and own < units <= amount:
            own = int(units)  # it fits the whole, so it is let in when nothing else runs here
        return slot_wait(own, self._taken.get(part.name, 0.0), units)

    def _own_quota(self, part: Part, now: float) -> Quota | None:
        if self._alone is None:
            return part.quota(0.0)  # only what has no limit is decided alone while the store is there
        if isinstance(part.limit, SlotLimit):
            own = self._own_slots(part)
            return slot_quota(SlotLimit(part.limit.name, own), self._taken.get(part.name, 0.0))
        own_part = self._own(part, now)
        return rate_quota(RateLimit(part.limit.name, own_part.rate), own_part.level(now))

    def spend_alone(self, hold: SharedBudget, units: float, now: float) -> bool:
        """Whether so many further units may be used; then they are taken from this node's part."""
        part = self._parts.get(hold.name)
        if part is None:
            return True
        own = self._own(part, now)
        if own.wait(units, now) != 0:
            return False
        ahead = taken_ahead(own.rate, len(self._budgets))
        if own.wait(units + ahead, now) == 0:
            units += ahead
        own.take(units)
        self._budgets[hold] = None
        hold.reserved += units
        hold.alone += units
        return True

    def rejoin(self, now: float) -> None:
        """The store is there again: the slots that are held are taken again, and what was taken alone is added."""
        self.register()
        alone, self._alone = self._alone, None
        for name, own in (alone or {}).items():
            left = own.added(now)
            # What has drained since can be handed back by nobody, and the oldest drains first.
            for hold in reversed(self._budgets):
                if hold.name == name and hold.alone:
                    units = min(hold.alone, left)
                    left -= units
                    hold.alone, hold.known = 0.0, True
                    if units:
                        self._queue(("add", name, units, hold.lease, hold.reserved - units))
            if left > SLACK:
                self._queue(("add", name, left, "", 0))
        for hold in self._budgets:
            hold.known = True

    def register(self) -> None:
        """All slots that are held here are taken, whatever Redis knows of them."""
        self._queue(*self._open(list(self._slots)))

    def _open(self, slots: Sequence[SharedSlots]) -> list[Operation]:
        operations: list[Operation] = []
        for name in self._parts:
            members = [member for hold in slots if hold.name == name for member in hold.members]
            operations += [("open", name, *members[at : at + AT_ONCE]) for at in range(0, len(members), AT_ONCE)]
        for hold in slots:
            hold.known = True
        return operations


def _members(lease: str, units: float) -> list[str]:
    """The members of a lease's slots."""
    return [lease, *(f"{lease}.{number}" for number in range(2, int(units) + 1))]


def _seconds(wait: float | None) -> float:
    return math.inf if wait is None else wait
