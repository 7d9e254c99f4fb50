"""The admin listener has a bound of its own, so that nobody takes its descriptors with connections that say nothing;
and it speaks HTTP/1.0 and 1.1."""

import asyncio
import socket
from contextlib import AsyncExitStack, closing

import pytest

from gateway.admin import service
from gateway.admin.service import MAX_CONNECTIONS, AdminServer, AdminService
from tests.seams.serving import serving
from tests.web.raw import Client
from tests.web.stage import setting


async def test_admin_connections_are_bounded_and_silent_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HEAD_TIME", 0.2)
    async with serving(setting("http://127.0.0.1:9", [{"path": "/chat"}])) as gateway, AsyncExitStack() as stack:
        server = AdminServer(AdminService(gateway.app.gateway))
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, backlog=1000)
        stack.push_async_callback(server.shutdown, 1)
        stack.callback(listener.close)
        address = listener.sockets[0].getsockname()[:2]

        def client() -> Client:
            sock = stack.enter_context(closing(socket.create_connection(address, 5)))
            sock.setblocking(False)
            return Client(sock)

        silent = [client() for _ in range(MAX_CONNECTIONS)]
        assert await client().rest() == b""
        assert await silent[0].rest() == b""
        async with asyncio.timeout(5):
            while server.connections:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)
        probe = client()
        probe.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await probe.rest()
        for line in (b"GET /livez", b"OPTIONS /", b"GET /streams HTTP/0.9", b"POST /streams/x/stop HTTP/2.0"):
            other = client()
            other.send(line + b"\r\nHost: localhost\r\n\r\n")
            assert (await other.rest()).startswith(b"HTTP/1.0 400 ")
