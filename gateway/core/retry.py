"""What to do after a failed attempt, decided by the kind of failure. Plain functions; nothing waits here.

`decide` is for failures before the first event reached the reader. Afterwards the answer needs a rescue, and
`may_be_rescued` says whether there can be one.

- A refusal (the request itself is wrong, or was filtered) is final: another provider must not be asked to get around
  it. Two exceptions: a fallback may refuse what the first upstream would accept, so then the next one is asked; and
  where there is nothing at the path that was asked, the configuration is wrong, and not the request.
- What lies with the gateway's account or with the model (a key, money, a context that is too short, a model that is not
  there) is the same at every target of an upstream: the next upstream is asked.
- A target that was silent or unreachable is not asked again. One that failed at once may be.
- An error with a provider's own code is judged by what it means; where that is not known, by its status and by whether
  it is retryable. An upstream whose failure is not retryable is not asked again.
- After a rate limit it is worth waiting only if the wait is short, and only as long as the upstream said.
"""

from enum import Enum
from typing import Final, NamedTuple

from gateway.core.errors import ERROR_KINDS, GatewayError

BACKOFF_BASE: Final = 0.25
BACKOFF_MAX: Final = 8.0
"""Seconds: the shortest and the longest pause between retries."""
MAX_WAIT: Final = 20.0
"""Seconds: a longer `Retry-After` is not waited for. The fallback is asked, or the client is told."""

NOT_SENT: Final = frozenset({"upstream_unreachable", "upstream_tls"})
"""Failures after which the upstream certainly has not received the request."""

# A code may stand in several of these; `decide` asks in this order.
_FINAL: Final = frozenset({"content_filter", "upstream_oversize", "budget"})
_REFUSED: Final = frozenset({"upstream_refused", "bad_request"})
_ELSEWHERE: Final = frozenset(
    {"context_length_exceeded", "model_not_found", "upstream_auth", "upstream_encoding", "upstream_tls"}
)
_NOTHING_THERE: Final = frozenset({404, 405})
"""Statuses of a server that has nothing at the path that it was asked at."""
SILENT: Final = frozenset({"upstream_timeout", "upstream_stalled"})
_SILENT: Final = SILENT | {"upstream_unreachable"}
_BROKEN: Final = frozenset(
    {
        "upstream_cut",
        "upstream_stalled",
        "upstream_protocol",
        "upstream_auth",  # its credit may run out in the middle of an answer
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
    """The next step, and the seconds to wait before it."""

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
        patience: seconds left until an answer must have begun.
        jitter: a random number from 0 to 1.
        first: whether this is the route's own upstream, and no fallback.
    """
    if is_final(error, first=first):
        return Decision(Step.GIVE_UP)
    if not error.retryable or error.means in _ELSEWHERE | _REFUSED or tried > retries:
        return Decision(Step.FALLBACK)
    if error.code in _SILENT:
        return Decision(Step.OTHER_TARGET)
    # A wait that is longer than the client's patience would end in a timeout: better another provider now.
    delay = _delay(error, tried, jitter)
    if delay > min(patience, MAX_WAIT):
        return Decision(Step.FALLBACK)
    return Decision(Step.AGAIN, delay)


def is_final(error: GatewayError, *, first: bool = True) -> bool:
    """Whether no other upstream may be asked after this failure; arguments as for `decide`."""
    return error.means in _FINAL or (first and _is_refused(error))


def _is_own(error: GatewayError) -> bool:
    return error.code not in ERROR_KINDS


def _is_refused(error: GatewayError) -> bool:
    """Whether the request itself is to blame."""
    if error.upstream_status in _NOTHING_THERE:
        return False
    return error.means in _REFUSED or (error.means not in ERROR_KINDS and not error.retryable)


def _delay(error: GatewayError, tried: int, jitter: float) -> float:
    if error.retry_after is not None:
        return error.retry_after + jitter * BACKOFF_BASE
    if tried == 1 and error.status != 429:
        return 0.0  # a reset or a single 500 is usually over at once
    return float(min(BACKOFF_MAX, BACKOFF_BASE * 2**tried) * (0.5 + 0.5 * jitter))


FAULTS: Final = frozenset({500, 502, 503, 504})
"""Statuses with which a server says that it fails itself, whatever it was asked."""


def counts_against_target(error: GatewayError) -> bool:
    """Whether the failure says something about the target's health, and not about the request, our key or our rate."""
    # Our key is refused by every target alike, and a size limit is ours: taking the target out of service helps nobody.
    # A refusal is about the request, whatever its status.
    if error.means in ("upstream_auth", "upstream_oversize", "upstream_encoding", *_REFUSED):
        return False
    return error.status >= 500 and (error.code.startswith("upstream_") or _is_own(error))


def may_be_rescued(error: GatewayError) -> bool:
    """Whether an answer that broke off with this failure may be finished by another target."""
    return error.code in _BROKEN or (_is_own(error) and error.retryable)
