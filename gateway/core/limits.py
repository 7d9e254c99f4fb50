"""Plans, and the limits that they are made of. Each limit has a name and its own behaviour.

    Limit      what the operator wrote: `requests: 60/min`. Never changes; a reload makes new ones.
      | standing(now)
      v
    Standing   what one principal has used of it. It lives in the principal's ledger (`limiter.py`).
      | take(units)
      v
    Hold       what one lease may still hand back of it: a stream's slot, tokens that were reserved and not used.

Invariants:

- A standing decides by `wait`, which changes nothing; `take` never refuses.
- A hold gives back at most what was taken, and at most once.
- A plan asks each of its limits with the same mapping, from names to amounts. A limit looks up its own name, and what
  the mapping does not name it leaves alone. So a new limit is a new class, here or elsewhere, that is put into a plan.

No limit knows who the principal is, what a token costs, or how a refusal reaches a client.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from gateway.core.bucket import SLACK, Bucket, ReservingBucket
from gateway.core.rate import Rate

REQUESTS: Final = "requests"
STREAMS: Final = "streams"
TOKENS: Final = "tokens"

AHEAD: Final = 2048
"""Units that a running stream takes at most beyond what it has used, and hands back at its end."""
SHARE_AHEAD: Final = 0.01
"""Share of a budget that its streams take ahead together, roughly, so that others do not run out of unused units."""
SLOT_WAIT: Final = 2.0
"""Seconds after which to ask again for a slot: nobody knows when another stream ends."""

Amounts = Mapping[str, float]
"""How much of each limit, by name: a demand before the start, a settlement after the end."""


class Quota(NamedTuple):
    """Where a principal stands with one limit.

    Attributes:
        name: the limit's.
        limit: what fits at once.
        window: seconds in which a used up limit is whole again, None for slots.
        remaining: what fits now, at least 0.
        reset: seconds until nothing is used, 0 when nothing is and for slots.
    """

    name: str
    limit: int
    window: float | None
    remaining: int
    reset: float


@dataclass(frozen=True)
class Limit(ABC):
    """One limit of a plan.

    Attributes:
        name: what it is called in demands, settlements, headers, metrics and messages.
        code: the key of `errors.ERROR_KINDS` with which it refuses.
    """

    name: str
    code: str = field(default="rate_limited", kw_only=True)

    @abstractmethod
    def standing(self, now: float) -> "Standing[Any]":
        """That of a principal who has used nothing."""

    def units(self, amounts: Amounts) -> float | None:
        """How many of this limit's units the amounts come to, at least 0; None where they do not say."""
        units = amounts.get(self.name)
        return None if units is None else max(0, units)


L = TypeVar("L", bound=Limit)


class Hold:
    """What one lease holds of one limit.

    Attributes:
        limit: as it was when the lease was given; a reload does not change it.
        reserved: units taken so far.
        grows: whether a running stream must say what it uses, because `spend` may refuse.
    """

    __slots__ = ("limit", "reserved")

    grows: ClassVar[bool] = False

    def __init__(self, limit: Limit, reserved: float) -> None:
        self.limit = limit
        self.reserved = reserved

    @property
    def due(self) -> float:
        """Units at which to call `spend` next."""
        return self.reserved

    def spend(self, units: float, now: float) -> bool:
        """Whether the lease may go on after it used so many units in all; what exceeds `reserved` was taken."""
        return True

    def settle(self, units: float, now: float) -> None:
        """So many units were used in all; what is reserved beyond that is handed back. Only the first call counts."""

    def close(self) -> None:
        """The lease has ended; only the first call counts."""


class Standing(ABC, Generic[L]):
    """What one principal has used of one limit.

    Attributes:
        limit: the plan's; a reload that changes it replaces it here too.
    """

    __slots__ = ("limit",)

    def __init__(self, limit: L) -> None:
        self.limit = limit

    @property
    @abstractmethod
    def at_rest(self) -> bool:
        """Whether this equals the standing of a principal who has used nothing, as of the last `drain`."""

    @property
    def occupied(self) -> bool:
        """Whether something is held that only a lease's `close` gives back, so that forgetting it would lose it."""
        return False

    @abstractmethod
    def drain(self, now: float) -> None:
        """What time gives back is given back."""

    @abstractmethod
    def wait(self, units: float) -> float | None:
        """Seconds until `units` fit, as of the last `drain`: 0 when they do, None when they never will."""

    @abstractmethod
    def take(self, units: float) -> Hold | None:
        """The units are taken, whether they fit or not. What the lease may hand back or add to, None for nothing."""

    @abstractmethod
    def quota(self) -> Quota | None:
        """What the principal is told, as of the last `drain`; None for a limit that is not told."""


# -- a rate: what was taken is never handed back -----------------------------------------------------------------------


@dataclass(frozen=True)
class RateLimit(Limit):
    """So many units in so long, such as requests."""

    rate: Rate

    def standing(self, now: float) -> "RateStanding":
        return RateStanding(self, Bucket(now))


class RateStanding(Standing[RateLimit]):
    """A bucket that fills with what is taken."""

    __slots__ = ("_bucket",)

    def __init__(self, limit: RateLimit, bucket: Bucket) -> None:
        super().__init__(limit)
        self._bucket = bucket

    @property
    def at_rest(self) -> bool:
        return not self._bucket.level

    def drain(self, now: float) -> None:
        self._bucket.drain(self.limit.rate, now)

    def wait(self, units: float) -> float | None:
        return self._bucket.wait(self.limit.rate, units)

    def take(self, units: float) -> Hold | None:
        self._bucket.level += units
        return None

    def quota(self) -> Quota:
        return rate_quota(self.limit, self._bucket.level)


def rate_quota(limit: RateLimit, level: float) -> Quota:
    """What a principal is told whose bucket stands at this level."""
    rate = limit.rate
    remaining = max(0, math.floor(rate.amount - level + SLACK))
    return Quota(limit.name, rate.amount, rate.seconds, remaining, level * rate.seconds / max(1, rate.amount))


# -- slots: taken at the start, given back at the end ------------------------------------------------------------------


@dataclass(frozen=True)
class SlotLimit(Limit):
    """So many at once, such as streams.

    Attributes:
        amount: None counts them without a limit, so that a reload which adds one finds those that are open.
    """

    amount: int | None

    def standing(self, now: float) -> "SlotStanding":
        return SlotStanding(self)


class SlotStanding(Standing[SlotLimit]):
    """How many slots are taken."""

    __slots__ = ("taken",)

    def __init__(self, limit: SlotLimit) -> None:
        super().__init__(limit)
        self.taken = 0.0

    @property
    def at_rest(self) -> bool:
        return not self.taken

    @property
    def occupied(self) -> bool:
        return self.taken > 0

    def drain(self, now: float) -> None:
        """Time gives no slot back."""

    def wait(self, units: float) -> float | None:
        return slot_wait(self.limit.amount, self.taken, units)

    def take(self, units: float) -> Hold | None:
        if not units:
            return None
        self.taken += units
        return SlotHold(self, units)

    def quota(self) -> Quota | None:
        return slot_quota(self.limit, self.taken)


def slot_wait(amount: int | None, taken: float, units: float) -> float | None:
    """Seconds after which so many more slots may be free, as `Standing.wait` gives them."""
    if amount is None or not units or taken + units <= amount:
        return 0.0
    return SLOT_WAIT if units <= amount else None


def slot_quota(limit: SlotLimit, taken: float) -> Quota | None:
    """What a principal is told who has taken so many slots; None where they have no limit."""
    amount = limit.amount
    return None if amount is None else Quota(limit.name, amount, None, max(0, int(amount - taken)), 0.0)


class SlotHold(Hold):
    """The slots of one lease."""

    __slots__ = ("_standing",)

    def __init__(self, standing: SlotStanding, units: float) -> None:
        super().__init__(standing.limit, units)
        self._standing = standing

    def close(self) -> None:
        self._standing.taken -= self.reserved
        self.reserved = 0


# -- a budget: reserved before it is known, extended while it runs, settled when it is known ---------------------------


@dataclass(frozen=True)
class BudgetLimit(RateLimit):
    """So many units in so long, of something whose amount is known only afterwards, such as tokens.

    What a settlement exceeds its reservation by may put the budget into debt, by at most one whole window.
    """

    def standing(self, now: float) -> "BudgetStanding":
        return BudgetStanding(self, ReservingBucket(now))


class BudgetStanding(RateStanding):
    """A bucket that knows what each lease may hand back."""

    __slots__ = ()

    _bucket: ReservingBucket

    def take(self, units: float) -> Hold:
        return BudgetHold(self.limit, self._bucket, units)


class BudgetHold(Hold):
    """What one lease has reserved of a budget. Units that nobody settles stay spent."""

    __slots__ = ("_bucket", "_rate", "_settled")

    grows: ClassVar[bool] = True

    def __init__(self, limit: RateLimit, bucket: ReservingBucket, units: float) -> None:
        super().__init__(limit, units)
        self._rate = limit.rate
        self._bucket = bucket
        self._settled = False
        if units:
            bucket.reserve(self, units)

    def spend(self, units: float, now: float) -> bool:
        extra = units - self.reserved
        if extra <= 0:
            return True
        if self._settled:
            return False
        bucket, rate = self._bucket, self._rate
        bucket.drain(rate, now)
        if bucket.wait(rate, extra) != 0:
            return False
        # Take something for what comes next, where there is room: asking at every event would cost a tenth of it.
        ahead = taken_ahead(rate, bucket.holders)
        if bucket.wait(rate, extra + ahead) == 0:
            extra += ahead
        bucket.reserve(self, extra)
        self.reserved += extra
        return True

    def settle(self, units: float, now: float) -> None:
        if self._settled:
            return
        self._settled = True
        self._bucket.drain(self._rate, now)
        unused = self.reserved - units
        if unused >= 0:
            self._bucket.refund(self, unused)
        else:
            self._bucket.overdraw(self, -unused, self._rate)


def taken_ahead(rate: Rate, holders: int) -> int:
    """Units that a stream takes ahead of a budget of which so many streams hold a part."""
    return min(AHEAD, int(SHARE_AHEAD * rate.amount / (holders + 1)))


# -- plans -------------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What one principal may use.

    Attributes:
        name: the plan's key in the config.
        limits: all of them have to let a demand in; a name may occur twice, as with a budget a minute and one a day.
    """

    name: str
    limits: tuple[Limit, ...] = ()


def make_limits(
    requests: Rate | None = None, streams: int | None = None, tokens: Rate | None = None
) -> tuple[Limit, ...]:
    """The limits that a configuration can name; None is unlimited.

    Args:
        requests: starts and resumes in a window.
        streams: slots at once.
        tokens: input and output tokens in a window.
    """
    limits = (
        RateLimit(REQUESTS, requests) if requests is not None else None,
        SlotLimit(STREAMS, streams, code="too_many_streams"),
        BudgetLimit(TOKENS, tokens, code="token_limit") if tokens is not None else None,
    )
    return tuple(limit for limit in limits if limit is not None)
