"""Requests that dribble, are too large, malformed, old-fashioned or misdirected: C11, C12, C13."""

import asyncio
import os
import socket
import subprocess
import sys
import time
import timeit
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.kit.ledger import Ledger
from tests.kit.program import ROOT
from tests.kit.sse_client import Response, request
from tests.kit.upstream import Hang, Pause, openai_answer, openai_delta, response, sse_head
from tests.web.stage import EVENTS, Stage, completion, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES: list[dict[str, Any]] = [
    {"path": "/chat"},
    {"path": "/openai", "api": "openai"},
    {"path": "/proxy/{path}", "api": "proxy"},
]
HEAD = b"GET /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n"
POST = b"POST /chat HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES) as stage:
        yield stage


async def connected(stage: Stage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = stage.gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def answered(stage: Stage, *parts: bytes) -> Response:
    """The answer to these bytes, its body not yet read."""
    reader, writer = await connected(stage)
    writer.writelines(parts)
    answer = Response(reader, writer)
    async with asyncio.timeout(5):
        await answer.read_head()
    return answer


async def refused(stage: Stage, *parts: bytes) -> tuple[int, str]:
    """The status and the error code with which these bytes are answered."""
    async with await answered(stage, *parts) as answer:
        body = await answer.json()
        return answer.status, body.get("code") or body["error"]["code"]


# C11


async def dribbled(stage: Stage, begin: bytes, drop: bytes, before: bytes = b"") -> tuple[float, bytes]:
    """Seconds until a connection is closed that sends `begin`, then `drop` twice a second, and what it was told.

    Args:
        before: a whole request, sent and answered first.
    """
    reader, writer = await connected(stage)
    if before:
        writer.write(before)
        await reader.readuntil(b"\r\n\r\n")
    began = time.monotonic()
    writer.write(begin)
    dripping = asyncio.create_task(drip(writer, drop))
    told = b""
    try:
        async with asyncio.timeout(14):
            while data := await reader.read(65536):
                told += data
    except ConnectionError:
        told += b"(reset)"
    dripping.cancel()
    writer.transport.abort()
    return time.monotonic() - began, told


async def drip(writer: asyncio.StreamWriter, drop: bytes) -> None:
    while drop and not writer.is_closing():
        await asyncio.sleep(0.5)
        writer.write(drop)


async def test_connections_that_dribble_or_say_nothing_are_closed_at_10_s(stage: Stage) -> None:
    cases = {
        "silent": dribbled(stage, b"", b""),
        "head": dribbled(stage, b"GET /chat HTTP/1.1\r\n", b"X: y\r\n"),
        "request line": dribbled(stage, b"GET /", b"a"),
        "half a head": dribbled(stage, b"GET /chat HTTP/1.1\r\nHost:", b""),
        "half a second head": dribbled(stage, b"GET /chat HTT", b"", before=HEAD),
        "body": dribbled(stage, POST + b"Content-Length: 1000\r\n\r\n", b"{"),
        "no body": dribbled(stage, POST + b"Content-Length: 1000\r\n\r\n", b""),
        "chunks": dribbled(stage, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
    }
    results = dict(zip(cases, await asyncio.gather(*cases.values()), strict=True))
    for case, (seconds, told) in results.items():
        assert 9.5 < seconds < 12.8, (case, seconds)
        assert (b" 408 " in told) == ("body" in case or case == "chunks"), (case, told)


async def test_endless_pipelined_requests_behind_a_stream_wait_in_the_kernel(stage: Stage) -> None:
    """C11: what a client sends behind a request that takes long is bounded by its socket's buffers."""
    question = stage.plays([sse_head(), openai_delta("x"), Hang()])
    target = stage.url("/chat", question).removeprefix(stage.gateway.url)
    reader, writer = await connected(stage)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n\r\n".encode())
    await reader.readuntil(b'"x"')
    ledger = Ledger(stage.gateway)
    before = ledger.rss()
    writer.write(HEAD * 1_000_000)
    await asyncio.sleep(0.5)
    assert writer.transport.get_write_buffer_size() > 16 << 20
    assert ledger.rss() - before < 8 << 20
    async with await request(stage.url("/nothing")) as other:
        assert other.status == 404
    writer.transport.abort()


async def test_thousand_pipelined_requests_are_answered_in_order_and_others_are_not_kept_waiting(stage: Stage) -> None:
    """C11"""
    reader, writer = await connected(stage)
    writer.write(b"".join(HEAD.replace(b"Host", b"X-Request-Id: r%d\r\nHost" % number) for number in range(1000)))
    other = await whole(await stage.get("/chat", stage.plays(openai_answer("x"))))
    assert text_of(other) == "x"
    async with asyncio.timeout(10):
        for number in range(1000):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 404 " in head
            assert b"X-Request-Id: r%d\r\n" % number in head
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    await writer.wait_closed()


async def test_pipelined_request_waits_for_the_stream_before_it(stage: Stage) -> None:
    question = stage.plays([sse_head(), Pause(0.2), *openai_answer("first")[1:]])
    target = stage.url("/chat", question).removeprefix(stage.gateway.url)
    get = f"GET {target} HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n\r\n".encode()
    reader, writer = await connected(stage)
    writer.write(get + HEAD)
    async with asyncio.timeout(5):
        first = await reader.readuntil(b"0\r\n\r\n")
        second = await reader.readuntil(b"\r\n\r\n")
    assert b'"first"' in first
    assert b" 404 " in second
    writer.close()
    await writer.wait_closed()


# C12


def sized(body: bytes, path: bytes = b"/chat") -> bytes:
    return POST.replace(b"/chat", path) + b"Content-Length: %d\r\n\r\n" % len(body) + body


BAD_REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "9 KB header": (HEAD.replace(b"Host", b"X: " + b"y" * 9000 + b"\r\nHost"), 431, "headers_too_large"),
    "300 headers": (HEAD.replace(b"Host", b"X: y\r\n" * 300 + b"Host"), 431, "headers_too_large"),
    "20 KB request line": (HEAD.replace(b"/nowhere", b"/" + b"a" * 20_000), 431, "headers_too_large"),
    "no HTTP": (b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", 400, "bad_request"),
    "bad version": (HEAD.replace(b"1.1", b"3.7"), 400, "bad_request"),
    "bad header": (HEAD.replace(b"Host", b"Bad Name: x\r\nHost"), 400, "bad_request"),
    "NUL in a header": (HEAD.replace(b"Host", b"X: a\0b\r\nHost"), 400, "bad_request"),
    "length and chunks": (
        sized(b"{}").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        400,
        "bad_request",
    ),
    "two lengths": (sized(b"{}").replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), 400, "bad_request"),
    "bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400, "bad_request"),
    "encoded body": (sized(b"x").replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), 400, "bad_request"),
    "bad JSON": (sized(b'{"message": '), 400, "bad_request"),
    "deep JSON": (sized(b"[" * 100_000), 400, "bad_request"),
    "deep JSON in a message": (sized(b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}"), 400, "bad_request"),
    "bad UTF-8": (sized(b'{"message": "\xff\xfe"}'), 400, "bad_request"),
    "lone surrogate": (sized(b'{"message": "\\ud800"}'), 400, "bad_request"),
    "no object": (sized(b'["message"]'), 400, "bad_request"),
    "no body at all": (sized(b""), 400, "bad_request"),
    "wrong type": (sized(b'{"message": 5}'), 400, "bad_request"),
    "empty message": (sized(b'{"message": "  "}'), 400, "bad_request"),
    "unknown field": (sized(b'{"message": "x", "nope": 1}'), 400, "bad_request"),
    "both kinds": (sized(b'{"message": "x", "messages": [{"role": "user", "content": "x"}]}'), 400, "bad_request"),
    "messages of no kind": (sized(b'{"messages": ["x"]}'), 400, "bad_request"),
    "no messages": (sized(b'{"messages": []}'), 400, "bad_request"),
    "1001 messages": (sized(b'{"messages": [' + b'{"role":"user"},' * 1000 + b'{"role":"user"}]}'), 400, "bad_request"),
    "bad session": (sized(b'{"message": "x", "session_id": "a b"}'), 400, "bad_request"),
    "openai without messages": (sized(b'{"model": "m"}', b"/openai"), 400, "bad_request"),
    "openai with a bad model": (sized(b'{"model": 1, "messages": [1]}', b"/openai"), 400, "bad_request"),
    "openai with a bad stream": (sized(b'{"stream": "yes", "messages": [1]}', b"/openai"), 400, "bad_request"),
    "dot segments": (HEAD.replace(b"/nowhere", b"/proxy/%2e%2e/admin"), 400, "bad_request"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
async def test_bad_request_is_told_what_is_wrong_with_it(stage: Stage, kind: str) -> None:
    raw, status, code = BAD_REQUESTS[kind]
    before = len(stage.upstream.exchanges)
    assert await refused(stage, raw) == (status, code)
    assert len(stage.upstream.exchanges) == before


@pytest.mark.parametrize("path", [b"/chat", b"/openai", b"/proxy/x"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_of_9_mb_is_413(stage: Stage, path: bytes, chunked: bool) -> None:
    body, head = b"x" * (9 << 20), POST.replace(b"/chat", path)
    if chunked:
        raw = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    else:
        raw = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert await refused(stage, raw) == (413, "body_too_large")


async def test_client_that_waits_to_be_asked_for_its_body_is_asked(stage: Stage) -> None:
    body = msgspec.json.encode({"message": stage.plays(openai_answer("one"))})
    reader, writer = await connected(stage)
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    answer = Response(reader, writer)
    await answer.read_head()
    assert text_of(await whole(answer)) == "one"


async def test_client_whose_body_is_not_wanted_is_not_asked_for_it(stage: Stage) -> None:
    reader, writer = await connected(stage)
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (9 << 20))
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413 ")
    writer.close()


MESSAGE = b'{"role": "user", "content": "x"},'
BURDENS: dict[str, bytes] = {
    "9 MB body": sized(b"x" * (9 << 20)),
    "9 MB in chunks": POST
    + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (9 << 20)
    + b"x" * (9 << 20)
    + b"\r\n0\r\n\r\n",
    "300 headers": BAD_REQUESTS["300 headers"][0],
    "bad JSON": BAD_REQUESTS["bad JSON"][0],
    "3 MB of bad JSON": sized(b'{"messages": [' + MESSAGE * 90_000 + b"]}"),
    "3 MB of the wrong kind": sized(b'{"messages": [' + MESSAGE * 90_000 + b"1]}"),
    "4 MB of brackets": sized(b"[" * 4_000_000),
}
LAG = 0.02
PINGS = 100
USUAL = 0.01
"""Seconds for a million turns of an empty loop on a usual machine."""


def slowness() -> float:
    """How many times slower than a usual machine this one is, at least 1."""
    return max(1.0, min(timeit.repeat("sum(range(1_000_000))", number=1, repeat=5)) / USUAL)


def ping(address: str) -> list[float]:
    """Seconds that each of many short requests took, sorted; asked from a process that does nothing else."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        return sorted(pinged(connection) for _ in range(PINGS))


def pinged(connection: socket.socket) -> float:
    time.sleep(0.002)
    began = time.monotonic()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096)
    return time.monotonic() - began


@pytest.mark.alone
@pytest.mark.parametrize("burden", BURDENS)
async def test_large_and_malformed_requests_delay_nobody(stage: Stage, burden: str) -> None:
    """C12: while such requests come one after the other, the loop is less than 20 ms late for others."""
    # A machine that is slow, or busy with other things, is late by itself: it is granted both, and may try again.
    limit = LAG * slowness() * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    late = [await lateness(stage, burden)]
    while late[-1] > limit and len(late) < 3:
        late.append(await lateness(stage, burden))
    assert min(late) < limit, late


async def lateness(stage: Stage, burden: str) -> float:
    """The 95th percentile of the seconds that others wait meanwhile."""
    pinging = asyncio.create_task(pings(stage))
    count = 0
    while not pinging.done():
        assert (await refused(stage, BURDENS[burden]))[0] in (400, 413, 431)
        count += 1
    times = await pinging
    middle, most, worst = (times[int(share * (PINGS - 1))] for share in (0.5, 0.95, 1))
    print(f"{count:5} x {burden:22} {middle * 1e3:5.1f} ms, 95 % {most * 1e3:5.1f} ms, worst {worst * 1e3:5.1f} ms")
    return most


async def pings(stage: Stage) -> list[float]:
    command = (sys.executable, "-m", __name__, stage.gateway.admin.removeprefix("http://"))
    pinging = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    told, _ = await pinging.communicate()
    return msgspec.json.decode(told, type=list[float])


async def test_openai_request_keeps_fields_that_the_gateway_does_not_know(stage: Stage) -> None:
    question = stage.plays(openai_answer("x"))
    body = completion(question, stream=True, seed=7, vendor={"深": [1, None]})
    async with await stage.post("/openai", body) as answer:
        assert answer.status == 200
        await answer.body()
    sent = stage.asked(question)[0].json()
    assert (sent["seed"], sent["vendor"]) == (7, {"深": [1, None]})


# C13


@pytest.mark.parametrize("path", ["/chat", "/proxy/x"])
async def test_http_1_0_client_gets_a_stream_until_close(stage: Stage, path: str) -> None:
    question = stage.plays(openai_answer("one", "two"))
    target = stage.url(path, question).removeprefix(stage.gateway.url)
    async with await answered(stage, f"GET {target} HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n".encode()) as answer:
        assert answer.status == 200
        assert "transfer-encoding" not in answer.headers
        assert b"two" in await answer.body()
    assert not answer.broken


async def test_http_1_0_client_gets_other_answers(stage: Stage) -> None:
    question = stage.plays([response(200, '{"a":1}')])
    target = stage.url("/proxy/x", question).removeprefix(stage.gateway.url)
    async with await answered(stage, f"GET {target} HTTP/1.0\r\n\r\n".encode()) as answer:
        assert await answer.json() == {"a": 1}
    async with await answered(stage, b"GET /nowhere HTTP/1.0\r\n\r\n") as answer:
        assert answer.status == 404


async def test_head_gets_headers_only_and_starts_nothing(stage: Stage) -> None:
    reader, writer = await connected(stage)
    for path, status in ((b"/chat?message=never", 200), (b"/nowhere", 404), (b"/", 200)):
        writer.write(b"HEAD " + path + b" HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 %d " % status), head  # the next one begins where this one ends
    assert b"text/html" in head
    writer.close()
    await writer.wait_closed()
    assert not stage.asked("never")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/chat", "GET, HEAD, POST"),
        ("OPTIONS", "/chat", "GET, HEAD, POST"),
        ("GET", "/openai", "POST"),
        ("PUT", "/streams/x", "DELETE, GET"),
        ("GET", "/streams/x/stop", "POST"),
        ("POST", "/", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_405_with_allow(stage: Stage, method: str, path: str, allow: str) -> None:
    async with await request(stage.url(path), method=method, headers=EVENTS) as answer:
        assert (answer.status, answer.headers["allow"]) == (405, allow)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/chat/", "/chat/x", "//chat", "/proxy", "/streams", "/%63hat", "/streams/x/y"]
)
async def test_unknown_path_is_404(stage: Stage, path: str) -> None:
    async with await request(stage.gateway.url + path, headers=EVENTS) as answer:
        assert (answer.status, answer.media_type) == (404, "application/problem+json")
        assert (await answer.json())["code"] == "not_found"


async def test_absolute_request_target_works(stage: Stage) -> None:
    question = stage.plays(openai_answer("x"))
    raw = f"GET {stage.url('/chat', question)} HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n\r\n"
    async with await answered(stage, raw.encode()) as answer:
        assert b'"x"' in await answer.body()


if __name__ == "__main__":
    print(msgspec.json.encode(ping(sys.argv[1])).decode())
