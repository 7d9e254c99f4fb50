"""A bad network on either side of the gateway: slices, delays, cuts at every byte, holes (U12, U13, U19, C1, C4).

Between the gateway and a primary of every provider's kind lies one proxy, between a client and the gateway another.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.faults.pair import TIMES, Pair, answers, begins, opened, pair_ways, prefix_of
from tests.faults.pair import ends as ending_of
from tests.faults.providers import PROVIDERS
from tests.faults.stage import FAST, PROMPT, Heard, Stage, Way, listen, stage_fixture
from tests.kit.sse_client import EventSource, request
from tests.kit.tcp_proxy import TCPProxy
from tests.kit.upstream import LAST_CHUNK, Cut, Exchange, Pause, Step, WaitFor, chunk, http_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = "Hi, 你好 \U0001f600!"
ASKED = [way for primary in PROVIDERS for way in pair_ways(primary=primary, backups=["openai"])]


# Between the gateway and the upstream.


class Bad(NamedTuple):
    """A pair with a network before its primary that can be made bad; each test begins with a good one."""

    pair: Pair
    network: TCPProxy


def bad_fixture(**settings: Any) -> Any:
    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def bad(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bad]:
        async with TCPProxy() as network:
            directory = tmp_path_factory.mktemp("bad")
            times = TIMES | {"first_event": "5s", "idle": "1s"}
            async with opened(directory, times, asked=ASKED, network=network, **settings) as pair:
                yield Bad(pair, network)

    return bad


helped = bad_fixture(retries=0)
alone = bad_fixture(retries=0, fallback=[])


async def test_answer_in_slices_of_a_few_bytes_is_the_same(helped: Bad, chance: random.Random) -> None:
    pair, network = helped.pair, helped.network
    network.restore()
    network.chance = chance
    pair.plays([answers(*WHOLE, model="first")])
    chats = [way for way in ASKED if way.kind == "chat"]
    straight = await pair.completes(WHOLE, primary=1, backup=0, asked=chats)
    for line in network.up, network.down:
        line.slice, line.jitter = 7, 0.0005
    pair.plays([answers(*WHOLE, model="first")])
    sliced = await pair.completes(WHOLE, primary=1, backup=0, asked=ASKED)
    told = [[message.data for message in heard.messages if message.type == "token"] for heard in straight]
    assert [
        [message.data for message in heard.messages if message.type == "token"]
        for way, heard in zip(ASKED, sliced, strict=True)
        if way.kind == "chat"
    ] == told


def goes_on(dialect: str, exchange: Exchange) -> Sequence[Step]:
    """The rest of the text, from wherever it broke off."""
    return [*begins(dialect, WHOLE[len(prefix_of(exchange) or "") :]), *ending_of(dialect)]


SHORT: dict[str, list[bytes]] = {
    "openai": [
        b'data: {"model":"first","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n',
        b'data: {"model":"first","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ],
    "anthropic": [
        b'data: {"type":"message_start","message":{"model":"first"}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}\n\n',
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
        b'data: {"type":"message_stop"}\n\n',
    ],
    "ollama": [
        b'{"message":{"content":"%s"}}\n',
        b'{"message":{"content":"%s"}}\n',
        b'{"message":{"content":""},"done":true}\n',
    ],
}
"""Answers in so few bytes that each of them can be the last."""


def short(dialect: str) -> bytes:
    texts = iter((WHOLE[:6].encode(), WHOLE[6:].encode()))
    said = [part % next(texts) if b"%s" in part else part for part in SHORT[dialect]]
    kind = "application/x-ndjson" if dialect == "ollama" else "text/event-stream"
    return http_head(200, kind, Transfer_Encoding="chunked") + b"".join(map(chunk, said)) + LAST_CHUNK


def is_honest(heard: Heard) -> bool:
    """Whether it is the whole answer with an end, or less with one error."""
    if not heard.errors:
        return (heard.text, heard.ended) == (WHOLE, 1 if heard.is_stream else 0) and not heard.broken
    code = heard.error["code"]
    torn = code in ("upstream_cut", "upstream_reset", "upstream_protocol")
    return torn and heard.ended == 0 and WHOLE.startswith(heard.text)


AT_ONCE = 12


async def cut_everywhere(bad: Bad, dialect: str, end: str, *, step: int) -> list[Heard]:
    """The answers over connections of which each ends behind another byte of the upstream's."""
    answer = short(dialect)
    bad.pair.plays([[answer]], [goes_on])
    places = iter(range(1, len(answer), step))
    bad.network.restore()
    setattr(bad.network.down, end, places)
    asked = [way for way in ASKED if way.dialect == dialect] * (AT_ONCE // 3)
    heard: list[Heard] = []
    for _ in range(len(answer) // (step * AT_ONCE) + 1):
        heard += await asyncio.gather(*map(bad.pair.stage.ask, asked))
    await bad.pair.stage.at_rest()
    assert next(places, None) is None, "every place was tried"
    return heard


ENDS = pytest.mark.parametrize(("end", "step"), [("cut_at", 1), ("reset_at", 7)])


@ENDS
@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_answer_cut_at_any_byte_is_made_whole(helped: Bad, dialect: str, end: str, step: int) -> None:
    for heard in await cut_everywhere(helped, dialect, end, step=step):
        assert is_honest(heard), heard.body
        assert not heard.errors, heard.body


@ENDS
@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_answer_cut_at_any_byte_that_nobody_can_finish_is_an_error(
    alone: Bad, dialect: str, end: str, step: int
) -> None:
    all_heard = await cut_everywhere(alone, dialect, end, step=step)
    assert all(map(is_honest, all_heard)), [heard.body for heard in all_heard if not is_honest(heard)]
    assert {bool(heard.errors) for heard in all_heard} == {True, False}


async def test_hole_in_the_network_is_a_stall_and_is_rescued(helped: Bad) -> None:
    gate = asyncio.Event()

    def slowly(dialect: str, _: Exchange) -> Sequence[Step]:
        first, second = begins(dialect, WHOLE[:4], WHOLE[4:], model="first")[-2:]
        return [*begins(dialect), first, WaitFor(gate), second, *ending_of(dialect, "first")]

    helped.network.restore()
    helped.pair.plays([slowly], [goes_on])
    before = await helped.pair.rescues()
    answering = asyncio.create_task(helped.pair.completes(WHOLE, primary=1, backup=1, asked=ASKED))
    await helped.pair.stage.upstream.exchange(len(ASKED) - 1)
    await asyncio.sleep(0.1)
    helped.network.hole()
    gate.set()
    await answering
    assert await helped.pair.rescues() - before == {("prefill", "completed"): len(ASKED)}


# Between a client and the gateway.

stage = stage_fixture(
    FAST | {"first_event": "5s"},
    routes=[{"path": "/back", "api": "chat", "upstream": "openai", "stream": {"retry": "100ms"}}],
)


def before(stage: Stage) -> TCPProxy:
    """A network before the gateway."""
    return TCPProxy(int(stage.gateway.url.rpartition(":")[2]))


def numbers(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


def many(count: int, pause: float) -> list[Step]:
    """An answer of these numbers, one after the other."""
    head, *said = begins("openai", *(f"{number} " for number in range(count)))
    return [head, *[step for one in said for step in (one, Pause(pause))], *ending_of("openai"), Cut()]


async def test_client_reset_at_any_bytes_has_the_whole_answer_of_one_call(stage: Stage, chance: random.Random) -> None:
    stage.plays(many(60, 0.005))
    async with before(stage) as network:
        network.down.reset_at = iter([chance.randint(900, 4000) for _ in range(6)])
        async with EventSource(f"{network.url}/back?message={PROMPT}") as source:
            messages = await source.until("done", "error")
        assert network.connections > 1
    texts = [message.json()["text"] for message in messages if message.type == "token"]
    assert "".join(texts) == messages[-1].json()["full_text"] == numbers(60)
    assert [message.type for message in messages].count("done") == 1
    assert len(stage.upstream.exchanges) == 1
    await stage.at_rest()


@pytest.mark.parametrize("kind", ["openai", "chat"])
async def test_client_behind_a_slow_line_has_heartbeats_and_the_whole_answer(stage: Stage, kind: str) -> None:
    script: list[Step] = [Pause(0.35), *many(100, 0.001)]
    stage.plays(script)
    async with before(stage) as network:
        for line in network.up, network.down:
            line.latency, line.jitter = 0.2, 0.01
        network.down.rate = 20_000
        way = Way(kind, committed=True)
        async with asyncio.timeout(10), await way.send(network.url) as response:
            heard = await listen(response)
    assert (heard.text, heard.ended, heard.errors) == (numbers(100), 1, [])
    assert len(heard.comments) >= 2
    await stage.at_rest()


async def test_client_in_a_hole_gets_the_rest_when_it_heals(stage: Stage) -> None:
    stage.plays(many(40, 0.01))
    async with before(stage) as network, await request(f"{network.url}/back?message={PROMPT}") as response:
        await response.next()
        network.hole()
        await asyncio.sleep(0.6)
        network.heal()
        messages = [message async for message in response.messages()]
    assert messages[-1].json()["full_text"] == numbers(40)
