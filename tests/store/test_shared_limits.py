"""Limits of two gateways that share a store, as a client sees them."""

from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.kit.redis import Redis
from tests.kit.sse_client import Response, request
from tests.kit.upstream import Exchange, Hang, ScriptedUpstream, Step, openai_answer, openai_delta, sse_head
from tests.seams.serving import Serving, serving
from tests.store.desks import until
from tests.web.stage import completion, setting

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLANS = {"default": {"requests": "1000/h", "streams": 2, "tokens": "100000/day"}}
numbers = count()


class House(NamedTuple):
    """Two gateways and the Redis between them."""

    gateways: list[Serving]
    redis: Redis

    async def ask(self, gateway: int, key: str, question: str = "short", *, stream: bool = False) -> Response:
        """The answer of one gateway; the questions `short` and `endless` are answered so."""
        headers = {"Authorization": f"Bearer {key}"}
        body = completion(question, stream=stream)
        return await request(f"{self.gateways[gateway].url}/openai", method="POST", body=body, headers=headers)

    def key(self) -> str:
        """A key that nobody has used."""
        return secret(next(numbers))


def secret(number: int) -> str:
    return f"a-secret-of-user-{number:04}"


def script(exchange: Exchange) -> Sequence[Step]:
    endless = exchange.json()["messages"][0]["content"] == "endless"
    return [sse_head(), openai_delta("Hi"), Hang()] if endless else openai_answer("Hi")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    keys = [{"id": f"user-{number}", "key": secret(number)} for number in range(20)]
    routes = [{"path": "/openai", "api": "openai", "stream": {"on_disconnect": {"after": "0s"}}}]
    async with Redis(tmp_path_factory.mktemp("redis") / "one") as redis, ScriptedUpstream(script) as upstream:
        config = setting(upstream.url, routes) | {"store": redis.url, "plans": PLANS, "auth": {"keys": keys}}
        async with serving(config) as one, serving(config) as two:
            for each in (one, two):
                assert each.app.gateway.shared is not None
                await each.app.gateway.shared.limiter._count_nodes()
            yield House([one, two], redis)


async def test_streams_of_one_key_count_on_all_nodes(house: House) -> None:
    key = house.key()
    async with await house.ask(0, key, "endless", stream=True), await house.ask(1, key, "endless", stream=True):
        async with await house.ask(0, key) as refused:
            assert refused.status == 429
            assert refused.headers["x-ratelimit-remaining-requests"] == "998"
            assert '"streams";r=0' in refused.headers["ratelimit"]
            assert refused.headers["retry-after"] == "2"
        async with await house.ask(1, house.key()) as other:
            assert other.status == 200
    await until(lambda: _served(house, key))


async def _served(house: House, key: str) -> bool:
    async with await house.ask(1, key) as answer:
        return answer.status == 200


async def test_headers_tell_what_is_left_over_all_nodes(house: House) -> None:
    """And the slot of an answer that has ended is free wherever its client asks next."""
    key, left = house.key(), []
    for number in range(20):
        async with await house.ask(number % 2, key, stream=number % 3 == 0) as answer:
            assert answer.status == 200, await answer.body()
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
            await answer.body()
    assert left == list(range(999, 979, -1))


async def test_requests_are_served_while_the_store_hangs(house: House) -> None:
    """R3: each gateway by its half of the limits."""
    key = house.key()
    house.redis.pause()
    try:
        async with await house.ask(0, key, "endless", stream=True) as first:
            assert first.status == 200
            async with await house.ask(0, key) as second:
                assert (second.status, '"streams";q=1' in second.headers["ratelimit-policy"]) == (429, True)
            async with await house.ask(1, key) as elsewhere:
                assert elsewhere.status == 200
                assert elsewhere.headers["x-ratelimit-limit-requests"] == "500"
    finally:
        house.redis.resume()
    await until(lambda: _back(house))
    await until(lambda: _remains(house, key, {"requests": 998, "streams": 2}))


async def _back(house: House) -> bool:
    return all(each.app.gateway.shared is not None and each.app.gateway.shared.connection.up for each in house.gateways)


async def _remains(house: House, key: str, left: dict[str, int]) -> bool:
    gateway = house.gateways[0].app.gateway
    assert gateway.shared is not None
    who = f"key:user-{int(key[-4:])}"
    quotas = await gateway.shared.limiter.quotas(gateway.snapshot.plans["default"], who)
    return left.items() <= {quota.name: quota.remaining for quota in quotas}.items()
