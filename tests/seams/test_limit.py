"""A new limit is a class outside the package and an entry in a plan: no file of the package is touched for it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.core.limiter import STRIDE, Lease, Limiter, Refusal
from gateway.core.limits import Hold, Limit, Plan, Quota, RateLimit, Standing
from gateway.core.rate import Rate
from tests.kit.sse_client import request
from tests.kit.upstream import Hang, Pause, ScriptedUpstream, Step, openai_answer, openai_delta, sse_head
from tests.seams.serving import Serving, serving
from tests.web.stage import completion, setting

DAY = 86400.0


@dataclass(frozen=True)
class Images(Limit):
    """So many images in all. Where nobody says how many, every hundred tokens that were begun are one."""

    amount: int

    def standing(self, now: float) -> "Drawn":
        return Drawn(self)

    def units(self, amounts: Mapping[str, float]) -> float | None:
        return amounts.get("images", -(-amounts.get("tokens", 0) // 100))


class Drawn(Standing[Images]):
    drawn = 0.0

    @property
    def at_rest(self) -> bool:
        return not self.drawn

    def drain(self, now: float) -> None: ...

    def wait(self, units: float) -> float | None:
        return 0.0 if not units or self.drawn + units <= self.limit.amount else None

    def take(self, units: float) -> Hold:
        self.drawn += units
        return Canvas(self, units)

    def quota(self) -> Quota:
        return Quota(self.limit.name, self.limit.amount, DAY, int(self.limit.amount - self.drawn), 0.0)


class Canvas(Hold):
    grows = True

    def __init__(self, drawn: Drawn, units: float) -> None:
        super().__init__(drawn.limit, units)
        self.standing = drawn

    def spend(self, units: float, now: float) -> bool:
        more = max(0.0, units - self.reserved)
        if self.standing.wait(more) != 0:
            return False
        self.standing.drawn += more
        self.reserved += more
        return True

    def settle(self, units: float, now: float) -> None:
        self.standing.drawn += units - self.reserved
        self.reserved = units


PLAN = Plan("artist", (RateLimit("requests", Rate(100, DAY)), Images("images", 4, code="token_limit")))


def left(limiter: Limiter) -> dict[str, int]:
    return {quota.name: quota.remaining for quota in limiter.snapshot(PLAN, "key:ann", 0.0)}


def test_limiter_admits_settles_and_refuses_by_a_limit_that_it_never_heard_of() -> None:
    limiter = Limiter()
    lease = limiter.admit(PLAN, "key:ann", {"requests": 1, "images": 3}, 0.0)
    assert isinstance(lease, Lease)
    assert (lease.reserved("images"), lease.reserved("tokens")) == (3, float("inf"))
    assert (lease.due("images", 1), lease.due("tokens", 100)) == (3, 100 + STRIDE)
    refusal = limiter.admit(PLAN, "key:ann", {"requests": 1, "images": 2}, 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.limit, refusal.retryable, refusal.code) == ("images", False, "token_limit")
    assert left(limiter) == {"requests": 99, "images": 1}
    assert [lease.spend({"images": count}, 0.0) for count in (3, 4, 5)] == [True, True, False]
    lease.settle({"images": 2}, 0.0)
    lease.close(0.0)
    assert left(limiter) == {"requests": 99, "images": 2}


def test_limiter_keeps_what_was_used_when_a_reload_changes_the_limit() -> None:
    limiter = Limiter()
    limiter.admit(PLAN, "key:ann", {"images": 3}, 0.0)
    larger = Plan("artist", (Images("images", 10), RateLimit("requests", Rate(100, DAY))))
    assert [quota.remaining for quota in limiter.snapshot(larger, "key:ann", 0.0)] == [7, 100]
    assert limiter.snapshot(Plan("artist"), "key:ann", 0.0) == []
    assert left(limiter) == {"requests": 100, "images": 4}


def script() -> list[list[Step]]:
    tens = [step for _ in range(40) for step in (openai_delta("four") * 10, Pause(0.01))]
    long: list[Step] = [sse_head(), *tens, Hang()]
    return [openai_answer("x"), openai_answer("x"), long, openai_answer("x")]


@pytest.fixture
async def gateway() -> AsyncIterator[Serving]:
    routes = [{"path": "/openai", "api": "openai"}]
    async with ScriptedUpstream(*script()) as upstream, serving(setting(upstream.url, routes)) as gateway:
        shared = gateway.app.gateway
        shared.snapshot = replace(shared.snapshot, plans={"default": PLAN})
        yield gateway


async def ask(gateway: Serving, **fields: Any) -> tuple[int, str, bytes]:
    async with await request(f"{gateway.url}/openai", method="POST", body=completion("hi", **fields)) as answer:
        return answer.status, answer.headers["ratelimit"].rpartition(", ")[2], await answer.body()


async def test_gateway_holds_clients_to_a_limit_that_it_never_heard_of(gateway: Serving) -> None:
    """Each start reserves 3 images for 256 tokens; an answer of 8 tokens settles at 1."""
    assert (await ask(gateway))[:2] == (200, '"images";r=1;t=0')
    status, quota, body = await ask(gateway)
    assert (status, quota) == (200, '"images";r=0;t=0')
    status, quota, body = await ask(gateway)
    assert (status, quota) == (429, '"images";r=2')
    assert b"larger than the plan's images limit" in body
    refusals = gateway.app.gateway.metrics.rate_limited.labels("artist", "images")
    assert refusals.value == 1


async def test_gateway_ends_a_stream_that_uses_such_a_limit_up(gateway: Serving) -> None:
    await ask(gateway), await ask(gateway)
    status, _, body = await ask(gateway, stream=True, max_tokens=150)
    assert (status, body.count(b'"budget"')) == (200, 1)
    assert 190 <= body.count(b"four") <= 200 + STRIDE + 10
