"""The official OpenAI SDK, unchanged but for its base URL, against `api: openai` routes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.kit.program import AIMock, Gateway
from tests.kit.sse_client import request
from tests.kit.upstream import (
    Exchange,
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    openai_answer,
    openai_delta,
    sse_head,
)
from tests.kit.upstream import response as whole

if TYPE_CHECKING:  # it takes seconds, and each process of the tests collects all files
    import openai
    from openai.types.chat import ChatCompletionChunk

pytestmark = pytest.mark.asyncio(loop_scope="module")
each_dialect = pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])

KEY = "key-of-the-application"
ANSWER = "你好！很高兴见到你。今天想聊点什么？😀"
HELLO: Any = [{"role": "user", "content": "你好"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
TOO_LONG = '{"error":{"message":"Too long.","type":"invalid_request_error","code":"context_length_exceeded"}}'
NO_MODEL = '{"error":{"message":"No such model.","param":"model","code":"model_not_found"}}'
SLOW_DOWN = '{"error":{"message":"Slow down.","type":"rate_limit_error","code":"rate_limit_exceeded"}}'

CREATED = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m", "output": [], "created_at": 1}


def named(kind: str, **fields: Any) -> bytes:
    """An event of the Responses API, as one chunk."""
    return chunk(f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 0, **fields})}\n\n")


DELTA = named("response.output_text.delta", item_id="i", output_index=0, content_index=0, delta="half", logprobs=[])

SCENES: dict[str, list[Step]] = {
    "response cut": [sse_head(), named("response.created", response=CREATED), DELTA, Pause(0.1), Reset()],
    "response torn": [sse_head(), named("response.created", response=CREATED), DELTA, Pause(0.2), b"zz\r\n"],
    "late": [sse_head(), Pause(0.6), *openai_answer("你", "好")[1:]],
    "later": [Pause(0.6), *openai_answer("你", "好")],
    "cut": [sse_head(), openai_delta("half"), Pause(0.1), Reset()],
    "endless": [sse_head(), openai_delta("one"), Hang()],
    "too long": [whole(400, TOO_LONG)],
    "no model": [whole(404, NO_MODEL)],
    "busy": [whole(429, SLOW_DOWN, Retry_After="600")],
    "broken": [whole(500, '{"error":{"message":"Out of memory."}}')],
}
"""What the upstream does, by the model that is asked for."""


def scene(exchange: Exchange) -> list[Step]:
    return SCENES[exchange.json()["model"]]


def config(aimock: str, scripted: str) -> dict[str, Any]:
    bases = {"openai": f"{aimock}/v1", "anthropic": f"{aimock}/v1", "ollama": aimock}
    upstreams: dict[str, Any] = {name: {"dialect": name, "targets": [{"url": base}]} for name, base in bases.items()}
    once = {"retries": 0, "breaker": {"failures": 1000}}
    targets = [{"url": f"{scripted}/v1"}]
    upstreams["scripted"] = {"dialect": "openai", "targets": targets, "api_key": "provider-key"} | once
    return {
        "auth": {"keys": [{"id": "app", "key": KEY}, {"id": "slow", "key": "slow-key", "plan": "slow"}]},
        "plans": {"default": {}, "slow": {"requests": "1/s"}},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"heartbeat": "100ms", "commit_after": "200ms"},
        "upstreams": upstreams,
        "routes": [
            *({"path": f"/{name}/chat/completions", "api": "openai", "upstream": name} for name in upstreams),
            {"path": "/proxied/{path}", "api": "proxy", "upstream": "scripted"},
        ],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        aimock = await stack.enter_async_context(AIMock(Path(__file__).with_name("aimock.json")))
        scripted = await stack.enter_async_context(ScriptedUpstream(scene))
        program = Gateway(config(aimock.url, scripted.url), tmp_path_factory.mktemp("gateway"))
        yield await stack.enter_async_context(program)


def sdk(gateway: Gateway, upstream: str = "scripted", *, key: str = KEY, retries: int = 0) -> "openai.AsyncOpenAI":
    import openai

    return openai.AsyncOpenAI(base_url=f"{gateway.url}/{upstream}", api_key=key, timeout=10, max_retries=retries)


async def streamed(client: "openai.AsyncOpenAI", model: str = "m", **options: Any) -> "list[ChatCompletionChunk]":
    """The chunks of an answer."""
    options = {"messages": HELLO} | options
    async with client, await client.chat.completions.create(model=model, stream=True, **options) as stream:
        return [chunk async for chunk in stream]


def text(chunks: "list[ChatCompletionChunk]") -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@each_dialect
async def test_sdk_streams_an_answer(gateway: Gateway, dialect: str) -> None:
    chunks = await streamed(sdk(gateway, dialect))
    assert text(chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


@each_dialect
async def test_sdk_gets_a_whole_answer(gateway: Gateway, dialect: str) -> None:
    async with sdk(gateway, dialect) as client:
        completion = await client.chat.completions.create(model="m", messages=HELLO)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None


@each_dialect
async def test_synchronous_sdk_streams_and_gets_a_whole_answer(gateway: Gateway, dialect: str) -> None:
    import openai

    def use() -> "tuple[list[ChatCompletionChunk], str | None]":
        base = f"{gateway.url}/{dialect}"
        with openai.OpenAI(base_url=base, api_key=KEY, timeout=10, max_retries=0) as client:
            with client.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
                chunks = list(stream)
            return chunks, client.chat.completions.create(model="m", messages=HELLO).choices[0].message.content

    chunks, content = await asyncio.to_thread(use)
    assert text(chunks) == content == ANSWER


@each_dialect
async def test_sdk_gets_usage_in_a_last_chunk_when_it_asks(gateway: Gateway, dialect: str) -> None:
    *chunks, last = await streamed(sdk(gateway, dialect), stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)


@each_dialect
async def test_sdk_calls_a_tool_and_answers_it(gateway: Gateway, dialect: str) -> None:
    question: Any = [{"role": "user", "content": "weather"}]
    client = sdk(gateway, dialect)
    async with client.chat.completions.stream(model="m", messages=question, tools=TOOLS) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls is not None
    assert [call.function.name for call in message.tool_calls] == ["get_weather"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "上海", "unit": "celsius"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21"}
    history = [*question, message.model_dump(exclude_none=True, exclude={"parsed"}), result]
    assert text(await streamed(client, messages=history, tools=TOOLS)) == "It is 21 °C in Shanghai."


@each_dialect
async def test_sdk_gets_a_tool_call_in_a_whole_answer(gateway: Gateway, dialect: str) -> None:
    question: Any = [{"role": "user", "content": "weather"}]
    async with sdk(gateway, dialect) as client:
        completion = await client.chat.completions.create(model="m", messages=question, tools=TOOLS)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = [call.function for call in choice.message.tool_calls or [] if call.type == "function"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["上海"]


@pytest.mark.parametrize("model", ["late", "later"])
async def test_sdk_does_not_mind_heartbeats_before_the_first_token(gateway: Gateway, model: str) -> None:
    assert text(await streamed(sdk(gateway), model)) == "你好"


async def test_sdk_with_a_bad_key_is_unauthorized(gateway: Gateway) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError) as caught:
        await streamed(sdk(gateway, key="guess"), "late")
    assert caught.value.code == "unauthorized"


async def test_sdk_asking_for_what_is_not_there_is_told(gateway: Gateway) -> None:
    import openai

    async with sdk(gateway) as client:
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="text-embedding-3-small", input="hi")


CODES = {
    "too long": ("context_length_exceeded", None),
    "no model": ("model_not_found", "model"),
    "busy": ("upstream_rate_limited", None),
    "broken": ("upstream_error", None),
}


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("too long", "BadRequestError", "Too long."),
        ("no model", "NotFoundError", "No such model."),
        ("busy", "RateLimitError", "rate limiting: Slow down."),
        ("broken", "InternalServerError", "provider failed: Out of memory."),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_raises_what_the_provider_answered(
    gateway: Gateway, model: str, error: str, message: str, stream: bool
) -> None:
    import openai

    async with sdk(gateway) as client:
        with pytest.raises(getattr(openai, error), match=message) as caught:
            await client.chat.completions.create(model=model, messages=HELLO, stream=stream)
    assert caught.value.request_id
    assert (caught.value.code, caught.value.param) == CODES[model]


async def test_sdk_is_told_when_to_come_back(gateway: Gateway) -> None:
    import openai

    with pytest.raises(openai.RateLimitError) as caught:
        await streamed(sdk(gateway), "busy")
    assert caught.value.response.headers["retry-after"] == "600"


async def test_sdk_comes_back_when_its_plan_allows(gateway: Gateway) -> None:
    import openai

    begun = time.monotonic()
    await streamed(sdk(gateway, key="slow-key"), "late")
    with pytest.raises(openai.RateLimitError) as caught:
        await streamed(sdk(gateway, key="slow-key"), "late")
    wait = float(caught.value.response.headers["retry-after"])
    assert text(await streamed(sdk(gateway, key="slow-key", retries=1), "late")) == "你好"
    assert wait >= 1
    assert time.monotonic() - begun >= 1  # whenever the two of them came: the plan has one request a second


@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_never_takes_a_cut_answer_for_a_whole_one(gateway: Gateway, stream: bool) -> None:
    import openai

    client = sdk(gateway)
    with pytest.raises(openai.APIError) as caught:
        await (streamed(client, "cut") if stream else client.chat.completions.create(model="cut", messages=HELLO))
    await client.close()
    assert caught.value.code == "upstream_cut"


@pytest.mark.parametrize(("model", "code"), [("response cut", "upstream_cut"), ("response torn", "upstream_protocol")])
async def test_sdk_never_takes_a_cut_response_of_a_proxied_endpoint_for_a_whole_one(
    gateway: Gateway, model: str, code: str
) -> None:
    import openai

    heard = []

    async def listen() -> None:
        async with sdk(gateway, "proxied") as client:
            async for event in await client.responses.create(model=model, input="hi", stream=True):
                heard.append(event.type)  # noqa: PERF401 (what came before the error counts)

    with pytest.raises(openai.APIError) as caught:
        await asyncio.wait_for(listen(), 10)
    assert heard == ["response.created", "response.output_text.delta"]
    assert caught.value.code == code
    assert caught.value.message


async def test_sdk_that_leaves_ends_nothing_that_can_be_resumed(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with sdk(gateway) as client:
        raw = client.chat.completions.with_streaming_response
        async with raw.create(model="endless", messages=HELLO, stream=True) as response:
            stream_id = response.headers["x-stream-id"]
            stream = await response.parse()
            assert (await anext(stream)).choices[0].delta.content == "one"
    async with await request(f"{gateway.url}/streams/{stream_id}", headers=headers) as again:
        assert (message := await again.next())
        assert message.json()["choices"][0]["delta"]["content"] == "one"
    async with await request(f"{gateway.url}/streams/{stream_id}", method="DELETE", headers=headers) as stopped:
        assert (await stopped.json())["state"] == "stopped"
