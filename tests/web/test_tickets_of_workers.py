"""Tickets where several workers share a port: each finds its worker, whichever the connection lands on."""

import asyncio

from tests.conftest import StartGateway
from tests.faults.workers import ALPHABET, Workers
from tests.kit.program import free_ports
from tests.kit.sse_client import request
from tests.kit.upstream import ScriptedUpstream, openai_answer
from tests.web.stage import EVENTS, UNLIMITED, text_of, whole

WEB = {"Authorization": "Bearer web-key"}


async def test_ticket_works_through_any_worker(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(openai_answer("x")) as upstream:
        gateway = await start_gateway(
            {
                "server": {"workers": 2, "admin_listen": f"127.0.0.1:{free_ports(2)}", "demo_page": False},
                "auth": {"keys": [{"id": "web", "key": "web-key"}], "tickets": {"ttl": "1h"}},
                "limits": UNLIMITED,
                "upstreams": {"main": {"dialect": "openai", "targets": [{"url": upstream.url}]}},
                "routes": [{"path": "/chat", "api": "chat", "upstream": "main"}],
            }
        )
        await Workers(gateway, 2).served()

        async def bought(stream_id: str = "") -> str:
            body = {"stream_id": stream_id} if stream_id else {}
            async with await request(f"{gateway.url}/tickets", method="POST", headers=WEB, body=body) as answer:
                assert answer.status == 200
                return str((await answer.json())["ticket"])

        async def started(ticket: str) -> str:
            answer = await request(f"{gateway.url}/chat?message=hi&ticket={ticket}", headers=EVENTS)
            stream_id = answer.headers["x-stream-id"]
            assert text_of(await whole(answer)) == "x"
            assert (stream_id[0], ticket[0] in ALPHABET[:2]) == (ticket[0], True)
            return stream_id

        async def read(stream_id: str) -> None:
            url = f"{gateway.url}/streams/{stream_id}?ticket={await bought(stream_id)}"
            assert text_of(await whole(await request(url, headers=EVENTS))) == "x"

        # The kernel spreads connections by their ports, so that all of many land on one worker once in a million runs.
        tickets = await asyncio.gather(*(bought() for _ in range(20)))
        streams = await asyncio.gather(*(started(ticket) for ticket in tickets))
        await asyncio.gather(*(read(stream_id) for stream_id in streams))
        assert {ticket[0] for ticket in tickets} == {"A", "B"}
