"""What is told of a failure (U7, U8, U10): a line for each attempt and stream, a record of it, and nothing secret."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.stage import API_KEY, CHATS, FAST, PROMPT, Heard, Stage, Way, check, once, stage_fixture, ways
from tests.kit.program import free_port
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Exchange,
    Reset,
    Step,
    chunk,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = "an-answer-nobody-may-log"
SHOWN = {
    "when",
    "kind",
    "route",
    "upstream",
    "target",
    "url",
    "path",
    "status",
    "code",
    "sentence",
    "hint",
    "request_id",
    "trace_id",
    "stream_id",
    "principal",
    "outcome",
}


def upstreams(url: str) -> dict[str, Any]:
    return {
        "healed": {"dialect": "openai", "targets": [{"url": f"{url}/openai"}], "fallback": ["spare"]} | once(),
        "spare": {"dialect": "openai", "targets": [{"url": f"{url}/spare"}]} | once(),
        "away": {"dialect": "openai", "targets": [{"url": f"http://127.0.0.1:{free_port()}/v1"}]} | once(),
    }


ROUTES = [{"path": f"/{name}", "api": "chat", "upstream": name, "model": "m"} for name in ("healed", "away")]
stage = stage_fixture(FAST, upstreams=upstreams, routes=ROUTES)


def error(message: str, **fields: str) -> str:
    quoted = message.replace('"', '\\"')
    more = "".join(f',"{name}":"{value}"' for name, value in fields.items())
    return f'{{"error":{{"message":"{quoted}"{more}}}}}'


async def failures(stage: Stage, heard: Heard) -> list[dict[str, Any]]:
    """What `/failures` has of a request, the newest first."""
    async with await request(f"{stage.gateway.admin}/failures") as answer:
        all_of_them: list[dict[str, Any]] = await answer.json()
        check((await answer.body()).decode())
    return [failed for failed in all_of_them if failed["request_id"] == heard.request_id]


async def test_failure_is_told_with_all_that_finds_its_cause(stage: Stage) -> None:
    stage.plays([response(404, error("The model `m` does not exist", code="model_not_found"))])
    heard = await stage.ask(Way("chat"))
    stream, attempt = await failures(stage, heard)
    host = stage.upstream.url.removeprefix("http://")
    for failed in stream, attempt:
        assert failed.keys() == SHOWN
        assert (failed["route"], failed["upstream"], failed["target"]) == ("/chat/openai", "openai", host)
        assert failed["url"] == f"http://{host}/openai/chat/completions"
        assert (failed["path"], failed["status"]) == ("/openai/chat/completions", 404)
        assert failed["principal"] == "addr:127.0.0.1"
        assert failed["when"].endswith("Z")
    assert (stream["kind"], stream["outcome"], attempt["kind"]) == ("stream", "upstream_error", "attempt")
    for event, level, failed in (("attempt_failed", "info", attempt), ("stream_failed", "warning", stream)):
        await stage.gateway.logged(event, request_id=heard.request_id)
        [line] = [one for one in stage.gateway.log_lines(event) if one["request_id"] == heard.request_id]
        assert line["level"] == level
        told = {name: line.get(name) for name in SHOWN - {"when", "kind", "path", "outcome"}}
        assert told == {name: failed[name] or None for name in told}


async def test_failures_come_the_newest_first(stage: Stage) -> None:
    stage.plays([response(500, "{}")])
    await stage.ask_all(ways("chat", "openai", "whole"))
    async with await request(f"{stage.gateway.admin}/failures") as answer:
        times = [failed["when"] for failed in await answer.json()]
    assert times == sorted(times, reverse=True)


async def test_trace_of_the_client_is_told(stage: Stage) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    stage.plays([response(500, "{}")])
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    async with await request(
        f"{stage.gateway.url}/chat/openai", method="POST", headers=headers, body={"message": PROMPT}
    ) as answer:
        await answer.body()
        line = await stage.gateway.logged("stream_failed", request_id=answer.headers["x-request-id"])
    assert line["trace_id"] == trace


async def test_attempt_that_a_fallback_heals_is_told_without_a_warning(stage: Stage) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        return openai_answer("Hi") if exchange.target.startswith("/spare") else [response(503, "{}")]

    stage.plays(play)
    heard = await stage.ask(Way("chat", path="/healed"))
    assert heard.text == "Hi"
    [failed] = await failures(stage, heard)
    assert (failed["kind"], failed["upstream"], failed["status"]) == ("attempt", "healed", 503)


async def test_every_attempt_of_an_answer_that_fails_is_told_and_its_stream_names_the_first(stage: Stage) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        return [response(503 if exchange.target.startswith("/spare") else 500, "{}")]

    stage.plays(play)
    heard = await stage.ask(Way("chat", path="/healed"))
    stream, second, first = await failures(stage, heard)
    assert [failed["upstream"] for failed in (first, second, stream)] == ["healed", "spare", "healed"]
    assert [failed["status"] for failed in (first, second, stream)] == [500, 503, 500]


async def test_server_that_is_away_has_no_status_but_a_hint(stage: Stage) -> None:
    heard = await stage.ask(Way("chat", path="/away"))
    stream, _ = await failures(stage, heard)
    assert (stream["status"], stream["code"]) == (None, "upstream_unreachable")
    assert "server runs" in stream["hint"]


async def test_answer_that_broke_off_is_told_with_its_status(stage: Stage) -> None:
    stage.plays([sse_head(), openai_delta(ANSWER), Reset()])
    heard = await stage.ask(Way("chat"))
    stream, attempt = await failures(stage, heard)
    assert [(one["status"], one["code"]) for one in (stream, attempt)] == [(200, "upstream_cut")] * 2
    assert ANSWER not in "".join(stage.gateway.stdout)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
async def test_failure_quotes_neither_prompt_nor_key(stage: Stage, status: int) -> None:
    """`check` looks for both, and for the pages of others, in `/failures`; at the end of the stage, in every line."""
    for said in (f"Cannot answer {PROMPT} with the key {API_KEY}.", f"Invalid input: '{PROMPT}'", f"key={API_KEY}"):
        stage.plays([response(status, error(said, code="odd"))])
        for heard in await stage.ask_all(ways(*CHATS)):
            assert await failures(stage, heard)
    for line in stage.gateway.stdout:
        check(line)


ESCAPED = PROMPT.replace("-", "%2D")


@pytest.mark.parametrize("code", [PROMPT, ESCAPED, ESCAPED.replace("%", "%25")])
@pytest.mark.parametrize("in_stream", [False, True])
async def test_code_that_is_made_of_prompt_or_key_is_not_told(stage: Stage, in_stream: bool, code: str) -> None:
    said = error("No.", code=code, type=API_KEY)
    stage.plays([sse_head(), chunk(f"data: {said}\n\n")] if in_stream else [response(400, said)])
    for heard in await stage.ask_all(ways(*CHATS)):
        told = await failures(stage, heard)
        assert told
        assert "nobody" not in heard.body + str(told)
    for line in stage.gateway.stdout:
        check(line)


async def test_request_that_is_at_fault_warns_nobody(stage: Stage) -> None:
    stage.plays([response(400, error("prompt is too long: 9001 tokens > 8192 maximum"))])
    heard = await stage.ask(Way("chat"))
    line = await stage.gateway.logged("stream_failed", request_id=heard.request_id)
    assert (line["level"], line["code"]) == ("info", "context_length_exceeded")


async def test_reasons_of_answers_are_counted_and_logged(stage: Stage) -> None:
    end = b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    stage.plays([sse_head(), openai_delta("Hi"), chunk(end), LAST_CHUNK])
    heard = await stage.ask(Way("chat"))
    line = await stage.gateway.logged("stream_end", request_id=heard.request_id)
    assert line["finish_reason"] == "length"
    assert 'gateway_finish_reasons_total{reason="length",route="/chat/openai"} 1.0' in await stage.metrics()
