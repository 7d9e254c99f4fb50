"""The sixteen faults of the public Failover Bench, each at a primary of every provider's kind, in that provider's own
words, behind every kind of route and with a fallback of every kind (U3, U5-U9, U11-U16, U26).

One row of `BENCH` is one fault: what the primary says call after call, how often both are asked, and what the reader
gets. Every answer must come whole, once, in order, with one end, the answering model's name, honest usage and one
outcome; every rescue must be counted. Three of the sixteen need more than a row and stand below the table: a fallback
that rejects prefill, a primary that flaps, and the accounting.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from tests.faults.pair import (
    USAGE,
    Pair,
    Play,
    Plays,
    answers,
    begins,
    ends,
    last_words,
    pair_fixture,
    pair_ways,
    prefix_of,
)
from tests.faults.providers import NOISE, PING, PROVIDERS, reason, refuses
from tests.kit.upstream import LAST_CHUNK, Exchange, Hang, Pause, Reset, Step, chunk

pytestmark = pytest.mark.asyncio(loop_scope="module")

pair = pair_fixture()

TEXT = "The quick brown fox jumps over the dog."
BEGUN = ("The quick brown", " fox ")
CARRIED = 5
"""Tokens of what was delivered before a break, as estimated; the fallback read them and did not write them."""


def says(what: str, **headers: str) -> Play:
    """A refusal."""
    return lambda dialect, _: [refuses(dialect, what, **headers)]


def then(*rest: Step) -> Play:
    """The beginning of an answer, and how it goes on."""
    return lambda dialect, _: [*begins(dialect, *BEGUN, model="first"), *rest]


def pings(dialect: str, _: Exchange) -> Sequence[Step]:
    return [*begins(dialect), *[step for _ in range(20) for step in (chunk(PING[dialect]), Pause(0.05))], Hang()]


def with_noise(dialect: str, _: Exchange) -> Sequence[Step]:
    head, *said = begins(dialect, TEXT[:9], TEXT[9:], model="first")
    return [head, *said[:-1], chunk(NOISE[dialect]), said[-1], *ends(dialect, "first")]


def without_marker(dialect: str, _: Exchange) -> Sequence[Step]:
    finished = last_words(dialect, "first")[:-1]
    return [*begins(dialect, TEXT, model="first"), *map(chunk, finished), LAST_CHUNK]


def goes_on(dialect: str, exchange: Exchange) -> Sequence[Step]:
    assert prefix_of(exchange) == "".join(BEGUN).rstrip(), prefix_of(exchange)
    return [*begins(dialect, " jumps", " over the dog."), *ends(dialect)]


GOOD = answers(TEXT, model="first")


class Row(NamedTuple):
    """One fault.

    Attributes:
        primary: what it says, call after call.
        calls: how often primary and fallback are asked.
        rescued: whether the fallback goes on from what was delivered.
        seconds: that pass at least.
        providers: to which the fault can happen.
    """

    primary: Plays
    calls: tuple[int, int]
    rescued: bool = False
    seconds: float = 0.0
    providers: Sequence[str] = PROVIDERS


MARKED = ("openai", "anthropic")
"""Providers whose finish reason comes before the end marker. Ollama's come in one, so that it lacks both or neither."""

BENCH = {
    "429 with Retry-After": Row([says("rate limit", Retry_After="0.2"), GOOD], (2, 0), seconds=0.2),
    "429 with a Retry-After of a minute": Row([says("rate limit", Retry_After="60")], (1, 1)),
    "429 without Retry-After": Row([says("rate limit")], (2, 1), seconds=0.25),
    "500 once": Row([says("broken"), GOOD], (2, 0)),
    "503 for ever": Row([says("overloaded")], (2, 1)),
    "reset before headers": Row([[Reset()]], (2, 1)),
    "no response": Row([[Hang()]], (1, 1), seconds=1),
    "slow first token": Row([pings], (1, 1), seconds=1),
    "cut mid-answer": Row([then(Reset())], (1, 1), rescued=True),
    "stall": Row([then(Hang())], (1, 1), rescued=True, seconds=0.3),
    "malformed event": Row([with_noise], (1, 0)),
    "missing end marker": Row([without_marker], (1, 0), providers=MARKED),
    "missing end marker and finish reason": Row([then(LAST_CHUNK)], (1, 1), rescued=True),
    "context length": Row([says("context length")], (1, 1)),
}
CASES = [(fault, provider) for fault, row in BENCH.items() for provider in row.providers]


@pytest.mark.parametrize(("fault", "primary"), CASES)
async def test_reader_gets_the_whole_answer(pair: Pair, fault: str, primary: str) -> None:
    row, before, began = BENCH[fault], await pair.rescues(), time.monotonic()
    pair.plays(row.primary, [goes_on if row.rescued else answers(TEXT)])
    heard = await pair.completes(TEXT, primary=row.calls[0], backup=row.calls[1], asked=pair_ways(primary=primary))
    assert time.monotonic() - began >= row.seconds
    carried = CARRIED if row.rescued else 0
    for answer in heard:
        line = await pair.stage.told(answer, "completed")
        usage = (line["input_tokens"], line["output_tokens"], line["usage_source"])
        assert usage == (USAGE[0] - carried, USAGE[1] + carried, "usage")
        if answer.is_stream and answer.messages[-1].type == "done":
            assert answer.messages[-1].json()["full_text"] == TEXT
    assert await pair.rescues() - before == ({("prefill", "completed"): len(heard)} if row.rescued else {})


@pytest.mark.parametrize("primary", PROVIDERS)
async def test_reader_of_a_filtered_request_gets_the_providers_reason_and_nobody_else_is_asked(
    pair: Pair, primary: str
) -> None:
    pair.plays([says("content filter")], [answers(TEXT)])
    for heard in await pair.fails("content_filter", 400, primary=1, backup=0, asked=pair_ways(primary=primary)):
        assert heard.error["message"] == reason(primary, "content filter")


stubborn = pair_fixture()


def rejects_prefill(dialect: str, exchange: Exchange) -> Sequence[Step]:
    if prefix_of(exchange) is not None:
        return [refuses(dialect, "no prefill")]
    return [*begins(dialect, TEXT[:4], TEXT[4:]), *ends(dialect)]


@pytest.mark.parametrize("primary", PROVIDERS)
async def test_fallback_that_rejects_prefill_is_asked_anew_and_remembered(stubborn: Pair, primary: str) -> None:
    asked, before = pair_ways(primary=primary), await stubborn.rescues()
    for calls in 2, 1:
        stubborn.plays([then(Reset())], [rejects_prefill])
        for heard in await stubborn.completes(TEXT, primary=1, backup=calls, asked=asked):
            line = await stubborn.stage.told(heard, "completed")
            assert (line["input_tokens"], line["output_tokens"]) == USAGE
    assert await stubborn.rescues() - before == {("anew", "completed"): 2 * len(asked)}


OPEN = 1.0
flapping = pair_fixture(retries=0, breaker={"failures": 3, "open": f"{int(OPEN * 1000)}ms"})


@pytest.mark.alone
async def test_flapping_primary_is_left_alone_while_down_and_taken_back(flapping: Pair) -> None:
    asked = [way for primary in PROVIDERS for way in pair_ways(primary=primary)]
    down = says("overloaded")
    flapping.plays([GOOD, down, GOOD, down, down, down, down, GOOD], [answers(TEXT)])
    opens, probed, recovers = (6, 4), (7, 6), (8, 6)
    for calls in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3), opens, (6, 5), probed, recovers, (9, 6)]:
        if calls in (probed, recovers):
            await asyncio.sleep(OPEN)
        await flapping.stage.complete_all(asked, TEXT)
        assert {flapping.called(way) for way in asked} == {calls}
    assert not any((await flapping.figures("gateway_breaker_open")).values())


@pytest.mark.parametrize("primary", PROVIDERS)
async def test_only_what_was_completed_is_counted_and_every_request_is(pair: Pair, primary: str) -> None:
    names = "gateway_tokens_total", "gateway_upstream_requests_total"
    before = [await pair.figures(name) for name in names]
    pair.plays([lambda dialect, _: [*begins(dialect), Reset()]], [answers(TEXT)])
    asked = pair_ways(primary=primary)
    await pair.completes(TEXT, primary=2, backup=1, asked=asked)
    after = [await pair.figures(name) for name in names]
    tokens, requests = ({k: v - old.get(k, 0) for k, v in new.items()} for old, new in zip(before, after, strict=True))
    assert total(tokens, 'upstream="main') == 0
    assert total(tokens, 'type="input"') == len(asked) * USAGE[0]
    assert total(tokens, 'type="output"') == len(asked) * USAGE[1]
    assert total(requests, 'upstream="main') == len(asked) * 2
    assert total(requests, 'upstream="backup') == len(asked)


def total(figures: dict[str, float], label: str) -> float:
    return sum(value for labels, value in figures.items() if label in labels)
