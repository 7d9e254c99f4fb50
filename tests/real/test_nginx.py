"""X1: the shipped nginx configuration in front of the real gateway: TLS, HTTP/2, reloads, restarts, and no secret in
its logs."""

import asyncio
import hashlib
import itertools
import os
import random
import re
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.conftest import StartGateway
from tests.faults.workers import Workers
from tests.kit.program import Gateway, Nginx, curl, free_ports
from tests.kit.sse_client import EventSource, Message, request
from tests.kit.tcp_proxy import TCPProxy
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Exchange,
    Hang,
    Pause,
    ScriptedUpstream,
    Step,
    WaitFor,
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
cors: {{origins: ["https://app.example.com"]}}
limits: {{per_address: {{requests: null, connections: null}}}}
"""
READERS = 50
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


class Crowd:
    """Many browsers, each with an answer that goes on after `go`, to be read whole over whatever happens meanwhile."""

    def __init__(self, nginx: Nginx) -> None:
        self.go = asyncio.Event()
        self.sources = [EventSource(nginx.url + CHAT, tls=trusting(nginx)) for _ in range(READERS)]
        self.heard: list[list[Message]] = []

    def script(self, exchange: Exchange) -> list[Step]:
        first, *rest = answer(10, 0.02)
        return [first, *rest[:4], WaitFor(self.go), *rest[4:]]

    async def begin(self) -> None:
        self.heard = list(await asyncio.gather(*(source.until("token", timeout=20) for source in self.sources)))

    async def finish(self) -> None:
        """Everybody has the whole answer, each token once."""
        self.go.set()
        rest = await asyncio.gather(*(source.until("done", timeout=20) for source in self.sources))
        for source, first, second in zip(self.sources, self.heard, rest, strict=True):
            await source.close()
            tokens = "".join(message.json()["text"] for message in first + second if message.type == "token")
            assert tokens == "".join(f"{n} " for n in range(10))


async def reload(nginx: Nginx) -> None:
    """Return when the new worker runs."""
    process = await asyncio.create_subprocess_exec(*nginx.command, "-s", "reload", stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    await new_worker(nginx)


async def restart(nginx: Nginx) -> None:
    """Cut every connection, as an upgrade of the package does."""
    await nginx.stop()
    await nginx.start()


async def kill_worker(nginx: Nginx) -> None:
    """As the system does when memory is short; return when the master has started another."""
    os.kill(worker_pid(nginx), signal.SIGKILL)
    await new_worker(nginx)


def started_workers(nginx: Nginx) -> list[str]:
    return [line for line in nginx.stderr if "start worker process " in line]


def worker_pid(nginx: Nginx) -> int:
    return int(started_workers(nginx)[-1].rsplit(" ", 1)[1])


async def new_worker(nginx: Nginx) -> None:
    await nginx.said(lambda _: len(started_workers(nginx)) > 1, "that a second worker started")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("interrupt", [reload, restart, kill_worker])
async def test_crowd_loses_nothing_whatever_nginx_does(
    start_gateway: StartGateway,
    start_nginx: StartNginx,
    interrupt: Callable[[Nginx], Awaitable[None]],
    workers: int,
) -> None:
    async with ScriptedUpstream(lambda exchange: crowd.script(exchange)) as upstream:
        gateway = await start_gateway(with_workers(CONFIG % ("30s", upstream.url), workers))
        await Workers(gateway, workers).served()
        nginx = await start_nginx(gateway.url.removeprefix("http://"))
        crowd = Crowd(nginx)
        await crowd.begin()
        await interrupt(nginx)
        async with await request(f"{nginx.url}/client.js", tls=trusting(nginx)) as other:
            assert other.status == 200
        await crowd.finish()
        assert len(upstream.exchanges) == READERS
        if interrupt is reload:  # the worker of before goes on with what it has
            assert {len(source.connections) for source in crowd.sources} == {1}


def with_workers(config: str, workers: int) -> str:
    server = f"workers: {workers}, admin_listen: 127.0.0.1:{free_ports(workers)}, "
    return config.replace("server: {", "server: {" + server)


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


async def test_gateway_restarts_under_streams_and_nobody_is_left_in_the_dark(
    start_gateway: StartGateway, start_nginx: StartNginx
) -> None:
    async with ScriptedUpstream(lambda exchange: crowd.script(exchange)) as upstream:
        gateway = await start_gateway(CONFIG.replace("server: {", "server: {drain: 0s, ") % ("30s", upstream.url))
        nginx = await start_nginx(gateway.url.removeprefix("http://"))
        crowd = Crowd(nginx)
        await crowd.begin()
        await gateway.stop()
        ends = await asyncio.gather(*(source.until("error") for source in crowd.sources))
        assert {messages[-1].json()["code"] for messages in ends} == {"drained"}
        await check_is_away(nginx)
        source = crowd.sources[0]
        source.retry, source.current.parser.retry = 0.1, None
        await source.drop()
        assert b"the gateway is away" in await (await source.open()).body()
        await gateway.start()
        source.retry, source.current.parser.retry = 0.1, None
        assert (await source.until("error"))[-1].json()["code"] == "cursor_expired"  # its memory ended with it
        for source in crowd.sources:
            await source.close()
        assert len(upstream.exchanges) == READERS


async def check_is_away(nginx: Nginx) -> None:
    """What a POST is told while nobody is there, in words that pages of other origins may read."""
    headers = {"Origin": "https://app.example.com"}
    url, body = nginx.url + "/api/chat", {"message": "hi"}
    async with await request(url, method="POST", body=body, headers=headers, tls=trusting(nginx)) as answer:
        assert (answer.status, answer.media_type) == (503, "application/problem+json")
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["access-control-allow-origin"] == headers["Origin"]
        assert (await answer.json())["status"] == 503


async def test_nginx_is_always_the_one_to_close_an_idle_connection(start_nginx: StartNginx, tmp_path: Path) -> None:
    gateway = Gateway(CONFIG % ("30s", "http://127.0.0.1:9"), tmp_path)
    scaled = "import gateway.web.connection as c; c.KEEP_ALIVE = 2.0; from gateway.cli import main; main()"
    gateway.command = [sys.executable, "-c", scaled, *gateway.command[1:]]
    async with gateway, TCPProxy(int(gateway.url.rsplit(":", 1)[1])) as network:
        network.up.latency = network.down.latency = 0.03  # what is said meanwhile meets a connection that is no more
        nginx = await start_nginx(f"127.0.0.1:{network.port}")
        await nginx.stop()
        conf = (nginx.cwd / "gateway.conf").read_text()
        assert "keepalive_timeout 60s;" in conf
        (nginx.cwd / "gateway.conf").write_text(conf.replace("keepalive_timeout 60s;", "keepalive_timeout 600ms;"))
        await nginx.start()
        statuses = await asyncio.gather(*(ask_now_and_then(nginx) for _ in range(40)))
        assert set(itertools.chain(*statuses)) == {200}
        assert network.connections < len(statuses) * len(statuses[0])  # some were used twice
        assert '" 502 ' not in nginx.access_log.read_text()


async def ask_now_and_then(nginx: Nginx) -> list[int]:
    """Statuses of requests that come about when the connection to the gateway is given up, by either side."""
    statuses = []
    for moment in (0.6, 1.0, 0.3, 0.6, 0.3, 1.0, 0.3):
        async with await request(f"{nginx.url}/client.js", tls=trusting(nginx)) as answer:
            await answer.body()
            statuses.append(answer.status)
        await asyncio.sleep(moment + random.uniform(-0.06, 0.06))
    return statuses


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
