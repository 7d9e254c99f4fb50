"""Tickets over sockets, contract section 5: what a URL with a ticket is worth, to whom, and until when."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import Response, request
from tests.kit.upstream import Step, WaitFor, openai_answer, openai_delta, response, sse_head
from tests.web.stage import EVENTS, Stage, events_answer, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB = {"Authorization": "Bearer web-key"}
ELSEWHERE = EVENTS | {"X-Forwarded-For": "198.51.100.7"}
APP, EVIL = "https://app.example.com", "https://evil.example.com"
ROUTES: list[dict[str, Any]] = [
    {"path": "/chat"},
    {"path": "/other"},
    {"path": "/openai", "api": "openai"},
    {"path": "/once", "stream": {"resume": {"enabled": False}}},
    {"path": "/proxy/{path}", "api": "proxy"},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    keys = [
        {"id": "web", "key": "web-key"},
        {"id": "other", "key": "other-key"},
        {"id": "publisher", "key": "publisher-key", "scopes": ["publish", "admin"]},
        {"id": "slow", "key": "slow-key", "plan": "slow"},
    ]
    async with staged(
        tmp_path_factory.mktemp("gateway"),
        ROUTES,
        server={"trusted_proxies": ["127.0.0.1/32"]},
        auth={"keys": keys, "tickets": {"ttl": "1h"}},
        cors={"origins": [APP], "credentials": True},
        plans={"slow": {"requests": "1/h"}},
    ) as stage:
        yield stage


async def ask_for_ticket(stage: Stage, body: Any = None, headers: Mapping[str, str] = WEB, **options: Any) -> Response:
    return await request(stage.gateway.url + "/tickets", method="POST", headers=headers, body=body, **options)


async def ticket(stage: Stage, stream_id: str = "", headers: Mapping[str, str] = WEB) -> str:
    async with await ask_for_ticket(stage, {"stream_id": stream_id} if stream_id else {}, headers) as answer:
        assert answer.status == 200
        text = (await answer.json())["ticket"]
        assert isinstance(text, str)
        return text


async def status(stage: Stage, path: str, text: str, **options: Any) -> int:
    async with await stage.get(path, "never asked", ticket=text, **options) as answer:
        return answer.status


def paused(more: asyncio.Event) -> list[Step]:
    """An answer whose second half waits."""
    return [sse_head(), openai_delta("one "), WaitFor(more), *openai_answer("two")[1:]]


async def first_token(answer: Response) -> str:
    async for message in answer.messages():
        if message.type == "token":
            return message.last_event_id
    raise AssertionError("the stream ended before its first token")


@pytest.mark.parametrize("body", [b"", b" \r\n", {}, {"stream_id": None}], ids=["none", "blank", "{}", "null"])
async def test_credential_buys_a_ticket(stage: Stage, body: Any) -> None:
    async with await ask_for_ticket(stage, body) as answer:
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        bought = await answer.json()
    assert bought.keys() == {"ticket", "expires_in"}
    assert (len(bought["ticket"]), bought["expires_in"]) == (32, 3600)


async def test_ticket_starts_one_stream_once_and_then_resumes_it(stage: Stage) -> None:
    more, text = asyncio.Event(), await ticket(stage)
    question = stage.plays(paused(more))
    first = await stage.get("/chat", question, ticket=text)
    async with first:
        cursor = await first_token(first)
    # Its first bytes might have been lost, so that a browser comes back without a cursor.
    async with await stage.get("/chat", question, ticket=text) as second:
        assert second.headers["x-stream-id"] == first.headers["x-stream-id"]
        await first_token(second)
    async with await stage.get("/chat", question, ticket=text, cursor=cursor) as third:
        more.set()
        rest = [message async for message in third.messages()]
    assert (text_of(rest), rest[-1].type) == ("two", "done")
    async with await stage.get("/chat", question, ticket=text, cursor=rest[-1].last_event_id) as fourth:
        assert fourth.status == 204
    # It was read to its end. The URL alone, as a log has it, is worth nothing any more; a cursor is no part of it.
    assert await status(stage, "/chat", text) == 401
    async with await stage.get("/chat", question, ticket=text, cursor=cursor) as fifth:
        assert text_of([message async for message in fifth.messages()]) == "two"
    assert len(stage.asked(question)) == 1


async def test_ticket_is_worthless_from_another_address_and_elsewhere(stage: Stage) -> None:
    more, text = asyncio.Event(), await ticket(stage)
    question = stage.plays(paused(more))
    async with await stage.get("/chat", question, ticket=text) as first:
        stream_id, cursor = first.headers["x-stream-id"], await first_token(first)
        places: list[tuple[str, dict[str, Any]]] = [
            ("/chat", {"headers": ELSEWHERE}),
            ("/chat", {"headers": ELSEWHERE, "cursor": cursor}),
            ("/other", {}),
            ("/other", {"cursor": cursor}),
            (f"/streams/{stream_id}", {}),
            (f"/streams/{stream_id}", {"cursor": cursor}),
        ]
        assert {await status(stage, path, text, **options) for path, options in places} == {401}
        for path, method in [
            (f"/streams/{stream_id}/stop", "POST"),
            (f"/streams/{stream_id}", "DELETE"),
            ("/tickets", "POST"),
            ("/proxy/x", "HEAD"),
            ("/proxy/x", "DELETE"),
        ]:
            fresh = await ticket(stage)
            for each in (text, fresh):
                async with await request(stage.url(path, ticket=each), method=method) as answer:
                    assert answer.status == 401, (path, method)
        for credential in ({"Authorization": f"Bearer {text}"}, {"Cookie": f"gateway_token={text}", "Origin": APP}):
            assert await status(stage, "/chat", "", headers=EVENTS | credential) == 401
        async with await stage.get("/chat", "never asked", token=text) as answer:
            assert answer.status == 401
        more.set()
        assert [message async for message in first.messages()][-1].type == "done"


async def test_two_requests_at_once_start_one_stream(stage: Stage) -> None:
    text = await ticket(stage)
    question = stage.plays(openai_answer("x"))
    answers = await asyncio.gather(*(stage.get("/chat", question, ticket=text) for _ in range(4)))
    assert len({answer.headers.get("x-stream-id") for answer in answers if answer.status == 200}) == 1
    for answer in answers:
        await answer.close()
    assert len(stage.asked(question)) == 1


@pytest.mark.parametrize("path", ["/chat", "/streams/{}"])
async def test_ticket_for_a_stream_reads_only_that(stage: Stage, path: str) -> None:
    more, question = asyncio.Event(), stage.plays([])
    question = stage.plays(paused(more))
    async with await stage.get("/chat", question, headers=EVENTS | WEB) as first:
        stream_id, cursor = first.headers["x-stream-id"], await first_token(first)
        for at in ("", cursor):
            text = await ticket(stage, stream_id)
            async with await stage.get(path.format(stream_id), question, ticket=text, cursor=at) as second:
                assert second.headers["x-stream-id"] == stream_id
        other = await ticket(stage)
        asked = stage.plays(openai_answer("x"))
        strange = (await whole(await stage.get("/chat", asked, ticket=other)))[0].last_event_id
        text = await ticket(stage, stream_id)
        assert [
            message.json()["code"] for message in await whole(await stage.get("/chat", ticket=text, cursor=strange))
        ] == ["cursor_expired"]
        assert await status(stage, f"/streams/{strange.partition('.')[0]}", await ticket(stage, stream_id)) == 404
        more.set()
    assert len(stage.asked(question)) == 1


async def test_ticket_for_no_stream_of_ones_own_is_refused_alike(stage: Stage) -> None:
    question = stage.plays(openai_answer("x"))
    async with await stage.get("/chat", question, headers=EVENTS | {"Authorization": "Bearer other-key"}) as strange:
        stream_id = strange.headers["x-stream-id"]
    answers = []
    for wanted in (stream_id, "x" * 22, "x", "", "/" * 100_0):
        async with await ask_for_ticket(stage, {"stream_id": wanted}) as answer:
            answers.append((answer.status, (await answer.json())["title"], (await answer.json())["detail"]))
    assert set(answers) == {answers[0]}
    assert answers[0][0] == 404


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        ({"stream_id": 1}, 400),
        ({"stream_id": []}, 400),
        ({"stream": "x"}, 400),
        (b" " * 5000, 413),
    ],
)
async def test_malformed_wish_for_a_ticket_is_refused(stage: Stage, body: Any, expected: int) -> None:
    async with await ask_for_ticket(stage, body) as answer:
        assert answer.status == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"Authorization": "Bearer nope"}, 401),
        ({"Authorization": "Bearer publisher-key"}, 403),
        ({"Cookie": "gateway_token=web-key", "Origin": APP}, 200),
        ({"Cookie": "gateway_token=web-key", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Cookie": "gateway_token=web-key", "Origin": EVIL}, 401),
        ({"Cookie": "gateway_token=web-key", "Sec-Fetch-Site": "cross-site"}, 401),
        ({"Cookie": "gateway_token=web-key"}, 401),
    ],
)
async def test_who_gets_a_ticket(stage: Stage, headers: dict[str, str], expected: int) -> None:
    async with await ask_for_ticket(stage, {}, headers) as answer:
        assert answer.status == expected
        assert answer.headers.get("access-control-allow-origin") == (APP if headers.get("Origin") == APP else None)


async def test_methods_of_tickets(stage: Stage) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        async with await request(stage.gateway.url + "/tickets", method=method, headers=WEB) as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
    asks = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with await request(stage.gateway.url + "/tickets", method="OPTIONS", headers=asks) as answer:
        allowed = {name.removeprefix("access-control-allow-"): value for name, value in answer.headers.items()}
        assert (answer.status, allowed["methods"], allowed["headers"]) == (204, "POST", "authorization")
    async with await request(
        stage.gateway.url + "/tickets", method="OPTIONS", headers=asks | {"Origin": EVIL}
    ) as answer:
        assert "access-control-allow-origin" not in answer.headers


async def test_ticket_alone_counts_beside_a_cookie_and_a_header_wins(stage: Stage) -> None:
    question = stage.plays(openai_answer("x"))
    stale = EVENTS | {"Cookie": "gateway_token=old", "Origin": EVIL}
    async with await stage.get("/chat", question, headers=stale, ticket=await ticket(stage)) as answer:
        assert answer.status == 200
    good = EVENTS | {"Cookie": "gateway_token=web-key", "Origin": APP}
    assert await status(stage, "/chat", "x" * 32, headers=good) == 401
    async with await stage.get("/chat", question, headers=EVENTS | WEB, ticket="x" * 32) as answer:
        assert answer.status == 200


async def test_refused_start_leaves_the_ticket_for_its_own_client(stage: Stage) -> None:
    slow = {"Authorization": "Bearer slow-key"}
    async with await stage.get("/chat", stage.plays(openai_answer("x")), headers=EVENTS | slow) as spent:
        assert spent.status == 200
    text = await ticket(stage, headers=slow)
    for _ in range(2):
        events = await whole(await stage.get("/chat", "never asked", ticket=text))
        assert [event.json()["code"] for event in events] == ["rate_limited"]
    assert await status(stage, "/chat", text, headers=ELSEWHERE) == 401


async def test_ticket_reads_no_stream_that_cannot_be_resumed_and_starts_no_second(stage: Stage) -> None:
    more, text = asyncio.Event(), await ticket(stage)
    question = stage.plays(paused(more))
    async with await stage.get("/once", question, ticket=text) as first:
        await anext(first.messages())
        [again] = await whole(await stage.get("/once", question, ticket=text))
        assert again.json()["code"] == "cursor_expired"
        more.set()
        await first.body()
    assert await status(stage, "/once", text) == 401
    assert len(stage.asked(question)) == 1


async def test_ticket_never_reaches_an_upstream_or_a_log(stage: Stage) -> None:
    question = stage.plays(events_answer("x"))
    texts = [await ticket(stage) for _ in range(3)]
    async with await stage.get("/proxy/events", question, ticket=texts[0]) as answer:
        assert answer.status == 200
        await answer.body()
    spelled = f"{stage.gateway.url}/proxy/events?%74icket={texts[1]}&message={question.replace(' ', '+')}&a=1"
    async with await request(spelled, headers=EVENTS) as answer:
        await answer.body()
    async with await stage.get("/proxy/events", question, headers=EVENTS | WEB, ticket=texts[2]) as answer:
        await answer.body()
    asked = stage.asked(question)
    assert len(asked) == 3
    assert "a=1" in asked[1].target
    assert await status(stage, "/nowhere", texts[0]) == 404
    said = "".join(exchange.target + str(exchange.headers) for exchange in asked) + str(stage.gateway.log_lines())
    assert not [text for text in texts if text in said]


async def test_proxied_answer_that_is_no_stream_is_given_once(stage: Stage) -> None:
    text = await ticket(stage)
    question = stage.plays([response(200, "ok", "text/plain")])
    async with await stage.get("/proxy/x", question, headers={}, ticket=text) as answer:
        assert await answer.body() == b"ok"
    assert await status(stage, "/proxy/x", text, headers={}) in (204, 401)  # until its empty log is gone, or after that
    assert len(stage.asked(question)) == 1
