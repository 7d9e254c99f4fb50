"""Answers that break off in the middle and are finished by the fallback: nothing is said twice (U12, U13, U16)."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from tests.faults.pair import Pair, Play, answers, begins, ends, pair_fixture, pair_ways, prefix_of
from tests.faults.stage import Way
from tests.kit.sse_client import request
from tests.kit.upstream import (
    Exchange,
    Hang,
    Pause,
    Reset,
    Step,
    WaitFor,
    chunk,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

pair = pair_fixture()

OPENING = [sse_head(), openai_delta("The quick brown"), openai_delta(" fox ")]
WHOLE = "The quick brown fox jumps over the dog."
OVERLOADED = b'data: {"error":{"message":"Overloaded.","code":"engine_overloaded","type":"server_error"}}\n\n'
RATE = b'data: {"error":{"message":"Slow down.","code":429}}\n\n'

BREAKS: dict[str, list[Step]] = {
    "reset": [Reset()],
    "torn event": [chunk(b'data: {"choices":[{"delta":{"conte'), Reset()],
    "end without an end": [b"0\r\n\r\n"],
    "malformed chunk": [Pause(0.05), b"zz\r\n"],
    "stall": [Hang()],
    "error": [chunk(OVERLOADED), b"0\r\n\r\n"],
    "error of the gateway's own table": [chunk(RATE), b"0\r\n\r\n"],
}


def goes_on(dialect: str, exchange: Exchange) -> list[Step]:
    """Goes on from the text it was given, which must be the delivered one without the white space at its end."""
    assert prefix_of(exchange) == "The quick brown fox", prefix_of(exchange)
    return [*begins(dialect, " jumps", " over the dog."), *ends(dialect)]


def rejects(then: Play) -> Play:
    """Refuses to go on from a text; asked anew, it answers."""

    def play(dialect: str, exchange: Exchange) -> Sequence[Step]:
        return then(dialect, exchange) if prefix_of(exchange) is None else [response(400, '{"error":{"message":"no"}}')]

    return play


async def rescues(pair: Pair) -> dict[tuple[str, str], float]:
    lines = [line for line in await pair.stage.metrics() if line.startswith("gateway_rescues_total{")]
    return {(kind, result): value for kind, result, value in map(_rescue, lines)}


def _rescue(line: str) -> tuple[str, str, float]:
    labels, _, value = line.rpartition(" ")
    _, kind, _, result, _ = labels.split('"')
    return kind, result, float(value)


async def finishes(pair: Pair, kind: str, result: str, *, primary: int, backup: int) -> None:
    """Every way to ask has the whole text, and the rescues were of this kind and result."""
    before = await rescues(pair)
    for heard in await pair.completes(WHOLE, primary=primary, backup=backup):
        if heard.is_stream and '"full_text"' in heard.body:
            assert heard.messages[-1].json()["full_text"] == WHOLE
    after = await rescues(pair)
    grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert grown == {(kind, result): 9}


@pytest.mark.parametrize("broken", BREAKS)
async def test_broken_answer_is_gone_on_with_by_the_fallback(pair: Pair, broken: str) -> None:
    pair.plays([[*OPENING, *BREAKS[broken]]], [goes_on])
    await finishes(pair, "prefill", "completed", primary=1, backup=1)


async def test_readers_get_heartbeats_during_a_rescue(pair: Pair) -> None:
    pair.plays([[*OPENING, Hang()]], [goes_on])
    for heard in await pair.completes(WHOLE, primary=1, backup=1, asked=pair_ways("openai", "chat")):
        assert len(heard.comments) >= 2


@pytest.mark.parametrize("texts", [[WHOLE], list(WHOLE), [WHOLE[:17], WHOLE[17:22], WHOLE[22:]]], ids=len)
async def test_fallback_that_begins_anew_all_the_same_is_not_repeated(pair: Pair, texts: list[str]) -> None:
    pair.plays([[*OPENING, Reset()]], [answers(*texts)])
    await finishes(pair, "prefill", "completed", primary=1, backup=1)


async def test_usage_counts_the_whole_answer_once(pair: Pair) -> None:
    pair.plays([[*OPENING, Reset()]], [goes_on])
    carried = 5  # a quarter of the bytes that the fallback was given, which it counted as input
    for heard in await pair.completes(WHOLE, primary=1, backup=1):
        line = await pair.stage.told(heard, "completed")
        assert (line["input_tokens"], line["output_tokens"]) == (11 - carried, 7 + carried)


async def test_whole_answer_names_the_model_that_finished_it_and_what_it_counted(pair: Pair) -> None:
    running = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    first = chunk(openai_chunk({"content": "The quick brown fox "}, usage=running))
    pair.plays([[sse_head(), first, Reset()]], [goes_on])
    for heard in await pair.completes(WHOLE, primary=1, backup=1, asked=pair_ways("whole")):
        answer = msgspec.json.decode(heard.body)
        usage = answer["usage"]
        assert (answer["model"], usage["prompt_tokens"], usage["completion_tokens"]) == ("second", 6, 12)


async def test_answer_that_breaks_before_its_first_word_is_asked_for_anew(pair: Pair) -> None:
    pair.plays([[sse_head(), chunk(openai_chunk({"role": "assistant", "content": ""})), Reset()]], [answers(WHOLE)])
    ways = pair_ways("openai", "whole")  # elsewhere an empty chunk is no event, and the primary is asked again
    await pair.completes(WHOLE, primary=1, backup=1, asked=ways)


async def test_rescue_that_fails_once_is_tried_again(pair: Pair) -> None:
    pair.plays([[*OPENING, Reset()]], [[response(500, "")], goes_on])
    await finishes(pair, "prefill", "completed", primary=1, backup=2)


async def test_first_break_is_told_when_nobody_can_finish(pair: Pair) -> None:
    for script, calls in ([response(503, "")], 2), ([Hang()], 1):
        pair.plays([[*OPENING, Reset()]], [script])
        for heard in await pair.fails("upstream_cut", 502, primary=1, backup=calls, text="The quick brown fox "):
            line = await pair.stage.told(heard, "upstream_error")
            assert line["upstream"].startswith("main")
            assert (line["output_tokens"], line["usage_source"]) == (5, "estimate")


async def test_answer_with_a_tool_call_is_not_finished_elsewhere(pair: Pair) -> None:
    call = {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{"}}]}
    pair.plays([[sse_head(), chunk(openai_chunk(call)), Reset()]], [answers(WHOLE)])
    await pair.fails("upstream_cut", 502, primary=1, backup=0)


async def test_reader_that_comes_back_in_the_middle_of_a_rescue_has_the_whole_text(pair: Pair) -> None:
    gate, way = asyncio.Event(), Way("chat", path="/pair/chat/openai")

    def slowly(dialect: str, exchange: Exchange) -> list[Step]:
        return [*begins(dialect, " jumps"), WaitFor(gate), *begins(dialect, " over the dog.")[-1:], *ends(dialect)]

    pair.plays([[*OPENING, Reset()]], [slowly])
    texts: list[str] = []
    async with await way.send(pair.url) as answer:
        async for message in answer.messages():
            texts += [message.json()["text"]] if message.type == "token" else []
            if "jumps" in "".join(texts):
                break
        stream_id, place = answer.headers["x-stream-id"], answer.parser.last_event_id
    gate.set()
    async with await request(f"{pair.url}/streams/{stream_id}", last_event_id=place) as rest:
        messages = [message async for message in rest.messages()]
    texts += [message.json()["text"] for message in messages if message.type == "token"]
    assert "".join(texts) == messages[-1].json()["full_text"] == WHOLE
    assert [message.type for message in messages].count("done") == 1


async def test_stop_during_a_rescue_hangs_up_and_keeps_what_was_said(pair: Pair) -> None:
    way = Way("chat", path="/pair/chat/openai")
    pair.plays([[*OPENING, Reset()]], [[Hang()]])
    async with await way.send(pair.url) as answer:
        exchange = await pair.backup.exchange()
        async with await request(f"{pair.url}/streams/{answer.headers['x-stream-id']}", method="DELETE"):
            await asyncio.wait_for(exchange.closed.wait(), 1)
        messages = [message async for message in answer.messages()]
    assert messages[-1].json()["full_text"] == "The quick brown fox "
    await pair.stage.at_rest()


# Fallbacks that refuse to go on from a text.

stubborn = pair_fixture()


async def test_fallback_that_rejects_a_prefill_is_asked_anew_and_remembered(stubborn: Pair) -> None:
    stubborn.plays([[*OPENING, Reset()]], [rejects(answers(WHOLE[:4], WHOLE[4:]))])
    await finishes(stubborn, "anew", "completed", primary=1, backup=2)
    stubborn.plays([[*OPENING, Reset()]], [rejects(answers(WHOLE))])
    await finishes(stubborn, "anew", "completed", primary=1, backup=1)


async def test_other_answer_restarts_a_chat_and_fails_the_rest(stubborn: Pair) -> None:
    stubborn.plays([[*OPENING, Reset()]], [rejects(answers("The slow ", "brown fox sleeps."))])
    before = await rescues(stubborn)
    for heard in await stubborn.stage.ask_all(pair_ways("chat")):
        kinds = [message.type for message in heard.messages]
        place = kinds.index("restart")
        texts = [message.json()["text"] for message in heard.messages[place:] if message.type == "token"]
        assert "".join(texts) == heard.messages[-1].json()["full_text"] == "The slow brown fox sleeps."
        assert (kinds[-1], heard.errors, kinds.count("restart")) == ("done", [], 1)
    failing = pair_ways("openai", "whole")
    await stubborn.stage.fail_all(failing, "upstream_cut", 502, text="The quick brown fox ", whole=True)
    after = await rescues(stubborn)
    assert after["anew", "restarted"] - before.get(("anew", "restarted"), 0) == 3
    assert after["anew", "failed"] - before.get(("anew", "failed"), 0) == 6


async def test_other_answer_is_no_fault_of_the_fallback(stubborn: Pair) -> None:
    errors = [line for line in await stubborn.stage.metrics() if "gateway_upstream_errors_total" in line]
    assert not [line for line in errors if "backup" in line and "upstream_cut" in line]
