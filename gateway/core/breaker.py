"""A circuit breaker for one target: after some failures in a row the target gets no calls, except one probe at a time.

    closed --failures in a row--> open --after `open_for`--> half-open --probe succeeds--> closed
                                   ^                             |
                                   +-------- probe fails --------+

Invariants:

- While it is open, no new call passes. While it is half-open, one passes at a time: the probe.
- While it is not closed, only the probe changes it. A call that was sent earlier says nothing new about the target, and
  may end much later.
- A probe that ends without a verdict (its client left) makes room for the next one.
- A probe succeeds when its answer begins. Otherwise only a whole answer resets the failures in a row: else a target
  that cuts every answer would never be taken out of service.

`now` is monotonic seconds. This file does not know which errors are failures; `retry.py` does.
"""


class Breaker:
    """The state of one target.

    Every call that `allows` lets through must be reported by `start`, and afterwards by `release`, whatever happened.

    Args:
        failures: failures in a row that open it, at least 1.
        open_for: seconds until a probe is let through.
    """

    __slots__ = ("_calls", "_failed", "_failures", "_open_for", "_probe", "_until")

    def __init__(self, failures: int, open_for: float) -> None:
        self._failures = failures
        self._open_for = open_for
        self._failed = 0  # failures in a row
        self._until = 0.0  # when a probe may be sent
        self._calls = 0
        self._probe = 0  # the number of the call that is the probe, 0 for none

    @property
    def is_open(self) -> bool:
        """Whether the target is out of service (open or half-open)."""
        return self._failed >= self._failures

    def allows(self, now: float) -> bool:
        """Whether a call may be sent now."""
        return not self.is_open or (not self._probe and now >= self._until)

    def retry_after(self, now: float) -> float:
        """Seconds until a call may be sent, 0 when it may now."""
        return max(0.0, self._until - now) if self.is_open else 0.0

    def start(self) -> int:
        """The number of a call that is being sent now; the other methods ask for it."""
        self._calls += 1
        if self.is_open:
            self._probe = self._calls
        return self._calls

    def begin(self, call: int) -> None:
        """The call's answer has begun. That closes the breaker if the call is its probe."""
        if self._is_probe(call):
            self.succeed(call)

    def succeed(self, call: int = 0) -> None:
        """The call was answered completely."""
        if self.is_open and not self._is_probe(call):
            return
        self._failed = 0
        self._probe = 0

    def fail(self, now: float, call: int = 0) -> None:
        """The call failed, and the target is to blame."""
        # A call that was sent before the breaker opened must not prolong the time until the next probe.
        if self.is_open and not self._is_probe(call):
            return
        self._failed += 1
        self._probe = 0
        self._until = now + self._open_for

    def release(self, call: int) -> None:
        """The call ended. If it was the probe and nobody judged it, another probe may be sent."""
        if self._is_probe(call):
            self._probe = 0

    def _is_probe(self, call: int) -> bool:
        return bool(call) and call == self._probe
