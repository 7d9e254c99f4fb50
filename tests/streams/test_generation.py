"""A generation from within: who ends it, when, and what is left of it. A real upstream, no clients."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.core.cursor import Place
from gateway.core.errors import GatewayError
from gateway.core.event import DONE, ERROR, START, TOKEN
from gateway.streams.generation import Generation
from gateway.streams.reader import BEGINNING
from gateway.web.kinds.chat_source import ChatSource
from tests.kit.program import free_port
from tests.kit.upstream import (
    Cut,
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Step,
    openai_answer,
    openai_delta,
    response,
    sse_head,
)
from tests.streams.works import ENDLESS, Works, read_all, until_streaming

# -- its end -------------------------------------------------------------------------------------------------------


async def test_answer_that_completes_is_whole(works: Works) -> None:
    async with ScriptedUpstream([*openai_answer("a", "b"), Cut()]) as upstream:
        generation = works.started(upstream.url)
        events = await read_all(generation.attach(BEGINNING))
    assert [event.type for event in events] == [START, TOKEN, TOKEN, DONE]
    assert (generation.state, works.outcomes()) == ("completed", {"completed": 1})


async def test_abort_before_the_first_step_ends_it_without_asking_anybody(works: Works) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        generation = works.started(upstream.url)
        generation.abort(GatewayError("drained", retry_after=3))
        await asyncio.wait_for(generation.ended, 1)
        assert upstream.connections == 0
    assert [event.type for event in await read_all(generation.attach(BEGINNING))] == [START, ERROR]
    assert (generation.state, works.outcomes()) == ("drained", {"drained": 1})
    assert works.count("gateway_upstream_requests_total") == 0


async def test_abort_while_connecting_closes_the_upstream(works: Works) -> None:
    async with ScriptedUpstream([Hang()]) as upstream:
        generation = works.started(upstream.url)
        exchange = await upstream.exchange()
        generation.stop()
        await asyncio.wait_for(exchange.closed.wait(), 1)
        await generation.ended
    assert works.outcomes() == {"stopped": 1}


async def test_first_of_two_aborts_decides(works: Works) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        generation = works.started(upstream.url)
        await until_streaming(generation)
        generation.abort(GatewayError("auth_expired"))
        generation.stop()
        await generation.ended
        generation.stop()
    assert (generation.state, works.outcomes()) == ("auth_expired", {"auth_expired": 1})
    assert [event.type for event in await read_all(generation.attach(BEGINNING))].count(ERROR) == 1


async def test_stop_keeps_what_was_said(works: Works) -> None:
    answers: list[str] = []
    async with ScriptedUpstream(ENDLESS) as upstream:
        generation = works.started(upstream.url, on_answer=answers.append)
        await until_streaming(generation)
        generation.stop()
        events = await read_all(generation.attach(BEGINNING))
    assert events[-1].type == DONE
    assert '"finish_reason":"stopped"' in events[-1].data
    assert answers == ["a"]


async def test_task_cancelled_by_nobody_we_know_ends_as_drained(works: Works) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        generation = works.started(upstream.url)
        await until_streaming(generation)
        [task] = [task for task in asyncio.all_tasks() if task.get_name().startswith("generation ")]
        task.cancel()
        await generation.ended
    assert works.outcomes() == {"drained": 1}


async def test_history_that_fails_takes_nothing_else_with_it(works: Works) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def forget(answer: str) -> None:
        raise ZeroDivisionError

    async with ScriptedUpstream([*openai_answer("a"), Cut()]) as upstream:
        with capture_logs() as lines:
            generation = works.started(upstream.url, on_answer=forget)
            await generation.ended
            await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["stream_end"]
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


# -- its readers ---------------------------------------------------------------------------------------------------


async def test_last_reader_to_leave_starts_the_clock_and_the_next_one_stops_it(works: Works) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        generation = works.started(upstream.url, stream={"on_disconnect": {"after": "300ms"}})
        generation.id_sent = True
        first, second = generation.attach(BEGINNING), generation.attach(BEGINNING)
        await until_streaming(generation)
        generation.detach(first, 0)
        generation.detach(second, 0)
        back = generation.attach(Place(1, 0))
        await asyncio.sleep(0.5)
        assert generation.state == "streaming"
        generation.detach(back, 0)
        await asyncio.wait_for(generation.ended, 2)
    assert works.outcomes() == {"client_gone": 1}


async def test_reader_that_leaves_while_it_ends_changes_nothing(works: Works) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        generation = works.started(upstream.url, stream={"on_disconnect": {"after": "0s"}})
        reader = generation.attach(BEGINNING)
        await until_streaming(generation)
        generation.stop()
        generation.detach(reader, 10, "slow_reader")
        await generation.ended
    assert works.outcomes() == {"stopped": 1}


async def test_end_is_logged_once_when_the_last_reader_has_left(works: Works) -> None:
    with capture_logs() as lines:
        async with ScriptedUpstream([*openai_answer("a"), Cut()]) as upstream:
            generation = works.started(upstream.url)
            readers = [generation.attach(BEGINNING), generation.attach(BEGINNING)]
            await generation.ended
            generation.detach(readers[0], 10)
            assert lines == []
            await asyncio.sleep(0.2)
            generation.detach(readers[1], 20)
            late = generation.attach(BEGINNING)
            generation.detach(late, 30)
    [line] = lines
    assert (line["event"], line["bytes"], line["connections"]) == ("stream_end", 30, 2)
    assert line["duration_ms"] < 200, "the time that readers took is not the generation's"


@pytest.mark.parametrize("after", ["never", "1h", "0s"])
async def test_answer_to_pass_on_does_not_outlive_its_only_reader(works: Works, after: str) -> None:
    async with ScriptedUpstream([response(200, "{}")[:-1], Hang()]) as upstream:
        generation = works.started(
            upstream.url, unread=True, canonical=False, announce=False, stream={"on_disconnect": {"after": after}}
        )
        reader = generation.attach(BEGINNING)
        assert (await generation.opened()).response is not None
        generation.detach(reader, 0)
        await asyncio.wait_for(generation.ended, 1)
    assert works.outcomes() == {"client_gone": 1}


async def test_answer_to_pass_on_that_comes_too_late_is_dropped(works: Works) -> None:
    async with ScriptedUpstream([Pause(0.2), response(200, "{}")[:-1], Hang()]) as upstream:
        generation = works.started(
            upstream.url, unread=True, canonical=False, announce=False, stream={"on_disconnect": {"after": "never"}}
        )
        generation.detach(generation.attach(BEGINNING), 0)
        await asyncio.wait_for(generation.ended, 2)
    assert works.outcomes() == {"client_gone": 1}


async def test_answer_that_was_passed_on_is_completed_and_not_kept(works: Works) -> None:
    async with ScriptedUpstream([response(200, "{}")]) as upstream:
        generation = works.started(upstream.url, unread=True, canonical=False, announce=False)
        reader = generation.attach(BEGINNING)
        assert (await generation.opened()).response is not None
        generation.passed_through()
        generation.detach(reader, 2)
        await asyncio.wait_for(generation.ended, 1)
        await asyncio.sleep(0.1)
    assert works.outcomes() == {"completed": 1}
    assert (len(works.registry), works.registry.memory.used) == (0, 0)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


# -- what is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [[*openai_answer("a"), Cut()], [Reset()], [sse_head(), openai_delta("a"), Reset()]])
async def test_ended_generation_keeps_its_log_and_nothing_of_the_request(
    works: Works, script: list[Step], no_collector: None
) -> None:
    """What was asked may be megabytes: it goes at once, and not when the collector of circles comes."""

    class Prompt(dict[str, Any]):
        """A dict that can be watched."""

    async with ScriptedUpstream(script) as upstream:
        prompt, remember = Prompt(role="user", content="hi"), Remember()
        chat = {"model": "m", "messages": [prompt]}
        source = ChatSource(chat)
        generation = works.generation(upstream.url, source=source, on_answer=remember)
        gone: list[weakref.ref[Any]] = [weakref.ref(prompt), weakref.ref(remember)]
        generation.start()
        waiting = asyncio.ensure_future(first_answer(generation))
        await generation.ended
        await waiting
        del prompt, remember, chat, source, waiting
    assert [ref() is None for ref in gone] == [True, True]
    assert generation.log.last >= 2
    assert works.registry.find(generation.stream.id, "me") is generation


class Remember:
    def __call__(self, answer: str) -> None:
        self.answer = answer


async def first_answer(generation: Generation) -> str:
    opening = await generation.opened()
    return opening.error.code if opening.error is not None else ""


async def test_memory_of_all_logs_is_given_back_to_the_byte(works: Works) -> None:
    scripts: list[list[Step]] = [[*openai_answer("a" * 999), Cut()], [Reset()], [sse_head(), openai_delta("x"), Cut()]]
    async with ScriptedUpstream(*scripts) as upstream:
        for _ in scripts:
            generation = works.started(upstream.url, stream={"resume": {"enabled": False}})
            reader = generation.attach(BEGINNING)
            await generation.ended
            generation.detach(reader, 0)
        await asyncio.sleep(0.1)
    assert (len(works.registry), works.registry.memory.used) == (0, 0)


async def test_upstream_that_cannot_be_reached_counts_as_an_attempt_without_status(works: Works) -> None:
    await works.started(f"http://127.0.0.1:{free_port()}").ended
    assert works.count("gateway_upstream_requests_total", code="none") == 1
    assert works.count("gateway_upstream_errors_total", error_type="upstream_unreachable") == 1


async def test_slots_are_back_after_every_kind_of_end(works: Works) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        running = [works.started(upstream.url) for _ in range(3)]
        assert works.slots_taken() == 3
        running[0].stop()
        running[1].abort(GatewayError("drained"))
        running[2].detach(running[2].attach(BEGINNING), 0)
        running[2].stop()
        await asyncio.gather(*(generation.ended for generation in running))
    assert works.slots_taken() == 0
