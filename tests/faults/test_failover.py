"""A primary that fails, and a fallback that does not: who is asked how often, what readers get (U1-U11, U16, U29, U30).

The sixteen faults of the Failover Bench are in `test_failover_bench.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.faults.pair import TIMES, Pair, Play, answers, begins, ends, pair_fixture, pair_ways
from tests.faults.providers import PING, PROVIDERS, breaks, refuses
from tests.faults.stage import PROMPT, Stage, Way
from tests.kit.program import free_port
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Exchange,
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    openai_answer,
    response,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

pair = pair_fixture()


def says(what: str, **headers: str) -> Play:
    """A refusal."""
    return lambda dialect, _: [refuses(dialect, what, **headers)]


def told(what: str, *texts: str) -> Play:
    """An answer that begins with these tokens and goes on with this failure."""
    return lambda dialect, _: [*begins(dialect, *texts), chunk(breaks(dialect, what)), LAST_CHUNK]


def pings(dialect: str, _: Exchange) -> Sequence[Step]:
    return [*begins(dialect), *[step for _ in range(20) for step in (chunk(PING[dialect]), Pause(0.05))], Hang()]


def malformed(dialect: str, _: Exchange) -> Sequence[Step]:
    """What a client cannot tell from a malformed head, as nothing was delivered yet."""
    return [b"".join(step for step in begins(dialect, "Hel") if isinstance(step, bytes)) + b"zz\r\n", Hang()]


FAILS: dict[str, tuple[Play, int]] = {
    "429 whose Retry-After is kept": (says("rate limit", Retry_After="0.1"), 2),
    "headers and no first event": (lambda dialect, _: [*begins(dialect), Hang()], 1),
    "refused key": (says("refused key"), 1),
    "forbidden": (says("forbidden"), 1),
    "error before the first token": (told("overloaded"), 2),
    "malformed chunk in the same packet as the head": (malformed, 2),
    "end before the first token": (lambda dialect, _: [*begins(dialect), LAST_CHUNK], 2),
}


@pytest.mark.parametrize("primary", PROVIDERS)
@pytest.mark.parametrize("fault", FAILS)
async def test_fallback_answers_for_a_primary_that_fails_before_the_first_token(
    pair: Pair, fault: str, primary: str
) -> None:
    script, calls = FAILS[fault]
    pair.plays([script], [answers("Hel", "lo")])
    await pair.completes("Hello", primary=calls, backup=1, asked=pair_ways(primary=primary))


def replies(status: int, message: str, **error: Any) -> Play:
    """A refusal in OpenAI's shape."""
    body = msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error", **error}})
    return lambda _, __: [response(status, body)]


def opens_with(**error: Any) -> Play:
    """A stream whose first event is an error."""
    event = b"data: %s\n\n" % msgspec.json.encode({"error": error})
    return lambda _, __: [*begins("openai"), chunk(event), LAST_CHUNK]


REFUSES: dict[str, tuple[Play, int]] = {
    "no credit": (replies(400, "Your credit balance is too low to access the Anthropic API."), 1),
    "bad key": (replies(400, "Incorrect API key provided: sk***89."), 1),
    "quota is spent": (replies(429, "You exceeded your current quota.", code="insufficient_quota"), 1),
    "no capacity now": (replies(498, "Flex tier is full.", code="flex_tier_capacity_exceeded"), 2),
    "too long by status": (replies(422, "Input validation error: `inputs` must have less than 1024 tokens."), 1),
    "too long in the stream": (opens_with(code=400, message="m", type="exceed_context_size_error"), 1),
    "no such model": (replies(404, "The model `m` does not exist.", code="model_not_found"), 1),
    "no such path": (lambda _, __: [response(404, "<html>nothing here</html>", "text/html")], 1),
    "wrong method": (lambda _, __: [response(405, '{"detail":"Method Not Allowed"}')], 1),
    "http to https": (
        lambda _, __: [response(400, "Client sent an HTTP request to an HTTPS server.\n", "text/plain")],
        1,
    ),
}
"""What the provider says, and how often it is asked."""


@pytest.mark.parametrize("fault", REFUSES)
async def test_fallback_answers_for_a_primary_whose_refusal_is_not_the_requests_fault(pair: Pair, fault: str) -> None:
    script, calls = REFUSES[fault]
    pair.plays([script], [answers("Hel", "lo")])
    await pair.completes("Hello", primary=calls, backup=1, asked=pair_ways(backups=["openai"]))


async def test_failed_attempt_is_logged_with_the_providers_sentence_and_a_hint(pair: Pair) -> None:
    pair.plays([replies(404, f"No model like {PROMPT} with sk-abcdef12345678.")], [answers("Hello")])
    [heard] = await pair.completes("Hello", primary=1, backup=1, asked=pair_ways("openai", backups=["openai"]))
    line = await pair.stage.gateway.logged("attempt_failed", request_id=heard.request_id)
    assert line["sentence"] == "No model like … with …."
    assert "lack /v1" in line["hint"]


@pytest.mark.parametrize("silent", [[Hang()], pings], ids=["no response", "pings"])
async def test_readers_of_a_silent_primary_get_heartbeats_meanwhile(pair: Pair, silent: list[Step] | Play) -> None:
    pair.plays([silent], [answers("Hello")])
    streams = pair_ways("openai", "chat")
    for heard in await pair.completes("Hello", primary=1, backup=1, asked=streams):
        assert len(heard.comments) >= 4


async def test_primary_that_resets_once_is_asked_again(pair: Pair) -> None:
    pair.plays([[Reset()], answers("Hel", "lo", model="first")])
    await pair.completes("Hello", primary=2, backup=0)


FILTERED = {"openai": "content_filter", "anthropic": "invalid_request_error", "ollama": "content_filter"}
"""The code that the reader is told: the provider's own word."""


@pytest.mark.parametrize("primary", PROVIDERS)
async def test_content_filter_inside_the_stream_is_not_routed_around(pair: Pair, primary: str) -> None:
    asked = pair_ways(primary=primary)
    for texts in (), ("Hel",):
        pair.plays([told("content filter", *texts)], [answers("Hello")])
        await pair.fails(FILTERED[primary], 400, primary=1, backup=0, text="".join(texts), asked=asked)


async def test_refusal_of_the_request_is_told(pair: Pair) -> None:
    pair.plays([says("bad request")], [answers("Hello")])
    await pair.fails("upstream_refused", 400, primary=1, backup=0)


@pytest.mark.parametrize("primary", PROVIDERS)
async def test_error_of_the_primary_is_told_when_the_fallback_fails_too(pair: Pair, primary: str) -> None:
    asked = pair_ways(primary=primary)
    for backup in [Hang()], says("bad request"), says("content filter"):
        pair.plays([says("overloaded")], [backup])
        await pair.fails("upstream_unavailable", 503, primary=2, backup=1, asked=asked)
    pair.plays([says("rate limit", Retry_After="60")], [says("broken")])
    for heard in await pair.fails("upstream_rate_limited", 429, primary=1, backup=2, asked=asked):
        assert heard.error["retry_after"] == 60


# Clients that leave, or are cut off, while nobody answers.


@pytest.mark.parametrize("kind", ["openai", "chat"])
async def test_stop_during_a_retry_delay_ends_it(pair: Pair, kind: str) -> None:
    [way] = pair_ways(kind, backups=["openai"])
    pair.plays([says("rate limit", Retry_After="0.3")], [answers("Hello")])
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
    [way] = pair_ways("chat", backups=["openai"])
    pair.plays([says("overloaded")], [[Hang()]])
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


async def test_connection_that_closed_while_idle_costs_no_attempt(proxied: tuple[Stage, ScriptedUpstream]) -> None:
    stage, _ = proxied
    way = Way("chat")  # of an upstream without retries
    stage.plays(lambda _: [Reset()] if len(stage.upstream.exchanges) == 2 else openai_answer("Hello"))
    for attempts, requests in (1, 1), (1, 3):
        [heard] = await stage.complete_all([way], "Hello")
        assert (await stage.told(heard, "completed"))["attempts"] == attempts
        assert len(stage.upstream.exchanges) == requests


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
        times = TIMES | {"first_event": "400ms"}  # the second retry would come after 0.5 s at the earliest: too late
        async with Stage.opened(directory, times, upstreams=upstreams, routes=routes) as stage:
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
