"""Limits, contract section 5b: requests, streams and tokens of a principal, requests and connections of an address."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from gateway.web.kinds.chat_source import estimate_tokens
from tests.kit.sse_client import Response
from tests.kit.upstream import (
    Hang,
    Pause,
    Reset,
    Step,
    chunk,
    openai_answer,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)
from tests.web.stage import EVENTS, Stage, completion, events_answer, eventually, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLANS = {
    "few": {"requests": "5/min"},
    "fast": {"requests": "2/s"},
    "one": {"streams": 1},
    "two": {"streams": 2},
    "tokens": {"tokens": "400/h"},
}
KEYS = [
    {"id": f"{plan}-{number}", "key": f"key-{plan}-{number}", "plan": plan} for plan in PLANS for number in range(60)
]
ROUTES: list[dict[str, Any]] = [
    {"path": "/chat", "on_disconnect": {"after": "0s"}},
    {"path": "/openai", "api": "openai", "on_disconnect": {"after": "0s"}},
    {"path": "/proxy", "api": "proxy", "on_disconnect": {"after": "0s"}},
    {"path": "/stalling", "timeouts": {"first_event": "200ms", "idle": "200ms"}},
    {"path": "/short", "timeouts": {"total": "300ms"}},
    {"path": "/unread", "on_disconnect": {"after": "200ms"}},
    {"path": "/closed", "upstream": "closed"},
    {"path": "/ui", "format": "ui"},
    {"path": "/told", "system": "x" * 4000},
    {"path": "/session", "history": {"turns": 9, "ttl": "1h"}},
]
LIMITS = {"per_address": {"requests": "40/min", "connections": 3}}
_numbers, _addresses = count(), count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(
        tmp_path_factory.mktemp("gateway"),
        ROUTES,
        server={"trusted_proxies": ["127.0.0.1/32"]},
        auth={"anonymous": True, "keys": KEYS, "tickets": {"ttl": "30s"}},
        plans=PLANS,
        limits=LIMITS,
    ) as stage:
        yield stage


def somebody(plan: str) -> dict[str, str]:
    """Headers of a principal, and of an address, of which nobody has heard before."""
    return EVENTS | {"Authorization": f"Bearer key-{plan}-{next(_numbers) % 60}"} | somewhere()


def somewhere() -> dict[str, str]:
    number = next(_addresses)
    return {"X-Forwarded-For": f"10.0.{number // 200}.{number % 600}"}


def fetching(headers: dict[str, str]) -> dict[str, str]:
    return headers | {"Accept": "application/json"}


# Requests.


async def test_requests_beyond_the_rate_are_429_with_everything_a_client_needs(stage: Stage) -> None:
    who = fetching(somebody("few"))
    for left in (4, 3, 2, 1, 0):
        async with await stage.get("/chat", stage.plays(openai_answer("x")), headers=who) as answer:
            assert answer.status == 200
            assert answer.headers["ratelimit-policy"] == '"requests";q=5;w=60'
            assert answer.headers["ratelimit"].startswith(f'"requests";r={left};t=')
    async with await stage.get("/chat", "never asked", headers=who) as answer:
        assert (answer.status, answer.media_type) == (429, "application/problem+json")
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert answer.headers["ratelimit"].startswith('"requests";r=0;t=')
        body = await answer.json()
    assert (body["code"], body["retryable"]) == ("rate_limited", True)
    assert 0 < body["retry_after"] <= 12
    assert not stage.asked("never asked")


async def test_eventsource_beyond_the_rate_is_told_in_band_when_to_come_back(stage: Stage) -> None:
    who = somebody("few")
    for _ in range(5):
        await whole(await stage.get("/chat", stage.plays(openai_answer("x")), headers=who))
    answer = await stage.get("/chat", "never asked", headers=who)
    [error] = await whole(answer)
    assert (answer.status, error.type, error.json()["code"]) == (200, "error", "rate_limited")
    assert error.last_event_id == ""
    assert answer.parser.retry is not None
    assert error.json()["retry_after"] * 1000 <= answer.parser.retry <= 14_500
    assert await stage.metric('gateway_rate_limited_total{limit="requests",plan="few"}') >= 1


async def test_openai_client_beyond_the_rate_gets_openais_headers_and_error(stage: Stage) -> None:
    who = fetching(somebody("few"))
    for left in range(4, -1, -1):
        async with await stage.ask("/openai", stage.plays(openai_answer("x")), headers=who) as answer:
            assert answer.headers["x-ratelimit-limit-requests"] == "5"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    async with await stage.ask("/openai", "never asked", headers=who) as answer:
        assert answer.status == 429
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        error = (await answer.json())["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")


async def test_rate_is_smooth_and_lets_in_again_as_told(stage: Stage) -> None:
    who = fetching(somebody("fast"))
    answers = [await status_of(stage, who) for _ in range(3)]
    assert answers == [200, 200, 429]
    await asyncio.sleep(0.55)
    assert [await status_of(stage, who) for _ in range(2)] == [200, 429]


async def status_of(stage: Stage, who: dict[str, str]) -> int:
    async with await stage.get("/chat", stage.plays(openai_answer("x")), headers=who) as answer:
        return answer.status


# Streams.


async def hanging(stage: Stage, who: dict[str, str], route: str = "/chat") -> Response:
    script: list[Step] = [sse_head(), chunk("data: x\n\n") if route == "/proxy" else openai_delta("x"), Hang()]
    return await stage.ask(route, stage.plays(script), headers=who)


async def test_streams_beyond_the_plan_are_429_until_one_ends(stage: Stage) -> None:
    who = fetching(somebody("two"))
    first, second = await hanging(stage, who), await hanging(stage, who, "/openai")
    assert '"streams";r=0' in second.headers["ratelimit"]
    async with await hanging(stage, who, "/proxy") as refused:
        assert (refused.status, (await refused.json())["code"]) == (429, "too_many_streams")
    in_band = await stage.get("/chat", "never asked", headers=who | EVENTS)
    assert [message.json()["code"] for message in await whole(in_band)] == ["too_many_streams"]
    await first.close()
    await slot_is_free(stage, who)
    await second.close()


async def test_readers_beyond_a_few_take_slots_of_the_plan(stage: Stage) -> None:
    """H9: one stream of a plan with one slot is followed by four readers, and by no more."""
    who = somebody("one") | {"X-Forwarded-For": "10.9.9.1"}
    readers = [await hanging(stage, who)]
    path = f"/streams/{readers[0].headers['x-stream-id']}"
    for number in range(2, 5):
        readers.append(await stage.get(path, headers=who | {"X-Forwarded-For": f"10.9.9.{number}"}))
        assert readers[-1].media_type == "text/event-stream"
    refused = await stage.get(path, headers=fetching(who | {"X-Forwarded-For": "10.9.9.9"}))
    assert (refused.status, (await refused.json())["code"]) == (429, "too_many_streams")
    for reader in (refused, *readers):
        await reader.close()


@pytest.mark.parametrize("way", ["by its id", "by its route", "by a ticket"])
async def test_stream_followed_21_times_has_the_readers_that_its_plan_has_slots_for(stage: Stage, way: str) -> None:
    """H9: four, and one for each slot that is left; its slot comes back with the reader's end."""
    who = somebody("two") | {"X-Forwarded-For": f"10.8.{next(_addresses)}.1"}
    first = await hanging(stage, who)
    stream_id = first.headers["x-stream-id"]
    begun = await first.next()
    assert begun is not None
    cursor = begun.last_event_id
    readers, refused = [first], 0
    for number in range(2, 22):
        headers = who | {"X-Forwarded-For": f"10.8.200.{number}"}
        path, query = ("/chat", {}) if way == "by its route" else (f"/streams/{stream_id}", {})
        if way == "by a ticket":
            async with await stage.post("/tickets", {"stream_id": stream_id}, headers=headers) as answer:
                query = {"ticket": (await answer.json())["ticket"]}
            headers = {name: value for name, value in headers.items() if name != "Authorization"}
        reader = await stage.get(path, headers=fetching(headers), cursor=cursor, **query)
        if reader.status == 200:
            readers.append(reader)
        else:
            refused += reader.status == 429
            await reader.close()
    assert (len(readers), len(readers) + refused) == (5, 21)
    assert await status_of(stage, fetching(who)) == 429
    await readers[-1].close()
    await slot_is_free(stage, who)
    for reader in readers:
        await reader.close()


async def slot_is_free(stage: Stage, who: dict[str, str]) -> None:
    async def look() -> int:
        return await status_of(stage, fetching(who))

    await eventually(look, lambda status: status == 200, timeout=1)


WAYS: dict[str, tuple[str, list[Step]]] = {
    "completed": ("/chat", openai_answer("x")),
    "cut": ("/chat", [sse_head(), openai_delta("x"), Reset()]),
    "refused": ("/chat", [response(400, "{}")]),
    "failed": ("/openai", [response(500, "{}")]),
    "no stream": ("/chat", [response(200, "<html>", "text/html")]),
    "reset": ("/proxy", [Reset()]),
    "passed through": ("/proxy", [response(404, "{}")]),
    "relayed": ("/proxy", events_answer("x")),
    "unreachable": ("/closed", []),
    "silent": ("/stalling", [Hang()]),
    "stalled": ("/stalling", [sse_head(), openai_delta("x"), Hang()]),
    "too long": ("/short", [sse_head(), openai_delta("x"), Hang()]),
}


@pytest.mark.parametrize("way", WAYS)
async def test_slot_comes_back_after_every_way_of_ending(stage: Stage, way: str) -> None:
    who, (route, script) = somebody("one"), WAYS[way]
    async with await stage.ask(route, stage.plays(script), headers=who) as answer:
        await answer.body()
    await slot_is_free(stage, who)


@pytest.mark.parametrize("route", ["/chat", "/openai", "/proxy", "/unread"])
@pytest.mark.parametrize("how", ["close", "reset", "stop"])
async def test_slot_comes_back_after_a_client_left_or_stopped(stage: Stage, route: str, how: str) -> None:
    who = somebody("one")
    answer = await hanging(stage, who, route)
    if how == "stop":
        path = f"/streams/{answer.headers['x-stream-id']}/stop"
        async with await stage.post(path, None, headers=who) as stopped:
            assert stopped.status == 200
        await whole(answer)
    else:
        await getattr(answer, how)()
    await slot_is_free(stage, who)


async def test_slot_comes_back_after_a_bad_request(stage: Stage) -> None:
    who = fetching(somebody("one"))
    for body in ("{", {"message": 1}, {"nope": 1}, {"message": "x" * 10, "messages": []}):
        async with await stage.post("/chat", body, headers=who) as answer:
            assert answer.status == 400
    await slot_is_free(stage, who)


# Tokens.


async def tokens_left(stage: Stage, who: dict[str, str]) -> int:
    async with await stage.ask("/openai", stage.plays(openai_answer("x")), headers=who) as answer:
        assert answer.status == 200, await answer.body()
        await answer.body()
        return int(answer.headers["x-ratelimit-remaining-tokens"])


async def test_tokens_are_reserved_and_settled_by_the_upstreams_usage(stage: Stage) -> None:
    who = fetching(somebody("tokens"))
    first = await tokens_left(stage, who)
    assert 120 <= first <= 140  # of 400, for a few tokens of input and 256 of output
    assert first - await tokens_left(stage, who) in (7, 8)  # settled at 3 + 5, and one may be back already
    running = await hanging(stage, who, "/openai")
    async with await hanging(stage, who, "/openai") as refused:
        assert (refused.status, (await refused.json())["error"]["code"]) == (429, "token_limit")
        assert int(refused.headers["retry-after"]) > 60
    await running.close()


async def test_tokens_of_a_cut_stream_are_settled_too(stage: Stage) -> None:
    who = fetching(somebody("tokens"))
    first = await tokens_left(stage, who)
    cut: list[Step] = [sse_head(), openai_delta("four") * 60, Pause(0.05), Reset()]
    async with await stage.ask("/openai", stage.plays(cut), headers=who) as answer:
        assert (await answer.body()).count(b"four") == 60
    left = await tokens_left(stage, who)
    assert first - 8 - 60 - 20 <= left <= first - 8 - 60


async def test_request_larger_than_the_whole_budget_is_not_worth_repeating(stage: Stage) -> None:
    who = fetching(somebody("tokens"))
    async with await stage.post("/openai", completion("x" * 4000, stream=True), headers=who) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["retryable"]) == (429, "token_limit", False)
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("route", ["/chat", "/openai"])
async def test_budget_used_up_in_mid_stream_ends_it_after_a_whole_event(stage: Stage, route: str) -> None:
    who = somebody("tokens")
    steps = [step for _ in range(60) for step in (openai_delta("four") * 10, Pause(0.01))]
    question = stage.plays([sse_head(), *steps, Hang()])
    answer = await stage.ask(route, question, headers=who)
    messages = await whole(answer)
    assert b"budget" in messages[-1].data.encode()
    assert not answer.broken
    assert sum("budget" in message.data for message in messages) == 1
    if route == "/chat":
        assert 4 * 350 < len(text_of(messages)) <= 4 * 480
    await asyncio.wait_for(stage.asked(question)[0].closed.wait(), 1)
    await stage.gateway.logged("stream_end", stream_id=answer.headers["x-stream-id"], outcome="budget")


@pytest.mark.parametrize("said", ["content", "reasoning_content", "arguments"])
@pytest.mark.parametrize("route", ["/chat", "/openai"])
async def test_budget_ends_a_stream_of_large_chunks_within_one_event(stage: Stage, route: str, said: str) -> None:
    """H5: 200 tokens a chunk, many of them in one read, and no usage."""
    text = "four" * 200
    call = [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": text}}]
    event = openai_chunk({"tool_calls": call} if said == "arguments" else {said: text})
    question = stage.plays([sse_head(), chunk(event * 20), Hang()])
    messages = await whole(await stage.ask(route, question, headers=somebody("tokens")))
    assert b"budget" in messages[-1].data.encode()
    assert 1 <= sum(message.data.count("four") > 100 for message in messages[:-1]) <= 3  # of a budget of 400 tokens
    await asyncio.wait_for(stage.asked(question)[0].closed.wait(), 1)


HIDDEN = "x" * 4000


def image(url: str) -> dict[str, Any]:
    """A message that is an image."""
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


HIDING: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {HIDDEN: {}}}}]},
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [HIDDEN]}}}},
    "an unknown field": {"hidden": HIDDEN},
    "metadata": {"metadata": {"a": HIDDEN}},
    "numbers": {"logit_bias": dict.fromkeys(map(str, range(700)), 0)},
    "a system prompt of another API": {"system": [{"type": "text", "text": HIDDEN}]},
    "a name": {"messages": [{"role": "user", "name": HIDDEN, "content": "hi"}]},
    "a name of a member": {"messages": [{"role": "user", HIDDEN: "", "content": "hi"}]},
    "no image": {"messages": [{"role": "user", "content": "data:image/png;base64," + HIDDEN}]},
    "no image in a part": {"messages": [{"role": "user", "content": [{"type": "text", "text": "data:" + HIDDEN}]}]},
    "text in an image's place": {"messages": [image("data:image/png;base64," + "more text " * 400)]},
    "text in an image's label": {"messages": [image(f"data:image/{HIDDEN};base64,AAAA")]},
    "an image of few bytes": {"messages": [image("data:image/png;base64,AAAA")]},
    "an image somewhere else": {"messages": [image("https://images.example.com/1")]},
    "an earlier answer of a tool": {"messages": [{"role": "tool", "tool_call_id": "a", "content": HIDDEN}]},
    "an earlier call": {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": HIDDEN}}]}]},
    "a file": {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": HIDDEN}}]}]},
}


@pytest.mark.parametrize("where", HIDING)
async def test_input_is_counted_wherever_it_is(stage: Stage, where: str) -> None:
    """H5: a request that alone is larger than the plan's budget is never sent, whatever it says its bytes are."""
    body = completion("never asked", stream=True) | HIDING[where]
    async with await stage.post("/openai", body, headers=fetching(somebody("tokens"))) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (429, "token_limit")


HIDING_IN_CHATS: dict[str, dict[str, Any]] = {
    "a message": {"message": HIDDEN},
    "a name": {"messages": [{"role": "user", "name": HIDDEN, "content": "hi"}]},
    "an earlier answer": {"messages": [{"role": "assistant", "content": HIDDEN}, {"role": "user", "content": "hi"}]},
    "a part of a kit's": {"messages": [{"role": "user", "parts": [{"type": "text", "text": HIDDEN}]}]},
    "an image of a kit's": {
        "messages": [{"role": "user", "parts": [{"type": "file", "mediaType": "image/png", "url": "https://x.y/z"}]}]
    },
}


@pytest.mark.parametrize("where", HIDING_IN_CHATS)
async def test_input_of_a_chat_is_counted_wherever_it_is(stage: Stage, where: str) -> None:
    """H5"""
    path, who = "/ui" if "kit" in where else "/chat", fetching(somebody("tokens"))
    async with await stage.post(path, HIDING_IN_CHATS[where], headers=who) as answer:
        assert (answer.status, (await answer.json())["code"]) == (429, "token_limit")


async def test_system_prompt_is_counted(stage: Stage) -> None:
    """H5"""
    async with await stage.post("/told", {"message": "hi"}, headers=fetching(somebody("tokens"))) as answer:
        assert (answer.status, (await answer.json())["code"]) == (429, "token_limit")


async def test_history_of_a_session_is_counted(stage: Stage) -> None:
    """H5"""
    who = fetching(somebody("tokens"))
    question = stage.plays(openai_answer("four" * 120), "x" * 400)
    async with await stage.post("/session", {"message": question, "session_id": "s"}, headers=who) as answer:
        assert answer.status == 200
        await answer.body()
    async with await stage.post("/session", {"message": "hi", "session_id": "s"}, headers=who) as answer:
        assert (answer.status, (await answer.json())["code"]) == (429, "token_limit")


def tokens_of(url: str) -> int:
    return estimate_tokens({"messages": [image(url)]})


async def test_image_counts_as_one_and_a_larger_one_more() -> None:
    small, medium, large = (tokens_of("data:image/png;base64," + "A" * size) for size in (1, 100_000, 1_000_000))
    assert 1000 < small < medium < large < 10_000


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64," + "more text " * 10_000,
        "data:image/png," + "A" * 100_000,
        f"data:image/{'A' * 100_000};base64,AAAA",
        "https://images.example.com/" + "A" * 100_000,
    ],
)
async def test_text_in_the_place_of_an_image_counts_as_text(url: str) -> None:
    """H5"""
    assert tokens_of(url) > len(url) / 4


async def test_budget_used_up_in_a_whole_answer_is_429(stage: Stage) -> None:
    question = stage.plays([sse_head(), *[openai_delta("four")] * 500, Hang()])
    async with await stage.post("/openai", completion(question), headers=fetching(somebody("tokens"))) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (429, "budget")


async def test_proxied_stream_reserves_no_tokens(stage: Stage) -> None:
    who = fetching(somebody("tokens"))
    readers = [await hanging(stage, who, "/proxy") for _ in range(3)]
    assert [reader.headers["ratelimit"] for reader in readers] == ['"tokens";r=400;t=0'] * 3
    for reader in readers:
        await reader.close()


# Addresses.


async def test_address_is_held_to_its_requests_whoever_it_claims_to_be(stage: Stage) -> None:
    where = somewhere()
    statuses = []
    for number in range(42):
        headers = where | ({"Authorization": f"Bearer guess-{number}"} if number % 2 else {})
        async with await stage.get("/nowhere" if number % 3 else "/chat", headers=headers) as answer:
            statuses.append(answer.status)
    assert set(statuses[:40]) == {400, 401, 404}
    assert set(statuses[40:]) == {429}
    assert "retry-after" in answer.headers
    assert await stage.metric('gateway_rate_limited_total{limit="address",plan=""}') >= 2
    async with await stage.get("/nowhere", headers=somewhere()) as answer:
        assert answer.status == 404


async def test_address_is_held_to_its_connections_and_gets_them_back(stage: Stage) -> None:
    where = fetching(somewhere())
    readers = [await hanging(stage, where) for _ in range(3)]
    assert await status_of(stage, where) == 429
    assert [message.json()["code"] for message in await whole(await hanging(stage, where | EVENTS))] == ["rate_limited"]
    await readers[0].reset()
    await slot_is_free(stage, where)
    for reader in readers[1:]:
        await reader.close()


async def test_forwarded_address_behind_an_unknown_proxy_is_not_believed(stage: Stage) -> None:
    where = {"X-Forwarded-For": "10.99.0.1, 192.0.2.77"}
    readers = [
        await hanging(stage, fetching(where | {"X-Forwarded-For": f"10.99.0.{n}, 192.0.2.77"})) for n in range(3)
    ]
    assert await status_of(stage, fetching(where)) == 429
    for reader in readers:
        await reader.close()
