"""A gateway inside the test's own process, on a real socket, so that a test can hand it parts of its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gateway.app import App, make_app
from gateway.config import Config
from gateway.web.connection import Server
from gateway.web.service import WebService


class Serving(NamedTuple):
    """A running gateway: its parts, and where it listens."""

    app: App
    url: str


@asynccontextmanager
async def serving(config: Config | Mapping[str, Any], **parts: Any) -> AsyncIterator[Serving]:
    """The gateway of this configuration; `parts` go to `make_app`."""
    app = await make_app(Config.model_validate(config), **parts)
    service = WebService(app.gateway)
    server = Server(service, service.explain, app.gateway.clock, max_connections=100, door=service)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield Serving(app, "http://{}:{}".format(*listener.sockets[0].getsockname()))
    finally:
        listener.close()
        await server.shutdown(1)
        await app.close()
