"""The course of one generation through upstreams and targets: which target is asked next, after what has failed.

Invariants:

- Every choice is a plain function of what has failed and what is healthy; nothing here waits.
- A course ends: each upstream of the chain has one turn, with at most `1 + retries` attempts that fail.
- When no target is left, the client gets the last error of the first upstream, because that is the one it asked for. No
  error of a fallback hides it, also not a refusal that ends the course.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gateway.core.errors import GatewayError
from gateway.core.retry import NOT_SENT, Step, decide
from gateway.upstream.pool import Target, Upstream

MIN_RETRY_AFTER: Final = 1.0
"""The smallest `retry_after`, in seconds. It is used when a breaker's time is over, but its probe has not ended yet."""


class Choice(NamedTuple):
    """The target to ask. If `delay` is not 0, wait so many seconds and call `Course.next` again: by then another target
    may be the right one."""

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
        self._excluded: list[Target] = []
        self._chosen: Target | None = None
        self._latest: Target | None = None
        self._delay = 0.0
        self._last_error: GatewayError | None = None
        self._failed = False  # whether the first upstream was asked, and failed
        self._primary = chain[0]
        # As nginx does: a server that is the only one is never taken out of service.
        self._alone = sum(len(upstream.targets) for upstream in chain) == 1

    def next(self, now: float) -> Choice:
        """The target to ask now.

        Raises:
            GatewayError: no target is left. It is the first upstream's last error, or `upstream_unavailable` where its
                breakers let no call through.
        """
        while self._left:
            upstream = self._left[0]
            target = upstream.pick(now, self._excluded, self._latest, always=self._alone)
            if target is not None:
                self._chosen, delay, self._delay = target, self._delay, 0.0
                return Choice(upstream, target, delay)
            if upstream is self._primary and self._last_error is None:
                wait = max(MIN_RETRY_AFTER, upstream.retry_after(now))
                self._last_error = GatewayError("upstream_unavailable", retry_after=wait)
            self._skip()
        assert self._last_error is not None
        raise self._last_error

    def failed(self, error: GatewayError, patience: float) -> None:
        """The latest attempt failed; the next choice takes it into account.

        Args:
            error: why.
            patience: seconds that are left to begin an answer.

        Raises:
            GatewayError: the error itself, where asking again would be wrong; or the first upstream's, where it failed
                before.
        """
        upstream, self._latest = self._left[0], self._chosen
        first = upstream is self._primary
        if first:
            self._last_error, self._failed = error, True
        if not (self._again or error.code in NOT_SENT):
            raise error
        self._tried += 1
        step, self._delay = decide(
            error,
            tried=self._tried,
            retries=upstream.config.retries,
            patience=patience,
            jitter=self._jitter(),
            first=first,
        )
        if step is Step.GIVE_UP:
            if self._failed and not first and self._last_error is not None:
                raise self._last_error from error
            raise error
        if step is Step.OTHER_TARGET and self._latest is not None:
            self._excluded.append(self._latest)
        if step is Step.FALLBACK:
            self._skip()

    def rescue(self, error: GatewayError) -> None:
        """The latest attempt broke off after something was delivered. Its target is not asked to finish the answer."""
        self._last_error = error
        self._delay = 0.0
        if self._chosen is not None:
            self._excluded.append(self._chosen)

    def _skip(self) -> None:
        self._left.pop(0)
        self._tried, self._delay, self._chosen, self._latest = 0, 0.0, None, None
