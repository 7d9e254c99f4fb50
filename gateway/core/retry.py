"""What a failed attempt means for the next one, decided by the kind of failure. A plain function; it waits for nothing.

Only failures before the first event reached the reader are decided here; afterwards it is a rescue.

- A refusal (the request itself is at fault, or filtered) is final: asking elsewhere would route around it. Only what a
  fallback does not take, though the upstream asked for might have, is left to the next one.
- A target that was silent or could not be reached is not asked again; one that failed at once may be.
- An error under a provider's own code is judged by its status and by whether it may be repeated.
- Waiting for a rate limit is worth while only when the wait is short and the upstream's own word is kept.
"""

from enum import Enum
from typing import Final, NamedTuple

from gateway.core.errors import KINDS, GatewayError

BACKOFF_BASE: Final = 0.25
BACKOFF_MAX: Final = 8.0
"""Seconds between which retries back off."""
MAX_WAIT: Final = 20.0
"""Seconds that a `Retry-After` is waited for at most; for longer the fallback is asked, or the client told."""

NOT_SENT: Final = frozenset({"upstream_unreachable", "upstream_tls"})
"""Failures after which the upstream cannot have seen the request."""

_FINAL: Final = frozenset({"content_filter", "upstream_oversize", "budget"})
_REFUSED: Final = frozenset({"upstream_refused", "bad_request"})
_ELSEWHERE: Final = frozenset({"context_length_exceeded", "upstream_auth", "upstream_encoding", "upstream_tls"})
_SILENT: Final = frozenset({"upstream_timeout", "upstream_stalled", "upstream_unreachable"})
_BROKEN: Final = frozenset(
    {
        "upstream_cut",
        "upstream_stalled",
        "upstream_protocol",
        "upstream_error",
        "upstream_unavailable",
        "upstream_rate_limited",
        "upstream_timeout",
    }
)


class Step(Enum):
    """What to do after a failed attempt."""

    AGAIN = "the same upstream, any of its targets"
    OTHER_TARGET = "the same upstream, but not this target"
    FALLBACK = "the next upstream"
    GIVE_UP = "tell the client"


class Decision(NamedTuple):
    """The next step, and how many seconds to wait before it."""

    step: Step
    delay: float = 0.0


def decide(
    error: GatewayError, *, tried: int, retries: int, patience: float, jitter: float, first: bool = True
) -> Decision:
    """What follows a failure before the first event.

    Args:
        error: why the attempt failed.
        tried: attempts at this upstream so far, at least 1.
        retries: attempts beyond the first that the upstream is allowed.
        patience: seconds that are left to begin an answer.
        jitter: a random number from 0 to 1.
        first: whether the upstream is the one that was asked for, and no fallback.
    """
    if _is_final(error) or (first and error.code in _REFUSED):
        return Decision(Step.GIVE_UP)
    if error.code in _ELSEWHERE | _REFUSED or tried > retries:
        return Decision(Step.FALLBACK)
    if error.code in _SILENT:
        return Decision(Step.OTHER_TARGET)
    delay = _delay(error, tried, jitter)
    if delay > min(patience, MAX_WAIT):
        return Decision(Step.FALLBACK)
    return Decision(Step.AGAIN, delay)


def _is_own(error: GatewayError) -> bool:
    return error.code not in KINDS


def _is_final(error: GatewayError) -> bool:
    return error.code in _FINAL or (_is_own(error) and not error.retryable)


def _delay(error: GatewayError, tried: int, jitter: float) -> float:
    if error.retry_after is not None:
        return error.retry_after + jitter * BACKOFF_BASE
    if tried == 1 and error.status != 429:
        return 0.0  # a reset or a single 500 is most often gone at once
    return float(min(BACKOFF_MAX, BACKOFF_BASE * 2**tried) * (0.5 + 0.5 * jitter))


def counts_against_target(error: GatewayError) -> bool:
    """Whether the failure says something about the target's health, not about the request, our key or our rate."""
    if error.code in ("upstream_auth", "upstream_oversize"):
        return False
    return error.status >= 500 and (error.code.startswith("upstream_") or _is_own(error))


def may_be_rescued(error: GatewayError) -> bool:
    """Whether an answer that broke off with this failure may be finished by another target."""
    return error.code in _BROKEN or (_is_own(error) and error.retryable)
