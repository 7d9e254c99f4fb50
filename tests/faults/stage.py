"""One scripted upstream behind every kind of route and dialect of one gateway, and what a client made of an answer.

    stage.plays([sse_head(), openai_delta("Hi"), Reset()])
    heard = await stage.ask(Way("chat"))
    assert (heard.text, heard.error["code"]) == ("Hi", "upstream_cut")

- A route under `/now` commits its headers at once; the others hold them for the upstream's status.
- Every answer is read to its end, within `PATIENCE`, and must come to rest: no stream, gauge or slot is left.
- What is secret (a key, a prompt, a page) is known here, and looked for in every answer and every log line.

This file does not know which answer is right.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import pytest
import pytest_asyncio

from tests.kit.program import Gateway
from tests.kit.sse_client import Message, Response, request
from tests.kit.upstream import LAST_CHUNK, Exchange, Script, ScriptedUpstream, Step, chunk, http_head, openai_chunk

PATIENCE = 5.0
API_KEY = "sk-upstream-0123456789abcdef"
PROMPT = "a-prompt-nobody-may-log"
PAGE = "<html><h1>stack trace of a private page</h1></html>"
DIALECTS = ("openai", "anthropic", "ollama", "sse", "text")
EVENTS = {"Accept": "text/event-stream"}
FAST = {"connect": "1s", "first_event": "300ms", "idle": "300ms", "total": "20s"}


def once() -> dict[str, Any]:
    """Settings of an upstream that is asked once for each request, however often it failed before."""
    return {"retries": 0, "breaker": {"failures": 1000}}


class Way(NamedTuple):
    """A way to ask.

    Attributes:
        kind: openai, whole (openai, not streaming), chat, eventsource (chat by GET), proxy or proxy-get (EventSource).
        dialect: of the upstream; proxies get what is said as it stands.
        committed: whether the answer's headers are sent before the upstream said anything.
        path: of the route; "" for the one of the kind and dialect.
    """

    kind: str
    dialect: str = "openai"
    committed: bool = False
    path: str = ""

    @property
    def url(self) -> str:
        """The path of its route."""
        prefix = "/now" if self.committed else ""
        return self.path or f"{prefix}/{self.route}/{self.dialect}" + ("/x" if self.route == "proxy" else "")

    @property
    def route(self) -> str:
        """The kind of its route."""
        return {"whole": "openai", "eventsource": "chat", "proxy-get": "proxy"}.get(self.kind, self.kind)

    @property
    def is_get(self) -> bool:
        """Whether it is an EventSource."""
        return self.kind in ("eventsource", "proxy-get")

    def in_band(self, status: int) -> bool:
        """Whether a failure with this status, before anything was said, is told in a stream."""
        return (self.committed and self.kind != "whole") or (self.is_get and status in (429, 502, 503, 504))

    async def send(self, url: str) -> Response:
        """The answer, its head read."""
        if self.is_get:
            return await request(f"{url}{self.url}?message={PROMPT}", headers=EVENTS)
        messages = [{"role": "user", "content": PROMPT}]
        body: dict[str, Any] = {"message": PROMPT}
        if self.kind in ("openai", "whole"):
            body = {"model": "m", "messages": messages, "stream": self.kind == "openai"}
        return await request(f"{url}{self.url}", method="POST", headers=EVENTS, body=body)


CHATS = ("openai", "whole", "chat", "eventsource")
STREAMS = ("openai", "chat", "eventsource", "proxy", "proxy-get")
KINDS = (*CHATS, "proxy", "proxy-get")


def ways(*kinds: str, dialect: str = "openai", committed: bool = False) -> list[Way]:
    """One of each kind."""
    return [Way(kind, dialect, committed) for kind in kinds]


class Heard:
    """What a client made of one whole answer.

    Attributes:
        status, headers, body: of the response; the body as text.
        messages: its events.
        comments: its comments.
        retry: of its last `retry:`, milliseconds.
        broken: whether it ended otherwise than its framing says.
    """

    def __init__(self, response: Response, messages: list[Message]) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.raw.decode()
        self.messages = messages
        self.comments = response.parser.comments
        self.retry = response.parser.retry
        self.broken = response.broken
        self.is_stream = response.media_type == "text/event-stream"

    @property
    def request_id(self) -> str:
        """As the log has it."""
        return self.headers["x-request-id"]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Every error in it, in whichever shape."""
        if not self.is_stream:
            return _errors(self.body)
        return [error for message in self.messages for error in _errors(message.data, message.type)]

    @property
    def error(self) -> dict[str, Any]:
        """The one error, which must be the last thing said."""
        assert len(self.errors) == 1, self.body
        if self.is_stream:
            assert _errors(self.messages[-1].data, self.messages[-1].type), self.body
        return self.errors[0]

    @property
    def ended(self) -> int:
        """How often the answer said that it is whole."""
        return sum(message.type == "done" or message.data == "[DONE]" for message in self.messages)

    @property
    def text(self) -> str:
        """The answer's text."""
        if not self.is_stream:
            return "".join(choice["message"]["content"] or "" for choice in _json(self.body).get("choices", ()))
        return "".join(_text(message) for message in self.messages)


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}


def _errors(text: str, kind: str = "") -> list[dict[str, Any]]:
    value = _json(text)
    if not isinstance(value, dict):
        return []
    error = value.get("error", value)
    return [error] if isinstance(error, dict) and "code" in error and kind != "connected" else []


def _text(message: Message) -> str:
    value = _json(message.data)
    if message.type == "token":
        return str(value["text"])
    choices = value.get("choices") if isinstance(value, dict) else None
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in choices or ())


class Stage:
    """The gateway, its upstream and the scene.

    Attributes:
        gateway, upstream: running.
    """

    gateway: Gateway

    def __init__(self) -> None:
        self.upstream = ScriptedUpstream(self._play)
        self._script: Script = []

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        directory: Path,
        timeouts: Mapping[str, str] = FAST,
        *,
        env: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> AsyncIterator[Self]:
        """A stage; at its end the gateway must go cleanly and have logged nothing secret."""
        stage = cls()
        async with stage.upstream:
            stage.gateway = Gateway(config(stage.upstream.url, timeouts, **extra), directory, env=env)
            async with stage.gateway:
                yield stage
            stage.check_log()

    def plays(self, script: Script) -> None:
        """Every request from now on is answered so."""
        self.upstream.exchanges.clear()
        self._script = script

    def _play(self, exchange: Exchange) -> Sequence[Step]:
        return self._script(exchange) if callable(self._script) else self._script

    async def ask(self, way: Way) -> Heard:
        """The whole answer."""
        async with asyncio.timeout(PATIENCE), await way.send(self.gateway.url) as response:
            return await listen(response)

    async def ask_all(self, asked: Sequence[Way]) -> list[Heard]:
        """The whole answers, asked for at the same time; after them the gateway is at rest."""
        heard = await asyncio.gather(*map(self.ask, asked))
        await self.at_rest()
        return heard

    async def fail_all(
        self,
        asked: Sequence[Way],
        code: str,
        status: int,
        outcome: str = "upstream_error",
        *,
        text: str = "",
        whole: bool = False,
    ) -> list[Heard]:
        """The whole answers, which must all be this failure, told once in the right shape, counted and logged once.

        The gateway must be at rest, its connections to the upstream closed.

        Args:
            asked: ways to ask, all at the same time.
            code: of the error.
            status: of the answer where it is not told in band.
            outcome: as logged.
            text: what was said before the failure.
            whole: the upstream's body ended well, so that its connection may be kept.
        """
        all_heard = await self.ask_all(asked)
        for way, heard in zip(asked, all_heard, strict=True):
            in_band = way.in_band(status) or bool(text and way.kind != "whole")
            assert heard.status == (200 if in_band else status), (way, heard.body)
            assert (heard.error["code"], heard.ended) == (code, 0), (way, heard.body)
            assert heard.text == (text if in_band else ""), (way, heard.body)
            assert not heard.broken, way
            check(heard.body)
            await self.told(heard, outcome)
        if not whole:
            await self.hung_up()
        return all_heard

    async def complete_all(self, asked: Sequence[Way], text: str) -> list[Heard]:
        """The whole answers, which must all be this text, with one end and no error."""
        all_heard = await self.ask_all(asked)
        for way, heard in zip(asked, all_heard, strict=True):
            assert (heard.status, heard.text, heard.errors) == (200, text, []), (way, heard.body)
            assert heard.ended == (way.kind != "whole"), (way, heard.body)
            assert not heard.broken, way
            await self.told(heard, "completed")
        return all_heard

    async def hung_up(self) -> None:
        """Return when every connection to the upstream was closed."""
        for exchange in self.upstream.exchanges:
            await asyncio.wait_for(exchange.closed.wait(), 3)

    async def told(self, heard: Heard, outcome: str) -> dict[str, Any]:
        """The one log line of the stream's end."""
        line = await self.gateway.logged("stream_end", request_id=heard.request_id)
        ends = self.gateway.log_lines("stream_end", request_id=heard.request_id)
        assert (line["outcome"], len(ends)) == (outcome, 1), ends
        return line

    async def at_rest(self) -> None:
        """Return when no stream, reader or request is left; fails when something stays."""
        left: list[Any] = []
        for _ in range(200):  # nothing tells when the writer of the last byte has gone home
            left = await self._left()
            if not left:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"still there: {left}")

    async def _left(self) -> list[Any]:
        async with await request(f"{self.gateway.admin}/streams") as answer:
            streams: list[Any] = await answer.json()
        if streams:  # many routes have many metrics, so these are asked for last
            return streams
        gauges = await self.metrics("gateway_streams_active", "gateway_connections_active")
        return [line for line in gauges if not line.endswith(" 0.0")]

    async def metrics(self, *names: str) -> list[str]:
        """The samples of /metrics with these names; all of them by default, which takes long with many routes."""
        query = "&".join(f"name[]={name}" for name in names)
        async with await request(f"{self.gateway.admin}/metrics?{query}") as answer:
            return [line for line in (await answer.body()).decode().splitlines() if not line.startswith("#")]

    def memory(self) -> int:
        """Resident bytes of the gateway."""
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS"))

    def check_log(self) -> None:
        """No line of the log holds anything secret."""
        for line in [*self.gateway.stdout, *self.gateway.stderr]:
            check(line)


def stage_fixture(timeouts: Mapping[str, str] = FAST, **extra: Any) -> Any:
    """A fixture: one stage for all tests of a module, which run in one loop."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
        async with Stage.opened(tmp_path_factory.mktemp("stage"), timeouts, **extra) as opened:
            yield opened

    return stage


def check(text: str) -> None:
    """Nothing secret is in it."""
    for secret in (API_KEY, PROMPT, PAGE, "stack trace", "private"):
        assert secret not in text, text


async def listen(response: Response) -> Heard:
    """The answer, read to its end."""
    if response.media_type == "text/event-stream":
        return Heard(response, [message async for message in response.messages()])
    await response.body()
    return Heard(response, [])


def config(url: str, timeouts: Mapping[str, str], **extra: Any) -> dict[str, Any]:
    """The configuration with every kind of route in front of `url`, whose path begins with the dialect."""
    more = extra.get("upstreams", {})
    upstreams = {
        name: {"dialect": name, "api_key": API_KEY, "targets": [{"url": f"{url}/{name}"}]} | once() for name in DIALECTS
    }
    routes = [
        {"path": f"{prefix}/{kind}/{name}" + ("/{path}" if kind == "proxy" else ""), "api": kind, "upstream": name}
        | ({"stream": {"commit_after": "0s"}} if prefix else {})
        | ({"model": "m"} if kind == "chat" else {})
        for prefix in ("", "/now")
        for kind in ("openai", "chat", "proxy")
        for name in DIALECTS
    ]
    return {
        "server": {"demo_page": False} | extra.get("server", {}),
        "auth": extra.get("auth", {"anonymous": True}),
        "plans": extra.get("plans", {}),
        "cors": extra.get("cors", {}),
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": "100ms", "merge": False, "batch": {"interval": "10ms"}, "write_timeout": "5s"},
        "timeouts": dict(timeouts),
        "upstreams": upstreams | (more(url) if callable(more) else more),
        "routes": routes + extra.get("routes", []),
    }


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full: the next one is neither accepted nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


# What each dialect says.

_ENDS = {
    "openai": [openai_chunk({}, "stop"), b"data: [DONE]\n\n"],
    "anthropic": [
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":2}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ],
    "ollama": [
        b'{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":1,"eval_count":2}\n'
    ],
    "sse": [b"event: done\ndata: {}\n\n"],
    "text": [],
}
_TYPES = {"ollama": "application/x-ndjson", "text": "text/plain"}
_ANTHROPIC_START = b'event: message_start\ndata: {"type":"message_start","message":{"model":"m"}}\n\n'


def head(dialect: str) -> bytes:
    """The head of a good answer in chunked encoding."""
    return http_head(200, _TYPES.get(dialect, "text/event-stream"), Transfer_Encoding="chunked")


def token(dialect: str, text: str) -> bytes:
    """The bytes of one token, not yet chunk-encoded."""
    quoted = msgspec.json.encode(text)
    match dialect:
        case "openai":
            return openai_chunk({"content": text})
        case "anthropic":
            delta = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}' % quoted
            return b"event: content_block_delta\ndata: %s\n\n" % delta
        case "ollama":
            return b'{"model":"m","message":{"role":"assistant","content":%s},"done":false}\n' % quoted
        case "sse":
            return b'data: {"content":%s}\n\n' % quoted
    return text.encode()


def opening(dialect: str, *texts: str) -> list[Step]:
    """The head and the first tokens of an answer."""
    start = [chunk(_ANTHROPIC_START)] if dialect == "anthropic" else []
    return [head(dialect), *start, *(chunk(token(dialect, text)) for text in texts)]


def ending(dialect: str) -> list[Step]:
    """The end of a good answer."""
    return [*(chunk(part) for part in _ENDS[dialect]), LAST_CHUNK]
