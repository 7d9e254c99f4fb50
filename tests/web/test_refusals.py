"""Every refusal of a client has one log line: its reason, the limit, the path, whose it was, and nothing it sent."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.formats import Completion
from tests.kit.sse_client import request
from tests.kit.upstream import ScriptedUpstream, openai_answer, response
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, setting

SECRET = "what-nobody-may-read"
KEYS = [
    {"id": "web", "key": "web-key", "plan": "small"},
    {"id": "publisher", "key": "publisher-key", "scopes": ["publish"]},
]
WEB = {"Authorization": "Bearer web-key"}


def config(url: str, **sections: Any) -> dict[str, Any]:
    routes = [{"path": "/chat"}, {"path": "/openai", "api": "openai"}]
    plans = {"default": {}, "small": {"tokens": "10/h"}}
    return setting(url, routes, **{"auth": {"keys": KEYS}, "plans": plans, "server": {"max_body": "1KiB"}} | sections)


async def refused(gateway: Serving, path: str, method: str = "GET", **options: Any) -> tuple[int, dict[str, Any]]:
    """The status of the answer, and the one line about it."""
    with capture_logs() as lines:
        async with await request(f"{gateway.url}{path}", method=method, **options) as answer:
            await answer.body()
    assert SECRET not in str(lines)
    told: list[Any] = [line for line in lines if line["event"] == "refused"]
    assert len(told) == 1, lines
    line = dict(told[0])
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["address"] == "127.0.0.1"
    return answer.status, line


CASES: dict[str, tuple[str, str, Mapping[str, Any], int, dict[str, Any]]] = {
    "no credential": (
        f"/chat?message={SECRET}",
        "GET",
        {},
        401,
        {"reason": "missing", "code": "unauthorized", "path": "/chat", "principal": None, "limit": None},
    ),
    "unknown credential": (
        "/chat?message=hi",
        "GET",
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        401,
        {"reason": "unknown", "code": "unauthorized"},
    ),
    "scope": (
        "/chat?message=hi",
        "GET",
        {"headers": {"Authorization": "Bearer publisher-key"}},
        403,
        {"reason": "scope", "code": "forbidden", "principal": "key:publisher"},
    ),
    "nowhere": (
        f"/wp-login/{'k' * 40}/x?message={SECRET}",
        "GET",
        {},
        404,
        {"reason": "not_found", "path": "/wp-login/…/x"},
    ),
    "method": ("/openai", "DELETE", {"headers": WEB}, 405, {"reason": "method_not_allowed", "method": "DELETE"}),
    "stream": (
        f"/streams/{'x' * 22}",
        "GET",
        {"headers": WEB},
        404,
        {"reason": "cursor_expired", "path": "/streams", "principal": "key:web"},
    ),
    "body": (
        "/chat",
        "POST",
        {"headers": WEB, "body": {"message": SECRET * 100}},
        413,
        {"reason": "body_too_large", "limit": "server.max_body", "status": 413},
    ),
    "tokens": (
        "/chat",
        "POST",
        {"headers": WEB, "body": {"message": f"{SECRET} " * 40}},
        429,
        {"reason": "token_limit", "limit": "plans.small.tokens", "in_band": False, "principal": "key:web"},
    ),
    "tokens in band": (
        f"/chat?message={SECRET * 40}",
        "GET",
        {"headers": WEB | EVENTS},
        200,
        {"reason": "token_limit", "limit": "plans.small.tokens", "in_band": True, "status": 429},
    ),
    "malformed": ("/chat", "POST", {"headers": WEB, "body": {SECRET: 1}}, 400, {"reason": "bad_request"}),
}


@pytest.mark.parametrize("case", CASES)
async def test_refusal_is_logged_with_its_reason(case: str) -> None:
    path, method, options, status, facts = CASES[case]
    async with serving(config("http://127.0.0.1:9")) as gateway:
        answered, line = await refused(gateway, path, method, **options)
    assert answered == status
    assert line | facts == line


async def test_refusal_of_an_address_names_the_limit() -> None:
    per_address = {"requests": "1/h", "connections": None}
    async with serving(config("http://127.0.0.1:9", limits={"per_address": per_address})) as gateway:
        gateway.app.gateway.addresses.request("127.0.0.1", gateway.app.gateway.clock.now())
        status, line = await refused(gateway, "/chat?message=hi", headers=WEB)
    assert status == 429
    assert line["limit"] == "limits.per_address.requests"


async def test_refusal_of_a_connection_names_the_limit() -> None:
    per_address = {"requests": None, "connections": 1}
    async with serving(config("http://127.0.0.1:9", limits={"per_address": per_address})) as gateway:
        lease = gateway.app.gateway.addresses.connect("127.0.0.1", gateway.app.gateway.clock.now())
        with capture_logs() as lines:
            async with await request(f"{gateway.url}/chat?message=hi") as answer:
                assert answer.status == 429
        assert lease
    [line] = [line for line in lines if line["event"] == "refused"]
    assert (line["limit"], line["address"]) == ("limits.per_address.connections", "127.0.0.1")


async def test_refusal_of_a_drain_is_one() -> None:
    async with serving(config("http://127.0.0.1:9", plans={"default": {}, "small": {}})) as gateway:
        gateway.app.gateway.draining = True
        status, line = await refused(gateway, "/chat?message=hi", headers=WEB)
    assert (status, line["reason"]) == (503, "draining")


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\nX: %s\r\n\r\n" % (SECRET.encode() * 500), 431, "headers_too_large"),
        (b"%s\r\n\r\n" % SECRET.encode(), 400, "bad_request"),
    ],
)
async def test_head_that_the_parser_refuses_is_logged_without_its_bytes(head: bytes, status: int, reason: str) -> None:
    with capture_logs() as lines:
        async with serving(config("http://127.0.0.1:9")) as gateway:
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head)
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
    assert b" %d " % status in answer[:20]
    assert SECRET.encode()[:8] not in answer
    [line] = [line for line in lines if line["event"] == "refused"]
    assert (line["reason"], line["address"]) == (reason, "127.0.0.1")
    assert SECRET not in str(line)


async def test_answer_that_is_too_long_for_one_object_is_told_though_nobody_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Completion.__init__, "__defaults__", (5,))
    plans: dict[str, Any] = {"default": {}, "small": {}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with capture_logs() as lines:
        async with (
            ScriptedUpstream(openai_answer("Hello", "there")) as upstream,
            serving(config(upstream.url, plans=plans)) as gateway,
            await request(f"{gateway.url}/openai", method="POST", headers=WEB, body=body) as answer,
        ):
            await answer.body()
    assert answer.status == 502
    told = [line for line in lines if line["event"] in ("refused", "answer_not_sent", "stream_failed")]
    assert [(line["event"], line["code"]) for line in told] == [("answer_not_sent", "upstream_oversize")]


async def test_failure_of_an_upstream_and_a_good_answer_are_no_refusals() -> None:
    plans: dict[str, Any] = {"default": {}, "small": {}}
    for script in [response(500, "{}")], openai_answer("Hi"):
        with capture_logs() as lines:
            async with (
                ScriptedUpstream(script) as upstream,
                serving(config(upstream.url, plans=plans)) as gateway,
                await request(f"{gateway.url}/chat", method="POST", headers=WEB, body={"message": "x"}) as answer,
            ):
                await answer.body()
        assert [line for line in lines if line["event"] == "refused"] == []
