"""A new kind of credential is a verifier from outside the package: no file of the package is touched for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from gateway.core.credential import Carriers, Facts, Presented, Verdict, Verifier
from gateway.core.principal import Principal
from gateway.web import credentials
from tests.kit.sse_client import Response, request
from tests.kit.upstream import ScriptedUpstream, openai_answer
from tests.seams.serving import Serving, serving
from tests.web.stage import completion, setting

STREAM = frozenset({"stream"})


class Badges:
    """Knows users by their badge, `badge-7`, as the credential, in a header or in a cookie."""

    carriers = Carriers(headers=frozenset({"X-Badge"}), cookies=frozenset({"badge"}))

    def __init__(self, scopes: frozenset[str] = STREAM) -> None:
        self.scopes = scopes
        self.asked: list[str] = []

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Verdict:
        own = facts.headers.get("x-badge") or facts.cookies.get("badge", "")
        secret = presented.secret if presented is not None else own
        self.asked.append(secret)
        kind, _, number = secret.partition("-")
        return Principal("user", number, "default", self.scopes) if kind == "badge" else None


class SlowBadges(Badges):
    """Asks somebody else first, and is answered when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()
        self.waiting = asyncio.Event()
        self.failure: Exception | None = None

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Verdict:
        return self._later(super().verify(presented, facts, now))

    async def _later(self, verdict: Verdict) -> Principal | None:
        self.waiting.set()
        await self.answered.wait()
        if self.failure is not None:
            raise self.failure
        assert verdict is None or isinstance(verdict, Principal)
        return verdict


class Broken:
    """Fails."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Verdict:
        raise self.failure


class Stage(NamedTuple):
    gateway: Serving
    upstream: ScriptedUpstream

    async def ask(self, secret: str, path: str = "/openai", **headers: str) -> Response:
        credential = {"Authorization": f"Bearer {secret}"} if secret else {}
        body = completion("hi")
        return await request(f"{self.gateway.url}{path}", method="POST", headers=credential | headers, body=body)

    async def status(self, secret: str, path: str = "/openai", **headers: str) -> int:
        async with await self.ask(secret, path, **headers) as answer:
            await answer.body()
            return answer.status


@asynccontextmanager
async def staged(*verifiers: Verifier, **auth: Any) -> AsyncIterator[Stage]:
    routes = [{"path": "/openai", "api": "openai"}, {"path": "/proxy", "api": "proxy"}]
    async with ScriptedUpstream(openai_answer("x")) as upstream:
        config = setting(upstream.url, routes, auth={"keys": [{"id": "web", "key": "k"}]} | auth)
        async with serving(config, verifiers=verifiers) as gateway:
            yield Stage(gateway, upstream)


async def test_user_of_another_kind_of_credential_is_let_in_beside_the_keys() -> None:
    badges = Badges()
    async with staged(badges) as stage:
        assert [await stage.status(secret) for secret in ("badge-7", "k", "nope", "")] == [200, 200, 401, 401]
        assert await stage.status("", **{"X-Badge": "badge-8"}) == 200
        assert badges.asked == ["badge-7", "nope", "", "badge-8"]
        assert len(stage.upstream.exchanges) == 3


async def test_user_owns_what_it_started_and_a_key_of_the_same_name_does_not() -> None:
    async with staged(Badges(), keys=[{"id": "7", "key": "seven"}]) as stage:
        async with await stage.ask("badge-7") as answer:
            path = f"/streams/{answer.headers['x-stream-id']}/stop"
            await answer.body()
        assert [await stage.status(secret, path) for secret in ("seven", "badge-8", "badge-7")] == [404, 404, 200]


async def test_verifiers_are_asked_in_order_until_one_knows() -> None:
    first, second = Badges(), Badges()
    async with staged(first, second) as stage:
        await stage.status("badge-7"), await stage.status("nope")
    assert (first.asked, second.asked) == (["badge-7", "nope"], ["nope"])


async def test_user_without_the_endpoints_scope_is_403() -> None:
    async with staged(Badges(frozenset({"publish"}))) as stage:
        assert await stage.status("badge-7") == 403
        assert not stage.upstream.exchanges


@pytest.mark.parametrize(("secret", "status"), [("badge-7", 200), ("nope", 401)])
async def test_request_waits_for_its_verifier_and_holds_up_nobody_else(secret: str, status: int) -> None:
    slow = SlowBadges()
    async with staged(slow) as stage:
        waiting = asyncio.create_task(stage.status(secret))
        await slow.waiting.wait()
        assert await stage.status("k") == 200
        assert (waiting.done(), len(stage.upstream.exchanges)) == (False, 1)
        slow.answered.set()
        assert await waiting == status


async def test_verifiers_after_one_that_waits_are_asked_too() -> None:
    slow, last = SlowBadges(), Badges()
    slow.answered.set()
    async with staged(slow, last) as stage:
        assert [await stage.status(secret) for secret in ("badge-7", "nope")] == [200, 401]
    assert last.asked == ["nope"]


@pytest.mark.parametrize("failure", [RuntimeError("bug"), ConnectionResetError(), TimeoutError(), ValueError()])
async def test_verifier_that_fails_lets_nobody_in(failure: Exception) -> None:
    """H11"""
    slow = SlowBadges()
    slow.failure = failure
    slow.answered.set()
    for verifier in (Broken(failure), slow):
        async with staged(verifier, anonymous=True) as stage:
            assert [await stage.status(secret) for secret in ("badge-7", "")] == [500, 500]
            assert not stage.upstream.exchanges
            assert await stage.status("k") == 200


async def test_verifier_that_never_answers_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "PATIENCE", 0.05)
    async with staged(SlowBadges(), anonymous=True) as stage:
        async with await stage.ask("badge-7") as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert not stage.upstream.exchanges


@pytest.mark.parametrize(("verifiers", "seen"), [([Badges()], False), ([], True)])
async def test_credential_of_a_verifier_reaches_no_upstream(verifiers: Sequence[Verifier], seen: bool) -> None:
    """Where nobody knows any credential, what looks like one is the upstream's own."""
    async with staged(*verifiers, keys=[], anonymous=True) as stage:
        assert await stage.status("badge-7", "/proxy") == 200
        [exchange] = stage.upstream.exchanges
        assert ("badge-7" in exchange.head.decode()) is seen
        assert await stage.status("nope", "/proxy") == (200 if seen else 401)


CARRIED = [{"X-Badge": "badge-7"}, {"Cookie": "theme=dark; badge=badge-7"}, {"Authorization": "Bearer badge-7"}]


async def test_what_a_verifier_reads_reaches_no_upstream() -> None:
    async with staged(Badges()) as stage:
        for carried in CARRIED:
            assert await stage.status("", "/proxy", **carried, **{"X-Own": "kept"}) == 200
            head = stage.upstream.exchanges[-1].head.decode()
            assert ("badge" in head.lower(), "kept" in head) == (False, True)
            assert ("theme=dark" in head) is ("Cookie" in carried)
        # Nor with a credential that another verifier knows.
        assert await stage.status("k", "/proxy", **{"X-Badge": "badge-7"}) == 200
        assert "badge" not in stage.upstream.exchanges[-1].head.decode().lower()


async def test_what_a_verifier_reads_is_a_credential_where_nobody_needs_one() -> None:
    async with staged(Badges(), anonymous=True) as stage:
        bad = [{name: value.replace("badge-7", "nope") for name, value in carried.items()} for carried in CARRIED]
        assert [await stage.status("", **carried) for carried in (*CARRIED, *bad, {})] == [200] * 3 + [401] * 3 + [200]
