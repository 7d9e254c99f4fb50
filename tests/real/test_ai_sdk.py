"""The AI SDK's chat (npm `ai`, what `useChat` is made of), unchanged, against a chat route with `format: ui`."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.program import ROOT, node
from tests.kit.sse_client import request
from tests.kit.upstream import (
    Pause,
    Reset,
    WaitFor,
    chunk,
    openai_answer,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)
from tests.web.stage import EVENTS, Stage, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = [{"id": name, "key": f"key-of-{name}"} for name in ("ann", "bob")]
ROUTES: list[dict[str, Any]] = [
    {"path": "/chat", "format": "ui", "merge": False, "batch": {"interval": "0s"}},
    {"path": "/told", "format": "ui", "params": {"message": "q", "session": "room"}},
    {"path": "/other", "format": "ui"},
]


class Kit:
    """A Node process with one chat of the SDK at a time."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self._url = url

    async def do(self, step: str, **options: Any) -> dict[str, Any]:
        """What the chat has after this step: messages, status, error, reason."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"step": step, **options}).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 20)
        got: dict[str, Any] = json.loads(line)
        return got

    async def open(self, chat: str, path: str = "/chat", messages: list[Any] | None = None) -> None:
        """Begins another chat."""
        await self.do("open", id=chat, api=self._url + path, messages=messages or [])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    auth = {"anonymous": True, "keys": KEYS}
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES, auth=auth) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kit(stage: Stage) -> AsyncIterator[Kit]:
    if not (ROOT / "node_modules" / "ai").exists():
        pytest.fail("the AI SDK is missing; run: npm ci")
    script, pipe = ROOT / "tests" / "real" / "use_chat.mjs", asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(node(), str(script), stdin=pipe, stdout=pipe, limit=1 << 20)
    try:
        yield Kit(process, stage.gateway.url)
    finally:
        process.kill()
        await process.wait()


def text_of(message: dict[str, Any], kind: str = "text") -> str:
    """The text of all its parts of a kind."""
    return "".join(part["text"] for part in message["parts"] if part["type"] == kind)


async def test_answer_is_read_with_its_reasoning_and_the_next_question_has_it(stage: Stage, kit: Kit) -> None:
    thought = chunk(openai_chunk({"reasoning_content": "hm"}))
    first = stage.plays([sse_head(), thought, *openai_answer("你", "好😀")[1:]])
    second = stage.plays(openai_answer("again"))
    await kit.open("chat-1")
    got = await kit.do("send", text=first)
    assert (got["status"], got["error"], got["reason"]) == ("ready", "", "stop")
    question, answer = got["messages"]
    assert (text_of(answer), text_of(answer, "reasoning")) == ("你好😀", "hm")
    assert [part["state"] for part in answer["parts"]] == ["done", "done"]
    got = await kit.do("send", text=second)
    assert [text_of(message) for message in got["messages"]] == [first, "你好😀", second, "again"]
    told = [(message["role"], message["content"]) for message in stage.asked(second)[0].json()["messages"]]
    assert told == [("user", first), ("assistant", "你好😀"), ("user", second)]
    got = await kit.do("regenerate")
    assert [text_of(message) for message in got["messages"]] == [first, "你好😀", second, "again"]
    assert len(stage.asked(second)) == 2
    assert question["role"] == "user"


async def test_page_that_is_reloaded_gets_the_whole_answer_and_no_second_one(stage: Stage, kit: Kit) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("one "), WaitFor(go_on), *openai_answer("two")[1:]])
    await kit.open("chat-2")
    await kit.do("begin", text=question)
    had = await kit.do("until", text="one ")
    await kit.open("chat-2", messages=had["messages"][:1])  # the page has kept only what the user wrote
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    got = await kit.do("resume")
    assert (got["status"], [text_of(message) for message in got["messages"]]) == ("ready", [question, "one two"])
    again = await kit.do("resume")  # nothing runs any more
    assert (again["status"], again["messages"]) == ("ready", got["messages"])
    assert len(stage.asked(question)) == 1


async def test_chat_that_goes_on_by_itself_shows_no_text_twice(stage: Stage, kit: Kit) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("one "), WaitFor(go_on), *openai_answer("two")[1:]])
    await kit.open("chat-3")
    await kit.do("begin", text=question)
    await kit.do("until", text="one ")
    await kit.do("stop")
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    got = await kit.do("resume")
    assert [text_of(message) for message in got["messages"]] == [question, "one two"]
    assert len(stage.asked(question)) == 1


async def test_tool_call_is_there_with_its_input(stage: Stage, kit: Kit) -> None:
    calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": '"Köln"}'}},
    ]
    deltas = [chunk(openai_chunk({"tool_calls": [call]})) for call in calls]
    question = stage.plays([sse_head(), openai_delta("I look."), *deltas, *openai_answer()[1:]])
    await kit.open("chat-4")
    got = await kit.do("send", text=question)
    text, call = got["messages"][1]["parts"]
    assert (got["status"], text["text"]) == ("ready", "I look.")
    told = [call[name] for name in ("type", "toolCallId", "state", "input")]
    assert told == ["tool-weather", "c1", "input-available", {"city": "Köln"}]


async def test_failures_before_and_in_the_answer_are_shown(stage: Stage, kit: Kit) -> None:
    refused = stage.plays([response(503, "{}")])
    await kit.open("chat-5")
    got = await kit.do("send", text=refused)
    assert (got["status"], '"status":503' in got["error"], len(got["messages"])) == ("error", True, 1)
    broken = stage.plays([sse_head(), openai_delta("half"), Pause(0.1), Reset()])
    await kit.open("chat-6")
    got = await kit.do("send", text=broken)
    assert got["status"] == "error"
    assert got["error"]
    assert "{" not in got["error"]  # a sentence
    assert text_of(got["messages"][1]) == "half"


async def test_route_s_own_names_and_a_single_message_work_too(stage: Stage) -> None:
    first, second = stage.plays(openai_answer("one")), stage.plays(openai_answer("two"))
    for body in (
        {"id": "chat-7", "message": {"id": "1", "role": "user", "parts": [{"type": "text", "text": first}]}},
        {"q": second, "room": "chat-7"},
    ):
        async with await stage.post("/told", body) as answer:
            assert answer.status == 200
            assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
            assert b'{"type":"finish"' in await answer.body()
    told = [message["content"] for message in stage.asked(second)[0].json()["messages"]]
    assert told == [first, "one", second]  # one chat, whichever way it was asked


async def test_running_answer_is_found_by_its_own_principal_on_its_own_route_alone(stage: Stage) -> None:
    ann, bob = ({"Authorization": f"Bearer key-of-{name}"} for name in ("ann", "bob"))
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), openai_delta("one"), WaitFor(go_on), *openai_answer("two")[1:]])
    body = {"id": "chat:8", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": question}]}]}
    first = await stage.post("/chat", body, headers=ann)
    assert await first.next()
    for path, headers, status in (
        ("/chat/chat:8/stream", ann, 200),
        ("/chat/chat%3A8/stream", ann, 200),
        ("/chat/chat:8/stream", bob, 204),
        ("/chat/chat:8/stream", {}, 204),
        ("/chat/other/stream", ann, 204),
        ("/other/chat:8/stream", ann, 204),
        ("/chat/a%20b/stream", ann, 400),
    ):
        async with await stage.get(path, headers=headers) as answer:
            assert (path, answer.status) == (path, status)
            if status == 200:
                message = await answer.next()
                assert message
                assert message.json()["type"] == "start"
                assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    go_on.set()
    rest = [message.data async for message in first.messages()]
    await first.close()
    assert rest[-1] == "[DONE]"
    assert len(stage.asked(question)) == 1


async def test_reader_with_a_cursor_goes_on_within_its_part(stage: Stage) -> None:
    question = stage.plays(openai_answer("one", "two"))
    body = {"id": "chat-9", "messages": [{"role": "user", "parts": [{"type": "text", "text": question}]}]}
    async with await stage.post("/chat", body, headers=EVENTS) as answer:
        told = [message async for message in answer.messages()]
    cursor = next(message.last_event_id for message in told if '"delta":"one"' in message.data)
    async with await request(stage.url("/chat"), method="POST", body=body, last_event_id=cursor) as answer:
        rest = [message.data async for message in answer.messages()]
    assert rest == [message.data for message in told[-4:]]
