"""The scenarios: what is asked of every program, and how it is measured.

- `relay`: many paced streams; CPU, memory, bytes and latency during a window in which all of them run.
- `first_token`: one stream after the other; the time from the request to the first event.
- `idle`: many streams that have had one event and wait; memory, and CPU with one heartbeat for each stream.
- `starts`: many answers of one event; CPU of one from its start to its end.
- `followed`: how late a second reader is, which follows at another node where there is one.

A scenario fails, rather than measures something else, when a stream is refused or ends before its window does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.client import Load, Stream, StreamError, connect, exchange, following, request
from bench.lag import Lag
from bench.marks import MAX_EVENTS, Pace
from bench.measure import Measurement, Moment, cpu_seconds, resident_kib
from bench.programs import (
    DIRECT,
    ENVOY,
    GATEWAY,
    GATEWAY_HEARTBEAT,
    GATEWAY_SHARED,
    GATEWAY_WINDOWS,
    LITELLM,
    NGINX,
    Program,
    Stage,
)

SETTLE: Final = 1.0
"""Seconds between the last stream's first event and the window."""
MANY: Final = 100
"""Streams; with fewer, a heap that grew by one step would pass for what a stream holds."""


class ScenarioError(Exception):
    """A measurement would not have measured what it says."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to ask of every program.

    Attributes:
        letter: its name on the command line.
        title: what it is, for the report.
        measure: how it is measured.
        programs: who is asked; nginx among them is what the others are compared to.
        streams: at once; or one after the other.
        rate: events a second of each stream.
        api: the kind of route.
        window: seconds of measuring.
        waits: whether all streams are open before the first of them goes on; for programs that are slow to open them.
    """

    letter: str
    title: str
    measure: Callable[["Scenario", Program, Stage], Awaitable[Measurement]]
    programs: tuple[Program, ...]
    streams: int
    rate: int = 0
    api: str = "openai"
    window: float = 4.0
    waits: bool = False


async def measure(scenario: Scenario, program: Program, stage: Stage) -> Measurement:
    """What this scenario costs this program; with a `failure` when the program could not do what is asked."""
    try:
        return await scenario.measure(scenario, program, stage)
    except (ScenarioError, StreamError, TimeoutError) as error:
        return Measurement(failure=str(error) or "no answer in time")


async def relay(scenario: Scenario, program: Program, stage: Stage) -> Measurement:
    """Cost and latency of many paced streams."""
    before, stored = resident_kib(stage.program), await used(stage.store_port)
    async with Load(stage.port, scenario.api, Pace(MAX_EVENTS, scenario.rate, scenario.waits)) as load:
        await load.open(scenario.streams)
        if scenario.waits:
            await load.start(stage.upstream_port)
        await asyncio.sleep(SETTLE)
        measurement = await _window(scenario, program, stage, load)
        grown = resident_kib(stage.program) - before
        if stage.store_port:
            events = load.count().events
            measurement = replace(measurement, stored=(await used(stage.store_port) - stored) / events)
        if load.open_streams() < scenario.streams:
            raise ScenarioError("streams ended before the window did")
        lost = await load.finish(stage.upstream_port)
    countable = stage.program and scenario.streams >= MANY
    return replace(measurement, kib=grown / scenario.streams if countable else None, lost=lost)


async def _window(scenario: Scenario, program: Program, stage: Stage, load: Load) -> Measurement:
    load.latencies(forget=True)
    lag = await Lag.of(program, stage)
    moment, before = Moment.now(stage.program, stage.upstream), load.count()
    store = cpu_seconds(stage.store)
    await asyncio.sleep(scenario.window)
    store = cpu_seconds(stage.store) - store
    seconds, shares, after = moment.elapsed(), moment.shares(), load.count()
    events = after.events - before.events
    if not events:
        raise ScenarioError("no event in the whole window")
    return Measurement(
        shares=shares,
        events=events / seconds,
        cpu=1e6 * shares.program * seconds / events if stage.program else None,
        store=1e6 * store / events if stage.store else None,
        bytes=(after.bytes - before.bytes) / events,
        latencies=milliseconds(load.latencies()),
        lag=await lag.since(),
    )


async def first_token(scenario: Scenario, program: Program, stage: Stage) -> Measurement:
    """The time from a request to its first event, with one stream at a time."""
    asked = request(scenario.api, Pace(1, 1).prompt)
    took, lost = [], 0
    for _ in range(scenario.streams):
        stream = await exchange(stage.port, asked)
        took.append(stream.first_event - stream.sent)
        lost += stream.sequence.lost
    return Measurement(latencies=milliseconds(took), lost=lost)


async def starts(scenario: Scenario, program: Program, stage: Stage) -> Measurement:
    """What an answer of one event costs from its start to its end, many a second. Those of the first second, in which
    Python adapts to the code that it runs, are not counted."""
    await _answers(scenario, stage, scenario.rate)
    moment = Moment.now(stage.program, stage.upstream)
    answers = await _answers(scenario, stage, scenario.streams)
    return Measurement(
        shares=moment.shares(),
        answer=1e3 * moment.shares().program * moment.elapsed() / len(answers),
        latencies=milliseconds(sorted(answer.first_event - answer.sent for answer in answers)),
        lost=sum(answer.sequence.lost for answer in answers),
    )


async def _answers(scenario: Scenario, stage: Stage, count: int) -> list[Stream]:
    asked, pause, loop = request(scenario.api, Pace(1, 1).prompt), 1 / scenario.rate, asyncio.get_running_loop()
    begun, tasks = loop.time(), list[asyncio.Task[Stream]]()
    for number in range(count):
        tasks.append(loop.create_task(exchange(stage.port, asked)))
        await asyncio.sleep(begun + (number + 1) * pause - loop.time())
    return await asyncio.gather(*tasks)


async def followed(scenario: Scenario, program: Program, stage: Stage) -> Measurement:
    """How late events reach a second reader, at the second node where there is one."""
    async with Load(stage.port, scenario.api, Pace(MAX_EVENTS, scenario.rate)) as load:
        await load.open(scenario.streams)
        readers = [await connect(stage.second, following(each.stream_id), sampled=True) for each in load.streams]
        try:
            await asyncio.gather(*(reader.opened for reader in readers))
            await asyncio.sleep(SETTLE)
            for reader in readers:
                reader.latencies.clear()
            await asyncio.sleep(scenario.window)
            latencies = milliseconds([latency for reader in readers for latency in reader.latencies])
            lost = await load.finish(stage.upstream_port)
            await asyncio.wait([reader.closed for reader in readers], timeout=SETTLE + 5)
            return Measurement(latencies=latencies, lost=lost + sum(reader.sequence.lost for reader in readers))
        finally:
            for reader in readers:
                reader.close()


async def used(port: int) -> int:
    """Bytes of memory that the Redis at this port uses; 0 where there is none."""
    if not port:
        return 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"INFO memory\r\n")
    try:
        async with asyncio.timeout(5):
            while not (line := await reader.readline()).startswith(b"used_memory:"):
                if not line:
                    raise ScenarioError("Redis does not say what it uses")
        return int(line.partition(b":")[2])
    finally:
        writer.close()


async def idle(scenario: Scenario, program: Program, stage: Stage) -> Measurement:
    """What streams cost that are open and wait."""
    before = resident_kib(stage.program)
    async with Load(stage.port, scenario.api, Pace(2, 0)) as load:  # the second never comes
        await load.open(scenario.streams)
        await asyncio.sleep(SETTLE)
        moment, lag = Moment.now(stage.program, stage.upstream), await Lag.of(program, stage)
        await asyncio.sleep(scenario.window)
        shares, kib = moment.shares(), (resident_kib(stage.program) - before) / scenario.streams
        late = await _late(program, load)
        if load.open_streams() < scenario.streams:
            raise ScenarioError("idle streams were ended")
        return Measurement(shares=shares, kib=kib, lag=await lag.since(), late=late)


async def _late(program: Program, load: Load) -> float | None:
    """Milliseconds by which the latest heartbeat came too late; another one is waited for first."""
    if program.heartbeat is None:
        return None
    await asyncio.sleep(program.heartbeat)
    return 1000 * (load.longest_gap() - program.heartbeat)


def milliseconds(micros: Sequence[int]) -> tuple[float, ...]:
    """Microseconds as sorted milliseconds."""
    return tuple(value / 1000 for value in sorted(micros))


_PROXIES: Final = (NGINX, GATEWAY, ENVOY)
_STORES: Final = (GATEWAY, GATEWAY_SHARED)
SCENARIOS: Final = (
    Scenario("A", "300 streams at 50 events/s", relay, _PROXIES, 300, 50),
    Scenario("B", "300 streams at 200 events/s", relay, _PROXIES, 300, 200),
    Scenario("C", "2,000 streams at 10 events/s", relay, _PROXIES, 2000, 10),
    Scenario("D", "300 streams at 50 events/s, api chat with merge", relay, (NGINX, GATEWAY), 300, 50, api="chat"),
    Scenario("E", "time to the first token, one stream", first_token, (DIRECT, *_PROXIES), 250),
    Scenario("F", "3,000 idle streams", idle, (NGINX, GATEWAY_HEARTBEAT, ENVOY), 3000, window=5),
    Scenario("G", "latency of 10 streams at 50 events/s", relay, (DIRECT, *_PROXIES, GATEWAY_WINDOWS), 10, 50),
    Scenario("H", "900 streams at 50 events/s", relay, _PROXIES, 900, 50),
    Scenario("I", "8,000 idle streams", idle, (NGINX, GATEWAY_HEARTBEAT), 8000, window=5),
    # The store on Redis beside the memory of the process.
    Scenario("J", "300 streams at 50 events/s, two stores", relay, _STORES, 300, 50),
    Scenario("K", "2,000 streams at 10 events/s, two stores", relay, _STORES, 2000, 10),
    Scenario("N", "1,500 answers of one event, 300 a second, two stores", starts, _STORES, 1500, 300),
    Scenario("O", "time to the first token, two stores", first_token, (DIRECT, *_STORES), 250),
    Scenario("P", "a second reader of 50 streams at 20 events/s", followed, _STORES, 50, 20),
    # LiteLLM with room to spare on one core, and with all that it can do: it relays what it has time for. Asked for by
    # their letters only.
    Scenario("L", "100 streams at 10 events/s, with LiteLLM", relay, (NGINX, GATEWAY, LITELLM), 100, 10),
    Scenario("M", "300 streams at 50 events/s, with LiteLLM", relay, (NGINX, GATEWAY, LITELLM), 300, 50, waits=True),
)
BY_DEFAULT: Final = "ABCDEFGHIJKNOP"
QUICK: Final = "AD"
QUICK_WINDOW: Final = 2.0


def chosen(letters: str, *, quick: bool) -> list[Scenario]:
    """The scenarios of these letters, in their order; for nginx and the gateway alone, and shorter, when `quick`.

    Raises:
        KeyError: there is no scenario of some letter.
    """
    by_letter = {scenario.letter: scenario for scenario in SCENARIOS}
    found = [by_letter[letter] for letter in letters]
    return [replace(scenario, programs=(NGINX, GATEWAY), window=QUICK_WINDOW) for scenario in found] if quick else found
