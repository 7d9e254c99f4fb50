"""The statistics of the report, and what it says of failures."""

import pytest

from bench.measure import Measurement
from bench.report import added, complaints, cpu, markdown, percentile, ratio
from bench.scenarios import chosen


def runs(*cpus: float) -> list[Measurement]:
    return [Measurement(cpu=value, latencies=(1.0, 2.0)) for value in cpus]


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 50), (99, 99), (99.1, 100), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, value: int) -> None:
    assert percentile(range(1, 101), percent) == value


def test_percentile_of_nothing_is_nothing() -> None:
    assert percentile((), 50) is None


def test_ratio_is_the_median_of_the_ratios_of_each_run() -> None:
    assert ratio(runs(10, 40, 30), runs(10, 10, 10), cpu) == 3
    assert ratio(runs(10, 200), runs(5, 100), cpu) == 2


def test_ratio_to_nothing_is_nothing() -> None:
    assert ratio(runs(10), runs(0), cpu) is None
    assert ratio(runs(10), [Measurement(failure="refused")], cpu) is None


def test_added_is_the_median_difference_of_each_run() -> None:
    assert added(runs(10, 12, 20), runs(1, 2, 3), cpu) == 10


def test_report_shows_medians_ratios_and_spread() -> None:
    text = markdown(["Runs: 3"], {"A. streams": {"nginx": runs(8, 8, 10), "gateway": runs(16, 12, 15)}})
    assert "| A. streams | 1.50× | – |" in text
    assert "| gateway | 15.0 (1.50×), 12.0–16.0 | 1.00 | 2.00 | 0 |" in text


def test_report_subtracts_the_direct_way() -> None:
    direct = [Measurement(latencies=(0.1, 0.2))]
    text = markdown([], {"E": {"direct": direct, "gateway": [Measurement(latencies=(0.5, 1.2))]}})
    assert "| gateway | 0.50 (+0.40) | 1.20 (+1.00) | 0 |" in text


def test_report_complains_of_losses_and_failures() -> None:
    found = {"A": {"nginx": runs(8), "gateway": [Measurement(lost=2), Measurement(failure="refused")]}}
    assert complaints(found) == ["A: gateway: 2 events lost, doubled or out of order", "A: gateway: refused"]


def test_quick_bench_asks_nginx_and_the_gateway_alone() -> None:
    assert [[p.name for p in scenario.programs] for scenario in chosen("AD", quick=True)] == [["nginx", "gateway"]] * 2
