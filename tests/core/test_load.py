"""The load of a loop: quick to be busy, slow to be idle again."""

from gateway.core.load import Load


def after(*shares: float) -> list[bool]:
    load, used = Load(), 0.0
    load.note(100.0, used)
    busy = []
    for second, share in enumerate(shares, 101):
        used += share
        load.note(float(second), used)
        busy.append(load.busy)
    return busy


def test_loop_is_busy_above_a_fifth_of_a_core() -> None:
    assert after(0.1, 0.19, 0.21, 0.9) == [False, False, True, True]


def test_busy_loop_stays_so_while_windows_make_it_cheaper() -> None:
    assert after(0.3, 0.15, 0.09, 0.07, 0.15) == [True, True, True, False, False]


def test_time_before_the_first_look_counts_for_nothing() -> None:
    load = Load()
    load.note(5000.0, 4000.0)
    assert (load.busy, load.share) == (False, 0.0)


def test_looks_in_close_succession_are_one() -> None:
    load = Load()
    load.note(1.0, 0.0)
    load.note(1.1, 0.1)
    assert not load.busy
    load.note(1.3, 0.1)
    assert load.busy
