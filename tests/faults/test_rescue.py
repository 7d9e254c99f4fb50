"""Answers that break off in the middle and are finished by the fallback: nothing is said twice (U12, U13, U16)."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import pytest

from tests.faults.pair import Pair, Play, answers, begins, ends, pair_fixture, pair_ways, prefix_of
from tests.faults.providers import PROVIDERS, TORN, breaks, refuses
from tests.faults.stage import Way
from tests.kit.sse_client import Message, Response, request
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Exchange,
    Hang,
    Pause,
    Reset,
    Step,
    WaitFor,
    chunk,
    openai_chunk,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

pair = pair_fixture()

BEGUN = ("The quick brown", " fox ")
WHOLE = "The quick brown fox jumps over the dog."
CARRIED = 5
"""A quarter of the bytes that the fallback was given, which it counted as input."""


def opens(*rest: Step) -> Play:
    """The first two tokens, and how it goes on."""
    return lambda dialect, _: [*begins(dialect, *BEGUN, model="first"), *rest]


def in_one(tail: Callable[[str], bytes], *rest: Step) -> Play:
    """As `opens`, with these bytes behind the second token in the same packet, some time after the head."""

    def play(dialect: str, _: Exchange) -> Sequence[Step]:
        *first, last = begins(dialect, *BEGUN, model="first")
        assert isinstance(last, bytes)
        return [*first, Pause(0.15), last + tail(dialect), *rest]

    return play


RATE = b'data: {"error":{"message":"Slow down.","code":429}}\n\n'

BREAKS: dict[str, Play] = {
    "torn event": in_one(lambda dialect: chunk(TORN[dialect]), Reset()),
    "reset in the same packet": in_one(lambda _: b"", Reset()),
    "end in the same packet": in_one(lambda _: b"", Cut()),
    "malformed chunk": in_one(lambda _: b"zz\r\n", Hang()),
    "error": in_one(lambda dialect: chunk(breaks(dialect, "overloaded")) + LAST_CHUNK),
}


def goes_on(dialect: str, exchange: Exchange) -> list[Step]:
    """Goes on from the text it was given, which must be the delivered one without the white space at its end."""
    assert prefix_of(exchange) == "The quick brown fox", prefix_of(exchange)
    return [*begins(dialect, " jumps", " over the dog."), *ends(dialect)]


def chat_way() -> Way:
    """One of them."""
    [way] = pair_ways("chat", backups=["openai"])
    return way


def says(what: str) -> Play:
    """A refusal."""
    return lambda dialect, _: [refuses(dialect, what)]


def rejects(then: Play) -> Play:
    """Refuses to go on from a text; asked anew, it answers."""

    def play(dialect: str, exchange: Exchange) -> Sequence[Step]:
        return then(dialect, exchange) if prefix_of(exchange) is None else [refuses(dialect, "no prefill")]

    return play


async def finishes(pair: Pair, kind: str, result: str, *, primary: int, backup: int, asked: Sequence[Way] = ()) -> None:
    """Every way to ask has the whole text, and the rescues were of this kind and result."""
    before, asked = await pair.rescues(), asked or pair_ways()
    for heard in await pair.completes(WHOLE, primary=primary, backup=backup, asked=asked):
        if heard.is_stream and '"full_text"' in heard.body:
            assert heard.messages[-1].json()["full_text"] == WHOLE
    assert await pair.rescues() - before == {(kind, result): len(asked)}


@pytest.mark.parametrize("primary", PROVIDERS)
@pytest.mark.parametrize("broken", BREAKS)
async def test_broken_answer_is_gone_on_with_by_the_fallback(pair: Pair, broken: str, primary: str) -> None:
    pair.plays([BREAKS[broken]], [goes_on])
    await finishes(pair, "prefill", "completed", primary=1, backup=1, asked=pair_ways(primary=primary))


@pytest.mark.parametrize("said", ["content", "reasoning_content"])
async def test_fallback_that_says_nothing_new_for_longer_than_idle_is_no_silent_one(pair: Pair, said: str) -> None:
    pieces = ["The ", "quick ", "brown ", "fox "] if said == "content" else ["hm "] * 5
    slowly = [step for piece in pieces for step in (chunk(openai_chunk({said: piece}, model="second")), Pause(0.12))]
    rest = [chunk(openai_chunk({"content": "jumps over the dog."}, model="second")), *ends("openai")]
    pair.plays([opens(Pause(0.05), Reset())], [lambda *_: [sse_head(), *slowly, *rest]])
    for heard in await pair.completes(WHOLE, primary=1, backup=1, asked=[chat_way()]):
        assert heard.ended == 1


async def test_error_that_is_a_number_is_one_of_the_gateways_own_table(pair: Pair) -> None:
    pair.plays([opens(chunk(RATE), LAST_CHUNK)], [goes_on])
    await finishes(pair, "prefill", "completed", primary=1, backup=1)


async def test_readers_get_heartbeats_during_a_rescue(pair: Pair) -> None:
    pair.plays([opens(Hang())], [goes_on])
    for heard in await pair.completes(WHOLE, primary=1, backup=1, asked=pair_ways("openai", "chat")):
        assert len(heard.comments) >= 2


@pytest.mark.parametrize("texts", [[WHOLE], list(WHOLE), [WHOLE[:17], WHOLE[17:22], WHOLE[22:]]], ids=len)
async def test_fallback_that_begins_anew_all_the_same_is_not_repeated(pair: Pair, texts: list[str]) -> None:
    pair.plays([opens(Reset())], [answers(*texts)])
    await finishes(pair, "prefill", "completed", primary=1, backup=1)


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
    await pair.completes(WHOLE, primary=2, backup=1)  # a role is no part of an answer: nothing was delivered


async def test_rescue_that_fails_once_is_tried_again(pair: Pair) -> None:
    pair.plays([opens(Reset())], [says("broken"), goes_on])
    await finishes(pair, "prefill", "completed", primary=1, backup=2)


async def test_first_break_is_told_when_nobody_can_finish(pair: Pair) -> None:
    for script, calls in (says("overloaded"), 2), ([Hang()], 1):
        pair.plays([opens(Reset())], [script])
        for heard in await pair.fails("upstream_cut", 502, primary=1, backup=calls, text="The quick brown fox "):
            line = await pair.stage.told(heard, "upstream_error")
            assert line["upstream"].startswith("main")
            assert (line["output_tokens"], line["usage_source"]) == (5, "estimate")


async def test_answer_with_a_tool_call_is_not_finished_elsewhere(pair: Pair) -> None:
    call = {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{"}}]}
    pair.plays([[sse_head(), chunk(openai_chunk(call)), Reset()]], [answers(WHOLE)])
    await pair.fails("upstream_cut", 502, primary=1, backup=0)


async def begun(answer: Response) -> str:
    """The reader's place behind the first two tokens."""
    texts = ""
    while texts != "".join(BEGUN):
        message = await answer.next()
        assert message is not None
        texts += message.json()["text"] if message.type == "token" else ""
    return answer.parser.last_event_id


async def whole(answer: Response) -> list[Message]:
    async with answer:
        return [message async for message in answer.messages()]


def text_of(messages: list[Message]) -> str:
    return "".join(message.json()["text"] for message in messages if message.type == "token")


@pytest.mark.parametrize("primary", PROVIDERS)
async def test_every_reader_of_a_rescued_answer_has_the_whole_of_it_wherever_it_began(pair: Pair, primary: str) -> None:
    gate = asyncio.Event()

    def slowly(dialect: str, exchange: Exchange) -> list[Step]:
        return [*begins(dialect, " jumps"), WaitFor(gate), *begins(dialect, " over the dog.")[-1:], *ends(dialect)]

    pair.plays([opens(Reset())], [slowly])
    [way] = pair_ways("chat", primary=primary, backups=["openai"])
    first = await way.send(pair.url)
    url, place = f"{pair.url}/streams/{first.headers['x-stream-id']}", await begun(first)
    second, third = await request(url), await request(url, last_event_id=place)
    gate.set()
    heard = [await whole(reader) for reader in (first, second, third, await request(url, last_event_id=place))]
    assert [text_of(messages) for messages in heard] == [WHOLE[20:], WHOLE, WHOLE[20:], WHOLE[20:]]
    for messages in heard:
        assert (messages[-1].type, messages[-1].json()["full_text"]) == ("done", WHOLE)
        assert [message.type for message in messages].count("done") == 1


async def test_stop_during_a_rescue_hangs_up_and_keeps_what_was_said(pair: Pair) -> None:
    way = chat_way()
    pair.plays([opens(Reset())], [[Hang()]])
    async with await way.send(pair.url) as answer:
        exchange = await pair.backup.exchange()
        async with await request(f"{pair.url}/streams/{answer.headers['x-stream-id']}", method="DELETE"):
            await asyncio.wait_for(exchange.closed.wait(), 1)
        messages = [message async for message in answer.messages()]
    assert messages[-1].json()["full_text"] == "The quick brown fox "
    await pair.stage.at_rest()


# Fallbacks that refuse to go on from a text.

stubborn = pair_fixture()


async def test_other_answer_restarts_a_chat_and_fails_the_rest(stubborn: Pair) -> None:
    stubborn.plays([opens(Reset())], [rejects(answers("The slow ", "brown fox sleeps."))])
    before = await stubborn.rescues()
    for heard in await stubborn.stage.ask_all(pair_ways("chat")):
        kinds = [message.type for message in heard.messages]
        place = kinds.index("restart")
        texts = [message.json()["text"] for message in heard.messages[place:] if message.type == "token"]
        assert "".join(texts) == heard.messages[-1].json()["full_text"] == "The slow brown fox sleeps."
        assert (kinds[-1], heard.errors, kinds.count("restart")) == ("done", [], 1)
    failing = pair_ways("openai", "whole")
    await stubborn.stage.fail_all(failing, "upstream_cut", 502, text="The quick brown fox ", whole=True)
    grown = await stubborn.rescues() - before
    assert grown == {("anew", "restarted"): 3, ("anew", "failed"): 6}


async def test_place_before_a_restart_leads_to_the_restart(stubborn: Pair) -> None:
    stubborn.plays([opens(Reset())], [rejects(answers("The slow ", "brown fox sleeps."))])
    first = await chat_way().send(stubborn.url)
    place = await begun(first)
    await whole(first)
    late = await whole(await request(f"{stubborn.url}/streams/{first.headers['x-stream-id']}", last_event_id=place))
    assert [message.type for message in late if message.type != "connected"] == ["restart", "token", "token", "done"]
    assert text_of(late) == late[-1].json()["full_text"] == "The slow brown fox sleeps."


async def test_history_holds_the_new_answer_only(stubborn: Pair) -> None:
    stubborn.plays([opens(Reset()), answers("Yes.", model="first")], [rejects(answers("The slow brown fox sleeps."))])
    url = f"{stubborn.url}{chat_way().path}"
    for question in "What sleeps?", "Does it?":
        last = await whole(await request(url, method="POST", body={"message": question, "session_id": "s"}))
    assert text_of(last) == "Yes."
    said = [message["content"] for message in stubborn.stage.upstream.exchanges[-1].json()["messages"]]
    assert said == ["What sleeps?", "The slow brown fox sleeps.", "Does it?"]


async def test_other_answer_is_no_fault_of_the_fallback(stubborn: Pair) -> None:
    errors = [line for line in await stubborn.stage.metrics() if "gateway_upstream_errors_total" in line]
    assert not [line for line in errors if "backup" in line and "upstream_cut" in line]
