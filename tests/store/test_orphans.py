"""A node dies while answers of all kinds run on it: whoever can finishes each, and what nobody can finish ends with one
error that says why (R6).

One scene for the module: all streams are orphaned by one kill, and each test looks at its own. The nodes that are left
differ, as they do while a new configuration is rolled out.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from gateway.store.sealed import Seal
from tests.faults.pair import begins, ends, prefix_of
from tests.faults.providers import refuses
from tests.identity.tokens import AUDIENCE, ISSUER, token
from tests.identity.tokens import SECRET as TOKENS
from tests.kit.sse_client import Message, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_USAGE,
    Exchange,
    Hang,
    Pause,
    ScriptedUpstream,
    Step,
    WaitFor,
    chunk,
    openai_chunk,
    response,
    sse_head,
)
from tests.store.stage import END, EVENTS, SECRET, V1, Play, Reading, Stage, counts, goes_on, stage, told, word

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = list(range(1, 11))
VICTIM, STRANGER, OLDER, ABLE, UNWILLING, BARE, LEAVING = range(7)
"""The nodes: the one that is killed; one with another secret; one of an older configuration; the only one that can do
everything; one with `adopt: false`; one without a secret; one that drains."""
KEYS = [{"id": name, "key": f"{name}-secret-key"} for name in ("revoked", "late", "lasting", "brief")]
KEYS += [{"id": name, "key": f"{name}-secret-key", "plan": name} for name in ("crowded", "thrifty")]


def everywhere(url: str, app: str) -> dict[str, Any]:
    """What all nodes have; `app` says who a session is."""
    upstreams = {
        name: {"dialect": dialect, "model": "m", "targets": [{"url": f"{url}/{name}"}], "retries": 0}
        for name, dialect in (
            *(("anthropic", "anthropic"), ("ollama", "ollama")),
            *(("anthropic-2", "anthropic"), ("ollama-2", "ollama")),
        )
    }
    targets = [{"url": f"{url}/hedged-{number}/v1"} for number in range(2)]
    upstreams["hedged"] = {"dialect": "openai", "targets": targets, "hedge": "200ms", "retries": 0}
    entry = {"issuer": ISSUER, "audience": AUDIENCE, "secret": TOKENS, "algorithms": ["HS256"], "leeway": "0s"}
    return {
        "upstreams": upstreams,
        "routes": [*shared_routes(upstreams), *new_routes("chat")],
        "plans": {"crowded": {"streams": 2}, "thrifty": {"tokens": "330/h"}},
        "auth": {
            "keys": KEYS,
            "jwt": [entry],
            "forward": {"url": f"{app}/who", "headers": ["x-session"], "cookies": [], "ttl": "1s"},
        },
    }


def shared_routes(upstreams: Sequence[str] | Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        *({"path": f"/{name}", "api": "chat", "upstream": name} for name in upstreams),
        {"path": "/chat", "api": "chat", "upstream": "u", "history": {"turns": 10}},
        {"path": "/ui", "api": "chat", "format": "ui", "upstream": "u"},
        {"path": V1, "api": "openai", "upstream": "u"},
    ]


def new_routes(api: str) -> list[dict[str, Any]]:
    return [{"path": "/new", "api": "chat", "upstream": "u"}, {"path": "/changed", "api": api, "upstream": "u"}]


class Asking(Reading):
    """A reader with headers of its own, that may be one of `useChat`."""

    def __init__(self, stage: Stage, question: str, path: str = "/chat", **headers: str) -> None:
        super().__init__(stage, question, path)
        self.headers = EVENTS | headers

    async def begin(self, node: int, body: Mapping[str, Any] | None = None) -> None:
        asked: dict[str, Any] = {"message": self.question}
        if self.path == V1:
            asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": self.question}]}
        elif self.path == "/ui":
            parts = [{"type": "text", "text": self.question}]
            asked = {"id": "of-useChat", "messages": [{"id": "1", "role": "user", "parts": parts}]}
        url = f"{self._stage.nodes[node].url}{self.path}"
        self.answer = await request(url, method="POST", headers=self.headers, body=asked | dict(body or {}))
        assert self.answer.status == 200, await self.answer.body()
        self.stream_id = self.answer.headers["x-stream-id"]

    def take(self, message: Message) -> None:
        if self.path != "/ui":
            super().take(message)
            return
        self.messages.append(message)
        self.cursor = message.last_event_id or self.cursor
        if message.data == "[DONE]":
            self.ends.append(message)
        elif (part := message.json())["type"] == "text-delta":
            self.text += part["delta"]

    @property
    def calls(self) -> list[Exchange]:
        """What the upstream was asked."""
        return self._stage.calls[self.question]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-secret-key"}


def says(dialect: str, first: int, last: int) -> list[Step]:
    """The head and counted words, no end."""
    return begins(dialect, *(f" {number}" for number in range(first, last + 1)))


def continues(dialect: str, exchange: Exchange) -> list[Step]:
    """Goes on from the prefix."""
    return [*says(dialect, int((prefix_of(exchange) or "0").split()[-1]) + 1, 10), *ends(dialect)]


def stubborn(provider: str, exchange: Exchange) -> list[Step]:
    """Refuses a prefix, and answers the question anew."""
    return [refuses(provider, "no prefill")] if prefix_of(exchange) else continues(provider, exchange)


class Scene:
    """The streams of the scene, by name."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.readers: dict[str, Asking] = {}
        self.release = asyncio.Event()
        self.stopped: list[int] = []

    def __getitem__(self, name: str) -> Asking:
        return self.readers[name]

    async def begin(
        self,
        name: str,
        *plays: Play,
        path: str = "/chat",
        node: int = VICTIM,
        words: int = 5,
        then: Sequence[Step] = (),
        **more: Any,
    ) -> Asking:
        """A stream of this name, read until so many words came.

        Args:
            name: also the question.
            plays: what the upstream says, each time after the first.
            path: of the route.
            node: where it begins.
            words: that the first answer says.
            then: what follows them; then it is silent.
            more: `headers`, and fields of the body.
        """
        first = [*says(DIALECTS.get(path, "openai"), 1, words), *then, Hang()]
        self.stage.plays[name] = [lambda _: first, *plays]
        reader = self.readers[name] = Asking(self.stage, name, path, **more.pop("headers", {}))
        await reader.begin(node, more)
        await reader.read(words=words)
        return reader

    async def finish(self, name: str, *nodes: int) -> Asking:
        """The reader of this stream, at its end."""
        reader = self.readers[name]
        await reader.finish(*(nodes or (ABLE, OLDER)))
        return reader


MURMUR: list[Step] = [Pause(0.05), chunk(b": still there\n\n")] * 600
"""Half a minute without an event, and never silent."""
DIALECTS = {f"/{name}{number}": name for name in ("anthropic", "ollama") for number in ("", "-2")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """All streams, just after the death of their node."""
    older = shared_routes(("anthropic", "ollama", "anthropic-2", "ollama-2", "hedged"))
    crowded = {"plans": {"crowded": {"streams": 1}}}
    changes: dict[int, Mapping[str, Any]] = {
        STRANGER: {"store": {"secret": "of somebody else"}},
        OLDER: {"routes": [*older, new_routes("openai")[1]]} | crowded,
        ABLE: crowded,
        UNWILLING: {"store": {"adopt": False}},
        BARE: {"store": {"secret": ""}},
        LEAVING: {"server": {"drain": "5m"}},
    }
    who = response(200, b'{"id": "alice"}')
    folder = tmp_path_factory.mktemp("orphans")
    async with (
        ScriptedUpstream([who]) as app,
        stage(folder, 7, direct=True, more=lambda url: everywhere(url, app.url), changes=changes) as made,
    ):
        scene = Scene(made)
        await begin_all(scene)
        made.nodes[LEAVING].send_signal(signal.SIGTERM)
        await made.nodes[LEAVING].logged("draining")
        await kill(scene, await expiring(scene))
        await meanwhile(scene)
        yield scene


async def begin_all(scene: Scene) -> None:
    """One stream of each kind, at the node that will die."""
    begin = scene.begin
    for name, path in (("claude", "/anthropic"), ("llama", "/ollama")):
        dialect, refusing = DIALECTS[path], partial(stubborn, DIALECTS[path])
        await begin(name, partial(continues, dialect), path=path)
        await begin(f"stubborn {name}", refusing, refusing, path=f"{path}-2")
    await begin("hedged", lambda _: [Hang()], goes_on(10), path="/hedged", then=MURMUR)
    await begin("all but the end", at_limit, path=V1, words=10, max_tokens=10)
    await begin("half of its limit", goes_on(10), path=V1, max_tokens=10)
    await begin("thrifty", goes_on(70), path=V1, words=60, headers=bearer("thrifty"), **padded("thrifty"))
    await begin("of useChat", goes_on(10), path="/ui")
    await begin("remembered", goes_on(10), session_id="diary")
    for name in ("new", "changed"):
        await begin(name, lambda _: [*counts(6, 8), Hang()], goes_on(10), path=f"/{name}")
    for name in ("crowded 1", "crowded 2"):
        await begin(name, partial(slow, scene.release), headers=bearer("crowded"))
    await begin("lasting", goes_on(10), headers=bearer("lasting"))
    await begin("asked about", goes_on(10), headers={"X-Session": "s"})
    await begin("to be stopped", lambda _: [*counts(6, 8), Hang()])
    await begin("revoked", goes_on(10), headers=bearer("revoked"))
    await begin("late", lambda _: [*counts(6, 8), Hang()], headers=bearer("late"))
    await begin("drained for", goes_on(10), node=LEAVING)
    await begin("not to be adopted", goes_on(10), node=UNWILLING)
    await begin("without a secret", goes_on(10), node=BARE)


def slow(release: asyncio.Event, _: Exchange) -> list[Step]:
    """One word, and when it is released the rest."""
    return [sse_head(), word(6), WaitFor(release), *map(word, range(7, 11)), *END]


def padded(question: str) -> dict[str, Any]:
    """A long question, and at most 100 tokens for its answer."""
    messages = [{"role": "system", "content": "x" * 700}, {"role": "user", "content": question}]
    return {"messages": messages, "max_tokens": 100}


def at_limit(exchange: Exchange) -> list[Step]:
    """There is hardly anything left to be said."""
    assert exchange.json()["max_tokens"] == 1
    return [sse_head(), chunk(openai_chunk({}, "length")), OPENAI_USAGE, OPENAI_DONE, LAST_CHUNK]


async def expiring(scene: Scene) -> int:
    """Two streams whose credentials expire soon; when they do, in unix seconds."""
    node, until = scene.stage.nodes[VICTIM], int(time.time()) + 4
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
    keys = [key | {"expires": moment} if key["id"] == "brief" else key for key in KEYS]
    await node.reload(node.config | {"auth": node.config["auth"] | {"keys": keys}})
    await scene.begin("brief", goes_on(10), headers=bearer("brief"))
    text = token(exp=until)
    await scene.begin("of a token", goes_on(10), headers={"Authorization": f"Bearer {text}"})
    return until


async def kill(scene: Scene, until: int) -> None:
    """The node dies; its lease lapses after this moment."""
    stage, node = scene.stage, scene.stage.nodes[VICTIM]
    name = (await node.logged("store_up"))["node"]
    await node.kill()
    left = round((until - time.time()) * 1000) + 200
    await stage.redis.ask("SET", f"gateway:n:{name}", "1", "PX", max(3000, left))


async def meanwhile(scene: Scene) -> None:
    """What happens while nobody has the streams."""
    able = scene.stage.nodes[ABLE]
    async with await request(f"{able.admin}/principals/key:revoked", method="DELETE") as answer:
        assert answer.status == 200
    url = f"{able.url}/streams/{scene['to be stopped'].stream_id}/stop"
    async with await request(url, method="POST") as answer:
        scene.stopped.append(answer.status)
        assert answer.status in (200, 503)  # 503: nobody has it yet


@pytest.mark.parametrize("name", ["claude", "llama", "half of its limit", "of useChat", "lasting", "asked about"])
async def test_other_node_lets_the_provider_go_on(scene: Scene, name: str) -> None:
    reader = await scene.finish(name)
    assert reader.words == WHOLE, told(scene.stage)
    assert len(reader.calls) == 2
    assert prefix_of(reader.calls[1]) == " 1 2 3 4 5"
    if name == "half of its limit":
        assert reader.calls[1].json()["max_tokens"] == 5


@pytest.mark.parametrize("name", ["stubborn claude", "stubborn llama"])
async def test_provider_that_takes_no_beginning_answers_anew_and_nothing_is_said_twice(scene: Scene, name: str) -> None:
    reader = await scene.finish(name)
    assert (reader.words, reader.error, reader.restarts) == (WHOLE, "", 0)
    assert [bool(prefix_of(call)) for call in reader.calls] == [False, True, False]


async def test_silent_target_is_not_waited_for(scene: Scene) -> None:
    """With `hedge`, another one is asked beside it."""
    reader = await scene.finish("hedged")
    assert (reader.words, reader.error, len(reader.calls)) == (WHOLE, "", 3)
    assert len({call.target.split("/")[1] for call in reader.calls[1:]}) == 2


async def test_answer_at_its_limit_ends_as_one(scene: Scene) -> None:
    reader = await scene.finish("all but the end")
    assert (reader.words, reader.error, len(reader.calls)) == (WHOLE, "", 2)
    assert '"finish_reason":"length"' in "".join(message.data for message in reader.messages)


async def test_what_was_delivered_is_paid_for_once(scene: Scene) -> None:
    """Its plan has tokens for the question and its answer, and not for both of them twice."""
    reader = await scene.finish("thrifty")
    assert (reader.words, reader.error) == (list(range(1, 71)), "")


async def test_usechat_sees_one_message(scene: Scene) -> None:
    reader = await scene.finish("of useChat")
    parts = [message.json() for message in reader.messages[:-1]]
    types = [part["type"] for part in parts if part["type"] != "text-delta"]
    assert [types.count(name) for name in ("start", "text-start", "text-end", "finish", "error")] == [1, 1, 1, 1, 0]
    assert len({part["id"] for part in parts if part["type"] in ("text-start", "text-delta", "text-end")}) == 1


async def test_chat_goes_on_behind_the_whole_answer(scene: Scene) -> None:
    await scene.finish("remembered")
    scene.stage.plays["and then?"] = goes_on(3)
    after = Asking(scene.stage, "and then?")
    await after.begin(OLDER, {"session_id": "diary"})
    await after.finish()
    texts = [message["content"] for message in after.calls[0].json()["messages"]]
    assert texts == ["remembered", "".join(f" {number}" for number in WHOLE), "and then?"]


async def test_what_was_admitted_goes_on_whatever_the_plan_allows_now(scene: Scene) -> None:
    """Both orphans have a slot, so nothing new begins; afterwards it does."""
    readers = [scene["crowded 1"], scene["crowded 2"]]
    for reader in readers:
        while not await reader.read(words=6) and len(reader.words) < 6:
            await reader.resume(ABLE)
    url, headers = f"{scene.stage.nodes[ABLE].url}/chat", EVENTS | bearer("crowded")
    async with await request(url, method="POST", headers=headers, body={"message": "one more"}) as answer:
        assert answer.status == 429
    scene.release.set()
    for name in ("crowded 1", "crowded 2"):
        reader = await scene.finish(name)
        assert (reader.words, reader.error, len(reader.calls)) == (WHOLE, "", 2)
    scene.stage.plays["one more"] = goes_on(3)
    more = Asking(scene.stage, "one more", **bearer("crowded"))
    await more.begin(OLDER)
    await more.finish()
    assert more.words == [1, 2, 3]


@pytest.mark.parametrize("name", ["brief", "of a token", "revoked"])
async def test_whose_credential_ended_meanwhile_is_told_so(scene: Scene, name: str) -> None:
    reader = scene[name]
    if name == "of a token":
        reader.headers = EVENTS | {"Authorization": f"Bearer {token()}"}
    await scene.finish(name)
    assert (reader.error, reader.words, len(reader.calls)) == ("auth_expired", [1, 2, 3, 4, 5], 1)


async def test_what_was_revoked_before_the_adoption_ends_when_that_is_learned(scene: Scene) -> None:
    """The node that tells of it does so late: the list says how long ago it was."""
    reader, redis = scene["late"], scene.stage.redis
    began = reader.messages[0].at
    while len(reader.words) < 8:
        await reader.resume(ABLE)
        await reader.read(words=8)
    age = round((asyncio.get_running_loop().time() - began) * 1000) - 1
    told = ("p", Seal(SECRET).digest("principal", "key:late"), "k", "", "n", "another", "a", age)
    await redis.ask("XADD", "gateway:v", "*", *told)
    await scene.finish("late")
    assert (reader.error, reader.words) == ("auth_expired", [*range(1, 9)])


async def test_stop_that_came_while_nobody_had_the_stream_stops_it(scene: Scene) -> None:
    reader = await scene.finish("to be stopped")
    assert reader.ends[0].json()["finish_reason"] == "stopped"
    assert reader.words[:5] == WHOLE[:5]


async def test_more_nodes_die(scene: Scene) -> None:
    """What was adopted is adopted again, by a node that could not before; what nobody can finish, and what was never to
    be adopted, ends with one error. Each is asked for at nodes that have its route or not."""
    new, changed = scene["new"], scene["changed"]
    for reader in (new, changed):
        while len(reader.words) < 8:
            await reader.resume(OLDER)
            assert not await reader.read(words=8), reader.messages
    assert await scene.stage.owner(new.stream_id) == ABLE
    older = scene.stage.nodes[OLDER]
    await older.reload(older.config | {"routes": [*older.config["routes"], new_routes("chat")[0]]})
    await asyncio.gather(*(scene.stage.nodes[node].kill() for node in (ABLE, UNWILLING, BARE, LEAVING)))
    for name in ("new", "changed", "not to be adopted", "without a secret", "drained for"):
        await scene.finish(name, OLDER, STRANGER)
    drained = scene["drained for"]
    assert (drained.words, drained.error, len(drained.calls)) == (WHOLE, "", 2)
    assert (new.words, new.error, len(new.calls)) == (WHOLE, "", 3)
    assert int(new.messages[-1].last_event_id.split(".")[1].partition("-")[0]) >= 2  # takeovers
    assert (changed.words, changed.error, len(changed.calls)) == ([*range(1, 9)], "upstream_cut", 2)
    for name in ("not to be adopted", "without a secret"):
        assert (scene[name].error, len(scene[name].calls)) == ("upstream_cut", 1)
    for node in (STRANGER, OLDER):
        assert not [line for line in scene.stage.nodes[node].log_lines() if line["level"] == "error"]
