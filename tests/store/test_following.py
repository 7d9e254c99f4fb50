"""A stream is read, resumed and stopped at any node, in every format, and leaves nothing behind in Redis (R8)."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.identity.tokens import AUDIENCE, ISSUER, token
from tests.identity.tokens import SECRET as TOKENS
from tests.kit.sse_client import Response, request
from tests.kit.upstream import LAST_CHUNK, Cut, Hang, WaitFor, chunk, openai_delta, sse_head
from tests.store.stage import END, EVENTS, SECRET, V1, Reading, Stage, counts, goes_on, stage, word
from tests.web.stage import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = list(range(1, 11))
SECRETS = ("a secret question", "another-key", "other", SECRET)
KEY = {"Authorization": "Bearer another-key-of-a-test"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Two nodes on one Redis."""
    entry = {"issuer": ISSUER, "audience": AUDIENCE, "secret": TOKENS, "algorithms": ["HS256"], "leeway": "0s"}
    issued = {"auth": {"jwt": [entry], "tickets": {"ttl": "1m"}}}
    async with stage(tmp_path_factory.mktemp("following"), direct=True, more=lambda _: issued) as made:
        yield made


async def code(url: str, cursor: str = "", **asked: Any) -> tuple[int, str]:
    """The status of a request, and the code of its error; "" without one. Asked again where it is to come back."""
    got = await code_once(url, cursor, **asked)
    for _ in range(20):
        if got[0] != 503:
            break
        await asyncio.sleep(0.25)
        got = await code_once(url, cursor, **asked)
    return got


async def code_once(url: str, cursor: str = "", **asked: Any) -> tuple[int, str]:
    """The same, asked once."""
    async with await request(url, last_event_id=cursor, **asked) as answer:
        if answer.status == 200:
            return 200, ""
        body = await answer.body()
        error = msgspec.json.decode(body) if body else {}
        return answer.status, error.get("error", error).get("code", "")


async def test_every_place_can_be_read_at_another_node(two: Stage) -> None:
    """0, the middle, live; ahead, foreign and unknown are one and the same answer."""
    more = asyncio.Event()
    two.plays["places"] = lambda _: [*counts(1, 5), WaitFor(more), *map(word, range(6, 11)), *END]
    here = Reading(two, "places", "/plain")
    await here.begin(0)
    await here.read(words=5)
    url = f"{two.nodes[1].url}/streams/{here.stream_id}"
    readers = []
    for cursor in ("", *(message.last_event_id for message in here.messages)):
        there = Reading(two, "places", "/plain")
        there.stream_id, there.cursor = here.stream_id, cursor
        assert await there.resume(1) == 200
        readers.append((cursor, there))
    ahead = f"{here.stream_id}.40.39"
    assert await code(url, ahead) == (404, "cursor_expired")
    assert await code(url, headers=KEY) == (404, "cursor_expired")
    assert await code(f"{two.nodes[1].url}/streams/{here.stream_id[::-1]}") == (404, "cursor_expired")
    more.set()
    await asyncio.gather(here.read(), *(there.read() for _, there in readers))
    for cursor, there in readers:
        seen = int(cursor.split(".")[2]) if cursor else 0
        assert (there.words, there.error) == (WHOLE[seen:], ""), cursor
        await there.leave()
    assert await code(url, here.cursor) == (204, "")
    await here.leave()


@pytest.mark.parametrize("path", ["/chat", "/plain", "/ui", V1, "/zip"])
async def test_bytes_at_another_node_are_those_of_the_owner(two: Stage, path: str) -> None:
    """Read from the beginning, live or later, each format says the same at both nodes, cursors too."""
    question, more = f"bytes {path}", asyncio.Event()
    two.plays[question] = lambda _: [*counts(1, 5), WaitFor(more), *map(word, range(6, 11)), *END]
    here = Reading(two, question, path)
    body = {"id": "c1", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": question}]}]}
    await here.begin(0, body if path == "/ui" else None)
    assert here.answer is not None
    urls = [f"{node.url}/streams/{here.stream_id}" for node in two.nodes]
    live = [await request(url, headers=EVENTS) for url in urls]
    more.set()
    told = [[message[:3] async for message in answer.messages()] for answer in live]
    assert told[0][-1] == told[1][-1]
    assert said(told[0]) == said(told[1])
    later = [await request(url, headers=EVENTS) for url in urls]
    bodies = [(await answer.body()).partition(b"\n")[2] for answer in later]  # behind `retry:`, which is random
    assert bodies[0] == bodies[1]
    if path == "/zip":
        async with await request(urls[1], headers=EVENTS | {"Accept-Encoding": "gzip"}) as packed:
            assert packed.headers["content-encoding"] == "gzip"
            assert (await packed.body())[:2] == b"\x1f\x8b"
    for answer in (*live, *later, here.answer):
        await answer.close()


def said(messages: Sequence[tuple[Any, ...]]) -> str:
    """All texts of events of whatever format, however they were gathered."""
    return "".join(data.split('"delta":')[-1] if '"text-delta"' in data else "" for _, data, _ in messages) or "".join(
        msgspec.json.decode(data)["text"] if type_ == "token" else "" for type_, data, _ in messages
    )


async def test_proxied_stream_keeps_its_bytes_at_another_node(two: Stage) -> None:
    """What a provider says, in its own words."""
    two.plays["proxied"] = lambda _: [
        *(sse_head(), chunk("event: a\nid: own-1\ndata: 1\n\n"), chunk("data: {}\n\n"), LAST_CHUNK, Cut()),
    ]
    body = {"messages": [{"role": "user", "content": "proxied"}]}
    url = f"{two.nodes[0].url}/proxy/x"
    async with await request(url, method="POST", headers=EVENTS, body=body) as answer:
        whole = [message[:3] async for message in answer.messages()]
        id_ = answer.headers["x-stream-id"]
    assert [message[:2] for message in whole] == [("a", "1"), ("message", "{}")]
    async with await request(f"{two.nodes[1].url}/streams/{id_}", headers=EVENTS) as answer:
        assert [message[:3] async for message in answer.messages()] == whole


async def test_stop_at_another_node_ends_the_call(two: Stage) -> None:
    """Also where nobody reads it, and twice."""
    two.plays["stop"] = lambda _: [*counts(1, 5), Hang()]
    reading = Reading(two, "stop")
    await reading.begin(0)
    await reading.read(words=5)
    url = f"{two.nodes[1].url}/streams/{reading.stream_id}/stop"
    for _ in range(2):
        async with await request(url, method="POST") as answer:
            assert await answer.json() == {"id": reading.stream_id, "state": "stopped"}
    assert await reading.read()
    assert msgspec.json.decode(reading.ends[0].data)["finish_reason"] == "stopped"
    async with asyncio.timeout(5):
        await two.calls["stop"][0].closed.wait()
    await reading.leave()


async def test_operator_stops_at_any_node(two: Stage) -> None:
    two.plays["for long"] = lambda _: [*counts(1, 5), Hang()]
    reading = Reading(two, "for long")
    await reading.begin(0)
    await reading.read(words=5)
    url = f"{two.nodes[1].admin}/streams/{reading.stream_id}/stop"
    async with await request(url, method="POST") as answer:
        assert (answer.status, await answer.json()) == (200, {"id": reading.stream_id, "state": "stopped"})
    await reading.read()
    assert reading.ends[0].json()["finish_reason"] == "stopped"
    await reading.leave()
    for gone in (url, url.replace(reading.stream_id, reading.stream_id[::-1])):
        async with await request(gone, method="POST") as answer:
            assert answer.status == 404


async def test_credential_renewed_at_another_node_lets_the_stream_go_on(two: Stage) -> None:
    """The reader that came with the old one is told that it has expired; the answer goes on."""
    more = asyncio.Event()
    two.plays["renewed"] = lambda _: [*counts(1, 5), WaitFor(more), *map(word, range(6, 11)), *END]
    old, new = Reading(two, "renewed"), Reading(two, "renewed")
    old.headers = EVENTS | {"Authorization": f"Bearer {token(exp=int(time.time()) + 3)}"}
    new.headers = EVENTS | {"Authorization": f"Bearer {token()}"}
    await old.begin(0)
    await old.read(words=5)
    new.stream_id = old.stream_id
    assert await new.resume(1) == 200
    await new.read(words=5)
    await old.read()
    assert old.error == "auth_expired"
    more.set()
    await new.read()
    assert (new.words, new.error) == (WHOLE, "")
    for reading in (old, new):
        await reading.leave()


async def test_ended_stream_is_kept_for_its_time_and_leaves_no_key(two: Stage) -> None:
    """Every key expires at every moment, none holds a prompt, a principal or a secret in clear, and none is left."""
    two.plays["a secret question"] = lambda _: [*counts(1, 5), WaitFor(more), *END]
    more = asyncio.Event()
    reading = Reading(two, "a secret question", "/short")
    two.plays["named"] = goes_on(3)
    named = f"{two.nodes[0].url}/chat"
    async with await request(named, method="POST", headers=EVENTS | KEY, body={"message": "named"}) as answer:
        await answer.body()
    await reading.begin(0)
    await reading.read(words=5)
    for _ in range(2):
        keys = await two.redis.keys()
        assert f"gateway:p:{reading.stream_id}" in keys or more.is_set()
        ttls = [await two.redis.ask("PTTL", key) for key in keys]
        assert all(0 < ttl <= 600_000 or ttl == -2 for ttl in ttls), dict(zip(keys, ttls, strict=True))
        values = str([key if await two.redis.ask("TYPE", key) == "none" else await dump(two, key) for key in keys])
        assert not [word for word in SECRETS if word in values + str(keys)]
        more.set()
        await reading.read()
    url = f"{two.nodes[1].url}/streams/{reading.stream_id}"
    assert await code(url, reading.cursor) == (204, "")
    await reading.leave()
    async with asyncio.timeout(5):
        while any(reading.stream_id in key for key in await two.redis.keys()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    async with asyncio.timeout(8):  # a node forgets it when its last reader is gone for a while
        while await code(url, reading.cursor) != (404, "cursor_expired"):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def dump(two: Stage, key: str) -> str:
    """All that stands under a key."""
    read = {"hash": ["HGETALL"], "stream": ["XRANGE", "-", "+"], "set": ["SMEMBERS"], "string": ["GET"]}
    read["zset"] = ["ZRANGE", "0", "-1"]
    name, *rest = read[await two.redis.ask("TYPE", key)]
    return str(await two.redis.ask(name, key, *rest))


async def test_trimmed_beginning_is_told_and_bounds_redis(two: Stage) -> None:
    """More than `resume.max_bytes`: Redis keeps no more than memory does (R8)."""
    text = "x" * 2000
    two.plays["long"] = lambda _: [sse_head(), *[openai_delta(text)] * 300, WaitFor(end), *END]
    end = asyncio.Event()
    reading = Reading(two, "long", "/small")
    await reading.begin(0)
    assert reading.answer is not None
    for _ in range(301):
        await reading.answer.next()
    log = f"gateway:l:{reading.stream_id}"
    async with asyncio.timeout(5):
        while await two.redis.ask("MEMORY", "USAGE", log, "SAMPLES", 0) > 4 * 65_536:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    url = f"{two.nodes[1].url}/streams/{reading.stream_id}"
    assert await code(url) == (404, "cursor_expired")
    assert await code(url, f"{reading.stream_id}.3.2") == (404, "cursor_expired")
    assert await code(url, f"{reading.stream_id}.301.300") == (200, "")
    end.set()
    await reading.leave()


async def test_whole_answer_is_read_elsewhere_before_anybody_asked_there(two: Stage) -> None:
    """It ended before the second node heard of it."""
    two.plays["whole"] = goes_on(10)
    reading, later = Reading(two, "whole"), Reading(two, "whole")
    await reading.begin(0)
    await reading.read()
    await reading.leave()
    later.stream_id = reading.stream_id
    await later.finish(1)
    assert (later.words, later.error, len(two.calls["whole"])) == (WHOLE, "", 1)


FLOOD = b"data: " + b"y" * 30_000 + b"\n\n"


async def asked_for_a_flood(two: Stage, path: str) -> Response:
    """The answer to the question `flood` at the first node."""
    body = {"messages": [{"role": "user", "content": "flood"}]}
    return await request(f"{two.nodes[0].url}{path}", method="POST", headers=EVENTS, body=body)


async def test_slow_reader_elsewhere_gets_everything(two: Stage) -> None:
    """It reads nothing while 12 MB are said, more than its node keeps for it; Redis keeps the rest."""
    more = asyncio.Event()
    two.plays["flood"] = lambda _: [sse_head(), chunk(FLOOD), WaitFor(more), *[chunk(FLOOD)] * 399, LAST_CHUNK, Cut()]
    async with await asked_for_a_flood(two, "/proxy/x") as quick:
        url = f"{two.nodes[1].url}/streams/{quick.headers['x-stream-id']}"
        slow = await request(url, headers=EVENTS, receive_buffer=4096)
        assert slow.status == 200, await slow.body()
        more.set()
        assert len([0 async for _ in quick.messages()]) == 400
    assert len([0 async for message in slow.messages() if len(message.data) == 30_000]) == 400
    await slow.close()


async def test_reader_that_comes_late_elsewhere_gets_all_that_its_route_keeps(two: Stage) -> None:
    """12 MB, where `resume.max_bytes` is 32 MiB."""
    two.plays["flood"] = lambda _: [sse_head(), *[chunk(FLOOD)] * 400, LAST_CHUNK, Cut()]
    async with await asked_for_a_flood(two, "/large/x") as quick:
        assert len([0 async for _ in quick.messages()]) == 400
        url = f"{two.nodes[1].url}/streams/{quick.headers['x-stream-id']}"
    async with await request(url, headers=EVENTS) as late:
        assert late.status == 200, await late.body()
        assert len([0 async for message in late.messages() if len(message.data) == 30_000]) == 400


async def test_streams_of_all_nodes_are_listed_and_silent_nodes_named(two: Stage) -> None:
    """`/streams` of one node stays as it was."""
    for node in (0, 1):
        two.plays[f"listed {node}"] = lambda _: [*counts(1, 2), Hang()]
    readings = [Reading(two, f"listed {node}") for node in (0, 1)]
    for node, reading in enumerate(readings):
        await reading.begin(node)
        await reading.read(words=2)
    url = f"{two.nodes[0].admin}/streams"
    async with await request(f"{url}?node=all") as answer:
        told = await answer.json()
    listed = {entry["id"]: (entry["node"], entry["principal"]) for entry in told["streams"]}
    assert {reading.stream_id for reading in readings} <= listed.keys()
    assert len({listed[reading.stream_id][0] for reading in readings}) == 2
    assert (listed[readings[1].stream_id][1], told["silent"]) == ("addr:127.0.0.1", [])
    async with await request(url) as answer:
        assert readings[1].stream_id not in {entry["id"] for entry in await answer.json()}
    two.nodes[1].send_signal(signal.SIGSTOP)
    async with await request(f"{url}?node=all") as answer:
        assert (await answer.json())["silent"] == [listed[readings[1].stream_id][0]]
    two.nodes[1].send_signal(signal.SIGCONT)
    async with await request(f"{url}?node=1") as answer:
        assert answer.status == 400
    for reading in readings:
        await reading.leave()


async def test_chat_of_the_kit_is_followed_at_another_node(two: Stage) -> None:
    """useChat's `GET {path}/{id}/stream`: 204 before and after."""
    more = asyncio.Event()
    two.plays["kit"] = lambda _: [*counts(1, 5), WaitFor(more), *END]
    url = f"{two.nodes[1].url}/ui/chat-1/stream"
    assert await code(url) == (204, "")
    here = Reading(two, "kit", "/ui")
    parts = [{"type": "text", "text": "kit"}]
    await here.begin(0, {"id": "chat-1", "messages": [{"id": "m", "role": "user", "parts": parts}]})
    async with await request(url, headers=EVENTS) as answer:
        assert answer.status == 200
        more.set()
        assert said([message[:3] async for message in answer.messages()])
    assert await code(url, headers=KEY) == (204, "")
    assert await code(url) == (204, "")
    await here.leave()


async def test_newest_running_answer_of_a_chat_is_found_at_any_node(two: Stage) -> None:
    """As at one node alone: behind a newer one that has ended, and before an older one of the node that is asked."""
    urls = [f"{node.url}/ui/of-two/stream" for node in two.nodes]
    parts = {name: [{"type": "text", "text": name}] for name in ("older", "newer")}
    readings = []
    for node, name in enumerate(parts):
        two.plays[name] = lambda _: [*counts(1, 1), Hang()]
        readings.append(Reading(two, name, "/ui"))
        messages = [{"id": "m", "role": "user", "parts": parts[name]}]
        await readings[-1].begin(node, {"id": "of-two", "messages": messages})

    async def found() -> list[str]:
        answers = [await request(url, headers=EVENTS) for url in urls]
        for answer in answers:
            await answer.close()
        return [answer.headers.get("x-stream-id", "") for answer in answers]

    older, newer = (reading.stream_id for reading in readings)
    assert await eventually(found, [newer, newer].__eq__)
    for stream_id, left in ((newer, older), (older, "")):
        async with await request(f"{two.nodes[0].url}/streams/{stream_id}", method="DELETE") as stopped:
            assert stopped.status == 200
        assert await eventually(found, [left, left].__eq__)
    for reading in readings:
        await reading.leave()


async def test_ticket_for_a_stream_is_given_at_every_node(two: Stage) -> None:
    two.plays["by ticket"] = lambda _: [*counts(1, 3), Hang()]
    here = Reading(two, "by ticket")
    here.headers = EVENTS | KEY
    await here.begin(0)
    await here.read(words=3)
    path = f"/streams/{here.stream_id}"
    for asked, used in ((1, 1), (1, 0), (0, 1)):
        url = f"{two.nodes[asked].url}/tickets"
        async with await request(url, method="POST", headers=KEY, body={"stream_id": here.stream_id}) as answer:
            assert answer.status == 200
            ticket = (await answer.json())["ticket"]
        there = Reading(two, "by ticket")
        async with await request(f"{two.nodes[used].url}{path}?ticket={ticket}", headers=EVENTS) as answer:
            assert answer.status == 200
            there.answer = answer
            await there.read(words=3)
            assert there.words == [1, 2, 3]
    url = f"{two.nodes[1].url}/tickets"
    for whose, stream_id in (({}, here.stream_id), (KEY, "A" * 22)):  # another one's, and nobody's
        told, _ = await code(url, method="POST", headers=whose, body={"stream_id": stream_id})
        assert told == 404
    async with await request(f"{two.nodes[1].url}{path}", method="DELETE", headers=KEY) as stopped:
        assert stopped.status == 200
    await here.leave()


async def test_how_a_stream_ended_is_told_alike_at_every_node(two: Stage) -> None:
    """Whether its end was seen here, or it had ended before."""
    two.plays["left"] = two.plays["stalled"] = lambda _: [*counts(1, 3), Hang()]
    two.plays["broken"] = lambda _: [*counts(1, 3), Cut()]
    two.plays["good"] = lambda _: [*counts(1, 3), *END]
    ends = {"left": "client_gone", "stalled": "upstream_stalled", "broken": "upstream_error", "good": "completed"}
    paths = {"left": "/brief", "stalled": "/idle"}

    async def told(name: str) -> tuple[str, list[str]]:
        here, there = Reading(two, name, paths.get(name, "/chat")), Reading(two, name)
        await here.begin(0)
        if name == "left":
            await here.leave()
            await two.nodes[0].logged("stream_end", stream_id=here.stream_id)
        else:
            there.stream_id = here.stream_id
            await there.resume(1)
            await asyncio.gather(here.read(), there.read())
        states = []
        for node in two.nodes:
            async with await request(f"{node.url}/streams/{here.stream_id}", method="DELETE") as answer:
                states.append((await answer.json())["state"])
        await asyncio.gather(here.leave(), there.leave())
        return name, states

    assert dict(await asyncio.gather(*map(told, ends))) == {name: [end, end] for name, end in ends.items()}


async def test_reader_of_a_stream_that_only_another_version_understands_is_sent_on(two: Stage) -> None:
    """While nodes are updated one after the other, the next try may come to one that knows the format."""
    stream_id = "N" * 22
    about = b'{"id": "%s", "owner": "", "format": ["from", "the", "future"]}' % stream_id.encode()
    await two.redis.ask("HSET", f"gateway:s:{stream_id}", "a", about, "m", "", "s", "", "n", "x")
    await two.redis.ask("PEXPIRE", f"gateway:s:{stream_id}", 5000)
    assert await code_once(f"{two.nodes[0].url}/streams/{stream_id}") == (503, "overloaded")
    url = f"{two.nodes[0].url}/tickets"
    async with await request(url, method="POST", body={"stream_id": stream_id}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (503, "overloaded")
