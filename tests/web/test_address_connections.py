"""`limits.per_address.connections` counts from the accept on, whether a client ever says anything or not (H8)."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from gateway.web.service import WebService
from tests.seams.serving import Serving, serving
from tests.web.raw import Client
from tests.web.stage import setting

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 3
PAGE = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVENTS = b"GET /chat?message=hi HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
PROXY = "127.0.0.9"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Serving]:
    limits = {"per_address": {"requests": None, "connections": LIMIT}}
    server = {"trusted_proxies": [f"{PROXY}/32"]}
    async with serving(setting("http://127.0.0.1:9", [{"path": "/chat"}], limits=limits, server=server)) as gateway:
        yield gateway


@asynccontextmanager
async def connected(gateway: Serving, address: str) -> AsyncIterator[Client]:
    """A connection from this address of the machine."""
    with socket.create_connection(("127.0.0.1", urlsplit(gateway.url).port or 0), 5, (address, 0)) as sock:
        sock.setblocking(False)
        yield Client(sock)


async def served(gateway: Serving, address: str, request: bytes = PAGE) -> bytes:
    async with connected(gateway, address) as client:
        client.send(request)
        return await client.until(b"\r\n\r\n")


async def test_silent_connections_are_counted_and_others_are_served(gateway: Serving) -> None:
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(gateway, "127.0.0.2")) for _ in range(LIMIT)]
        held[0].send(b"GET / HT")  # one that dribbles, one that idles behind an answer, one that says nothing
        held[1].send(PAGE)
        await held[1].until(b"\r\n\r\n")
        async with connected(gateway, "127.0.0.2") as one_more:
            one_more.send(PAGE)
            told = await one_more.rest()
        assert told.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: 5\r\n" in told
        async with connected(gateway, "127.0.0.2") as silent:
            assert (await silent.rest()).startswith(b"HTTP/1.1 429 ")
        assert b" 404 " in await served(gateway, "127.0.0.3")
        held[2].socket.close()
        async with asyncio.timeout(5):
            while b" 404 " not in await served(gateway, "127.0.0.2"):
                pass


async def test_eventsource_of_a_crowded_address_comes_back(gateway: Serving) -> None:
    """After a status it would never; after no answer it does."""
    async with AsyncExitStack() as stack:
        for _ in range(LIMIT):
            await stack.enter_async_context(connected(gateway, "127.0.0.4"))
        async with connected(gateway, "127.0.0.4") as one_more:
            one_more.send(EVENTS)
            assert await one_more.rest() == b""


async def test_many_refused_connections_are_closed_at_once(gateway: Serving) -> None:
    """Beyond the few that are heard, a refusal holds nothing open."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(gateway, "127.0.0.5")) for _ in range(100)]
        assert (await clients[-1].rest()).startswith(b"HTTP/1.1 429 ")
        clients[LIMIT].send(PAGE)
        assert (await clients[LIMIT].rest()).startswith(b"HTTP/1.1 429 ")


async def test_trusted_proxy_is_not_one_client(gateway: Serving) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(2 * LIMIT):
            await stack.enter_async_context(connected(gateway, PROXY))
        assert b" 404 " in await served(gateway, PROXY, PAGE[:-2] + b"X-Forwarded-For: 10.0.0.1\r\n\r\n")
        addresses, now = gateway.app.gateway.addresses, gateway.app.gateway.clock.now()
        for _ in range(LIMIT):
            addresses.connect("10.0.0.2", now)
        refused = await served(gateway, PROXY, PAGE[:-2] + b"X-Forwarded-For: 10.0.0.2\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize(
    ("held", "same", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", "2001:db8:0:2::1"),
        ("10.7.7.7", "::ffff:10.7.7.7", "::ffff:10.7.7.8"),
        ("fe80::1%eth0", "fe80::2%eth1", "fe80:0:0:1::1"),
    ],
)
async def test_address_has_one_name(gateway: Serving, held: str, same: str, other: str) -> None:
    """A customer's IPv6 network is one address, and an IPv4 address is itself however it is written."""
    door = WebService(gateway.app.gateway)
    leave = [door.admit(held) for _ in range(LIMIT)]
    assert door.admit(same) is None
    leave.append(door.admit(other))
    assert None not in leave
    for each in leave:
        if each is not None:
            each.close(0.0)
    again = door.admit(same)
    assert again is not None
    again.close(0.0)
