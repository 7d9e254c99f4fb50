"""An answer that is no stream is passed on; whoever leaves half-way, the books say so and nothing stays open."""

from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import free_port
from tests.kit.sse_client import request
from tests.kit.upstream import Cut, Hang, ScriptedUpstream, Step, http_head

HALF = http_head(200, "application/json", Content_Length="20") + b'{"half": '


def config(url: str) -> dict[str, Any]:
    return {
        "auth": {"anonymous": True},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"on_disconnect": {"after": "never"}},
        "upstreams": {"main": {"dialect": "sse", "targets": [{"url": url}]}},
        "routes": [{"path": "/api/{path}", "api": "proxy", "upstream": "main", "timeouts": {"idle": "300ms"}}],
    }


async def test_client_that_leaves_in_the_middle_ends_it(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream([HALF, Hang()]) as upstream:
        gateway = await start_gateway(config(upstream.url))
        async with Ledger(gateway):
            async with await request(f"{gateway.url}/api/x") as answer:
                assert await answer.read()
            exchange = await upstream.exchange()
            await exchange.closed.wait()
        assert (await gateway.logged("stream_end"))["outcome"] == "client_gone"


@pytest.mark.parametrize(
    ("end", "outcome"), [(Cut(), "upstream_error"), (Hang(), "upstream_stalled")], ids=["cut", "stall"]
)
async def test_upstream_that_breaks_off_is_no_completed_answer(
    start_gateway: StartGateway, end: Step, outcome: str
) -> None:
    async with ScriptedUpstream([HALF, end]) as upstream:
        gateway = await start_gateway(config(upstream.url))
        async with Ledger(gateway), await request(f"{gateway.url}/api/x") as answer:
            await answer.body()
            assert answer.broken
        assert (await gateway.logged("stream_end"))["outcome"] == outcome


async def test_clients_that_were_refused_leave_no_connection_behind(start_gateway: StartGateway) -> None:
    chat = {"path": "/chat", "api": "chat", "upstream": "main", "history": None}
    settings = config(f"http://127.0.0.1:{free_port()}")
    settings["upstreams"]["main"] |= {"dialect": "openai", "retries": 0, "breaker": {"failures": 1000}}
    gateway = await start_gateway(settings | {"routes": [chat]})
    async with Ledger(gateway):
        for _ in range(20):
            async with await request(f"{gateway.url}/chat", method="POST", body={"message": "hi"}) as answer:
                await answer.body()
                assert answer.status == 502
