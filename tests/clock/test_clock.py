"""The clock: deadlines on a wheel, beats that many wait for together."""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

import pytest

from gateway.clock import GRANULARITY, HORIZON, MAX_AT_ONCE, Clock, Tick, Timer, Wheel

pytestmark = pytest.mark.alone

LATE = 0.15
"""Seconds by which a busy machine may be late; a timer is never early."""


Args = TypeVarTuple("Args")


class Bell:
    """Remembers when it rang."""

    def __init__(self, wheel: Wheel) -> None:
        self.rings: list[float] = []
        self.rang = asyncio.Event()
        self._now = wheel.now

    def __call__(self) -> None:
        self.rings.append(self._now())
        self.rang.set()


def fail() -> None:
    """A callback with a fault."""
    raise ZeroDivisionError


@pytest.fixture
async def wheel() -> Wheel:
    return Wheel(asyncio.get_running_loop())


@pytest.mark.parametrize("delay", [0.0, 0.001, GRANULARITY, 0.06])
async def test_timer_fires_once_and_never_early(wheel: Wheel, delay: float) -> None:
    bell, began = Bell(wheel), wheel.now()
    timer = wheel.after(delay, bell)
    await asyncio.wait_for(bell.rang.wait(), 2)
    assert delay <= bell.rings[0] - began < delay + GRANULARITY + LATE
    assert timer.cancelled
    timer.fire()
    assert len(bell.rings) == 1


async def test_timer_moved_later_fires_at_its_new_deadline(wheel: Wheel) -> None:
    bell, began = Bell(wheel), wheel.now()
    timer = wheel.after(0.03, bell)
    timer.deadline = began + 0.12
    await asyncio.wait_for(bell.rang.wait(), 2)
    assert 0.12 <= bell.rings[0] - began < 0.12 + GRANULARITY + LATE


async def test_timer_moved_again_and_again_never_fires(wheel: Wheel) -> None:
    bell, after = Bell(wheel), Bell(wheel)
    timer = wheel.after(0.05, bell)
    for _ in range(6):
        after.rang.clear()
        wheel.after(0.02, after)
        await after.rang.wait()
        timer.deadline = wheel.now() + 0.15
    assert bell.rings == []


async def test_cancelled_timer_never_fires(wheel: Wheel) -> None:
    bell, other = Bell(wheel), Bell(wheel)
    timer = wheel.after(0.02, bell)
    wheel.after(0.06, other)
    timer.cancel()
    assert timer.cancelled
    await asyncio.wait_for(other.rang.wait(), 2)
    assert bell.rings == []


class Notebook(asyncio.SelectorEventLoop):
    """A loop that only writes down what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.asked.append(when)
        return asyncio.TimerHandle(when, callback, args, self, context)


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    loop = Notebook()
    yield loop
    loop.close()


def test_timers_of_one_granule_share_one_loop_timer(notebook: Notebook) -> None:
    wheel = Wheel(notebook)
    for _ in range(1000):
        wheel.after(30.0, lambda: None)
    assert len(notebook.asked) < 1000 / 10


def test_long_timers_are_looked_at_before_they_pile_up(notebook: Notebook) -> None:
    wheel = Wheel(notebook)
    wheel.after(24 * 3600, lambda: None).cancel()
    assert notebook.asked[0] <= wheel.now() + HORIZON + GRANULARITY


async def test_timer_that_fails_takes_no_other_with_it(wheel: Wheel) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    bell, deadline = Bell(wheel), wheel.now() + 0.02
    callbacks: list[Callable[[], None]] = [fail, bell]
    for callback in callbacks:
        timer = wheel.after(0.02, callback)
        timer.deadline = deadline
    await asyncio.wait_for(bell.rang.wait(), 2)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


async def test_timer_may_set_another_while_it_fires(wheel: Wheel) -> None:
    bell = Bell(wheel)

    def set_another() -> None:
        wheel.after(0.0, bell)

    wheel.after(0.0, set_another)
    await asyncio.wait_for(bell.rang.wait(), 2)
    assert len(bell.rings) == 1


def test_timer_knows_whether_it_will_fire() -> None:
    timer = Timer(0.0, lambda: None)
    assert not timer.cancelled
    timer.fire()
    assert timer.cancelled


async def beat(tick: Tick) -> None:
    """Returns at the tick's next beat."""
    called = asyncio.Event()
    tick.add(called.set)
    await asyncio.wait_for(called.wait(), 2)


async def test_tick_calls_all_who_wait_at_one_beat() -> None:
    tick, called = Clock(asyncio.get_running_loop()).tick(0.05), list[int]()
    for number in range(100):
        tick.add(lambda number=number: called.append(number))  # type: ignore[misc]
    await beat(tick)
    assert called == list(range(100))


async def test_tick_keeps_its_beat_for_who_comes_later() -> None:
    loop = asyncio.get_running_loop()
    tick = Clock(loop).tick(0.03)
    await beat(tick)
    began = loop.time()
    await beat(tick)
    await beat(tick)
    assert loop.time() - began >= 0.04


class Line(asyncio.WriteTransport):
    """Notes what is written to it, unless it was closed before."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: Any) -> None:
        self._seen.append(data.decode())


async def test_what_is_left_for_soon_follows_what_was_ready_and_precedes_what_comes_later() -> None:
    loop = asyncio.get_running_loop()
    clock, seen, last = Clock(loop), list[str](), asyncio.Event()
    line = Line(seen)

    def speak(name: str) -> None:
        seen.append(name)
        clock.soon(line, f"soon {name}".encode())

    for name in "ab":
        loop.call_soon(speak, name)
    loop.call_soon(loop.call_soon, seen.append, "later")
    loop.call_soon(loop.call_soon, last.set)
    await asyncio.wait_for(last.wait(), 2)
    assert seen == ["a", "b", "soon a", "soon b", "later"]


async def test_nothing_is_written_to_a_connection_that_was_lost_meanwhile() -> None:
    loop = asyncio.get_running_loop()
    clock, seen = Clock(loop), list[str]()
    lost, open_ = Line(seen), Line(seen)
    clock.soon(lost, b"lost")
    clock.soon(open_, b"open")
    lost.closing = True
    await asyncio.sleep(0)
    assert seen == ["open"]


async def test_callback_that_fails_takes_no_other_of_its_beat_with_it() -> None:
    loop = asyncio.get_running_loop()
    clock, told = Clock(loop), list[object]()
    loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))
    tick = clock.tick(0.02)
    tick.add(fail)
    await beat(tick)
    assert told == [ZeroDivisionError]


async def test_beat_of_very_many_lets_the_loop_have_its_turn() -> None:
    loop = asyncio.get_running_loop()
    tick, seen = Clock(loop).tick(0.02), list[int | str]()

    def speak() -> None:
        loop.call_soon(seen.append, "another")

    tick.add(speak)
    for number in range(2 * MAX_AT_ONCE):
        tick.add(lambda number=number: seen.append(number))  # type: ignore[misc]
    await beat(tick)
    assert [one for one in seen if one != "another"] == list(range(2 * MAX_AT_ONCE))
    assert MAX_AT_ONCE - 1 <= seen.index("another") < 2 * MAX_AT_ONCE


async def test_clock_shares_a_tick_between_streams_of_one_interval() -> None:
    clock = Clock(asyncio.get_running_loop())
    assert clock.tick(0.05) is clock.tick(0.05)
    assert clock.tick(0.05) is not clock.tick(0.1)
    assert clock.now() <= clock.wheel.now()
