"""The stand-in over HTTP."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from gateway.demo import Demo, start_demo


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    demo = await start_demo(speed=math.inf)
    yield demo
    await demo.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


async def chunks(http: aiohttp.ClientSession, demo: Demo, text: str, **more: Any) -> list[dict[str, Any]]:
    async with http.post(f"{demo.url}/chat/completions", json=asking(text, stream=True, **more)) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        blocks = (await answer.read()).decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [msgspec.json.decode(block.removeprefix("data: ")) for block in blocks[:-2]]


async def test_client_streams_an_answer(http: aiohttp.ClientSession, demo: Demo) -> None:
    stream = await chunks(http, demo, "hi")
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert stream[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert {chunk["object"] for chunk in stream} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in stream)


async def test_client_is_told_the_usage_when_it_asks(http: aiohttp.ClientSession, demo: Demo) -> None:
    stream = await chunks(http, demo, "hi", stream_options={"include_usage": True})
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == len(stream) - 3
    assert stream[0]["usage"] is None


async def test_client_gets_the_same_text_with_and_without_stream(http: aiohttp.ClientSession, demo: Demo) -> None:
    stream = await chunks(http, demo, "你好")
    async with http.post(f"{demo.url}/chat/completions", json=asking("你好")) as answer:
        whole = await answer.json()
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream)
    assert whole["choices"][0]["message"]["content"] == text
    assert whole["object"] == "chat.completion"


async def test_client_gets_a_whole_tool_call_without_stream(http: aiohttp.ClientSession, demo: Demo) -> None:
    async with http.post(f"{demo.url}/chat/completions", json=asking("/tool")) as answer:
        choice = (await answer.json())["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    function = choice["message"]["tool_calls"][0]["function"]
    assert msgspec.json.decode(function["arguments"]) == {"city": "Hangzhou", "unit": "celsius"}


@pytest.mark.parametrize(("text", "status", "retry"), [("/error", 500, None), ("/busy", 429, "3")])
async def test_client_is_refused_on_demand(
    http: aiohttp.ClientSession, demo: Demo, text: str, status: int, retry: str | None
) -> None:
    async with http.post(f"{demo.url}/chat/completions", json=asking(text, stream=True)) as answer:
        assert (answer.status, answer.headers.get("Retry-After")) == (status, retry)
        assert (await answer.json())["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"messages": []}', b'{"messages": [{"role": 1}]}'])
async def test_client_is_told_what_is_wrong_with_its_request(
    http: aiohttp.ClientSession, demo: Demo, body: bytes
) -> None:
    async with http.post(f"{demo.url}/chat/completions", data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_client_sees_a_cut_as_a_broken_body(http: aiohttp.ClientSession, demo: Demo) -> None:
    async with http.post(f"{demo.url}/chat/completions", json=asking("/cut", stream=True)) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_client_reads_half_and_then_silence(http: aiohttp.ClientSession, demo: Demo) -> None:
    async with http.post(f"{demo.url}/chat/completions", json=asking("/stall", stream=True)) as answer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await answer.read()


async def test_client_that_leaves_ends_its_answer(http: aiohttp.ClientSession, demo: Demo) -> None:
    async with http.post(f"{demo.url}/chat/completions", json=asking("/stall", stream=True)) as answer:
        await answer.content.readany()
        answer.close()
    assert demo.runner.server
    async with asyncio.timeout(1):
        while demo.runner.server.connections:  # noqa: ASYNC110 - a server tells nobody when a client has gone
            await asyncio.sleep(0)


async def test_client_lists_the_models(http: aiohttp.ClientSession, demo: Demo) -> None:
    async with http.get(f"{demo.url}/models") as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == ["demo"]
