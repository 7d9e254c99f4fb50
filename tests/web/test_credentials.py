"""Credentials, contract section 5, and CORS: over sockets, with every place a secret could leak to."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import Response, request
from tests.kit.upstream import Exchange, Hang, Step, chunk, openai_answer, openai_delta, response, sse_head
from tests.web.stage import EVENTS, Stage, completion, staged, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "sk-Very.Secret~0123456789"
WEB = {"Authorization": f"Bearer {SECRET}"}
APP, EVIL = "https://app.example.com", "https://evil.example.com"
LIFETIME = 2.0
ROUTES: list[dict[str, Any]] = [
    {"path": "/chat"},
    {"path": "/openai", "api": "openai"},
    {"path": "/proxy/{path}", "api": "proxy"},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    keys = [
        {"id": "web", "key": SECRET},
        {"id": "old", "key": "old-key", "expires": "2020-01-01"},
        {"id": "soon", "key": "soon-key"},
        {"id": "publisher", "key": "publisher-key", "scopes": ["publish"]},
    ]
    cors = {"origins": [APP], "credentials": True}
    directory = tmp_path_factory.mktemp("gateway")
    async with staged(directory, ROUTES, auth={"keys": keys}, cors=cors) as stage:
        yield stage


@pytest.mark.alone
async def test_stream_ends_at_the_moment_its_credential_expires(stage: Stage) -> None:
    """C9."""
    soon, expires = {"Authorization": "Bearer soon-key"}, time.time() + LIFETIME
    await stage.gateway.reload(expiring(stage.gateway.config, "soon", expires))
    scripts: dict[str, list[Step]] = {
        "/chat": [sse_head(), openai_delta("x"), Hang()],
        "/openai": [sse_head(), openai_delta("x"), Hang()],
        "/proxy/events": [sse_head(), chunk("data: x\n\n"), Hang()],
    }
    questions = {route: stage.plays(script) for route, script in scripts.items()}
    responses = {route: await stage.ask(route, question, headers=soon) for route, question in questions.items()}
    for route, answer in responses.items():
        last = (await whole(answer))[-1]
        assert b"auth_expired" in last.data.encode(), route
        assert abs(time.time() - expires) < 0.5
        await asyncio.wait_for(stage.asked(questions[route])[0].closed.wait(), 1)
        await stage.gateway.logged("stream_end", stream_id=answer.headers["x-stream-id"], outcome="auth_expired")
    async with await stage.get("/chat", "never asked", headers=soon) as refused:
        assert refused.status == 401


def expiring(config: dict[str, Any], key: str, expires: float) -> dict[str, Any]:
    """The configuration in which this key expires at a moment."""
    moment = datetime.fromtimestamp(expires, UTC).isoformat()
    keys = [entry | ({"expires": moment} if entry["id"] == key else {}) for entry in config["auth"]["keys"]]
    return config | {"auth": config["auth"] | {"keys": keys}}


# Where a credential may be.


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        (WEB, {}),
        ({"authorization": f"bearer  {SECRET}"}, {}),
        ({"Cookie": f"a=b; gateway_token={SECRET}", "Origin": APP}, {}),
        ({"Cookie": f"gateway_token={SECRET}", "Sec-Fetch-Site": "same-origin"}, {}),
        ({}, {"token": SECRET}),
    ],
)
async def test_credential_is_found_wherever_it_may_be(stage: Stage, headers: Any, query: Any) -> None:
    async with await stage.get("/chat", stage.plays(openai_answer("x")), headers=EVENTS | headers, **query) as answer:
        assert answer.status == 200


BAD: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "missing": ({}, {}),
    "unknown": ({"Authorization": "Bearer nope"}, {}),
    "expired": ({"Authorization": "Bearer old-key"}, {}),
    "oversized": ({"Authorization": "Bearer " + "x" * 5000}, {}),
    "no bearer": ({"Authorization": f"Basic {SECRET}"}, {}),
    "empty": ({"Authorization": "Bearer "}, {"token": ""}),
    "first found wins": ({"Authorization": "Bearer nope"}, {"token": SECRET}),
    "undecodable": ({"Authorization": "Bearer \xff\xfe"}, {}),
    "cookie of no page": ({"Cookie": f"gateway_token={SECRET}"}, {}),
    "cookie of another page": ({"Cookie": f"gateway_token={SECRET}", "Origin": EVIL}, {}),
    "cookie of a sandboxed page": ({"Cookie": f"gateway_token={SECRET}", "Origin": "null"}, {}),
    "cookie of the same site": ({"Cookie": f"gateway_token={SECRET}", "Sec-Fetch-Site": "same-site"}, {}),
}


async def test_every_bad_credential_is_answered_alike(stage: Stage) -> None:
    answers = {kind: await refused(stage, headers, query) for kind, (headers, query) in BAD.items()}
    assert set(answers.values()) == {answers["missing"]}
    status, media_type, challenge, body = answers["missing"]
    assert (status, media_type, challenge) == (401, "application/problem+json", "Bearer")
    assert b'"unauthorized"' in body
    assert not stage.asked("never asked")


async def refused(stage: Stage, headers: dict[str, str], query: dict[str, str]) -> tuple[int, str, str, bytes]:
    fixed = EVENTS | headers | {"X-Request-Id": "same"}
    async with await stage.get("/chat", "never asked", headers=fixed, **query) as answer:
        return answer.status, answer.media_type, answer.headers["www-authenticate"], await answer.body()


async def test_openai_client_is_told_401_in_openai_shape(stage: Stage) -> None:
    async with await stage.post("/openai", completion("x"), headers={"Authorization": "Bearer nope"}) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["type"] == "authentication_error"


async def test_credential_without_the_scope_is_403(stage: Stage) -> None:
    async with await stage.get("/chat", "x", headers=EVENTS | {"Authorization": "Bearer publisher-key"}) as answer:
        assert answer.status == 403
        assert (await answer.json())["code"] == "forbidden"


@pytest.mark.parametrize("path", ["/streams/" + "A" * 22, "/chat", "/openai", "/proxy/x"])
async def test_every_route_asks_for_a_credential(stage: Stage, path: str) -> None:
    method = "POST" if path == "/openai" else "GET"
    async with await request(stage.url(path), method=method) as answer:
        assert answer.status == 401


# What leaks.


async def test_credential_reaches_no_upstream_and_no_log(stage: Stage) -> None:
    cookie = {"Cookie": f"theirs=1; gateway_token={SECRET}; more=2", "Origin": APP, "Referer": f"{APP}/?token={SECRET}"}
    seen: list[Exchange] = []
    for headers, query in ((WEB, {}), (cookie, {}), ({}, {"token": SECRET}), (WEB, {"token": SECRET})):
        for route in ("/chat", "/proxy/deep/er"):
            question = stage.plays(openai_answer("very secret answer"), "very secret prompt")
            await whole(await stage.get(route, question, headers=EVENTS | headers, **query))
            seen += stage.asked(question)
    assert len(seen) == 8
    for exchange in seen:
        assert SECRET not in exchange.head.decode("latin-1")
        assert SECRET.encode() not in exchange.body
        assert "gateway_token" not in exchange.headers.get("cookie", "")
        assert "referer" not in exchange.headers
    assert any(exchange.headers.get("cookie") == "theirs=1; more=2" for exchange in seen)
    await assert_silent(stage)


async def test_percent_encoded_credential_is_stripped_and_the_rest_of_the_query_kept(stage: Stage) -> None:
    question = stage.plays([response(200, b"{}")])
    async with await request(stage.url("/proxy/a%2Fb", question) + f"&%74oken={SECRET}&q=%E4%BD%A0+b") as answer:
        assert answer.status == 200
        await answer.body()
    target = stage.asked(question)[0].target
    assert target.startswith("/a%2Fb?message=")
    assert target.endswith("&q=%E4%BD%A0+b")
    assert SECRET not in target


async def test_malformed_requests_leak_nothing_into_the_log(stage: Stage) -> None:
    for headers in ({"Authorization": f"Bearer {SECRET}x"}, WEB | {"Bad\x00Header": SECRET}):
        async with await stage.get("/chat", "very secret prompt", headers=EVENTS | headers, token=SECRET) as answer:
            assert SECRET.encode() not in await answer.body()
    async with await stage.post("/chat", f'{{"message": "very secret prompt {SECRET}', headers=WEB) as answer:
        assert answer.status == 400
        assert SECRET.encode() not in await answer.body()
    await assert_silent(stage)


async def assert_silent(stage: Stage) -> None:
    said = "\n".join([*stage.gateway.stdout, *stage.gateway.stderr])
    said += await stage.admin("/metrics") + str(await stage.admin("/streams"))
    for secret in (SECRET, "old-key", "very secret"):
        assert secret not in said, next(line for line in said.splitlines() if secret in line)


# CORS.


def shared_with(answer: Response) -> tuple[str | None, str | None]:
    return answer.headers.get("access-control-allow-origin"), answer.headers.get("access-control-allow-credentials")


async def test_page_of_an_allowed_origin_may_read_streams_and_errors(stage: Stage) -> None:
    page = EVENTS | {"Origin": APP}
    asked = [
        await stage.get("/chat", stage.plays(openai_answer("x")), headers=page | WEB),
        await stage.get("/chat", "x", headers=page),
        await stage.get("/nowhere", headers=page),
        await stage.get("/openai", headers=page),
        await stage.get("/chat", headers=page | WEB),
        await stage.get("/chat", "x", headers=page | WEB, cursor=f"{'A' * 22}.1.1"),
        await stage.get("/streams/" + "A" * 22, headers=page | WEB),
        await stage.get("/chat", stage.plays([response(500, "{}")]), headers=page | WEB),
    ]
    assert [answer.status for answer in asked] == [200, 401, 404, 405, 400, 200, 404, 200]
    for answer in asked:
        assert shared_with(answer) == (APP, "true")
        assert "Origin" in answer.headers["vary"]
        assert "X-Stream-Id" in answer.headers["access-control-expose-headers"]
        await answer.close()


@pytest.mark.parametrize("origin", [EVIL, "null", APP + ".evil.com", APP.replace("https", "http"), APP.upper()])
async def test_page_of_another_origin_may_read_nothing(stage: Stage, origin: str) -> None:
    headers = EVENTS | WEB | {"Origin": origin}
    async with await stage.get("/chat", stage.plays(openai_answer("x")), headers=headers) as answer:
        assert shared_with(answer) == (None, None)
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/chat", "/openai", "/proxy/x", "/streams/abc", "/streams/abc/stop"])
async def test_preflight_needs_no_credential(stage: Stage, path: str) -> None:
    headers = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, last-event-id",
    }
    async with await request(stage.url(path), method="OPTIONS", headers=headers) as answer:
        assert (answer.status, await answer.body()) == (204, b"")
    assert shared_with(answer) == (APP, "true")
    assert answer.headers["access-control-allow-headers"] == headers["Access-Control-Request-Headers"]
    assert answer.headers["access-control-max-age"] == "600"
    if path != "/streams/abc":
        assert "POST" in answer.headers["access-control-allow-methods"]
    async with await request(stage.url(path), method="OPTIONS", headers=headers | {"Origin": EVIL}) as answer:
        assert (answer.status, shared_with(answer)) == (204, (None, None))
        assert "access-control-allow-methods" not in answer.headers


async def test_upstreams_own_cors_headers_give_way_to_the_gateways(stage: Stage) -> None:
    theirs = {"Access_Control_Allow_Origin": "*", "Access_Control_Allow_Credentials": "true"}
    question = stage.plays([response(200, "{}", **theirs)])
    for origin, allowed in ((APP, APP), (EVIL, None)):
        async with await stage.get("/proxy/x", question, headers=WEB | {"Origin": origin}) as answer:
            assert (answer.status, shared_with(answer)[0]) == (200, allowed)
