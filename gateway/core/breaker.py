"""A circuit breaker for one target: after failures in a row nobody is sent there, but for one probe at a time.

    closed --failures in a row--> open --after `open_for`--> half-open --probe succeeds--> closed
                                   ^                             |
                                   +-------- probe fails --------+

Invariants:

- While open, nothing passes; while half-open, exactly one call is under way.
- A probe that ends without a verdict (its client left) gives its place to the next one.

`now` is monotonic seconds. This file does not know what a failure is; `retry.py` does.
"""


class Breaker:
    """The state of one target.

    Args:
        failures: failures in a row that open it, at least 1.
        open_for: seconds until a probe is let through.
    """

    __slots__ = ("_failed", "_failures", "_open_for", "_probing", "_until")

    def __init__(self, failures: int, open_for: float) -> None:
        self._failures = failures
        self._open_for = open_for
        self._failed = 0
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether the target is out of service, probes aside."""
        return self._failed >= self._failures

    def allows(self, now: float) -> bool:
        """Whether a call may be sent now."""
        return not self.is_open or (not self._probing and now >= self._until)

    def retry_after(self, now: float) -> float:
        """Seconds until a call may be sent, 0 when it may now."""
        return max(0.0, self._until - now) if self.is_open else 0.0

    def start(self) -> None:
        """A call is being sent; through an open breaker it is the probe."""
        self._probing = self.is_open

    def succeed(self) -> None:
        """A call was answered: the target is in service."""
        self._failed = 0
        self._probing = False

    def fail(self, now: float) -> None:
        """A call failed by the target's fault."""
        self._failed += 1
        self._probing = False
        self._until = now + self._open_for

    def release(self) -> None:
        """A call ended without telling anything about the target."""
        self._probing = False
