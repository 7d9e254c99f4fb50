"""A stage: one running gateway, one upstream, and what that is to say to which question.

    async with staged(tmp_path, routes) as stage:
        question = stage.plays(openai_answer("Hi"))       # a question that nobody asked before
        async with await stage.get("/chat", question) as answer: ...
        assert len(stage.asked(question)) == 1             # how often the upstream was asked it

So a gateway is started once a module, and every test has an upstream's script to itself.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from tests.kit.program import Gateway
from tests.kit.sse_client import Message, Parser, Response, request
from tests.kit.upstream import LAST_CHUNK, Exchange, Script, ScriptedUpstream, Step, chunk, response, sse_head

EVENTS = {"Accept": "text/event-stream"}
MODELS = "which models are there?"
UNLIMITED = {"per_address": {"requests": None, "connections": None}}


class Stage:
    """The gateway under test and its upstream.

    Attributes:
        gateway, upstream: both running.
    """

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {MODELS: [response(404, "")]}
        self._numbers = count(10_000)  # all of one length, so that prompts cost the same
        self.upstream = ScriptedUpstream(self._script)
        self.gateway: Gateway

    def _script(self, exchange: Exchange) -> Sequence[Step]:
        script = self._scripts[question_of(exchange)]
        return script(exchange) if callable(script) else script

    def plays(self, script: Script, question: str = "question") -> str:
        """A fresh question to which the upstream answers by this script."""
        fresh = f"{question} {next(self._numbers)}"
        self._scripts[fresh] = script
        return fresh

    def asked(self, question: str) -> list[Exchange]:
        """Every time the upstream was asked this."""
        return [exchange for exchange in self.upstream.exchanges if question_of(exchange) == question]

    async def exchange(self, question: str, timeout: float = 10) -> Exchange:
        """The first time the upstream is asked this, past or to come."""
        async with asyncio.timeout(timeout):
            while not (found := self.asked(question)):
                await self.upstream.exchange(len(self.upstream.exchanges))
        return found[0]

    def url(self, path: str, question: str = "", **query: str) -> str:
        """The URL of a path of the gateway, with a question."""
        fields = ({"message": question} if question else {}) | query
        parameters = "&".join(f"{name}={quote(value)}" for name, value in fields.items())
        return f"{self.gateway.url}{path}" + (f"?{parameters}" if parameters else "")

    async def get(
        self, path: str, question: str = "", *, headers: Mapping[str, str] = EVENTS, cursor: str = "", **query: str
    ) -> Response:
        """The answer to a GET, by default one of an EventSource."""
        return await request(self.url(path, question, **query), headers=headers, last_event_id=cursor)

    async def post(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Response:
        """The answer to a POST."""
        return await request(self.url(path), method="POST", headers=headers, body=body)

    async def ask(self, route: str, question: str, **options: Any) -> Response:
        """The streamed answer to a question on a route of any kind: `/openai` is POSTed to, others are GET."""
        if route.startswith("/openai"):
            return await self.post(route, completion(question, stream=True), **options)
        return await self.get(route, question, **options)

    async def admin(self, path: str) -> Any:
        """What the admin listener says, as JSON or as text."""
        async with await request(self.gateway.admin + path) as answer:
            body = await answer.body()
            return body.decode() if answer.media_type == "text/plain" else await answer.json()

    async def metric(self, sample: str) -> float:
        """The value of a sample, `name{label="x"}` as /metrics spells it; 0 where there is none."""
        lines = (await self.admin(f"/metrics?name[]={sample.partition('{')[0]}")).splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{sample} ")), 0))


def question_of(exchange: Exchange) -> str:
    """What the upstream is asked: the last message of a chat, the query of a proxied request, or for its models."""
    if exchange.target.endswith("/models"):
        return MODELS
    if exchange.body:
        question = exchange.json()["messages"][-1]["content"]
        assert isinstance(question, str)
        return question
    return parse_qs(urlsplit(exchange.target).query)["message"][0]


def completion(question: str, **fields: Any) -> dict[str, Any]:
    """An OpenAI chat request."""
    return {"model": "m", "messages": [{"role": "user", "content": question}]} | fields


def setting(url: str, routes: Sequence[Mapping[str, Any]], **sections: Any) -> dict[str, Any]:
    """A configuration for everybody, with the upstreams `llm` (openai) and `events` (sse) at this URL, and `closed`.

    Each is asked once for each question, however often it failed before.
    """
    kinds = {"llm": ("openai", f"{url}/v1"), "events": ("sse", url), "closed": ("openai", "http://127.0.0.1:9/v1")}
    upstreams = {
        name: {"dialect": dialect, "targets": [{"url": base}], "retries": 0, "breaker": {"failures": 1000}}
        for name, (dialect, base) in kinds.items()
    }
    return {
        "auth": {"anonymous": True},
        "limits": UNLIMITED,
        "upstreams": upstreams,
        "routes": [_route(route) for route in routes],
    } | sections


def _route(route: Mapping[str, Any]) -> dict[str, Any]:
    own = deepcopy(dict(route))  # what two routes share would be written as an alias, which the config refuses
    return {"api": "chat", "upstream": "events" if route.get("api") == "proxy" else "llm"} | own


@asynccontextmanager
async def staged(directory: Path, routes: Sequence[Mapping[str, Any]], **sections: Any) -> AsyncIterator[Stage]:
    """A stage with these routes; `api` is chat where a route does not say.

    At its end the gateway must have logged no error of its own, and exactly one end of every stream.
    """
    stage = Stage()
    async with stage.upstream, Gateway(setting(stage.upstream.url, routes, **sections), directory) as stage.gateway:
        yield stage
    lines = stage.gateway.log_lines()
    assert not [line for line in lines if line["level"] == "error"]
    ends = Counter(line["stream_id"] for line in lines if line["event"] == "stream_end")
    assert not [stream_id for stream_id, count in ends.items() if count != 1]


def events_answer(*texts: str) -> list[Step]:
    """An SSE answer of these unnamed events, for a proxy route."""
    return [sse_head(), *(chunk(f"data: {text}\n\n") for text in texts), LAST_CHUNK]


T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], timeout: float = 5) -> T:
    """What a look at another program shows as soon as it is good. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while not good(seen := await look()):  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(0.02)
    return seen


def parsed(raw: bytes) -> list[Message]:
    """The events of a whole stream."""
    parser = Parser()
    return parser.feed(raw) + parser.flush()


def kinds(messages: Sequence[Message]) -> Counter[str]:
    """How many events there are of each type."""
    return Counter(message.type for message in messages)


def text_of(messages: Sequence[Message]) -> str:
    """The text of all `token` events of the format `events`."""
    return "".join(message.json()["text"] for message in messages if message.type == "token")


async def whole(response: Response, timeout: float = 10) -> list[Message]:
    """Every event of a stream to its end. Raises TimeoutError."""
    async with asyncio.timeout(timeout), response:
        return [message async for message in response.messages()]


async def sent_on(url: str, parts: Sequence[bytes]) -> tuple[bytes, OSError | None]:
    """The status of what answers these bytes, each part read before the next one is sent; and what broke when five
    million bytes more were sent behind the answer's end, in less than the time for which a client is heard out."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    broken = None
    async with asyncio.timeout(5):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.05)  # nothing tells when the other side has read it
        told = await reader.read()
        try:
            for _ in range(50):
                writer.write(b"y" * 100_000)
                await writer.drain()
        except OSError as error:
            broken = error
        writer.close()
    return told.split(b" ", 2)[1], broken
