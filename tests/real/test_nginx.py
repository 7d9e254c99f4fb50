"""The shipped nginx configuration in front of the real gateway: TLS, HTTP/2, restarts, and no secret in its logs."""

import asyncio
import hashlib
import itertools
import re
import ssl

import pytest

from tests.conftest import StartGateway
from tests.kit.program import Nginx, curl
from tests.kit.sse_client import EventSource
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Hang,
    Pause,
    ScriptedUpstream,
    Step,
    openai_delta,
    sse_head,
)
from tests.real.conftest import StartNginx

SECRET = "sk-walk-through-nginx"
CONFIG = f"""
server: {{trusted_proxies: [127.0.0.1/32]}}
auth: {{keys: [{{id: web, sha256: {hashlib.sha256(SECRET.encode()).hexdigest()}, scopes: [stream]}}]}}
stream: {{retry: 100ms, on_disconnect: {{after: %s}}}}
upstreams: {{main: {{dialect: openai, targets: [{{url: "%s/v1"}}]}}}}
routes: [{{path: /api/chat, api: chat, upstream: main}}]
"""
CURL_TIMED_OUT = 28
CHAT = f"/api/chat?message=hello&token={SECRET}"


def answer(count: int, pause: float) -> list[Step]:
    tokens = [step for n in range(count) for step in (openai_delta(f"{n} "), Pause(pause))]
    return [sse_head(), *tokens, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


def trusting(nginx: Nginx) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=nginx.certificate)


async def test_nginx_passes_tokens_one_by_one_over_http2_and_logs_no_credential(
    start_gateway: StartGateway, start_nginx: StartNginx
) -> None:
    async with ScriptedUpstream(answer(4, 0.25)) as upstream:
        gateway = await start_gateway(CONFIG % ("30s", upstream.url))
        nginx = await start_nginx(gateway.url.removeprefix("http://"))
        options = [
            "--http2",
            "--cacert",
            str(nginx.certificate),
            "-w",
            "version %{http_version}",
            "-e",
            nginx.url + CHAT,
        ]
        lines = await curl(nginx.url + CHAT, *options)
        assert lines[-1][1] == "version 2"
        times = [at for at, line in lines if line == "event: token"]
        assert len(times) == 4
        assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.15
        await nginx.stop()
    assert '"GET /api/chat HTTP/2.0" 200' in nginx.access_log.read_text()
    said = nginx.access_log.read_text() + nginx.error_log.read_text() + nginx.output() + gateway.output()
    assert SECRET not in said


async def test_reader_loses_nothing_when_nginx_restarts(start_gateway: StartGateway, start_nginx: StartNginx) -> None:
    async with ScriptedUpstream(answer(20, 0.05)) as upstream:
        gateway = await start_gateway(CONFIG % ("30s", upstream.url))
        nginx = await start_nginx(gateway.url.removeprefix("http://"))
        async with EventSource(nginx.url + CHAT, tls=trusting(nginx)) as source:
            messages = await source.until("token")
            await nginx.stop()
            await nginx.start()
            messages += await source.until("done")
        assert len(upstream.exchanges) == 1
    tokens = "".join(message.json()["text"] for message in messages if message.type == "token")
    assert tokens == "".join(f"{n} " for n in range(20))


async def test_reader_comes_back_by_itself_when_the_gateway_restarts(
    start_gateway: StartGateway, start_nginx: StartNginx
) -> None:
    async with ScriptedUpstream(answer(2, 0)) as upstream:
        gateway = await start_gateway(CONFIG % ("30s", upstream.url))
        nginx = await start_nginx(gateway.url.removeprefix("http://"))
        await gateway.stop()
        async with EventSource(nginx.url + CHAT, tls=trusting(nginx)) as source:
            away = await (await source.open()).body()
            assert re.fullmatch(rb"retry: [0-9]+\n: the gateway is away\n\n", away)
            source.retry = 0.1
            await gateway.start()
            assert (await source.until("done"))[-1].json()["full_text"] == "0 1 "
    assert SECRET not in nginx.access_log.read_text() + nginx.error_log.read_text()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_nginx_lets_the_gateway_see_at_once_that_a_reader_left(
    start_gateway: StartGateway, start_nginx: StartNginx, version: str
) -> None:
    async with ScriptedUpstream([sse_head(), openai_delta("a"), Hang()]) as upstream:
        gateway = await start_gateway(CONFIG % ("0s", upstream.url))
        nginx = await start_nginx(gateway.url.removeprefix("http://"))
        leave = ["--max-time", "0.5", "--output", "/dev/null"]
        await curl(nginx.url + CHAT, version, "--cacert", str(nginx.certificate), *leave, status=CURL_TIMED_OUT)
        async with asyncio.timeout(1):
            await (await upstream.exchange()).closed.wait()


async def test_plain_http_is_sent_to_https(start_gateway: StartGateway, start_nginx: StartNginx) -> None:
    nginx = await start_nginx("127.0.0.1:9")
    lines = await curl(f"{nginx.plain_url}/api/chat", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}")
    assert lines[0][1] == "308 https://127.0.0.1/api/chat"
