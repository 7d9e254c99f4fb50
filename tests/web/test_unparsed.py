"""What is no valid request is answered like any other refusal, and nothing of its bytes is told to anybody."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from gateway.web.unparsed import Remains, read_remains, unparsable
from tests.kit.sse_client import Response
from tests.seams.serving import Serving, serving
from tests.web.stage import sent_on, setting

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://app.example.com"
SECRET = "sk-what-nobody-may-read"
ROUTES = [{"path": "/chat"}, {"path": "/v1/chat/completions", "api": "openai"}, {"path": "/own/{path}", "api": "proxy"}]
FIELDS = f"Host: x\r\nOrigin: {ORIGIN}\r\nX-Request-Id: r-7\r\nAuthorization: Bearer {SECRET}\r\n".encode()
GET, POST = f"GET /chat?token={SECRET} HTTP/1.1\r\n".encode() + FIELDS, b"POST /chat HTTP/1.1\r\n" + FIELDS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Serving]:
    config = setting("http://127.0.0.1:9", ROUTES, cors={"origins": [ORIGIN], "credentials": True})
    async with serving(config) as gateway:
        yield gateway


async def answered(gateway: Serving, *parts: bytes) -> Response:
    """The answer to these bytes, each part read by the gateway before the next one is sent."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for part in parts[:-1]:
        writer.write(part)
        await asyncio.sleep(0.05)  # nothing tells when the other side has read it
    writer.write(parts[-1])
    answer = Response(reader, writer)
    async with asyncio.timeout(5), answer:
        await answer.read_head()
        await answer.body()
    return answer


CASES: dict[str, tuple[tuple[bytes, ...], int, str]] = {
    "long request line": (
        (GET.replace(b"?", b"?x=" + b"a" * 20_000),),
        431,
        "16384 bytes; send a longer question by POST",
    ),
    "long header": ((GET + b"X: " + b"y" * 9000 + b"\r\n\r\n",), 431, "8190 bytes"),
    "many headers": ((GET + b"X: y\r\n" * 300 + b"\r\n",), 431, "128 headers"),
    "bad header": ((GET + f"{SECRET} x: y\r\n\r\n".encode(),), 400, "malformed header"),
    "header without a colon": ((GET + f"{SECRET}\r\n\r\n".encode(),), 400, "malformed header"),
    "folded header": ((GET + f"X: a\r\n {SECRET}\r\n\r\n".encode(),), 400, "malformed header"),
    "NUL": ((GET + f"X: {SECRET}\0\r\n\r\n".encode(),), 400, "malformed header"),
    "in two reads": ((GET, f"{SECRET} x: y\r\n\r\n".encode()), 400, "malformed header"),
    "version": ((GET.replace(b"/1.1", b"/3.7") + b"\r\n",), 400, "HTTP/1.1 or HTTP/1.0"),
    "method": ((GET.replace(b"GET", b"FETCH") + b"\r\n",), 400, "no method"),
    "lone LF": ((GET.replace(b"\r\n", b"\n") + b"\n",), 400, "CR LF"),
    "raw bytes": ((GET.replace(b"?", b"?q=\xc4\xe3&") + b"\r\n",), 400, "UTF-8"),
    "length": ((POST + f"Content-Length: 1{SECRET}\r\n\r\n{{}}".encode(),), 400, "Content-Length"),
    "two lengths": ((POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",), 400, "Content-Length"),
    "length and chunks": ((POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",), 400, "either"),
    "coding": ((POST + f"Transfer-Encoding: {SECRET}\r\n\r\n".encode(),), 400, "Transfer-Encoding"),
    "chunk": ((POST + f"Transfer-Encoding: chunked\r\n\r\nzz{SECRET}\r\n".encode(),), 400, "chunked body"),
    "later chunk": ((POST + b"Transfer-Encoding: chunked\r\n\r\n", f"zz{SECRET}\r\n".encode()), 400, "malformed"),
}


PATHS = (b"/chat", b"/v1/chat/completions", b"/nowhere")
ASKED = [(case, path) for case in CASES for path in PATHS if (case, path) != ("later chunk", b"/nowhere")]
"""Nobody reads a body at the latter."""


@pytest.mark.parametrize(("case", "path"), ASKED)
async def test_malformed_request_is_answered_as_any_other_refusal(gateway: Serving, case: str, path: bytes) -> None:
    parts, status, said = CASES[case]
    before = gateway.app.gateway.metrics.render()
    gateway.app.gateway.refusals.flush()  # the cases before count as one flood
    with capture_logs() as lines:
        answer = await answered(gateway, *(part.replace(b"/chat", path, 1) for part in parts))
    assert answer.status == status
    headers = answer.headers
    assert (headers["x-request-id"], headers["server"], headers["vary"]) == ("r-7", "gateway", "Origin")
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["access-control-allow-credentials"] == "true"
    body: dict[str, Any] = msgspec.json.decode(answer.raw)
    if path == b"/v1/chat/completions":
        assert answer.media_type == "application/json"
        body = body["error"]
        assert body["type"] == "invalid_request_error"
    else:
        assert answer.media_type == "application/problem+json"
        assert (body["status"], body["instance"]) == (status, "r-7")
    assert said in body["message"]
    [line] = [line for line in lines if line["event"] == "refused"]
    assert (line["code"], line["status"], line["request_id"]) == (body["code"], status, "r-7")
    assert SECRET not in answer.raw.decode() + str(lines) + str(answer.headers)
    assert gateway.app.gateway.metrics.render() != before


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        (b"Origin: https://evil.example\r\n", None),
        (f"Origin: {ORIGIN}\r\nOrigin: {ORIGIN}\r\n".encode(), None),
        (f"oRiGiN:{ORIGIN}\r\n".encode(), ORIGIN),
        (b"", None),
    ],
)
async def test_only_a_page_that_may_read_answers_may_read_this_one(
    gateway: Serving, fields: bytes, allowed: str | None
) -> None:
    answer = await answered(gateway, b"GET /chat HTTP/1.1\r\n" + fields + b"Bad Name: x\r\n\r\n")
    assert (answer.status, answer.headers.get("access-control-allow-origin")) == (400, allowed)


OTHER_VERSIONS = (b"", b" HTTP/0.9", b" HTTP/2.0", b" HTTP/1.2", b" HTTP/3.7")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "TRACE", "CONNECT")
PREFLIGHT = FIELDS + b"Access-Control-Request-Method: POST\r\nAccept: text/event-stream\r\n"


@pytest.mark.parametrize("version", OTHER_VERSIONS)
@pytest.mark.parametrize("path", [b"/chat?message=hi", b"/v1/chat/completions", b"/own/a", b"/nowhere", b"/"])
async def test_request_of_another_version_starts_nothing_whatever_it_asks_for(
    gateway: Serving, version: bytes, path: bytes
) -> None:
    """Not even a preflight is answered as such; the answer is one of a version that its client may know."""
    for method in METHODS:
        told = await closed_answer(gateway, method.encode() + b" " + path + version + b"\r\n" + PREFLIGHT + b"\r\n")
        head, _, body = told.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.0 400 Bad Request\r\n", b"HTTP/1.1 400 Bad Request\r\n")), (method, told)
        assert f"Access-Control-Allow-Origin: {ORIGIN}".encode() in head
        assert b"Access-Control-Allow-Methods" not in head
        words = b"HTTP/1.1 or HTTP/1.0", b"percent-encode"  # a target of CONNECT has no path
        assert (method == "HEAD" and not body) or any(said in body for said in words), (method, told)


async def closed_answer(gateway: Serving, data: bytes) -> bytes:
    """All bytes until the gateway closes, which it must do by itself."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_request_behind_a_good_one_is_refused_behind_its_answer(gateway: Serving) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    writer.write(GET + b"Bad Name: x\r\n\r\n")
    told = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert told.startswith(b"HTTP/1.0 400 ")
    assert told.count(b"HTTP/1.") == 1 + told.count(b"HTTP/1.1")


@pytest.mark.parametrize(
    "parts",
    [
        (GET + b"no colon\r\n\r\n",),
        (GET + b"X: " + b"y" * 70_000,),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"zz\r\n"),
    ],
    ids=["malformed", "too long", "malformed in its body"],
)
async def test_client_that_sends_on_reads_why_it_is_refused(gateway: Serving, parts: tuple[bytes, ...]) -> None:
    """TCP answers with a reset where a connection is closed too early, and the client may lose the answer by that."""
    status, broken = await sent_on(gateway.url, parts)
    assert status in (b"400", b"431")
    assert broken is None


@pytest.mark.parametrize("encoded", ["%C4%E3", "%C0%AF", "%ED%A0%80", "%F5%80%80%80", "a%E4%BD", "%E4&x=%BD%A0"])
@pytest.mark.parametrize("path", ["/chat?message=hi&q=", "/nowhere/", "/v1/chat/completions?q="])
async def test_query_and_path_that_are_no_utf_8_are_told_so(gateway: Serving, path: str, encoded: str) -> None:
    answer = await answered(
        gateway, f"GET {path}{encoded} HTTP/1.1\r\n".encode().replace(b"GET /v1", b"POST /v1") + FIELDS + b"\r\n"
    )
    assert answer.status == 400
    assert "UTF-8" in answer.raw.decode()


async def test_endpoint_behind_a_proxy_route_has_its_own_encoding(gateway: Serving) -> None:
    answer = await answered(gateway, b"GET /own/%C4%E3?q=%C4%E3 HTTP/1.1\r\n" + FIELDS + b"\r\n")
    assert answer.status == 502  # it was asked, and is not there


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions/chat/completions", 404),
        ("POST", "/v1/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/chat/completions", 405),
    ],
)
async def test_paths_and_methods_below_an_openai_route_are_refused_in_its_shape(
    gateway: Serving, method: str, path: str, status: int
) -> None:
    answer = await answered(gateway, f"{method} {path} HTTP/1.1\r\n".encode() + FIELDS + b"Content-Length: 0\r\n\r\n")
    assert (answer.status, answer.media_type) == (status, "application/json")
    error = msgspec.json.decode(answer.raw)["error"]
    assert (error["type"], error["code"]) == (
        "invalid_request_error",
        "not_found" if status == 404 else "method_not_allowed",
    )


@pytest.mark.parametrize(
    ("head", "remains"),
    [
        (b"GET /a?b HTTP/1.1\r\nOrigin: o\r\nX-Request-Id: 1", Remains("GET", "/a", "o", "1")),
        (b"\r\nGET http://h/a HTTP/1.1\nOrigin: o\n\nX-Request-Id: 1\n", Remains("GET", "/a", "o", "")),
        (b"GET /a", Remains("GET", "/a")),
        (b"GET \xff HTTP/1.1\r\n", Remains("GET")),
        (b"GET / HTTP/1.1\r\nOrigin: " + b"o" * 300 + b"\r\nX-Request-Id: a b\r\n", Remains("GET", "/")),
        (b"\x16\x03\x01", Remains()),
        (b"", Remains()),
    ],
)
async def test_what_can_be_read_of_a_head(head: bytes, remains: Remains) -> None:
    assert read_remains(head) == remains


async def test_words_of_the_parser_are_never_passed_on() -> None:
    assert unparsable(f"{SECRET}: 'x'\n {SECRET}").message == "The request is malformed: it is no HTTP/1.1."


FORM = "application/x-www-form-urlencoded"
BODIES: list[tuple[bytes, str, str]] = [
    ('{"message":"hi"}'.encode("utf-16"), "", "UTF-16"),
    ('{"message":"hi"}'.encode("utf-16-be"), "", "UTF-16"),
    (b'{"message":"\xc4\xe3"}', "application/json", "not valid UTF-8 (byte 12)"),
    (b'{"message":"\\ud83d"}', "", "half of a surrogate pair"),
    (b'{"message":"\\ud83d!"}', "", "half of a surrogate pair"),
    (b'{"message":"\\ude00"}', "", "half of a surrogate pair"),
    (b'{"message":"\\ud83d\\ude', "", "not valid JSON"),
    (b"", "", "empty"),
    (b" \r\n", "", "empty"),
    (b"message=%C4%E3", FORM, "not valid UTF-8"),
    (b"message=\xc4\xe3", FORM, "not valid UTF-8"),
    (b"hello", FORM, "name=value"),
    (b"a=1&" * 200, FORM, "100 fields"),
    (b"nope=1", FORM, "Unknown field"),
    (b"--x\r\n", "multipart/form-data; boundary=x", FORM),
]


@pytest.mark.parametrize(("body", "kind", "said"), BODIES)
async def test_body_that_cannot_be_read_is_told_in_a_sentence(
    gateway: Serving, body: bytes, kind: str, said: str
) -> None:
    label = f"Content-Type: {kind}\r\n".encode() if kind else b""
    answer = await answered(gateway, POST + label + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.status == 400
    assert said in msgspec.json.decode(answer.raw)["message"]


@pytest.mark.parametrize(
    ("target", "body", "kind"),
    [
        (b"/chat", b"message=two+w%C3%B6rter&session_id=s", FORM),
        (b"/chat", "message=two wörter".encode(), f"{FORM}; charset=utf-8"),
        (b"/chat", b'{"message":"two w\xc3\xb6rter"}', FORM),
        (b"/chat", b'\xef\xbb\xbf{"message":"two w\xc3\xb6rter"}', "application/json"),
        (b"/chat?message=two%20w%C3%B6rter", b"", ""),
        (b"/v1/chat/completions", b'\xef\xbb\xbf{"messages":[{"role":"user","content":"x"}]}', ""),
    ],
)
async def test_body_in_another_dress_is_accepted(gateway: Serving, target: bytes, body: bytes, kind: str) -> None:
    label = f"Content-Type: {kind}\r\n".encode() if kind else b""
    head = POST.replace(b"/chat", target) + label
    answer = await answered(gateway, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.status == 502  # the upstream was asked, and is not there
