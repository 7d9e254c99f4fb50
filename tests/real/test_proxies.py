"""X2: the proxies of `docs/operations.md`, with the configuration that stands there, in front of one real gateway.

Each is started once. The network between it and the gateway can be cut, so that the gateway need not be restarted.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.kit.program import Gateway, curl
from tests.kit.sse_client import EventSource, request
from tests.kit.tcp_proxy import TCPProxy
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Exchange,
    Hang,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_delta,
    response,
    sse_head,
)
from tests.real.proxies import TRIED, Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "sk-walk-through-proxies"
CLIENT = "127.0.0.2"
"""Where a client connects from; 127.0.0.1 is trusted, as the proxies are there."""
CONFIG = """
server: {trusted_proxies: [127.0.0.1/32]}
auth: {anonymous: true, keys: [{id: web, key: %s, scopes: [stream]}]}
stream: {retry: 100ms, heartbeat: 200ms, on_disconnect: {after: 0s}}
upstreams:
  main: {dialect: openai, targets: [{url: "%s/v1"}]}
  old: {dialect: sse, targets: [{url: "%s"}]}
routes:
  - {path: /api/chat, api: chat, upstream: main, stream: {on_disconnect: {after: 30s}}}
  - {path: /api/beats, api: chat, upstream: main}
  - {path: /api/quiet, api: chat, upstream: main, stream: {heartbeat: 1h}}
  - {path: "/old/{path}", api: proxy, upstream: old}
limits: {per_address: {requests: null, connections: null}}
"""
CHAT = f"/api/chat?message=hello&token={SECRET}"
TOKENS = 4
NOTICE_WHEN_THEY_WRITE = {"Apache", "lighttpd"}
"""Proxies that see that a client left when they have something for it; the others see it in a silent stream, too."""


class Behind(NamedTuple):
    """The network behind a proxy, the gateway behind that, and its upstream, with what it says to the next request."""

    network: TCPProxy
    gateway: Gateway
    upstream: ScriptedUpstream
    script: list[Step]

    def plays(self, *steps: Step) -> int:
        """From now on the upstream plays this. The number of the next request there."""
        self.script[:] = steps
        return len(self.upstream.exchanges)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Behind]:
    """What stands behind all proxies."""
    script: list[Step] = []

    def play(exchange: Exchange) -> list[Step]:
        return list(script)

    async with ScriptedUpstream(play) as upstream:
        config = CONFIG % (SECRET, upstream.url, upstream.url)
        async with (
            Gateway(config, tmp_path_factory.mktemp("gateway")) as gateway,
            TCPProxy(int(gateway.url.rsplit(":", 1)[1])) as network,
        ):
            network.up.final = True
            yield Behind(network, gateway, upstream, script)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=TRIED)
async def proxy(
    request: pytest.FixtureRequest, behind: Behind, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Proxy]:
    """Each proxy of the document, one after the other."""
    front = Proxy(request.param, f"127.0.0.1:{behind.network.port}", tmp_path_factory.mktemp(request.param))
    await front.start()
    yield front
    await front.stop(status=None)


def answer(heard: list[asyncio.Event]) -> list[Step]:
    """A token, and the next one only when the one before has been heard."""
    tokens = [step for n, event in enumerate(heard) for step in (openai_delta(f"{n} "), WaitFor(event))]
    return [sse_head(), *tokens, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_tokens_arrive_one_by_one(proxy: Proxy, behind: Behind, method: str) -> None:
    heard = [asyncio.Event() for _ in range(TOKENS)]
    behind.plays(*answer(heard))
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip", "Authorization": f"Bearer {SECRET}"}
    question = {"message": "hello"} if method == "POST" else None
    url = proxy.url + CHAT.partition("?" if question else "&")[0]
    types = []
    async with (
        asyncio.timeout(10),
        await request(url, method=method, body=question, headers=headers, tls=proxy.tls) as reading,
    ):
        async for message in reading.messages():
            types.append(message.type)
            if message.type == "token":
                heard.pop(0).set()
    assert types == ["connected", *["token"] * TOKENS, "done"]


async def test_reader_resumes_when_its_connection_breaks_and_when_the_proxy_restarts(
    proxy: Proxy, behind: Behind
) -> None:
    heard = [asyncio.Event() for _ in range(3)]
    number = behind.plays(*answer(list(heard)))
    async with EventSource(proxy.url + CHAT, tls=proxy.tls, retry=0.1) as source:
        messages = await source.until("token")
        await source.drop()
        heard[0].set()
        messages += await source.until("token")
        await proxy.restart()
        for event in heard:
            event.set()
        messages += await source.until("done")
    assert "".join(message.json()["text"] for message in messages if message.type == "token") == "0 1 2 "
    assert len(behind.upstream.exchanges) == number + 1


async def test_clients_address_is_right_and_cannot_be_forged(proxy: Proxy, behind: Behind) -> None:
    number = behind.plays(response(200, "ok", "text/plain"))
    forged = ["X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "X-Forwarded-Proto: ftp"]
    headers = [part for header in forged for part in ("-H", header)]
    path = f"/{proxy.name}%2F.b?c=%2F"
    await curl(f"{proxy.url}/old{path}", "--interface", CLIENT, "--cacert", str(proxy.certificate), *headers)
    asked = await behind.upstream.exchange(number)
    assert asked.target == path
    assert re.split(", ?", asked.headers["x-forwarded-for"])[-2:] == [CLIENT, "127.0.0.1"]
    assert asked.headers["x-forwarded-proto"] == proxy.url.partition(":")[0]
    await behind.gateway.logged("request", request_id=asked.headers["x-request-id"], address=CLIENT)


async def test_client_that_leaves_is_noticed(proxy: Proxy, behind: Behind) -> None:
    number = behind.plays(sse_head(), openai_delta("a"), Hang())
    url = f"{proxy.url}/api/{'beats' if proxy.name in NOTICE_WHEN_THEY_WRITE else 'quiet'}?message=hi"
    async with EventSource(url, tls=proxy.tls) as source:
        await source.until("token")
    async with asyncio.timeout(10):
        await (await behind.upstream.exchange(number)).closed.wait()


async def test_question_is_never_sent_twice_and_a_gateway_that_is_away_is_said_to_be(
    proxy: Proxy, behind: Behind
) -> None:
    number = behind.plays(Hang())
    url = proxy.url + CHAT
    for _ in range(3):  # so that there are connections to be used again
        async with await request(f"{proxy.url}/client.js", tls=proxy.tls) as script:
            await script.body()
    asking = asyncio.create_task(request(url, tls=proxy.tls))
    await behind.upstream.exchange(number)
    behind.network.reset()
    async with asyncio.timeout(10), await asking as broken:
        assert broken.status >= 500
    assert len(behind.upstream.exchanges) == number + 1
    await behind.network.pull()
    async with await request(url, headers={"Referer": proxy.url + CHAT}, tls=proxy.tls) as away:
        assert away.status in {502, 503, 504}
    await behind.network.plug()
    if proxy.name != "lighttpd":  # it asks again after two seconds, and logs URLs, as the document says
        await proxy.ready()
        assert SECRET not in proxy.written()
