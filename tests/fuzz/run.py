"""One process of a run: which target's turn it is, what is counted, and what a finding says.

Every target has a generator of its own and inputs of its own that were worth keeping. So what a target is given depends
on the seed alone, however fast the machine is and whichever other targets run beside it.

Bounds: a target keeps `POOL` inputs and knows `OUTCOMES` outcomes; one input takes `SLOW` seconds of CPU, or it is a
finding; the process takes `Order.memory`, or it ends with a finding. A finding is told once for each place in the code.
"""

import asyncio
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from tests.fuzz import front
from tests.fuzz.mutate import mutated
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.kit.program import Gateway

FRONT: Final = "front"
"""The running gateway, which is no `Target`: its inputs go over sockets."""
FRONT_SHARE: Final = 0.2
"""The part of the time that goes to it."""
FRONT_INPUTS: Final = 0.02
"""The part of the inputs that goes to it: one costs as much as a hundred others."""
BATCH: Final = 100
"""Inputs of one target in a row for each unit of its weight."""
POOL: Final = 256
OUTCOMES: Final = 4096
SLOW: Final = 1.0
"""Seconds of CPU for one input."""
HANGS: Final = 30.0
"""Seconds of CPU after which an input is broken off."""
LOOK: Final = 30.0
"""Seconds between two looks at the gateway."""
REPORT: Final = 60.0
"""Seconds between two lines that say how far a run is."""
MAX_FOUND: Final = 100
"""Findings that are told, of one process."""


class Order(NamedTuple):
    """What one process does.

    Attributes:
        names: the targets.
        seconds, inputs: its bounds; 0 inputs for no bound.
        seed: decides all inputs.
        memory: bytes that it may take.
    """

    names: tuple[str, ...]
    seconds: float
    inputs: int
    seed: int
    memory: int


class Found(NamedTuple):
    """A mistake: where it was seen, what was raised, and the input, or those that were sent over one connection."""

    name: str
    place: str
    said: str
    data: bytes | tuple[bytes, ...]


@dataclass
class Tally:
    """What came of a run.

    Attributes:
        inputs, seconds: by target; the seconds are of wall time.
        found: in the order in which they were found.
        memory: bytes that the largest process took at most.
    """

    inputs: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)
    memory: int = 0

    def count(self, name: str, inputs: int, seconds: float) -> None:
        """So many more inputs of this target."""
        self.inputs[name] = self.inputs.get(name, 0) + inputs
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def add(self, other: "Tally") -> None:
        """What another process did."""
        for name, inputs in other.inputs.items():
            self.count(name, inputs, other.seconds[name])
        self.found += other.found
        self.memory = max(self.memory, other.memory)

    def note(self, found: Found, seed: int) -> None:
        """Tells of a mistake, unless one of the same place was told before."""
        known = {(one.name, one.place) for one in self.found}
        if (found.name, found.place) in known or len(self.found) >= MAX_FOUND:
            return
        self.found.append(found)
        again = f"python -m tests.fuzz --only {found.name} --bytes {str(found.data)!r}"
        print(f"FOUND {found.name} {found.place} (seed {seed}): {found.said}\n  again: {again}", flush=True)

    def table(self) -> str:
        """Inputs and inputs a second by target, and all together."""
        rows = [
            f"{name:12} {inputs:>12,} inputs {inputs / max(self.seconds[name], 1e-9):>10,.0f}/s"
            for name, inputs in sorted(self.inputs.items())
        ]
        inputs, seconds = sum(self.inputs.values()), sum(self.seconds.values())
        total = f"{'together':12} {inputs:>12,} inputs {inputs / max(seconds, 1e-9):>10,.0f}/s"
        return "\n".join([*rows, f"{total}, {len(self.found)} found, {self.memory >> 20} MiB at most"])


def run(order: Order) -> Tally:
    """Tries inputs until the order is done."""
    print(f"seed {order.seed}", flush=True)
    names = [name for name in order.names if name != FRONT]
    with_front = FRONT in order.names
    share = (FRONT_SHARE if names else 1.0) if with_front else 0.0
    inputs = int(order.inputs * (FRONT_INPUTS if names else 1.0)) if with_front else 0
    tally, begun = Tally(), time.monotonic()
    try:
        if names:
            seconds = order.seconds * (1 - share)
            _in_process(order._replace(names=tuple(names), seconds=seconds, inputs=order.inputs - inputs), tally)
        if with_front:
            left = order.seconds - (time.monotonic() - begun)
            asyncio.run(_at_the_front(order._replace(seconds=left, inputs=inputs), tally))
    except KeyboardInterrupt:
        print("interrupted", flush=True)  # what was done until then counts
    tally.memory = _memory()
    return tally


def try_again(name: str, data: bytes | tuple[bytes, ...]) -> int:
    """The exit status of one input; what is raised is shown."""
    if name == FRONT:
        tally = Tally()
        asyncio.run(
            _at_the_front(Order((FRONT,), 60.0, 1, 0, 1 << 30), tally, data if isinstance(data, tuple) else (data,))
        )
        return int(bool(tally.found))
    assert isinstance(data, bytes), "only the front is sent several inputs"
    print(TARGETS[name].attempt(data))
    return 0


class _Hunt:
    """One target, its generator, and what it has learned."""

    def __init__(self, name: str, target: Target, seed: int) -> None:
        self.name, self.target = name, target
        self.rng = random.Random(f"{seed} {name}")
        self.pool = list(target.seeds)
        self.outcomes: set[Hashable] = set()

    def turn(self, count: int, seed: int, tally: Tally) -> None:
        """Tries so many inputs."""
        attempt, seeds, rng, draw = self.target.attempt, self.target.seeds, self.rng, self.rng.random
        begun = time.monotonic()
        for _ in range(count):
            data = mutated(self.pool[int(draw() * len(self.pool))], seeds, rng)
            before = time.process_time()
            try:
                outcome = attempt(data)
            except Exception as error:  # noqa: BLE001  # whatever it is, it was found
                tally.note(Found(self.name, _place(error), f"{type(error).__name__} {error!s:.300}", data), seed)
                continue
            if time.process_time() - before > SLOW:
                tally.note(Found(self.name, "slow", f"more than {SLOW} s of CPU", data), seed)
            if outcome not in self.outcomes and len(self.outcomes) < OUTCOMES:
                self.outcomes.add(outcome)
                self._keep(data)
        tally.count(self.name, count, time.monotonic() - begun)

    def _keep(self, data: bytes) -> None:
        """A changed input that led further may lead further still."""
        if len(self.pool) >= POOL:
            del self.pool[len(self.target.seeds) + int(self.rng.random() * (POOL - len(self.target.seeds)))]
        self.pool.append(data)


def _in_process(order: Order, tally: Tally) -> None:
    hunts = [_Hunt(name, TARGETS[name], order.seed) for name in order.names]
    weights = sum(hunt.target.weight for hunt in hunts)
    end, report = time.monotonic() + order.seconds, time.monotonic() + REPORT
    handler = signal.signal(signal.SIGVTALRM, _break_off)
    try:
        for hunt in _turns(hunts):
            done, part = tally.inputs.get(hunt.name, 0), hunt.target.weight / weights * order.inputs
            count = (
                min(BATCH * hunt.target.weight, int(part) + 1 - done) if order.inputs else BATCH * hunt.target.weight
            )
            if count <= 0:
                return  # all have the same part of theirs, but for one turn
            signal.setitimer(signal.ITIMER_VIRTUAL, HANGS)
            hunt.turn(count, order.seed, tally)
            if _memory() > order.memory:
                tally.note(Found(hunt.name, "memory", f"the process takes {_memory() >> 20} MiB", b""), order.seed)
                return
            now = time.monotonic()
            if now > report:
                report = now + REPORT
                print(f"{sum(tally.inputs.values()):,} inputs, {len(tally.found)} found", flush=True)
            if now > end:
                return
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def _turns(hunts: list[_Hunt]) -> Iterator[_Hunt]:
    while True:
        yield from hunts


class HangsError(Exception):
    """An input takes too long."""


def _break_off(number: int, frame: FrameType | None) -> None:
    raise HangsError(f"more than {HANGS} s of CPU")


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"


def _memory() -> int:
    """Bytes that this process took at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


async def _at_the_front(order: Order, tally: Tally, datas: Sequence[bytes] = ()) -> None:
    rng = random.Random(f"{order.seed} {FRONT}")
    with tempfile.TemporaryDirectory() as folder:
        async with front.Provider(random.Random(f"{order.seed} provider")) as provider:
            gateway = Gateway(front.configuration(provider), Path(folder))
            try:
                async with gateway:
                    batches = [datas] if datas else _batches(rng)
                    await _attack(gateway, provider, order, tally, batches)
            except AssertionError as error:  # it ended badly, or its log holds what it may not hold
                lines = [line for line in (*gateway.stdout, *gateway.stderr) if front.KEY in line][:3]
                tally.note(Found(FRONT, "at the end", f"{error!s:.2000} {lines!s:.2000}", b""), order.seed)


def _batches(rng: random.Random) -> Iterator[Sequence[bytes]]:
    while True:
        yield [front.made(rng) for _ in range(front.AT_ONCE * 100)]


async def _attack(
    gateway: Gateway, provider: front.Provider, order: Order, tally: Tally, batches: Iterable[Sequence[bytes]]
) -> None:
    begun = looked = time.monotonic()
    for batch in batches:
        broken: list[front.Broken] = []
        sent = time.monotonic()
        read = await front.attack(gateway, iter(batch), broken)
        tally.count(FRONT, read, time.monotonic() - sent)
        for why, detail, some in broken:
            tally.note(Found(FRONT, why, detail, some), order.seed)
        if time.monotonic() > begun + order.seconds or 0 < order.inputs <= tally.inputs[FRONT]:
            break
        if time.monotonic() > looked + LOOK:
            looked = time.monotonic()
            await _look(gateway, provider, order, tally)
    await _look(gateway, provider, order, tally)


async def _look(gateway: Gateway, provider: front.Provider, order: Order, tally: Tally) -> None:
    """Whether the gateway is as before; which input changed it, is not known."""
    print(f"{tally.inputs[FRONT]:,} inputs at the front", flush=True)
    try:
        await front.assert_nothing_left(gateway, provider)
    except AssertionError as error:
        tally.note(Found(FRONT, "something is left", str(error)[:3000], b""), order.seed)
    memory = _memory_of(gateway.pid)
    if memory > order.memory:
        tally.note(Found(FRONT, "memory", f"the gateway takes {memory >> 20} MiB", b""), order.seed)


def _memory_of(pid: int) -> int:
    """Bytes that another process takes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()
