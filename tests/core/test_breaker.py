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


def test_breaker_opens_on_a_target_that_begins_every_answer_and_ends_none() -> None:
    breaker = Breaker(failures=2, open_for=30)
    for _ in range(2):
        call = breaker.start()
        breaker.begin(call)
        breaker.fail(0, call)
    assert breaker.is_open


def test_breaker_lets_one_probe_through_at_a_time() -> None:
    breaker = opened()
    assert breaker.allows(30)
    probe = breaker.start()
    assert not breaker.allows(31)
    breaker.succeed(probe)
    assert breaker.allows(31)
    assert not breaker.is_open


def test_breaker_closes_when_its_probe_begins_to_answer() -> None:
    breaker = opened()
    breaker.begin(breaker.start())
    assert not breaker.is_open
    assert breaker.allows(30)


def test_breaker_stays_open_when_its_probe_fails() -> None:
    breaker = opened()
    breaker.fail(30, breaker.start())
    assert not breaker.allows(59)
    assert breaker.allows(60)


def test_breaker_gives_the_place_of_a_probe_that_was_abandoned_to_the_next() -> None:
    breaker = opened()
    breaker.release(breaker.start())
    assert breaker.allows(30)


def test_open_breaker_does_not_care_for_calls_that_were_sent_before() -> None:
    breaker = Breaker(failures=1, open_for=30)
    early, late, good = (breaker.start() for _ in range(3))
    breaker.fail(0, early)
    breaker.fail(29, late)
    breaker.succeed(good)
    assert not breaker.allows(29)
    assert breaker.allows(30)


def test_call_that_was_sent_before_takes_no_probes_place() -> None:
    breaker = Breaker(failures=1, open_for=30)
    early, late = breaker.start(), breaker.start()
    breaker.fail(0, early)
    breaker.start()
    breaker.fail(31, late)
    breaker.release(late)
    assert not breaker.allows(99)
