"""A principal is a kind and an id, contract section 5: no name of one kind can be taken for a name of another."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.upstream import Hang, Step, openai_answer, openai_delta, sse_head
from tests.web.stage import EVENTS, Stage, staged, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = EVENTS
NAMED_ANONYMOUS = EVENTS | {"Authorization": "Bearer anonymous-key"}
NAMED_ADDRESS = EVENTS | {"Authorization": "Bearer address-key"}
PAIRS = pytest.mark.parametrize(
    ("owner", "other"),
    [
        pytest.param(NOBODY, NAMED_ANONYMOUS, id="anonymous and a key of that name"),
        pytest.param(NAMED_ANONYMOUS, NOBODY, id="a key named anonymous and an anonymous reader"),
        pytest.param(NOBODY, NAMED_ADDRESS, id="an address and a key of that name"),
        pytest.param(NAMED_ADDRESS, NOBODY, id="a key named like an address and that address"),
    ],
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    keys = [{"id": "anonymous", "key": "anonymous-key"}, {"id": "127.0.0.1", "key": "address-key"}]
    async with staged(
        tmp_path_factory.mktemp("gateway"),
        [{"path": "/chat", "history": {"turns": 20}}],
        server={"trusted_proxies": ["127.0.0.1/32"]},
        auth={"anonymous": True, "keys": keys},
        plans={"default": {"requests": "1000/day"}},
    ) as stage:
        yield stage


@PAIRS
async def test_nobody_reads_or_stops_the_stream_of_a_namesake(stage: Stage, owner: Any, other: Any) -> None:
    answer = await stage.get("/chat", stage.plays([sse_head(), openai_delta("x"), Hang()]), headers=owner)
    first = await answer.next()
    assert first is not None
    stream = f"/streams/{answer.headers['x-stream-id']}"
    for headers, status in ((other, 404), (owner, 200)):
        async with await stage.get(stream, headers=headers) as reader:
            assert reader.status == status
    resumed = await whole(await stage.get("/chat", headers=other, cursor=first.last_event_id))
    assert [message.json()["code"] for message in resumed] == ["cursor_expired"]
    for headers, status in ((other, 404), (owner, 200)):
        async with await stage.post(f"{stream}/stop", None, headers=headers) as stopped:
            assert stopped.status == status
    await answer.close()


@PAIRS
async def test_nobody_goes_on_with_the_chat_of_a_namesake(
    stage: Stage, owner: Any, other: Any, request: pytest.FixtureRequest
) -> None:
    session = request.node.callspec.id.replace(" ", "-")
    secret = stage.plays(openai_answer("an answer"), "a secret")
    await whole(await stage.get("/chat", secret, headers=owner, session_id=session))
    for headers, said in ((other, 1), (owner, 3)):
        question = stage.plays(openai_answer("x"))
        await whole(await stage.get("/chat", question, headers=headers, session_id=session))
        assert len((await stage.exchange(question)).json()["messages"]) == said


async def test_namesakes_use_up_no_limits_of_each_other(stage: Stage) -> None:
    everybody = (NOBODY, NAMED_ANONYMOUS, NAMED_ADDRESS)
    before = [await requests_left(stage, headers) for headers in everybody]
    assert [await requests_left(stage, headers) for headers in everybody] == [left - 1 for left in before]


async def requests_left(stage: Stage, headers: dict[str, str]) -> int:
    answer = await stage.get("/chat", stage.plays(openai_answer("x")), headers=headers)
    await whole(answer)
    return int(answer.headers["ratelimit"].partition(";r=")[2].partition(";")[0])


async def test_anonymous_reader_resumes_from_another_address(stage: Stage) -> None:
    script: list[Step] = [sse_head(), openai_delta("x"), Hang()]
    answer = await stage.get("/chat", stage.plays(script), headers=NOBODY | {"X-Forwarded-For": "10.0.0.1"})
    stream = f"/streams/{answer.headers['x-stream-id']}"
    moved = {"X-Forwarded-For": "10.0.0.2"}
    async with await stage.get(stream, headers=EVENTS | moved) as reader:
        assert reader.status == 200
    async with await stage.post(f"{stream}/stop", None, headers=moved) as stopped:
        assert stopped.status == 200
    await answer.close()


@pytest.mark.parametrize(
    ("headers", "principal"), [(NOBODY, "addr:127.0.0.1"), (NAMED_ADDRESS, "key:127.0.0.1")], ids=["addr", "key"]
)
async def test_operator_sees_the_kind_of_a_principal(stage: Stage, headers: dict[str, str], principal: str) -> None:
    answer = await stage.get("/chat", stage.plays([sse_head(), openai_delta("x"), Hang()]), headers=headers)
    stream_id = answer.headers["x-stream-id"]
    [listed] = [stream for stream in await stage.admin("/streams") if stream["id"] == stream_id]
    assert listed["principal"] == principal
    async with await stage.post(f"/streams/{stream_id}/stop", None, headers=headers):
        await whole(answer)
    await stage.gateway.logged("stream_end", stream_id=stream_id, principal=principal)
    await stage.gateway.logged("request", request_id=answer.headers["x-request-id"], principal=principal)
