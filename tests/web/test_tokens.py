"""Signed tokens at the wire: who is let in, what the others are told, and how a stream ends with its token."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from gateway.config import Config
from tests.identity.tokens import AUDIENCE, ISSUER, SECRET, key_set, rsa, shared, token
from tests.kit.program import free_port
from tests.kit.sse_client import Response, request
from tests.kit.upstream import (
    Hang,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, completion, setting, text_of, whole

APP = "https://app.example.com"
ROUTES = [
    {"path": "/chat"},
    {"path": "/openai", "api": "openai"},
    {"path": "/proxy/{path}", "api": "proxy", "upstream": "events"},
]
ENTRY = {"issuer": ISSUER, "audience": AUDIENCE, "secret": SECRET, "algorithms": ["HS256"], "leeway": "0s"}


def configured(url: str, *entries: dict[str, Any]) -> dict[str, Any]:
    keys = [{"id": "web", "key": "web-key"}]
    return setting(url, ROUTES, auth={"keys": keys, "jwt": list(entries)}, cors={"origins": [APP], "credentials": True})


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


class Stage(NamedTuple):
    gateway: Serving
    upstream: ScriptedUpstream

    async def ask(self, text: str, path: str = "/chat?message=hi", **headers: str) -> Response:
        return await request(self.gateway.url + path, headers=EVENTS | bearer(text) | headers)

    async def status(self, text: str, path: str = "/chat?message=hi", **headers: str) -> int:
        async with await self.ask(text, path, **headers) as answer:
            await answer.body()
            return answer.status


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with ScriptedUpstream(openai_answer("x")) as upstream, serving(configured(upstream.url, ENTRY)) as gateway:
        yield Stage(gateway, upstream)


async def test_token_is_a_credential_wherever_one_may_be(stage: Stage) -> None:
    text, long = token(), token(groups="g" * 4500)
    for path, headers in (
        ("/chat?message=hi", bearer(text)),
        ("/chat?message=hi", bearer(long)),
        (f"/chat?message=hi&token={text}", {}),
        ("/chat?message=hi", {"Cookie": f"gateway_token={text}", "Origin": APP}),
        ("/chat?message=hi", bearer("web-key")),
    ):
        async with await request(stage.gateway.url + path, headers=EVENTS | headers) as answer:
            assert answer.status == 200
            await answer.body()
    assert not [exchange for exchange in stage.upstream.exchanges if text in exchange.head.decode()]


async def test_every_bad_token_is_answered_alike_and_logged_without_itself(stage: Stage) -> None:
    bad = {
        "expired": token(exp=int(time.time()) - 1),
        "invalid": token(aud="other"),
        "forged": token(shared("x" * 40)),
        "malformed": "a.b.c",
        "unknown": "web-kez",
    }
    answers, said = set(), []
    with capture_logs() as lines:
        for text in bad.values():
            async with await stage.ask(text, **{"X-Request-Id": "same"}) as answer:
                answers.add((answer.status, answer.headers["www-authenticate"], await answer.body()))
    assert len(answers) == 1
    said = [(line["reason"], line["detail"]) for line in lines if line["event"] == "refused"]
    assert said == [
        ("expired", "it has expired"),
        ("invalid", "it is for another audience"),
        ("invalid", "no key of its issuer made its signature"),
        ("invalid", "a part is no base64url"),
        ("unknown", None),
    ]
    for text in bad.values():
        assert text not in str(lines)
    metrics = stage.gateway.app.gateway.metrics.render().decode()
    for reason, count in (("expired", 1), ("invalid", 3), ("unknown", 1)):
        assert f'gateway_auth_failures_total{{reason="{reason}"}} {count}.0' in metrics
    assert not stage.upstream.exchanges


async def test_cookie_with_a_token_counts_from_allowed_pages_only(stage: Stage) -> None:
    cookie = {"Cookie": f"gateway_token={token()}"}
    for headers, status in (({}, 401), ({"Origin": "https://evil.example"}, 401), ({"Origin": APP}, 200)):
        async with await request(stage.gateway.url + "/chat?message=hi", headers=EVENTS | cookie | headers) as answer:
            await answer.body()
            assert answer.status == status


async def test_megabyte_of_token_costs_nothing(stage: Stage) -> None:
    huge = token() + "A" * 1_000_000
    async with await request(stage.gateway.url + f"/chat?message=hi&token={huge}", headers=EVENTS) as answer:
        assert answer.status in (400, 431)
    async with await stage.ask(huge) as answer:
        assert answer.status in (400, 431)
    body = {"message": "hi", "token": huge, "access_token": huge}
    async with await request(stage.gateway.url + "/chat", method="POST", body=body) as answer:
        assert answer.status == 401
    assert await stage.status(token()) == 200


async def test_first_credential_counts_and_a_second_changes_nothing(stage: Stage) -> None:
    good, bad = token(), token(aud="other")
    assert await stage.status(good, f"/chat?message=hi&token={bad}") == 200
    assert await stage.status(bad, f"/chat?message=hi&token={good}") == 401
    head = "GET /chat?message=hi HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nConnection: close\r\n"
    port = int(stage.gateway.url.rpartition(":")[2])
    for first, second in ((bad, good), (good, bad)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = f"Authorization: Bearer {first}\r\nAuthorization: Bearer {second}\r\n\r\n"
        writer.write((head + lines).encode())
        status = (await asyncio.wait_for(reader.readline(), 5)).split()[1]
        assert status == b"401"  # a proxy may have checked the other one
        writer.close()


async def test_scopes_of_a_token_decide(stage: Stage) -> None:
    assert [await stage.status(token(scope=scope)) for scope in ("stream", "publish", "openid", "")] == [
        200, 403, 403, 403,
    ]  # fmt: skip


async def test_two_issuers_subjects_do_not_read_one_anothers_streams(stage: Stage) -> None:
    async with await stage.ask(token()) as answer:
        path = f"/streams/{answer.headers['x-stream-id']}"
        await answer.body()
    assert [await stage.status(text, path) for text in (token(sub="bob"), "web-key", token())] == [404, 404, 200]


async def test_streams_of_every_kind_end_with_their_token() -> None:
    """C9, with a token."""
    script: list[Step] = [sse_head(), openai_delta("x"), Hang()]
    async with ScriptedUpstream(script) as upstream, serving(configured(upstream.url, ENTRY)) as gateway:
        expires = time.time() + 1.2
        text = token(exp=expires, iat=None)
        url, body = gateway.url, completion("hi", stream=True)
        answers = [
            await request(f"{url}/chat?message=hi", headers=EVENTS | bearer(text)),
            await request(f"{url}/openai", method="POST", headers=bearer(text), body=body),
            await request(f"{url}/proxy/x", headers=EVENTS | bearer(text)),
        ]
        for answer in answers:
            messages = await whole(answer)
            assert "auth_expired" in messages[-1].data
            assert sum("auth_expired" in message.data for message in messages) == 1
            assert time.time() >= expires
        for exchange in upstream.exchanges:
            await asyncio.wait_for(exchange.closed.wait(), 5)
        outcomes = [entry.outcome for entry in gateway.app.gateway.engine.ended.newest()]
        assert outcomes == ["auth_expired"] * 3


async def test_new_token_carries_the_answer_on_and_the_old_ones_reader_ends() -> None:
    """The reader with the old token is told that it expired; its answer goes on for the new one, and no longer."""
    more = asyncio.Event()
    script: list[Step] = [sse_head(), openai_delta("a"), WaitFor(more), openai_delta("b"), Hang()]
    async with ScriptedUpstream(script) as upstream, serving(configured(upstream.url, ENTRY)) as gateway:
        now, url = time.time(), f"{gateway.url}/chat?message=hi"
        old = await request(url, headers=EVENTS | bearer(token(exp=now + 1.5, iat=None)))
        async with old:
            messages = old.messages()
            cursor = [message async for message in _until(messages, "token")][-1].last_event_id
            new = await request(url, headers=EVENTS | bearer(token(exp=now + 3, iat=None)), last_event_id=cursor)
            # A second tab with a token that ends earlier does not take the answer from the first.
            tab = await request(url, headers=EVENTS | bearer(token(exp=now + 1.4, iat=None)), last_event_id=cursor)
            ended = [message async for message in messages]
        assert [json.loads(message.data)["code"] for message in ended] == ["auth_expired"]
        assert time.time() >= now + 1.5
        more.set()
        told = await whole(new)
        assert text_of(told) == "b"
        assert json.loads(told[-1].data)["code"] == "auth_expired"
        assert time.time() >= now + 3
        assert json.loads((await whole(tab))[-1].data)["code"] == "auth_expired"
        assert len(upstream.exchanges) == 1
        assert [entry.outcome for entry in gateway.app.gateway.engine.ended.newest()] == ["auth_expired"]


async def _until(messages: Any, kind: str) -> AsyncIterator[Any]:
    async for message in messages:
        yield message
        if message.type == kind:
            return


async def test_issuer_whose_keys_were_never_had_is_waited_for() -> None:
    """Clients are told to come back, never 401 and never let in; other credentials are not held up."""
    port = free_port()
    entry = {name: value for name, value in ENTRY.items() if name != "secret"}
    entry |= {"jwks_url": f"http://127.0.0.1:{port}/jwks.json", "algorithms": ["RS256"]}
    good, late = token(rsa(), "RS256"), token(rsa(), "RS256", exp=1)
    async with ScriptedUpstream(openai_answer("x")) as upstream, serving(configured(upstream.url, entry)) as gateway:
        stage = Stage(gateway, upstream)
        async with await stage.ask(good) as answer:
            assert answer.status == 200
            body = await answer.body()
            assert body.startswith(b"retry: ")
            assert b"overloaded" in body
        async with await request(f"{gateway.url}/openai", method="POST", headers=bearer(good), body="{}") as answer:
            assert (answer.status, int(answer.headers["retry-after"]) >= 1) == (503, True)
        assert [await stage.status(text) for text in (late, token(), "web-key")] == [401, 401, 200]
        assert len(upstream.exchanges) == 1
        async with ScriptedUpstream([response(200, key_set(rsa()))], port=port):
            [fetched] = gateway.app.tokens.fetched.values() if gateway.app.tokens else []
            async with asyncio.timeout(10):
                while fetched.keys is None:
                    await fetched._fetched.wait()
            assert await stage.status(good) == 200


async def test_reload_takes_an_issuer_away_and_keeps_one_that_did_not_change(stage: Stage) -> None:
    text, app = token(), stage.gateway.app
    before = app.tokens
    await app.reload(Config.model_validate(configured(stage.upstream.url, ENTRY)))
    assert app.tokens is before
    other = {**ENTRY, "issuer": "https://other.example"}
    await app.reload(Config.model_validate(configured(stage.upstream.url, other)))
    assert [await stage.status(given) for given in (text, token(iss="https://other.example"))] == [401, 200]
    await app.reload(Config.model_validate(configured(stage.upstream.url)))
    assert [await stage.status(given) for given in (text, "web-key")] == [401, 200]
    assert app.tokens is None


NEIGHBOUR = f"{ISSUER}:8443"
"""An issuer whose name begins like the other's."""


@pytest.mark.parametrize("then", ["removed", "another secret", "another audience"])
async def test_reload_ends_what_tokens_of_a_removed_issuer_began(then: str) -> None:
    """Streams, tickets, and requests whose body has not come yet; and nobody else's."""
    other = {**ENTRY, "issuer": NEIGHBOUR}
    changed = {
        "removed": [],
        "another secret": [{**ENTRY, "secret": "y" * 40}],
        "another audience": [{**ENTRY, "audience": "another"}],
    }[then]
    async with ScriptedUpstream([sse_head(), openai_delta("x"), Hang()]) as upstream:
        config = configured(upstream.url, ENTRY, other)
        config["auth"]["tickets"] = {"ttl": "1h"}
        async with serving(config) as gateway:
            stage = Stage(gateway, upstream)
            mine, theirs = await stage.ask(token()), await stage.ask(token(iss=NEIGHBOUR))
            async with await request(f"{gateway.url}/tickets", method="POST", headers=bearer(token())) as answer:
                ticket = (await answer.json())["ticket"]
            began = gateway.app.gateway.clock.now()
            kept = [*changed, {**other, "algorithms": ["HS256", "HS384"]}]
            auth = config["auth"] | {"jwt": kept}
            await gateway.app.reload(Config.model_validate(config | {"auth": auth}))
            assert (await whole(mine))[-1].json()["code"] == "auth_expired"
            async with await request(f"{gateway.url}/chat?message=hi&ticket={ticket}") as answer:
                assert answer.status == 401
            revoked, subject = gateway.app.gateway.revoked, "alice"
            assert revoked.since(f"jwt:{ISSUER}:{subject}", began)
            assert [str(each.account.facts["principal"]) for each in gateway.app.gateway.engine.running.values()] == [
                f"jwt:{NEIGHBOUR}:{subject}"
            ]
            await theirs.close()


async def test_reload_that_changes_less_ends_nothing(stage: Stage) -> None:
    app = stage.gateway.app
    async with ScriptedUpstream([sse_head(), openai_delta("x"), Hang()]) as upstream:
        await app.reload(Config.model_validate(configured(upstream.url, ENTRY)))
        async with await stage.ask(token()):
            more = {**ENTRY, "algorithms": ["HS256", "HS384"], "plan_claim": None, "leeway": "30s"}
            await app.reload(Config.model_validate(configured(upstream.url, more)))
            assert len(app.gateway.engine.running) == 1
