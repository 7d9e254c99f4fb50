"""The lag of an event loop, from two scrapes."""

from bench.lag import bound, parsed

TEXT = b"""\
# TYPE gateway_event_loop_lag_seconds histogram
gateway_event_loop_lag_seconds_bucket{le="0.001"} 7.0
gateway_event_loop_lag_seconds_bucket{le="+Inf"} 8.0
gateway_event_loop_lag_seconds_count 8.0
"""


def test_scrape_has_the_buckets() -> None:
    assert parsed(TEXT) == {0.001: 7.0, float("inf"): 8.0}


def test_bound_holds_nearly_all_looks_since_the_first_scrape() -> None:
    before = {0.001: 10.0, 0.02: 20.0, 1.0: 20.0}
    assert bound(before, {0.001: 1009.0, 0.02: 1020.0, 1.0: 1020.0}) == 0.001
    assert bound(before, {0.001: 1007.0, 0.02: 1020.0, 1.0: 1020.0}) == 0.02


def test_no_look_is_no_lag() -> None:
    assert bound({0.001: 1.0}, {0.001: 1.0}) is None
