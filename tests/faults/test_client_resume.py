"""A client that comes back: contract section 4 "Reconnecting", C6, C7, C8."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.sse_client import Message, Parser, Response, request
from tests.kit.upstream import Hang, Pause, Step, WaitFor, openai_answer, openai_delta, sse_head
from tests.web.stage import EVENTS, Stage, completion, events_answer, eventually, kinds, staged, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = [{"id": name, "key": f"key-of-{name}"} for name in ("ann", "bob")]
ANN, BOB = ({"Authorization": f"Bearer key-of-{name}"} for name in ("ann", "bob"))
ROUTES: list[dict[str, Any]] = [
    {"path": "/merged", "batch": {"interval": "20ms"}},
    {"path": "/single", "merge": False, "batch": {"interval": "0s"}},
    {"path": "/gzip", "compress": True},
    {"path": "/quiet", "format": "data", "commit_after": "0s"},
    {"path": "/openai", "api": "openai"},
    {"path": "/proxy", "api": "proxy"},
    {"path": "/proxy-off", "api": "proxy", "resume": {"enabled": False}},
    {"path": "/brief", "resume": {"ttl": "1s"}},
    {"path": "/small", "resume": {"max_bytes": "4KiB"}},
]
AUTH = {"anonymous": True, "keys": KEYS}
STREAMS, TOKENS = 100, 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), ROUTES, auth=AUTH, stream={"retry": "100ms"}) as stage:
        yield stage


# Cuts at random moments.


class Traveller:
    """A reader whose connection breaks at random moments, inside blocks too; it keeps what a browser would."""

    def __init__(self, stage: Stage, path: str, chance: random.Random) -> None:
        self.messages: list[Message] = []
        self.connections = 0
        self._stage = stage
        self._path = path
        self._chance = chance
        self._cursor = ""
        self._stream_id = ""
        self._by_id = chance.random() < 0.5

    async def read_all(self, question: str) -> None:
        cuts = self._chance.randint(1, 5)
        for _ in range(cuts):
            async with await self._connect(question) as response:
                await self._read(response, self._chance.uniform(0, 0.15))
                if self._chance.random() < 0.5:
                    await response.reset()
            if response.status == 204:
                return
        async with await self._connect(question) as response:
            await self._read(response, 20)

    async def _connect(self, question: str) -> Response:
        self.connections += 1
        if self._by_id and self._cursor:
            response = await self._stage.get(f"/streams/{self._stream_id}", cursor=self._cursor)
        else:
            response = await self._stage.get(self._path, question, cursor=self._cursor)
        self._stream_id = response.headers.get("x-stream-id", self._stream_id)
        return response

    async def _read(self, response: Response, seconds: float) -> None:
        parser = Parser(self._cursor)
        while not self._cursor:  # who drops before the first block has nothing to come back with
            self.messages += parser.feed(await response.read())
            self._cursor = parser.last_event_id
        try:
            async with asyncio.timeout(seconds):
                while data := await response.read():
                    self.messages += parser.feed(data)
                    self._cursor = parser.last_event_id or self._cursor
        except TimeoutError:
            return


def check_whole(messages: list[Message], texts: list[str]) -> None:
    tokens = [message.json() for message in messages if message.type == "token"]
    assert "".join(token["text"] for token in tokens) == "".join(texts)
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    assert messages[-1].type == "done"
    assert messages[-1].json()["full_text"] == "".join(texts)
    assert kinds(messages)["done"] == 1
    assert set(kinds(messages)) == {"connected", "token", "done"}


async def travel(stage: Stage, chance: random.Random) -> int:
    path = chance.choice(["/merged", "/single"])
    texts = [chance.choice(["字", "a", "é\n", " 😀", "data: x\r\n\r\n"]) for _ in range(TOKENS)]
    script: list[Step] = [sse_head()]
    for text in texts:
        script += [openai_delta(text), Pause(chance.choice([0, 0, 0.005, 0.02]))]
    question = stage.plays(script + openai_answer()[1:])
    traveller = Traveller(stage, path, chance)
    await traveller.read_all(question)
    check_whole(traveller.messages, texts)
    assert len(stage.asked(question)) == 1
    return traveller.connections


async def test_streams_cut_at_random_moments_arrive_whole_and_once(stage: Stage, chance: random.Random) -> None:
    each = [random.Random(chance.random()) for _ in range(STREAMS)]  # of its own, as they run at once
    connections = await asyncio.gather(*(travel(stage, own) for own in each))
    print(f"{STREAMS} streams over {sum(connections)} connections")


# Where a reader may come back, and with what.


async def begun(stage: Stage, path: str = "/single", *, after: list[Step] | None = None) -> tuple[str, Response]:
    """A stream whose first token was read; then it hangs, or goes on as told."""
    question = stage.plays([sse_head(), openai_delta("one"), *(after or [Hang()])])
    response = await stage.get(path, question)
    while (message := await response.next()) and message.type != "token":
        pass
    return question, response


async def finished(stage: Stage, path: str = "/single", **options: Any) -> tuple[str, str, list[Message]]:
    """A question, its stream's id, and the events of its stream, which has ended."""
    question = stage.plays(openai_answer("one", "two", "three"))
    response = await stage.get(path, question, **options)
    return question, response.headers["x-stream-id"], await whole(response)


async def test_reader_resumes_by_query_too_and_the_header_wins(stage: Stage) -> None:
    question, stream_id, messages = await finished(stage)
    first, last = messages[1].last_event_id, messages[-2].last_event_id
    by_query = await whole(await stage.get("/single", question, last_event_id=first))
    assert text_of(by_query) == "twothree"
    both = await whole(await stage.get("/single", question, cursor=last, last_event_id=first))
    assert text_of(both) == ""
    assert kinds(both) == {"connected": 1, "done": 1}
    by_id = await whole(await stage.get(f"/streams/{stream_id}", last_event_id=first))
    assert by_id == [message._replace(at=got.at) for message, got in zip(by_query, by_id, strict=True)]


async def test_reader_without_a_cursor_gets_a_stream_from_its_beginning(stage: Stage) -> None:
    _, stream_id, messages = await finished(stage)
    again = await whole(await stage.get(f"/streams/{stream_id}"))
    assert [message._replace(at=0) for message in again] == [message._replace(at=0) for message in messages]


@pytest.mark.parametrize("route", ["/merged", "/openai", "/proxy"])
async def test_reader_at_the_final_cursor_is_told_204(stage: Stage, route: str) -> None:
    question = stage.plays(events_answer("x", "y") if route == "/proxy" else openai_answer("x", "y"))
    response = await stage.ask(route, question, headers=EVENTS)
    await whole(response)
    assert not response.broken
    cursor = response.parser.last_event_id
    for path in (route, f"/streams/{response.headers['x-stream-id']}"):
        async with await stage.get(path, question, cursor=cursor) as end:
            expected = 405 if path == "/openai" else 204
            assert (end.status, await end.body() if end.status == 204 else b"") == (expected, b"")
    assert len(stage.asked(question)) == 1


async def test_openai_client_resumes_by_post(stage: Stage) -> None:
    question = stage.plays(openai_answer("one", "two", "three"))
    first = await whole(await stage.ask("/openai", question))
    headers = {"Last-Event-ID": first[0].last_event_id}
    rest = await whole(await stage.ask("/openai", question, headers=headers))
    assert [message.data for message in rest] == [message.data for message in first[1:]]
    assert len(stage.asked(question)) == 1


async def test_reader_that_dropped_before_the_first_token_resumes(stage: Stage) -> None:
    go_on = asyncio.Event()
    question = stage.plays([sse_head(), WaitFor(go_on), *openai_answer("late")[1:]])
    response, parser = await stage.get("/quiet", question), Parser()
    while not parser.last_event_id:
        assert parser.feed(await response.read()) == []
    await response.reset()
    go_on.set()
    back = await whole(await stage.get("/quiet", question, cursor=parser.last_event_id))
    assert [message.data for message in back] == ['{"content":"late"}', "[DONE]"]
    assert len(stage.asked(question)) == 1


@pytest.mark.parametrize("headers", [EVENTS | ANN, ANN])
async def test_unknown_expired_and_foreign_cursors_are_told_alike(stage: Stage, headers: dict[str, str]) -> None:
    answers = []
    for kind in ("unknown", "expired", "foreign", "ahead"):
        _, cursor = await lost_cursor(stage, kind)
        async with await stage.get("/single", "never asked", cursor=cursor, headers=headers) as response:
            [error] = [message async for message in response.messages()]
            answers.append((response.status, error.type, error.json(), response.media_type))
        async with await stage.get("/single", "never asked", cursor=error.last_event_id, headers=headers) as end:
            assert end.status == 204
    assert answers == [answers[0]] * 4
    assert answers[0][:2] == (200, "error")
    assert answers[0][2]["code"] == "cursor_expired"
    assert not stage.asked("never asked")


async def test_lost_streams_are_404_by_their_name(stage: Stage) -> None:
    bodies = []
    for kind in ("unknown", "expired", "foreign"):
        stream_id, cursor = await lost_cursor(stage, kind)
        for headers in (ANN, ANN | {"Last-Event-ID": cursor}, EVENTS | ANN):
            async with await stage.get(f"/streams/{stream_id}", headers=headers) as response:
                assert response.status == 404
                body = await response.json()
                bodies.append({key: body[key] for key in body if key != "instance"})
        for method, suffix in (("DELETE", ""), ("POST", "/stop")):
            url = stage.url(f"/streams/{stream_id}{suffix}")
            async with await request(url, method=method, headers=ANN) as response:
                assert response.status == 404
    assert bodies == [bodies[0]] * len(bodies)


async def lost_cursor(stage: Stage, kind: str) -> tuple[str, str]:
    if kind == "unknown":
        return "A" * 22, f"{'A' * 22}.1.1"
    headers = EVENTS | (BOB if kind == "foreign" else ANN)
    _, stream_id, messages = await finished(stage, "/brief" if kind == "expired" else "/single", headers=headers)
    if kind == "expired":
        await eventually(lambda: status_of(stage, stream_id), lambda status: status == 404)
    return stream_id, f"{stream_id}.99.9" if kind == "ahead" else messages[1].last_event_id


async def status_of(stage: Stage, stream_id: str) -> int:
    async with await stage.get(f"/streams/{stream_id}", headers=ANN) as response:
        return response.status


async def test_streams_of_one_principal_are_hidden_from_anonymous_readers(stage: Stage) -> None:
    _, stream_id, _ = await finished(stage, headers=EVENTS | BOB)
    async with await stage.get(f"/streams/{stream_id}", headers={}) as response:
        assert response.status == 404


MALFORMED = ["1", "x" * 10_000 + "!", "A.1.1", f"{'A' * 22}.-1.0", f"{'A' * 22}.1", "../../x", "é"]


@pytest.mark.parametrize("cursor", MALFORMED)
@pytest.mark.parametrize("route", ["/single", "/proxy", "/streams/" + "A" * 22])
async def test_malformed_cursor_is_400(stage: Stage, route: str, cursor: str) -> None:
    async with await stage.get(route, "never asked", last_event_id=cursor) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "bad_cursor"
    if len(cursor) < 8000:
        async with await stage.get(route, "never asked", cursor=cursor) as response:
            assert response.status == 400
    assert not stage.asked("never asked")


async def test_header_of_10_kb_is_431(stage: Stage) -> None:
    async with await stage.get("/single", "never asked", cursor="x" * 10_000) as response:
        assert response.status == 431


async def test_cursor_of_a_trimmed_log_is_told_as_expired(stage: Stage) -> None:
    question = stage.plays(openai_answer(*["x" * 200] * 60))
    messages = await whole(await stage.get("/small", question))
    late = await whole(await stage.get("/small", question, cursor=messages[1].last_event_id))
    assert [message.type for message in late] == ["error"]
    assert late[0].json()["code"] == "cursor_expired"
    assert len(stage.asked(question)) == 1


async def test_cursor_sent_twice_starts_no_generation(stage: Stage) -> None:
    question, _, messages = await finished(stage)
    cursor = messages[1].last_event_id
    url = stage.url("/single", question, last_event_id=cursor) + f"&last_event_id={cursor}"
    async with await request(url, headers=EVENTS) as response:
        assert response.status == 200
        assert text_of([message async for message in response.messages()]) == "twothree"
    assert len(stage.asked(question)) == 1


SPELLINGS = ["lastEventId", "Last-Event-ID", "last-event-id", "evs_last_event_id", "last%5Fevent%5Fid"]


@pytest.mark.parametrize("name", SPELLINGS)
async def test_cursor_under_a_library_s_own_name_starts_no_second_answer(stage: Stage, name: str) -> None:
    """C8: on the same URL, by POST, by the stream's id, and on a proxy route, whose upstream does not see it."""
    question, stream_id, messages = await finished(stage)
    cursor = messages[1].last_event_id
    url = stage.url("/single", question)
    for ask in (
        request(f"{url}&{name}={cursor}", headers=EVENTS),
        request(f"{url}&{name}=&{name}={cursor}", headers=EVENTS | {"Last-Event-ID": ""}),
        request(f"{url}&last_event_id={messages[0].last_event_id}&{name}={cursor}", headers=EVENTS),
        request(f"{stage.url('/single')}?{name}={cursor}", method="POST", headers=EVENTS, body={"message": question}),
        request(f"{stage.url(f'/streams/{stream_id}')}?{name}={cursor}", headers=EVENTS),
        request(stage.url("/single"), method="POST", body={"message": question, "last_event_id": cursor}),
    ):
        assert text_of(await whole(await ask)) == "twothree"
    async with await request(f"{url}&{name}={messages[-1].last_event_id}", headers=EVENTS) as end:
        assert end.status == 204
    assert len(stage.asked(question)) == 1

    question = stage.plays(events_answer("x", "y"))
    first, *_ = await whole(await stage.get("/proxy", question))
    url = f"{stage.url('/proxy', question)}&{name}={first.last_event_id}"
    assert [message.data for message in await whole(await request(url, headers=EVENTS))] == ["y"]
    assert len(stage.asked(question)) == 1


async def test_foreign_cursor_under_a_library_s_own_name_is_told_as_any_other(stage: Stage) -> None:
    _, cursor = await lost_cursor(stage, "foreign")
    url = f"{stage.url('/single', 'never asked')}&lastEventId={cursor}"
    [error] = await whole(await request(url, headers=EVENTS | ANN))
    assert error.json()["code"] == "cursor_expired"
    assert not stage.asked("never asked")


@pytest.mark.parametrize(
    ("route", "sent"),
    [
        ("/proxy", "lastEventId=7&last-event-id=x"),
        ("/proxy", "lastEventId="),
        ("/proxy-off", f"lastEventId={'A' * 22}.1.1"),
        ("/proxy-off", "last_event_id=7"),
    ],
)
async def test_parameter_of_that_name_which_is_no_cursor_is_the_upstream_s(stage: Stage, route: str, sent: str) -> None:
    question = stage.plays(events_answer("x"))
    [message] = await whole(await request(f"{stage.url(route, question)}&{sent}", headers=EVENTS))
    assert message.data == "x"
    assert stage.asked(question)[0].target.endswith(sent)


async def test_plain_request_carries_no_cursor_to_the_upstream(stage: Stage) -> None:
    question = stage.plays(events_answer("x"))
    url = f"{stage.url('/proxy', question)}&lastEventId={'A' * 22}.1.1&a=1"
    async with await request(url, headers={"Accept": "application/json"}) as answer:
        await answer.body()
    [asked] = stage.asked(question)
    assert ("A" * 22 not in asked.target, asked.target.endswith("&a=1")) == (True, True)


# Several readers of one stream.


async def test_two_tabs_each_get_everything_and_one_leaving_stops_nothing(stage: Stage) -> None:
    go_on = asyncio.Event()
    question, first = await begun(stage, after=[WaitFor(go_on), *openai_answer("two")[1:]])
    stream_id = first.headers["x-stream-id"]
    second = await stage.get(f"/streams/{stream_id}")
    third = await stage.get(f"/streams/{stream_id}", cursor=first.parser.last_event_id)
    assert (await second.next()) is not None
    await first.reset()
    go_on.set()
    assert text_of(await whole(second)) == "onetwo"
    assert text_of(await whole(third)) == "two"
    assert len(stage.asked(question)) == 1


async def test_stop_ends_the_generation_for_every_reader_with_one_terminal(stage: Stage) -> None:
    for method, suffix in (("POST", "/stop"), ("DELETE", "")):
        question, first = await begun(stage)
        stream_id = first.headers["x-stream-id"]
        second = await stage.get(f"/streams/{stream_id}")
        async with await request(stage.url(f"/streams/{stream_id}{suffix}"), method=method) as answer:
            assert await answer.json() == {"id": stream_id, "state": "stopped"}
        for reader in (first, second):
            last = (await whole(reader))[-1]
            assert (last.type, last.json()["finish_reason"], last.json()["full_text"]) == ("done", "stopped", "one")
        assert stage.asked(question)[0].closed.is_set()


# C7


@pytest.mark.alone
async def test_reconnect_storm_on_a_stream_is_slowed_down_and_starts_nothing(stage: Stage) -> None:
    question, first = await begun(stage, after=[Pause(1), *openai_answer("two")[1:]])
    cursor, refused, resumed = first.parser.last_event_id, 0, 0
    await first.reset()
    for _ in range(50):
        async with await stage.get("/single", question, cursor=cursor) as response:
            assert response.status == 200
            await response.read()
            refused += b"rate_limited" in response.raw
            resumed += b"rate_limited" not in response.raw
            assert response.parser.last_event_id in ("", cursor)
    assert refused > 20
    assert resumed > 10
    assert len(stage.asked(question)) == 1
    async with await stage.get("/single", question, cursor=cursor) as response:
        [error] = [message async for message in response.messages()]
        assert (error.json()["code"], error.json()["retryable"]) == ("rate_limited", True)
        assert response.parser.retry is not None
        assert response.parser.retry >= 400  # a slot is free again after half a second
    post = await stage.post("/openai", completion(question), headers={"Last-Event-ID": cursor})
    async with post:
        assert (post.status, "retry-after" in post.headers) == (429, True)
