"""What a response says about limits: the `RateLimit` fields of the IETF's draft, and OpenAI's `x-ratelimit-*`.

Invariants:

- A number in a header is rounded so that a client that believes it is not refused: remaining units down, times up.
- Every limit of a plan is spelled by its name and its window alone, so that a new one needs no line here.
"""

import math
from collections.abc import Sequence
from typing import Final

from gateway.core.bucket import SLACK
from gateway.core.limiter import PER_ADDRESS, Refusal
from gateway.core.limits import REQUESTS, Quota

MAX_INTEGER: Final = 999_999_999_999_999
"""The largest integer of a structured field. Source: RFC 9651 3.3.1."""


def rate_limit_headers(quotas: Sequence[Quota], refusal: Refusal | None = None) -> dict[str, str]:
    """`RateLimit` and `RateLimit-Policy` for every quota, and `Retry-After` for a refusal that time cures.

    Source: draft-ietf-httpapi-ratelimit-headers-10 3 and 4; RFC 9110 10.2.3.
    """
    headers: dict[str, str] = {}
    if quotas:
        headers["RateLimit-Policy"] = ", ".join(map(_policy, quotas))
        headers["RateLimit"] = ", ".join(_service_limit(quota, refusal) for quota in quotas)
    if refusal is not None and refusal.retry_after is not None:
        headers["Retry-After"] = str(_seconds(refusal.retry_after, least=1))
    return headers


def _policy(quota: Quota) -> str:
    limit = min(quota.limit, MAX_INTEGER)
    if quota.window is None:
        return f'"{quota.name}";q={limit};qu="concurrent-requests"'
    # No unit is registered for tokens and the like, and to leave it out would claim that they are requests.
    unit = "" if quota.name == REQUESTS else f';qu="{quota.name}"'
    return f'"{quota.name}";q={limit}{unit};w={_seconds(quota.window, least=1)}'


def _service_limit(quota: Quota, refusal: Refusal | None) -> str:
    item = f'"{quota.name}";r={min(quota.remaining, MAX_INTEGER)}'
    # The draft wants `t` and Retry-After to name the same moment.
    refused = refusal is not None and refusal.quota.name == quota.name and refusal.limit != PER_ADDRESS
    reset = refusal.retry_after if refused and refusal is not None else quota.reset
    if reset is None or quota.window is None:
        return item
    return f"{item};t={_seconds(reset, least=0)}"


def _seconds(seconds: float, least: int) -> int:
    return max(least, math.ceil(min(seconds, MAX_INTEGER) - SLACK))


def openai_rate_limit_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """OpenAI's `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for each limit of a plan that has a window."""
    headers: dict[str, str] = {}
    for quota in quotas:
        if quota.window is not None:
            headers[f"x-ratelimit-limit-{quota.name}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{quota.name}"] = str(quota.remaining)
            headers[f"x-ratelimit-reset-{quota.name}"] = _duration(quota.reset)
    return headers


def _duration(seconds: float) -> str:
    """A duration as Go prints it, rounded up: `0s 20ms 1s 6m0s 1h0m0s`."""
    if 0 < seconds < 1:
        return f"{min(999, math.ceil(seconds * 1000 - SLACK))}ms"
    minutes, rest = divmod(_seconds(seconds, least=0), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
