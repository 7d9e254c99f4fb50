"""What the monitor reads off the metrics, by the second."""

from prometheus_client import CollectorRegistry, Histogram

from gateway.admin.readings import Tally, _tree, buckets, tally
from gateway.observe.metrics import Metrics


def test_tally_adds_up_what_it_is_not_asked_to_tell_apart() -> None:
    metrics = Metrics()
    for route in ("/a", "/b"):
        metrics.route(route).stream_ended("main", "completed", 1.0)
    metrics.route("/a").stream_ended("main", "stopped", 1.0)
    assert tally(metrics.streams, "_total", "outcome") == {("completed",): 2.0, ("stopped",): 1.0}
    assert tally(metrics.streams, "_total") == {(): 3.0}


def test_buckets_are_told_by_themselves_and_by_their_bounds() -> None:
    histogram = Histogram("h", "h", ["u"], registry=CollectorRegistry(), buckets=(0.1, 1.0))
    for upstream, value in (("a", 0.05), ("a", 0.5), ("a", 0.6), ("b", 7.0)):
        histogram.labels(upstream).observe(value)
    assert buckets(histogram, "u") == {("a", "0 0.1"): 1.0, ("a", "0.1 1.0"): 2.0, ("b", "1.0 +Inf"): 1.0}


def test_difference_leaves_out_what_did_not_change() -> None:
    before: Tally = {("main", "cut"): 2.0, ("main", "reset"): 1.0}
    after: Tally = {("main", "cut"): 5.0, ("main", "reset"): 1.0, ("spare", "cut"): 1.0}
    assert _tree(after, before) == {"main": {"cut": 3.0}, "spare": {"cut": 1.0}}
