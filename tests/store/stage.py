"""Several gateways on one real Redis, one scripted upstream behind them, and readers that go from node to node.

    stage.plays["q"] = lambda exchange: [*counts(1, 3), Hang()]
    reading = Reading(stage, "q")
    await reading.begin(0)              # asks node 0
    await reading.read(words=3)         # until three words came
    await stage.nodes[0].kill()
    await reading.finish()              # comes back elsewhere, as often as it takes
    assert reading.words == [1, 2, 3, …]

- A question is answered by the play of its name; `stage.calls` has every request that the upstream got for it.
- Answers are counted words, " 1 2 3 …": a reader knows which is the next one, so nothing can be lost, doubled or
  reordered unseen.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.kit.program import Gateway
from tests.kit.redis import Redis
from tests.kit.sse_client import Message, Response, request
from tests.kit.tcp_proxy import TCPProxy
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    OPENAI_USAGE,
    Exchange,
    ScriptedUpstream,
    Step,
    openai_delta,
    sse_head,
)

EVENTS = {"Accept": "text/event-stream"}
SECRET = "a secret of all nodes, 32 letters"
PATIENCE = 15.0
V1 = "/v1/chat/completions"
Play = Callable[[Exchange], Sequence[Step]]


def word(number: int) -> bytes:
    """One counted word as OpenAI's delta."""
    return openai_delta(f" {number}")


def counts(first: int, last: int) -> list[Step]:
    """The head and the words from `first` to `last`; no end."""
    return [sse_head(), *map(word, range(first, last + 1))]


END: list[Step] = [OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]


def prefix(exchange: Exchange) -> int:
    """The last word that the target was given to continue; 0 where it was given none."""
    last = exchange.json()["messages"][-1]
    return int(last["content"].split()[-1]) if last["role"] == "assistant" else 0


def goes_on(to: int) -> Play:
    """Counts on from the prefix, or from the beginning, up to `to`, and ends."""
    return lambda exchange: [*counts(prefix(exchange) + 1, to), *END]


class Stage:
    """The programs of a test.

    Attributes:
        redis: what the nodes share.
        networks: the way from each node to Redis.
        nodes: the gateways.
        upstream: behind all of them.
        plays: by question, what the upstream says; a list for one play each time.
        calls: by question, what it was asked.
    """

    def __init__(self, redis: Redis, networks: list[TCPProxy]) -> None:
        self.redis = redis
        self.networks = networks
        self.nodes: list[Gateway] = []
        self.plays: dict[str, Play | list[Play]] = {}
        self.calls: dict[str, list[Exchange]] = {}
        self.upstream = ScriptedUpstream(self._play)

    def _play(self, exchange: Exchange) -> Sequence[Step]:
        body = exchange.json()
        content = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        question = content if isinstance(content, str) else "".join(part["text"] for part in content)
        calls = self.calls.setdefault(question, [])
        calls.append(exchange)
        plays = self.plays[question]
        play = plays[min(len(calls), len(plays)) - 1] if isinstance(plays, list) else plays
        return play(exchange)

    async def keys(self) -> list[str]:
        """The keys of streams in Redis."""
        return [key for key in await self.redis.keys() if key.split(":")[1] in ("s", "l", "p")]

    async def owner(self, stream_id: str) -> int:
        """Which node writes the stream, as an index."""
        name = await self.redis.ask("HGET", f"gateway:s:{stream_id}", "n")
        for index, node in enumerate(self.nodes):
            if node.running and node.log_lines("store_up", node=name):
                return index
        raise AssertionError(f"nobody is {name}")


def config(upstream: ScriptedUpstream, **store: Any) -> dict[str, Any]:
    """Of every node, without the address of Redis."""
    fast = {"retry": "100ms", "commit_after": "0s", "heartbeat": "500ms"}
    routes: list[dict[str, Any]] = [
        {"path": "/chat", "api": "chat"},
        {"path": "/plain", "api": "chat", "stream": {"merge": False}},
        {"path": "/zip", "api": "chat", "stream": {"compress": True}},
        {"path": "/short", "api": "chat", "stream": {"resume": {"ttl": "1s"}}},
        {"path": "/small", "api": "chat", "stream": {"merge": False, "resume": {"max_bytes": "64KiB"}}},
        {"path": "/large/{path}", "api": "proxy", "stream": {"resume": {"max_bytes": "32MiB"}}},
        {"path": "/brief", "api": "chat", "stream": {"on_disconnect": {"after": "1s"}}},
        {"path": "/idle", "api": "chat", "timeouts": {"idle": "1s"}},
        {"path": "/ui", "api": "chat", "format": "ui"},
        {"path": "/v1/chat/completions", "api": "openai"},
        {"path": "/proxy/{path}", "api": "proxy"},
    ]
    return {
        "server": {"drain": "0s"},
        "upstreams": {
            "u": {
                "dialect": "openai",
                "targets": [{"url": f"{upstream.url}/v1"}],
                "retries": 0,
                "breaker": {"failures": 1000},
            }
        },
        "stream": fast,
        "routes": [{"upstream": "u"} | route for route in routes],
        "auth": {"anonymous": True, "keys": [{"id": "other", "key": "another-key-of-a-test"}]},
        "store": store,
    }


@asynccontextmanager
async def stage(
    directory: Path,
    count: int = 2,
    *,
    direct: bool = False,
    more: Callable[[str], Mapping[str, Any]] = lambda url: {},
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    **redis: Any,
) -> AsyncIterator[Stage]:
    """So many nodes, each with a way to Redis of its own.

    Args:
        directory: for their files.
        count: of nodes.
        direct: whether nothing is on the way to Redis.
        more: top-level keys of every node's configuration, given the URL of the upstream; mappings are joined.
        changes: the same of single nodes, by index.
        redis: options of Redis.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Redis(directory / "redis", **redis))
        networks = [await stack.enter_async_context(TCPProxy(server.port)) for _ in range(count)]
        made = Stage(server, networks)
        await stack.enter_async_context(made.upstream)
        for number, network in enumerate(networks):
            folder = directory / f"node-{number}"
            folder.mkdir()
            settings = config(made.upstream, url=server.url if direct else server.url_by(network.port), secret=SECRET)
            own = (changes or {}).get(number, {})
            for name, value in [*more(made.upstream.url).items(), *own.items()]:
                settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
            made.nodes.append(Gateway(settings, folder))
        await asyncio.gather(*(stack.enter_async_context(node) for node in made.nodes))
        async with asyncio.timeout(PATIENCE):  # until they have beaten
            while len(await server.ask("SMEMBERS", "gateway:nodes")) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield made


class Reading:
    """One reader: it asks once, and comes back with its cursor wherever it is told to.

    Args:
        stage: the programs.
        question: also the name of the play.
        path: of the route.

    Attributes:
        words: the numbers that it read.
        ends: its terminal events; there must be one.
        messages: all events.
        cursor: the last one.
        refusals: statuses of answers that were no stream.
        headers: of its requests.
    """

    def __init__(self, stage: Stage, question: str, path: str = "/chat") -> None:
        self._stage = stage
        self.question = question
        self.path = path
        self.text = ""
        self.ends: list[Message] = []
        self.messages: list[Message] = []
        self.cursor = ""
        self.stream_id = ""
        self.answer: Response | None = None
        self.refusals: list[int] = []
        self.restarts = 0
        self.headers = EVENTS

    @property
    def words(self) -> list[int]:
        """The numbers so far."""
        return [int(number) for number in self.text.split()]

    @property
    def error(self) -> str:
        """The code of the error with which it ended, "" where it ended well."""
        assert len(self.ends) == 1, self.ends
        end = self.ends[0]
        if self.path == V1:
            return "" if end.data == "[DONE]" else str(msgspec.json.decode(end.data)["error"]["code"])
        return str(msgspec.json.decode(end.data)["code"]) if end.type == "error" else ""

    async def begin(self, node: int, body: Mapping[str, Any] | None = None) -> None:
        """Ask."""
        asked = body or {"message": self.question}
        path = self.path
        if path == V1:
            asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": self.question}]}
        url = f"{self._stage.nodes[node].url}{path}"
        self.answer = await request(url, method="POST", headers=self.headers, body=asked)
        assert self.answer.status == 200, await self.answer.body()
        self.stream_id = self.answer.headers["x-stream-id"]

    async def resume(self, node: int) -> int:
        """Come back with the cursor; the status."""
        await self.leave()
        url = f"{self._stage.nodes[node].url}/streams/{self.stream_id}"
        self.answer = await request(url, headers=self.headers, last_event_id=self.cursor)
        if self.answer.status != 200:
            self.refusals.append(self.answer.status)
        return self.answer.status

    async def leave(self) -> None:
        """Close the connection."""
        if self.answer is not None:
            await self.answer.close()
            self.answer = None

    async def read(self, words: int = 1 << 30) -> bool:
        """Read until so many words came, or the terminal event did. Whether it did; False where the body ended."""
        assert self.answer is not None
        while len(self.text.split()) < words and not self.ends:
            message = await self.answer.next()
            if message is None:
                return False
            self.take(message)
        return bool(self.ends)

    def take(self, message: Message) -> None:
        """One event."""
        self.messages.append(message)
        self.cursor = message.last_event_id or self.cursor
        if self.path == V1:
            self._take_chunk(message.data)
        elif message.type == "token":
            self.text += msgspec.json.decode(message.data)["text"]
        elif message.type == "restart":
            self.text, self.restarts = "", self.restarts + 1
        elif message.type == "error" and not message.last_event_id.split(".")[0] and "overloaded" in message.data:
            self.refusals.append(503)  # told in a stream, as an EventSource would give up at a status
        elif message.type in ("done", "error"):
            self.ends.append(message)

    def _take_chunk(self, data: str) -> None:
        chunk = {} if data == "[DONE]" else msgspec.json.decode(data)
        if not chunk.get("choices"):
            if data == "[DONE]" or "error" in chunk:
                self.ends.append(self.messages[-1])
            return
        self.text += chunk["choices"][0]["delta"].get("content") or ""

    async def finish(self, *nodes: int, timeout: float = PATIENCE) -> None:
        """Read to the terminal event, and come back as often as it takes, to these nodes in turn.

        Raises AssertionError where there is no terminal event in time, or the stream is gone.
        """
        turn = 0
        async with asyncio.timeout(timeout):
            while not (self.answer is not None and self.answer.status == 200 and await self.read()):
                if self.ends:
                    return
                await asyncio.sleep(0.1)
                node = nodes[turn % len(nodes)]
                turn += 1
                try:
                    status = await self.resume(node)
                except OSError:
                    continue
                assert status != 404, f"it is gone at {self.cursor}\n{told(self._stage)}"
        await self.leave()


def told(stage: Stage) -> str:
    """What the nodes logged, to read in a failure."""
    return "\n".join(
        f"{number}: {line}" for number, node in enumerate(stage.nodes) for line in [*node.stdout, *node.stderr][-40:]
    )
