"""The report: medians of the runs, each beside its ratio to nginx of the same scenario, as Markdown.

- A figure without an nginx beside it is given alone.
- The spread is shown where it matters most, at the CPU of an event: least and most of all runs.

This file does no I/O; what it is told it prints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.measure import Measurement

Results = Mapping[str, Sequence[Measurement]]
"""A program's name to its runs of one scenario, in the order of the table."""
Figure = Callable[[Measurement], float | None]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest of the sorted values that `percent` of them do not exceed (nearest rank); None of no values."""
    if not values:
        return None
    return values[max(0, -(-len(values) * percent // 100).__int__() - 1)]


@dataclass(frozen=True, slots=True)
class Table:
    """What a scenario found."""

    title: str
    results: Results
