"""A circuit breaker for one target: after failures in a row nobody is sent there, but for one probe at a time.

    closed --failures in a row--> open --after `open_for`--> half-open --probe succeeds--> closed
                                   ^                             |
                                   +-------- probe fails --------+

Invariants:

- While open, nothing passes; while half-open, exactly one call is under way.
- While it is not closed, only the probe decides: a call that was sent before it opened tells nothing new, and may end
  much later.
- A probe that ends without a verdict (its client left) gives its place to the next one.
- A probe succeeds when it begins to answer; for the failures in a row only an answer that was whole is a success, so
  that a target which cuts every answer is found out.

`now` is monotonic seconds. This file does not know what a failure is; `retry.py` does.
"""


class Breaker:
    """The state of one target.

    Args:
        failures: failures in a row that open it, at least 1.
        open_for: seconds until a probe is let through.
    """

    __slots__ = ("_calls", "_failed", "_failures", "_open_for", "_probe", "_until")

    def __init__(self, failures: int, open_for: float) -> None:
        self._failures = failures
        self._open_for = open_for
        self._failed = 0
        self._until = 0.0
        self._calls = 0
        self._probe = 0

    @property
    def is_open(self) -> bool:
        """Whether the target is out of service, probes aside."""
        return self._failed >= self._failures

    def allows(self, now: float) -> bool:
        """Whether a call may be sent now."""
        return not self.is_open or (not self._probe and now >= self._until)

    def retry_after(self, now: float) -> float:
        """Seconds until a call may be sent, 0 when it may now."""
        return max(0.0, self._until - now) if self.is_open else 0.0

    def start(self) -> int:
        """A call that `allows` let through is being sent; its number, by which the others here know it."""
        self._calls += 1
        if self.is_open:
            self._probe = self._calls
        return self._calls

    def begin(self, call: int) -> None:
        """The call has the beginning of an answer; a probe's work is done with it."""
        if self._is_probe(call):
            self.succeed(call)

    def succeed(self, call: int = 0) -> None:
        """The call was answered in whole."""
        if self.is_open and not self._is_probe(call):
            return
        self._failed = 0
        self._probe = 0

    def fail(self, now: float, call: int = 0) -> None:
        """The call failed by the target's fault."""
        if self.is_open and not self._is_probe(call):
            return
        self._failed += 1
        self._probe = 0
        self._until = now + self._open_for

    def release(self, call: int) -> None:
        """The call ended; without a verdict its place as a probe is free again."""
        if self._is_probe(call):
            self._probe = 0

    def _is_probe(self, call: int) -> bool:
        return bool(call) and call == self._probe
