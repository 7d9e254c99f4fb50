"""Transcripts of the headers about limits: quotas and refusals in, header values out."""

import pytest

from gateway.core.limiter import Limiter, Refusal
from gateway.core.limits import Plan, Quota, make_limits
from gateway.core.rate import Rate
from gateway.web.rate_limit_headers import openai_rate_limit_headers, rate_limit_headers

PLAN = Plan("default", make_limits(Rate(60, 60.0), 2, Rate(1000, 60.0)))
T0 = 1_234_567.891


def test_headers_state_every_limit_of_the_plan() -> None:
    limiter = Limiter()
    limiter.admit(PLAN, "ann", {"requests": 1, "streams": 1, "tokens": 300}, T0)
    assert rate_limit_headers(limiter.snapshot(PLAN, "ann", T0)) == {
        "RateLimit-Policy": '"requests";q=60;w=60, "streams";q=2;qu="concurrent-requests", '
        '"tokens";q=1000;qu="tokens";w=60',
        "RateLimit": '"requests";r=59;t=1, "streams";r=1, "tokens";r=700;t=18',
    }


def test_headers_name_one_moment_for_the_refused_limit_and_round_it_up() -> None:
    quotas = [Quota("requests", 60, 60.0, 0, 60.0)]
    headers = rate_limit_headers(quotas, Refusal("requests", 0.2, quotas[0]))
    assert headers["RateLimit"] == '"requests";r=0;t=1'
    assert headers["Retry-After"] == "1"
    assert rate_limit_headers([], Refusal("requests", 59.00000001, quotas[0])) == {"Retry-After": "59"}
    assert rate_limit_headers([], Refusal("requests", 59.1, quotas[0])) == {"Retry-After": "60"}


def test_headers_promise_nothing_where_waiting_does_not_help() -> None:
    never = Refusal("tokens", None, Quota("tokens", 10, 0.5, 10, 0.0))
    assert rate_limit_headers([never.quota], never) == {
        "RateLimit-Policy": '"tokens";q=10;qu="tokens";w=1',
        "RateLimit": '"tokens";r=10',
    }


def test_openai_headers_speak_go_durations_and_leave_out_streams() -> None:
    quotas = [Quota("requests", 60, 60.0, 59, 1.0), Quota("streams", 5, None, 5, 0.0)]
    assert openai_rate_limit_headers(quotas) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0201, "21ms"),
        (0.9999, "999ms"),
        (1.2, "2s"),
        (60.0, "1m0s"),
        (359.5, "6m0s"),
        (3661.0, "1h1m1s"),
    ],
)
def test_openai_headers_round_a_reset_up(seconds: float, text: str) -> None:
    headers = openai_rate_limit_headers([Quota("tokens", 1, 60.0, 0, seconds)])
    assert headers["x-ratelimit-reset-tokens"] == text
