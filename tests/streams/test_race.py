"""Attempts beside each other, from within: who is heard, and what becomes of the other one (U33)."""

import asyncio
from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.core.limits import Plan, make_limits
from gateway.core.rate import Rate
from gateway.streams.reader import BEGINNING
from tests.kit.upstream import (
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.streams.works import BEGUN, Works, code, done, events_of, text_of

HEDGE = 0.1
HEDGED = {"hedge": "100ms"}
SILENT: list[Step] = [sse_head(), Hang()]
STALLED: list[Step] = [*BEGUN, Hang()]


def late(*texts: str, seconds: float = 3 * HEDGE) -> list[Step]:
    head, *said = openai_answer(*texts)
    return [head, Pause(seconds), *said]


async def test_silent_target_is_outrun_and_its_prompt_counted(works: Works) -> None:
    events, [first, second] = await events_of(works, SILENT, openai_answer("quick"), upstream=HEDGED, input_tokens=7)
    assert (text_of(events), done(events).finish_reason) == ("quick", "stop")
    assert (len(first), len(second)) == (1, 1)
    assert works.count("gateway_tokens_total", upstream="up0", type="input") == 7
    assert works.count("gateway_upstream_errors_total") == 0


async def test_late_target_that_speaks_first_is_heard(works: Works) -> None:
    events, [_, second] = await events_of(works, late("late"), SILENT, upstream=HEDGED)
    assert (text_of(events), len(second)) == ("late", 1)
    assert works.count("gateway_streams_total", upstream="up0", outcome="completed") == 1


@pytest.mark.parametrize("failing", [[Reset()], [response(503, "")]], ids=["reset", "503"])
async def test_failure_of_the_second_leaves_the_first_alone(works: Works, failing: list[Step]) -> None:
    events, _ = await events_of(works, late("late"), failing, upstream=HEDGED)
    assert text_of(events) == "late"
    assert works.count("gateway_upstream_errors_total", upstream="up1") == 1


async def test_failure_of_the_first_leaves_the_second_alone(works: Works) -> None:
    events, _ = await events_of(works, [Pause(2 * HEDGE), Reset()], late("second"), upstream=HEDGED)
    assert text_of(events) == "second"
    assert works.count("gateway_streams_total", upstream="up1", outcome="completed") == 1


async def test_error_of_the_first_is_told_when_both_fail(works: Works) -> None:
    events, _ = await events_of(works, [Pause(2 * HEDGE), response(503, "")], [Reset()], upstream=HEDGED)
    assert code(events) == "upstream_unavailable"


FILTERED = '{"error":{"message":"This text is not allowed.","code":"content_filter"}}'


@pytest.mark.parametrize("body", [FILTERED, '{"error":{"message":"max_tokens is too large"}}'], ids=["filter", "400"])
async def test_refusal_of_the_request_by_the_first_ends_both(works: Works, body: str) -> None:
    """No other provider is asked to get around a refusal, also not where it was asked already."""
    first: list[Step] = [Pause(2 * HEDGE), response(400, body)]
    events, [_, second] = await events_of(works, first, late("no", seconds=6 * HEDGE), upstream=HEDGED)
    assert (text_of(events), code(events)) == ("", "content_filter" if body is FILTERED else "upstream_refused")
    assert len(second) == 1


async def test_filter_that_ends_a_stalled_answer_ends_both(works: Works) -> None:
    first: list[Step] = [*BEGUN, Pause(2 * HEDGE), chunk(f"data: {FILTERED}\n\n")]
    events, _ = await events_of(works, first, late("no", seconds=6 * HEDGE), upstream=HEDGED)
    assert (text_of(events), code(events)) == ("The quick brown fox ", "content_filter")


async def test_refusal_of_the_second_leaves_the_first_alone(works: Works) -> None:
    events, _ = await events_of(works, late("late"), [response(400, FILTERED)], upstream=HEDGED)
    assert text_of(events) == "late"


async def test_answer_without_a_text_ends_the_race(works: Works) -> None:
    events, [first, _] = await events_of(works, SILENT, openai_answer(), upstream=HEDGED, input_tokens=7)
    assert (text_of(events), done(events).finish_reason, len(first)) == ("", "stop", 1)
    assert works.count("gateway_tokens_total", upstream="up0", type="input") == 7


async def test_target_without_another_is_waited_for(works: Works) -> None:
    events, [only] = await events_of(works, late("patience"), upstream=HEDGED)
    assert (text_of(events), len(only)) == ("patience", 1)


async def test_stalled_answer_is_continued_beside(works: Works) -> None:
    events, [_, second] = await events_of(works, STALLED, openai_answer("jumps"), upstream=HEDGED)
    assert text_of(events) == "The quick brown fox jumps"
    assert second[0].json()["messages"][-1] == {"role": "assistant", "content": "The quick brown fox"}


async def test_stalled_answer_that_goes_on_is_heard(works: Works) -> None:
    goes_on = [*BEGUN, Pause(3 * HEDGE), *openai_answer("jumps")[1:]]
    events, [_, second] = await events_of(works, goes_on, SILENT, upstream=HEDGED)
    assert (text_of(events), len(second)) == ("The quick brown fox jumps", 1)


async def test_stalled_answer_that_breaks_off_is_left_to_the_second(works: Works) -> None:
    torn: list[Step] = [*BEGUN, Pause(3 * HEDGE), Reset()]
    events, _ = await events_of(works, torn, late("jumps", seconds=4 * HEDGE), upstream=HEDGED)
    assert text_of(events) == "The quick brown fox jumps"
    assert works.count("gateway_rescues_total", result="completed") == 1


async def test_second_text_that_differs_is_dropped_while_the_first_is_only_silent(works: Works) -> None:
    goes_on = [*BEGUN, Pause(4 * HEDGE), *openai_answer("jumps")[1:]]
    differs: list[Step] = [sse_head(), openai_delta("The quick brown dog"), Hang()]
    events, _ = await events_of(works, goes_on, differs, upstream=HEDGED)
    assert text_of(events) == "The quick brown fox jumps"


async def test_answer_that_may_not_be_rescued_gets_no_company(works: Works) -> None:
    goes_on = [*BEGUN, Pause(3 * HEDGE), *openai_answer("jumps")[1:]]
    events, [_, second] = await events_of(works, goes_on, SILENT, upstream=HEDGED | {"rescue": False})
    assert (text_of(events), second) == ("The quick brown fox jumps", [])


async def test_second_attempt_needs_tokens_of_its_own(works: Works) -> None:
    plan = Plan("p", make_limits(streams=3, tokens=Rate(15, 3600.0)))
    changes: dict[str, Any] = {"upstream": HEDGED, "plan": plan, "input_tokens": 10}
    events, [_, second] = await events_of(works, late("patience"), openai_answer("x"), **changes)
    assert (text_of(events), second) == ("patience", [])


async def test_generation_that_is_stopped_stops_both(works: Works) -> None:
    async with ScriptedUpstream(SILENT) as first, ScriptedUpstream(SILENT) as second:
        generation = works.started([first.url, second.url], upstream=HEDGED)
        reader = generation.attach(BEGINNING)
        exchanges = [await first.exchange(), await second.exchange()]
        generation.abort(GatewayError("stopped"))
        async with asyncio.timeout(5):
            await generation.ended
            for exchange in exchanges:
                await exchange.closed.wait()
        generation.detach(reader, 0)


async def test_slow_readers_are_no_silence(works: Works) -> None:
    """The log is full, so the target cannot be heard; nobody else is asked."""
    much = [sse_head(), *[openai_delta("x" * 500) for _ in range(60)], *openai_answer("end")[1:]]
    async with ScriptedUpstream(much) as first, ScriptedUpstream(SILENT) as second:
        generation = works.started([first.url, second.url], upstream=HEDGED, log_bytes=8192)
        reader = generation.attach(BEGINNING)
        await asyncio.sleep(4 * HEDGE)  # the time itself is what is tested
        assert second.exchanges == []
        async with asyncio.timeout(5):
            while not generation.ended.done():
                got = await reader.read(99, 1)
                reader.advance(len(got) if isinstance(got, list | tuple) else 0)
        generation.detach(reader, 0)
