"""What follows which failure."""

import pytest

from gateway.core.errors import GatewayError
from gateway.core.retry import BACKOFF_MAX, Step, counts_against_target, decide


def after(error: GatewayError, tried: int = 1, retries: int = 2, patience: float = 60.0) -> tuple[Step, float]:
    return decide(error, tried=tried, retries=retries, patience=patience, jitter=0.0)


@pytest.mark.parametrize(
    ("code", "step"),
    [
        ("upstream_refused", Step.GIVE_UP),
        ("content_filter", Step.GIVE_UP),
        ("context_length_exceeded", Step.FALLBACK),
        ("upstream_auth", Step.FALLBACK),
        ("upstream_timeout", Step.OTHER_TARGET),
        ("upstream_reset", Step.AGAIN),
        ("upstream_unreachable", Step.AGAIN),
        ("upstream_error", Step.AGAIN),
        ("upstream_rate_limited", Step.AGAIN),
    ],
)
def test_failure_is_followed_by_its_step(code: str, step: Step) -> None:
    assert after(GatewayError(code))[0] is step


def test_retry_after_is_kept_when_it_is_short_and_left_to_others_when_it_is_long() -> None:
    assert after(GatewayError("upstream_rate_limited", retry_after=3)) == (Step.AGAIN, 3)
    assert after(GatewayError("upstream_rate_limited", retry_after=300))[0] is Step.FALLBACK
    assert after(GatewayError("upstream_rate_limited", retry_after=3), patience=1)[0] is Step.FALLBACK


def test_rate_limit_without_a_word_backs_off_exponentially() -> None:
    delays = [after(GatewayError("upstream_rate_limited"), tried, retries=99)[1] for tried in range(1, 12)]
    assert delays[:3] == [0.25, 0.5, 1.0]
    assert max(delays) == BACKOFF_MAX / 2


def test_retries_are_bounded() -> None:
    assert after(GatewayError("upstream_reset"), tried=3)[0] is Step.FALLBACK
    assert after(GatewayError("upstream_reset"), retries=0)[0] is Step.FALLBACK


def test_only_the_targets_own_faults_count_against_it() -> None:
    assert counts_against_target(GatewayError("upstream_reset"))
    assert not counts_against_target(GatewayError("upstream_refused"))
    assert not counts_against_target(GatewayError("context_length_exceeded"))
