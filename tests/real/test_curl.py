"""What a user sees who tries the gateway with curl."""

import json

from tests.conftest import StartGateway
from tests.kit.program import curl
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Pause,
    ScriptedUpstream,
    Step,
    openai_delta,
    sse_head,
)

CONFIG = """
auth: {anonymous: true}
upstreams: {main: {dialect: openai, targets: [{url: "%s/v1"}]}}
routes:
  - {path: /v1/chat/completions, api: openai, upstream: main}
  - {path: /api/chat, api: chat, upstream: main}
"""
PACED: list[Step] = [
    sse_head(),
    openai_delta("你"),
    Pause(0.3),
    openai_delta("好"),
    Pause(0.3),
    openai_delta("！"),
    OPENAI_STOP,
    OPENAI_DONE,
    LAST_CHUNK,
]
CHAT = "/api/chat?message=hello"


def fields(lines: list[tuple[float, str]], name: str) -> list[str]:
    return [line.removeprefix(f"{name}: ") for _, line in lines if line.startswith(f"{name}: ")]


async def test_curl_sees_tokens_one_by_one(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(PACED) as upstream:
        gateway = await start_gateway(CONFIG % upstream.url)
        lines = await curl(gateway.url + CHAT, "-H", "Accept: text/event-stream")
    assert fields(lines, "event") == ["connected", "token", "token", "token", "done"]
    assert [json.loads(data)["text"] for data in fields(lines, "data")[1:4]] == ["你", "好", "！"]
    first, second, third = (at for at, line in lines if line == "event: token")
    assert second - first > 0.2
    assert third - second > 0.2


async def test_curl_resumes_where_it_left_without_a_second_generation(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(PACED) as upstream:
        gateway = await start_gateway(CONFIG % upstream.url)
        ids = fields(await curl(gateway.url + CHAT), "id")
        rest = await curl(gateway.url + CHAT, "-H", f"Last-Event-ID: {ids[-3]}")
        end = await curl(gateway.url + CHAT, "-H", f"Last-Event-ID: {ids[-1]}", "-w", "%{http_code}")
        assert len(upstream.exchanges) == 1
    assert fields(rest, "id")[-2:] == ids[-2:]
    assert [event for event in fields(rest, "event") if event != "connected"] == ["token", "done"]
    assert [line for _, line in end] == ["204"]


async def test_curl_posts_an_openai_request(start_gateway: StartGateway) -> None:
    chat = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    async with ScriptedUpstream(PACED) as upstream:
        gateway = await start_gateway(CONFIG % upstream.url)
        lines = await curl(f"{gateway.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", chat)
    data = fields(lines, "data")
    assert data[-1] == "[DONE]"
    assert "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in data[:-1]) == "你好！"


async def test_curl_is_told_what_is_wrong_with_its_request(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(CONFIG % "http://127.0.0.1:9")
    wrong = ["-H", "Content-Type: application/json", "-d", "{", "-w", "\n%{http_code} %{content_type}"]
    lines = await curl(f"{gateway.url}/api/chat", *wrong)
    assert lines[-1][1].startswith("400 application/problem+json")
    assert json.loads(lines[0][1])["status"] == 400
