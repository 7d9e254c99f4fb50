"""What a process costs, as the kernel tells: CPU of all its threads and children, resident memory.

- CPU is the scheduler's own run time in nanoseconds, so what other processes do hardly shows in it; only caches do.
- A program is the process that was started and all its descendants: nginx's workers count, and so does its master.

This file does not know what the processes do.
"""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for directory in PROC.glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            yield int(directory.name), int(fields[1])


def cpu_seconds(pids: Sequence[int]) -> float:
    """Seconds that all living threads of these processes have run.

    Source: Linux Documentation/scheduler/sched-stats.
    """
    return sum(int(path.read_text().split()[0]) for pid in pids for path in _schedstats(pid)) / 1e9


def _schedstats(pid: int) -> list[Path]:
    return list((PROC / str(pid) / "task").glob("*/schedstat"))


def resident_kib(pids: Sequence[int]) -> int:
    """KiB of memory that these processes hold; pages they share count once for each."""
    return sum(_status(pid, "VmRSS:") for pid in pids)


def _status(pid: int, key: str) -> int:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def machine_seconds() -> float:
    """Seconds that all cores together were not idle."""
    user, nice, system, _idle, _iowait, *rest = map(int, (PROC / "stat").read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Shares:
    """CPU during one window, as shares of one core: 1.0 is a whole core.

    Attributes:
        program, upstream, client: of the bench.
        other: everything else that the machine did, which is noise; nearly 0 on a quiet machine.
    """

    program: float
    upstream: float
    client: float
    other: float


@dataclass(frozen=True, slots=True)
class Moment:
    """The counters at the start of a window."""

    program: list[int]
    upstream: list[int]
    at: float
    seconds: tuple[float, float, float, float]

    @classmethod
    def now(cls, program: list[int], upstream: list[int]) -> Self:
        """The start of a window over these processes and this one."""
        return cls(program, upstream, time.monotonic(), cls._read(program, upstream))

    @staticmethod
    def _read(program: list[int], upstream: list[int]) -> tuple[float, float, float, float]:
        return cpu_seconds(program), cpu_seconds(upstream), cpu_seconds([os.getpid()]), machine_seconds()

    def elapsed(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.at

    def shares(self) -> Shares:
        """What was used since then."""
        elapsed = self.elapsed()
        now = self._read(self.program, self.upstream)
        program, upstream, client, machine = ((b - a) / elapsed for a, b in zip(self.seconds, now, strict=True))
        return Shares(program, upstream, client, max(0.0, machine - program - upstream - client))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one scenario cost one program in one run. None is what the scenario does not ask.

    Attributes:
        shares: CPU during the window.
        events: that the client received a second.
        cpu: microseconds of the program's CPU for each event.
        answer: milliseconds of the program's CPU for each answer.
        store: microseconds of the store's CPU for each event.
        stored: bytes that each event takes in the store.
        bytes: sent to the client for each event.
        kib: of resident memory for each stream.
        latencies: in milliseconds, sorted.
        lag: what 99.9 % of the looks at the program's event loop found it late by at most, in milliseconds.
        late: how late the latest heartbeat was, in milliseconds.
        lost: events lost, doubled or out of order; anything but 0 fails the bench.
        failure: why there is nothing measured, which fails the bench too.
    """

    shares: Shares | None = None
    events: float | None = None
    cpu: float | None = None
    answer: float | None = None
    store: float | None = None
    stored: float | None = None
    bytes: float | None = None
    kib: float | None = None
    latencies: tuple[float, ...] = ()
    lag: float | None = None
    late: float | None = None
    lost: int = 0
    failure: str = ""


def machine() -> str:
    """One line about where this runs: cores, CPU model, kernel."""
    models = [line for line in (PROC / "cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{os.cpu_count()} cores, {model}, {platform.system()} {platform.release()}"
