"""Rescues and retries that run into a limit: trimmed logs, budgets, total times, clients that leave (C1, C10, U21).

Whatever ends them, the reader is told once and truthfully, the upstream is hung up on, and no slot is left.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from tests.faults.pair import TIMES, Pair, Play, answers, begins, opened, pair_fixture, pair_ways, prefix_of
from tests.faults.providers import PROVIDERS, refuses
from tests.faults.stage import Way, full_port, token
from tests.kit.sse_client import Response
from tests.kit.upstream import Cut, Exchange, Hang, Pause, Reset, ScriptedUpstream, Step, chunk

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEGUN = ("The quick brown", " fox ")
WHOLE = "The quick brown fox jumps over the dog."


def cut(dialect: str, _: Exchange) -> Sequence[Step]:
    return [*begins(dialect, *BEGUN, model="first"), Reset()]


def says(what: str, **headers: str) -> Play:
    """A refusal."""
    return lambda dialect, _: [refuses(dialect, what, **headers)]


def each_primary(*kinds: str) -> list[Way]:
    return [way for primary in PROVIDERS for way in pair_ways(*kinds, primary=primary, backups=["openai"])]


# The log does not hold the answer from its beginning any more.

trimmed = pair_fixture(asked=each_primary(), stream={"resume": {"max_bytes": "4KiB"}})


async def test_answer_whose_beginning_was_trimmed_is_not_finished_elsewhere(trimmed: Pair) -> None:
    texts = [f"{number:300}" for number in range(40)]
    trimmed.plays([lambda dialect, _: [*begins(dialect, *texts, model="first"), Cut()]], [answers(WHOLE)])
    await trimmed.fails("upstream_cut", 502, primary=1, backup=0, text="".join(texts), asked=each_primary())
    assert not await trimmed.rescues()


# The principal's tokens are used up.

poor = pair_fixture(asked=each_primary(), plans={"default": {"tokens": "400/h"}})


async def test_budget_that_ends_during_a_rescue_ends_the_answer_and_the_fallback(poor: Pair) -> None:
    def talks(dialect: str, _: Exchange) -> Sequence[Step]:
        return [*begins(dialect, " jumps"), Pause(0.05), chunk(token(dialect, " on" * 800)), Hang()]

    [way] = pair_ways("chat", primary="anthropic", backups=["openai"])
    poor.plays([cut], [talks])
    [heard] = await poor.stage.ask_all([way])
    assert (heard.error["code"], heard.ended) == ("budget", 0)
    assert heard.text.startswith("The quick brown fox jumps")
    assert (await poor.stage.told(heard, "budget"))["attempts"] == 2
    await asyncio.wait_for(poor.backup.exchanges[0].closed.wait(), 1)


# The answer's whole time is over.

hasty = pair_fixture(TIMES | {"first_event": "5s", "idle": "5s", "total": "700ms"}, asked=each_primary(), retries=10)

DELAYS: dict[str, tuple[Play | Sequence[Step], Play | Sequence[Step], str]] = {
    "retries": (says("rate limit", Retry_After="0.3"), [Hang()], ""),
    "a silent primary": ([Hang()], [Hang()], ""),
    "a silent fallback": (says("refused key"), [Hang()], ""),
    "a rescue": (cut, [Hang()], "".join(BEGUN)),
    "a rescue's retries": (cut, says("rate limit", Retry_After="0.8"), "".join(BEGUN)),
    "a repetition": (cut, lambda dialect, _: [*begins(dialect, WHOLE[:9]), Hang()], "".join(BEGUN)),
}


@pytest.mark.parametrize("where", DELAYS)
async def test_total_time_that_ends_anywhere_is_told_in_time(hasty: Pair, where: str) -> None:
    primary, backup, text = DELAYS[where]
    hasty.plays([primary], [backup])
    began = time.monotonic()
    await hasty.stage.fail_all(each_primary(), "stream_limit", 504, "timeout", text=text)
    assert 0.7 <= time.monotonic() - began < 2
    for exchange in hasty.backup.exchanges:
        await asyncio.wait_for(exchange.closed.wait(), 1)


# The client leaves, and nobody may go on for it. A plan with one slot tells whether it was given back.

ALONE: dict[str, Any] = {"asked": each_primary("openai", "chat"), "stream": {"on_disconnect": {"after": "0s"}}}
ONE = {"default": {"streams": 1}}
left = pair_fixture(**ALONE, plans=ONE)


async def leaves(pair: Pair, way: Way, upstream: ScriptedUpstream, number: int) -> Exchange:
    """The client resets its connection once this request has arrived."""
    answer: Response = await way.send(pair.url)
    exchange = await upstream.exchange(number)
    await asyncio.sleep(0.05)
    await answer.reset()
    return exchange


async def is_free(pair: Pair, way: Way) -> None:
    """Nothing is left, and the only slot can be had at once."""
    await pair.stage.at_rest()
    pair.plays([answers(WHOLE, model="first")])
    await pair.completes(WHOLE, primary=1, backup=0, asked=[way])


@pytest.mark.parametrize("way", ALONE["asked"], ids=lambda way: f"{way.kind}-{way.dialect}")
async def test_client_leaving_during_a_retrys_delay_ends_it(left: Pair, way: Way) -> None:
    left.plays([says("rate limit", Retry_After="0.4")], [answers(WHOLE)])
    await leaves(left, way, left.stage.upstream, 0)
    await is_free(left, way)
    left.plays([answers(WHOLE)])
    await asyncio.sleep(0.7)
    assert left.called(way) == (0, 0)


def repeats_slowly(dialect: str, exchange: Exchange) -> Sequence[Step]:
    if prefix_of(exchange) is not None:
        return [refuses(dialect, "no prefill")]
    return [*begins(dialect, "The quick"), Hang()]


@pytest.mark.parametrize("way", ALONE["asked"], ids=lambda way: f"{way.kind}-{way.dialect}")
@pytest.mark.parametrize(("backup", "number"), [([Hang()], 0), (repeats_slowly, 1)], ids=["silence", "repetition"])
async def test_client_leaving_during_a_rescue_hangs_up(
    left: Pair, way: Way, backup: Play | Sequence[Step], number: int
) -> None:
    left.plays([cut], [backup])
    exchange = await leaves(left, way, left.backup, number)
    await asyncio.wait_for(exchange.closed.wait(), 1)
    await is_free(left, way)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stranded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    with full_port() as port:
        times = TIMES | {"connect": "5s"}
        directory = tmp_path_factory.mktemp("stranded")
        async with opened(directory, times, **ALONE, plans=ONE, backup_url=f"http://127.0.0.1:{port}") as pair:
            yield pair


@pytest.mark.parametrize("way", ALONE["asked"], ids=lambda way: f"{way.kind}-{way.dialect}")
async def test_client_leaving_while_a_rescue_connects_ends_it(stranded: Pair, way: Way) -> None:
    stranded.plays([cut])
    await leaves(stranded, way, stranded.stage.upstream, 0)
    await is_free(stranded, way)
