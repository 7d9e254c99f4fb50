# ruff: noqa: E501, PT017 - inputs are best read whole; what an error says is checked for every input
"""What clients send beside their credentials: bodies, chats, paths, queries, cursors, names of hosts, traces; and bytes
that are no request at all."""

import contextlib
import posixpath
import random
import re
from collections.abc import Coroutine, Hashable, Iterator
from functools import cache
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
from multidict import CIMultiDict
from yarl import URL

from gateway.core.cursor import Cursor, cursor_sent, is_cursor, is_cursor_parameter, parse_cursor, valid_stream_id
from gateway.core.errors import GatewayError
from gateway.core.paths import wrong_with
from gateway.core.sessions import valid_session_id
from gateway.core.weight import MAX_VALUES, TooMuchError, Weighing, exact_weighing, rough_weighing
from gateway.dialects import DIALECTS
from gateway.dialects.chat import typed
from gateway.observe.failures import asked_at, cleaned_path
from gateway.observe.tracing.context import read_context
from gateway.web.body import parsed
from gateway.web.exchange import Endpoint
from gateway.web.guard import authority_of, is_browser, is_known_host, is_local, is_of_foreign_page, is_same_origin
from gateway.web.kinds.chat_source import ALL_LIMITS, estimate_tokens
from gateway.web.kinds.ui import continued, messages_of
from gateway.web.router import Nowhere, Router
from gateway.web.unparsed import MAX_NAME, Unparsed, read_remains, unparsable
from tests.fuzz.target import Target

# -- bodies ------------------------------------------------------------------------------------------------------------

BODIES: Final = (
    b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a, [b] {c} \\"d\\" \\\\"}],"n":[1,2.5e3,null]}',
    b'{"a":{"b":[[],{},"x"]},"a":12345678901234567890}',
    b"\xef\xbb\xbf{}",
    b'{"a":"\\ud83d\\ude00","b":"\\ud83d"}',
)
REFUSALS: Final = frozenset({"bad_request"})


def _end(steps: Weighing) -> int:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


def check_weight(data: bytes, rng: random.Random) -> Hashable:
    """What is weighed lightly is parsed lightly."""
    try:
        light = min(_end(rough_weighing(data)), _end(exact_weighing(data)))
    except TooMuchError:
        return "too much"
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    values = sum(1 for _ in _values(value))
    assert values <= MAX_VALUES + 1
    assert light >= len(data) + 40 * (values - 1)
    return min(values, 16)


def _values(value: Any) -> Iterator[Any]:
    left = [value]
    while left:
        item = left.pop()
        yield item
        left += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def check_body(data: bytes, rng: random.Random) -> Hashable:
    """An object, or a refusal that quotes nothing of the body."""
    try:
        fields = _finished(parsed(data))
    except GatewayError as error:
        assert error.code == "bad_request"
        assert len(error.message) < 200
        return re.sub(r"\d+", "", error.message)[:60]
    assert isinstance(fields, dict)
    return min(len(fields), 4)


def _finished(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing but its next turn."""
    while True:
        try:
            work.send(None)
        except StopIteration as done:
            return done.value


CHATS: Final = (
    b'{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},'
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"max_tokens":5,"stop":["x"],"stream":true}',
    b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function",'
    b'"function":{"name":"f","arguments":"{\\"a\\":1}"}}]},{"role":"tool","tool_call_id":"c","content":"r"}],'
    b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto"}',
    b'{"messages":[{"id":"1","role":"user","parts":[{"type":"text","text":"hi"},{"type":"file","mediaType":"image/png",'
    b'"url":"https://x/y.png"}]},{"role":"assistant","id":"2","parts":[]}],"reasoning_effort":"low","temperature":0.5,'
    b'"response_format":{"type":"json_schema","json_schema":{"schema":{}}},"options":{"num_predict":3}}',
)
FAKE_KEY: Final = "sk-the-key-of-the-provider"


def check_chat(data: bytes, rng: random.Random) -> Hashable:
    """A call of each dialect with a body that is JSON, or a refusal; and an estimate that counts every byte but images."""
    try:
        chat = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    seen: list[Hashable] = []
    try:
        messages = messages_of(chat.get("messages"))
        continued(chat.get("messages"))
        if rng.random() < 0.5:
            chat["messages"] = messages
    except GatewayError as error:
        seen.append(error.code)
    assert estimate_tokens(chat) >= 0
    chat.setdefault("model", "m")
    if not isinstance(chat["model"], str):
        return "model"  # refused before
    try:
        typed(chat)
    except GatewayError as error:
        assert error.code == "bad_request"
        seen.append(error.message[:40])
    return (*seen, *(_called(name, chat) for name in ("openai", "anthropic", "ollama")))


def _called(name: str, chat: dict[str, Any]) -> Hashable:
    if name == "openai" and not isinstance(chat.get("messages"), list):
        return "refused before"
    try:
        call = DIALECTS[name].call(dict(chat), "http://127.0.0.1:9/v1", FAKE_KEY)
    except GatewayError as error:
        assert error.code == "bad_request", error
        return error.message[:40]
    msgspec.json.decode(call.body)
    assert FAKE_KEY.encode() not in call.body
    assert call.url.startswith("http://127.0.0.1:9/v1")
    assert not any(letter in "".join(call.headers.values()) for letter in "\r\n\0")
    return tuple(sorted(call.left_out))[:4], any(limit in chat for limit in ALL_LIMITS)


# -- paths -------------------------------------------------------------------------------------------------------------

PATHS: Final = (
    b"a/b%20c/d",
    b"a/%2e%2e/b",
    b"..;x=y/%252e%252e",
    b"%c0%ae%c0%ae/%u002e.",
    b"x//y?z#w",
    b"\xef\xbc\x8e\xef\xbc\x8e/%EF%BC%8F",
    b"own/a%2Fb",
    b"v1/chat/completions",
)


def check_path(data: bytes, rng: random.Random) -> Hashable:
    """A path that is let pass stays below its route's target for whoever decodes it, however often, and in which order."""
    path = data.decode("utf-8", "surrogateescape")
    wrong = wrong_with(path)
    assert len(wrong) < 200
    if wrong:
        return wrong
    for form in _forms(data):
        segments = re.split(r"[/\\]", form)
        assert not any(re.split(r"[;?#]", segment)[0].strip() == ".." for segment in segments), form
        assert posixpath.normpath(f"/base/{form}").startswith("/base"), form
        assert "\0" not in form
    if path.isascii() and path.isprintable() and not re.search(r"[\s?#]", path):
        asked = URL(f"http://target.example/base/{path}", encoded=True)
        again = URL(f"http://target.example/base/{path}")
        assert (asked.host, again.host) == ("target.example", "target.example")
        assert again.path.startswith("/base/"), again
    return "%" in path, len(path.split("/")) > 1


def _forms(data: bytes) -> Iterator[str]:
    for _ in range(5):
        yield data.decode("utf-8", "replace")
        yield data.decode("latin-1").translate({0x2044: "/", 0x2215: "/"})
        data = unquote_to_bytes(data)


@cache
def router() -> Router:
    """One route of each form."""
    endpoints = {
        path: Endpoint(path, Nowhere()) for path in ("/chat", "/你好", "/own/{path}", "/streams/{id}", "/u/{a}/x")
    }
    return Router(endpoints.items(), Endpoint("nowhere", Nowhere()))


def check_route(data: bytes, rng: random.Random) -> Hashable:
    """A path leads to one endpoint, and a route's rest is what stands behind its prefix."""
    path = "/" + data.decode("utf-8", "surrogateescape")
    match = router().match(path)
    if "path" in match.params:
        assert path == f"/own/{match.params['path']}"
        assert not wrong_with(match.params["path"])
    assert match.endpoint.label != "/chat" or path == "/chat"
    assert "/" not in match.params.get("id", "")
    label = cleaned_path(path)
    assert len(label) <= 201
    with contextlib.suppress(ValueError):
        asked_at(f"http://127.0.0.1:9{path}")
    return match.endpoint.label, tuple(match.params)


# -- queries and cursors -----------------------------------------------------------------------------------------------

CURSORS: Final = (b"abcdefghijklmnopqrstuv.1.2", b"~abcdefghijklmnopqrstuv", b"x", b"abcdefghijklmnopqrstuv")


def check_cursor(data: bytes, rng: random.Random) -> Hashable:
    """A cursor or the declared error; what is read is within its bounds, and is written as it was read."""
    text = data.decode("utf-8", "surrogateescape")
    known = is_cursor(text)
    sent = cursor_sent(text if rng.random() < 0.5 else None, [("last_event_id", text), ("lastEventId", text)])
    assert sent in (text, None)
    assert is_cursor_parameter("Last-Event-ID", text) == known
    if valid_stream_id(text):
        assert re.fullmatch(r"[A-Za-z0-9_-]{22}", text, re.ASCII)
    if valid_session_id(text):
        assert len(text) <= 128
        assert text.isascii()
    try:
        cursor = parse_cursor(text)
    except GatewayError as error:
        assert (error.code, known) == ("bad_cursor", False)
        return None
    assert known
    assert text.isascii()
    assert len(text) <= 128
    if not cursor.is_final:
        assert max(cursor.seq, cursor.tokens) < 1 << 50
        assert parse_cursor(str(cursor)) == cursor == Cursor(*cursor)
    return cursor.is_final


# -- names, pages, traces ----------------------------------------------------------------------------------------------

HOSTS: Final = (
    b"localhost:8080",
    b"[::1]:80",
    b"127.0.0.1",
    b"a.localhost",
    b"http://evil.example/x",
    b"https://app.example.com",
    b"[::ffff:127.0.0.1]",
    b"gateway.example:443",
)


def check_guard(data: bytes, rng: random.Random) -> Hashable:
    """No exception; a name counts as ours only if it is one that nobody else can point here."""
    text = data.decode("latin-1")
    known = is_known_host(text, "gateway.example")
    if known:
        name = (urlsplit(f"//{text}").hostname or "").removesuffix(".")
        assert re.fullmatch(r"(.*\.)?localhost|gateway\.example|[0-9.]+|[0-9a-f:.]+(%.*)?", name, re.DOTALL), name
    name = authority_of(text)
    assert name in text
    for headers in ({"Host": text}, {"Host": "localhost", "Origin": text}, {"Referer": text, "Sec-Fetch-Site": text}):
        lines = CIMultiDict(headers)
        is_browser(lines)
        own = is_same_origin(lines)
        local = is_local("127.0.0.1", lines)
        assert not local or own
        foreign = is_of_foreign_page(lines, "localhost", ["https://app.example.com"])
        if headers.get("Origin") is not None and not foreign:
            assert text == "https://app.example.com" or "localhost" in text.lower(), text
    return known, bool(name)


TRACES: Final = (
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
    b"congo=t61rcWkgMzE,rojo@x=00f067aa0ba902b7",
)


def check_trace(data: bytes, rng: random.Random) -> Hashable:
    """What is passed on is a valid context and nothing else."""
    text = data.decode("latin-1")
    context = read_context([text], [text])
    good = read_context([TRACES[0].decode()], [text])
    assert good is not None
    state = good.headers.get("tracestate", "")
    assert re.fullmatch(r"[\x09\x20-\x7e]*", state)
    if context is None:
        return bool(state)
    assert 0 < context.trace_id < 1 << 128
    assert 0 < context.parent_id < 1 << 64
    assert re.fullmatch(r"[\x21-\x7e]+", context.headers["traceparent"])
    return "trace"


# -- no requests -------------------------------------------------------------------------------------------------------

HEADS: Final = (
    b"GET /chat?token=x HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\nX-Request-Id: r-7\r\nBad Name: x\r\n\r\n",
    b"POST http://h/v1/chat/completions HTTP/9.9\r\norigin:b\r\nOrigin: c\r\n\r\n",
    b"400, message:\n  Invalid header value char:\n\n    b'Bad Name: secret'\n      ^",
    b"Got more than 8190 bytes when reading: b'X: secret'.",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
SECRET_IN_HEAD: Final = "Zk39vTq81LmX0aBc"


def check_unparsed(data: bytes, rng: random.Random) -> Hashable:
    """Something bounded is read of any bytes, and nothing that the parser quotes is told."""
    remains = read_remains(data)
    assert len(remains.method) <= MAX_NAME
    assert remains.path.isascii()
    assert not re.search(r"[?#\s]", remains.path)
    assert len(remains.origin) <= 256
    assert "\n" not in remains.origin
    assert re.fullmatch(r"[A-Za-z0-9._-]{0,64}", remains.request_id)
    said = data.decode("latin-1")
    error = unparsable(f"{said}\n  b'{SECRET_IN_HEAD}'")
    assert error.code in ("bad_request", "headers_too_large")
    assert SECRET_IN_HEAD not in error.message
    assert len(error.message) < 200
    assert Unparsed(said, data, "").head is data
    return error.message, bool(remains.path)


def targets() -> dict[str, Target]:
    """By name."""
    return {
        "weight": Target(BODIES, check_weight, 10),
        "body": Target((*BODIES, *CHATS), check_body, 12),
        "chat": Target(CHATS, check_chat, 6),
        "path": Target(PATHS, check_path, 10),
        "route": Target(PATHS, check_route, 12),
        "cursor": Target(CURSORS, check_cursor, 16),
        "guard": Target(HOSTS, check_guard, 8),
        "trace": Target(TRACES, check_trace, 12),
        "unparsed": Target(HEADS, check_unparsed, 10),
    }
