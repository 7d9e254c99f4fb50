"""The report: medians of the runs beside their ratios to nginx, as Markdown.

- A ratio is the median of each run's own ratio, so that what slowed a whole run does not show.
- A column that nobody has a figure for is left out.
- The spread is shown where it matters most, at the CPU of an event: least and most of all runs.

This file does no I/O and starts nothing; what it is told it prints.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.measure import Measurement, Shares

Results = Mapping[str, Sequence[Measurement]]
"""A program's name to its measurements, one a run, in the order of the table."""
Figure = Callable[[Measurement], float | None]

NGINX: Final = "nginx"
DIRECT: Final = "direct"
GATEWAY: Final = "gateway"
NONE: Final = "–"


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest of the sorted values that is not below `percent` (0 to 100) of them, by nearest rank; None of none.

    Source: NIST/SEMATECH e-Handbook 7.2.6.2, in its simplest form.
    """
    if not values:
        return None
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)]


def figures(measurements: Sequence[Measurement], figure: Figure) -> list[float]:
    """One figure of each run that has it."""
    return [value for value in map(figure, measurements) if value is not None]


def ratio(measurements: Sequence[Measurement], base: Sequence[Measurement], figure: Figure) -> float | None:
    """The median of each run's ratio to the same run of `base`; None where there is nothing to compare."""
    pairs = zip(map(figure, measurements), map(figure, base), strict=False)
    ratios = [value / other for value, other in pairs if value is not None and other]
    return median(ratios) if ratios else None


def added(measurements: Sequence[Measurement], base: Sequence[Measurement], figure: Figure) -> float | None:
    """The median of each run's difference to the same run of `base`; None where there is nothing to compare."""
    pairs = zip(map(figure, measurements), map(figure, base), strict=False)
    differences = [value - other for value, other in pairs if value is not None and other is not None]
    return median(differences) if differences else None


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every program.

    Attributes:
        title: with its unit.
        figure: how a measurement tells it.
        digits: behind the point.
        base: the program whose own figure is shown beside the others', as a ratio (`nginx`) or subtracted (`direct`).
        spread: whether least and most are shown.
    """

    title: str
    figure: Figure
    digits: int = 0
    base: str = ""
    spread: bool = False

    def cell(self, name: str, results: Results) -> str:
        """What stands in the row of this program."""
        values = figures(results[name], self.figure)
        if not values:
            return NONE
        return f"{median(values):.{self.digits}f}{self._beside(name, results)}{self._extremes(values)}"

    def _beside(self, name: str, results: Results) -> str:
        if name in (self.base, DIRECT) or self.base not in results:
            return ""
        if self.base == DIRECT:
            difference = added(results[name], results[DIRECT], self.figure)
            return "" if difference is None else f" ({difference:+.{self.digits}f})"
        times = ratio(results[name], results[self.base], self.figure)
        return "" if times is None else f" ({times:.2f}×)"

    def _extremes(self, values: Sequence[float]) -> str:
        if not self.spread or len(values) < 2:
            return ""
        return f", {min(values):.{self.digits}f}–{max(values):.{self.digits}f}"


def _share(part: Callable[[Shares], float]) -> Figure:
    return lambda measurement: None if measurement.shares is None else 100 * part(measurement.shares)


def cpu(measurement: Measurement) -> float | None:
    """Microseconds of the program's CPU for each event."""
    return measurement.cpu


def kib(measurement: Measurement) -> float | None:
    """KiB of resident memory for each stream."""
    return measurement.kib


COLUMNS: Final = (
    Column("events/s", lambda m: m.events),
    Column("µs CPU / event", cpu, 1, base=NGINX, spread=True),
    Column("ms CPU / answer", lambda m: m.answer, 3, spread=True),
    Column("µs CPU of Redis / event", lambda m: m.store, 1),
    Column("bytes in Redis / event", lambda m: m.stored),
    Column("KiB / stream", kib, 0, base=NGINX),
    Column("bytes / event", lambda m: m.bytes, 0, base=NGINX),
    Column("p50 ms", lambda m: percentile(m.latencies, 50), 2, base=DIRECT),
    Column("p99 ms", lambda m: percentile(m.latencies, 99), 2, base=DIRECT),
    Column("lag ms", lambda m: m.lag, 1),
    Column("heartbeat late ms", lambda m: m.late),
    Column("lost", lambda m: None if m.failure else m.lost),
    Column("CPU %", _share(lambda shares: shares.program), 1),
    Column("upstream %", _share(lambda shares: shares.upstream)),
    Column("client %", _share(lambda shares: shares.client)),
    Column("others %", _share(lambda shares: shares.other)),
)

LEGEND: Final = f"""\
Medians of the runs; in brackets the ratio to nginx of the same run, or what is added to the direct way; behind a comma
the least and the most of all runs. CPU is of all threads and processes of a program, user and system; per cents are of
one core. `others %` is what else the machine did meanwhile: noise, and near 0 on a quiet machine. Latency is from the
writing at the upstream to the check at the client. Memory is resident memory, without the kernel's sockets; the
gateway's includes the log that a dropped stream resumes from. Lag is how late the gateway's own event loop was at
99.9 % of its looks at itself, 20 a second, as the bound of a histogram's bucket. `{NONE}`: not asked.
"""


def complaints(tables: Mapping[str, Results]) -> list[str]:
    """What fails the bench: a program that lost events in a scenario, or that could not do it at all."""
    return [
        f"{title}: {name}: {complaint}"
        for title, results in tables.items()
        for name, runs in results.items()
        for complaint in _complaints(runs)
    ]


def _complaints(runs: Sequence[Measurement]) -> Iterator[str]:
    lost = sum(measurement.lost for measurement in runs)
    if lost:
        yield f"{lost} events lost, doubled or out of order"
    yield from dict.fromkeys(measurement.failure for measurement in runs if measurement.failure)


def markdown(head: Sequence[str], tables: Mapping[str, Results]) -> str:
    """The whole report.

    Args:
        head: what was measured on what, one item of a list each.
        tables: a scenario's title to its results.
    """
    parts = ["# Results of `make bench`", _list(head), *_summary(tables), LEGEND.rstrip()]
    if told := complaints(tables):
        parts += ["**Failed:**", _list(told)]
    for title, results in tables.items():
        parts += [f"## {title}", "\n".join(_table(results))]
    return "\n\n".join(parts) + "\n"


def _summary(tables: Mapping[str, Results]) -> Iterator[str]:
    rows = [_row([title, *_against_nginx(results)]) for title, results in tables.items() if NGINX in results]
    if rows:
        yield "The gateway's cost, as a multiple of nginx's:"
        yield "\n".join([_row(["", "CPU / event", "memory / stream"]), "|---|---|---|", *rows])


def _against_nginx(results: Results) -> list[str]:
    gateway = next((runs for name, runs in results.items() if name.startswith(GATEWAY)), ())
    ratios = (ratio(gateway, results[NGINX], figure) for figure in (cpu, kib))
    return [NONE if times is None else f"{times:.2f}×" for times in ratios]


def _table(results: Results) -> Iterator[str]:
    columns = [column for column in COLUMNS if any(figures(runs, column.figure) for runs in results.values())]
    yield _row(["", *(column.title for column in columns)])
    yield "|---" * (len(columns) + 1) + "|"
    for name in results:
        yield _row([name, *(column.cell(name, results) for column in columns)])


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
