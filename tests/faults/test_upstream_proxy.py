"""A proxy route hands on what it was sent and what was answered, less what is not for the other side."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from tests.faults.stage import API_KEY, EVENTS, Heard, Stage, listen, once, stage_fixture
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Exchange,
    Hang,
    Pause,
    Reset,
    Script,
    Step,
    chunk,
    http_head,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT_KEY = "client-key-0123456789"
OFF = {"resume": {"enabled": False}}


def route(name: str, **extra: Any) -> dict[str, Any]:
    return {"path": f"/{name}/{{path}}", "api": "proxy", "upstream": name} | extra


def upstreams(url: str) -> dict[str, Any]:
    settings: dict[str, dict[str, Any]] = {
        "bare": {"dialect": "sse"},
        "keyed": {"dialect": "openai", "api_key": API_KEY, "headers": {"X-Team": "ours", "User-Agent": "gw"}},
        "claude": {"dialect": "anthropic", "api_key": API_KEY},
    }
    return {name: each | {"targets": [{"url": f"{url}/base"}]} | once() for name, each in settings.items()}


ROUTES = [
    route("bare"),
    route("keyed"),
    route("claude"),
    route("off", upstream="bare", stream=OFF),
    route("short", upstream="bare", timeouts={"idle": "200ms"}),
    {"path": "/fixed", "api": "proxy", "upstream": "bare"},
]

stage = stage_fixture(upstreams=upstreams, routes=ROUTES)
guarded = stage_fixture(auth={"keys": [{"id": "web", "key": CLIENT_KEY}]}, upstreams=upstreams, routes=ROUTES)


async def send(stage: Stage, path: str, script: Script = (), **extra: Any) -> tuple[Heard, Exchange]:
    """What came back, and what the upstream saw."""
    stage.plays(script or [response(200, "{}")])
    async with asyncio.timeout(5), await request(f"{stage.gateway.url}{path}", **extra) as answer:
        heard = await listen(answer)
    return heard, stage.upstream.exchanges[-1]


async def headers_seen(stage: Stage, path: str, headers: Mapping[str, str]) -> dict[str, str]:
    _, exchange = await send(stage, path, headers=headers)
    return exchange.headers


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Incorrect API key provided: sk***89."),
        (402, "Insufficient Balance"),
        (500, "insufficient balance (1008)"),
    ],
)
async def test_refusal_of_our_account_is_not_passed_on(stage: Stage, status: int, said: str) -> None:
    """U10"""
    heard, _ = await send(stage, "/keyed/x", [response(status, msgspec.json.encode({"error": said}))], method="POST")
    assert (heard.status, heard.error["code"]) == (502, "upstream_auth")
    assert said[:12] not in heard.body


@pytest.mark.parametrize("length", [10, 200_000])
async def test_other_refusals_are_passed_on_whole(stage: Stage, length: int) -> None:
    body = msgspec.json.encode({"error": "x" * length})
    heard, _ = await send(stage, "/keyed/x", [response(422, body)], method="POST")
    assert (heard.status, heard.body.encode()) == (422, body)
    chunked = [
        http_head(422, "application/json", Transfer_Encoding="chunked"),
        chunk(body[:5]),
        chunk(body[5:]),
        LAST_CHUNK,
    ]
    heard, _ = await send(stage, "/keyed/x", chunked, method="POST")
    assert (heard.status, heard.body.encode()) == (422, body)


# the request


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
async def test_upstream_gets_method_and_body(stage: Stage, method: str) -> None:
    _, exchange = await send(stage, "/bare/x", method=method, body=b"\x00\xff{")
    assert (exchange.method, exchange.target, exchange.body) == (method, "/base/x", b"\x00\xff{")
    _, exchange = await send(stage, "/bare/x", method=method)
    assert (exchange.body, exchange.headers.get("content-length", "0")) == (b"", "0")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_upstream_is_asked_for_heads_and_options(stage: Stage, method: str) -> None:
    script: list[Step] = [http_head(200, "text/x", Content_Length="5" if method == "HEAD" else "0", X_A="b")]
    heard, exchange = await send(stage, "/bare/x", script, method=method, headers={"Connection": "close"})
    assert (exchange.method, heard.status, heard.headers["x-a"]) == (method, 200, "b")
    assert heard.headers["content-length"] == ("5" if method == "HEAD" else "0")


async def test_head_of_a_stream_has_no_body(stage: Stage) -> None:
    stage.plays([sse_head()])
    head = {"Connection": "close"} | EVENTS
    async with await request(f"{stage.gateway.url}/bare/x", method="HEAD", headers=head) as answer:
        assert (answer.status, answer.media_type) == (200, "text/event-stream")
        assert await asyncio.wait_for(answer._reader.read(), 5) == b""
    await stage.at_rest()


PATHS = [
    ("/bare/", "/base/"),
    ("/bare/a%2Fb%20c/%E4%BD%A0%7e~;v=1,2/", "/base/a%2Fb%20c/%E4%BD%A0%7e~;v=1,2/"),
    ("/bare/a//b/@:!$&'()*+", "/base/a//b/@:!$&'()*+"),
    ("/bare/x?q=%20a+b&&q=%zz&y=&z&%41=%2B", "/base/x?q=%20a+b&&q=%zz&y=&z&%41=%2B"),
    ("/bare/x?u=http://h/?a[]=1|{}", "/base/x?u=http://h/?a[]=1|{}"),
    ("/fixed?a=1", "/base?a=1"),
    ("/fixed", "/base"),
    ("/off/x?last_event_id=7&token=t", "/base/x?last_event_id=7&token=t"),
]


@pytest.mark.parametrize(("asked", "seen"), PATHS)
async def test_upstream_gets_rest_of_path_and_query_to_the_byte(stage: Stage, asked: str, seen: str) -> None:
    _, exchange = await send(stage, asked)
    assert exchange.target == seen


async def test_nothing_of_one_hop_reaches_the_upstream(stage: Stage) -> None:
    hop = {"Connection": "X-Hop, keep-alive", "X-Hop": "1", "Keep-Alive": "5", "TE": "trailers", "Upgrade": "h2c"}
    hop |= {"Proxy-Authorization": "Basic x", "Proxy-Connection": "keep-alive", "Trailer": "X-T"}
    seen = await headers_seen(stage, "/bare/x", hop | {"X-Mine": "kept", "Accept-Language": "zh", "Cookie": "a=b; c=d"})
    assert not {name.lower() for name in hop} - {"connection"} & set(seen)
    assert "X-Hop" not in seen.get("connection", "")
    assert (seen["x-mine"], seen["accept-language"], seen["cookie"]) == ("kept", "zh", "a=b; c=d")
    assert seen["host"] == f"127.0.0.1:{stage.upstream.port}"


async def test_upstream_learns_who_asked(stage: Stage) -> None:
    seen = await headers_seen(stage, "/bare/x", {"X-Forwarded-For": "192.0.2.1", "X-Request-Id": "abc"})
    assert seen["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
    assert (seen["x-forwarded-proto"], seen["x-request-id"]) == ("http", "abc")
    assert seen["x-forwarded-host"] == stage.gateway.url.removeprefix("http://")


async def test_header_in_another_encoding_harms_nobody(stage: Stage) -> None:
    stage.plays([response(200, "{}")])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stage.gateway.url.rsplit(":", 1)[1]))
    writer.write(b"GET /bare/x HTTP/1.1\r\nHost: h\r\nX-Name: caf\xe9\r\nX-U: caf\xc3\xa9\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200")


async def test_upstreams_own_headers_win(stage: Stage) -> None:
    seen = await headers_seen(
        stage, "/keyed/x", {"X-Team": "theirs", "User-Agent": "curl", "Authorization": "Bearer z"}
    )
    assert (seen["x-team"], seen["user-agent"]) == ("ours", "gw")
    assert seen["authorization"] == f"Bearer {API_KEY}"


async def test_key_is_sent_as_the_dialect_wants_it(stage: Stage) -> None:
    seen = await headers_seen(stage, "/claude/x", {"X-Api-Key": "theirs"})
    assert seen["x-api-key"] == API_KEY
    assert "authorization" not in seen
    seen = await headers_seen(stage, "/bare/x", {})
    assert API_KEY not in str(seen)


async def test_open_gateway_passes_the_endpoints_own_credentials(stage: Stage) -> None:
    headers = {"Authorization": "Bearer mine", "Cookie": "gateway_token=1"}
    _, exchange = await send(stage, "/bare/x?token=mine", headers=headers)
    assert exchange.target == "/base/x?token=mine"
    assert (exchange.headers["authorization"], exchange.headers["cookie"]) == ("Bearer mine", "gateway_token=1")


PRESENTED = {
    "header": ("", {"Authorization": f"Bearer {CLIENT_KEY}"}),
    "query": (f"&token={CLIENT_KEY}", {}),
    "encoded query": (f"&%74oken={CLIENT_KEY}", {}),
    "cookie": ("", {"Cookie": f"a=b; gateway_token={CLIENT_KEY}", "Sec-Fetch-Site": "same-origin"}),
    "twice": (
        f"&token={CLIENT_KEY}",
        {"Authorization": f"Bearer {CLIENT_KEY}", "Referer": f"http://h/?t={CLIENT_KEY}"},
    ),
}


@pytest.mark.parametrize("how", PRESENTED)
async def test_clients_credential_never_reaches_the_upstream(guarded: Stage, how: str) -> None:
    query, headers = PRESENTED[how]
    for path in ("/bare/x", "/keyed/x", "/off/x"):
        heard, exchange = await send(guarded, f"{path}?a=1{query}&b=2", headers=headers)
        assert heard.status == 200
        assert CLIENT_KEY not in exchange.head.decode()
        assert exchange.target == "/base/x?a=1&b=2"
        assert exchange.headers.get("cookie") == ("a=b" if "Cookie" in headers else None)
    assert not [line for line in guarded.gateway.stdout if CLIENT_KEY in line]


# the answer


@pytest.mark.parametrize("status", [200, 201, 302, 400, 404, 418, 429, 500, 503])
async def test_client_gets_status_headers_and_body_as_they_are(stage: Stage, status: int) -> None:
    script = [response(status, '{"a": 1 }', "application/json; x=y", Location="/else", Retry_After="9", ETag='"e"')]
    heard, _ = await send(stage, "/bare/x", script)
    assert (heard.status, heard.body) == (status, '{"a": 1 }')
    assert heard.headers["content-type"] == "application/json; x=y"
    assert (heard.headers["location"], heard.headers["retry-after"], heard.headers["etag"]) == ("/else", "9", '"e"')
    assert heard.headers["content-length"] == "9"


@pytest.mark.parametrize("status", [204, 304])
async def test_client_gets_answers_without_a_body(stage: Stage, status: int) -> None:
    heard, _ = await send(stage, "/bare/x", [http_head(status, X_A="b")])
    assert (heard.status, heard.body, heard.headers["x-a"]) == (status, "", "b")
    heard, _ = await send(stage, "/bare/x", [http_head(204)], headers=EVENTS)
    assert (heard.status, heard.body) == (204, "")


async def test_nothing_of_one_hop_reaches_the_client(stage: Stage) -> None:
    hop = {"Connection": "X-Hop", "X_Hop": "1", "Keep_Alive": "5", "Proxy_Authenticate": "Basic", "Trailer": "X-T"}
    script: list[Step] = [response(200, "{}", Set_Cookie="a=b", Vary="Accept", Server="secret/1", **hop)]
    heard, _ = await send(stage, "/bare/x", script)
    assert not {"x-hop", "keep-alive", "proxy-authenticate", "trailer"} & set(heard.headers)
    assert (heard.headers["set-cookie"], heard.headers["vary"]) == ("a=b", "Accept")
    assert "secret" not in heard.headers["server"]


async def test_large_bodies_pass_both_ways(stage: Stage) -> None:
    sent = bytes(range(256)) * 12_000
    before = stage.memory()

    def echo(exchange: Exchange) -> list[Step]:
        return [sse_head().replace(b"text/event-stream", b"image/x"), *[chunk(exchange.body)] * 10, LAST_CHUNK]

    stage.plays(echo)
    async with await request(f"{stage.gateway.url}/bare/x", method="POST", body=sent) as answer:
        assert await answer.body() == sent * 10
    assert stage.memory() - before < 32 << 20


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_encoded_bodies_pass_as_they_are(stage: Stage, coding: str) -> None:
    heard, _ = await send(stage, "/bare/x", [response(200, "not really", "text/x", Content_Encoding=coding)])
    assert (heard.body, heard.headers["content-encoding"]) == ("not really", coding)


BROKEN: dict[str, tuple[list[Step], str]] = {
    "cut": ([http_head(200, "text/x", Content_Length="99"), b"half", Pause(0.1), Cut()], "upstream_error"),
    "reset": ([http_head(200, "text/x", Content_Length="99"), b"half", Pause(0.1), Reset()], "upstream_error"),
    "stall": ([http_head(200, "text/x", Content_Length="99"), b"half", Hang()], "upstream_stalled"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_body_that_breaks_off_breaks_off_for_the_client_too(stage: Stage, how: str) -> None:
    script, outcome = BROKEN[how]
    heard, _ = await send(stage, "/short/x", script)
    assert (heard.body, heard.broken) == ("half", True)
    await stage.told(heard, outcome)
    await stage.at_rest()
    await stage.hung_up()


async def test_client_that_leaves_a_body_stops_the_upstream(stage: Stage) -> None:
    stage.plays([http_head(200, "text/x", Content_Length="99"), b"half", Hang()])
    answer = await request(f"{stage.gateway.url}/bare/x")
    assert await answer.read() == b"half"
    await answer.close()
    await stage.hung_up()
    await stage.at_rest()
    await stage.gateway.logged("stream_end", request_id=answer.headers["x-request-id"], outcome="client_gone")


# the events

BODY = (
    "event: a\ndata: 1\ndata:  2\ndata\n\n"
    'event: 你好\ndata: {"x": "é"}\n\n'
    ": comment\ndata: plain\r\n\r\n"
    "id: 7\nevent: nothing\n\n"
    "data:\n\n"
    "event: done\nid: 8\ndata: x\n\n"
)
EXPECTED = [("a", "1\n 2\n"), ("你好", '{"x": "é"}'), ("message", "plain"), ("message", ""), ("done", "x")]


@pytest.mark.parametrize("path", ["/bare/x", "/off/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_client_gets_event_and_data_exactly(stage: Stage, path: str, method: str) -> None:
    for headers in (EVENTS, {}):
        script: list[Step] = [sse_head(), chunk(BODY), LAST_CHUNK]
        heard, _ = await send(stage, path, script, method=method, headers=headers)
        assert [(message.type, message.data) for message in heard.messages if message.data] == [
            pair for pair in EXPECTED if pair[1]
        ]
        assert heard.headers["content-type"] == "text/event-stream; charset=utf-8"
        await stage.told(heard, "completed")


async def test_lines_become_events_for_who_reads_events_only(stage: Stage) -> None:
    lines = http_head(200, "application/x-ndjson", Transfer_Encoding="chunked")
    script: list[Step] = [lines, chunk('{"a":1}\n\n{"b"'), chunk(':2}\r\n{"c":3}'), LAST_CHUNK]
    heard, _ = await send(stage, "/bare/x", script, headers=EVENTS)
    assert [message.data for message in heard.messages] == ['{"a":1}', '{"b":2}', '{"c":3}']
    for accept in ("*/*", "application/x-ndjson", "application/json, text/event-stream"):
        heard, _ = await send(stage, "/bare/x", script, headers={"Accept": accept})
        assert heard.headers["content-type"] == "application/x-ndjson"
        assert heard.body == '{"a":1}\n\n{"b":2}\r\n{"c":3}'


async def test_client_that_reads_events_and_json_gets_what_there_is(stage: Stage) -> None:
    headers = {"Accept": "application/json, text/event-stream"}
    heard, _ = await send(stage, "/bare/x", [response(200, '{"a":1}')], method="POST", headers=headers)
    assert (heard.status, heard.body) == (200, '{"a":1}')
    heard, _ = await send(stage, "/bare/x", [sse_head(), chunk(BODY), LAST_CHUNK], method="POST", headers=headers)
    assert heard.messages[0].data == "1\n 2\n"


async def test_ids_pass_both_ways_with_resume_off(stage: Stage) -> None:
    stage.plays([sse_head(), chunk("id: 7\nretry: 5\ndata: x\n\n"), LAST_CHUNK])
    async with await request(f"{stage.gateway.url}/off/x", headers=EVENTS, last_event_id="theirs-6") as answer:
        heard = await listen(answer)
    assert stage.upstream.exchanges[-1].headers["last-event-id"] == "theirs-6"
    assert [(message.data, message.last_event_id) for message in heard.messages] == [("x", "7")]


async def test_clients_cursor_is_kept_from_the_upstream_with_resume_on(stage: Stage) -> None:
    heard, exchange = await send(stage, "/bare/x", headers={"Last-Event-ID": "x", "Accept": "*/*"})
    assert heard.status == 200
    assert "last-event-id" not in exchange.headers


LAST_WORDS = {
    "openai": b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    "anthropic": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "unnamed": b'data: {"type":"message_stop"}\n\n',
    "responses": b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',
    "home-made": b"event: done\ndata: {}\n\n",
}


@pytest.mark.parametrize("api", LAST_WORDS)
async def test_stream_that_said_its_last_word_may_lose_its_connection_or_fall_silent(stage: Stage, api: str) -> None:
    """U14: nothing is missing, so an error behind it would be a second end."""
    sent: list[Step] = [sse_head(), chunk(b"data: Hi\n\n"), chunk(LAST_WORDS[api]), Pause(0.1)]
    for end in (Cut(), Reset()):
        heard, _ = await send(stage, "/bare/x", [*sent, end], method="POST")
        await stage.told(heard, "completed")
        assert heard.messages[-1].data in LAST_WORDS[api].decode()
    heard, _ = await send(stage, "/bare/x", [*sent, Hang()], method="POST")
    await stage.told(heard, "completed")  # once it is silent for `idle`
    assert heard.messages[-1].data in LAST_WORDS[api].decode()
    heard, _ = await send(stage, "/bare/x", [*sent, chunk(b"data: more\n\n"), Pause(0.1), Cut()], method="POST")
    await stage.told(heard, "upstream_error")
    assert heard.messages[-1].type == "error"


async def test_lines_that_said_their_last_word_may_lose_their_connection(stage: Stage) -> None:
    """U14, for an Ollama that a page reads as events."""
    head = http_head(200, "application/x-ndjson", Transfer_Encoding="chunked")
    lines = chunk(b'{"message":{"content":"Hi"},"done":false}\n') + chunk(b'{"done":true}\n')
    heard, _ = await send(stage, "/bare/x", [head, lines, Pause(0.1), Cut()], method="POST", headers=EVENTS)
    await stage.told(heard, "completed")
    assert heard.messages[-1].data == '{"done":true}'
