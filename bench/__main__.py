"""`python -m bench`: runs the scenarios and prints the report, which is kept in `bench/results.md`.

    --quick             one short run of A and D with nginx and the gateway alone
    --runs N            how often everything is measured; the report has the medians
    --scenarios ABC     only these, in this order; L and M are LiteLLM's, and are never run by default

A report of other scenarios than the default ones is not kept, except that of LM, in `bench/results-litellm.md`.

Exit status: 0, 1 when an event was lost or a scenario failed, 2 for wrong arguments.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench import report
from bench.measure import Measurement, machine
from bench.programs import DIRECT, HERE, OUT, Program, ProgramError, paced_upstream, raise_files, stage
from bench.scenarios import BY_DEFAULT, QUICK, SCENARIOS, Scenario, chosen, measure

KEPT = {BY_DEFAULT: HERE / "results.md", "LM": HERE / "results-litellm.md"}
Found = dict[str, dict[str, list[Measurement]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="The gateway beside nginx and Envoy.")
    letters = "".join(scenario.letter for scenario in SCENARIOS)
    parser.add_argument("--quick", action="store_true", help=f"one short run of {QUICK}")
    parser.add_argument("--runs", type=int, help="of everything; the report has the medians (default: 3)")
    parser.add_argument("--scenarios", help=f"some of {letters} (default: {BY_DEFAULT})")
    given = parser.parse_args(arguments)
    asked = given.scenarios or (QUICK if given.quick else BY_DEFAULT)
    if not set(asked) <= set(letters) or (given.runs or 1) < 1:
        parser.error("no such scenario, or no run")
    return bench(
        chosen(asked, quick=given.quick),
        given.runs or (1 if given.quick else 3),
        KEPT.get("" if given.quick else asked),
    )


def bench(scenarios: Sequence[Scenario], runs: int, kept: Path | None) -> int:
    """The exit status of measuring these scenarios so often; the report is printed, and kept in a file when asked."""
    OUT.mkdir(exist_ok=True)
    raise_files()
    gc.freeze()
    gc.disable()  # a collection of the client would show up in the latencies
    found: Found = {}
    try:
        uvloop.run(run_all(scenarios, runs, found))
    except ProgramError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = report.markdown(head(scenarios, runs), found)
    print(text)
    if kept is not None:
        kept.write_text(text, encoding="utf-8")
    return verdict(found)


async def run_all(scenarios: Sequence[Scenario], runs: int, found: Found) -> None:
    """Fills `found`: in every run each scenario in turn, and in every scenario each program in turn."""
    async with paced_upstream() as (port, pid):
        for number in range(1, runs + 1):
            for scenario in scenarios:
                for program in installed(scenario.programs):
                    async with stage(program, port, pid) as ready:
                        measurement = await measure(scenario, program, ready)
                    gc.collect()
                    found.setdefault(title(scenario), {}).setdefault(program.name, []).append(measurement)
                    print(progress(number, scenario, program, measurement), file=sys.stderr)


def installed(programs: Sequence[Program]) -> list[Program]:
    """The programs that are to be had here, and the direct way."""
    return [program for program in programs if program is DIRECT or program.find() is not None]


def title(scenario: Scenario) -> str:
    """How the report calls it."""
    return f"{scenario.letter}. {scenario.title}"


def progress(number: int, scenario: Scenario, program: Program, measurement: Measurement) -> str:
    """A line for whoever waits."""
    figures = {"µs/event": measurement.cpu, "KiB/stream": measurement.kib}
    figures["p50 ms"] = report.percentile(measurement.latencies, 50)
    if measurement.failure:
        return f"run {number} {scenario.letter} {program.name}: FAILED: {measurement.failure}"
    told = " ".join(f"{value:.2f} {name}" for name, value in figures.items() if value is not None)
    return f"run {number} {scenario.letter} {program.name}: {told}; {measurement.lost} lost"


def head(scenarios: Sequence[Scenario], runs: int) -> list[str]:
    """What was measured on what."""
    programs = {p.name: p for scenario in scenarios for p in installed(scenario.programs) if p is not DIRECT}
    versions = dict.fromkeys(program.describe() for program in programs.values())
    features = [f"{name}: {program.features}" for name, program in programs.items()]
    return [f"Runs: {runs}", f"Machine: {machine()}", *features, f"Versions: {'; '.join(versions)}"]


def verdict(found: Found) -> int:
    """The exit status: 1 when an event was lost or a program failed at a scenario."""
    complaints = report.complaints(found)
    for complaint in complaints:
        print(f"bench: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
