"""Tickets that nodes share: two nodes in this process, and a real Redis between them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.core.errors import GatewayError
from gateway.core.principal import Principal, Relying
from gateway.identity.tickets import Ticket
from gateway.store.state import SharedState
from gateway.store.tickets import SharedTicket
from tests.kit.redis import Redis
from tests.store.shared import everything, later, shared_state, up, without_expiry

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB = Principal("key", "margarethe", "gold", frozenset({"stream", "publish"}))
STREAM = "AAAAAAAAAAAAAAAAAAAAAA"
ROUTE, HERE = "/chat", "192.0.2.7"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    async with Redis(tmp_path_factory.mktemp("redis") / "r") as redis:
        yield redis


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(redis: Redis) -> AsyncIterator[list[SharedState]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(shared_state(redis)) for _ in range(2)]


async def shown(
    node: SharedState, text: str, route: str = ROUTE, address: str = HERE, *, read: bool = False, starts: bool = True
) -> Ticket | None:
    """What a request with this ticket gets; `read`: it proves that it has read the stream."""
    return await node.tickets.redeem(text, route, address, time.time(), lambda _: read, starts=starts)


async def started(node: SharedState, text: str, stream_id: str = STREAM) -> None:
    """A request with this ticket starts a stream at this node."""
    ticket = await shown(node, text)
    assert ticket is not None
    assert ticket.stream_id == ""
    await node.tickets.claim(ticket, 60.0)
    assert node.tickets.starts(ticket)
    node.tickets.use(ticket, stream_id, 30.0, 60.0)
    assert not node.tickets.starts(ticket)
    await node.tickets.written()


async def known(redis: Redis, stream_id: str = STREAM) -> None:
    """Some node has this stream."""
    await redis.ask("HSET", f"gateway:s:{stream_id}", "a", "{}")
    await redis.ask("EXPIRE", f"gateway:s:{stream_id}", 600)


async def test_ticket_of_one_node_is_good_at_another(nodes: list[SharedState]) -> None:
    one, other = nodes
    text = await one.tickets.issue(WEB, 30.0)
    ticket = await shown(other, text)
    assert ticket is not None
    assert (ticket.principal, ticket.stream_id, ticket.used) == (WEB, "", False)


async def test_principal_expires_on_the_way(nodes: list[SharedState]) -> None:
    one, other = nodes
    expiring = Principal("jwt", "i:anna", "default", frozenset({"stream"}), time.time() + 0.2)
    text = await one.tickets.issue(expiring, 30.0)
    assert await shown(other, text) is not None
    assert expiring.expires is not None
    assert await other.tickets.redeem(text, ROUTE, HERE, expiring.expires, lambda _: True) is None


class Assurance:
    """A credential that somebody has to be asked about while streams run."""

    def left(self) -> float:
        return 30.0

    def rely(self, stream: Relying) -> None:
        raise NotImplementedError

    def leave(self, stream: Relying) -> None:
        raise NotImplementedError


async def test_node_that_issued_it_goes_on_asking_about_the_credential(nodes: list[SharedState]) -> None:
    one, other = nodes
    assurance = Assurance()
    user = Principal("user", "anna", "default", frozenset({"stream"}), time.time() + 30, assurance)
    text = await one.tickets.issue(user, 30.0)
    here, there = await shown(one, text), await shown(other, text)
    assert here is not None
    assert there is not None
    assert (here.principal.assurance, there.principal.assurance) == (assurance, None)
    assert here.principal.expires == there.principal.expires


@pytest.mark.parametrize("text", ["", "x", "A" * 32, "A" * 33, "\ud800" * 32])
async def test_what_is_no_ticket_is_worth_nothing(nodes: list[SharedState], text: str) -> None:
    assert await shown(nodes[0], text) is None


async def test_ticket_is_bound_to_route_and_address_of_its_first_use(nodes: list[SharedState]) -> None:
    one, other = nodes
    text = await one.tickets.issue(WEB, 30.0)
    assert await shown(other, text) is not None
    for node in nodes:
        assert await shown(node, text, "/other") is None
        assert await shown(node, text, address="192.0.2.8") is None
        assert await shown(node, text) is not None


async def test_ticket_expires_unused(nodes: list[SharedState]) -> None:
    one, other = nodes
    text = await one.tickets.issue(WEB, 0.05)
    async with asyncio.timeout(5):
        while await shown(other, text) is not None:  # noqa: ASYNC110 - Redis says nothing when it drops a key
            await asyncio.sleep(0.02)


async def test_one_ticket_starts_one_stream_over_all_nodes(nodes: list[SharedState], redis: Redis) -> None:
    text = await nodes[0].tickets.issue(WEB, 30.0)
    tickets = [await shown(node, text) for node in nodes * 5]

    claims = [node.tickets.claim(ticket, 60.0) for node, ticket in zip(nodes * 5, tickets, strict=True) if ticket]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert len(results) == 10
    winner = results.index(None)
    refused = [result for result in results if isinstance(result, GatewayError)]
    assert [(error.code, error.retry_after) for error in refused] == [("auth_unavailable", 1.0)] * 9
    with pytest.raises(GatewayError, match="Credentials"):  # it comes back, as the stream is about to start
        await shown(nodes[1 - winner % 2], text)
    ticket = tickets[winner]
    assert isinstance(ticket, SharedTicket)
    await known(redis)
    nodes[winner % 2].tickets.use(ticket, STREAM, 30.0, 60.0)
    await nodes[winner % 2].tickets.written()
    for node in nodes:
        again = await shown(node, text)
        assert again is not None
        assert again.stream_id == STREAM
        assert not node.tickets.starts(again)
        with pytest.raises(GatewayError):
            await node.tickets.claim(again, 60.0)


async def test_ticket_of_a_request_that_was_refused_can_be_used_again(nodes: list[SharedState], redis: Redis) -> None:
    one, other = nodes
    text = await one.tickets.issue(WEB, 30.0)
    ticket = await shown(one, text)
    assert isinstance(ticket, SharedTicket)
    await one.tickets.claim(ticket, 3600.0)
    assert await redis.ask("PTTL", f"gateway:t:{ticket.digest}") > 60_000
    one.tickets.release(ticket)
    await one.tickets.written()
    assert await redis.ask("PTTL", f"gateway:t:{ticket.digest}") <= 30_000
    await started(other, text)


async def test_claim_of_a_dead_node_is_never_given_to_another(nodes: list[SharedState], redis: Redis) -> None:
    one, other = nodes
    text = await one.tickets.issue(WEB, 30.0)
    ticket = await shown(one, text)
    assert isinstance(ticket, SharedTicket)
    await one.tickets.claim(ticket, 60.0)
    claim = await redis.ask("HGET", f"gateway:t:{ticket.digest}", "c")
    name, _, since = claim.partition(":")
    await redis.ask("HSET", f"gateway:t:{ticket.digest}", "c", f"{name}:{int(since) - 11_000}")
    assert await shown(other, text) is None


async def test_ticket_whose_stream_is_gone_is_worth_nothing(nodes: list[SharedState], redis: Redis) -> None:
    one, other = nodes
    text = await one.tickets.issue(WEB, 30.0)
    await started(one, text, "B" * 22)
    assert await shown(other, text) is None
    await known(redis, "B" * 22)
    assert await shown(other, text) is not None


async def test_what_was_read_out_or_is_old_needs_a_proof_anywhere(nodes: list[SharedState], redis: Redis) -> None:
    one, other = nodes
    await known(redis)
    text = await one.tickets.issue(WEB, 30.0)
    await started(one, text)
    ticket = await shown(one, text)
    assert ticket is not None
    one.tickets.read_out(ticket)
    await one.tickets.written()
    for node in nodes:
        assert await shown(node, text) is None
        assert await shown(node, text, read=True) is not None
    old = await one.tickets.issue(WEB, 30.0)
    await started(one, old)
    digest = one.tickets._digest(old)
    await redis.ask("HSET", f"gateway:t:{digest}", "w", int(time.time() * 1000) - 1)
    assert await shown(other, old) is None
    assert await shown(other, old, read=True) is not None


async def test_ticket_for_a_stream_only_reads_it(nodes: list[SharedState], redis: Redis) -> None:
    one, other = nodes
    await known(redis)
    text = await one.tickets.issue(WEB, 30.0, STREAM)
    ticket = await shown(other, text, "/streams", starts=False)
    assert ticket is not None
    assert ticket.stream_id == STREAM
    with pytest.raises(GatewayError):
        await other.tickets.claim(ticket, 60.0)
    other.tickets.use(ticket, "C" * 22, 30.0, 60.0)  # of another stream, it is no ticket
    await other.tickets.written()
    found = await shown(one, text, "/streams", starts=False)
    assert found is not None
    assert found.stream_id == STREAM
    assert await shown(one, await one.tickets.issue(WEB, 30.0), "/streams", starts=False) is None


async def test_principal_that_asks_for_too_many_loses_its_own_unused_ones(
    redis: Redis, nodes: list[SharedState]
) -> None:
    async with shared_state(redis) as node:
        node.tickets._share = 3
        whose = Principal("key", "greedy", "default", frozenset({"stream"}))
        others = await node.tickets.issue(WEB, 30.0)
        await known(redis)
        used, *unused = [await later(redis, node.tickets.issue(whose, 30.0)) for _ in range(3)]
        await started(node, used)
        last = await node.tickets.issue(whose, 30.0)
        assert await redis.ask("ZCARD", node.tickets.of("key:greedy")) == 3
        good = [await shown(nodes[0], text) is not None for text in (others, used, *unused, last)]
        assert good == [True, True, False, True, True]


async def test_nothing_in_clear_and_everything_expires(nodes: list[SharedState], redis: Redis) -> None:
    text = await nodes[0].tickets.issue(WEB, 30.0)
    assert await shown(nodes[1], text, "/secret-route", "203.0.113.77") is not None
    seen = await everything(redis)
    assert "gateway:t:" in seen
    assert not [word for word in (text, "margarethe", "gold", "secret-route", "203.0.113") if word in seen]
    assert await without_expiry(redis) == []


async def test_without_a_secret_the_ticket_itself_seals_the_principal(redis: Redis) -> None:
    async with shared_state(redis, "") as one, shared_state(redis, "") as other, shared_state(redis, "x") as stranger:
        text = await one.tickets.issue(WEB, 30.0)
        assert "margarethe" not in await everything(redis)
        assert await shown(stranger, text) is None
        ticket = await shown(other, text)
        assert ticket is not None
        assert ticket.principal == WEB


async def test_redis_away_no_ticket_is_good_but_that_of_a_stream_of_this_node(tmp_path: Path) -> None:
    async with Redis(tmp_path / "r") as redis, shared_state(redis) as one, shared_state(redis) as other:
        text, unused = await one.tickets.issue(WEB, 30.0), await one.tickets.issue(WEB, 30.0)
        streams = {STREAM: WEB.owner}
        one.tickets.local._exists = lambda stream_id, owner: streams.get(stream_id) == owner
        await started(one, text)
        claimed = await shown(one, unused)
        assert claimed is not None
        redis.pause()
        for refused in (
            one.tickets.issue(WEB, 30.0),
            one.tickets.claim(claimed, 60.0),
            shown(one, unused),
            shown(other, text),
        ):
            with pytest.raises(GatewayError) as caught:
                await refused
            assert (caught.value.code, caught.value.status) == ("auth_unavailable", 503)
            assert caught.value.retry_after is not None
        ticket = await shown(one, text)
        assert ticket is not None
        assert ticket.stream_id == STREAM
        assert await shown(one, text, "/other") is None
        assert await shown(one, text, address="192.0.2.8") is None
        assert await shown(one, "no ticket at all") is None
        redis.resume()
        await asyncio.gather(up(one.connection), up(other.connection))
        await one.tickets.written()
        await started(other, unused)  # nobody had started its stream

        await redis.kill()
        await redis.start(empty=True)
        async with asyncio.timeout(5):
            while (ticket := await shown(one, text)) is None:  # noqa: ASYNC110 - each look is a request
                await asyncio.sleep(0.02)
        assert ticket.stream_id == STREAM
        one.tickets.local.revoke(str(WEB))
        with pytest.raises(GatewayError):  # the connection that the other node had is lost
            await shown(other, text)
        await up(other.connection)
        await up(one.connection)
