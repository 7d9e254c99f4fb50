"""Forward authentication: the application's bytes in, and what becomes of requests and streams; contract section 5."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio
from multidict import CIMultiDict

from gateway.config import Config
from gateway.core.credential import Facts
from gateway.core.errors import GatewayError
from gateway.core.principal import Principal
from gateway.identity import forward as module
from gateway.identity.forward import Forward
from gateway.web.revocation import revoke
from tests.kit.sse_client import Response, request
from tests.kit.upstream import (
    Cut,
    Exchange,
    Hang,
    Reset,
    Script,
    ScriptedUpstream,
    Step,
    WaitFor,
    http_head,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, completion, parsed, setting, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = itertools.count()
ENDLESS: Script = [sse_head(), openai_delta("x"), Hang()]
PLAIN = openai_answer("x")
OWN = {"Sec-Fetch-Site": "same-origin"}
APP, EVIL = "https://app.example.com", "https://evil.example.com"
ROUTES = [{"path": "/chat"}, {"path": "/openai", "api": "openai"}, {"path": "/proxy", "api": "proxy"}]


def says(status: int = 200, body: Any = None, **headers: str) -> list[Step]:
    return [response(status, "" if body is None else msgspec.json.encode(body).decode(), **headers)]


def user(name: Any, **members: Any) -> list[Step]:
    return says(200, {"id": name} | members)


def cookie(value: str, name: str = "session") -> dict[str, str]:
    return {"Cookie": f"{name}={value}"} | OWN


class Scene(NamedTuple):
    """A gateway, the application that it asks, and the LLM."""

    gateway: Serving
    app: ScriptedUpstream
    llm: ScriptedUpstream
    answers: dict[str, Script]

    @property
    def questions(self) -> int:
        return len(self.app.exchanges)

    async def ask(self, headers: Mapping[str, str], path: str = "/openai", **options: Any) -> Response:
        body = completion("hi") if path.startswith("/openai") else None
        method = "POST" if body else "GET"
        return await request(f"{self.gateway.url}{path}", method=method, headers=headers, body=body, **options)

    async def status(self, headers: Mapping[str, str], path: str = "/openai") -> int:
        async with await self.ask(headers, path) as answer:
            await answer.body()
            return answer.status

    async def stream(self, headers: Mapping[str, str]) -> Response:
        return await self.ask(EVENTS | dict(headers), "/chat?message=hi")


@asynccontextmanager
async def scene(
    answer: Script, llm: Script = PLAIN, *, auth: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Scene]:
    """The application answers by the script, or as `answers` says for the value of the cookie `session`."""
    answers: dict[str, Script] = {}

    def script(exchange: Exchange) -> Sequence[Step]:
        value = exchange.headers.get("cookie", "").partition("=")[2]
        chosen = answers.get(value, answer)
        return chosen(exchange) if callable(chosen) else chosen

    async with ScriptedUpstream(script) as app, ScriptedUpstream(llm) as model:
        forward = {"url": f"{app.url}/whoami?for=gateway"} | settings
        config = setting(
            model.url,
            ROUTES,
            auth={"keys": [{"id": "web", "key": "k"}], "forward": forward} | dict(auth or {}),
            cors={"origins": [APP], "credentials": True},
        )
        async with serving(config) as gateway:
            yield Scene(gateway, app, model, answers)


# What the application is asked, and with what.


@pytest.mark.parametrize(
    ("headers", "path", "sent"),
    [
        (cookie("s.1"), "/openai", {"cookie": "session=s.1"}),
        ({"Cookie": "a=1; session=s; b=2", "Origin": APP}, "/openai", {"cookie": "session=s"}),
        ({"Cookie": "sid=t; a=1; session=s"} | OWN, "/openai", {"cookie": "session=s; sid=t"}),
        ({"Authorization": "Bearer abc"}, "/openai", {"authorization": "Bearer abc"}),
        ({"Authorization": "Token abc"}, "/openai", {"authorization": "Token abc"}),
        ({"Authorization": "Basic YTpi"} | OWN, "/openai", {"authorization": "Basic YTpi"}),
        ({"X-Team-Token": "abc", "X-Other": "x"}, "/openai", {"x-team-token": "abc"}),
        ({}, "/openai?token=a%2Fb", {"authorization": "Bearer a/b"}),
        ({"Authorization": "Bearer abc"}, "/openai?token=other", {"authorization": "Bearer abc"}),
        (cookie("s"), "/openai?token=abc", {"cookie": "session=s", "authorization": "Bearer abc"}),
        ({"Cookie": "session=s", "Authorization": "Bearer abc"}, "/openai", {"authorization": "Bearer abc"}),
        ({"Cookie": "session=s; session=t; sid=t"} | OWN, "/openai", {"cookie": "sid=t"}),
    ],
)
async def test_application_is_asked_with_what_is_named_and_nothing_else(
    headers: Mapping[str, str], path: str, sent: Mapping[str, str]
) -> None:
    cookies, named = ["session", "sid"], ["Authorization", "x-team-token"]
    async with scene(user("7"), cookies=cookies, headers=named) as stage:
        assert await stage.status(headers, path) == 200
        [question] = stage.app.exchanges
        assert (question.method, question.target, question.body) == ("GET", "/whoami?for=gateway", b"")
        hop = {"host": f"127.0.0.1:{stage.app.port}", "accept": "application/json", "accept-encoding": "identity"}
        assert question.headers == hop | dict(sent)


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({}, "/openai"),
        ({"Cookie": "other=s", "X-Other": "x"} | OWN, "/openai"),
        ({"Cookie": "session=s"}, "/openai"),
        ({"Cookie": "session=s", "Origin": EVIL}, "/openai"),
        ({"Cookie": "session=s", "Origin": "null", "Sec-Fetch-Site": "cross-site"}, "/openai"),
        ({"Cookie": "session=s", "Sec-Fetch-Site": "same-site"}, "/openai"),
        ({"Cookie": "session=s", "Sec-Fetch-Site": "none"}, "/openai"),
        ({"Cookie": "session=s", "Origin": f"{APP}\r\nOrigin: {EVIL}"}, "/openai"),
        ({"Cookie": "session=s", "Sec-Fetch-Site": "same-origin\r\nSec-Fetch-Site: cross-site"}, "/openai"),
        ({"Cookie": "session=s; session=s"} | OWN, "/openai"),
        ({"Cookie": "session=s\r\nCookie: session=t"} | OWN, "/openai"),
        ({"Cookie": 'a="x; session=s; b=y"'} | OWN, "/openai"),
        ({"Cookie": "session="} | OWN, "/openai"),
        ({"Cookie": "session=" + "s" * 4097} | OWN, "/openai"),
        ({"Authorization": "Basic YTpi"}, "/openai"),
        ({"Authorization": "negotiate YTpi", "Origin": EVIL}, "/openai"),
        ({"Authorization": "Bearer a\r\nAuthorization: Bearer b"}, "/openai"),
        ({"Authorization": "Bearer \xff"}, "/openai"),
        ({}, "/openai?token=a%0D%0AX-Admin:%20yes"),
        ({}, "/openai?token=%E5%AF%86"),
        ({"Authorization": "Bearer " + "x" * 4097}, "/openai"),
    ],
)
@pytest.mark.parametrize("anonymous", [False, True])
async def test_request_without_what_counts_asks_nothing(
    everybody: tuple[Scene, Scene], headers: Mapping[str, str], path: str, anonymous: bool
) -> None:
    """What was tried and does not count is 401 also where nothing is needed."""
    stage = everybody[anonymous]
    before = stage.questions
    tried = any(word in f"{headers}{path}" for word in ("session", "Authorization", "token"))
    assert await stage.status(headers, path) == (200 if anonymous and not tried else 401)
    assert stage.questions == before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everybody() -> AsyncIterator[tuple[Scene, Scene]]:
    """Gateways whose application knows everybody: one that needs a credential, one that needs none."""
    async with scene(user("7"), timeout="5s") as one, scene(user("7"), timeout="5s", auth={"anonymous": True}) as other:
        yield one, other


async def test_keys_are_known_without_a_question(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    before = stage.questions
    assert await stage.status({"Authorization": "Bearer k"} | cookie("never-asked")) == 200
    assert await stage.status({}, "/openai?token=k") == 200
    assert stage.questions == before


async def test_preflight_and_public_paths_ask_nothing(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    before = stage.questions
    assert await stage.status(cookie("never-asked"), "/client.js") == 200
    assert stage.questions == before


@pytest.mark.parametrize(
    "line", ["a=1; session=%s; b=2", "a=1; b=2; session=%s; session=%s", "a=1; b=2\r\nCookie: session=%s"]
)
async def test_nothing_that_the_application_is_asked_with_reaches_an_upstream(line: str) -> None:
    async with scene(user("7"), headers=["X-Team-Token"]) as stage:
        secret = "s3cret-cookie"
        headers = {"Cookie": line.replace("%s", secret), "X-Team-Token": "s3cret-header", "X-Kept": "yes"} | OWN
        headers["Authorization"] = "Bearer s3cret-bearer"
        assert await stage.status(headers, "/proxy?token=s3cret-query&kept=yes") == 200
        [exchange] = stage.llm.exchanges
        head = exchange.head.decode()
        assert "s3cret" not in head
        assert (exchange.headers["cookie"], exchange.headers["x-kept"], exchange.target) == (
            "a=1; b=2",
            "yes",
            "/?kept=yes",
        )


# What it answers.

LONG = "x" * 256
GOOD: dict[str, tuple[Sequence[Step], tuple[str, str, Set[str]]]] = {
    "id alone": (user("7"), ("7", "default", {"stream"})),
    "all": (user("a@b", plan="pro", scopes=["stream", "admin"], expires_in=3600), ("a@b", "pro", {"stream", "admin"})),
    "nulls": (user("7", plan=None, scopes=None, expires_in=None), ("7", "default", {"stream"})),
    "scopes as text": (user("7", scopes="openid stream  publish"), ("7", "default", {"stream", "publish"})),
    "no scopes": (user("7", scopes=[]), ("7", "default", set())),
    "unicode": (user("\u738b\u5c0f\u660e \U0001f600"), ("\u738b\u5c0f\u660e \U0001f600", "default", {"stream"})),
    "longest": (user(LONG, more={"a": [1]}), (LONG, "default", {"stream"})),
    "huge lifetime": (user("7", expires_in=10**18), ("7", "default", {"stream"})),
    "json as text": ([response(200, '{"id": "7"}', "text/plain")], ("7", "default", {"stream"})),
    "headers": (says(200, None, X_User="7", X_Plan="pro"), ("7", "pro", {"stream"})),
    "headers and a page": ([response(200, "<html>", "text/html", X_User="7")], ("7", "default", {"stream"})),
    "headers in UTF-8": ([response(200, "", X_User="\u738b")], ("\u738b", "default", {"stream"})),
}


@pytest.mark.parametrize("case", GOOD)
async def test_user_is_who_the_application_says(everybody: tuple[Scene, Scene], case: str) -> None:
    stage, _ = everybody
    stage.answers[value := fresh()], (name, plan, scopes) = GOOD[case]
    principal = await known(verifier(stage), value)
    assert principal is not None
    assert (str(principal), principal.plan, principal.scopes) == (f"user:{name}", plan, scopes)
    assert (principal.kind, principal.owner, principal.anonymous) == ("user", f"user:{name}", False)
    assert 0 < (principal.expires or 0) - time.time() <= 30


NOBODY: dict[str, Sequence[Step]] = {
    "401": says(401, {"id": "7"}),
    "403": says(403, None, X_User="7"),
    "over": user("7", expires_in=0),
}
BAD: dict[str, Sequence[Step]] = {
    "login page": says(302, None, Location="/login"),
    "redirect with a user": says(307, {"id": "7"}, Location="/whoami/", X_User="7"),
    "page": [response(200, "<html>please log in</html>", "text/html")],
    "empty": says(200),
    "201": says(201, {"id": "7"}),
    "204": says(204, None, X_User="7"),
    "404": says(404, {"id": "7"}),
    "429": says(429, {"id": "7"}),
    "500": says(500, {"id": "7"}, X_User="7"),
    "503": says(503),
    "reset": [Reset()],
    "hung up": [Cut()],
    "reset in the head": [b"HTTP/1.1 200 OK\r\nContent-", Reset()],
    "cut body": [http_head(200, "application/json", Content_Length="99") + b'{"id": "7"}', Cut()],
    "silent": [Hang()],
    "silent body": [http_head(200, "application/json", Content_Length="99") + b'{"id"', Hang()],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n", Cut()],
    "huge head": [http_head(200, "application/json", X_User="7", X_Filler="x" * 9000), Cut()],
    "no id": says(200, {"user": "7"}),
    "empty id": user(""),
    "blank id": user(" "),
    "padded id": user("7 "),
    "number": user(7),
    "null": user(None),
    "true": user(True),
    "list": user(["7"]),
    "too long": user(LONG + "x"),
    "newline": user("a\nb"),
    "NUL": user("a\x00"),
    "escape": user("a\x1b[0m"),
    "C1": user("a\x85"),
    "direction": user("a\u202eb"),
    "line separator": user("a\u2028b"),
    "half a pair": [response(200, '{"id": "\\ud800"}')],
    "plan": user("7", plan=1),
    "scopes": user("7", scopes=5),
    "scope": user("7", scopes=[5]),
    "mapping of scopes": user("7", scopes={"stream": True}),
    "negative": user("7", expires_in=-1),
    "lifetime as text": user("7", expires_in="60"),
    "lifetime true": user("7", expires_in=True),
    "endless lifetime": [response(200, '{"id": "7", "expires_in": 1e999}')],
    "no object": says(200, ["7"]),
    "no JSON": [response(200, '{"id": "7"')],
    "deep": [response(200, "[" * 30_000)],
    "no UTF-8": [response(200, b'{"id": "\xff"}')],
    "large": user("7", more="x" * 70_000),
    "empty header": says(200, {"id": "7"}, X_User=""),
    "two headers": [http_head(200, "text/plain", X_User="7\r\nX-User: 8", Content_Length="0")],
    "bytes in a header": [http_head(200).replace(b"\r\n\r\n", b"\r\nX-User: \xff\r\nContent-Length: 0\r\n\r\n")],
    "unasked 101": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\nX-User: 7\r\n\r\n"],
}


@pytest.mark.parametrize("case", NOBODY)
@pytest.mark.parametrize("anonymous", [False, True])
async def test_refused_client_is_401(everybody: tuple[Scene, Scene], case: str, anonymous: bool) -> None:
    stage = everybody[anonymous]
    stage.answers[value := fresh()] = NOBODY[case]
    statuses = [await stage.status(cookie(value), path) for path in ("/openai", "/chat?message=x", "/proxy")]
    assert statuses == [401, 401, 401]
    asked = [exchange for exchange in stage.app.exchanges if value in exchange.headers.get("cookie", "")]
    assert len(asked) == 1  # a refusal is kept for a moment


@pytest.mark.parametrize("case", BAD)
async def test_failing_application_lets_nobody_in_and_tells_them_to_come_back(
    everybody: tuple[Scene, Scene], impatient: tuple[Scene, Scene], case: str
) -> None:
    for stage in impatient if case.startswith("silent") else everybody:  # also where no credential is needed
        stage.answers[value := fresh()] = BAD[case]
        async with await stage.ask(cookie(value)) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
            assert (await answer.json())["error"]["code"] == "auth_unavailable"


async def test_failure_is_not_kept(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    stage.answers[value := fresh()] = BAD["500"]
    assert await stage.status(cookie(value)) == 503
    stage.answers[value] = user("7")
    assert await stage.status(cookie(value)) == 200


async def test_eventsource_is_told_when_to_come_back(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    stage.answers[value := fresh()] = BAD["500"]
    async with await stage.stream(cookie(value)) as answer:
        assert answer.status == 200
        body = await answer.body()
    [error] = parsed(body)
    assert (error.type, error.json()["code"], error.json()["retryable"]) == ("error", "auth_unavailable", True)
    assert body.startswith(b"retry: ")


async def test_answer_of_a_gigabyte_is_not_read(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    piece = b"x" * (1 << 20)
    stage.answers[value := fresh()] = [http_head(200, "application/json"), *[piece] * 1000]
    forward = verifier(stage)
    with pytest.raises(GatewayError) as refused:  # at its bound, and not when its time is over
        await known(forward, value)
    assert "a body of more than" in (refused.value.detail or "")
    async with asyncio.timeout(10):
        await stage.app.exchanges[-1].finished.wait()
    assert stage.app.exchanges[-1].closed.is_set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient() -> AsyncIterator[tuple[Scene, Scene]]:
    """Like `everybody`, with little time for an answer."""
    async with (
        scene(user("7"), timeout="500ms") as one,
        scene(user("7"), timeout="500ms", auth={"anonymous": True}) as other,
    ):
        yield one, other


# Questions: how many, and what others notice of them.


async def test_a_hundred_requests_with_one_cookie_are_one_question(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    go, value = asyncio.Event(), fresh()
    stage.answers[value] = [WaitFor(go), *user("7")]
    verdicts = [ask(verifier(stage), value, address=f"192.0.2.{n}") for n in range(100)]
    waiting = [asyncio.ensure_future(verdict) for verdict in verdicts if not isinstance(verdict, Principal | None)]
    before = stage.questions
    await stage.app.exchange(before)
    waiting[0].cancel()  # a client that leaves takes the answer from nobody
    go.set()
    principals = await asyncio.gather(*waiting[1:])
    assert {str(principal) for principal in principals} == {"user:7"}
    assert (len(principals), stage.questions) == (99, before + 1)
    assert isinstance(ask(verifier(stage), value), Principal)  # known by now


async def test_answer_counts_while_the_application_is_away(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    value = fresh()
    assert await stage.status(cookie(value)) == 200
    stage.answers[value] = BAD["500"]
    before = stage.questions
    assert [await stage.status(cookie(value)) for _ in range(3)] == [200, 200, 200]
    assert stage.questions == before


async def test_other_credentials_of_one_user_are_asked_about_for_themselves(everybody: tuple[Scene, Scene]) -> None:
    stage, _ = everybody
    one, other = fresh(), fresh()
    stage.answers[other] = NOBODY["401"]
    assert [await stage.status(cookie(value)) for value in (one, other, one)] == [200, 401, 200]
    both = cookie(one) | {"Authorization": "Bearer x"}
    before = stage.questions
    assert await stage.status(both) == 200
    assert stage.questions == before + 1


async def test_answer_counts_no_longer_than_it_says() -> None:
    async with scene(user("7", expires_in=0.2)) as stage, asyncio.timeout(10):
        while stage.questions < 2:
            assert await known(verifier(stage), "s") is not None
            await asyncio.sleep(0.02)


async def test_flood_of_bad_cookies_is_bounded_and_leaves_room_for_others() -> None:
    go = asyncio.Event()
    async with scene([WaitFor(go), *says(401)], timeout="5s") as stage:
        stage.answers["good"] = [WaitFor(go), *user("7")]
        forward = verifier(stage)
        flood, turned_away = flooded(forward, 300, "192.0.2.1")
        assert (len(flood), turned_away) == (module.MAX_OF_ADDRESS, 300 - module.MAX_OF_ADDRESS)
        good = asyncio.ensure_future(known(forward, "good", "203.0.113.1"))
        await stage.app.exchange(module.AT_ONCE - 1)
        more = [flooded(forward, 100, f"198.51.100.{n}")[0] for n in range(20)]
        assert sum(map(len, more), len(flood)) + 1 <= module.MAX_WAITING
        assert (stage.questions, stage.app.connections) == (module.AT_ONCE, module.AT_ONCE)
        go.set()
        assert str(await good) == "user:7"
        assert set(await asyncio.gather(*flood, *itertools.chain(*more))) == {None}
        assert stage.app.connections <= 2 * module.AT_ONCE + stage.questions


def flooded(forward: Forward, count: int, address: str) -> tuple[list[asyncio.Future[Any]], int]:
    """What is waited for after so many requests with cookies that nobody has, and how many were turned away."""
    waiting: list[asyncio.Future[Any]] = []
    for _ in range(count):
        with suppress(GatewayError):
            verdict = ask(forward, fresh(), address=address)
            assert not isinstance(verdict, Principal | None)
            waiting.append(asyncio.ensure_future(verdict))
    return waiting, count - len(waiting)


async def test_answers_are_kept_in_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    async with scene(user("7")) as stage:
        stage.answers.update({f"bad{n}": says(401) for n in range(9)})
        forward = verifier(stage)
        for n in range(9):
            await known(forward, f"good{n}")
            await known(forward, f"bad{n}")
            await known(forward, "good0")  # used, so kept
        assert stage.questions == 18
        await known(forward, "good8")
        assert stage.questions == 18
        await known(forward, "good1")
        assert stage.questions == 19


def verifier(stage: Scene) -> Forward:
    [*_, forward] = stage.gateway.app.gateway.snapshot.verifiers
    assert isinstance(forward, Forward)
    return forward


def ask(forward: Forward, value: str, address: str = "192.0.2.1") -> Principal | Awaitable[Principal | None] | None:
    """The verdict about a request with this cookie."""
    headers = CIMultiDict(cookie(value))
    return forward.verify(None, Facts(address, headers, {}, {}), time.time())


async def known(forward: Forward, value: str, address: str = "192.0.2.1") -> Principal | None:
    verdict = ask(forward, value, address)
    return verdict if isinstance(verdict, Principal | None) else await verdict


def fresh() -> str:
    """The value of a cookie that no request had before."""
    return f"fresh{next(NUMBERS)}"


# Streams that run on.


async def test_stream_runs_on_while_the_session_is_good_and_ends_after_the_logout() -> None:
    """C9."""
    async with scene(user("7"), ENDLESS, ttl="2s") as stage, await stage.stream(cookie("s")) as answer:
        async with asyncio.timeout(20):
            await stage.app.exchange(3)  # asked every half of the ttl, so it is older than the ttl
            assert len(stage.gateway.app.gateway.engine.running) == 1
            stage.answers["s"] = says(401)
            last = (await whole(answer))[-1]
        assert (last.type, last.json()["code"]) == ("error", "auth_expired")
        assert stage.questions in (5, 6)
        assert await stage.status(cookie("s")) == 401
        assert not verifier(stage).watching


async def test_streams_of_one_session_share_their_questions() -> None:
    go = asyncio.Event()
    script = [sse_head(), openai_delta("x"), WaitFor(go), *openai_answer("y")[1:]]
    async with scene(user("7"), script, ttl="2s") as stage:
        streams = [await stage.stream(cookie("s")) for _ in range(5)]
        async with asyncio.timeout(20):
            await stage.app.exchange(3)
        assert stage.questions == 4
        assert len(stage.gateway.app.gateway.engine.running) == 5
        go.set()
        assert {(await whole(answer))[-1].type for answer in streams} == {"done"}
        assert not verifier(stage).watching


@pytest.mark.parametrize("case", ["500", "reset", "silent", "login page"])
async def test_stream_ends_when_the_application_gives_no_answer_for_the_whole_ttl(case: str) -> None:
    async with scene(user("7"), ENDLESS, ttl="1s", timeout="5s") as stage, await stage.stream(cookie("s")) as answer:
        stage.answers["s"] = BAD[case]
        assert (await whole(answer))[-1].json()["code"] == "auth_expired"
        assert 2 <= stage.questions <= 8  # with a pause between them
        assert not verifier(stage).watching


@pytest.mark.parametrize("then", [user("8"), user("7", scopes=["publish"]), user("7", expires_in=0), says(403)])
async def test_stream_ends_when_its_session_is_somebody_elses_or_may_do_less(then: Sequence[Step]) -> None:
    async with scene(user("7"), ENDLESS, ttl="1s", timeout="5s") as stage, await stage.stream(cookie("s")) as answer:
        stage.answers["s"] = then
        assert (await whole(answer))[-1].json()["code"] == "auth_expired"
        assert not verifier(stage).watching


async def test_stream_outlasts_a_short_failure_of_the_application() -> None:
    answers = iter([user("7"), BAD["500"], BAD["reset"]])
    script: Script = lambda _: next(answers, user("7"))  # noqa: E731
    async with scene(script, ENDLESS, ttl="2s") as stage, await stage.stream(cookie("s")):
        await stage.app.exchange(4)
        assert len(stage.gateway.app.gateway.engine.running) == 1


async def test_application_is_asked_no_more_when_the_last_stream_has_ended() -> None:
    async with scene(user("7"), ttl="1s") as stage:
        await whole(await stage.stream(cookie("s")))
        forward = verifier(stage)
        assert (forward.watching, stage.questions) == (False, 1)


async def test_request_that_takes_longer_than_its_answer_counts_is_asked_about_at_once() -> None:
    async with scene(user("7", expires_in=0.1), ENDLESS) as stage:
        principal = await known(verifier(stage), "s")
        assert principal is not None
        assert principal.assurance is not None
        assurance, stream = principal.assurance, Told()
        await asyncio.sleep(0.15)  # the body comes slowly
        assert assurance.left() == 2.0
        stage.answers["s"] = says(401)
        assurance.rely(stream)
        assert await asyncio.wait_for(stream.told.get(), 5) == 0.0
        assurance.leave(stream)


class Told:
    """Stands for a stream."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[float] = asyncio.Queue()

    def renew(self, seconds: float) -> None:
        self.told.put_nowait(seconds)


# A revocation, and a reload.


async def test_revoked_user_is_asked_about_again() -> None:
    """Whatever was said before is forgotten, and what is being said now is not remembered."""
    gate = asyncio.Event()
    async with scene(user("7"), ENDLESS) as stage, await stage.stream(cookie("s")) as answer:
        gateway, forward = stage.gateway.app.gateway, verifier(stage)
        stage.answers["other"] = user("8")
        assert await known(forward, "other") is not None
        stage.answers["late"] = [WaitFor(gate), *user("7")]
        late = asyncio.ensure_future(known(forward, "late"))
        await stage.app.exchange(2)
        assert (await revoke(gateway, "user:7"))[:2] == (1, 0)
        assert (await whole(answer))[-1].json()["code"] == "auth_expired"
        gate.set()
        assert await late is not None
        stage.answers["s"] = stage.answers["late"] = says(401)
        assert [await known(forward, value) for value in ("s", "late")] == [None, None]
        assert stage.questions == 5
        assert isinstance(ask(forward, "other"), Principal)  # without a question
        assert not forward._overtaken


async def test_reload_keeps_what_is_known_and_what_runs() -> None:
    async with scene(user("7"), ENDLESS) as stage, await stage.stream(cookie("s")) as answer:
        app, config = stage.gateway.app, stage.gateway.app.gateway.snapshot.config
        before = verifier(stage)
        await app.reload(config.model_copy(deep=True))
        assert verifier(stage) is before
        longer = changed(config, forward=config.auth.forward.model_copy(update={"ttl": 60.0}))  # type: ignore[union-attr]
        await app.reload(longer)
        assert (verifier(stage) is before, len(app.forwards), len(app.gateway.engine.running)) == (False, 2, 1)
        await app.reload(changed(config, forward=None))  # as with a key that is removed
        assert (await whole(answer))[-1].json()["code"] == "auth_expired"
        assert (app.forwards, await stage.status(cookie("s"))) == ([], 401)


def changed(config: Config, **auth: Any) -> Config:
    return config.model_copy(update={"auth": config.auth.model_copy(update=auth)})
