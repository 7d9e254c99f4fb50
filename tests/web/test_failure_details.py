"""`/page/failure`: who is shown why a stream failed, and who is not even told that the path is there."""

from collections.abc import AsyncIterator, Mapping
from ipaddress import ip_network
from typing import Any

import pytest
from multidict import CIMultiDict

from gateway.web.guard import is_local
from tests.kit.sse_client import request
from tests.kit.upstream import Reset, ScriptedUpstream, Step, openai_delta, response, sse_head
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, setting

REFUSAL = '{"error":{"message":"The model `m` does not exist","type":"invalid_request_error","code":"model_not_found"}}'
KEYS = {name: {"Authorization": f"Bearer {name}-key"} for name in ("anna", "bert")}


def config(url: str) -> dict[str, Any]:
    keys = [{"id": name, "key": f"{name}-key"} for name in KEYS]
    return setting(url, [{"path": "/chat"}], auth={"keys": keys})


@pytest.fixture
async def gateway() -> AsyncIterator[Serving]:
    async with ScriptedUpstream([response(404, REFUSAL)]) as upstream, serving(config(upstream.url)) as gateway:
        yield gateway


async def fail(gateway: Serving, headers: Mapping[str, str] = KEYS["anna"]) -> str:
    """The id of a request that failed."""
    async with await request(f"{gateway.url}/chat", method="POST", headers=headers, body={"message": "hi"}) as answer:
        assert answer.status == 404, await answer.body()
        return answer.headers["x-request-id"]


async def ask(gateway: Serving, query: str, headers: Mapping[str, str] = KEYS["anna"]) -> tuple[int, Any]:
    async with await request(f"{gateway.url}/page/failure?{query}", headers=headers) as answer:
        return answer.status, await answer.json()


async def test_who_runs_it_is_shown_what_failed(gateway: Serving) -> None:
    request_id = await fail(gateway)
    status, told = await ask(gateway, f"request={request_id}")
    assert status == 200
    assert (told["kind"], told["upstream"], told["status"]) == ("stream", "llm", 404)
    assert (told["request_id"], told["url"].rpartition("/v1")[2]) == (request_id, "/chat/completions")
    assert "detail" not in told


async def test_stream_that_broke_off_is_found_by_its_id() -> None:
    script: list[Step] = [sse_head(), openai_delta("half"), Reset()]
    async with ScriptedUpstream(script) as upstream, serving(config(upstream.url)) as gateway:
        async with await request(f"{gateway.url}/chat?message=hi", headers=KEYS["anna"] | EVENTS) as answer:
            await answer.body()
            stream_id = answer.headers["x-stream-id"]
        assert (await ask(gateway, f"stream={stream_id}"))[1]["code"] == "upstream_cut"
        assert (await ask(gateway, f"stream={stream_id}", KEYS["bert"]))[0] == 404


async def test_others_are_shown_nothing(gateway: Serving) -> None:
    request_id = await fail(gateway)
    nowhere = await ask(gateway, "request=unknown")
    for headers in (
        KEYS["bert"],
        KEYS["anna"] | {"X-Forwarded-For": "192.0.2.1"},
        KEYS["anna"] | {"Forwarded": "for=192.0.2.1"},
        KEYS["anna"] | {"Host": "gateway.example.com"},
        KEYS["anna"] | {"Origin": "http://evil.example"},
        KEYS["anna"] | {"Sec-Fetch-Site": "cross-site"},
        {"Via": "1.1 proxy"},
    ):
        status, told = await ask(gateway, f"request={request_id}", headers)
        assert (status, told | {"instance": ""}) == (404, nowhere[1] | {"instance": ""}), headers
    assert (await ask(gateway, "request="))[0] == (await ask(gateway, ""))[0] == 404


async def test_who_has_no_key_is_asked_for_one(gateway: Serving) -> None:
    assert (await ask(gateway, f"request={await fail(gateway)}", {}))[0] == 401


async def test_gateway_without_a_chat_page_has_no_such_path() -> None:
    async with serving(config("http://127.0.0.1:9") | {"server": {"demo_page": False}}) as gateway:
        assert (await ask(gateway, "request=x"))[0] == 404


@pytest.mark.parametrize(
    ("peer", "headers", "local"),
    [
        ("127.0.0.1", {"Host": "127.0.0.1:8080"}, True),
        ("127.0.0.5", {"host": "localhost"}, True),
        ("::1", {"Host": "[::1]:8080"}, True),
        ("::ffff:127.0.0.1", {"Host": "localhost"}, True),
        ("192.0.2.1", {"Host": "127.0.0.1"}, False),
        ("::ffff:192.0.2.1", {"Host": "localhost"}, False),
        ("", {"Host": "localhost"}, False),
        ("127.0.0.1", {"Host": "localhost", "x-forwarded-proto": "https"}, False),
        ("127.0.0.1", {"Host": "localhost", "X-Real-IP": "192.0.2.1"}, False),
        ("127.0.0.1", {"Host": "evil.example"}, False),
        ("127.0.0.1", {"Host": "192.0.2.1:8080"}, False),
        ("127.0.0.1", {"Host": "[::ffff:192.0.2.1]"}, False),
        ("127.0.0.1", {"Host": "localhost", "X-Forwarded": "for=192.0.2.1"}, False),
        ("127.0.0.1", {"Host": "localhost", "X-Cluster-Client-IP": "192.0.2.1"}, False),
        ("127.0.0.1", {"Host": "localhost", "X-Original-Forwarded-For": "192.0.2.1"}, False),
        ("127.0.0.1", {"Host": "localhost", "X-Envoy-External-Address": "192.0.2.1"}, False),
        ("127.0.0.1", {"Host": "localhost", "CF-Ray": "1"}, False),
        ("127.0.0.1", {"Host": "localhost", "X-Requested-With": "fetch", "X-Request-Id": "1"}, True),
    ],
)
def test_browser_on_this_machine_is_told_from_others(peer: str, headers: dict[str, str], local: bool) -> None:
    assert is_local(peer, CIMultiDict(headers)) is local


def test_connection_of_a_trusted_proxy_is_none_of_this_machine() -> None:
    proxies = [ip_network("10.0.0.0/8"), ip_network("127.0.0.1")]
    assert is_local("127.0.0.1", {"Host": "localhost"}, proxies[:1])
    assert not is_local("127.0.0.1", {"Host": "localhost"}, proxies)
