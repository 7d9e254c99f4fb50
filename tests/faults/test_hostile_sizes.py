"""Names, ids, numbers and lists of absurd size, from clients and from providers, and what is logged of them: H10."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.faults.stage import Stage, stage_fixture
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Hang,
    Script,
    chunk,
    openai_answer,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

stage = stage_fixture()
LINE = 16 << 10
"""Characters of a log line at most, whatever was sent."""


async def post(stage: Stage, path: str, body: Any, script: Script = (), **headers: str) -> tuple[int, str, str]:
    """Status, body and request id of the answer."""
    stage.plays(script or openai_answer("Hi"))
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with (
        asyncio.timeout(10),
        await request(f"{stage.gateway.url}{path}", method="POST", body=raw, headers=headers) as answer,
    ):
        return answer.status, (await answer.body()).decode(), answer.headers["x-request-id"]


def asks(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]} | fields


# First, as the log counts what comes too often.


@pytest.mark.parametrize(("body", "wrong"), [(b'{"message": "secret', "not valid JSON"), (b'["secret"]', "object")])
async def test_log_says_what_was_wrong_with_a_body_and_quotes_nothing(stage: Stage, body: bytes, wrong: str) -> None:
    status, _, name = await post(stage, "/chat/ollama", body)
    line = await stage.gateway.logged("refused", request_id=name)
    assert (status, wrong in line["detail"], "secret" in str(line)) == (400, True, False)


HUGE: dict[str, dict[str, Any]] = {
    "model": asks(model="m" * 70_000),
    "call ids": asks(
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c" * 70_000, "type": "function", "function": {"name": "f" * 70_000, "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c" * 70_000, "content": "x"},
        ]
    ),
    "n": asks(n=10**18),
    "max_tokens": asks(max_tokens=10**18),
    "backticks": asks(messages=[{"role": "user", "content": "`" * 80_000}]),
    "user": asks(user="u" * 70_000, metadata={"k" * 70_000: "v"}),
}


@pytest.mark.parametrize("case", HUGE)
async def test_huge_request_is_answered_and_its_log_lines_are_short(stage: Stage, case: str) -> None:
    """H10"""
    for dialect in ("openai", "anthropic", "ollama"):
        status, _, name = await post(stage, f"/openai/{dialect}", HUGE[case])
        assert status in (200, 400, 413, 502), case
        await stage.gateway.logged("request", request_id=name)
    await bounded(stage)


@pytest.mark.parametrize("number", [200, 400, 503])
async def test_end_of_a_stream_of_a_model_with_a_huge_name_is_logged(stage: Stage, number: int) -> None:
    """H10: whether it was answered or refused; by the beginning of the name."""
    bare = [sse_head(), chunk("data: Hi\n\n"), chunk("data: [DONE]\n\n"), LAST_CHUNK]
    script = bare if number == 200 else [response(number, '{"error": {"message": "no"}}')]
    status, _, name = await post(stage, "/openai/sse" if number == 200 else "/openai/openai", HUGE["model"], script)
    assert (status == 200) == (number == 200)
    line = await stage.gateway.logged("stream_end", request_id=name)
    assert set(line["model"]) <= set("m")
    await bounded(stage)


async def bounded(stage: Stage) -> None:
    """The gateway is alive, its lines are short, and no label is made of what was sent."""
    lines = [*stage.gateway.stdout, *stage.gateway.stderr]
    assert max(map(len, lines)) < LINE
    metrics = await stage.metrics()
    assert max(map(len, metrics)) < 1000
    assert len(metrics) < 20_000
    assert (await post(stage, "/openai/openai", asks()))[0] == 200


def part(delta: dict[str, Any], reason: str | None = None, **extra: Any) -> bytes:
    return chunk(openai_chunk(delta, reason, **extra))


def call(index: Any, name: str = "f", id_: str = "") -> bytes:
    return part({"tool_calls": [{"index": index, "id": id_ or f"c{index}", "function": {"name": name}}]})


SAID: dict[str, list[bytes]] = {
    "model": [part({"content": "Hi"}, model="m" * 70_000), part({}, "stop", model="m" * 70_000)],
    "finish reason": [openai_delta("Hi"), part({}, "s" * 70_000)],
    "call index": [call(10**8), call(2**70), call(-1), part({}, "tool_calls")],
    "call id": [call(0, "f" * 70_000, "i" * 70_000), part({}, "tool_calls")],
    "calls": [*(call(index) for index in range(1000)), part({}, "tool_calls")],
    "usage": [
        openai_delta("Hi"),
        part({}, "stop", usage={"prompt_tokens": 10**30, "completion_tokens": 10**30, "total_tokens": -1}),
    ],
    "error code": [chunk(b'data: {"error": {"code": "' + b"c" * 70_000 + b'", "message": "no"}}\n\n')],
    "nesting": [chunk(b"data: " + b"[" * 100_000 + b"\n\n"), openai_delta("Hi"), part({}, "stop")],
}


@pytest.mark.parametrize("case", SAID)
async def test_huge_numbers_and_names_of_a_provider_end_in_short_lines(stage: Stage, case: str) -> None:
    """H10"""
    script = [sse_head(), *SAID[case], chunk("data: [DONE]\n\n"), LAST_CHUNK]
    for path, body in (
        ("/openai/openai", asks()),
        ("/openai/openai", asks(stream=False)),
        ("/chat/openai", {"message": "hi"}),
    ):
        status, told, name = await post(stage, path, body, script)
        assert status in ((200, 502) if case == "error code" else (200,)), told[:200]
        await stage.gateway.logged("stream_end", request_id=name)
    await bounded(stage)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/openai", {"message": "hi", "session_id": "s" * 70_000}),
        ("/openai/openai", asks(tools=[{"type": "function", "function": {"name": "f"}}] * 100_000)),
        ("/openai/openai", b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("/streams/" + "i" * 8000 + "/stop", {}),
    ],
)
async def test_what_is_beyond_all_sense_is_refused(stage: Stage, path: str, body: Any) -> None:
    """H10"""
    status, told, name = await post(stage, path, body)
    assert (status in (400, 404, 413, 431), len(told) < 2000) == (True, True), (status, told[:200])
    assert stage.upstream.exchanges == []
    await stage.gateway.logged("request", request_id=name)
    await bounded(stage)


async def test_monitor_page_is_told_short_names(stage: Stage) -> None:
    """H10"""
    await post(stage, "/openai/openai", asks(model="m" * 70_000), [sse_head(), *SAID["model"], LAST_CHUNK])
    async with asyncio.timeout(5), await request(f"{stage.gateway.admin}/events") as feed:
        async for message in feed.messages():
            assert len(message.data) < 256 << 10
            assert "m" * 1000 not in message.data
            break
    async with await request(f"{stage.gateway.admin}/failures") as answer:
        assert "m" * 1000 not in (await answer.body()).decode()


async def test_running_stream_is_listed_by_a_short_name(stage: Stage) -> None:
    """H10"""
    stage.plays([sse_head(), Hang()])
    url = f"{stage.gateway.url}/now/openai/openai"
    async with (
        asyncio.timeout(5),
        await request(url, method="POST", body=HUGE["model"]),
        await request(f"{stage.gateway.admin}/streams") as answer,
    ):
        listed = await answer.body()
    assert b'"model":"mmm' in listed
    assert len(listed) < 2000
