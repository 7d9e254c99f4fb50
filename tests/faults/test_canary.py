"""No secret, prompt or answer is where it should not be (U10): canaries of every kind through one real gateway, through
one of several processes, and through `gateway check`.

Each kind of secret has a word of its own that occurs nowhere else. Requests of every kind carry them through success
and failure; then everything that the gateway said, to anybody, is searched for them.
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
import yaml

from tests.kit.program import Gateway, free_port, free_ports
from tests.kit.sse_client import Response, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    OPENAI_USAGE,
    Exchange,
    Hang,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    http_head,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Canaries(dict[str, str]):
    """A word for each name, made when it is first asked for."""

    def __missing__(self, name: str) -> str:
        self[name] = f"canary{os.urandom(9).hex()}"
        return self[name]


CLIENT = Canaries()
"""Credentials of clients, good and bad."""
PROVIDER = Canaries()
"""What the gateway proves itself with: keys, headers, queries and passwords of the configuration and environment."""
SAID = Canaries()
"""Prompts: whatever a client writes that is for the model alone."""
HEARD = Canaries()
"""Answers: whatever a model or a provider writes that is for the client alone."""
KINDS = {"credentials": CLIENT, "provider": PROVIDER, "prompts": SAID, "answers": HEARD}
EVENTS = {"Accept": "text/event-stream"}


def tool_call() -> bytes:
    call = {"index": 0, "id": "c", "function": {"name": "look_up", "arguments": json.dumps({"q": HEARD["tool"]})}}
    return chunk(openai_chunk({"tool_calls": [call]}))


def quoting(exchange: Exchange) -> str:
    """An error that says everything again that the provider was sent, as some do."""
    return f"{HEARD['error']} for {exchange.head.decode('latin-1')} {exchange.body.decode()}"


def play_path(exchange: Exchange) -> Sequence[Step] | None:
    """What is at a path that is no chat's."""
    if "/models" in exchange.target:  # `gateway check --ask`, which prints what a provider says
        return [response(401, json.dumps({"error": {"message": quoting(exchange)}}))]
    if "/moved" in exchange.target:
        return [response(302, "", Location=f"/elsewhere?{exchange.target.partition('?')[2]}")]
    if exchange.method == "HEAD":
        return [http_head(200, "text/html", Content_Length="0")]
    if exchange.method == "GET":
        return [sse_head(), chunk(f"data: {HEARD['event']}\n\n"), LAST_CHUNK]
    return None


def play(exchange: Exchange) -> Sequence[Step]:
    """What the first word of the last message asks for."""
    if script := play_path(exchange):
        return script
    asked = exchange.json()
    word = str(asked["messages"][-1]["content"]).split(" ")[0]
    error = {"error": {"message": quoting(exchange), "type": HEARD["type"]}}
    if status := {"bad": 400, "deny": 401, "busy": 429, "down": 500}.get(word):
        return [response(status, json.dumps(error))]
    if word == "page":
        return [response(200, f"<h1>{HEARD['page']}</h1>", "text/html")]
    thought, text = openai_delta(HEARD["thought"], "reasoning_content"), openai_delta(f"{HEARD['text']} ")
    if word == "cut":
        return [sse_head(), thought, text, Reset()]
    if word == "broken":
        return [sse_head(), text, chunk(f"data: {json.dumps(error)}\n\n"), LAST_CHUNK]
    if word == "garbage":
        return [sse_head(), chunk(f"data: {{{HEARD['garbage']}\n\n"), LAST_CHUNK]
    if word == "hang":
        return [sse_head(), text, Hang()]
    if not asked.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": HEARD["whole"]}, "finish_reason": "stop"}
        return [response(200, json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}))]
    return [sse_head(), thought, tool_call(), text, OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]


def play_application(exchange: Exchange) -> Sequence[Step]:
    """The team's own application, which knows one session cookie and fails at another."""
    if "whoami" in exchange.target and CLIENT["session"] in exchange.headers.get("cookie", ""):
        return [response(200, json.dumps({"id": "somebody", "plan": "default"}))]
    broken = CLIENT["broken session"] in exchange.headers.get("cookie", "")
    return [response(500 if broken else 401, quoting(exchange))]


def play_spare(exchange: Exchange) -> Sequence[Step]:
    """The spare provider always answers, and says at each path which models it has."""
    if "/models" in exchange.target:
        return [response(200, json.dumps({"data": [{"id": "m"}]}))]
    return [sse_head(), openai_delta(HEARD["spare"]), OPENAI_STOP, OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]


def token(name: str, **claims: Any) -> str:
    """A token of the issuer, which is a canary itself."""
    known = {"iss": "https://id.example", "aud": "chat", "sub": "somebody", "exp": int(time.time()) + 600}
    CLIENT[name] = jwt.encode(known | claims, PROVIDER["jwt secret"] * 2, "HS256")
    return CLIENT[name]


def config(main: str, spare: str, application: str, directory: Path) -> dict[str, Any]:
    for name in ("file-key", "spare-api-key"):
        secrets = PROVIDER if "api" in name else CLIENT
        (directory / name).write_text(secrets[name], encoding="utf-8")
    keys: list[dict[str, Any]] = [
        {"id": name, "key": CLIENT[name]} for name in ("header", "cookie", "query", "removed")
    ]
    keys += [{"id": "env", "key": "${CLIENT_KEY}"}, {"id": "file", "key": f"${{file:{directory}/file-key}}"}]
    keys += [{"id": "old", "key": CLIENT["old"], "expires": "2020-01-01"}]
    keys += [{"id": "ops", "key": CLIENT["ops"], "scopes": ["admin"]}]
    keys += [{"id": "poor", "key": CLIENT["poor"], "plan": "poor"}]
    target = {"url": f"{main}/v1", "query": {"team": PROVIDER["query"]}}
    told = {"headers": {"X-Team": PROVIDER["header"]}, "api_key": "${PROVIDER_KEY}", "retries": 1}
    upstreams: dict[str, Any] = {
        "main": {"dialect": "openai", "targets": [target], "fallback": ["spare"], "rescue": True} | told,
        "alone": {"dialect": "openai", "targets": [target]} | told,
        "spare": {
            "dialect": "openai",
            "targets": [{"url": f"{spare}/v1"}],
            "api_key": f"${{file:{directory}/spare-api-key}}",
        },
        "events": {"dialect": "sse", "targets": [{"url": main}], "api_key": PROVIDER["events"]},
    }
    for upstream in upstreams.values():
        upstream["breaker"] = {"failures": 1000}
    upstreams["main"]["hedge"] = "1s"
    chat = {"api": "chat", "model": "m", "system": SAID["system"], "history": {"turns": 5, "ttl": "1h"}}
    hmac = {"algorithms": ["HS256"], "secret": PROVIDER["jwt secret"] * 2}
    whole: dict[str, Any] = {
        "server": {"drain": "100ms"},
        "log": {"level": "debug"},
        "auth": {
            "keys": keys,
            "jwt": [{"issuer": "https://id.example", "audience": "chat"} | hmac],
            "forward": {"url": f"{application}/whoami?team={PROVIDER['application']}", "cookies": ["session"]},
            "tickets": {"ttl": "1m"},
        },
        "cors": {"origins": ["https://app.example.com"], "credentials": True},
        "plans": {
            "default": {"requests": None, "streams": None, "tokens": None},
            "poor": {"requests": "1/h", "streams": 1, "tokens": None},
        },
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"retry": "100ms", "on_disconnect": {"after": "0s"}, "commit_after": "50ms"},
        "timeouts": {"idle": "3s"},
        "upstreams": upstreams,
        "routes": [
            {"path": "/chat", "upstream": "main"} | chat,
            {"path": "/alone", "upstream": "alone"} | chat,
            {"path": "/v1/chat/completions", "api": "openai", "upstream": "alone"},
            {"path": "/legacy/{path}", "api": "proxy", "upstream": "events"},
        ],
    }
    return json.loads(json.dumps(whole))  # type: ignore[no-any-return]  # what two parts share would be an alias


BAD_FILE = """
auth:
  keys:
    - {id: a, sha256: SHA}
    - {id: b, key: [LIST]}
    - {id: c, key: {deep: DEEP}}
upstreams:
  main: {dialect: openai, api_key: {nested: NESTED}, targets: [{url: "http://user:PASSWORD@127.0.0.1:1/v1?k=QUERY"}]}
  more: {dialect: openai, headers: {X-Key: ["HEADER"]}, targets: [{url: "FTP://u:SCHEME@host", query: {k: ["QLIST"]}}]}
routes:
  - {path: /chat, api: chat, upstream: main, system: [SYSTEM]}
"""


def bad_file() -> str:
    """A configuration with a secret at each place that is refused."""
    text = BAD_FILE
    for place in ("SHA", "LIST", "DEEP", "NESTED", "PASSWORD", "QUERY", "HEADER", "SCHEME", "QLIST", "SYSTEM"):
        text = text.replace(place, PROVIDER[f"bad file {place}"])
    return text


@dataclass
class Scene:
    """What everybody was told.

    Attributes:
        answers: every answer to a client, its head and body, by what was asked.
        failed: those of them that are errors.
        told: everything else that the gateway said, by where.
        sent: every request to a provider, by the provider.
    """

    gateway: Gateway
    answers: dict[str, bytes] = field(default_factory=dict)
    failed: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, list[bytes]] = field(default_factory=dict)

    async def buy(self) -> str:
        """A ticket."""
        headers = {"Authorization": f"Bearer {CLIENT['header']}"}
        async with await request(f"{self.gateway.url}/tickets", method="POST", headers=headers) as answer:
            ticket: str = (await answer.json())["ticket"]
        number = sum(name.startswith("ticket") for name in CLIENT)
        CLIENT[f"ticket {number}"] = ticket
        return ticket

    async def ask(
        self,
        name: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = "header",
        method: str = "",
    ) -> None:
        """Send a request, with this key as a Bearer token, and keep its answer. A path behind @ is the admin's."""
        sent = {"Authorization": f"Bearer {CLIENT[key]}"} if key else {}
        base = self.gateway.admin if path.startswith("@") else self.gateway.url
        url, method = base + path.removeprefix("@"), method or ("GET" if body is None else "POST")
        async with await request(url, method=method, headers=sent | dict(headers or {}), body=body) as answer:
            await answer.body()
            self._keep(name, answer)

    def _keep(self, name: str, answer: Response) -> None:
        said = answer.head + b"\r\n\r\n" + bytes(answer.raw)
        self.answers[name] = said
        if answer.status >= 400:
            self.failed[name] = said


def completion(word: str, **fields: Any) -> dict[str, Any]:
    """A request for API clients with a canary in each part of it."""
    messages = [
        {"role": "system", "content": SAID["system message"]},
        {"role": "user", "content": SAID["earlier"]},
        {"role": "assistant", "content": SAID["earlier answer"]},
        {"role": "user", "content": f"{word} {SAID['prompt']}"},
    ]
    tool = {"name": "look_up", "description": SAID["description"], "parameters": {"title": SAID["parameter"]}}
    more = {
        "tools": [{"type": "function", "function": tool}],
        "user": SAID["user"],
        "metadata": {"a": SAID["metadata"]},
    }
    return {"model": "m", "messages": messages} | more | fields


async def identify(scene: Scene) -> None:
    """Tickets, tokens and sessions, good and bad, on a chat, a stream of events and a redirect."""
    ask, referer = scene.ask, {"Referer": f"https://app.example.com/?token={CLIENT['referer']}"}
    for where in ("chat", "legacy/events", "legacy/moved"):
        accept = {} if where == "legacy/moved" else EVENTS
        path = f"/{where}?message=ok" + (f"+{SAID['query']}" if accept else "")  # a redirect quotes its query
        ticket = await scene.buy()
        for time_ in ("first", "again"):
            await ask(f"{where} by a ticket, {time_}", f"{path}&ticket={ticket}", headers=accept, key=None)
        by_query = f"{path}&token={token(f'query token {where}')}"
        await ask(f"{where} by a token", by_query, headers=accept | referer, key=None)
        session = {"Cookie": f"a=b; session={CLIENT['session']}", "Sec-Fetch-Site": "same-origin"}
        await ask(f"{where} by a session", path, headers=accept | session, key=None)
        by_header = {"Authorization": f"Bearer {token(f'header token {where}')}"}
        await ask(f"{where} by a header", path, headers=accept | by_header | referer, key=None)
    for wrong in ({"exp": 1}, {"aud": SAID["audience"]}, {"iss": SAID["issuer"]}, {"sub": SAID["subject"] * 40}):
        await ask(f"token {list(wrong)}", f"/chat?token={token(f'bad token {list(wrong)}', **wrong)}", key=None)
    for name in ("unknown session", "broken session"):
        session = {"Cookie": f"session={CLIENT[name]}", "Sec-Fetch-Site": "same-origin"}
        await ask(name, "/chat?message=ok", headers=session, key=None)
    await ask("ticket", f"/chat?message=ok&ticket={CLIENT['wrong ticket']}", headers=EVENTS, key=None)
    await ask("ticket for", "/tickets", {"stream_id": SAID["stream id"]})


async def drive(scene: Scene) -> None:
    """Every kind of success and of failure."""
    ask = scene.ask
    trusted = EVENTS | {"Origin": "https://app.example.com"}
    for word in ("ok", "down", "cut", "hang", "bad", "deny", "busy", "broken", "garbage", "page"):
        for route in ("chat", "alone"):
            if (route, word) != ("alone", "hang"):
                question = {"message": f"{word} {SAID['message']}", "session_id": f"{route}-session"}
                await ask(f"{route} {word}", f"/{route}", question, headers=EVENTS)
        if word != "hang":
            await ask(f"openai {word} stream", "/v1/chat/completions", completion(word, stream=True))
            await ask(f"openai {word} whole", "/v1/chat/completions", completion(word))
    await ask("get", f"/chat?message=ok+{SAID['query']}&token={CLIENT['query']}", headers=EVENTS, key=None)
    cookie = {"Cookie": f"gateway_token={CLIENT['cookie']}; other={SAID['other cookie']}"}
    await ask("cookie", f"/chat?message=ok+{SAID['query']}", headers=trusted | cookie, key=None)
    await ask("proxy", f"/legacy/events?q={SAID['proxy query']}&token={CLIENT['query']}", headers=trusted, key=None)
    referer = {"Referer": f"https://app.example.com/?token={CLIENT['referer']}"}
    await ask("proxy header", f"/legacy/events?q={SAID['proxy query']}", headers=trusted | cookie | referer)
    for key in ("env", "file"):
        await ask(key, "/chat", {"message": f"ok {SAID['message']}"}, key=key)
    await identify(scene)

    for key in ("wrong", "old"):
        await ask(f"{key} header", "/chat", {"message": SAID["message"]}, key=key)
    await ask(
        "wrong cookie", "/chat", headers=trusted | {"Cookie": f"gateway_token={CLIENT['wrong cookie']}"}, key=None
    )
    await ask("wrong query", f"/chat?token={CLIENT['wrong query']}&message={SAID['query']}", headers=EVENTS, key=None)
    await ask("basic", "/chat", headers={"Authorization": f"Basic {CLIENT['basic']}"}, key=None)
    await ask("api key", "/v1/chat/completions", completion("ok"), headers={"X-Api-Key": CLIENT["api key"]}, key=None)
    await ask("failure", f"/page/failure?stream={CLIENT['unknown stream']}")
    for _ in range(2):
        await ask("limited", "/chat", {"message": f"ok {SAID['message']}"}, key="poor")

    await ask("cursor", f"/chat?message=ok+{SAID['query']}&last_event_id={CLIENT['cursor']}", headers=EVENTS)
    await ask("malformed", "/v1/chat/completions", f'{{"messages": [{{"content": "{SAID["malformed"]}"')
    await ask("digits", "/chat", f'{{"message": {SAID["digits"]}}}')
    await ask("types", "/chat", {"message": [SAID["list"]], "session_id": {"a": SAID["session object"]}})
    await ask("fields", "/v1/chat/completions", completion("ok", n=SAID["n"], stream=SAID["stream"]))
    await ask("role", "/v1/chat/completions", {"model": "m", "messages": [{"role": SAID["role"], "content": 1}]})
    await ask("session", "/chat", {"message": "ok", "session_id": SAID["session"] * 20})
    await ask("method", f"/chat?message={SAID['query']}&token={CLIENT['query']}", key=None, method="PATCH")
    await ask("path", f"/nowhere?message={SAID['query']}&token={CLIENT['query']}", key=None)

    await scene.gateway.reload(bad_file(), "reload_failed")
    config = scene.gateway.config
    kept = config | {"auth": {"keys": [key for key in config["auth"]["keys"] if key["id"] != "removed"]}}
    await ask("before", "/chat", {"message": f"ok {SAID['message']}"}, key="removed")
    await scene.gateway.reload(kept)
    await ask("after", "/chat", {"message": f"ok {SAID['message']}"}, key="removed")


async def probe(scene: Scene) -> None:
    """The other listener, where it asks for a credential: what it is not told, and what it answers to it."""
    ask = scene.ask
    cookie = {"Cookie": f"gateway_token={CLIENT['admin cookie']}"}
    basic = base64.b64encode(f"anyone:{CLIENT['admin password']}".encode()).decode()
    for path in ("@/metrics", "@/streams", "@/", f"@/nothing?key={CLIENT['admin query']}"):
        await ask(f"{path} wrong", path, key="admin wrong")
        await ask(f"{path} narrow", path, key="header")
        await ask(f"{path} cookie", path, headers=cookie | {"Sec-Fetch-Site": "same-origin"}, key=None)
        await ask(f"{path} basic", path, headers={"Authorization": f"Basic {basic}"}, key=None)
        await ask(f"{path} query", f"{path}?token={CLIENT['admin query']}", key=None)
        await ask(f"{path} right", path, key="ops")
    await ask("@no stream", f"@/streams/{CLIENT['no stream']}/stop", key="ops", method="POST")
    await ask("@no principal", f"@/principals/{CLIENT['no principal']}", key="ops", method="DELETE")
    for listener, url in (("web", scene.gateway.url), ("@admin", scene.gateway.admin)):
        host, port = url.removeprefix("http://").split(":")
        for broken in (b"X-A: \x00", b"no colon", b"X: " + b"y" * 70_000):
            reader, writer = await asyncio.open_connection(host, int(port))
            line = f"GET /chat?token={CLIENT['broken query']}&message={SAID['broken query']} HTTP/1.1\r\n"
            writer.write(f"{line}Host: x\r\nAuthorization: Bearer {CLIENT['broken']}\r\n".encode() + broken)
            writer.write(b"\r\n\r\n")
            scene.failed[f"{listener} {broken[:9]!r}"] = scene.answers[
                f"{listener} {broken[:9]!r}"
            ] = await reader.read()
            writer.close()


async def look(scene: Scene) -> None:
    """Keeps what the operators' side shows, and what the system knows of the process."""
    for path in ("/metrics", "/streams", "/failures"):
        async with await request(scene.gateway.admin + path) as answer:
            scene.told[path] = await answer.body()
    async with await request(f"{scene.gateway.admin}/events", headers=EVENTS) as feed:
        while b"failures" not in feed.raw:
            assert await feed.next()
        scene.told["/events"] = bytes(feed.raw)
    scene.told["process title"] = titles(scene.gateway.pid)


def titles(pid: int) -> bytes:
    """What everybody on the machine sees of a process and of its children."""
    process = Path("/proc", str(pid))
    said = (process / "cmdline").read_bytes() + (process / "comm").read_bytes() + (process / "status").read_bytes()
    children = (process / "task" / str(pid) / "children").read_text().split()
    return said + b"".join(titles(int(child)) for child in children)


async def look_at_workers(scene: Scene, directory: Path, environment: Mapping[str, str]) -> None:
    """The same configuration in several processes, with a closed admin listener."""
    server = scene.gateway.config["server"] | {"workers": 2, "admin_auth": True, "listen": f"127.0.0.1:{free_port()}"}
    settings = scene.gateway.config | {"server": server | {"admin_listen": f"127.0.0.1:{free_ports(2)}"}}
    async with Gateway(settings, directory, env=environment) as gateway:
        workers = Scene(gateway, scene.answers, scene.failed)
        for number in (0, 1):
            await gateway.logged("serving", worker=number)
        for word in ("ok", "bad", "cut", "page"):
            await workers.ask(f"workers {word}", "/alone", {"message": f"{word} {SAID['workers']}"}, headers=EVENTS)
        query = f"message=ok+{SAID['query']}&ticket={await workers.buy()}"
        for number in range(4):  # of which some reach the other worker
            await workers.ask(f"workers {number}", f"/alone?{query}", headers=EVENTS, key=None)
        await workers.ask("workers wrong", "/alone", {"message": SAID["workers"]}, key="wrong at workers")
        await probe(workers)
        scene.told["process titles of workers"] = titles(gateway.pid)
    scene.told["log of workers"] = "\n".join([*gateway.stdout, *gateway.stderr]).encode()


async def check(scene: Scene, directory: Path, environment: Mapping[str, str]) -> None:
    """What `gateway check` prints of a good and of a bad configuration, and `--ask` of targets that quote."""
    good, bad = directory / "good.yaml", directory / "bad.yaml"
    good.write_text(yaml.safe_dump(scene.gateway.config), encoding="utf-8")
    bad.write_text(bad_file(), encoding="utf-8")
    for name, arguments in {"check --ask": [str(good), "--ask"], "check": [str(bad)]}.items():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "check", *arguments),
            env=os.environ | dict(environment),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        scene.told[name] = (await process.communicate())[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    directory = tmp_path_factory.mktemp("canary")
    async with (
        ScriptedUpstream(play) as main,
        ScriptedUpstream(play_spare) as spare,
        ScriptedUpstream(play_application) as application,
        ScriptedUpstream([response(200, b"", "application/x-protobuf")]) as receiver,
    ):
        environment = {
            "CLIENT_KEY": CLIENT["env"],
            "PROVIDER_KEY": PROVIDER["api key"],
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"x-team={PROVIDER['otel header']}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        CLIENT["file"] = CLIENT["file-key"]
        settings = config(main.url, spare.url, application.url, directory)
        async with asyncio.timeout(120):
            async with Gateway(settings, directory, env=environment) as gateway:
                scene = Scene(gateway)
                await drive(scene)
                headers = {"Authorization": f"Bearer {CLIENT['header']}"} | EVENTS
                body = {"message": f"hang {SAID['drained']}"}
                running = await request(f"{gateway.url}/alone", method="POST", headers=headers, body=body)
                await running.next()
                await look(scene)
            await running.close()
            await asyncio.gather(
                look_at_workers(scene, tmp_path_factory.mktemp("workers"), environment),
                check(scene, directory, environment),
            )
        scene.told["log"] = "\n".join([*gateway.stdout, *gateway.stderr]).encode()
        scene.told["spans"] = b"".join(exchange.body for exchange in receiver.exchanges)
        providers = {"main": main, "spare": spare, "application": application, "receiver": receiver}
        for name, upstream in providers.items():
            scene.sent[name] = [exchange.head + exchange.body for exchange in upstream.exchanges]
        yield scene


def found(kinds: Sequence[str], places: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """The canaries of these kinds that are in these places."""
    return [
        (f"{kind}: {name}", place)
        for kind in kinds
        for name, word in KINDS[kind].items()
        for place, text in places.items()
        if word.lower().encode() in text.lower()
    ]


async def test_every_canary_was_sent(scene: Scene) -> None:
    """At least forty; those that are for a provider or a client reached it, so that a search finds what is there."""
    assert sum(map(len, KINDS.values())) >= 40
    received = b"".join(b"".join(sent) for sent in scene.sent.values())
    answered = b"".join(scene.answers.values())
    for name in ("api key", "header", "query", "spare-api-key", "events", "otel header", "application"):
        assert PROVIDER[name].encode() in received, name
    for name in ("message", "prompt", "query", "system", "system message", "description", "proxy query"):
        assert SAID[name].encode() in received, name
    for name in ("text", "thought", "tool", "whole", "spare", "event"):
        assert HEARD[name].encode() in answered, name
    assert CLIENT["session"].encode() in received  # the application is asked
    refused = {name for name in scene.failed if b" 401 " in scene.failed[name][:20]}
    assert refused >= {
        "wrong header",
        "basic",
        "after",
        "token ['exp']",
        "unknown session",
        "ticket",
        "@/metrics wrong",
    }
    let_in = {name for name, said in scene.answers.items() if said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 302"))}
    for how in ("ticket, first", "token", "session", "header"):
        assert let_in >= {f"{where} by a {how}" for where in ("chat", "legacy/events", "legacy/moved")}
    assert b"cannot serve" in scene.told["check --ask"]
    assert scene.told["process titles of workers"].count(b"gateway") >= 3


PLACES = ["log", "spans", "/metrics", "/streams", "/failures", "/events", "process title", "check", "check --ask"]
PLACES += ["log of workers", "process titles of workers"]


@pytest.mark.parametrize("place", PLACES)
async def test_nothing_secret_is_told(scene: Scene, place: str) -> None:
    """Neither to the operator's tools nor in what other users of the machine see of the process."""
    assert scene.told[place]
    assert found(list(KINDS), {place: scene.told[place]}) == []


async def test_no_answer_has_a_secret_of_the_gateway_or_a_client(scene: Scene) -> None:
    assert found(["credentials", "provider"], scene.answers) == []


async def test_no_answer_quotes_its_question(scene: Scene) -> None:
    """Nor does an error quote what the provider said with it."""
    assert found(["prompts"], scene.answers) == []
    assert found(["answers"], scene.failed) == []


KNOWN = {"header", "cookie", "query", "env", "file", "ops", "poor"}
"""Keys that the gateway itself knows all the time."""


async def test_upstream_is_sent_nothing_that_is_not_for_it(scene: Scene) -> None:
    """No client's credential, and no other provider's."""
    for name, own in {
        "main": {"api key", "header", "query", "events"},
        "spare": {"spare-api-key"},
        "application": {"application"},
        "receiver": {"otel header"},
    }.items():
        sent = {name: b"".join(scene.sent[name])}
        told = {credential.removeprefix("credentials: ") for credential, _ in found(["credentials"], sent)}
        if name == "application":  # it is asked who holds what nobody here knows
            told &= KNOWN | {credential for credential in CLIENT if credential.startswith(("ticket", "query token"))}
        assert told == set()
        assert {secret for secret, _ in found(["provider"], sent)} <= {f"provider: {secret}" for secret in own}
    alike = [sent for sent in scene.sent["main"] if PROVIDER["events"].encode() in sent]
    assert not [sent for sent in alike if PROVIDER["api key"].encode() in sent]
