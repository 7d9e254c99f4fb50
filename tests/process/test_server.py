"""The process around the gateway: its listeners, its announcement, its watch over the loop."""

import asyncio
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import request


def config(**server: Any) -> dict[str, Any]:
    return {
        "server": {"drain": "0s"} | server,
        "auth": {"anonymous": True},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": "demo:"}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


async def test_server_on_port_zero_says_where_it_listens(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(config(listen="127.0.0.1:0", admin_listen="127.0.0.1:0"))
    serving = await gateway.logged("serving")
    assert serving["open"] == f"{serving['url']}/"
    async with await request(f"{serving['url']}/") as page, await request(f"{serving['admin']}/readyz") as ready:
        assert (page.status, page.media_type, ready.status) == (200, "text/html", 200)


@pytest.mark.parametrize("address", ["[::1]:0", "localhost:0"])
async def test_server_listens_on_other_loopback_addresses(start_gateway: StartGateway, address: str) -> None:
    gateway = await start_gateway(config(listen=address, demo_page=False))
    serving = await gateway.logged("serving")
    assert serving["open"] is None
    host, port = serving["url"].removeprefix("http://").rsplit(":", 1)
    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()
    await writer.wait_closed()


async def test_server_answers_with_the_demo_and_leaves_nothing(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(config())
    assert await ask(gateway) == "done"  # the connection to the demo stays open for the next call
    async with Ledger(gateway):
        assert await ask(gateway) == "done"


async def ask(gateway: Gateway) -> str:
    """How the demo's answer ended."""
    async with await request(f"{gateway.url}/chat", method="POST", body={"message": "/fast 你好"}) as answer:
        return [message.type async for message in answer.messages()][-1]


async def test_server_watches_how_late_its_loop_is(start_gateway: StartGateway) -> None:
    ledger = Ledger(await start_gateway(config()))
    await asyncio.sleep(1.2)
    scrape = await ledger.scrape()
    assert scrape.total("gateway_event_loop_lag_seconds_count") >= 1
    assert scrape.total("gateway_draining") == 0
    assert scrape.total("gateway_config_last_reload_successful") == 1


async def test_server_warns_of_nothing_on_a_quiet_start_and_end(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(config())
    await gateway.stop()
    assert [line["event"] for line in gateway.log_lines()] == ["serving", "draining", "drained"]
    assert list(gateway.stderr) == []
