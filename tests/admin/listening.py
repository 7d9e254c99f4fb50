"""An admin listener inside the test's own process, and clients of it from any address of the machine."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, NamedTuple

from gateway.admin.service import AdminServer, AdminService
from gateway.web.state import Gateway
from tests.seams.serving import serving
from tests.web.raw import Client
from tests.web.stage import setting


class Listening(NamedTuple):
    """An admin listener.

    Attributes:
        gateway: what it shows.
        server: its connections.
        client: makes a client that connects from this address.
    """

    gateway: Gateway
    server: AdminServer
    client: Callable[[str], Client]


@asynccontextmanager
async def listening(**sections: Any) -> AsyncIterator[Listening]:
    """The admin listener of a gateway with these sections of a configuration."""
    config = setting("http://127.0.0.1:9", [{"path": "/chat"}], **sections)
    async with serving(config) as gateway, AsyncExitStack() as stack:
        server = AdminServer(AdminService(gateway.app.gateway))
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, backlog=1000)
        stack.push_async_callback(server.shutdown, 1)
        stack.callback(listener.close)
        listens = listener.sockets[0].getsockname()[:2]

        def client(address: str) -> Client:
            sock = stack.enter_context(closing(socket.create_connection(listens, 5, (address, 0))))
            sock.setblocking(False)
            return Client(sock)

        yield Listening(gateway.app.gateway, server, client)
