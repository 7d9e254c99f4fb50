"""Shared timers: thousands of streams wait on a handful of loop timers.

Two kinds of waiting, both coarse on purpose:

- `Wheel` and `Deadline`: deadlines that hardly ever fire (heartbeats, idle limits).
- `Tick`: a beat that many streams wait for together, the window of a batch. Streams are cheapest all at once, so a beat
  is parted only where it would hold the loop up.

All times are `time.monotonic`, the clock of every event loop here, though uvloop's own `time()` has only milliseconds.
A jump of the wall clock changes nothing.
"""

from gateway.clock.beats import MAX_AT_ONCE, Clock, Tick
from gateway.clock.wheel import GRANULARITY, HORIZON, Deadline, Timer, Wheel

__all__ = ["GRANULARITY", "HORIZON", "MAX_AT_ONCE", "Clock", "Deadline", "Tick", "Timer", "Wheel"]
