"""The course of one generation through upstreams and targets: where to ask next, after what has failed.

Invariants:

- Every choice is a plain function of what has failed and what is healthy; nothing here waits.
- A course ends: each upstream of the chain is asked at most `1 + retries` times, and each upstream once.
- When there is nowhere left to go, the client is told what the first upstream said last: that is the one it asked for.

This file does not know what is asked or how an answer is read.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.core.errors import GatewayError
from gateway.core.retry import Step, decide
from gateway.upstream.pool import Target, Upstream


class Choice(NamedTuple):
    """Whom to ask, and how many seconds to wait before."""

    upstream: Upstream
    target: Target
    delay: float = 0.0


class Course:
    """Decides where one generation's next attempt goes.

    Args:
        chain: the upstream and its fallbacks, in the order in which they are tried.
        jitter: gives random numbers from 0 to 1.
        again: whether a request may be sent twice; False for one that may have changed something when it failed.
    """

    def __init__(self, chain: Sequence[Upstream], jitter: Callable[[], float], *, again: bool = True) -> None:
        self._left = list(chain)
        self._jitter = jitter
        self._again = again
        self._tried = 0
        self._silent: set[Target] = set()
        self._latest: Target | None = None
        self._delay = 0.0
        self._told: GatewayError | None = None
        self._primary = chain[0]

    def next(self, now: float) -> Choice:
        """Whom to ask now.

        Raises:
            GatewayError: nobody is left: what the first upstream said last, or `upstream_unavailable` when its
                breakers let nothing through.
        """
        while self._left:
            upstream = self._left[0]
            target = upstream.pick(now, self._silent, self._latest)
            if target is not None:
                self._latest = target
                return Choice(upstream, target, self._delay)
            if upstream is self._primary and self._told is None:
                self._told = GatewayError("upstream_unavailable", retry_after=upstream.retry_after(now))
            self._skip()
        assert self._told is not None
        raise self._told

    def failed(self, error: GatewayError, patience: float) -> None:
        """The latest attempt failed; the next choice takes it into account.

        Args:
            error: why.
            patience: seconds that are left to begin an answer.

        Raises:
            GatewayError: the error itself, where asking again would be wrong.
        """
        if self._left[0] is self._primary:
            self._told = error
        self._tried += 1
        retries = self._left[0].config.retries if self._again or error.code == "upstream_unreachable" else 0
        step, self._delay = decide(error, tried=self._tried, retries=retries, patience=patience, jitter=self._jitter())
        if step is Step.GIVE_UP:
            raise error
        if step is Step.OTHER_TARGET and self._latest is not None:
            self._silent.add(self._latest)
        if step is Step.FALLBACK:
            self._skip()

    def _skip(self) -> None:
        self._left.pop(0)
        self._tried, self._delay, self._latest = 0, 0.0, None
