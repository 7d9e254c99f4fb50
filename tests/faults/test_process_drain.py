"""W1, W2: the gateway is told to end while hundreds of streams run."""

import asyncio
import signal
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import EventSource, Message, allow_connections, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Cut,
    Exchange,
    Hang,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_answer,
    openai_delta,
    sse_head,
)
from tests.web.stage import eventually, text_of

DRAIN = 1.5
STREAMS = 500
FINISH = "finish"


def config(upstream: ScriptedUpstream, **server: Any) -> dict[str, Any]:
    return {
        "server": {"drain": f"{DRAIN}s"} | server,
        "auth": {"anonymous": True},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": upstream.url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


class Answers:
    """An upstream's script: after `go` a question that says so is answered in full, any other never ends."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    def __call__(self, exchange: Exchange) -> list[Step]:
        opening: list[Step] = [sse_head(), openai_delta("one")]
        more: list[Step] = [WaitFor(self.go), openai_delta("two")]
        if FINISH not in exchange.body.decode():
            return [*opening, *more, Hang()]
        return [*opening, *more, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK, Cut()]


class Reader:
    """A browser that reads one stream to its end."""

    def __init__(self, gateway: Gateway, question: str) -> None:
        self.source = EventSource(f"{gateway.url}/chat?message={question}")
        self.messages: list[Message] = []

    async def begin(self) -> None:
        self.messages += await self.source.until("token", timeout=20)

    async def finish(self) -> None:
        async for message in self.source.current.messages():
            self.messages.append(message)
        await self.source.current.close()

    @property
    def text(self) -> str:
        return text_of(self.messages)

    @property
    def end(self) -> dict[str, Any]:
        terminal = [message for message in self.messages if message.type in ("done", "error")]
        assert terminal == self.messages[-1:], self.messages
        fields: dict[str, Any] = terminal[0].json()
        return {"type": terminal[0].type} | fields

    @property
    def retry(self) -> int:
        assert self.source.current.parser.retry is not None
        return self.source.current.parser.retry


async def open_readers(gateway: Gateway, count: int, question: str) -> list[Reader]:
    allow_connections(2 * STREAMS)
    readers = [Reader(gateway, question) for _ in range(count)]
    await asyncio.gather(*(reader.begin() for reader in readers))
    return readers


async def test_term_under_load_lets_every_stream_end(start_gateway: StartGateway) -> None:
    """W1: with time enough nobody notices, but for those who come new."""
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        gateway = await start_gateway(config(upstream, drain="20s"))
        readers = await open_readers(gateway, STREAMS, FINISH)
        gateway.send_signal(signal.SIGTERM)
        assert (await gateway.logged("draining"))["streams"] == STREAMS
        await check_refuses(gateway)
        began = asyncio.get_running_loop().time()
        answers.go.set()
        await asyncio.gather(*(reader.finish() for reader in readers))
        assert await gateway.wait() == 0
        assert asyncio.get_running_loop().time() - began < 8  # it did not wait for the end of the drain
    assert [(reader.end["type"], reader.end["full_text"]) for reader in readers] == [("done", "onetwo")] * STREAMS
    assert {reader.text for reader in readers} == {"onetwo"}
    outcomes = [line["outcome"] for line in gateway.log_lines("stream_end")]
    assert outcomes == ["completed"] * STREAMS


@pytest.mark.alone
async def test_term_under_load_cuts_what_goes_on_too_long_and_loses_nothing(start_gateway: StartGateway) -> None:
    """W1: at the end of `drain` everybody has all that the upstream said, one error, and a time to come back."""
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        gateway = await start_gateway(config(upstream))
        ending, endless = (
            await open_readers(gateway, STREAMS // 5, FINISH),
            await open_readers(gateway, STREAMS * 4 // 5, "for-ever"),
        )
        began = asyncio.get_running_loop().time()
        gateway.send_signal(signal.SIGTERM)
        assert (await gateway.logged("draining"))["streams"] == STREAMS
        answers.go.set()
        await asyncio.gather(*(reader.finish() for reader in [*ending, *endless]))
        assert await gateway.wait() == 0
        # Two seconds; more for hundreds of readers in one process on a machine that is busy with other things.
        assert DRAIN <= asyncio.get_running_loop().time() - began < DRAIN + 4
    assert DRAIN <= apart(gateway, "draining", "drained") < DRAIN + 1
    assert [reader.end["type"] for reader in ending] == ["done"] * len(ending)
    assert {reader.text for reader in [*ending, *endless]} == {"onetwo"}
    assert {reader.end["code"] for reader in endless} == {"drained"}
    assert all(reader.end["retryable"] for reader in endless)
    check_spread([reader.retry for reader in endless])
    outcomes = Counter(line["outcome"] for line in gateway.log_lines("stream_end"))
    assert outcomes == {"completed": len(ending), "drained": len(endless)}


def apart(gateway: Gateway, *events: str) -> float:
    """Seconds between two lines of the log."""
    first, second = (datetime.fromisoformat(gateway.log_lines(event)[0]["ts"]) for event in events)
    return (second - first).total_seconds()


async def check_refuses(gateway: Gateway) -> None:
    """Not ready, but alive; new streams are refused in the client's own way."""
    async with await request(f"{gateway.admin}/readyz") as ready, await request(f"{gateway.admin}/livez") as live:
        assert (ready.status, live.status) == (503, 200)
    async with await request(f"{gateway.url}/chat", method="POST", body={"message": "hi"}) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert (await answer.json())["code"] == "draining"
    async with await request(f"{gateway.url}/chat?message=hi", headers={"Accept": "text/event-stream"}) as answer:
        messages = [message async for message in answer.messages()]
        assert (answer.status, [message.type for message in messages]) == (200, ["error"])
        assert answer.parser.retry is not None
        assert answer.parser.retry >= 2000
    assert (await Ledger(gateway).scrape()).total("gateway_draining") == 1


def check_spread(retries: list[int]) -> None:
    """A crowd comes back over many seconds, not as one."""
    assert min(retries) >= 1000
    assert max(retries) <= 20_000
    assert len(set(retries)) > len(retries) * 0.8
    assert max(retries) - min(retries) > 8000
    count, ordered = len(retries), sorted(retries)
    assert ordered[count * 2 // 3] - ordered[count // 3] > 1500


async def test_readers_of_one_stream_are_spread_too(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        gateway = await start_gateway(config(upstream, drain="0s"))
        [first] = await open_readers(gateway, 1, "for-ever")
        others = [
            await request(f"{gateway.url}/streams/{first.source.current.headers['x-stream-id']}") for _ in range(9)
        ]
        gateway.send_signal(signal.SIGTERM)
        for other in others:
            assert [message.type async for message in other.messages()][-1] == "error"
            await other.close()
        await first.finish()
        assert await gateway.wait() == 0
    assert first.end["code"] == "drained"
    assert len({other.parser.retry for other in others}) > 5


async def test_resume_still_works_while_draining(start_gateway: StartGateway) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        gateway = await start_gateway(config(upstream))
        [reader] = await open_readers(gateway, 1, FINISH)
        gateway.send_signal(signal.SIGTERM)
        await gateway.logged("draining")
        reader.source.retry = 0.01
        reader.source.current.parser.retry = None
        await reader.source.drop()
        await reader.source.open()
        answers.go.set()
        reader.messages += await reader.source.until("done")
        await reader.source.close()
        assert reader.end["full_text"] == "onetwo"
        assert len(upstream.exchanges) == 1
        assert await gateway.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_all_within_two_seconds(start_gateway: StartGateway, number: signal.Signals) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        gateway = await start_gateway(config(upstream, drain="30s"))
        readers = await open_readers(gateway, 20, "for-ever")
        silent = await request(f"{gateway.url}/chat?message=hi", receive_buffer=4096)
        gateway.send_signal(number)
        await gateway.logged("draining")
        began = asyncio.get_running_loop().time()
        gateway.send_signal(number)
        await asyncio.gather(*(reader.finish() for reader in readers))
        assert await gateway.wait(5) == 0
        assert asyncio.get_running_loop().time() - began < 2
        await silent.close()
    assert {reader.end["code"] for reader in readers} == {"drained"}


@pytest.mark.parametrize("end", [[Hang()], openai_answer()[1:]], ids=["running", "ended"])
async def test_second_signal_does_not_wait_for_a_reader_that_takes_nothing(
    start_gateway: StartGateway, end: list[Step]
) -> None:
    """W2: whether its stream still runs or has ended."""
    flood: list[Step] = [sse_head(), *[openai_delta("x" * 30_000)] * 100, *end]
    async with ScriptedUpstream(flood) as upstream:
        gateway = await start_gateway(config(upstream, drain="30s"))
        stuck = await request(f"{gateway.url}/chat?message=hi", receive_buffer=4096)
        await upstream.exchange()
        gateway.send_signal(signal.SIGTERM)
        await gateway.logged("draining")
        began = asyncio.get_running_loop().time()
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.wait(5) == 0
        assert asyncio.get_running_loop().time() - began < 2
        await stuck.close()


LONG = "y" * 10_000


async def test_slow_reader_of_a_stream_that_has_ended_gets_the_rest_while_draining(start_gateway: StartGateway) -> None:
    """W1: who still has megabytes to read when the answer is whole has as long as a running stream has."""
    async with ScriptedUpstream([sse_head(), *[openai_delta(LONG)] * 100, *openai_answer()[1:]]) as upstream:
        gateway = await start_gateway(config(upstream, drain="20s"))
        slow = await request(f"{gateway.url}/chat?message=hi", receive_buffer=4096)
        await completed(gateway)
        gateway.send_signal(signal.SIGTERM)
        await gateway.logged("draining", streams=0)
        await asyncio.sleep(2)  # longer than the farewell of a gateway that has nothing to wait for
        messages = [message async for message in slow.messages()]
        began = asyncio.get_running_loop().time()
        assert await gateway.wait() == 0
        assert asyncio.get_running_loop().time() - began < 2
        await slow.close()
    assert text_of(messages) == LONG * 100
    assert messages[-1].type == "done"


async def completed(gateway: Gateway) -> None:
    """Returns when one stream has ended."""
    ledger = Ledger(gateway)
    await eventually(ledger.scrape, lambda scrape: scrape.total("gateway_streams_total", outcome="completed") == 1)


async def test_reader_that_takes_nothing_holds_the_end_up_no_longer_than_drain(start_gateway: StartGateway) -> None:
    """W1: `drain` bounds the patience with a reader, as with a stream."""
    async with ScriptedUpstream([sse_head(), *[openai_delta(LONG)] * 100, *openai_answer()[1:]]) as upstream:
        gateway = await start_gateway(config(upstream, drain="1s"))
        stuck = await request(f"{gateway.url}/chat?message=hi", receive_buffer=4096)
        await completed(gateway)
        began = asyncio.get_running_loop().time()
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.wait(5) == 0
        assert 1 <= asyncio.get_running_loop().time() - began < 3
        await stuck.close()


async def test_idle_gateway_ends_at_once(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        gateway = await start_gateway(config(upstream, drain="30s"))
        async with await request(f"{gateway.url}/nothing") as answer:  # a kept-alive connection does not hold it up
            assert answer.status == 404
            began = asyncio.get_running_loop().time()
            gateway.send_signal(signal.SIGTERM)
            assert await gateway.wait(5) == 0
            assert asyncio.get_running_loop().time() - began < 2


async def test_gateway_that_was_killed_starts_again_on_its_port(tmp_path: Path) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        gateway = Gateway(config(upstream), tmp_path)
        await gateway.start()
        [reader] = await open_readers(gateway, 1, "for-ever")
        await gateway.kill()
        await gateway.start()
        reader.source.retry = 0.01
        reader.source.current.parser.retry = None
        assert (await reader.source.next()).json()["code"] == "cursor_expired"  # one clear error, and no second answer
        reader.source.current.parser.retry = 10
        with pytest.raises(EOFError):
            await reader.source.next()
        assert reader.source.current.status == 204
        assert len(upstream.exchanges) == 1
        await gateway.stop()
