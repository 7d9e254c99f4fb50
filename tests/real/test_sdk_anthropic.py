"""The official Anthropic SDK, unchanged but for its base URL, through an `api: proxy` route."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from tests.kit.program import AIMock, Gateway
from tests.kit.upstream import Cut, Exchange, Pause, Reset, ScriptedUpstream, Step, chunk, response, sse_head

if TYPE_CHECKING:  # it takes seconds, and each process of the tests collects all files
    import anthropic

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "key-of-the-application"
PROVIDER_KEY = "key-of-the-provider"
ANSWER = "你好！很高兴见到你。今天想聊点什么？😀"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"name": "get_weather", "input_schema": PARAMETERS}]
WHOLE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": "end_turn"}


def asking(text: str, model: str = "m") -> Any:
    return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": text}]}


def event(type_: str, **fields: Any) -> bytes:
    """One of Anthropic's events, in an HTTP chunk."""
    return chunk(b"event: %s\ndata: %s\n\n" % (type_.encode(), msgspec.json.encode({"type": type_} | fields)))


START = event("message_start", message=WHOLE | {"stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 1}})
BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
HALF = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "half"})
OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}
REFUSED = {"type": "invalid_request_error", "message": "max_tokens is too large"}
SCENES: dict[str, list[Step]] = {
    "whole": [response(200, msgspec.json.encode(WHOLE | {"usage": {"input_tokens": 1, "output_tokens": 1}}))],
    "cut": [sse_head(), START, BLOCK, HALF, Pause(0.1), Reset()],
    "overloaded": [sse_head(), START, BLOCK, HALF, event("error", error=OVERLOADED), Cut()],
    "refused": [response(400, msgspec.json.encode({"type": "error", "error": REFUSED}))],
    "busy": [response(429, msgspec.json.encode({"type": "error", "error": OVERLOADED}), Retry_After="600")],
}
"""What the scripted upstream does, by the model that is asked for."""


def scene(exchange: Exchange) -> list[Step]:
    return SCENES[exchange.json()["model"]]


def config(aimock: str, scripted: str) -> dict[str, Any]:
    def upstream(url: str) -> dict[str, Any]:
        return {"dialect": "anthropic", "targets": [{"url": url}], "headers": {"x-api-key": PROVIDER_KEY}}

    return {
        "auth": {"keys": [{"id": "app", "key": KEY}]},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": "100ms"},
        "upstreams": {"anthropic": upstream(aimock), "scripted": upstream(scripted)},
        "routes": [
            {"path": f"/{name}/{{path}}", "api": "proxy", "upstream": name} for name in ("anthropic", "scripted")
        ],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scripted() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(scene) as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(scripted: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        aimock = await stack.enter_async_context(AIMock(Path(__file__).with_name("aimock.json")))
        program = Gateway(config(aimock.url, scripted.url), tmp_path_factory.mktemp("gateway"))
        yield await stack.enter_async_context(program)


def sdk(gateway: Gateway, upstream: str = "anthropic", *, key: str = KEY) -> "anthropic.AsyncAnthropic":
    import anthropic

    return anthropic.AsyncAnthropic(
        base_url=f"{gateway.url}/{upstream}", auth_token=key, api_key=None, timeout=10, max_retries=0
    )


async def test_sdk_streams_an_answer(gateway: Gateway) -> None:
    async with sdk(gateway) as client, client.messages.stream(**asking("你好")) as stream:
        pieces = [piece async for piece in stream.text_stream]
        message = await stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER
    assert message.stop_reason == "end_turn"


async def test_sdk_gets_a_whole_answer(gateway: Gateway) -> None:
    async with sdk(gateway) as client:
        message = await client.messages.create(**asking("你好"))
    assert [block.text for block in message.content if block.type == "text"] == [ANSWER]


async def test_synchronous_sdk_streams_events(gateway: Gateway) -> None:
    import anthropic

    def types() -> list[str]:
        url = f"{gateway.url}/anthropic"
        with anthropic.Anthropic(base_url=url, auth_token=KEY, api_key=None, timeout=10, max_retries=0) as client:
            return [event.type for event in client.messages.create(**asking("你好"), stream=True)]

    begin, *deltas, stop_block, delta, stop = await asyncio.to_thread(types)
    assert (begin, stop_block, delta, stop) == (
        "message_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    )
    assert deltas[0] == "content_block_start"
    assert set(deltas[1:]) == {"content_block_delta"}


async def test_sdk_calls_a_tool(gateway: Gateway) -> None:
    async with sdk(gateway) as client, client.messages.stream(**asking("weather"), tools=TOOLS) as stream:
        message = await stream.get_final_message()
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", {"city": "上海", "unit": "celsius"})


async def test_upstream_gets_its_own_key_and_never_ours(gateway: Gateway, scripted: ScriptedUpstream) -> None:
    async with sdk(gateway, "scripted") as client:
        await client.messages.create(**asking("hi", "whole"))
        await client.messages.create(**asking("hi", "whole"), extra_headers={"Cookie": f"gateway_token={KEY}; a=1"})
    for exchange in scripted.exchanges:
        assert KEY.encode() not in exchange.head + exchange.body
        assert exchange.headers["x-api-key"] == PROVIDER_KEY
        assert exchange.headers["anthropic-version"]
        assert exchange.target == "/v1/messages"
    assert scripted.exchanges[-1].headers["cookie"] == "a=1"


async def test_sdk_with_a_bad_key_is_unauthorized(gateway: Gateway) -> None:
    import anthropic

    async with sdk(gateway, key="guess") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(**asking("你好"))


@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_reads_the_providers_own_refusal(gateway: Gateway, stream: bool) -> None:
    import anthropic

    async with sdk(gateway, "scripted") as client:
        with pytest.raises(anthropic.BadRequestError, match="max_tokens is too large"):
            await client.messages.create(**asking("hi", "refused"), stream=stream)


@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_is_told_when_to_come_back(gateway: Gateway, stream: bool) -> None:
    import anthropic

    async with sdk(gateway, "scripted") as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(**asking("hi", "busy"), stream=stream)
    assert caught.value.response.headers["retry-after"] == "600"


@pytest.mark.parametrize(("model", "said"), [("overloaded", "overloaded_error"), ("cut", "upstream_cut")])
async def test_sdk_never_takes_a_broken_answer_for_a_whole_one(gateway: Gateway, model: str, said: str) -> None:
    import anthropic

    async with sdk(gateway, "scripted") as client, client.messages.stream(**asking("hi", model)) as stream:
        with pytest.raises(anthropic.APIStatusError, match=said):
            await stream.get_final_message()
