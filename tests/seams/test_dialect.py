"""The dialects' seam: a dialect that is defined here, outside the package, serves a chat route of the whole gateway.

The toy is asked with JSON and answers with one word a line; a line that is a full stop ends the answer.
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.config import ConfigError, load_text, schema
from gateway.core.event import TOKEN, Event
from gateway.core.sse import LineSplitter
from gateway.dialects import DIALECTS, Answer, Call, Dialect
from gateway.dialects.base import UnitAnswer, post
from tests.kit.sse_client import request
from tests.kit.upstream import LAST_CHUNK, Cut, ScriptedUpstream, Step, chunk, http_head
from tests.seams.serving import serving
from tests.web.stage import EVENTS

HEAD = http_head(content_type="text/x-toy", Transfer_Encoding="chunked")


class ToyAnswer(UnitAnswer):
    """Reads the lines of one answer."""

    def __init__(self) -> None:
        super().__init__(LineSplitter())

    def _translate_one(self, unit: str, out: list[Event]) -> None:
        if unit == ".":
            self.ended = True
        else:
            self._say(TOKEN, unit, out)


class Toy(Dialect):
    """The least that a dialect is."""

    name = "toy"
    provider = "toyshop"
    stream_types = frozenset({"text/x-toy"})
    needs_model = True

    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        return post(url, {"toy": chat["model"], "said": [turn["content"] for turn in chat["messages"]]}, {})

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return ToyAnswer()


class Continuing(Toy):
    """A toy that continues what it is given, and is told so in a way of its own."""

    prefills = True

    def prefilled(self, chat: dict[str, Any], prefix: str) -> dict[str, Any]:
        return {**chat, "messages": [*chat["messages"], {"role": "toy", "content": f"go on: {prefix}"}]}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program knows the toy."""
    monkeypatch.setitem(DIALECTS, "toy", Toy())


def config(url: str = "http://127.0.0.1:9", **route: str) -> dict[str, Any]:
    """A chat route whose upstream, of two targets, speaks the toy dialect."""
    return {
        "auth": {"anonymous": True},
        "upstreams": {"main": {"dialect": "toy", "targets": [{"url": url}, {"url": url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main"} | route],
    }


def says(*lines: str, end: Step | None = None) -> Sequence[Step]:
    """The script of an answer, whole where no other end is named."""
    return [HEAD, chunk("".join(f"{line}\n" for line in lines)), end or chunk(".\n") + LAST_CHUNK]


async def heard(url: str) -> list[tuple[str, str]]:
    """The tokens and the end of the answer to a question."""
    async with await request(f"{url}/chat?message=hi", headers=EVENTS) as answer:
        events = [(message.type, message.json()) async for message in answer.messages()]
    return [(kind, data.get("text", "")) for kind, data in events if kind != "connected"]


@pytest.mark.usefixtures("toy")
async def test_toy_dialect_serves_a_chat_route_and_is_told_to_the_metrics() -> None:
    script = says("one ", "two")
    async with ScriptedUpstream(script) as upstream, serving(config(upstream.url, model="wooden")) as gateway:
        assert await heard(gateway.url) == [("token", "one two"), ("done", "")]
        asked = await upstream.exchange()
        assert asked.json() == {"toy": "wooden", "said": ["hi"]}
        models = {"gen_ai_request_model": "wooden", "gen_ai_response_model": "wooden"}
        labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "toyshop", "error_type": ""} | models
        registry = gateway.app.gateway.metrics.registry
        assert registry.get_sample_value("gen_ai_server_request_duration_seconds_count", labels) == 1


@pytest.mark.usefixtures("toy")
def test_toy_dialect_needs_a_model_so_the_config_has_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"routes\[0\]: names no model, which toy requires"):
        load_text(json.dumps(config()))


def test_config_names_the_dialects_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"dialect: is not known .* openai, anthropic, ollama, sse, text$"):
        load_text(json.dumps(config()))
    monkeypatch.setitem(DIALECTS, "toy", Toy())
    assert schema()["$defs"]["Upstream"]["properties"]["dialect"]["anyOf"][0]["enum"][-1] == "toy"


@pytest.mark.parametrize(
    ("dialect", "second"), [(Toy(), ["hi"]), (Continuing(), ["hi", "go on: one"])], ids=["anew", "continuing"]
)
async def test_dialect_says_how_a_broken_answer_is_finished(
    monkeypatch: pytest.MonkeyPatch, dialect: Dialect, second: list[str]
) -> None:
    monkeypatch.setitem(DIALECTS, "toy", dialect)
    broken, whole = says("one", end=Cut()), says(*([] if dialect.prefills else ["one"]), " two")
    async with ScriptedUpstream(broken, whole) as upstream, serving(config(upstream.url, model="wooden")) as gateway:
        assert await heard(gateway.url) == [("token", "one"), ("token", " two"), ("done", "")]
        assert [(await upstream.exchange(number)).json()["said"] for number in (0, 1)] == [["hi"], second]
