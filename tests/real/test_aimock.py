"""Answers of aimock, which speaks three providers' dialects and was written by nobody here."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.program import AIMock, Gateway
from tests.kit.sse_client import Message, request

pytestmark = pytest.mark.asyncio(loop_scope="module")
each_dialect = pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])

ANSWER = "你好！很高兴见到你。今天想聊点什么？😀"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def config(url: str) -> dict[str, Any]:
    """For each dialect a chat and an openai route."""
    bases = {"openai": f"{url}/v1", "anthropic": f"{url}/v1", "ollama": url}
    return {
        "auth": {"anonymous": True},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "upstreams": {name: {"dialect": name, "targets": [{"url": base}]} for name, base in bases.items()},
        "routes": [
            route
            for name in bases
            for route in (
                {"path": f"/{name}/chat", "api": "chat", "upstream": name, "model": "m", "commit_after": "0s"},
                {"path": f"/{name}/v1", "api": "openai", "upstream": name, "model": "m"},
            )
        ],
    }


def gateway_of(aimock: AIMock, directories: pytest.TempPathFactory) -> Gateway:
    return Gateway(config(aimock.url), directories.mktemp("gateway"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    answers = Path(__file__).with_name("aimock.json")
    async with AIMock(answers, piece=2) as aimock, gateway_of(aimock, tmp_path_factory) as gateway:
        yield gateway


async def chat(gateway: Gateway, dialect: str, message: str) -> list[Message]:
    """The events of a chat route's answer."""
    url = f"{gateway.url}/{dialect}/chat"
    async with await request(url, method="POST", body={"message": message}) as answer:
        return [event async for event in answer.messages()]


async def ask(gateway: Gateway, dialect: str, message: str, **more: Any) -> tuple[int, Any]:
    """Status and body of an openai route's answer that is not streamed."""
    body = {"messages": [{"role": "user", "content": message}], **more}
    async with await request(f"{gateway.url}/{dialect}/v1", method="POST", body=body) as answer:
        return answer.status, await answer.json()


def joined(events: list[Message], type_: str) -> str:
    return "".join(event.json()["text"] for event in events if event.type == type_)


@each_dialect
async def test_browser_reads_a_chinese_answer(gateway: Gateway, dialect: str) -> None:
    events = await chat(gateway, dialect, "你好")
    tokens = [event for event in events if event.type == "token"]
    assert [event.type for event in events] == ["connected", *["token"] * len(tokens), "done"]
    assert joined(events, "token") == events[-1].json()["full_text"] == ANSWER
    assert len(tokens) > 1


@each_dialect
async def test_browser_is_told_an_estimate_where_the_provider_counts_nothing(gateway: Gateway, dialect: str) -> None:
    # aimock says 0 tokens for Anthropic and Ollama, which no answer with words in it has
    *_, done = await chat(gateway, dialect, "hello")
    assert done.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])  # aimock's Ollama does not say `thinking` as the real one
async def test_browser_reads_the_reasoning_before_the_answer(gateway: Gateway, dialect: str) -> None:
    events = await chat(gateway, dialect, "think")
    assert joined(events, "thinking") == "Two and two make four."
    assert joined(events, "token") == "The answer is 4."
    types = [event.type for event in events]
    assert types.index("token") > max(index for index, type_ in enumerate(types) if type_ == "thinking")


@each_dialect
async def test_browser_reads_a_tool_call(gateway: Gateway, dialect: str) -> None:
    events = await chat(gateway, dialect, "weather")
    pieces = [event.json()["function"] for event in events if event.type == "tool"]
    assert "".join(piece.get("name") or "" for piece in pieces) == "get_weather"
    arguments = json.loads("".join(piece.get("arguments") or "" for piece in pieces))
    assert arguments == {"city": "上海", "unit": "celsius"}
    assert events[-1].json()["finish_reason"] == "tool_calls"


@each_dialect
async def test_client_gets_a_whole_completion(gateway: Gateway, dialect: str) -> None:
    status, completion = await ask(gateway, dialect, "你好")
    assert status == 200
    # An OpenAI upstream's own answer is passed on as it is, with what else it says.
    message = {name: value for name, value in completion["choices"][0]["message"].items() if value is not None}
    assert message == {"role": "assistant", "content": ANSWER}
    assert completion["choices"][0]["finish_reason"] == "stop"
    usage = completion["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@each_dialect
async def test_client_gives_the_result_of_a_tool_and_gets_the_answer(gateway: Gateway, dialect: str) -> None:
    _, completion = await ask(gateway, dialect, "weather", tools=[TOOL])
    called = completion["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "21"}
    body = {"messages": [{"role": "user", "content": "weather"}, called, result], "tools": [TOOL]}
    async with await request(f"{gateway.url}/{dialect}/v1", method="POST", body=body) as answer:
        whole = await answer.json()
    assert whole["choices"][0]["message"]["content"] == "It is 21 °C in Shanghai."


@each_dialect
async def test_client_is_told_that_the_provider_is_busy(gateway: Gateway, dialect: str) -> None:
    status, body = await ask(gateway, dialect, "rate limit")
    assert (status, body["error"]["code"]) == (429, "upstream_rate_limited")


@each_dialect
async def test_client_is_told_that_the_conversation_is_too_long(gateway: Gateway, dialect: str) -> None:
    status, body = await ask(gateway, dialect, "too long")
    assert status == 400
    assert body["error"]["message"] == "Too many tokens."


@each_dialect
async def test_browser_is_told_of_an_answer_that_breaks_off(gateway: Gateway, dialect: str) -> None:
    events = await chat(gateway, dialect, "cut")
    assert [event.type for event in events if event.type not in {"connected", "token"}] == ["error"]
    assert events[-1].json()["code"] in {"upstream_cut", "upstream_reset"}
