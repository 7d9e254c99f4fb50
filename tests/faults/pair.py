"""A primary and a fallback behind every kind of route, both scripted, and what became of a request on either.

    pair.plays([CUT], [answers("lo")])      # the nth request of a way to ask plays the nth script, later ones the last
    await pair.completes("Hello", primary=1, backup=1)

- Each way to ask has upstreams of its own, so that the calls of nine requests that run at once are told apart.
- Primary and fallback are of each provider's dialect in turn; the fallback calls its model `second`, the primary
  `first`.
- Every connection is closed behind its answer, so that no attempt depends on what the one before it left behind.

This file does not know which failure leads where.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.faults.providers import PROVIDERS
from tests.faults.stage import API_KEY, Heard, Stage, Way, head, token
from tests.kit.tcp_proxy import TCPProxy
from tests.kit.upstream import LAST_CHUNK, Cut, Exchange, ScriptedUpstream, Step, chunk, openai_chunk

KINDS = ("openai", "whole", "chat")
TIMES = {"connect": "1s", "first_event": "1s", "idle": "300ms", "total": "20s"}

Play = Callable[[str, Exchange], Sequence[Step]]
"""What a dialect says to a request."""
Plays = Sequence[Sequence[Step] | Play]
"""What it says to one request after the other."""


def pair_ways(*kinds: str, primary: str = "openai", backups: Sequence[str] = PROVIDERS) -> list[Way]:
    """Each kind with this primary and each of these fallbacks."""
    return [_pair_way(kind, primary, backup) for kind in kinds or KINDS for backup in backups]


def _pair_way(kind: str, primary: str, backup: str) -> Way:
    return Way(kind, primary, committed=True, path=f"/pair/{kind}/{primary}/{backup}")


def name_of(way: Way) -> str:
    """What the upstreams of this way to ask are called, behind `main-` and `backup-`."""
    return way.path.removeprefix("/pair/").replace("/", "-")


class Pair:
    """The gateway between clients and two upstreams.

    Attributes:
        stage: the gateway and the primary.
        backup: the fallback.
        calls: requests so far at `primary` and `backup`, by way to ask.
    """

    def __init__(self) -> None:
        self.backup = ScriptedUpstream(lambda exchange: self._play("backup", exchange))
        self.stage: Stage
        self.calls: dict[str, Counter[str]] = {}
        self._scripts: dict[str, Plays] = {}

    @property
    def url(self) -> str:
        """Of the gateway."""
        return self.stage.gateway.url

    def plays(self, primary: Plays, backup: Plays = ()) -> None:
        """From now on."""
        self.calls = {"primary": Counter(), "backup": Counter()}
        self._scripts = {"primary": primary, "backup": backup}
        self.stage.plays(lambda exchange: self._play("primary", exchange))
        self.backup.exchanges.clear()

    def _play(self, which: str, exchange: Exchange) -> Sequence[Step]:
        calls, name = self.calls[which], exchange.target.split("/")[1]
        calls[name] += 1
        scripts = self._scripts[which]
        script = scripts[min(calls[name], len(scripts)) - 1]
        dialect = name.split("-")[1 if which == "primary" else 2]
        return [*(script(dialect, exchange) if callable(script) else script), Cut()]

    def called(self, way: Way) -> tuple[int, int]:
        """Requests of this way to ask at the primary and at the fallback."""
        return self.calls["primary"][name_of(way)], self.calls["backup"][name_of(way)]

    async def completes(self, text: str, *, primary: int, backup: int, asked: Sequence[Way] = ()) -> list[Heard]:
        """Every way to ask has the whole text, once, with one end, by so many calls, and the answering model's name."""
        asked = asked or pair_ways()
        heard = await self.stage.complete_all(asked, text)
        for way, answer in zip(asked, heard, strict=True):
            assert self.called(way) == (primary, backup), (way, self.called(way))
            line = await self.stage.told(answer, "completed")
            assert line["attempts"] == primary + backup, way
            model = "second" if backup else "first"
            assert (line["model"], line["upstream"].startswith("backup")) == (model, bool(backup)), way
            if way.kind != "chat":
                assert _model_told(answer) == model, way
        return heard

    async def fails(
        self, code: str, status: int, *, primary: int, backup: int, text: str = "", asked: Sequence[Way] = ()
    ) -> list[Heard]:
        """Every way to ask gets this error, once, after so many calls."""
        asked = asked or pair_ways()
        heard = await self.stage.fail_all(asked, code, status, text=text, whole=True)
        for way in asked:
            assert self.called(way) == (primary, backup), (way, self.called(way))
        return heard

    async def figures(self, name: str) -> dict[str, float]:
        """The samples of one metric, by their labels as they are spelled."""
        lines = [line.rpartition(" ") for line in await self.stage.metrics(name.partition("{")[0])]
        return {labels: float(value) for labels, _, value in lines}

    async def rescues(self) -> Counter[tuple[str, str]]:
        """How many rescues there were, by kind and result."""
        figures = await self.figures("gateway_rescues_total{")
        return Counter({(labels.split('"')[1], labels.split('"')[3]): int(n) for labels, n in figures.items()})


def _model_told(heard: Heard) -> Any:
    """The model that an OpenAI client is told last."""
    return msgspec.json.decode(heard.messages[-2].data if heard.is_stream else heard.body)["model"]


def _upstream(dialect: str, url: str, **settings: Any) -> dict[str, Any]:
    asked = {"dialect": dialect, "targets": [{"url": url}], "api_key": API_KEY}
    return asked | {"retries": 1, "breaker": {"failures": 1000}} | settings


@asynccontextmanager
async def opened(
    directory: Path,
    times: Mapping[str, str] = TIMES,
    *,
    asked: Sequence[Way] = (),
    stream: Mapping[str, Any] | None = None,
    plans: Mapping[str, Any] | None = None,
    backup_url: str = "",
    network: TCPProxy | None = None,
    **settings: Any,
) -> AsyncIterator[Pair]:
    """A pair.

    Args:
        directory: for the gateway's files.
        times: the limits on time.
        asked: the ways to ask that there are; all by default.
        stream: what the routes' streams have beside headers that are committed at once.
        plans: of the configuration.
        backup_url: where the fallback is, if not where `Pair.backup` is.
        network: between the gateway and the primary.
        settings: of the primaries.
    """
    pair = Pair()
    asked = asked or [way for primary in PROVIDERS for way in pair_ways(primary=primary)]

    def upstreams(url: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if network:
            network.to, url = int(url.rpartition(":")[2]), network.url
        for name in map(name_of, asked):
            _, primary, backup = name.split("-")
            own = deepcopy(settings)  # what two upstreams share would be an alias, which the configuration refuses
            made[f"main-{name}"] = _upstream(primary, f"{url}/{name}", fallback=[f"backup-{name}"]) | own
            made[f"backup-{name}"] = _upstream(backup, f"{backup_url or pair.backup.url}/{name}", model="second")
        return made

    routes = [_route(way, stream or {}) for way in asked]
    more = {"plans": plans} if plans else {}
    async with pair.backup, Stage.opened(directory, times, upstreams=upstreams, routes=routes, **more) as pair.stage:
        yield pair


def _route(way: Way, stream: Mapping[str, Any]) -> dict[str, Any]:
    route = {"path": way.path, "api": way.route, "upstream": f"main-{name_of(way)}"}
    return (
        route
        | {"stream": {"commit_after": "0s", **deepcopy(dict(stream))}}
        | ({"model": "first", "history": {}} if way.kind == "chat" else {})
    )


def pair_fixture(times: Mapping[str, str] = TIMES, **settings: Any) -> Any:
    """A fixture: one pair for all tests of a module."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
        async with opened(tmp_path_factory.mktemp("pair"), times, **settings) as made:
            yield made

    return pair


# What upstreams say.

USAGE = (11, 7)
"""Tokens read and written, as every whole answer tells."""


def begins(dialect: str, *texts: str, model: str = "second") -> list[Step]:
    """The head and the first tokens of an answer."""
    start = [chunk(_start(model))] if dialect == "anthropic" else []
    return [head(dialect), *start, *(chunk(says(dialect, text, model)) for text in texts)]


def _start(model: str) -> bytes:
    message = {"model": model, "usage": {"input_tokens": USAGE[0], "output_tokens": 1}}
    return _named("message_start", message=message)


def _named(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def says(dialect: str, text: str, model: str = "second") -> bytes:
    """One token, not yet chunk-encoded."""
    if dialect == "openai":
        return openai_chunk({"content": text}, model=model)
    return token(dialect, text).replace(b'"model":"m"', b'"model":"%s"' % model.encode())


def last_words(dialect: str, model: str = "second") -> list[bytes]:
    """The events that end an answer, the end marker last; not yet chunk-encoded."""
    read, written = USAGE
    match dialect:
        case "openai":
            usage = {"prompt_tokens": read, "completion_tokens": written}
            counted = openai_chunk({}, model=model, choices=[], usage=usage)
            return [openai_chunk({}, "stop", model=model), counted, b"data: [DONE]\n\n"]
        case "anthropic":
            stop = _named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": written})
            return [stop, _named("message_stop")]
    counts = {"done": True, "done_reason": "stop", "prompt_eval_count": read, "eval_count": written}
    return [msgspec.json.encode({"model": model, "message": {"content": ""}, **counts}) + b"\n"]


def ends(dialect: str, model: str = "second") -> list[Step]:
    """The end of an answer."""
    return [*map(chunk, last_words(dialect, model)), LAST_CHUNK]


def answers(*texts: str, model: str = "second") -> Play:
    """A whole answer."""
    return lambda dialect, _: [*begins(dialect, *texts, model=model), *ends(dialect, model)]


def prefix_of(exchange: Exchange) -> str | None:
    """The text that the request asks to go on from, None where it asks for a new answer."""
    last = exchange.json()["messages"][-1]
    if last["role"] != "assistant":
        return None
    content = last["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
