"""A primary that fails, and a fallback that does not: who is asked how often, what readers get (U1-U11, U14-U16)."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.faults.pair import TIMES, Pair, answers, begins, ends, pair_fixture, pair_ways
from tests.faults.stage import PROMPT, Stage, Way
from tests.kit.program import free_port
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_STOP,
    Exchange,
    Hang,
    Pause,
    Reset,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

pair = pair_fixture()


def error(message: str, code: str = "", kind: str = "") -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "code": code}})


PINGS: list[Step] = [step for _ in range(30) for step in (chunk(b": ping\n\n"), Pause(0.05))]
OVERLOADED = chunk(b"data: " + error("Overloaded.", "engine_overloaded", "server_error") + b"\n\n")

FAILS: dict[str, tuple[Script, int]] = {
    "429 with a long Retry-After": ([response(429, error("Slow down."), Retry_After="60")], 1),
    "429 without Retry-After": ([response(429, error("Slow down."))], 2),
    "429 whose Retry-After is kept": ([response(429, error("Slow down."), Retry_After_Ms="100")], 2),
    "500": ([response(500, error("Broken."))], 2),
    "503": ([response(503, "<html>", "text/html")], 2),
    "reset before headers": ([Reset()], 2),
    "no response": ([Hang()], 1),
    "headers and no first event": ([sse_head(), Hang()], 1),
    "slow first token, with comments": ([sse_head(), *PINGS, Hang()], 1),
    "refused key": ([response(401, error("No.", "invalid_api_key"))], 1),
    "context length": ([response(400, error("Too long.", "context_length_exceeded"))], 1),
    "error before the first token": ([sse_head(), OVERLOADED, LAST_CHUNK], 2),
    "end before the first token": ([sse_head(), LAST_CHUNK], 2),
}


@pytest.mark.parametrize("fault", FAILS)
async def test_fallback_answers_for_a_primary_that_fails_before_the_first_token(pair: Pair, fault: str) -> None:
    script, primary = FAILS[fault]
    pair.plays([script], [answers("Hel", "lo")])
    await pair.completes("Hello", primary=primary, backup=1)


@pytest.mark.parametrize("fault", ["no response", "slow first token, with comments"])
async def test_readers_of_a_silent_primary_get_heartbeats_meanwhile(pair: Pair, fault: str) -> None:
    pair.plays([FAILS[fault][0]], [answers("Hello")])
    streams = pair_ways("openai", "chat")
    for heard in await pair.completes("Hello", primary=1, backup=1, asked=streams):
        assert len(heard.comments) >= 4


@pytest.mark.parametrize("first", [response(500, error("Broken.")), Reset()], ids=["500", "reset"])
async def test_primary_that_fails_once_is_asked_again(pair: Pair, first: Step) -> None:
    pair.plays([[first], openai_answer("Hel", "lo")])
    await pair.completes("Hello", primary=2, backup=0)


async def test_short_retry_after_is_waited_out(pair: Pair) -> None:
    pair.plays([[response(429, error("Slow down."), Retry_After_Ms="200")], openai_answer("Hello")])
    began = time.monotonic()
    await pair.completes("Hello", primary=2, backup=0)
    assert time.monotonic() - began >= 0.2


async def test_content_filter_is_neither_retried_nor_routed_around(pair: Pair) -> None:
    pair.plays([[response(400, error("Because.", "content_filter"))]], [answers("Hello")])
    for heard in await pair.fails("content_filter", 400, primary=1, backup=0):
        assert heard.error["message"] == "Because."


async def test_content_filter_inside_the_stream_is_not_routed_around(pair: Pair) -> None:
    filtered = chunk(b"data: " + error("Because.", "content_policy_violation") + b"\n\n")
    pair.plays([[sse_head(), filtered, LAST_CHUNK]], [answers("Hello")])
    await pair.fails("content_policy_violation", 400, primary=1, backup=0)
    pair.plays([[sse_head(), openai_delta("Hel"), filtered, LAST_CHUNK]], [answers("Hello")])
    await pair.fails("content_policy_violation", 400, primary=1, backup=0, text="Hel")


async def test_refusal_of_the_request_is_told(pair: Pair) -> None:
    pair.plays([[response(400, error("No such tool."))]], [answers("Hello")])
    await pair.fails("upstream_refused", 400, primary=1, backup=0)


async def test_error_of_the_primary_is_told_when_the_fallback_fails_too(pair: Pair) -> None:
    pair.plays([[response(503, error("Broken."))]], [[Hang()]])
    await pair.fails("upstream_unavailable", 503, primary=2, backup=1)
    pair.plays([[response(503, error("Broken."))]], [[response(400, error("No such parameter."))]])
    await pair.fails("upstream_unavailable", 503, primary=2, backup=1)
    pair.plays([[response(429, error("Slow down."), Retry_After="60")]], [[response(500, "")]])
    for heard in await pair.fails("upstream_rate_limited", 429, primary=1, backup=2):
        assert heard.error["retry_after"] == 60


async def test_event_that_is_no_json_is_no_failure(pair: Pair) -> None:
    pair.plays(
        [[sse_head(), openai_delta("Hel"), chunk(b"data: {oops\n\n"), openai_delta("lo"), OPENAI_STOP, LAST_CHUNK]]
    )
    await pair.completes("Hello", primary=1, backup=0)


async def test_answer_without_done_is_whole_when_it_has_a_finish_reason(pair: Pair) -> None:
    pair.plays([[sse_head(), openai_delta("Hello"), OPENAI_STOP, LAST_CHUNK]], [answers("Hello")])
    await pair.completes("Hello", primary=1, backup=0)


async def test_flapping_primary_is_retried_and_never_doubles_an_answer(pair: Pair) -> None:
    good = openai_answer("Hello")
    pair.plays([good, [response(503, "")], good, [Reset()], [Reset()], good], [answers("Hello")])
    for calls in [(1, 0), (3, 0), (5, 1), (6, 1)]:
        await pair.stage.complete_all(pair_ways(), "Hello")
        assert {pair.called(way) for way in pair_ways()} == {calls}


async def test_client_sees_the_answering_models_name_and_its_usage(pair: Pair) -> None:
    pair.plays([[response(503, "")]], [answers("Hello")])
    for heard in await pair.completes("Hello", primary=2, backup=1, asked=pair_ways("openai", "whole")):
        said = [heard.body] if not heard.is_stream else [message.data for message in heard.messages[:-1]]
        assert {msgspec.json.decode(data)["model"] for data in said} == {"second"}
        line = await pair.stage.told(heard, "completed")
        assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (11, 7, "usage")


async def figures(pair: Pair, name: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in await pair.stage.metrics() if line.startswith(name)]
    return {labels: float(value) for labels, _, value in lines}


async def test_only_what_was_completed_is_counted(pair: Pair) -> None:
    before = await figures(pair, "gateway_tokens_total"), await figures(pair, "gateway_upstream_requests_total")
    cut: Script = [sse_head(), chunk(b": nothing yet\n\n"), Reset()]
    pair.plays([cut], [answers("Hello")])
    await pair.completes("Hello", primary=2, backup=1)
    after = await figures(pair, "gateway_tokens_total"), await figures(pair, "gateway_upstream_requests_total")
    tokens, requests = ({k: v - old.get(k, 0) for k, v in new.items()} for old, new in zip(before, after, strict=True))
    assert sum(count for labels, count in tokens.items() if 'upstream="main' in labels) == 0
    assert sum(count for labels, count in tokens.items() if 'type="input"' in labels) == 9 * 11
    assert sum(count for labels, count in tokens.items() if 'type="output"' in labels) == 9 * 7
    assert sum(count for labels, count in requests.items() if 'upstream="main' in labels) == 9 * 2
    assert sum(count for labels, count in requests.items() if 'upstream="backup' in labels) == 9


# Clients that leave, or are cut off, while nobody answers.


@pytest.mark.parametrize("kind", ["openai", "chat"])
async def test_stop_during_a_retry_delay_ends_it(pair: Pair, kind: str) -> None:
    way = Way(kind, path=f"/pair/{kind}/openai")
    pair.plays([[response(429, error("Slow down."), Retry_After_Ms="300")]], [answers("Hello")])
    async with await way.send(pair.url) as answer:
        await answer.comment()
        stream_id = answer.headers["x-stream-id"]
        async with await request(f"{pair.url}/streams/{stream_id}", method="DELETE") as deleted:
            assert deleted.status < 300
        await answer.body()
    await pair.stage.at_rest()
    await asyncio.sleep(0.7)
    assert pair.called(way) == (1, 0)


async def test_stop_while_the_fallback_is_silent_hangs_up(pair: Pair) -> None:
    way = Way("chat", path="/pair/chat/openai")
    pair.plays([[response(503, "")]], [[Hang()]])
    async with await way.send(pair.url) as answer:
        exchange = await pair.backup.exchange()
        async with await request(f"{pair.url}/streams/{answer.headers['x-stream-id']}", method="DELETE"):
            await asyncio.wait_for(exchange.closed.wait(), 1)
        assert (await answer.body()).count(b"event: done") == 1
    await pair.stage.at_rest()


async def test_prompt_is_the_same_for_both(pair: Pair) -> None:
    pair.plays([[Reset()]], [answers("Hello")])
    await pair.completes("Hello", primary=2, backup=1)
    for exchange in pair.backup.exchanges:
        asked = exchange.json()
        assert asked["model"] == "second"
        assert PROMPT in exchange.body.decode()


async def test_fallback_that_is_slow_is_waited_for(pair: Pair) -> None:
    def slow(dialect: str, _: Exchange) -> list[Step]:
        return [*begins(dialect, "Hel"), Pause(0.2), *begins(dialect, "lo")[-1:], *ends(dialect)]

    pair.plays([[Hang()]], [slow])
    await pair.completes("Hello", primary=1, backup=1)


# Proxied requests: what may have changed something is not sent twice (P3).


def with_spare(url: str) -> dict[str, Any]:
    return {
        "dialect": "sse",
        "targets": [{"url": url}],
        "fallback": ["spare"],
        "retries": 1,
        "breaker": {"failures": 1000},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stage, ScriptedUpstream]]:
    async with ScriptedUpstream([response(200, "spare")]) as spare:

        def upstreams(url: str) -> dict[str, Any]:
            return {
                "asked": with_spare(url),
                "refusing": with_spare(f"http://127.0.0.1:{free_port()}"),
                "spare": {"dialect": "sse", "targets": [{"url": spare.url}]},
            }

        routes = [{"path": f"/p3/{name}", "api": "proxy", "upstream": name} for name in ("asked", "refusing")]
        directory = tmp_path_factory.mktemp("proxied")
        async with Stage.opened(directory, TIMES, upstreams=upstreams, routes=routes) as stage:
            yield stage, spare


@pytest.mark.parametrize(
    ("method", "path", "status", "calls"),
    [("POST", "asked", 502, (1, 0)), ("GET", "asked", 200, (2, 1)), ("POST", "refusing", 200, (0, 1))],
)
async def test_post_is_sent_twice_only_when_it_was_never_received(
    proxied: tuple[Stage, ScriptedUpstream], method: str, path: str, status: int, calls: tuple[int, int]
) -> None:
    stage, spare = proxied
    stage.plays([Reset()])
    spare.exchanges.clear()
    async with await request(f"{stage.gateway.url}/p3/{path}", method=method, body="{}") as answer:
        await answer.body()
        assert answer.status == status
    assert (len(stage.upstream.exchanges), len(spare.exchanges)) == calls
    await stage.at_rest()
