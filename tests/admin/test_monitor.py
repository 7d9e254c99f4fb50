"""The monitor's feed, as a browser's EventSource reads it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from gateway.admin.monitor import MAX_WATCHERS, SHOWN
from gateway.admin.readings import LISTED
from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import EventSource, Response, request
from tests.kit.upstream import Exchange, Hang, ScriptedUpstream, Step, openai_delta, response, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS: list[Step] = [sse_head(), openai_delta("one"), Hang()]


def play(exchange: Exchange) -> Sequence[Step]:
    """No end, but to a question that is to be refused."""
    return [response(400, "{}")] if b"refuse" in exchange.body else ENDLESS


def config(url: str, **server: Any) -> dict[str, Any]:
    free = {"requests": None, "streams": 10_000, "tokens": None}
    return {
        "server": {"drain": "0s"} | server,
        "auth": {"keys": [{"id": "安娜", "key": "k"}]},
        "plans": {"default": free},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"on_disconnect": {"after": "0s"}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with (
        ScriptedUpstream(play) as upstream,
        Gateway(config(upstream.url), tmp_path_factory.mktemp("monitor")) as gateway,
    ):
        yield gateway


def feed(gateway: Gateway) -> EventSource:
    return EventSource(f"{gateway.admin}/events")


async def ask(gateway: Gateway) -> Response:
    answer = await request(f"{gateway.url}/chat?message=hi&token=k", headers={"Accept": "text/event-stream"})
    while (await answer.next() or pytest.fail("ended")).type != "token":
        continue
    return answer


async def test_watcher_sees_a_stream_come_and_go(gateway: Gateway) -> None:
    async with Ledger(gateway), feed(gateway) as source:
        assert (await source.until("now"))[-1].json()["streams"] == []
        answer = await ask(gateway)
        now = (await source.until("now"))[-1].json()
        assert [(stream["principal"], stream["events"]) for stream in now["streams"]] == [("key:安娜", 1)]
        assert (now["running"], now["draining"], now["reloaded"]) == (1, False, True)
        assert [(target["upstream"], target["open"], target["state"]) for target in now["targets"]] == [
            ("main", 1, "in service")
        ]
        await answer.close()
        samples = [message.json() for message in await source.take(4) if message.type == "sample"]
        assert {"client_gone": 1} in [sample.get("ended") for sample in samples]


async def test_sample_tells_what_happened_since_the_last_one(gateway: Gateway) -> None:
    async with Ledger(gateway), feed(gateway) as source:
        await source.until("now")
        async with await ask(gateway):
            samples = [(await source.until("sample"))[-1].json() for _ in range(3)]
            assert sum(sample.get("started", 0) for sample in samples) == 1
            assert sum(sample.get("events", 0) for sample in samples) == 1
            assert [list(sample["first"]) for sample in samples if "first" in sample] == [["main"]]
            assert [sample["asked"] for sample in samples if "asked" in sample] == [{"main": 1}]
            assert (samples[2]["streams"], samples[2]["readers"]) == (1, 1)
            assert samples[2]["rss"] > 10 << 20


async def test_later_watcher_is_told_what_was_before(gateway: Gateway) -> None:
    async with feed(gateway) as source:
        seen = [message.json()["t"] for message in await source.take(4) if message.type == "sample"]
    async with feed(gateway) as source:
        told = [message.json()["t"] for message in await source.until("now") if message.type == "sample"]
    assert set(told) >= set(seen)


async def test_watcher_who_drops_goes_on_where_it_was(gateway: Gateway) -> None:
    async with EventSource(f"{gateway.admin}/events", retry=0.1) as source:
        before = await source.until("now")
        await source.drop()
        after = await source.until("now")
        times = [message.json()["t"] for message in [*before, *after] if message.type == "sample"]
        assert times == sorted(set(times))


@pytest.mark.parametrize("cursor", ["nonsense", f"{'x' * 22}.7.0", f"~{'x' * 22}"])
async def test_watcher_of_another_process_begins_anew(gateway: Gateway, cursor: str) -> None:
    async with EventSource(f"{gateway.admin}/events", last_event_id=cursor) as source:
        types = [message.type for message in await source.until("now")]
        assert types == ["sample"] * (len(types) - 1) + ["now"]


async def test_watchers_are_bounded(gateway: Gateway) -> None:
    feeds = await asyncio.gather(*(request(f"{gateway.admin}/events") for _ in range(MAX_WATCHERS)))
    async with await request(f"{gateway.admin}/events") as refused:
        assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    await asyncio.gather(*(one.close() for one in feeds))
    while (again := await request(f"{gateway.admin}/events")).status != 200:  # a close is noticed by the next sample
        await again.close()
        await asyncio.sleep(0.1)
    await again.close()


async def test_watcher_is_told_at_once_what_ended_and_again_only_when_something_is_new(gateway: Gateway) -> None:
    async with Ledger(gateway), feed(gateway) as source:
        before = (await source.until("past"))[-1].json()
        quiet = [message.type for message in await source.take(4)]
        assert "past" not in quiet
        answer = await ask(gateway)
        stream_id = answer.headers["x-stream-id"]
        await answer.close()
        ended = (await source.until("past"))[-1].json()["ended"]
    assert stream_id not in [one["id"] for one in before["ended"]]
    assert (ended[0]["id"], ended[0]["outcome"], ended[0]["principal"]) == (stream_id, "client_gone", "key:安娜")
    assert (ended[0]["route"], ended[0]["upstream"], ended[0]["model"]) == ("/chat", "main", "scripted")
    assert ended[0]["seconds"] >= ended[0]["first"] > 0


async def test_watcher_is_told_of_failures_and_of_no_more_than_the_page_lists(gateway: Gateway) -> None:
    for _ in range(SHOWN + 2):
        async with await request(f"{gateway.url}/chat?token=k&message=refuse") as answer:
            await answer.body()
    async with feed(gateway) as source:
        past = (await source.until("past"))[-1]
    failures = past.json()["failures"]
    assert (len(failures), past.json()["kept"]) == (SHOWN, 2 * (SHOWN + 2))
    assert {(one["upstream"], one["code"], one["kind"]) for one in failures} == {
        ("main", "upstream_refused", kind) for kind in ("attempt", "stream")
    }
    assert len(past.data) < 60_000


async def test_feed_of_many_streams_is_bounded(gateway: Gateway) -> None:
    answers = [await ask(gateway) for _ in range(LISTED + 20)]
    async with Ledger(gateway), feed(gateway) as source:
        await source.until("now")
        now = (await source.until("now"))[-1]
        assert (now.json()["running"], len(now.json()["streams"])) == (LISTED + 20, LISTED)
        assert len(now.data) < 100_000
        ages = [stream["age_s"] for stream in now.json()["streams"]]
        assert ages == sorted(ages, reverse=True)
        await asyncio.gather(*(answer.close() for answer in answers))


async def test_watcher_sees_a_refused_reload_and_its_repair(gateway: Gateway) -> None:
    async with feed(gateway) as source:
        good = gateway.config
        for text, event, reloaded in (("routes: 7", "reload_failed", False), (good, "reloaded", True)):
            gateway.write_config(text)
            gateway.send_signal(signal.SIGHUP)
            await gateway.logged(event)
            await source.until("now")
            assert (await source.until("now"))[-1].json()["reloaded"] is reloaded


@pytest.mark.asyncio(loop_scope="function")
async def test_watcher_sees_the_drain_and_holds_up_nobody(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        gateway = await start_gateway(config(upstream.url, drain="30s"))
        async with await ask(gateway) as answer, await request(f"{gateway.admin}/events") as watching:
            await now(watching)
            gateway.send_signal(signal.SIGTERM)
            while not (await now(watching))["draining"]:
                continue
            await answer.close()
            while await watching.next():
                continue
            assert not watching.broken  # it was ended in order, not cut with the process
            assert await gateway.wait() == 0


async def now(watching: Response) -> dict[str, Any]:
    """The next state of things."""
    while (message := await watching.next()) and message.type != "now":
        continue
    assert message, "the feed ended"
    state: dict[str, Any] = message.json()
    return state
