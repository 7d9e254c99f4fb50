"""The admin listener has a bound of its own, so that nobody takes its descriptors with connections that say nothing;
and it speaks HTTP/1.0 and 1.1."""

import asyncio

import pytest

from gateway.admin import service
from gateway.admin.service import MAX_CONNECTIONS, MAX_OF_ADDRESS
from tests.admin.listening import listening

PROXY = "127.0.0.9"
PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SERVER = {"trusted_proxies": [f"{PROXY}/32"]}


async def test_admin_connections_are_bounded_and_silent_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """H8"""
    monkeypatch.setattr(service, "HEAD_TIME", 0.2)
    async with listening(server=SERVER) as (_, server, client):
        silent = [client(f"127.0.0.{2 + number % 2}") for number in range(MAX_CONNECTIONS)]
        assert await client("127.0.0.4").rest() == b""
        silent[1].send(b"GET /livez HT")
        for one in silent[:2]:
            assert await one.rest() == b""
        async with asyncio.timeout(5):
            while server.connections:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)
        probe = client("127.0.0.2")
        probe.send(PROBE)
        assert b" 200 " in await probe.rest()
        for line in (b"GET /livez", b"OPTIONS /", b"GET /streams HTTP/0.9", b"POST /streams/x/stop HTTP/2.0"):
            other = client("127.0.0.2")
            other.send(line + b"\r\nHost: localhost\r\n\r\n")
            assert (await other.rest()).startswith(b"HTTP/1.0 400 ")


async def test_one_address_leaves_room_for_the_probes_of_others() -> None:
    """H8: whether it says nothing, dribbles, or keeps what was answered open."""
    async with listening(server=SERVER) as (_, server, client):
        held = [client("127.0.0.2") for _ in range(MAX_OF_ADDRESS)]
        held[0].send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await held[0].until(b"ok\n")
        held[1].send(b"GET /liv")
        more = [client("127.0.0.2") for _ in range(300 - MAX_OF_ADDRESS)]
        for one in more:
            assert await one.rest() == b""
        assert len(server.connections) == MAX_OF_ADDRESS
        probe = client("127.0.0.3")
        probe.send(PROBE)
        assert b" 200 " in await probe.rest()
        held[2].socket.close()
        async with asyncio.timeout(5):
            while len(server.connections) == MAX_OF_ADDRESS:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)
        again = client("127.0.0.2")
        again.send(PROBE)
        assert b" 200 " in await again.rest()


async def test_trusted_proxy_of_the_admin_listener_is_not_one_client() -> None:
    async with listening(server=SERVER) as (_, _, client):
        clients = [client(PROXY) for _ in range(MAX_OF_ADDRESS + 1)]
        clients[-1].send(PROBE)
        assert b" 200 " in await clients[-1].rest()
