"""Revocation and `server.admin_auth`, contract sections 5 and 6: one gateway, whose configuration changes under it."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import Response, request
from tests.kit.upstream import Hang, Step, openai_delta, sse_head
from tests.web.stage import EVENTS, Stage, setting, staged, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS: list[Step] = [sse_head(), openai_delta("x"), Hang()]
ADMIN = {"Authorization": "Bearer admin-key"}
KEYS: list[dict[str, Any]] = [
    {"id": "web", "key": "web-key"},
    {"id": "ännå:b@c", "key": "odd-key"},
    {"id": "anonymous", "key": "anonymous-key"},
    {"id": "kept", "key": "kept-key"},
    {"id": "changed", "key": "changed-key"},
    {"id": "narrowed", "key": "narrowed-key"},
    {"id": "ops", "key": "admin-key", "scopes": ["admin"]},
]
SECTIONS: dict[str, Any] = {"auth": {"anonymous": True, "keys": KEYS, "tickets": {"ttl": "1h"}}}
ROUTES = [{"path": "/chat"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES, **SECTIONS) as stage:
        yield stage


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key"} if name else {}


async def running(stage: Stage, name: str, **options: Any) -> Response:
    headers = EVENTS | ({} if options else bearer(name))
    answer = await stage.get("/chat", stage.plays(ENDLESS), headers=headers, **options)
    assert answer.status == 200
    return answer


async def ticket(stage: Stage, name: str) -> str:
    async with await request(stage.gateway.url + "/tickets", method="POST", headers=bearer(name)) as answer:
        text = (await answer.json())["ticket"]
        assert isinstance(text, str)
        return text


async def delete(stage: Stage, principal: str) -> tuple[int, Any]:
    async with await request(f"{stage.gateway.admin}/principals/{principal}", method="DELETE") as answer:
        return answer.status, await answer.json() if answer.status == 200 else None


async def last(answer: Response) -> tuple[str, str]:
    message = (await whole(answer))[-1]
    return message.type, message.json()["code"]


@pytest.mark.parametrize(
    ("name", "principal", "spelled"),
    [
        ("web", "key:web", "key:web"),
        ("web", "key:web", "key%3Aweb"),
        ("odd", "key:ännå:b@c", "key:%C3%A4nn%C3%A5%3Ab%40c"),
        ("odd", "key:ännå:b@c", "key:%c3%a4nn%c3%a5:b@c"),
        ("", "addr:127.0.0.1", "addr:127.0.0.1"),
    ],
)
async def test_operator_revokes_a_principal(stage: Stage, name: str, principal: str, spelled: str) -> None:
    namesake, used, unused = await running(stage, "anonymous"), await ticket(stage, name), await ticket(stage, name)
    streams = [await running(stage, name), await running(stage, name, ticket=used)]
    reader = await stage.get(f"/streams/{streams[0].headers['x-stream-id']}", headers=EVENTS | bearer(name))
    status, ended = await asyncio.wait_for(delete(stage, spelled), 5)
    assert (status, ended) == (200, {"principal": principal, "streams": 2, "tickets": 2})
    assert {await last(answer) for answer in (*streams, reader)} == {("error", "auth_expired")}
    for text in (used, unused):
        async with await stage.get("/chat", "never asked", ticket=text) as answer:
            assert answer.status == 401
    assert await delete(stage, spelled) == (200, {"principal": principal, "streams": 0, "tickets": 0})
    await stage.gateway.logged("stream_end", stream_id=streams[0].headers["x-stream-id"], outcome="auth_expired")
    [stream] = await stage.admin("/streams")
    assert stream["principal"] == "key:anonymous"
    await namesake.close()
    assert await delete(stage, "key:anonymous") == (200, {"principal": "key:anonymous", "streams": 1, "tickets": 0})


@pytest.mark.parametrize(
    "spelled", ["jwt:https:%2F%2Fid.example.com%2F:a%20b%2Bc", "jwt:https://id.example.com/:a%20b+c"]
)
async def test_id_may_have_slashes_and_is_decoded_once(stage: Stage, spelled: str) -> None:
    principal = "jwt:https://id.example.com/:a b+c"
    assert await delete(stage, spelled) == (200, {"principal": principal, "streams": 0, "tickets": 0})
    assert (await delete(stage, "user:a%252Fb"))[1]["principal"] == "user:a%2Fb"


@pytest.mark.parametrize("spelled", ["", "web", ":web", "key:", "key", "%ff:x"])
async def test_what_is_no_principal_is_refused(stage: Stage, spelled: str) -> None:
    assert await delete(stage, spelled) == (400, None)


async def test_only_the_operator_revokes(stage: Stage) -> None:
    async with await request(f"{stage.gateway.admin}/principals/key:web") as answer:
        assert (answer.status, answer.headers["allow"]) == (405, "DELETE")
    for foreign in ({"Origin": "https://evil.example.com"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        async with await request(
            f"{stage.gateway.admin}/principals/key:web", method="DELETE", headers=foreign
        ) as answer:
            assert answer.status == 403
    async with await request(f"{stage.gateway.url}/principals/key:web", method="DELETE", headers=ADMIN) as answer:
        assert answer.status == 404


async def test_request_that_waited_for_its_body_starts_nothing_afterwards(stage: Stage) -> None:
    host, port = stage.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"message": "never asked"}'
    head = f"POST /chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer web-key\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert await delete(stage, "key:web") == (200, {"principal": "key:web", "streams": 0, "tickets": 0})
    writer.write(body)
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_scopes_decide_what_a_key_may_do(stage: Stage) -> None:
    for path, method in [("/chat", "GET"), ("/tickets", "POST"), (f"/streams/{'x' * 22}/stop", "POST")]:
        async with await request(stage.url(path), method=method, headers=ADMIN) as answer:
            assert answer.status == 403


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


COOKIE = {"Cookie": "gateway_token=admin-key"}
GUARDED = ["/", "/page/monitor.js", "/metrics", "/streams", "/failures", "/nothing"]


async def test_reload_ends_what_removed_keys_began_and_closes_the_admin_listener(stage: Stage) -> None:
    names = ["web", "changed", "narrowed", "kept", ""]
    streams = {name: await running(stage, name) for name in names}
    tickets = {name: await ticket(stage, name) for name in names}
    changed = [
        key
        | ({"key": "another-key"} if key["id"] == "changed" else {})
        | ({"scopes": ["publish"]} if key["id"] == "narrowed" else {})
        for key in KEYS
        if key["id"] != "web"
    ]
    auth = SECTIONS["auth"] | {"keys": changed, "anonymous": False}
    await stage.gateway.reload(setting(stage.upstream.url, ROUTES, auth=auth, server={"admin_auth": True}))
    for name in ("web", "changed", "narrowed"):
        assert await last(streams[name]) == ("error", "auth_expired")
        async with await stage.get("/chat", "never asked", ticket=tickets[name]) as answer:
            assert answer.status == 401
    async with await stage.get("/chat", "never asked", ticket=tickets[""]) as answer:
        assert answer.status == 401
    async with await request(f"{stage.gateway.admin}/streams", headers=ADMIN) as answer:
        assert sorted(stream["principal"] for stream in await answer.json()) == ["addr:127.0.0.1", "key:kept"]
    for name in ("kept", ""):
        await streams[name].close()

    wrong: list[tuple[Mapping[str, str], int]] = [
        ({}, 401),
        (bearer("nobody"), 401),
        (basic("x", "nobody"), 401),
        ({"Authorization": "Basic é"}, 401),
        (COOKIE, 401),
        (COOKIE | {"Origin": "https://evil.example.com"}, 401),
        (bearer("kept"), 403),
    ]
    for path in GUARDED:
        for headers, expected in wrong:
            async with await request(stage.gateway.admin + path, headers=headers) as answer:
                assert answer.status == expected, (path, headers)
                assert answer.headers.get("www-authenticate", "").startswith("Basic ") == (expected == 401)
    for path in ("/livez", "/readyz"):
        async with await request(stage.gateway.admin + path) as answer:
            assert answer.status == 200
    right = [ADMIN, basic("anyone", "admin-key"), basic("", "admin-key"), COOKIE | {"Sec-Fetch-Site": "same-origin"}]
    for path in GUARDED:
        for headers in right:
            async with await request(
                stage.gateway.admin + path, headers=headers | {"Host": "gw.example.com"}
            ) as answer:
                assert answer.status == (404 if path == "/nothing" else 200), (path, headers)
    async with await request(f"{stage.gateway.admin}/principals/key:kept", method="DELETE") as answer:
        assert answer.status == 401
    foreign = ADMIN | {"Sec-Fetch-Site": "cross-site"}
    async with await request(f"{stage.gateway.admin}/principals/key:kept", method="DELETE", headers=foreign) as answer:
        assert answer.status == 403
