"""Three gateways that share one Redis, over sockets: chats, tickets and revocations are those of all of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.program import Gateway
from tests.kit.redis import Redis, nodes
from tests.kit.sse_client import Message, Response, request
from tests.kit.upstream import Hang, Step, WaitFor, openai_answer, openai_delta, sse_head
from tests.store.shared import everything, without_expiry
from tests.web.stage import EVENTS, Stage, eventually, setting, text_of, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "correct horse battery staple"
KEYS = [{"id": name, "key": f"{name}-secret-key"} for name in ("web", "app", "removed", "rotated", "fine")]
KEYS.append({"id": "slow", "key": "slow-secret-key", "plan": "slow"})
SECTIONS: dict[str, Any] = {
    "auth": {"keys": KEYS, "tickets": {"ttl": "1h"}},
    "plans": {"slow": {"streams": 1}},
}
ROUTES = [{"path": "/chat", "history": {"turns": 1000}}]  # more than any scene asks
ENDLESS: list[Step] = [sse_head(), openai_delta("x"), Hang()]


class House(Stage):
    """Three nodes, their upstream and their Redis. `on` chooses the node that is asked."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self.redis = redis
        self.nodes: list[Gateway] = []

    def on(self, number: int) -> "House":
        """This node is asked from now on."""
        self.gateway = self.nodes[number]
        return self


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("house")
    async with Redis(folder / "r") as redis:
        house = House(redis)
        async with house.upstream:
            config = setting(house.upstream.url, ROUTES, **SECTIONS)
            async with nodes(3, config, folder, {"url": redis.url, "secret": SECRET}) as house.nodes:
                yield house
        for node in house.nodes:
            assert not [line for line in node.log_lines() if line["level"] == "error"]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-secret-key"}


async def ticket(house: House, number: int, name: str = "web") -> str:
    async with await request(f"{house.nodes[number].url}/tickets", method="POST", headers=bearer(name)) as answer:
        assert answer.status == 200
        return str((await answer.json())["ticket"])


async def said(house: House, number: int, words: str, headers: Mapping[str, str], **query: str) -> list[Message]:
    """The answer of one node to a message."""
    question = house.plays(openai_answer(f"answer to {words}"), words)
    return await whole(await house.on(number).get("/chat", question, headers=EVENTS | dict(headers), **query))


async def told(house: House) -> list[str]:
    """The messages that the upstream was sent last."""
    return [message["content"] for message in house.upstream.exchanges[-1].json()["messages"]]


async def running(house: House, number: int, name: str = "", **query: str) -> Response:
    headers = EVENTS | (bearer(name) if name else {})
    answer = await house.on(number).get("/chat", house.plays(ENDLESS), headers=headers, **query)
    assert answer.status == 200
    return answer


async def how_it_ended(answer: Response) -> str:
    """The code of the error that ends a stream."""
    last = (await whole(answer))[-1]
    assert last.type == "error"
    return str(last.json()["code"])


async def test_chat_goes_on_at_any_node(house: House) -> None:
    for number, words in enumerate(["unmistakable first", "second", "third", "fourth"]):
        assert (
            text_of(await said(house, number % 3, words, bearer("web"), session_id="my-diary")) == f"answer to {words}"
        )
    messages = await told(house)
    assert [text.rpartition(" ")[0] if at % 2 == 0 else text for at, text in enumerate(messages)] == [
        "unmistakable first",
        "answer to unmistakable first",
        "second",
        "answer to second",
        "third",
        "answer to third",
        "fourth",
    ]
    await said(house, 1, "stranger", bearer("app"), session_id="my-diary")
    assert len(await told(house)) == 1


async def test_ticket_of_one_node_starts_one_stream_at_another(house: House) -> None:
    text = await ticket(house, 0)
    question = house.plays(openai_answer("once"))
    starts = [node.url for node in (*house.nodes[1:], *house.nodes)]
    answers = await asyncio.gather(
        *(request(f"{url}/chat?message={question.replace(' ', '%20')}&ticket={text}", headers=EVENTS) for url in starts)
    )
    seen = [await whole(answer) for answer in answers]
    assert len(house.asked(question)) == 1
    assert "once" in [text_of(messages) for messages in seen]
    for answer, messages in zip(answers, seen, strict=True):
        assert answer.status in (200, 401)  # 401: nothing reads another node's stream without that room's part
        if answer.status == 200 and text_of(messages) != "once":
            assert messages[-1].json()["code"] == "auth_unavailable"
            assert messages[-1].json()["retryable"] is True


async def test_ticket_of_a_request_that_was_refused_is_good_elsewhere(house: House) -> None:
    text = await ticket(house, 0, "slow")
    async with await running(house, 1, "slow") as first:
        refused = await whole(await house.on(1).get("/chat", "never asked", ticket=text))
        assert refused[-1].json()["code"] == "too_many_streams"
        url = f"{house.nodes[1].url}/streams/{first.headers['x-stream-id']}"
        async with await request(url, method="DELETE", headers=bearer("slow")) as stopped:
            assert stopped.status == 200

    async def with_the_ticket() -> str:
        return text_of(await said(house, 2, "granted", {}, ticket=text))

    assert await eventually(with_the_ticket, bool) == "answer to granted"


async def test_revoked_at_one_node_ends_at_all(house: House) -> None:
    streams = [await running(house, number, "app") for number in range(3)]
    streams.append(await running(house, 2, ticket=await ticket(house, 1, "app")))
    others = await running(house, 1, "fine")
    left = await ticket(house, 2, "app")
    url = f"{house.nodes[0].admin}/principals/key:app"
    async with await request(url, method="DELETE") as answer:
        told = await answer.json()
    assert (told["streams"], told["tickets"], told["all_nodes"]) == (1, 2, True)
    assert await asyncio.gather(*map(how_it_ended, streams)) == ["auth_expired"] * 4
    async with await house.on(0).get("/chat", "never asked", ticket=left) as answer:
        assert answer.status == 401
    assert text_of(await said(house, 1, "again", bearer("app"))) == "answer to again"  # its key is still good
    assert not [line for line in house.nodes[1].log_lines("stream_end") if line["principal"] == "key:fine"]
    await others.close()


async def test_key_that_a_reload_removed_ends_at_all_nodes(house: House) -> None:
    streams = [await running(house, number, name) for number in (0, 1, 2) for name in ("removed", "rotated")]
    changed = [key for key in KEYS if key["id"] != "removed"]
    changed = [key | {"key": "another-secret-key"} if key["id"] == "rotated" else key for key in changed]
    config = setting(house.upstream.url, ROUTES, **(SECTIONS | {"auth": {"keys": changed, "tickets": {"ttl": "1h"}}}))
    await house.nodes[0].reload(config | {"store": house.nodes[0].config["store"]})
    assert await asyncio.gather(*map(how_it_ended, streams)) == ["auth_expired"] * 6
    new = await running(house, 0, "another")  # with the new key; the next node's reload does not end it
    await house.nodes[1].reload(config | {"store": house.nodes[1].config["store"]})
    await house.nodes[1].logged("principal_revoked", principal="key:rotated")
    async with await request(f"{house.nodes[2].admin}/principals/key:nobody", method="DELETE") as answer:
        assert answer.status == 200  # what came before it was read by then
    lines = house.nodes[0].log_lines("principal_revoked_elsewhere", principal="key:rotated")
    assert lines == []
    await new.close()


async def test_nothing_in_clear_and_everything_expires(house: House) -> None:
    await said(house, 0, "unmistakable words", bearer("web"), session_id="my-diary")
    text = await ticket(house, 0)
    seen = await eventually(lambda: everything(house.redis), lambda seen: "gateway:c:" in seen)
    words = ("unmistakable", "diary", "key:web", "secret", text)
    assert not [word for word in words if word in seen]
    assert await without_expiry(house.redis) == []


async def test_redis_away(house: House) -> None:
    """Chats go on at their node; tickets are refused and to be tried again; one whose stream is here resumes here."""
    await said(house, 0, "before", bearer("web"), session_id="on")
    bound, unused = await ticket(house, 0), await ticket(house, 1)
    more = asyncio.Event()
    question = house.plays([sse_head(), openai_delta("one "), WaitFor(more), *openai_answer("two")[1:]])
    async with asyncio.timeout(10), await house.on(1).get("/chat", question, ticket=bound) as answer:
        messages = answer.messages()
        cursor = [await anext(messages), await anext(messages)][1].last_event_id
    more.set()
    house.redis.pause()
    try:
        async with await request(f"{house.nodes[0].url}/tickets", method="POST", headers=bearer("web")) as refused:
            assert refused.status == 503
            assert float(refused.headers["retry-after"]) > 0
            assert (await refused.json())["code"] == "auth_unavailable"
        (error,) = await whole(await house.on(2).get("/chat", "never asked", ticket=unused))
        assert (error.type, error.json()["code"], error.json()["retryable"]) == ("error", "auth_unavailable", True)
        async with await request(
            f"{house.nodes[2].url}/chat", method="POST", body={"message": "never asked"}, headers=bearer("nobody")
        ) as answer:
            assert answer.status == 401
        assert text_of(await whole(await house.on(1).get("/chat", question, cursor=cursor, ticket=bound))) == "two"
        assert len(house.asked(question)) == 1
        await said(house, 0, "meanwhile", bearer("web"), session_id="on")
        assert len(await told(house)) == 3
        async with await request(f"{house.nodes[0].admin}/principals/key:fine", method="DELETE") as answer:
            assert (await answer.json())["all_nodes"] is False
    finally:
        house.redis.resume()

    async def goes_on() -> list[str]:
        await said(house, 2, "afterwards", bearer("web"), session_id="on")
        return await told(house)

    known = await eventually(goes_on, lambda texts: "answer to meanwhile" in texts, timeout=20)
    assert (known.count("answer to before"), known.count("answer to meanwhile")) == (1, 1)

    async def with_the_ticket() -> str:
        return text_of(await said(house, 2, "at last", {}, ticket=unused))

    assert await eventually(with_the_ticket, bool, timeout=10) == "answer to at last"
