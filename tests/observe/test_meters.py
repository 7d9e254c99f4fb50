"""Meters read like the client library's own metrics."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway.observe.meters import CounterMeter, HistogramMeter


def test_counter_meter_reads_like_a_counter() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    meter, counter = (
        CounterMeter("x_total", "X.", ["route"], ours),
        Counter("x_total", "X.", ["route"], registry=theirs),
    )
    for child in (meter.labels("/a"), counter.labels("/a")):
        child.inc()
        child.inc(2.5)
    assert b'x_total{route="/a"} 3.5' in generate_latest(ours)
    assert generate_latest(ours) == b"".join(
        line for line in generate_latest(theirs).splitlines(keepends=True) if b"_created" not in line
    )


def test_histogram_meter_reads_like_a_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    meter = HistogramMeter("y", "Y.", ["route"], (1, 2, 4), ours)
    histogram = Histogram("y", "Y.", ["route"], buckets=(1, 2, 4), registry=theirs)
    for child in (meter.labels("/a"), histogram.labels("/a")):
        for value in (0.5, 1, 1.5, 4, 9):
            child.observe(value)
    lines = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert sorted(generate_latest(ours).splitlines()) == sorted(lines)


def test_meter_gives_the_same_child_for_the_same_labels() -> None:
    meter = CounterMeter("z_total", "Z.", ["a", "b"], CollectorRegistry())
    assert meter.labels("1", "2") is meter.labels("1", "2")
