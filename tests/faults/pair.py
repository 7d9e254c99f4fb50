"""A primary and a fallback behind every kind of route, both scripted, and what became of a request on either.

    pair.plays([CUT], [answers("lo")])      # the nth request of a way to ask plays the nth script, later ones the last
    await pair.completes("Hello", primary=1, backup=1)

- Each way to ask has an upstream of its own, so that the calls of nine requests that run at once are told apart.
- The primary speaks OpenAI; the fallback is of each dialect in turn, and calls its model `second`.

This file does not know which failure leads where.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.faults.stage import API_KEY, Heard, Stage, Way, head, token
from tests.kit.upstream import LAST_CHUNK, Exchange, Script, ScriptedUpstream, Step, chunk, openai_chunk

BACKUPS = ("openai", "anthropic", "ollama")
KINDS = ("openai", "whole", "chat")
TIMES = {"connect": "1s", "first_event": "600ms", "idle": "300ms", "total": "20s"}

Play = Callable[[str, Exchange], Sequence[Step]]
"""What a dialect says to a request."""


def pair_ways(*kinds: str, dialects: Sequence[str] = BACKUPS) -> list[Way]:
    """Each kind with a fallback of each dialect."""
    return [
        Way(kind, dialect, committed=True, path=f"/pair/{kind}/{dialect}")
        for kind in kinds or KINDS
        for dialect in dialects
    ]


class Pair:
    """The gateway between clients and two upstreams.

    Attributes:
        stage: the gateway and the primary.
        backup: the fallback.
        calls: requests so far at `primary` and `backup`, by way to ask.
    """

    def __init__(self) -> None:
        self.backup = ScriptedUpstream(self._play_backup)
        self.stage: Stage
        self.calls: dict[str, Counter[str]] = {}
        self._primary: Sequence[Script] = []
        self._backup: Sequence[Sequence[Step] | Play] = []

    @property
    def url(self) -> str:
        """Of the gateway."""
        return self.stage.gateway.url

    def plays(self, primary: Sequence[Script], backup: Sequence[Sequence[Step] | Play] = ()) -> None:
        """From now on."""
        self.calls = {"primary": Counter(), "backup": Counter()}
        self._primary, self._backup = primary, backup
        self.stage.plays(self._play_primary)
        self.backup.exchanges.clear()

    def _play_primary(self, exchange: Exchange) -> Sequence[Step]:
        script: Script = self._nth("primary", self._primary, exchange)
        return script(exchange) if callable(script) else script

    def _play_backup(self, exchange: Exchange) -> Sequence[Step]:
        script: Any = self._nth("backup", self._backup, exchange)
        steps: Sequence[Step] = script(_way(exchange).partition("-")[2], exchange) if callable(script) else script
        return steps

    def _nth(self, which: str, scripts: Sequence[Any], exchange: Exchange) -> Any:
        calls, way = self.calls[which], _way(exchange)
        calls[way] += 1
        return scripts[min(calls[way], len(scripts)) - 1]

    def called(self, way: Way) -> tuple[int, int]:
        """Requests of this way to ask at the primary and at the fallback."""
        name = f"{way.kind}-{way.dialect}"
        return self.calls["primary"][name], self.calls["backup"][name]

    async def completes(self, text: str, *, primary: int, backup: int, asked: Sequence[Way] = ()) -> list[Heard]:
        """Every way to ask has the whole text, once, with one end, by so many calls, and the answering model's name."""
        asked = asked or pair_ways()
        heard = await self.stage.complete_all(asked, text)
        for way, answer in zip(asked, heard, strict=True):
            assert self.called(way) == (primary, backup), (way, self.called(way))
            line = await self.stage.told(answer, "completed")
            assert line["attempts"] == primary + backup, way
            model = "second" if backup else "scripted"
            assert (line["model"], line["upstream"].startswith("backup")) == (model, bool(backup)), way
        return heard

    async def fails(self, code: str, status: int, *, primary: int, backup: int, text: str = "") -> list[Heard]:
        """Every way to ask gets this error, once, after so many calls."""
        asked = pair_ways()
        heard = await self.stage.fail_all(asked, code, status, text=text, whole=True)
        for way in asked:
            assert self.called(way) == (primary, backup), (way, self.called(way))
        return heard


def _upstream(dialect: str, url: str, **settings: Any) -> dict[str, Any]:
    asked = {"dialect": dialect, "targets": [{"url": url}], "api_key": API_KEY}
    return asked | {"retries": 1, "breaker": {"failures": 1000}} | settings


def _way(exchange: Exchange) -> str:
    return exchange.target.split("/")[1]


@asynccontextmanager
async def opened(directory: Path, times: Mapping[str, str] = TIMES, **settings: Any) -> AsyncIterator[Pair]:
    """A pair; the settings are those of the primaries."""
    pair = Pair()
    ways = pair_ways()

    def upstreams(url: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for kind, dialect in ((way.kind, way.dialect) for way in ways):
            name = f"{kind}-{dialect}"
            made[f"main-{name}"] = _upstream("openai", f"{url}/{name}", fallback=[f"backup-{name}"]) | settings
            made[f"backup-{name}"] = _upstream(dialect, f"{pair.backup.url}/{name}", model="second")
        return made

    routes = [
        {
            "path": way.path,
            "api": way.route,
            "upstream": f"main-{way.kind}-{way.dialect}",
            "stream": {"commit_after": "0s"},
        }
        | ({"model": "first"} if way.kind == "chat" else {})
        for way in ways
    ]
    async with pair.backup, Stage.opened(directory, times, upstreams=upstreams, routes=routes) as pair.stage:
        yield pair


def pair_fixture(times: Mapping[str, str] = TIMES, **settings: Any) -> Any:
    """A fixture: one pair for all tests of a module."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
        async with opened(tmp_path_factory.mktemp("pair"), times, **settings) as made:
            yield made

    return pair


# What upstreams say.

_ENDS = {
    "openai": [
        openai_chunk({}, "stop", model="second"),
        openai_chunk({}, model="second", choices=[], usage={"prompt_tokens": 11, "completion_tokens": 7}),
        b"data: [DONE]\n\n",
    ],
    "anthropic": [
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":7}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ],
    "ollama": [
        b'{"model":"second","message":{"content":""},"done":true,"done_reason":"stop",'
        b'"prompt_eval_count":11,"eval_count":7}\n'
    ],
}
_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"second",'
    b'"usage":{"input_tokens":11,"output_tokens":1}}}\n\n'
)


def begins(dialect: str, *texts: str) -> list[Step]:
    """The head and the first tokens of the second model's answer."""
    start = [chunk(_START)] if dialect == "anthropic" else []
    return [head(dialect), *start, *(chunk(_token(dialect, text)) for text in texts)]


def _token(dialect: str, text: str) -> bytes:
    if dialect == "openai":
        return openai_chunk({"content": text}, model="second")
    return token(dialect, text).replace(b'"model":"m"', b'"model":"second"')


def ends(dialect: str) -> list[Step]:
    """The end of it: 11 tokens were read, 7 written."""
    return [*(chunk(part) for part in _ENDS[dialect]), LAST_CHUNK]


def answers(*texts: str) -> Play:
    """The second model's whole answer."""
    return lambda dialect, _: [*begins(dialect, *texts), *ends(dialect)]


def prefix_of(exchange: Exchange) -> str | None:
    """The text that the request asks to go on from, None where it asks for a new answer."""
    last = exchange.json()["messages"][-1]
    if last["role"] != "assistant":
        return None
    content = last["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
