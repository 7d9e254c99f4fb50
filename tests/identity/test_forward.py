"""Forward authentication: the application's bytes in, and what becomes of requests and streams; contract section 5."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.kit.sse_client import Response, request
from tests.kit.upstream import (
    Exchange,
    Script,
    ScriptedUpstream,
    Step,
    openai_answer,
    response,
)
from tests.seams.serving import Serving, serving
from tests.web.stage import EVENTS, completion, setting

OWN = {"Sec-Fetch-Site": "same-origin"}
APP, EVIL = "https://app.example.com", "https://evil.example.com"
PLAIN = openai_answer("x")
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
    named = {"cookies": ["session", "sid"], "headers": ["Authorization", "x-team-token"]}
    async with scene(user("7"), **named) as stage:
        assert await stage.status(headers, path) == 200
        [question] = stage.app.exchanges
        assert (question.method, question.target, question.body) == ("GET", "/whoami?for=gateway", b"")
        hop = {"host": f"127.0.0.1:{stage.app.port}", "accept": "application/json", "accept-encoding": "identity"}
        assert question.headers == hop | dict(sent)
