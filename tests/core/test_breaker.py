"""The breaker's states, as transcripts."""

from gateway.core.breaker import Breaker


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, open_for=30)
    for _ in range(3):
        breaker.fail(now)
    return breaker


def test_breaker_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(failures=3, open_for=30)
    breaker.fail(0)
    breaker.fail(0)
    assert breaker.allows(0)
    breaker.fail(0)
    assert not breaker.allows(29.9)
    assert breaker.retry_after(10) == 20


def test_breaker_forgets_failures_at_a_success() -> None:
    breaker = Breaker(failures=2, open_for=30)
    breaker.fail(0)
    breaker.succeed()
    breaker.fail(0)
    assert breaker.allows(0)


def test_breaker_lets_one_probe_through_at_a_time() -> None:
    breaker = opened()
    assert breaker.allows(30)
    breaker.start()
    assert not breaker.allows(31)
    breaker.succeed()
    assert breaker.allows(31)
    assert not breaker.is_open


def test_breaker_stays_open_when_its_probe_fails() -> None:
    breaker = opened()
    breaker.start()
    breaker.fail(30)
    assert not breaker.allows(59)
    assert breaker.allows(60)


def test_breaker_gives_the_place_of_a_probe_that_was_abandoned_to_the_next() -> None:
    breaker = opened()
    breaker.start()
    breaker.release()
    assert breaker.allows(30)
