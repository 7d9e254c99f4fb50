"""Where a request names no model: the first of the target's own list, asked for once, and only where it is needed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import structlog

from gateway.config import Upstream as UpstreamConfig
from gateway.core.event import DONE, ERROR, Event
from gateway.dialects import DIALECTS
from gateway.dialects.models import models_in
from gateway.streams.reader import BEGINNING
from gateway.upstream import models
from gateway.upstream.http import new_session
from gateway.upstream.models import KEPT, PAUSE, ModelList, first_of
from gateway.upstream.pool import Upstream
from gateway.web.kinds.chat_source import ChatSource
from tests.kit.own_models import OwnModels, asked, lists
from tests.kit.upstream import Cut, Hang, ScriptedUpstream, Step, WaitFor, http_head, response
from tests.streams.works import Works, read_all, working

LISTED = [response(200, '{"data":[{"id":"a"},{"id":"b"}]}')]


@pytest.fixture
async def works() -> AsyncIterator[Works]:
    async with working() as works:
        yield works


class Asking:
    """Chats through the pump, one target for all of them.

    Attributes:
        exchanges: what the target was asked.
    """

    def __init__(self, works: Works, upstream: ScriptedUpstream, dialect: str, **settings: Any) -> None:
        self._works = works
        self.exchanges = upstream.exchanges
        target = {"url": f"{upstream.url}/{dialect}"}
        config = UpstreamConfig.model_validate({"dialect": dialect, "targets": [target], "retries": 0} | settings)
        self._chain = (Upstream("main", config, ""),)

    async def chat(self, model: str = "", message: str = "hi") -> Event:
        """The end of one answer."""
        source = ChatSource({"model": model, "messages": [{"role": "user", "content": message}]})
        generation = self._works.started("http://127.0.0.1:9", chain=self._chain, source=source, model=model)
        reader = generation.attach(BEGINNING)
        events = await read_all(reader)
        generation.detach(reader, 0)
        return events[-1]


async def test_target_that_refuses_a_chat_without_a_model_is_asked_for_its_first_one(works: Works) -> None:
    async with ScriptedUpstream(OwnModels("text-embedding-x", "own-1", "own-2")) as upstream:
        asking = Asking(works, upstream, "openai")
        assert (await asking.chat()).type == DONE
        assert (await asking.chat()).type == DONE
        # The refusal is remembered, and so is the list.
        assert asked(asking.exchanges) == [None, "own-1", "own-1"]
        assert lists(asking.exchanges) == 1


@pytest.mark.parametrize("dialect", ["anthropic", "ollama"])
async def test_target_of_a_dialect_that_needs_a_model_is_asked_for_its_list_first(works: Works, dialect: str) -> None:
    async with ScriptedUpstream(OwnModels("own-1")) as upstream:
        asking = Asking(works, upstream, dialect)
        assert (await asking.chat()).type == DONE
        assert (asked(asking.exchanges), lists(asking.exchanges)) == (["own-1"], 1)


async def test_target_that_takes_a_chat_without_a_model_is_never_asked_for_its_list(works: Works) -> None:
    async with ScriptedUpstream(OwnModels("own-1", needs=False)) as upstream:
        asking = Asking(works, upstream, "openai")
        assert (await asking.chat()).type == DONE
        assert (asked(asking.exchanges), lists(asking.exchanges)) == ([None], 0)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize("by", ["client", "upstream"])
async def test_chat_that_names_a_model_never_waits_for_a_list(works: Works, dialect: str, by: str) -> None:
    async with ScriptedUpstream(OwnModels("own-1")) as upstream:
        asking = Asking(works, upstream, dialect, **({"model": "other"} if by == "upstream" else {}))
        assert (await asking.chat("other" if by == "client" else "")).type == ERROR
        assert (asked(asking.exchanges), lists(asking.exchanges)) == (["other"], 0)


async def test_many_chats_at_once_share_one_question(works: Works) -> None:
    gate = asyncio.Event()
    own = OwnModels("own-1")
    async with ScriptedUpstream(own) as upstream:
        own.answer = [WaitFor(gate), response(200, '{"models":[{"name":"own-1"}]}')]
        asking = Asking(works, upstream, "ollama")
        chats = [asyncio.create_task(asking.chat()) for _ in range(3)]
        await upstream.exchange()
        gate.set()
        assert [event.type for event in await asyncio.gather(*chats)] == [DONE] * 3
        assert (asked(asking.exchanges), lists(asking.exchanges)) == (["own-1"] * 3, 1)


@pytest.mark.parametrize(
    "answer",
    [
        [response(500, "{}")],
        [response(404, "{}")],
        [response(200, "<html>", "text/html")],
        [response(200, '{"models":[]}')],
        [response(200, '{"models":[{"name":7},{"name":""}]}')],
        [http_head(200, "application/json", Content_Length="99"), b'{"mod', Cut()],
    ],
    ids=["500", "404", "no list", "empty", "odd names", "cut"],
)
async def test_without_a_list_the_provider_says_what_it_wants(works: Works, answer: Sequence[Step]) -> None:
    own = OwnModels("own-1")
    own.answer = answer
    async with ScriptedUpstream(own) as upstream:
        asking = Asking(works, upstream, "ollama")
        end = await asking.chat()
        assert (end.type, msgspec.json.decode(end.data)["message"]) == (ERROR, "model is required")
        await asking.chat()
        assert lists(asking.exchanges) == 1  # not asked again at once


@pytest.mark.parametrize("refusal", ["content_filter", "context_length_exceeded"])
async def test_other_refusals_are_not_taken_for_a_missing_model(works: Works, refusal: str) -> None:
    body = msgspec.json.encode({"error": {"message": "no", "code": refusal}})
    async with ScriptedUpstream([response(400, body)]) as upstream:
        asking = Asking(works, upstream, "openai")
        assert (await asking.chat()).type == ERROR
        assert len(asking.exchanges) == 1


# -- the list itself -----------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def model_list(upstream: ScriptedUpstream) -> ModelList:
    call = DIALECTS["openai"].list_call(f"{upstream.url}/v1", "")
    return ModelList(call, "here", verify_tls=True, needed=True)


async def test_list_is_kept_for_a_minute_and_then_asked_for_again() -> None:
    clock, logger = Clock(), structlog.get_logger()
    async with new_session() as session, ScriptedUpstream(LISTED, [response(500, "{}")], LISTED) as upstream:
        known = model_list(upstream)
        for passed, asked_for in ((0.0, 1), (KEPT - 1, 1), (2.0, 2), (PAUSE - 1, 2), (2.0, 3)):
            clock.time += passed
            # An old list is better than none, so it stays when the second question fails.
            assert await known.learn(session, clock.now, logger) == ("a", "b")
            assert len(upstream.exchanges) == asked_for


async def test_question_goes_on_when_who_asked_it_leaves() -> None:
    gate, clock, logger = asyncio.Event(), Clock(), structlog.get_logger()
    async with new_session() as session, ScriptedUpstream([WaitFor(gate), *LISTED]) as upstream:
        known = model_list(upstream)
        first = asyncio.create_task(known.learn(session, clock.now, logger))
        await upstream.exchange()
        first.cancel()
        second = asyncio.create_task(known.learn(session, clock.now, logger))
        gate.set()
        assert await asyncio.wait_for(second, 5) == ("a", "b")
        assert len(upstream.exchanges) == 1


async def test_question_has_bounds_in_time_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = structlog.get_logger()
    monkeypatch.setattr(models, "PATIENCE", 0.1)
    async with new_session() as session, ScriptedUpstream([Hang()]) as upstream:
        known = model_list(upstream)
        assert await asyncio.wait_for(known.learn(session, Clock().now, logger), 5) == ()
    monkeypatch.setattr(models, "PATIENCE", 5.0)
    monkeypatch.setattr(models, "MAX_LIST", 10)
    async with new_session() as session, ScriptedUpstream(LISTED) as upstream:
        assert await model_list(upstream).learn(session, Clock().now, logger) == ()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('{"data":[{"id":"a","object":"model"},{"id":"b"}],"object":"list"}', ("a", "b")),
        ('{"models":[{"name":"qwen3:8b","model":"qwen3:8b"}]}', ("qwen3:8b",)),
        ('{"models":[{"name":"x"}],"data":[{"id":"y"}]}', ("y",)),
        ('[{"id":"a"},{"id":"a"}]', ("a",)),
        ('["a","b"]', ("a", "b")),
        ('{"data":[{"id":""},{"id":null},{},7,null,{"id":"a"}]}', ("a",)),
        ('{"data":[]}', ()),
        ('{"data":null}', None),
        ('{"error":"x"}', None),
        ("<html>", None),
        ("", None),
        ("7", None),
        ("[" * 5000, None),
    ],
)
def test_list_is_read_leniently(body: str, names: tuple[str, ...] | None) -> None:
    assert models_in(body.encode()) == names


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ((), ""),
        (("a", "b"), "a"),
        (("text-embedding-3-small", "whisper-1", "gpt-4o"), "gpt-4o"),
        (("nomic-embed-text:latest", "bge-m3", "qwen3:8b"), "qwen3:8b"),
        (("nomic-embed-text",), "nomic-embed-text"),
        (("embargo-llm",), "embargo-llm"),
    ],
)
def test_first_model_is_the_first_one_for_chats(names: tuple[str, ...], first: str) -> None:
    assert first_of(names) == first


@pytest.mark.parametrize(
    ("dialect", "url", "listed"),
    [
        ("openai", "http://a/v1", "http://a/v1/models"),
        ("openai", "http://a/v1/chat/completions", "http://a/v1/models"),
        ("openai", "http://a/v1?api-version=1", "http://a/v1/models?api-version=1"),
        ("anthropic", "http://a/v1", "http://a/v1/models?limit=1000"),
        ("anthropic", "http://a/v1?x=1", "http://a/v1/models?x=1&limit=1000"),
        ("ollama", "http://a", "http://a/api/tags"),
        ("ollama", "http://a/api", "http://a/api/tags"),
        ("ollama", "http://a/api/chat", "http://a/api/tags"),
    ],
)
def test_dialect_knows_where_its_list_is(dialect: str, url: str, listed: str) -> None:
    call = DIALECTS[dialect].list_call(url, "k")
    assert call is not None
    assert (call.method, call.url) == ("GET", listed)
    assert "k" in "".join(call.headers.values())


@pytest.mark.parametrize("dialect", ["sse", "text"])
def test_endpoints_of_your_own_have_no_list(dialect: str) -> None:
    assert DIALECTS[dialect].list_call("http://a", "") is None
    assert not DIALECTS[dialect].lists_models
