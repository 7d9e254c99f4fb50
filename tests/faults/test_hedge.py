"""Patience with a silent target, and another one that is asked beside it (U33)."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.faults.pair import (
    USAGE,
    Pair,
    Play,
    Plays,
    answers,
    begins,
    ends,
    pair_fixture,
    pair_ways,
    prefix_of,
)
from tests.faults.providers import PROVIDERS, refuses
from tests.faults.stage import Way
from tests.faults.test_failover_bench import BENCH, TEXT, goes_on
from tests.kit.upstream import Exchange, Hang, Pause, Reset, Step, WaitFor

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEDGE = 0.3
PATIENT = {"connect": "1s", "first_event": "20s", "idle": "20s", "total": "30s"}
ASKED = [way for primary in PROVIDERS for way in pair_ways(primary=primary, backups=["openai"])]
BEGUN = ("The quick brown", " fox ")

pair = pair_fixture(PATIENT, asked=ASKED, hedge="300ms", breaker={"failures": 1})


def silent(dialect: str, _: Exchange) -> Sequence[Step]:
    return [*begins(dialect, model="first")[:1], Hang()]


def stalls(dialect: str, _: Exchange) -> Sequence[Step]:
    return [*begins(dialect, *BEGUN, model="first"), Hang()]


def late(seconds: float) -> Play:
    """A whole answer, its head at once."""
    return lambda dialect, _: [
        *begins(dialect, model="first"),
        Pause(seconds),
        *begins(dialect, TEXT, model="first")[1:],
        *ends(dialect, "first"),
    ]


async def both_asked(pair: Pair, way: Way) -> None:
    for upstream in pair.stage.upstream, pair.backup:
        await asyncio.wait_for(upstream.exchange(), 3)
    assert pair.called(way) == (1, 1)


@pytest.mark.parametrize("primary", [[Hang()], silent], ids=["no head", "no event"])
async def test_fallback_answers_for_a_silent_target_whose_name_stays_good(pair: Pair, primary: Play) -> None:
    for _ in range(2):  # with a breaker of one failure, a target that had failed would not be asked again
        pair.plays([primary], [answers(TEXT)])
        for heard in await pair.completes(TEXT, primary=1, backup=1, asked=ASKED):
            line = await pair.stage.told(heard, "completed")
            assert (line["input_tokens"], line["output_tokens"]) == USAGE
    assert not any((await pair.figures("gateway_breaker_open{")).values())


async def test_slower_target_is_stopped_at_once_and_its_tokens_are_counted_apart(pair: Pair) -> None:
    way = ASKED[0]
    before = await pair.figures("gateway_tokens_total{")
    pair.plays([silent], [answers(TEXT)])
    await pair.completes(TEXT, primary=1, backup=1, asked=[way])
    slow, quick = pair.stage.upstream.exchanges[0], pair.backup.exchanges[0]
    await asyncio.wait_for(slow.closed.wait(), 2)
    assert slow.closed_at is not None
    assert slow.closed_at - quick.opened_at < 0.05
    spent = {labels: n - before.get(labels, 0) for labels, n in (await pair.figures("gateway_tokens_total{")).items()}
    outrun = [n for labels, n in spent.items() if 'upstream="main-' in labels and 'type="input"' in labels and n]
    heard = [n for labels, n in spent.items() if 'upstream="backup-' in labels and 'source="usage"' in labels and n]
    assert len(outrun) == 1
    assert outrun[0] > 0
    assert sorted(heard) == sorted(map(float, USAGE))


async def test_target_that_speaks_first_after_all_is_heard_and_the_other_is_stopped(pair: Pair) -> None:
    pair.plays([late(HEDGE + 0.2)], [silent])
    heard = await pair.stage.complete_all(ASKED, TEXT)
    for answer in heard:
        line = await pair.stage.told(answer, "completed")
        assert (line["model"], line["attempts"]) == ("first", 2)
        assert line["upstream"].startswith("main")
    for exchange in pair.backup.exchanges:
        await asyncio.wait_for(exchange.closed.wait(), 2)


async def test_targets_that_speak_at_once_give_one_answer(pair: Pair) -> None:
    for way in ASKED:
        both = asyncio.Event()

        def at_once(dialect: str, _: Exchange, both: asyncio.Event = both) -> Sequence[Step]:
            first, *rest = begins(dialect, TEXT)
            return [first, WaitFor(both), *rest, *ends(dialect)]

        pair.plays([at_once], [at_once])
        asked = asyncio.create_task(pair.stage.ask(way))
        await both_asked(pair, way)
        both.set()
        heard = await asked
        assert (heard.text, heard.errors) == (TEXT, [])
        await pair.stage.told(heard, "completed")


def broken(dialect: str, _: Exchange) -> Sequence[Step]:
    return [refuses(dialect, "broken")]


BOTH: dict[str, tuple[Plays, Plays, str]] = {
    "the second fails": ([late(HEDGE + 0.2)], [[Reset()]], "first"),
    "the second refuses": ([late(HEDGE + 0.2)], [broken], "first"),
    "the first fails": ([[Pause(HEDGE + 0.1), Reset()]], [late(0.2)], "first"),
}


@pytest.mark.parametrize("case", BOTH)
async def test_failure_of_one_leaves_the_answer_to_the_other(pair: Pair, case: str) -> None:
    primary, backup, model = BOTH[case]
    pair.plays(primary, backup)
    for heard in await pair.stage.complete_all(ASKED, TEXT):
        line = await pair.stage.told(heard, "completed")
        assert (line["model"], line["attempts"]) == (model, 2)
        assert line["upstream"].startswith("main" if case.startswith("the second") else "backup")


healing = pair_fixture(PATIENT, asked=ASKED, stream={"on_disconnect": {"after": "0s"}}, hedge="300ms")


async def test_when_both_fail_the_client_is_told_the_first_ones_error(healing: Pair) -> None:
    def fails_late(dialect: str, _: Exchange) -> Sequence[Step]:
        return [Pause(HEDGE + 0.2), refuses(dialect, "overloaded")]

    healing.plays([fails_late], [[Reset()]])
    heard = await healing.stage.ask_all(ASKED)
    assert {answer.error["code"] for answer in heard} == {"upstream_unavailable"}


async def test_answer_that_stalls_is_continued_beside_by_another(healing: Pair) -> None:
    healing.plays([stalls], [goes_on])
    for heard in await healing.completes(TEXT, primary=1, backup=1, asked=ASKED):
        await healing.stage.told(heard, "completed")
    for exchange in healing.stage.upstream.exchanges:
        await asyncio.wait_for(exchange.closed.wait(), 2)


async def test_answer_that_stalled_and_goes_on_first_is_heard(healing: Pair) -> None:
    def resumes(dialect: str, _: Exchange) -> Sequence[Step]:
        rest = begins(dialect, " jumps", " over the dog.", model="first")[2 if dialect == "anthropic" else 1 :]
        return [*begins(dialect, *BEGUN, model="first"), Pause(HEDGE + 0.3), *rest, *ends(dialect, "first")]

    text = "".join(BEGUN) + " jumps over the dog."
    healing.plays([resumes], [silent])
    for heard in await healing.stage.complete_all(ASKED, text):
        line = await healing.stage.told(heard, "completed")
        assert (line["model"], line["attempts"]) == ("first", 2)


@pytest.mark.parametrize("in_one_read", [False, True])
async def test_second_text_that_differs_never_replaces_an_answer_that_is_only_silent(
    healing: Pair, in_one_read: bool
) -> None:
    def resumes(dialect: str, _: Exchange) -> Sequence[Step]:
        rest = begins(dialect, "jumps over the dog.", model="first")[2 if dialect == "anthropic" else 1 :]
        return [*begins(dialect, *BEGUN, model="first"), Pause(HEDGE + 0.5), *rest, *ends(dialect, "first")]

    def differs(dialect: str, exchange: Exchange) -> Sequence[Step]:
        if prefix_of(exchange) is not None:
            return [refuses(dialect, "no prefill")]
        steps = [*begins(dialect, "Something else", " altogether."), *ends(dialect)]
        return [b"".join(step for step in steps if isinstance(step, bytes))] if in_one_read else steps

    healing.plays([resumes], [differs])
    for heard in await healing.stage.complete_all(ASKED, "".join(BEGUN) + "jumps over the dog."):
        assert (await healing.stage.told(heard, "completed"))["model"] == "first"


async def test_client_that_leaves_stops_both(healing: Pair) -> None:
    way = Way("openai", path=ASKED[0].path)
    healing.plays([silent], [silent])
    async with asyncio.timeout(5):
        response = await way.send(healing.url)
        await both_asked(healing, way)
        await response.close()
        for exchange in [*healing.stage.upstream.exchanges, *healing.backup.exchanges]:
            await exchange.closed.wait()
    await healing.stage.at_rest()


poor = pair_fixture(
    PATIENT | {"first_event": "1s"}, asked=ASKED[:1], hedge="300ms", plans={"default": {"tokens": "300/h"}}
)


async def test_second_attempt_needs_tokens_of_its_own(poor: Pair) -> None:
    poor.plays([silent], [silent])
    heard = await poor.stage.ask(ASKED[0])
    assert heard.error["code"] == "upstream_timeout"
    assert poor.called(ASKED[0])[0] == 1


hedged = pair_fixture(PATIENT, asked=pair_ways(), hedge="300ms")


@pytest.mark.parametrize("fault", BENCH)
async def test_patient_gateway_passes_the_failover_bench(hedged: Pair, fault: str) -> None:
    row = BENCH[fault]
    hedged.plays(row.primary, [goes_on if row.rescued else answers(TEXT)])
    await hedged.completes(TEXT, primary=row.calls[0], backup=row.calls[1], asked=pair_ways())
