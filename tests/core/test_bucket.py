"""Transcripts of the gate; those of the limiter show the other buckets at work."""

import pytest

from gateway.core.bucket import Gate
from gateway.core.rate import Rate

T0 = 1_234_567.891


def test_gate_tells_how_long_to_wait_and_takes_only_on_zero() -> None:
    gate = Gate(Rate(2, 1.0))
    assert [gate.take(T0), gate.take(T0)] == [0.0, 0.0]
    assert [gate.take(T0), gate.take(T0)] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert gate.take(T0 + 0.5) == 0.0
    assert gate.take(T0 - 99) == pytest.approx(0.5)
