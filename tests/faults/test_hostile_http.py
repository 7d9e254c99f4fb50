"""Requests and answers that HTTP allows or that somebody makes up: methods, upgrades, statuses, one hop's headers (H1);
what clients ask of a healthy endpoint (H3); and lists in several lines (H4).
Paths that some upstream would take for others (H2)."""

import asyncio
from typing import Any

import pytest

from tests.faults.stage import Stage, stage_fixture
from tests.kit.upstream import Hang, Script, Step, http_head, response, sse_head
from tests.web.forwarded import ADDRESSES

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT_KEY = "client-key-0123456789"
BREAKER = {"retries": 2, "breaker": {"failures": 2, "open": "1h"}}


def upstreams(url: str) -> dict[str, Any]:
    def targets(*bases: str) -> dict[str, Any]:
        return {"dialect": "sse", "targets": [{"url": f"{url}/{base}"} for base in bases], "retries": 0}

    # Two targets, or a fallback: the only target is never taken out of service.
    soon = {"breaker": {"failures": 1, "open": "100ms"}, "fallback": ["plain"]}
    return {
        "plain": targets("base"),
        "pair": targets("base", "base2") | BREAKER,
        "soon": targets("probed") | soon,
    }


stage = stage_fixture(
    upstreams=upstreams,
    routes=[
        {"path": "/p/{path}", "api": "proxy", "upstream": "plain"},
        {"path": "/few/{path}", "api": "proxy", "upstream": "plain", "methods": ["GET", "POST"]},
        {"path": "/pair/{path}", "api": "proxy", "upstream": "pair"},
        {"path": "/soon/{path}", "api": "proxy", "upstream": "soon"},
    ],
)


async def said(stage: Stage, data: bytes, *, admin: bool = False) -> bytes:
    """All that comes on a connection that sends these bytes, until the gateway closes it."""
    host, port = (stage.gateway.admin if admin else stage.gateway.url).removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.transport.abort()


async def asked(stage: Stage, line: bytes, script: Script = (), *, headers: bytes = b"", body: bytes = b"") -> bytes:
    """What a client is answered that closes behind one request."""
    stage.plays(script or [response(200, "{}")])
    return await said(stage, line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + headers + b"\r\n" + body)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def seen(stage: Stage) -> list[bytes]:
    """The request lines that the upstream saw."""
    return [exchange.head.split(b"\r\n")[0] for exchange in stage.upstream.exchanges]


# H1: methods


@pytest.mark.parametrize("admin", [False, True])
@pytest.mark.parametrize(
    "line", [b"TRACE /p/x", b"CONNECT /p/x", b"CONNECT 127.0.0.1:1", b"TRACE /nowhere", b"TRACE /"]
)
async def test_trace_and_connect_are_405_everywhere(stage: Stage, line: bytes, admin: bool) -> None:
    """H1"""
    stage.plays([response(200, "{}")])
    answer = await said(
        stage, line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-A: b\r\n\r\n", admin=admin
    )
    assert (status(answer), seen(stage)) == (405, [])
    assert b"\r\nAllow: " in answer
    assert b"X-A" not in answer


@pytest.mark.parametrize("method", [b"trace", b"Trace", b"TRACK", b"GET\t", b"get", b"G\x00T", b"\xffGET", b"X" * 40])
async def test_odd_method_is_not_relayed(stage: Stage, method: bytes) -> None:
    """H1"""
    assert (status(await asked(stage, method + b" /p/x")), seen(stage)) == (400, [])


async def test_route_passes_on_the_methods_that_it_names(stage: Stage) -> None:
    """H1"""
    for method, expected in ((b"GET", 200), (b"HEAD", 200), (b"POST", 200), (b"PUT", 405), (b"TRACE", 405)):
        answer = await asked(stage, method + b" /few/x", [http_head(200, "text/x", Content_Length="0")])
        assert status(answer) == expected, method
        assert expected == 200 or b"\r\nAllow: GET, HEAD, POST\r\n" in answer
        assert len(seen(stage)) == (expected == 200)


async def test_options_of_this_hop_are_answered_here(stage: Stage) -> None:
    """H1"""
    answer = await asked(stage, b"OPTIONS /p/x", headers=b"Max-Forwards: 0\r\n")
    assert (status(answer), seen(stage)) == (204, [])
    await asked(stage, b"OPTIONS /p/x", headers=b"Max-Forwards: 7\r\n")
    assert stage.upstream.exchanges[0].headers["max-forwards"] == "6"


# H1: upgrades


@pytest.mark.parametrize("admin", [False, True])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0", b"x, websocket"])
async def test_upgrade_is_ignored_and_ends_the_connection(stage: Stage, protocol: bytes, admin: bool) -> None:
    """H1: what stands behind it is in no protocol that was agreed on."""
    stage.plays([response(200, "{}")])
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\nSec-WebSocket-Key: YQ==\r\n"
    head = b"POST /p/x HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: " + protocol + b"\r\n" + upgrade
    head += b"Content-Length: 5\r\n\r\nhello"
    answer = await said(stage, head, admin=admin)
    assert status(answer) == (404 if admin else 200)
    assert b"\r\nConnection: close\r\n" in answer
    if not admin:
        exchange = stage.upstream.exchanges[0]
        assert (exchange.body, len(seen(stage))) == (b"hello", 1)
        assert not {"upgrade", "http2-settings"} & set(exchange.headers)
        assert "pgrade" not in exchange.headers.get("connection", "")


# H1: statuses


WRONG: dict[str, bytes] = {
    "101 with Upgrade": b"HTTP/1.1 101 Now\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00",
    "101": b"HTTP/1.1 101 Now\r\n\r\nhello",
    **{
        number: f"HTTP/1.1 {number} Fine\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        for number in ("000", "099", "0", "-1", "20", "600", "999", "1000", "2000", "abc")
    },
    **{
        f"reason {reason!r}": b"HTTP/1.1 200 O" + reason + b"K\r\nContent-Length: 2\r\n\r\n{}"
        for reason in (b"\x00", b"\x07", b"\x1b[31m", b"\x7f", b"\r")
    },
    "control in a header": b"HTTP/1.1 200 OK\r\nX-A: b\x1bc\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", WRONG)
async def test_answer_that_is_no_http_is_502_and_ends_the_connection(stage: Stage, answer: str) -> None:
    """H1: in every kind of route."""
    for line in (b"GET /p/x", b"GET /chat/openai?message=hi"):
        told = await asked(stage, line, [WRONG[answer]])
        assert (status(told), b'"upstream_protocol"' in told) == (502, True), (line, told)
        assert b"Fine" not in told
        await stage.hung_up()


@pytest.mark.parametrize("number", [100, 102, 103, 199])
async def test_informational_answers_before_the_answer_are_passed_over(stage: Stage, number: int) -> None:
    """H1"""
    before = f"HTTP/1.1 {number} Wait\r\nLink: </x>; rel=preload\r\n\r\n".encode()
    told = await asked(stage, b"GET /p/x", [before * 3 + response(200, "{}")])
    assert (status(told), b"Link" in told) == (200, False)


async def test_upstream_that_never_stops_to_say_go_on_is_502_and_hung_up(stage: Stage) -> None:
    """H1: however much of it comes at once."""
    flood = b"HTTP/1.1 103 Wait\r\nLink: </x>\r\n\r\n" * 10_000
    for line in (b"GET /p/x", b"GET /chat/openai?message=hi"):
        told = await asked(stage, line, [flood] * 50)
        assert (status(told), b'"upstream_protocol"' in told) == (502, True), (line, told)
        await stage.hung_up()


@pytest.mark.parametrize("number", [201, 202, 206, 226, 299, 305, 308, 401, 418, 451, 501, 599])
async def test_every_status_of_an_answer_is_relayed(stage: Stage, number: int) -> None:
    """H1"""
    told = await asked(
        stage, b"POST /p/x", [response(number, '{"a":1}', Location="/else")], headers=b"Content-Length: 0\r\n"
    )
    assert (status(told), told.endswith(b'{"a":1}')) == (number, True)


async def test_headers_of_one_hop_stay_there_however_many_lines_name_them(stage: Stage) -> None:
    """H1, H4"""
    lines = b"Connection: X-One\r\nConnection: keep-alive , x-two\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n"
    lines += (
        b"Keep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\nProxy-Authorization: Basic eA==\r\nTrailer: X\r\n"
    )
    back = response(200, "{}", Proxy_Authenticate="Basic").replace(b"\r\n", b"\r\n" + lines, 1)
    answer = await asked(stage, b"GET /p/x", [back], headers=lines)
    for headers in (stage.upstream.exchanges[0].head.lower(), answer.lower()):
        assert b"\r\nx-three: 3" in headers
        for name in (b"x-one", b"x-two", b"keep-alive", b"proxy-", b"trailer", b"\r\nte:"):
            assert name not in headers, (name, headers)


# H2


REFUSED = [
    *("..", ".", "a/..", "../x", "..%2fx", "a/%2e%2e/x", "%2e%2e%2fx", ".%2E/x", "a/%2e/x", "a%2f..%2fb"),
    *("%2f..", "%2F%2E%2E", "a%2f..", "%2fx", "/x", "//h/x", "/%2e%2e/x"),
    *("%5c", "a%5c..%5cb", "..%5Cx", "a\\b", "..\\x", "\\..", "%255c", "a%c1%9cb", "%EF%BC%BC"),
    *("..;", "..;/x", "..;a=b/x", "a/..;/b", ".;/x", "..%3b/x", "..%253b/x", "%2e%2e;/x"),
    *("%00", "a%00b", "..%00/x", "a%2500b", "a%0d%0aX:y", "a%0ab", "a%09", "a%7f", "%C0%80/.."),
    *("%252e%252e/x", "%25252e%25252e/x", "%252e%252e%252fx", "..%252fx", "%2e%252e/x", "%25252525252e"),
    *("%c0%ae%c0%ae/x", "%e0%80%ae%e0%80%ae/x", "%f0%80%80%ae./x", "..%c0%afx", "..%e0%80%afx", "%25c0%25ae./x"),
    *("%u002e%u002e/x", "..%u002fx", "%uff0e%uff0e/x", "%ef%bc%8e%ef%bc%8e/x", "..%ef%bc%8fx", "%e2%80%a5/x"),
    *("..%20/x", "%20../x", "..%3fx", "..%23x", "..%3F/x"),
]

PASSED = [
    *("a/b", "a.b/...", ".x/..y/z..", "a%2fb", "a//b", "%7e~;v=1,2/", "a;b/@:!$&'()*+", "http://h/x", "a@h:1/x"),
    *("100%", "100%25", "%zz", "a%20b", "a%3fb", "a%23b", "%E4%BD%A0", "%C4%E3", "x?a=../..", "x?a=%2e%2e%2f&b=%00"),
]


async def paths_asked(stage: Stage, targets: list[str]) -> tuple[list[int], list[str]]:
    """The statuses for these targets, asked one behind the other, and what the upstream saw."""
    stage.plays([response(200, "{}")])
    host, port = stage.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.writelines(f"GET {target} HTTP/1.1\r\nHost: g\r\n\r\n".encode() for target in targets[:-1])
    writer.write(f"GET {targets[-1]} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
    writer.close()
    return [int(answer[:3]) for answer in answers], [exchange.target for exchange in stage.upstream.exchanges]


@pytest.mark.parametrize("before", ["/p/", "http://127.0.0.1/p/"])
async def test_path_that_may_lead_elsewhere_is_400_and_nobody_is_asked(stage: Stage, before: str) -> None:
    """H2: with an absolute target as well."""
    assert await paths_asked(stage, [before + path for path in REFUSED]) == ([400] * len(REFUSED), [])


async def test_path_that_stays_below_its_route_is_passed_on_to_the_byte(stage: Stage) -> None:
    """H2"""
    statuses, targets = await paths_asked(stage, ["/p/" + path for path in PASSED])
    assert (statuses, targets) == ([200] * len(PASSED), ["/base/" + path for path in PASSED])


async def test_authority_of_the_request_target_leads_nowhere(stage: Stage) -> None:
    """H2"""
    statuses, targets = await paths_asked(stage, ["//h/p/x", "http://h/p/x", "http://u:p@h:1/p/x", "http://h/../p/x"])
    assert (statuses, targets) == ([404, 200, 200, 400], ["/base/x", "/base/x"])


# H3


HEALTHY: dict[str, tuple[list[Step], int]] = {
    "page": ([response(200, "<p>hi</p>", "text/html")], 502),
    "object": ([response(200, "{}")], 502),
    "redirect": ([response(302, "", Location="/else")], 502),
    "created": ([response(201, "{}")], 201),
    "part": ([response(206, "x")], 206),
    "not modified": ([http_head(304)], 304),
    **{
        str(number): ([response(number, "{}")], number) for number in (400, 401, 403, 404, 405, 406, 413, 415, 422, 431)
    },
    "encoded": ([http_head(200, Content_Encoding="gzip", Content_Length="2"), b"xx"], 502),
    "silent stream": ([sse_head(), Hang()], 504),
    "stalled stream": ([sse_head(), b"7\r\ndata: \n\r\n", b"9\r\ndata: x\n\n\r\n", Hang()], 200),
}


@pytest.mark.parametrize("case", HEALTHY)
async def test_what_a_client_asks_for_takes_no_target_out_of_service(stage: Stage, case: str) -> None:
    """H3: asked ten times, with a breaker that opens at two failures."""
    script, expected = HEALTHY[case]
    headers = b"Accept: text/event-stream\r\nContent-Length: 0\r\n"
    for method in (b"POST", b"GET", b"POST", b"POST", b"POST"):
        told = await asked(stage, method + b" /pair/x", script, headers=headers)
        assert (status(told) == expected) or (method == b"GET" and b'"upstream_' in told), told
        if expected < 500 or "stream" not in case:
            assert len(seen(stage)) == 1  # nobody is asked again for what a client got wrong
        await stage.at_rest()
    await healthy(stage)


async def healthy(stage: Stage) -> None:
    """Both targets of the pair are in service."""
    opened = await stage.metrics("gateway_breaker_open")
    assert not [line for line in opened if 'upstream="pair"' in line and not line.endswith(" 0.0")]


async def test_client_that_leaves_takes_no_target_out_of_service(stage: Stage) -> None:
    """H3: before a head, within a body, within a stream, and within its own upload."""
    host, port = stage.gateway.url.removeprefix("http://").split(":")
    scripts: list[list[Step]] = [[Hang()], [http_head(200, "text/x", Content_Length="9"), b"x", Hang()]]
    scripts.append([sse_head(), Hang()])
    for script in scripts:
        for _ in range(3):
            stage.plays(script)
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /pair/x HTTP/1.1\r\nHost: g\r\n\r\n")
            await stage.upstream.exchange()
            writer.transport.abort()
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /pair/x HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\nhalf of it")
    writer.transport.abort()
    await healthy(stage)


async def is_open(stage: Stage, upstream: str) -> bool:
    """Whether a target is out of service."""
    lines = await stage.metrics("gateway_breaker_open")
    return any(f'upstream="{upstream}"' in line and line.endswith(" 1.0") for line in lines)


@pytest.mark.parametrize("number", [400, 404, 405, 422, 429, 501])
async def test_what_a_client_asks_for_keeps_no_failing_target_in_service(stage: Stage, number: int) -> None:
    """H3: an error that the client caused counts for nothing; a probe that is answered so is none."""
    assert status(await asked(stage, b"POST /soon/x", [response(500, "{}")])) == 500
    assert await is_open(stage, "soon")
    async with asyncio.timeout(5):
        while not any(line.startswith(b"GET /probed/x ") for line in seen(stage)):
            assert status(await asked(stage, b"GET /soon/x", [response(number, "{}")])) == number
    assert await is_open(stage, "soon")
    async with asyncio.timeout(5):
        while await is_open(stage, "soon"):
            assert status(await asked(stage, b"GET /soon/x", [response(200, "{}")])) == 200


# H4


trusting = stage_fixture(
    server={"trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]},
    auth={"anonymous": True, "keys": [{"id": "web", "key": CLIENT_KEY}]},
    cors={"origins": ["https://app.example"], "credentials": True},
    upstreams=upstreams,
    routes=[{"path": "/p/{path}", "api": "proxy", "upstream": "plain"}],
)


@pytest.mark.parametrize(("lines", "address"), ADDRESSES)
async def test_client_behind_a_trusted_proxy_does_not_choose_its_address(
    trusting: Stage, lines: bytes, address: str
) -> None:
    """H4"""
    name = f"a{ADDRESSES.index((lines, address))}"
    assert status(await asked(trusting, b"GET /nowhere", headers=lines + f"X-Request-Id: {name}\r\n".encode())) == 404
    assert (await trusting.gateway.logged("request", request_id=name))["address"] == address


async def test_address_is_the_peers_where_no_proxy_is_trusted(stage: Stage) -> None:
    """H4"""
    for index, lines in enumerate((b"X-Forwarded-For: 9.9.9.9\r\n", b"Forwarded: for=9.9.9.9\r\n")):
        await asked(stage, b"GET /nowhere", headers=lines + f"X-Request-Id: peer{index}\r\n".encode())
        assert (await stage.gateway.logged("request", request_id=f"peer{index}"))["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    "lines",
    [
        b"Cookie: a=1\r\nCookie: gateway_token=KEY\r\n",
        b"Cookie: gateway_token=KEY\r\nCookie: a=1; b=2\r\n",
        b"Cookie: gateway_token=KEY; gateway_token=KEY2\r\n",
        b'Cookie: a="1; gateway_token=KEY"\r\n',
        b"Cookie: a=1, gateway_token=KEY\r\n",
        b"Cookie: a=1 gateway_token =KEY\r\n",
    ],
)
async def test_cookie_credential_in_any_line_is_kept_from_the_upstream(trusting: Stage, lines: bytes) -> None:
    """H4"""
    lines = lines.replace(b"KEY", CLIENT_KEY.encode())
    answer = await asked(trusting, b"GET /p/x", headers=lines + b"Sec-Fetch-Site: same-origin\r\n")
    assert status(answer) in (200, 401)
    for exchange in trusting.upstream.exchanges:
        assert CLIENT_KEY.encode() not in exchange.head


async def test_cookies_in_several_lines_are_one_header(trusting: Stage) -> None:
    """H4: a proxy that speaks HTTP/2 may send each cookie in a line of its own."""
    lines = f"Cookie: a=1\r\nCookie: gateway_token={CLIENT_KEY}\r\nCookie: b=2\r\nX-Request-Id: lines\r\n".encode()
    answer = await asked(trusting, b"GET /p/x", headers=lines + b"Sec-Fetch-Site: same-origin\r\n")
    assert status(answer) == 200
    assert (await trusting.gateway.logged("request", request_id="lines"))["principal"] == "key:web"
    assert [each.headers["cookie"].replace(" ", "") for each in trusting.upstream.exchanges] == ["a=1;b=2"]


@pytest.mark.parametrize(
    "lines",
    [b"Cookie: z=\x88; gateway_\xfftoken=x\r\nCookie: b=1\r\n", b"Cookie: z=\x88; gateway_\xfftoken=x; b=1\r\n"],
)
async def test_bytes_that_are_no_text_join_nothing_on_their_way_to_the_upstream(trusting: Stage, lines: bytes) -> None:
    """H4: left out, as the HTTP library would, they make another cookie's name of what was judged here."""
    key = f"Authorization: Bearer {CLIENT_KEY}\r\nX-Own: 1\xe92\r\n".encode("latin-1")
    assert status(await asked(trusting, b"GET /p/x", headers=lines + key)) == 200
    [exchange] = trusting.upstream.exchanges
    assert "gateway_token" not in exchange.headers["cookie"]
    assert exchange.headers["cookie"].replace(" ", "").endswith(";b=1")
    assert "X-OWN: 1\ufffd2".encode() in exchange.head.upper()


async def test_list_in_several_lines_is_read_whole(stage: Stage) -> None:
    """H4: `Accept` that names events and more; `If-None-Match` with the tag in the second line."""
    lines = b"Accept: text/event-stream\r\nAccept: application/json\r\n"
    assert (await asked(stage, b"GET /p/x", headers=lines)).endswith(b"\r\n\r\n{}")  # no event that says it is none
    lines = b"Accept: application/json\r\nAccept: text/event-stream\r\n"
    told = await asked(stage, b"POST /chat/openai", headers=lines + b"Content-Length: 2\r\n", body=b"{}")
    assert status(told) == 400


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"Authorization: Bearer KEY\r\nAuthorization: Bearer KEY\r\n", 401),
        (b"Host: a\r\n", 400),
        (b"Last-Event-ID: a\r\nLast-Event-ID: b\r\nAccept: text/event-stream\r\n", 400),
        (b"Content-Length: 1\r\nContent-Length: 2\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", 400),
    ],
)
async def test_header_that_comes_once_only_is_not_believed_twice(trusting: Stage, lines: bytes, expected: int) -> None:
    """H4"""
    answer = await asked(trusting, b"GET /p/x", headers=lines.replace(b"KEY", CLIENT_KEY.encode()))
    assert (status(answer), seen(trusting)) == (expected, [])


async def test_two_origins_are_none_that_is_allowed(trusting: Stage) -> None:
    """H4"""
    lines = b"Origin: https://app.example\r\n"
    assert b"Access-Control-Allow-Origin: https://app.example" in await asked(trusting, b"GET /p/x", headers=lines)
    assert b"Access-Control-Allow-Origin" not in await asked(trusting, b"GET /p/x", headers=lines * 2)
    cookie = f"Cookie: gateway_token={CLIENT_KEY}\r\n".encode()
    assert status(await asked(trusting, b"GET /p/x", headers=lines + cookie)) == 200
    assert status(await asked(trusting, b"GET /p/x", headers=lines * 2 + cookie)) == 401
