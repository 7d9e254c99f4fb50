"""Leaky buckets: units stand in a bucket, drain at a rate, and may never stand higher than the rate's amount.

Invariants:

- In no stretch of `t` seconds does a bucket let in more than the rate's amount plus what drains in `t`.
- A client that waits exactly as long as `wait` says is admitted; rounding never gives a unit away.
- Units that have drained cannot be handed back, so nobody gains by reserving much and using little.

`now` is any clock that does not run backwards, in seconds; the wall clock plays no part.
"""

import math
from collections import OrderedDict
from typing import Final

from gateway.core.rate import Rate

SLACK: Final = 1e-6
"""Units of rounding error that are forgiven."""


class Bucket:
    """One bucket; the rate comes with each call, because a reload may change it.

    This is GCRA kept as a level instead of a theoretical arrival time (Source: ITU-T I.371 Annex A shows that the two
    decide alike); a level stays exact while no time passes, which a sum of small times does not.

    Attributes:
        level: units that stand in the bucket, as of the last `drain`.
    """

    __slots__ = ("at", "level")

    def __init__(self, now: float) -> None:
        self.level = 0.0
        self.at = now

    def drain(self, rate: Rate, now: float) -> None:
        """The level is that of `now`; an earlier `now` than before is ignored."""
        if now > self.at:
            self.level = max(0.0, self.level - (now - self.at) * rate.amount / rate.seconds)
            self.at = now

    def wait(self, rate: Rate, units: float) -> float | None:
        """Seconds until `units` fit: 0 when they do, None when they never will."""
        if units <= 0:
            return 0.0
        if units > rate.amount:
            return None
        excess = self.level + units - rate.amount
        return excess * rate.seconds / rate.amount if excess > SLACK else 0.0


class ReservingBucket(Bucket):
    """A bucket whose units may be handed back: it knows which part of the level each holder may still hand back.

    Units that nobody can hand back drain first, then those of the oldest holder, so that what the holders may hand
    back together never exceeds the level.
    """

    __slots__ = ("_held", "_holds")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._holds: OrderedDict[object, float] = OrderedDict()
        self._held = 0.0

    @property
    def holders(self) -> int:
        """How many could hand something back."""
        return len(self._holds)

    def drain(self, rate: Rate, now: float) -> None:
        super().drain(rate, now)
        while self._holds and self._held > self.level:
            holder, units = next(iter(self._holds.items()))
            kept = units - (self._held - self.level)
            if kept > SLACK:
                self._holds[holder] = kept
                self._held = self.level
            else:
                self._drop(holder)

    def reserve(self, holder: object, units: float) -> None:
        """`units` more stand in the bucket, and the holder may hand them back."""
        self.level += units
        self._held += units
        self._holds[holder] = self._holds.get(holder, 0.0) + units

    def refund(self, holder: object, units: float) -> None:
        """Up to `units` of what the holder may still hand back leave the bucket; the rest of it is spent."""
        self.level = max(0.0, self.level - min(units, self._drop(holder)))

    def overdraw(self, holder: object, units: float, rate: Rate) -> None:
        """`units` more are spent, whether they fit or not, down to a debt of one whole amount."""
        self._drop(holder)
        self.level = max(self.level, min(self.level + units, 2.0 * rate.amount))

    def _drop(self, holder: object) -> float:
        units = self._holds.pop(holder, 0.0)
        # Adding and subtracting floats must not leave a remainder that looks like somebody's units.
        self._held = self._held - units if self._holds else 0.0
        return units


class Gate:
    """One rate for one subject, such as the reconnects of one stream."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._bucket = Bucket(-math.inf)

    def take(self, now: float) -> float:
        """Seconds to wait; 0 means go, and only then one unit was taken."""
        self._bucket.drain(self._rate, now)
        wait = self._bucket.wait(self._rate, 1)
        if wait == 0:
            self._bucket.level += 1
        return math.inf if wait is None else wait
