"""What the limits of plans and addresses are held to, in every dialect and on both listeners (H5, H8, H9)."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import request
from tests.kit.upstream import (
    Exchange,
    Hang,
    ScriptedUpstream,
    Step,
    chunk,
    http_head,
    openai_answer,
    openai_chunk,
    response,
)
from tests.seams.serving import Serving, serving
from tests.web.stage import completion, setting, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = 200
"""In each chunk, of a plan's 400."""
CHUNKS = 20
TEXT = "four" * TOKENS
WAYS = [
    *[(dialect, said) for dialect in ("openai", "anthropic", "ollama") for said in ("text", "thought", "tool")],
    ("sse", "text"),
    ("text", "text"),
]
_numbers = count()


def said_by_anthropic(said: str) -> Iterator[str]:
    blocks: dict[str, dict[str, Any]] = {
        "text": {"type": "text", "text": ""},
        "thought": {"type": "thinking", "thinking": ""},
        "tool": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    }
    deltas: dict[str, dict[str, Any]] = {
        "text": {"type": "text_delta", "text": TEXT},
        "thought": {"type": "thinking_delta", "thinking": TEXT},
        "tool": {"type": "input_json_delta", "partial_json": TEXT},
    }
    usage = {"input_tokens": 1, "output_tokens": 1}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "model": "m", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": blocks[said]},
        *[{"type": "content_block_delta", "index": 0, "delta": deltas[said]}] * CHUNKS,
    ]
    return (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def said_by_ollama(said: str) -> Iterator[str]:
    call = {"function": {"name": "f", "arguments": {"a": TEXT}}}
    messages: dict[str, dict[str, Any]] = {
        "text": {"content": TEXT},
        "thought": {"content": "", "thinking": TEXT},
        "tool": {"content": "", "tool_calls": [call]},
    }
    line = {"model": "m", "message": {"role": "assistant"} | messages[said], "done": False}
    return (json.dumps(line) + "\n" for _ in range(CHUNKS))


def said_by_openai(said: str) -> Iterator[str]:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": TEXT}}
    deltas: dict[str, dict[str, Any]] = {
        "text": {"content": TEXT},
        "thought": {"reasoning_content": TEXT},
        "tool": {"tool_calls": [call]},
    }
    return (openai_chunk(deltas[said]).decode() for _ in range(CHUNKS))


def play(exchange: Exchange) -> Sequence[Step]:
    """Twenty chunks in one read, and then nothing: neither an end nor a usage."""
    if exchange.method == "GET":
        return [response(404, "")]
    _, dialect, said = exchange.target.split("/")[:3]
    if dialect == "brief":
        return openai_answer("yes")
    speak = {"openai": said_by_openai, "anthropic": said_by_anthropic, "ollama": said_by_ollama}
    kind = {"ollama": "application/x-ndjson", "text": "text/plain"}.get(dialect, "text/event-stream")
    parts = speak[dialect](said) if dialect in speak else [TEXT if dialect == "text" else f"data: {TEXT}\n\n"] * CHUNKS
    return [http_head(200, kind, Transfer_Encoding="chunked"), chunk("".join(parts)), Hang()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(play) as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(upstream: ScriptedUpstream) -> AsyncIterator[Serving]:
    config = setting(upstream.url, [])
    for dialect, said in WAYS:
        url = f"{upstream.url}/{dialect}/{said}"
        name = f"{dialect}-{said}"
        config["upstreams"][name] = {"dialect": dialect, "model": "m", "retries": 0, "targets": [{"url": url}]}
        for api in ("chat", "openai"):
            config["routes"].append({"path": f"/{api}/{name}", "api": api, "upstream": name})
    more: dict[str, Any] = {"stop": ["x" * 4000]}
    config["upstreams"]["adding"] = config["upstreams"]["llm"] | {"params": more}
    config["upstreams"]["first"] = config["upstreams"]["closed"] | {"fallback": ["adding"]}
    config["routes"] += [{"path": f"/{name}", "api": "chat", "upstream": name} for name in ("adding", "first")]
    history = {"turns": 1000, "ttl": "1h", "max_bytes": "64KiB"}
    config["upstreams"]["brief"] = config["upstreams"]["llm"] | {"targets": [{"url": f"{upstream.url}/brief"}]}
    config["routes"].append({"path": "/brief", "api": "chat", "upstream": "brief", "history": history})
    config["auth"] = {"keys": [{"id": f"k{number}", "key": f"key-{number}"} for number in range(40)]}
    config["auth"]["keys"].append({"id": "rich", "key": "key-rich", "plan": "rich"})
    unlimited = {"requests": None, "streams": None}
    config["plans"] = {"default": unlimited | {"tokens": f"{2 * TOKENS}/h"}, "rich": unlimited | {"tokens": None}}
    async with serving(json.loads(json.dumps(config))) as gateway:
        yield gateway


def somebody() -> dict[str, str]:
    """Headers of a principal who has used nothing."""
    return {"Authorization": f"Bearer key-{next(_numbers)}", "Accept": "text/event-stream"}


@pytest.mark.parametrize(("dialect", "said"), WAYS)
@pytest.mark.parametrize("api", ["chat", "openai"])
async def test_budget_ends_an_answer_within_one_event(gateway: Serving, api: str, dialect: str, said: str) -> None:
    """H5: of 4,000 tokens that come at once, at most one event more is sent than the budget has room for."""
    body = completion("hi", stream=True) if api == "openai" else {"message": "hi"}
    url = f"{gateway.url}/{api}/{dialect}-{said}"
    messages = await whole(await request(url, method="POST", body=body, headers=somebody()))
    assert "budget" in "".join(message.data for message in messages[-2:])
    sent = sum(message.data.count("four") for message in messages)
    assert TOKENS <= sent <= 2 * TOKENS + 256


@pytest.mark.parametrize("path", ["/adding", "/first"])
async def test_what_an_upstream_or_a_fallback_adds_is_counted(gateway: Serving, path: str) -> None:
    """H5"""
    body, headers = {"message": "hi"}, somebody() | {"Accept": "application/json"}
    async with await request(gateway.url + path, method="POST", body=body, headers=headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (429, "token_limit")


async def test_long_history_is_told_again_up_to_its_bound(gateway: Serving, upstream: ScriptedUpstream) -> None:
    """H9: in memory and in a prompt; what was said last is kept, and a turn that is too long alone is not."""
    headers = {"Authorization": "Bearer key-rich"}
    for number in range(12):
        message = f"number {number} " + "x" * (80_000 if number == 5 else 10_000)
        body = {"message": message, "session_id": "s"}
        async with await request(f"{gateway.url}/brief", method="POST", body=body, headers=headers) as answer:
            await answer.body()
        sent = upstream.exchanges[-1]
        assert len(sent.body) < len(message) + (64 << 10)
    told = [message["content"].split(" ")[:2] for message in sent.json()["messages"] if message["role"] == "user"]
    assert told == [["number", str(number)] for number in range(6, 12)]
