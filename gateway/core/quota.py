"""Who may start what now: one decision over request rate, open streams and token budget, and the headers that say so.

Invariants:

- A decision takes everything it was asked for or nothing.
- In no stretch of `t` seconds does a rate let through more than its amount plus what drains in `t` (see `Bucket`).
- A stream slot is given back exactly once, however often its lease is closed.
- A refund never gives back what has drained already, so reserving much and using little gains nobody anything.
- An account at rest equals no account, so forgetting it loses nothing. Only above `max_keys` are others forgotten.

`now` is any clock that does not run backwards, in seconds; the wall clock plays no part. This file does not know who a
principal is, what a token costs, or how a refusal reaches a client.
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, Literal, NamedTuple

from gateway.core.rate import Rate

LimitName = Literal["requests", "streams", "tokens", "address"]

SLACK: Final = 1e-6
"""Units of rounding error forgiven: who waits as told is let in, and no whole unit is ever won."""
AHEAD: Final = 64
"""Tokens that a running stream takes at most beyond what it has used, and hands back at its end."""
SHARE_AHEAD: Final = 0.01
"""Share of a budget that its streams take ahead together, roughly: the others must not run out of what nobody used."""
SLOT_WAIT: Final = 2.0
"""Seconds after which to ask again for a stream slot: nobody knows when another stream ends."""
SWEEP: Final = 4
"""Accounts examined for rest whenever one is added; more than one, so the map shrinks to those in use."""
SAMPLE: Final = 64
"""Accounts examined for rest, then for age, before one is evicted: bounds the time a full map costs."""
MAX_INTEGER: Final = 999_999_999_999_999
"""The largest integer of a structured field. Source: RFC 9651 3.3.1."""


class Plan(NamedTuple):
    """What one principal may use; None is unlimited.

    Attributes:
        name: the plan's key in the config.
        requests: starts and resumes in a window.
        streams: slots at once.
        tokens: input and output tokens in a window.
    """

    name: str
    requests: Rate | None = None
    streams: int | None = None
    tokens: Rate | None = None


class Quota(NamedTuple):
    """Where a principal stands with one limit.

    Attributes:
        name: `requests`, `streams` or `tokens`.
        limit: what fits at once.
        window: seconds in which a used up limit is whole again, None for `streams`.
        remaining: what fits now, at least 0.
        reset: seconds until nothing is used, 0 when nothing is and for `streams`.
    """

    name: LimitName
    limit: int
    window: float | None
    remaining: int
    reset: float


class Refusal(NamedTuple):
    """Nothing was taken.

    Attributes:
        limit: who refused; of several the one to wait longest for, `address` for any limit of an `AddressLimiter`.
        retry_after: seconds after which the same demand may fit, None when it is larger than the whole limit.
        quota: where the principal stands with that limit.
    """

    limit: LimitName
    retry_after: float | None
    quota: Quota

    @property
    def retryable(self) -> bool:
        """Whether the same demand can ever fit."""
        return self.retry_after is not None

    @property
    def code(self) -> str:
        """The key of `errors.KINDS`."""
        return {"streams": "too_many_streams", "tokens": "token_limit"}.get(self.quota.name, "rate_limited")


class Demand(NamedTuple):
    """What one decision is about, each at least 0."""

    requests: int
    streams: int
    tokens: int


class Bucket:
    """A leaking meter: units stand in it, drain at the rate, and never above the rate's amount are more let in.

    This is GCRA kept as a level instead of a theoretical arrival time (Source: ITU-T I.371 Annex A shows that the two
    decide alike); a level stays exact while no time passes, which a sum of small times does not.
    """

    __slots__ = ("at", "level")

    def __init__(self, now: float) -> None:
        self.level = 0.0
        self.at = now

    def drain(self, rate: Rate | None, now: float) -> None:
        """The level is that of `now`. Without a rate nothing is remembered; an earlier `now` than before is ignored."""
        leaked = math.inf if rate is None else (now - self.at) * rate.amount / rate.seconds
        self.level = max(0.0, self.level - max(0.0, leaked))
        self.at = max(self.at, now)

    def wait(self, rate: Rate, units: float) -> float | None:
        """Seconds until `units` fit: 0 when they do, None when they never will."""
        if units <= 0:
            return 0.0
        if units > rate.amount:
            return None
        excess = self.level + units - rate.amount
        return excess * rate.seconds / rate.amount if excess > SLACK else 0.0

    def quota(self, name: LimitName, rate: Rate) -> Quota:
        """Where this bucket stands as of its last `drain`."""
        remaining = max(0, math.floor(rate.amount - self.level + SLACK))
        return Quota(name, rate.amount, rate.seconds, remaining, self.level * rate.seconds / max(1, rate.amount))


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


class Budget(Bucket):
    """A bucket whose units may be handed back: per lease it knows the part of the level that still is that lease's.

    What drains is first what nobody can hand back, then the oldest hold, so the holds together never exceed the level.
    """

    __slots__ = ("_held", "_holds")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._holds: OrderedDict[Lease, float] = OrderedDict()
        self._held = 0.0

    def drain(self, rate: Rate | None, now: float) -> None:
        super().drain(rate, now)
        while self._holds and self._held > self.level:
            self._erode(*next(iter(self._holds.items())))

    def _erode(self, lease: "Lease", hold: float) -> None:
        kept = hold - (self._held - self.level)
        if kept > SLACK:
            self._holds[lease] = kept
            self._held = self.level
        else:
            self._drop(lease)

    def _drop(self, lease: "Lease") -> float:
        hold = self._holds.pop(lease, 0.0)
        # Summing up floats must not leave a remainder that looks like somebody's hold.
        self._held = self._held - hold if self._holds else 0.0
        return hold

    @property
    def holders(self) -> int:
        """Leases that could hand something back."""
        return len(self._holds)

    def reserve(self, lease: "Lease", units: int) -> None:
        """`units` more stand in the bucket, and are the lease's to hand back."""
        self.level += units
        self._held += units
        self._holds[lease] = self._holds.get(lease, 0.0) + units

    def refund(self, lease: "Lease", units: int) -> None:
        """At most `units` of what the lease still holds are gone from the level; the rest of its hold is spent."""
        self.level = max(0.0, self.level - min(units, self._drop(lease)))

    def overdraw(self, lease: "Lease", units: int, rate: Rate) -> None:
        """`units` more are spent, whether they fit or not, down to a debt of one whole amount."""
        self._drop(lease)
        self.level = max(self.level, min(self.level + units, 2.0 * rate.amount))


class Account:
    """What one principal uses under one plan. Shared by the map and by open leases, so eviction loses no slot."""

    __slots__ = ("plan", "requests", "streams", "tokens", "used")

    def __init__(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.requests = Bucket(now)
        self.tokens = Budget(now)
        self.streams = 0
        self.used = now

    def drain(self, plan: Plan, now: float) -> None:
        """All limits are those of `now`, and from now on those of `plan`: a reload may have changed it."""
        self.plan = plan
        self.requests.drain(plan.requests, now)
        self.tokens.drain(plan.tokens, now)

    def at_rest(self, now: float) -> bool:
        """Whether this account equals a new one."""
        self.drain(self.plan, now)
        return not self.streams and not self.requests.level and not self.tokens.level

    def quotas(self) -> list[Quota]:
        """Where the principal stands, one entry a limit the plan has."""
        return list(self._quotas())

    def _quotas(self) -> Iterator[Quota]:
        plan = self.plan
        if plan.requests is not None:
            yield self.requests.quota("requests", plan.requests)
        if plan.streams is not None:
            yield Quota("streams", plan.streams, None, max(0, plan.streams - self.streams), 0.0)
        if plan.tokens is not None:
            yield self.tokens.quota("tokens", plan.tokens)

    def refusal(self, demand: Demand) -> Refusal | None:
        """The refusal to wait longest for, None when everything fits."""
        refusals = [Refusal(q.name, wait, q) for q in self._quotas() if (wait := self._wait(q.name, demand)) != 0]
        return max(refusals, key=lambda r: math.inf if r.retry_after is None else r.retry_after, default=None)

    def _wait(self, limit: LimitName, demand: Demand) -> float | None:
        plan = self.plan
        if limit == "requests" and plan.requests is not None:
            return self.requests.wait(plan.requests, demand.requests)
        if limit == "tokens" and plan.tokens is not None:
            return self.tokens.wait(plan.tokens, demand.tokens)
        return self._slot_wait(demand.streams)

    def _slot_wait(self, streams: int) -> float | None:
        limit = self.plan.streams
        if limit is None or not streams or self.streams + streams <= limit:
            return 0.0
        return SLOT_WAIT if streams <= limit else None

    def take(self, demand: Demand, now: float) -> "Lease":
        """Everything demanded is taken, whether it fits or not."""
        self.used = now
        self.requests.level += demand.requests if self.plan.requests else 0
        self.streams += demand.streams
        return Lease(self, demand)


class Lease:
    """What one admission took: its stream slots, and its tokens until they are settled.

    Attributes:
        reserved: tokens taken from the budget so far; as long as no more are used, there is nothing to `spend`. Without
            a budget, more than anybody uses.
    """

    __slots__ = ("_account", "_plan", "_settled", "_streams", "reserved")

    def __init__(self, account: Account, demand: Demand) -> None:
        self._account = account
        self._plan = account.plan
        self._streams = demand.streams
        self.reserved = demand.tokens if self._plan.tokens is not None else sys.maxsize
        self._settled = False
        if self._plan.tokens is not None and demand.tokens:
            account.tokens.reserve(self, demand.tokens)

    def spend(self, tokens_total_so_far: int, now: float) -> bool:
        """Whether the stream may go on: what exceeds the reservation was taken from the budget.

        Args:
            tokens_total_so_far: input and output tokens since the lease began.
            now: seconds.
        """
        rate, extra = self._plan.tokens, tokens_total_so_far - self.reserved
        if rate is None or extra <= 0:
            return True
        return not self._settled and self._extend(rate, extra, now)

    def _extend(self, rate: Rate, extra: int, now: float) -> bool:
        budget = self._account.tokens
        budget.drain(rate, now)
        if budget.wait(rate, extra) != 0:
            return False
        # Something for what comes next, where there is room: asking again at every event is a tenth of its cost.
        ahead = min(AHEAD, int(SHARE_AHEAD * rate.amount / (budget.holders + 1)))
        if budget.wait(rate, extra + ahead) != 0:
            ahead = 0
        budget.reserve(self, extra + ahead)
        self.reserved += extra + ahead
        return True

    def settle(self, tokens: int, now: float) -> None:
        """The reservation is replaced by what was used; only the first call counts, before or after `close`.

        Args:
            tokens: input and output tokens in all, at least 0. An excess may put the budget into debt, by at most
                one whole window.
            now: seconds.
        """
        rate = self._plan.tokens
        if self._settled or rate is None:
            return
        self._settled = True
        self._account.tokens.drain(rate, now)
        unused = self.reserved - max(0, tokens)
        if unused >= 0:
            self._account.tokens.refund(self, unused)
        else:
            self._account.tokens.overdraw(self, -unused, rate)

    def close(self, now: float) -> None:
        """The stream slots are free; calling it again does nothing. Tokens nobody settles stay spent."""
        self._account.streams -= self._streams
        self._streams = 0
        self._account.used = max(self._account.used, now)


class Limiter:
    """The limits of all principals, in memory.

    Args:
        max_keys: accounts kept, at least 1. Those at rest go first, then the one longest unused of a sample, one
            without open streams if there is any; that one's use is forgotten and counted in `evicted`.
    """

    def __init__(self, max_keys: int = 100_000) -> None:
        self._max_keys = max_keys
        self._accounts: OrderedDict[tuple[str, str], Account] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def admit(
        self, plan: Plan, principal: str, tokens: int, now: float, *, streams: int = 1, requests: int = 1
    ) -> Lease | Refusal:
        """A lease holding all that was asked for, or a refusal and nothing was taken.

        Args:
            plan: the principal's plan.
            principal: whose account.
            tokens: the estimate to reserve, 0 where no model is asked.
            now: seconds.
            streams: slots to hold until `Lease.close`.
            requests: 0 for what belongs to a request counted already.
        """
        return self._decide(plan, principal, Demand(requests, streams, max(0, tokens)), now)

    def touch(self, plan: Plan, principal: str, now: float) -> Refusal | None:
        """None and one request was taken, or a refusal: for requests that start no generation."""
        decision = self._decide(plan, principal, Demand(1, 0, 0), now)
        return decision if isinstance(decision, Refusal) else None

    def snapshot(self, plan: Plan, principal: str, now: float) -> list[Quota]:
        """Where the principal stands, one entry a limit the plan has. Makes no account."""
        account = self._account(plan, principal, now)
        return account.quotas()

    def _account(self, plan: Plan, principal: str, now: float) -> Account:
        account = self._accounts.get((plan.name, principal)) or Account(plan, now)
        account.drain(plan, now)
        return account

    def _decide(self, plan: Plan, principal: str, demand: Demand, now: float) -> Lease | Refusal:
        account = self._account(plan, principal, now)
        refusal = account.refusal(demand)
        if refusal is not None:
            return refusal
        self._keep((plan.name, principal), account, now)
        return account.take(demand, now)

    def _keep(self, key: tuple[str, str], account: Account, now: float) -> None:
        if key not in self._accounts:
            self._make_room(now)
            self._accounts[key] = account

    def _make_room(self, now: float) -> None:
        for _ in range(min(SWEEP, len(self._accounts))):
            self._examine(now)
        for _ in range(min(SAMPLE, len(self._accounts))):
            if len(self._accounts) < self._max_keys:
                return
            self._examine(now)
        if len(self._accounts) >= self._max_keys:
            self._evict()

    def _examine(self, now: float) -> None:
        # The map's order is that of a clock's hand, not of use: what is busy goes to the end and is met again last.
        key, account = self._accounts.popitem(last=False)
        if not account.at_rest(now):
            self._accounts[key] = account

    def _evict(self) -> None:
        sample = islice(self._accounts.items(), SAMPLE)
        key, _ = min(sample, key=lambda item: (item[1].streams > 0, item[1].used))
        del self._accounts[key]
        self.evicted += 1


class AddressLimiter:
    """The limits of all client addresses, whoever they say they are. Refusals are of the limit `address`.

    Args:
        requests: requests of one address in a window, None is unlimited.
        connections: connections of one address at once, None is unlimited.
        max_keys: as for `Limiter`.
    """

    def __init__(self, requests: Rate | None, connections: int | None, max_keys: int = 100_000) -> None:
        self._limiter = Limiter(max_keys)
        self.plan = Plan("address", requests, connections)
        """May be replaced: connections that are open stay counted."""

    def __len__(self) -> int:
        return len(self._limiter)

    @property
    def evicted(self) -> int:
        """Addresses in use that were forgotten, as `Limiter.evicted`."""
        return self._limiter.evicted

    def request(self, address: str, now: float) -> Refusal | None:
        """None and one request was taken, or a refusal.

        Args:
            address: as `credential.address_key` gives it.
            now: seconds.
        """
        refusal = self._limiter.touch(self.plan, address, now)
        return refusal and refusal._replace(limit="address")

    def connect(self, address: str, now: float) -> Lease | Refusal:
        """A lease on one connection, to be closed with it, or a refusal. Arguments as for `request`."""
        decision = self._limiter.admit(self.plan, address, 0, now, requests=0)
        return decision._replace(limit="address") if isinstance(decision, Refusal) else decision


def rate_limit_headers(quotas: Sequence[Quota], refusal: Refusal | None = None) -> dict[str, str]:
    """`RateLimit` and `RateLimit-Policy` for every quota, and `Retry-After` for a refusal that time cures.

    Source: draft-ietf-httpapi-ratelimit-headers-10 3 and 4; RFC 9110 10.2.3.
    """
    headers: dict[str, str] = {}
    if quotas:
        headers["RateLimit-Policy"] = ", ".join(map(_policy, quotas))
        headers["RateLimit"] = ", ".join(_service_limit(quota, refusal) for quota in quotas)
    if refusal is not None and refusal.retry_after is not None:
        headers["Retry-After"] = str(_seconds(refusal.retry_after, least=1))
    return headers


def _policy(quota: Quota) -> str:
    limit = min(quota.limit, MAX_INTEGER)
    if quota.window is None:
        return f'"{quota.name}";q={limit};qu="concurrent-requests"'
    # No unit is registered for tokens, and to leave it out would claim that they are requests.
    unit = ';qu="tokens"' if quota.name == "tokens" else ""
    return f'"{quota.name}";q={limit}{unit};w={_seconds(quota.window, least=1)}'


def _service_limit(quota: Quota, refusal: Refusal | None) -> str:
    item = f'"{quota.name}";r={min(quota.remaining, MAX_INTEGER)}'
    # The draft wants `t` and Retry-After to name the same moment.
    refused = refusal is not None and refusal.quota.name == quota.name and refusal.limit != "address"
    reset = refusal.retry_after if refused and refusal is not None else quota.reset
    if reset is None or quota.window is None:
        return item
    return f"{item};t={_seconds(reset, least=0)}"


def _seconds(seconds: float, least: int) -> int:
    return max(least, math.ceil(min(seconds, MAX_INTEGER) - SLACK))


def openai_rate_limit_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """OpenAI's `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for the limits there are."""
    headers: dict[str, str] = {}
    for quota in quotas:
        if quota.window is not None:
            headers[f"x-ratelimit-limit-{quota.name}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{quota.name}"] = str(quota.remaining)
            headers[f"x-ratelimit-reset-{quota.name}"] = _duration(quota.reset)
    return headers


def _duration(seconds: float) -> str:
    """A duration as Go prints it, rounded up: `0s 20ms 1s 6m0s 1h0m0s`."""
    if 0 < seconds < 1:
        return f"{min(999, math.ceil(seconds * 1000 - SLACK))}ms"
    minutes, rest = divmod(_seconds(seconds, least=0), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
