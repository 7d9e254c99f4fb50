"""What follows which failure."""

import pytest

from gateway.core.errors import ERROR_KINDS, GatewayError
from gateway.core.retry import BACKOFF_MAX, Step, counts_against_target, decide, may_be_rescued

OWN = GatewayError("engine_overloaded", status=503, retryable=True)
OWN_REFUSAL = GatewayError("content_policy_violation", status=400, retryable=False)
OWN_RATE = GatewayError("too_fast", status=429, retryable=True)


def after(
    error: GatewayError, tried: int = 1, retries: int = 2, patience: float = 60.0, *, first: bool = True
) -> tuple[Step, float]:
    return decide(error, tried=tried, retries=retries, patience=patience, jitter=0.0, first=first)


@pytest.mark.parametrize(
    ("code", "step"),
    [
        ("upstream_refused", Step.GIVE_UP),
        ("bad_request", Step.GIVE_UP),
        ("content_filter", Step.GIVE_UP),
        ("context_length_exceeded", Step.FALLBACK),
        ("upstream_auth", Step.FALLBACK),
        ("model_not_found", Step.FALLBACK),
        ("upstream_timeout", Step.OTHER_TARGET),
        ("upstream_stalled", Step.OTHER_TARGET),
        ("upstream_unreachable", Step.OTHER_TARGET),
        ("upstream_reset", Step.AGAIN),
        ("upstream_error", Step.AGAIN),
        ("upstream_rate_limited", Step.AGAIN),
    ],
)
def test_failure_is_followed_by_its_step(code: str, step: Step) -> None:
    assert after(GatewayError(code))[0] is step


@pytest.mark.parametrize(
    ("code", "step"),
    [("upstream_refused", Step.FALLBACK), ("bad_request", Step.FALLBACK), ("content_filter", Step.GIVE_UP)],
)
def test_refusal_of_a_fallback_is_its_own_but_for_a_filter(code: str, step: Step) -> None:
    assert after(GatewayError(code), first=False)[0] is step


@pytest.mark.parametrize("status", [404, 405])
def test_server_with_nothing_at_its_path_is_not_the_requests_fault(status: int) -> None:
    assert after(GatewayError("upstream_refused", upstream_status=status))[0] is Step.FALLBACK


def test_upstream_that_cannot_do_better_is_not_asked_again() -> None:
    spent = GatewayError("upstream_rate_limited", retryable=False)
    assert after(spent)[0] is after(spent, first=False)[0] is Step.FALLBACK


@pytest.mark.parametrize(
    ("means", "step", "of_a_fallback"),
    [
        ("content_filter", Step.GIVE_UP, Step.GIVE_UP),
        ("upstream_refused", Step.GIVE_UP, Step.FALLBACK),
        ("upstream_unavailable", Step.AGAIN, Step.AGAIN),
    ],
)
def test_providers_own_code_is_judged_by_what_it_means(means: str, step: Step, of_a_fallback: Step) -> None:
    error = GatewayError("own_word", means=means, retryable=step is Step.AGAIN)
    assert (after(error)[0], after(error, first=False)[0]) == (step, of_a_fallback)


def test_providers_own_code_is_judged_by_whether_it_may_be_repeated() -> None:
    assert after(OWN) == (Step.AGAIN, 0)
    assert after(OWN_REFUSAL)[0] is Step.GIVE_UP
    assert after(OWN_RATE) == (Step.AGAIN, 0.25)


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
    for code in ("upstream_reset", "upstream_unreachable", "upstream_timeout", "upstream_cut", "upstream_error"):
        assert counts_against_target(GatewayError(code))
    for code in ("upstream_refused", "context_length_exceeded", "upstream_rate_limited", "upstream_auth", "budget"):
        assert not counts_against_target(GatewayError(code))
    assert counts_against_target(OWN)
    assert not counts_against_target(OWN_REFUSAL)
    assert not counts_against_target(OWN_RATE)


def test_broken_answer_is_rescued_unless_the_request_or_a_limit_is_to_blame() -> None:
    rescued = {code for code in ERROR_KINDS if may_be_rescued(GatewayError(code))}
    assert {"upstream_cut", "upstream_stalled", "upstream_error", "upstream_rate_limited"} <= rescued
    assert not rescued & {
        "content_filter",
        "upstream_refused",
        "upstream_oversize",
        "budget",
        "stopped",
        "stream_limit",
    }
    assert may_be_rescued(OWN)
    assert not may_be_rescued(OWN_REFUSAL)
