"""The load of a loop: windows widen as it fills, and narrow late."""

from gateway.core.load import Load


def windows(*shares: float) -> list[float]:
    load, used, found = Load(), 0.0, []
    load.note(100.0, used)
    for second, share in enumerate(shares, 101):
        used += share
        load.note(float(second), used)
        found.append(load.window.seconds)
    return found


def test_idle_loop_has_no_windows() -> None:
    assert windows(0.0, 0.1, 0.19) == [0.0, 0.0, 0.0]


def test_windows_widen_step_by_step_while_the_loop_stays_busy() -> None:
    assert windows(0.3, 0.18, 0.12, 0.39) == [0.05, 0.1, 0.1, 0.1]


def test_windows_stay_while_they_are_what_makes_the_loop_less_busy() -> None:
    assert windows(0.3, 0.14, 0.1, 0.07) == [0.05, 0.05, 0.05, 0.05]


def test_windows_narrow_step_by_step_when_the_loop_is_idle_again() -> None:
    assert windows(0.3, 0.3, 0.07, 0.07, 0.05, 0.0) == [0.05, 0.1, 0.05, 0.05, 0.0, 0.0]


def test_time_before_the_first_look_counts_for_nothing() -> None:
    load = Load()
    load.note(5000.0, 4000.0)
    assert (load.window.seconds, load.share) == (0.0, 0.0)


def test_looks_in_close_succession_are_one() -> None:
    load = Load()
    load.note(1.0, 0.0)
    load.note(1.1, 0.1)
    assert load.window.seconds == 0.0
    load.note(1.3, 0.1)
    assert load.window.seconds == 0.05
