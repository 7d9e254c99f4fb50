"""Paths that some program behind the gateway would take for others (H2); the table is in tests/faults."""

import pytest

from gateway.core.paths import ROUNDS, wrong_with


@pytest.mark.parametrize("path", ["a" * 16000, "a/" * 8000, "." * 16000, "%25" * 5000, "%u0041" * 2500, "\udcff%c0"])
def test_any_path_is_judged(path: str) -> None:
    assert wrong_with(path) == ""


def test_encodings_are_undone_a_bounded_number_of_times() -> None:
    dot = "%2e"
    for _ in range(ROUNDS - 2):
        dot = dot.replace("%", "%25")
    assert "'..'" in wrong_with(f"{dot}{dot}/x")
    assert "too often" in wrong_with(f"{dot}{dot}/x".replace("%", "%25"))
