"""The admin listener: probes, metrics, the list of streams, and who may read and end them."""

import asyncio
import os
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import EventSource, request
from tests.kit.upstream import Hang, ScriptedUpstream, Step, openai_delta, response, sse_head
from tests.web.stage import sent_on

pytestmark = pytest.mark.asyncio(loop_scope="module")


def config(url: str, **server: Any) -> dict[str, Any]:
    return {
        "server": {"drain": "0s"} | server,
        "auth": {"keys": [{"id": "anna", "key": "k"}]},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"on_disconnect": {"after": "0s"}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    endless: list[Step] = [sse_head(), openai_delta("one"), Hang()]
    async with (
        ScriptedUpstream(endless) as upstream,
        Gateway(config(upstream.url), tmp_path_factory.mktemp("admin")) as gateway,
    ):
        yield gateway


async def look(gateway: Gateway, path: str, method: str = "GET") -> tuple[int, str, str]:
    async with await request(f"{gateway.admin}{path}", method=method) as answer:
        return answer.status, answer.media_type, "" if method == "HEAD" else (await answer.body()).decode()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probe_of_a_serving_gateway_is_ok(gateway: Gateway, path: str) -> None:
    assert await look(gateway, path) == (200, "text/plain", "ok\n")
    assert await look(gateway, f"{path}?verbose=1") == (200, "text/plain", "ok\n")
    async with await request(f"{gateway.admin}{path}") as answer:
        assert answer.headers["server"] == "gateway"


async def test_metrics_are_in_the_text_format(gateway: Gateway) -> None:
    status, media_type, text = await look(gateway, "/metrics")
    assert (status, media_type) == (200, "text/plain")
    assert "# TYPE gateway_streams_active gauge" in text
    assert 'gateway_build_info{version="' in text


async def test_metrics_can_be_named(gateway: Gateway) -> None:
    names = "name[]=gateway_draining&name[]=gateway_build_info&name[]=no_such_metric"
    status, _, text = await look(gateway, f"/metrics?{names}")
    samples = {line.partition("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}
    assert (status, samples) == (200, {"gateway_draining", "gateway_build_info"})


@pytest.mark.parametrize(
    "line", [b"GET /sk-secret HTTP/9.9", b"GET /" + b"sk-secret" * 9000 + b" HTTP/1.1", b"sk-secret"]
)
async def test_malformed_request_is_not_quoted(gateway: Gateway, line: bytes) -> None:
    host, port = gateway.admin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(line + b"\r\nHost: x\r\n\r\n")
    told = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert told.startswith(b"HTTP/1.0 400 ")
    assert b"sk-secret" not in told
    assert b"\r\nServer: gateway\r\n" in told


@pytest.mark.parametrize("more", [b"no colon\r\n\r\n", b"X: " + b"y" * 70_000])
async def test_client_that_sends_on_reads_why_it_is_refused(gateway: Gateway, more: bytes) -> None:
    assert await sent_on(gateway.admin, [b"GET / HTTP/1.1\r\n" + more]) == (b"400", None)


async def test_streams_lists_a_running_stream_and_forgets_it(gateway: Gateway) -> None:
    async with Ledger(gateway) as ledger:
        assert await ledger.streams() == []
        async with EventSource(f"{gateway.url}/chat?message=hi&token=k") as source:
            await source.until("token")
            [stream] = await ledger.streams()
            assert stream.pop("age_s") < 5
            assert stream.pop("bytes") > 0
            assert stream == {
                "id": source.current.headers["x-stream-id"],
                "route": "/chat",
                "principal": "key:anna",
                "upstream": "main",
                "model": "scripted",
                "state": "streaming",
                "events": 1,
                "readers": 1,
            }


async def test_streams_counts_every_reader(gateway: Gateway) -> None:
    async with Ledger(gateway) as ledger, EventSource(f"{gateway.url}/chat?message=hi&token=k") as source:
        await source.until("token")
        url = f"{gateway.url}/streams/{source.current.headers['x-stream-id']}"
        async with await request(url, headers={"Authorization": "Bearer k"}):
            assert [stream["readers"] for stream in await ledger.streams()] == [2]
        await source.close()


@pytest.mark.parametrize("path", ["/", "/page/monitor.js", "/livez", "/readyz", "/metrics", "/streams", "/failures"])
async def test_head_and_wrong_methods(gateway: Gateway, path: str) -> None:
    assert (await look(gateway, path, "HEAD"))[0] == 200
    async with await request(f"{gateway.admin}{path}", method="POST") as answer:
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/%2e%2e/etc/passwd", "/streams/x"])
async def test_unknown_paths_name_the_known_ones(gateway: Gateway, path: str) -> None:
    status, _, text = await look(gateway, path)
    assert status == 404
    assert all(known in text for known in ("/,", "/metrics", "/livez", "/readyz", "/streams", "/failures"))


async def test_operator_stops_a_stream_and_its_reader_is_told(gateway: Gateway) -> None:
    async with Ledger(gateway), EventSource(f"{gateway.url}/chat?message=hi&token=k") as source:
        await source.until("token")
        stream_id = source.current.headers["x-stream-id"]
        async with await request(f"{gateway.admin}/streams/{stream_id}/stop", method="POST") as answer:
            assert (answer.status, await answer.json()) == (200, {"id": stream_id, "state": "stopped"})
        assert (await source.next()).json()["finish_reason"] == "stopped"
        async with await request(f"{gateway.admin}/streams/{stream_id}/stop", method="POST") as again:
            assert (again.status, await again.body()) == (404, b"No such stream is running.\n")


STOP = f"/streams/{'x' * 22}/stop"
OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize("listener", ["url", "admin"])
async def test_stream_ends_though_who_stops_it_is_gone_at_once(gateway: Gateway, listener: str) -> None:
    async with EventSource(f"{gateway.url}/chat?message=hi&token=k") as source:
        await source.until("token")
        stream_id = source.current.headers["x-stream-id"]
        host = getattr(gateway, listener).removeprefix("http://")
        with socket.create_connection(host.split(":")) as page:
            page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its close is a reset
            head = f"POST /streams/{stream_id}/stop HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer k\r\n"
            page.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
        await source.until("done")
    assert (await gateway.logged("stream_end", stream_id=stream_id))["outcome"] == "stopped"
    assert 'gateway_streams_active{route="/chat"} 0' in (await look(gateway, "/metrics"))[2]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (STOP, OURS, 404),
        (STOP, {"Origin": "{admin}"}, 404),
        (STOP, OURS | {"Origin": "http://evil.example"}, 403),
        (STOP, {"Origin": "{admin}\r\nOrigin: http://evil.example"}, 403),
        (STOP, {"Sec-Fetch-Site": "same-origin\r\nSec-Fetch-Site: cross-site"}, 403),
        (STOP, {"Origin": "null"}, 403),
        (STOP, {"Sec-Fetch-Site": "cross-site"}, 403),
        (STOP, {"Sec-Fetch-Site": "same-site"}, 403),
        (STOP, OURS | {"Host": "evil.example"}, 403),
        (STOP, OURS | {"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
async def test_page_from_elsewhere_stops_nothing(
    gateway: Gateway, path: str, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(admin=gateway.admin) for name, value in headers.items()}
    async with await request(f"{gateway.admin}{path}", method="POST", headers=sent) as answer:
        assert answer.status == status


@pytest.mark.parametrize("path", ["/", "/page/monitor.js", "/streams", "/failures", "/events"])
async def test_rebound_name_reads_nothing(gateway: Gateway, path: str) -> None:
    async with await request(f"{gateway.admin}{path}", headers={"Host": "evil.example:9090"}) as answer:
        assert answer.status == 403
        assert "server.admin_listen" in (await answer.body()).decode()


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
async def test_prober_may_call_the_gateway_by_any_name(gateway: Gateway, path: str) -> None:
    async with await request(f"{gateway.admin}{path}", headers={"Host": "gateway.prod.svc:9090"}) as answer:
        assert answer.status == 200


async def test_page_elsewhere_may_not_even_hold_the_feed(gateway: Gateway) -> None:
    async with await request(f"{gateway.admin}/events", headers={"Sec-Fetch-Site": "cross-site"}) as answer:
        assert (answer.status, answer.headers.get("access-control-allow-origin")) == (403, None)


@pytest.mark.parametrize("listener", ["url", "admin"])
async def test_browser_that_has_a_file_is_sent_no_body(gateway: Gateway, listener: str) -> None:
    url = f"{getattr(gateway, listener)}/page/base.css"
    async with await request(url) as first:
        etag = first.headers["etag"]
    async with await request(url, headers={"If-None-Match": etag}) as again:
        assert (again.status, await again.body()) == (304, b"")


async def test_monitor_page_runs_its_own_scripts_only(gateway: Gateway) -> None:
    async with await request(f"{gateway.admin}/") as page:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/streams", "/failures", "/events", "/page/monitor.js"]
)
async def test_public_listener_has_none_of_it(gateway: Gateway, path: str) -> None:
    async with await request(f"{gateway.url}{path}", headers={"Authorization": "Bearer k"}) as answer:
        assert answer.status == 404


@pytest.mark.asyncio(loop_scope="function")
async def test_admin_listener_can_be_turned_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(config("http://127.0.0.1:9", admin_listen=None))
    assert (await gateway.logged("serving"))["admin"] is None
    async with await request(f"{gateway.url}/nothing") as answer:
        assert answer.status == 404
    listening = await asyncio.to_thread(listeners, gateway.pid)
    assert len(listening) == 1, listening


@pytest.mark.asyncio(loop_scope="function")
async def test_breakers_are_shown_by_host_until_a_reload_takes_them_away(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream([response(500, "{}")]) as upstream:
        settings = config(upstream.url)
        settings["upstreams"]["main"] |= {
            "targets": [{"url": f"{upstream.url}/a"}, {"url": f"{upstream.url}/b"}],
            "retries": 0,
            "breaker": {"failures": 1, "open": "1h"},
        }
        gateway = await start_gateway(settings)
        place = upstream.url.removeprefix("http://")
        assert await breakers(gateway) == {place: "0.0"}
        async with await request(f"{gateway.url}/chat?token=k", method="POST", body={"message": "hi"}) as answer:
            assert answer.status == 502
        assert await breakers(gateway) == {place: "1.0"}
        gateway.write_config(config("http://127.0.0.1:9"))
        gateway.send_signal(signal.SIGHUP)
        await gateway.logged("reloaded")
        assert await breakers(gateway) == {"127.0.0.1:9": "0.0"}


async def breakers(gateway: Gateway) -> dict[str, str]:
    """Whether each target of the upstream `main` is out of service."""
    _, _, text = await look(gateway, "/metrics")
    return dict(re.findall(r'gateway_breaker_open\{target="(.+)",upstream="main"\} (.+)', text))


def listeners(pid: int) -> list[str]:
    """The local addresses that a process listens on, as /proc writes them."""
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            targets.append(os.readlink(descriptor))
    inodes = {target[8:-1] for target in targets if target.startswith("socket:")}
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
