"""Plain requests: one whole answer is asked for, and passed on as the provider gave it (U8, U11, U12, U28, C1)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tests.faults.stage import FAST, PATIENCE, PROMPT, Heard, Stage, Way, listen, once, stage_fixture
from tests.kit.sse_client import request
from tests.kit.upstream import Cut, Exchange, Hang, Pause, Script, Step, http_head, openai_answer, response

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES = ("openai", "anthropic", "ollama", "gathered", "unverified", "patient", "backed", "hasty")


def upstreams(url: str) -> dict[str, Any]:
    """One of each dialect, and some with settings of their own."""
    openai = {"dialect": "openai", "targets": [{"url": f"{url}/openai"}]} | once()
    return {
        "gathered": openai | {"targets": [{"url": f"{url}/gathered"}], "whole": "stream"},
        "unverified": openai | {"targets": [{"url": f"{url}/unverified"}], "whole": "stream"} | once(),
        "patient": openai | {"targets": [{"url": f"{url}/patient"}], "retries": 2, "breaker": {"failures": 1000}},
        "backed": openai
        | {"targets": [{"url": f"{url}/backed"}], "fallback": ["anthropic"], "breaker": {"failures": 1000}},
    }


def route(name: str) -> dict[str, Any]:
    """An openai route; `hasty` has short limits on silence."""
    made = {"path": f"/plain/{name}", "api": "openai", "upstream": "openai" if name == "hasty" else name}
    return made | ({"timeouts": {"first_event": "500ms", "idle": "500ms"}} if name == "hasty" else {})


stage = stage_fixture(FAST | {"first_event": "5s"}, upstreams=upstreams, routes=[route(name) for name in ROUTES])

LETTER = (
    b'{ "id":"chatcmpl-9", "object":"chat.completion",\n "created":1, "model":"m-1", "service_tier":"default",\n'
    b' "choices":[{"index":0,"message":{"role":"assistant","content":"Hi \\u4f60","refusal":null},'
    b'"logprobs":null,"finish_reason":"length"}],\n'
    b' "usage":{"prompt_tokens":20,"completion_tokens":60,"total_tokens":80,\n'
    b' "prompt_tokens_details":{"cached_tokens":16}}}\n'
)
"""An answer that nobody else would write in quite this way."""


async def ask(stage: Stage, name: str, **more: Any) -> Heard:
    """A whole answer."""
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], **more}
    url = f"{stage.gateway.url}/plain/{name}"
    async with asyncio.timeout(PATIENCE), await request(url, method="POST", body=body) as answer:
        return await listen(answer)


def sent(stage: Stage) -> list[dict[str, Any]]:
    """The bodies of all requests so far."""
    return [exchange.json() for exchange in stage.upstream.exchanges]


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream": None, "seed": 1, "n": 1}], ids=str)
async def test_plain_request_and_its_answer_are_passed_on_to_the_letter(stage: Stage, more: dict[str, Any]) -> None:
    stage.plays([response(200, LETTER)])
    heard = await ask(stage, "openai", **more)
    assert (heard.status, heard.body.strip()) == (200, LETTER.decode().strip())
    assert heard.headers["content-type"] == "application/json"
    assert sent(stage) == [{"model": "m", "messages": [{"role": "user", "content": PROMPT}], **more}]
    assert stage.upstream.exchanges[0].headers["accept"] == "application/json"
    line = await stage.told(heard, "completed")
    assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (20, 60, "usage")


async def test_error_of_a_plain_request_is_what_the_provider_meant(stage: Stage) -> None:
    error = {"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages"}}
    stage.plays([response(400, msgspec.json.encode(error))])
    heard = await ask(stage, "openai")
    assert (heard.status, heard.error["code"]) == (400, "context_length_exceeded")
    await stage.told(heard, "upstream_error")


async def test_answer_of_anthropic_is_translated(stage: Stage) -> None:
    said = {
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 15, "output_tokens": 9},
    }
    stage.plays([response(200, msgspec.json.encode({"id": "msg_1", **said}))])
    answer = msgspec.json.decode((await ask(stage, "anthropic", model="claude-x")).body)
    [choice] = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "tool_calls")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert answer["usage"]["prompt_tokens"] == 20
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 15}
    assert "stream" not in sent(stage)[0]


async def test_answer_of_ollama_is_translated(stage: Stage) -> None:
    said = {"message": {"role": "assistant", "content": "Hello"}, "done": True, "done_reason": "length"}
    counts = {"prompt_eval_count": 4, "eval_count": 2}
    stage.plays([response(200, msgspec.json.encode({"model": "qwen3", **said, **counts}))])
    answer = msgspec.json.decode((await ask(stage, "ollama", model="qwen3")).body)
    [choice] = answer["choices"]
    assert (answer["model"], choice["message"]["content"], choice["finish_reason"]) == ("qwen3", "Hello", "length")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (4, 2)
    assert sent(stage)[0]["stream"] is False


async def test_whole_stream_is_asked_for_as_a_stream_and_put_together(stage: Stage) -> None:
    stage.plays(openai_answer("Hel", "lo"))
    assert (await ask(stage, "gathered", stream=False)).text == "Hello"
    assert (sent(stage)[0]["stream"], sent(stage)[0]["stream_options"]) == (True, {"include_usage": True})


async def test_model_that_refuses_streams_is_asked_for_whole_answers(stage: Stage) -> None:
    error = {"error": {"message": "You must be verified to stream this model.", "param": "stream"}}
    refusal = response(400, msgspec.json.encode(error))
    stage.plays(lambda exchange: [refusal if exchange.json().get("stream") else response(200, LETTER)])
    for _ in range(2):
        [heard] = await stage.complete_all([Way("chat")], "Hi 你")
        assert heard.messages[-1].json()["finish_reason"] == "length"
    assert [body.get("stream") for body in sent(stage)] == [True, None, None]
    # A client that asks for a stream by itself is told.
    await stage.fail_all([Way("openai")], "upstream_refused", 400, whole=True)


async def test_account_that_may_not_stream_is_asked_for_whole_answers(stage: Stage) -> None:
    """The refusal speaks of the account; but it is the gateway that asks for a stream."""
    error = {"error": {"message": "Your organization must be verified to stream this model.", "param": "stream"}}
    refusal = response(400, msgspec.json.encode(error))
    stage.plays(lambda exchange: [refusal if exchange.json().get("stream") else response(200, LETTER)])
    for _ in range(2):
        assert (await ask(stage, "unverified", stream=False)).body.strip() == LETTER.decode().strip()
    assert [body["stream"] for body in sent(stage)] == [True, False, False]
    await stage.fail_all([Way("openai")], "upstream_auth", 502, whole=True)


async def test_plain_request_that_is_answered_with_a_stream_gets_one_object(stage: Stage) -> None:
    stage.plays(openai_answer("Hel", "lo"))
    heard = await ask(stage, "openai")
    assert (heard.text, heard.is_stream) == ("Hello", False)


async def test_plain_request_is_tried_again_and_then_asked_of_the_fallback(stage: Stage) -> None:
    scripts: list[Script] = [[response(503, "{}")], [response(500, "{}")], [response(200, LETTER)]]
    stage.plays(lambda exchange: _nth(scripts, stage))
    assert (await ask(stage, "patient")).body.strip() == LETTER.decode().strip()

    def play(exchange: Exchange) -> Sequence[Step]:
        said = {
            "type": "message",
            "model": "c",
            "content": [{"type": "text", "text": "mine"}],
            "stop_reason": "end_turn",
        }
        return [response(503, "{}") if "backed" in exchange.target else response(200, msgspec.json.encode(said))]

    stage.plays(play)
    heard = await ask(stage, "backed")
    assert (heard.text, [exchange.target.split("/")[1] for exchange in stage.upstream.exchanges]) == (
        "mine",
        ["backed", "anthropic"],
    )


def _nth(scripts: list[Script], stage: Stage) -> Sequence[Step]:
    script = scripts[min(len(stage.upstream.exchanges), len(scripts)) - 1]
    assert not callable(script)
    return script


HEAD = http_head(200, "application/json", Content_Length=str(len(LETTER)))


async def test_plain_answer_may_take_as_long_as_a_streams_two_silences(stage: Stage) -> None:
    stage.plays([Pause(0.6), HEAD + LETTER[:50], Pause(0.3), LETTER[50:90], Pause(0.3), LETTER[90:]])
    heard = await ask(stage, "hasty")
    assert (heard.status, heard.body.strip()) == (200, LETTER.decode().strip())


async def test_plain_answer_that_does_not_begin_is_a_timeout(stage: Stage) -> None:
    stage.plays([Hang()])
    heard = await ask(stage, "hasty")
    assert (heard.status, heard.error["code"]) == (504, "upstream_timeout")
    await stage.hung_up()


async def test_plain_answer_that_stalls_is_an_error(stage: Stage) -> None:
    stage.plays([HEAD, LETTER[:50], Hang()])
    heard = await ask(stage, "hasty")
    assert (heard.status, heard.error["code"]) == (504, "upstream_stalled")
    await stage.told(heard, "upstream_stalled")
    await stage.hung_up()


async def test_plain_answer_that_is_cut_is_an_error(stage: Stage) -> None:
    stage.plays([HEAD, LETTER[:50], Cut()])
    heard = await ask(stage, "openai")
    assert (heard.status, heard.error["code"]) == (502, "upstream_cut")


@pytest.mark.parametrize("begun", [False, True])
async def test_client_that_leaves_ends_the_plain_request_at_once(stage: Stage, begun: bool) -> None:
    stage.plays([HEAD, LETTER[:50], Hang()] if begun else [Hang()])
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    asking = asyncio.ensure_future(request(f"{stage.gateway.url}/plain/openai", method="POST", body=body))
    exchange = await stage.upstream.exchange()
    asking.cancel()
    await asyncio.wait_for(exchange.closed.wait(), 1)
    await stage.at_rest()
