"""Shared timers: thousands of streams wait with a handful of the loop's timers.

There are two kinds of waiting, both coarse on purpose:

- `Wheel` and `Deadline`: deadlines that hardly ever fire (heartbeats, idle limits).
- `Tick`: a beat that many streams wait for together, such as the window of a batch. It costs least to serve them all
  at once; a beat is divided only if it would block the loop for too long.

All times are `time.monotonic`, which every event loop here uses for its timers. uvloop's own `time()` is not used, as
it only has milliseconds. A jump of the wall clock changes nothing.
"""

from gateway.clock.beats import MAX_AT_ONCE, Clock, Tick
from gateway.clock.wheel import GRANULARITY, HORIZON, Deadline, Timer, Wheel

__all__ = ["GRANULARITY", "HORIZON", "MAX_AT_ONCE", "Clock", "Deadline", "Tick", "Timer", "Wheel"]
