"""A kind of route that is defined outside the package: its own methods, requests, answers, errors and headers."""

from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from aiohttp import web

from gateway.config import ChatRoute
from gateway.core.errors import Failure, GatewayError
from gateway.formats import compile_format
from gateway.streams.generation import Generation
from gateway.web.exchange import Exchange
from gateway.web.kinds import KINDS, Asked, RouteKind
from gateway.web.kinds.chat_source import ChatSource
from gateway.web.responses import json_response
from tests.kit.sse_client import request
from tests.kit.upstream import ScriptedUpstream, openai_answer, response
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, parsed, setting, text_of


class Word(RouteKind[ChatRoute]):
    """`PUT /chat?word=…`: the answer to one word, as events, or as its length for clients that read no events."""

    methods = frozenset({"PUT"})
    format = compile_format("events")

    async def read(self, exchange: Exchange) -> Asked:
        word = exchange.request.query.get("word", "")
        if not word.isalpha():
            raise GatewayError("bad_request", "One word, please.")
        chat = {"model": "m", "messages": [{"role": "user", "content": word}]}
        return Asked(self.job(exchange, ChatSource(chat), self.format, "m"), stream=exchange.accepts_events)

    def respond(self, exchange: Exchange, asked: Asked, generation: Generation) -> Awaitable[web.StreamResponse]:
        return super().respond(exchange, asked, generation) if asked.stream else length(exchange, generation)

    def error_body(self, failure: Failure, request_id: str) -> tuple[dict[str, Any], str]:
        return {"oh": failure.message}, "application/vnd.word+json"

    def limit_headers(self, quotas: Sequence[Any], refusal: Any = None) -> dict[str, str]:
        return {"X-Words-Left": str(min(quota.remaining for quota in quotas))}


async def length(exchange: Exchange, generation: Generation) -> web.StreamResponse:
    await generation.opened()
    await generation.ended
    return json_response(exchange, {"events": generation.account.events})


def words(url: str) -> dict[str, Any]:
    return setting(url, [{"path": "/chat"}], plans={"default": {"requests": "5/day"}})


async def put(gateway: Serving, query: str, **headers: str) -> Any:
    return await request(f"{gateway.url}/chat?{query}", method="PUT", headers=headers)


async def test_kind_of_its_own_reads_answers_and_resumes() -> None:
    async with (
        ScriptedUpstream(openai_answer("a", "b"), openai_answer("c")) as upstream,
        serving(words(upstream.url), kinds={**KINDS, "chat": Word}) as gateway,
    ):
        async with await put(gateway, "word=hi", **EVENTS) as answer:
            messages = parsed(await answer.body())
            assert answer.headers["x-words-left"] == "4"
        assert text_of(messages) == "ab"
        async with await put(gateway, f"last_event_id={messages[-2].last_event_id}", **EVENTS) as answer:
            back, rest = parsed(await answer.body())
            assert (back.type, back.json()["resumed"], rest) == ("connected", True, messages[-1])
        async with await put(gateway, "word=hi", Accept="application/json") as answer:
            assert await answer.json() == {"events": 1}
        assert len(upstream.exchanges) == 2


@pytest.mark.parametrize(("method", "query", "status"), [("PUT", "word=1", 400), ("GET", "word=hi", 405)])
async def test_kind_of_its_own_has_errors_of_its_own(method: str, query: str, status: int) -> None:
    async with (
        ScriptedUpstream([response(200, "{}")]) as upstream,
        serving(words(upstream.url), kinds={**KINDS, "chat": Word}) as gateway,
        await request(f"{gateway.url}/chat?{query}", method=method, headers={"Accept": "*/*"}) as answer,
    ):
        assert (answer.status, answer.media_type) == (status, "application/vnd.word+json")
        assert "oh" in await answer.json()
        assert not upstream.exchanges
