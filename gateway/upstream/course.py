"""The course of one generation through upstreams and targets: which target is asked next, after what has failed.

Invariants:

- Every choice is a plain function of what has failed and what is healthy; nothing here waits.
- A course ends: each upstream of the chain has one turn, with at most `1 + retries` attempts that fail before an event.
- When no target is left, the client gets the last error of the first upstream, because that is the one it asked for. No
  error of a fallback hides it, not even a refusal that ends the course.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gateway.core.errors import GatewayError
from gateway.core.retry import NOT_SENT, Step, decide, is_final
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

    __slots__ = (
        "_again",
        "_alone",
        "_delay",
        "_excluded",
        "_failed",
        "_jitter",
        "_last_error",
        "_latest",
        "_left",
        "_primary",
        "_tried",
    )

    def __init__(self, chain: Sequence[Upstream], jitter: Callable[[], float], *, again: bool = True) -> None:
        self._left = list(chain)
        self._jitter = jitter
        self._again = again
        self._tried = 0
        self._excluded: list[Target] = []
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
                delay, self._delay = self._delay, 0.0
                return Choice(upstream, target, delay)
            if upstream is self._primary and self._last_error is None:
                wait = max(MIN_RETRY_AFTER, upstream.retry_after(now))
                self._last_error = GatewayError("upstream_unavailable", retry_after=wait)
            self._skip()
        assert self._last_error is not None
        raise self._last_error

    def beside(self, choice: Choice, now: float) -> Choice | None:
        """A target to ask while that of an earlier choice is silent: another one of its upstream, else a fallback's.

        None where there is no other; then nothing has changed. Otherwise the silent target is not chosen again, nor is
        its upstream if the second target is a fallback's.
        """
        for skipped, upstream in enumerate(self._left):
            target = upstream.pick(now, [*self._excluded, choice.target])
            if target is None:
                continue
            for _ in range(skipped):
                self._skip()
            self._excluded.append(choice.target)
            return Choice(upstream, target)
        return None

    def failed(self, choice: Choice, error: GatewayError, patience: float) -> None:
        """An attempt failed; the next choice takes it into account.

        Args:
            choice: the target that was asked.
            error: why.
            patience: seconds that are left to begin an answer.

        Raises:
            GatewayError: the error itself, where asking again would be wrong; or the first upstream's, where it failed
                before.
        """
        upstream, self._latest = choice.upstream, choice.target
        first = upstream is self._primary
        if first:
            self._last_error, self._failed = error, True
        if not (self._again or error.code in NOT_SENT):
            raise error
        if self.ends_with(choice, error):
            raise error
        if upstream not in self._left[:1]:
            return  # passed over, because it was silent while a fallback was asked beside it
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
        if step is Step.OTHER_TARGET:
            self._excluded.append(choice.target)
        if step is Step.FALLBACK:
            self._skip()

    def ends_with(self, choice: Choice, error: GatewayError) -> bool:
        """Whether the route's own upstream refused the request itself: no other one may be asked to get around it."""
        return choice.upstream is self._primary and is_final(error)

    def rescue(self, choice: Choice, error: GatewayError) -> None:
        """An attempt broke off after something was delivered. Its target is not asked to finish the answer."""
        self._last_error = error
        self._delay = 0.0
        self._excluded.append(choice.target)

    def drop(self, choice: Choice, error: GatewayError) -> None:
        """An attempt failed while another one goes on beside it. Its target is not chosen again."""
        if choice.upstream is self._primary:
            self._last_error = error
        self._excluded.append(choice.target)

    def _skip(self) -> None:
        self._left.pop(0)
        self._tried, self._delay, self._latest = 0, 0.0, None
