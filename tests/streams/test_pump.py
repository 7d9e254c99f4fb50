"""The pump from within: attempts, rescues and their bounds, with real upstreams that play scripts."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gateway.core.event import DONE, RESTART, TOKEN
from gateway.core.limits import Plan, make_limits
from gateway.core.rate import Rate
from gateway.streams.reader import BEGINNING
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Exchange,
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    chunk,
    http_head,
    openai_answer,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)
from tests.streams.works import BEGUN, Works, code, done, events_of, read_all, text_of

TORN: list[Step] = [*BEGUN, Reset()]


def prefix(exchange: Exchange) -> str:
    """The text that an upstream was given to go on from, "" for none."""
    last = exchange.json()["messages"][-1]
    return str(last["content"]) if last["role"] == "assistant" else ""


def rest(*texts: str) -> list[Step]:
    return openai_answer(*texts)


# -- attempts --------------------------------------------------------------------------------------------------------


async def test_fallback_answers_when_the_first_is_silent(works: Works) -> None:
    events, _ = await events_of(works, [Hang()], rest("hi"), timeouts={"first_event": "100ms"})
    assert text_of(events) == "hi"
    assert works.count("gateway_upstream_errors_total", error_type="upstream_timeout") == 1


async def test_reader_is_told_what_the_first_upstream_said_when_nobody_answers(works: Works) -> None:
    events, _ = await events_of(works, [response(500, "{}")], [response(503, "{}")])
    assert code(events) == "upstream_error"


async def test_rate_limit_that_is_short_is_waited_out(works: Works) -> None:
    busy: list[Step] = [http_head(429, "application/json", Retry_After="0.2", Content_Length="2") + b"{}"]
    scripts: Iterator[list[Step]] = iter([busy, rest("hi")])
    events, [asked] = await events_of(works, lambda _: next(scripts), upstream={"retries": 1})
    assert (text_of(events), len(asked)) == ("hi", 2)
    assert asked[1].opened_at - asked[0].opened_at >= 0.2


async def test_answer_that_stalls_and_cannot_be_rescued_fails(works: Works) -> None:
    events, _ = await events_of(works, [*BEGUN, Hang()], timeouts={"idle": "100ms"}, upstream={"rescue": False})
    assert code(events) == "upstream_stalled"
    assert works.outcomes() == {"upstream_stalled": 1}


async def test_answer_that_ends_without_its_marker_is_no_answer(works: Works) -> None:
    events, _ = await events_of(works, [*BEGUN, LAST_CHUNK])
    assert code(events) == "upstream_cut"


async def test_error_inside_an_answer_is_the_readers(works: Works) -> None:
    broken = b'data: {"error":{"message":"No.","code":"odd","type":"invalid_request_error"}}\n\n'
    events, _ = await events_of(works, [http_head(200, "text/event-stream") + broken, Cut()])
    assert code(events) == "odd"


async def test_answer_that_uses_up_the_budget_ends_behind_a_whole_event(works: Works) -> None:
    plan = Plan("small", make_limits(tokens=Rate(40, 86400.0)))
    events, _ = await events_of(works, [sse_head(), *[openai_delta("x" * 100)] * 9, Hang()], plan=plan)
    assert code(events) == "budget"
    assert works.outcomes() == {"budget": 1}


async def test_upstream_waits_while_the_log_is_full_and_loses_nothing(works: Works) -> None:
    texts = [f"{number:05}" for number in range(2000)]
    async with ScriptedUpstream(openai_answer(*texts)) as upstream:
        generation = works.started(upstream.url, log_bytes=4096)
        reader = generation.attach(BEGINNING)
        while not generation.log.full:
            await reader.read(1, 0.05)
            assert not generation.log.closed
            if not generation.log.full:
                reader.advance(1 if generation.log.last > reader.after else 0)
        events = await read_all(reader)
        generation.detach(reader, 0)
    assert done(events).full_text == "".join(texts)
    assert "".join(event.data for event in events if event.type == TOKEN).endswith("".join(texts[-50:]))


# -- rescue ----------------------------------------------------------------------------------------------------------


async def test_fallback_goes_on_from_what_was_delivered(works: Works) -> None:
    events, [_, asked] = await events_of(works, TORN, rest(" jumps"))
    assert text_of(events) == "The quick brown fox jumps"
    assert prefix(asked[0]) == "The quick brown fox"
    assert works.count("gateway_rescues_total", kind="prefill", result="completed") == 1
    assert done(events).full_text == "The quick brown fox jumps"


async def test_fallback_that_refuses_a_prefix_is_asked_anew_and_remembered(works: Works) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        return [response(400, '{"error":{"message":"no"}}')] if prefix(exchange) else rest("The quick brown fox jumps")

    events, [_, asked] = await events_of(works, TORN, play)
    assert text_of(events) == "The quick brown fox jumps"
    assert [bool(prefix(exchange)) for exchange in asked] == [True, False]
    assert works.count("gateway_rescues_total", kind="anew", result="completed") == 1


async def test_answer_that_differs_begins_anew_for_readers_that_understand_it(works: Works) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        return [response(400, "{}")] if prefix(exchange) else rest("Something", " else.")

    events, _ = await events_of(works, TORN, play, restarts=True)
    assert text_of(events) == "Something else."
    assert done(events).full_text == "Something else."
    assert works.count("gateway_rescues_total", result="restarted") == 1


async def test_answer_that_differs_fails_for_readers_that_do_not(works: Works) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        return [response(400, "{}")] if prefix(exchange) else rest("Something else.")

    events, _ = await events_of(works, TORN, play, restarts=False)
    assert (code(events), text_of(events)) == ("upstream_cut", "The quick brown fox ")
    assert works.count("gateway_rescues_total", result="failed") == 1


async def test_rescue_that_nobody_can_do_tells_how_the_answer_broke_off(works: Works) -> None:
    events, _ = await events_of(works, TORN, [response(503, "{}")])
    assert code(events) == "upstream_cut"
    assert works.count("gateway_rescues_total", result="failed") == 1


async def test_rescue_that_breaks_off_too_is_rescued(works: Works) -> None:
    events, [_, second, third] = await events_of(
        works, TORN, [sse_head(), openai_delta("jumps "), Reset()], rest("over"), restarts=True
    )
    assert text_of(events) == "The quick brown fox jumps over"
    assert prefix(third[0]) == "The quick brown fox jumps"
    assert len(second) == 1


async def test_rescue_whose_answer_only_repeats_is_whole(works: Works) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        return [response(400, "{}")] if prefix(exchange) else rest("The quick", " brown fox ")

    events, _ = await events_of(works, TORN, play)
    assert text_of(events) == "The quick brown fox "
    assert done(events).finish_reason == "stop"


async def test_answer_that_broke_off_more_often_than_allowed_fails(works: Works) -> None:
    def torn(number: int) -> list[Step]:
        return [sse_head(), openai_delta(f"{number} "), Reset()]

    scripts = [TORN, *map(torn, range(4))]
    events, asked = await events_of(works, *scripts)
    assert code(events) == "upstream_cut"
    assert [len(exchanges) for exchanges in asked] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("changes", [{"several": True}, {"canonical": False, "announce": False}])
async def test_answer_that_no_rescue_can_take_up_fails(works: Works, changes: dict[str, Any]) -> None:
    events, [_, asked] = await events_of(works, TORN, rest(" jumps"), **changes)
    assert (code(events), asked) == ("upstream_cut", [])


async def test_answer_with_a_tool_call_is_not_rescued(works: Works) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}
    torn: list[Step] = [sse_head(), chunk(openai_chunk({"tool_calls": [call]})), Reset()]
    events, [_, asked] = await events_of(works, torn, rest("x"))
    assert (code(events), asked) == ("upstream_cut", [])


async def test_silence_of_a_rescuer_that_repeats_is_no_silence(works: Works) -> None:
    """What it repeats is dropped for the reader, but it is a sign of life."""

    def play(exchange: Exchange) -> Sequence[Step]:
        if prefix(exchange):
            return [response(400, "{}")]
        slow = [step for text in ("The ", "quick ", "brown ", "fox ") for step in (openai_delta(text), Pause(0.15))]
        return [sse_head(), *slow, *rest("jumps")[1:]]

    events, _ = await events_of(works, TORN, play, timeouts={"idle": "300ms"})
    assert text_of(events) == "The quick brown fox jumps"


async def test_rescue_whose_answer_is_empty_begins_anew_with_the_times_of_now(works: Works) -> None:
    """The second answer is whole without a single event; what is written for it has the time of its end."""

    def play(exchange: Exchange) -> Sequence[Step]:
        return [response(400, "{}")] if prefix(exchange) else rest()

    events, _ = await events_of(works, TORN, play, restarts=True)
    assert [event.type for event in events[-2:]] == [RESTART, DONE]
    assert done(events).full_text == ""
    assert works.count("gateway_rescues_total", result="restarted") == 1
    assert works.count("gateway_inter_token_latency_seconds_sum") >= 0
