"""What a response says about limits: the `RateLimit` fields of the IETF's draft, and OpenAI's `x-ratelimit-*`.

Invariants:

- Numbers are rounded so that a client that relies on them is not refused: remaining units down, times up.
- Only the name and the window of a limit are used here, so that a new limit needs no line in this file.
"""

import functools
import math
from collections.abc import Sequence
from typing import Final

from gateway.core.bucket import SLACK
from gateway.core.limiter import PER_ADDRESS, Refusal
from gateway.core.limits import REQUESTS, Quota

MAX_INTEGER: Final = 999_999_999_999_999
"""The largest integer of a structured field. Source: RFC 9651 3.3.1."""


def rate_limit_headers(quotas: Sequence[Quota], refusal: Refusal | None = None) -> dict[str, str]:
    """`RateLimit` and `RateLimit-Policy` for every quota, and `Retry-After` for a refusal that ends with time.

    Source: draft-ietf-httpapi-ratelimit-headers-10 3 and 4; RFC 9110 10.2.3.
    """
    headers: dict[str, str] = {}
    if quotas:
        headers["RateLimit-Policy"] = ", ".join([_policy(*quota[:3]) for quota in quotas])
        headers["RateLimit"] = ", ".join(_service_limit(quota, refusal) for quota in quotas)
    if refusal is not None and refusal.retry_after is not None:
        headers["Retry-After"] = str(_seconds(refusal.retry_after, least=1))
    return headers


@functools.lru_cache(maxsize=256)  # it says nothing about the principal, so that a plan has few of them
def _policy(name: str, limit: int, window: float | None) -> str:
    limit = min(limit, MAX_INTEGER)
    if window is None:
        return f'"{name}";q={limit};qu="concurrent-requests"'
    # The draft has no unit for tokens and the like, but without a unit they would be read as requests.
    unit = "" if name == REQUESTS else f';qu="{name}"'
    return f'"{name}";q={limit}{unit};w={_seconds(window, least=1)}'


def _service_limit(quota: Quota, refusal: Refusal | None) -> str:
    item = f'"{quota.name}";r={min(quota.remaining, MAX_INTEGER)}'
    # The draft asks that `t` and Retry-After name the same moment.
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
