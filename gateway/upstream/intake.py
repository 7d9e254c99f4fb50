"""The bytes of one upstream answer, gathered in windows.

Coalescing happens here, at the read: after something was relayed, the upstream's transport is paused and the kernel
collects for one window. One receive, one parse, one append and one write then serve every event of the window. So the
first event of a burst is never delayed, and a stream slower than the window never waits at all. Short windows open only
after two reads that came close together: for a slow stream, opening one in vain is a fifth of the cost.

The states, and what leads from one to the next:

        relay()              something was relayed, and the last read was close
    AWAY ──────▶ READING ────────────────────────────────────────────▶ WINDOW ──┐ the beat's poll found
     ▲             │  ▲ ▲     the beat's poll found nothing, or enough    │  ▲   │ something: the window
     │             │  │ └─────────────────────────────────────────────────┘  └───┘ begins anew
     │  more than  │  │ next turn of
     │  FLOOD came ▼  │ the loop
     │           YIELDING
     │
     └── from any state: leave(), or the relay is over

| state    | before the transport stands | the transport is | who goes on                                        |
|----------|-----------------------------|------------------|----------------------------------------------------|
| AWAY     | aiohttp's protocol          | read             | the caller, by `relay`                             |
| READING  | the intake                  | read             | the event loop, with the next bytes                |
| WINDOW   | the intake                  | paused           | the shared tick, which calls `_beat`               |
| YIELDING | the intake                  | paused           | the loop's next turn: the other streams come first |

A relay is over when `take` has enough or `stop` is called (False), the body ended well (True), the body broke off or is
malformed (`aiohttp.ClientError`), or `take` raised (what it raised). The loss of the connection ends the body in any
state. A tick may call `_beat` after its window has ended: it finds another state and does nothing.

Three techniques. The figures are CPU of the whole gateway per event, measured with 300 streams of 50 events a second:

- *No task is woken*: `Intake` stands before aiohttp's protocol while it relays, and passes on what a read brought in
  the same call. The task that relays sleeps until there is nothing more to relay.
- *Polled drain*, as network drivers do it: while a stream is fast its transport stays paused, and the shared tick reads
  its socket once per window. No epoll call. When a poll finds nothing, the stream goes back to events, because an idle
  stream must cost nothing. -20 %, together with the writes that `Clock.soon` gathers
- *`Body`* in place of aiohttp's own reader, which parses an empty read after every HTTP chunk it hands out. -25 %

Over TLS there is no socket to poll; there the transport is paused and resumed.

A window longer than `BEAT` ends early when `enough` bytes wait in the kernel; this is checked once a beat. Where the
interval is left to the program, the loop's load decides how long windows are, and whether there are any.

The intake keeps no time limits; the attempt and the generation do.
"""

import asyncio
import enum
import fcntl
import math
import os
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from gateway.clock import Clock
from gateway.upstream.aiohttp_internals import Body, forget_queue, parser_of
from gateway.upstream.http import fail_body

BEAT: Final = 0.05
"""Seconds between two looks at a stream that is in a window."""
MAX_POLL: Final = 64 * 1024
"""Bytes one poll reads. A stream that has more than a window's worth goes back to events, which read at full speed."""
FLOOD: Final = 32 * 1024
"""After a read of more bytes than this, the other streams have their turn."""


class Taken(enum.Enum):
    """What became of some bytes."""

    INCOMPLETE = "no event was whole"
    RELAYED = "at least one event went out"
    ENOUGH = "the caller has something else to do now than to read on"


# A name of its own for each: looking one up in the enumeration takes five times as long, several times a read.
INCOMPLETE: Final = Taken.INCOMPLETE
RELAYED: Final = Taken.RELAYED
ENOUGH: Final = Taken.ENOUGH

Take = Callable[[bytes], Taken]


class IntakeState(enum.Enum):
    """Who reads the connection, and whether it is read; see the drawing above."""

    AWAY = "aiohttp's protocol has the connection"
    READING = "every read is relayed in the call that brings it"
    WINDOW = "the kernel collects until the next beat"
    YIELDING = "paused for one turn of the loop"


AWAY: Final = IntakeState.AWAY
READING: Final = IntakeState.READING
WINDOW: Final = IntakeState.WINDOW
YIELDING: Final = IntakeState.YIELDING


class Intake(asyncio.Protocol):
    """Relays one response body; while it does, it stands before aiohttp's protocol on the connection.

    Args:
        response: an answer whose body is unread.
        clock: the shared timers.
        interval: seconds a window lasts, 0 to relay every read at once, None to do what the load asks for.
        enough: bytes that end a window; a read of so many opens none.

    Attributes:
        state: as drawn above.
    """

    __slots__ = (
        "_beat_comes",
        "_body",
        "_clock",
        "_descriptor",
        "_due",
        "_enough",
        "_interval",
        "_latest",
        "_load",
        "_loop",
        "_now",
        "_over",
        "_parser",
        "_protocol",
        "_response",
        "_take",
        "_transport",
        "state",
    )

    def __init__(self, response: aiohttp.ClientResponse, clock: Clock, interval: float | None, enough: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._response = response
        self._body = Body.adopt(response.content)
        self._clock = clock
        self._interval = interval
        self._now, self._load = clock.now, clock.load
        self._latest = self._due = 0.0
        self._enough = enough
        self._beat_comes = False
        self.state = AWAY

    def relay(self, take: Take) -> "asyncio.Future[bool]":
        """Hands what comes to `take` until that has enough (False), or the body ended well (True).

        The future fails with `aiohttp.ClientError` where the body broke off or is malformed, or with what `take`
        raised. A caller that stops waiting for it must call `leave`, or `relay` again.
        """
        self._take = take
        self._over: asyncio.Future[bool] = self._loop.create_future()
        self.leave()
        connection = self._response.connection
        if connection is None or connection.protocol is None or connection.transport is None:
            # The body has ended, or its connection is lost and the body learns of that in this turn of the loop.
            self._loop.call_soon(self._relay_read)
        else:
            self._protocol = connection.protocol
            self._transport: asyncio.Transport = connection.transport
            forget_queue(self._protocol)
            self._parser: Any = parser_of(self._protocol)
            self._descriptor = _descriptor(self._transport)
            self._transport.set_protocol(self)
            self.state = READING
        self._relay_read()
        return self._over

    def leave(self) -> None:
        """Nothing more is relayed, and the connection is aiohttp's again. Doing it twice is harmless."""
        state, self.state = self.state, AWAY
        if state is AWAY:
            return
        self._transport.set_protocol(self._protocol)
        if state is not READING and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """As `leave`, for good: `take` is forgotten, as what breaks a connection may keep the intake alive for long."""
        self.leave()
        self._over.cancel()
        del self._take

    def stop(self) -> None:
        """Ends the relay, if there is one, as if `take` had enough."""
        if self.state is not AWAY and not self._over.done():
            self.leave()
            self._over.set_result(False)

    # -- what the transport says -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of the response, still in their HTTP framing."""
        try:
            surplus = self._parser.feed_data(data)[0]
        except Exception as error:  # noqa: BLE001 - whatever the parser does not like
            self._drop(error)
        else:
            if surplus:
                self._drop(None)  # an answer that nobody asked for
        self._relay_read()

    def _drop(self, error: Exception | None) -> None:
        """The connection is of no further use; the body fails where it is not whole yet."""
        self._protocol.force_close()
        self._transport.close()
        if error is not None:
            fail_body(self._response, "malformed", error)

    def eof_received(self) -> None:
        """The upstream sends nothing more."""
        self._protocol.eof_received()
        self._relay_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._protocol.connection_lost(exc)
        self._loop.call_soon(self._relay_read)  # the body learns of it in a callback that is scheduled before this one

    def pause_writing(self) -> None:
        """The rest of the request has to wait."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The rest of the request may be sent."""
        self._protocol.resume_writing()

    # -- relaying --------------------------------------------------------------------------------------------------

    def _relay_read(self) -> None:
        """Hands on what the body has; then ends the relay, begins a window, yields or reads on."""
        if self._over.done():
            return
        body, size, taken = self._body, 0, INCOMPLETE
        try:
            while body.size and taken is not ENOUGH:  # taking may let in more
                data = body.take()
                size += len(data)
                taken = self._take(data)
            if taken is ENOUGH or body.ended or body.failure is not None:
                if taken is not ENOUGH and body.failure is not None:
                    raise body.failure
                self.leave()
                self._over.set_result(taken is not ENOUGH)
                return
        except Exception as error:  # noqa: BLE001 - the pump's to judge; the tick serves all streams and must go on
            self.leave()
            self._over.set_exception(error)
            return
        if self.state is not READING:
            return
        if size > FLOOD and not self._transport.is_closing():
            # The loop reads one socket up to 32 times before it looks at the next.
            self._transport.pause_reading()
            self.state = YIELDING
            self._loop.call_soon(self._read_on, YIELDING)
        elif taken is RELAYED:
            self._consider_window(size)

    @property
    def _window(self) -> float:
        return self._load.window.seconds if self._interval is None else self._interval

    def _consider_window(self, size: int) -> None:
        window, gap = self._interval, math.inf
        if window is None:
            window, gap = self._load.window.seconds, self._load.window.gap
        elif window <= BEAT:
            gap = window
        if not window:
            return
        before, self._latest = self._latest, self._now()
        if self._latest - before < gap and size < self._enough and not self._transport.is_closing():
            self._transport.pause_reading()
            self.state = WINDOW
            self._wait(window)

    def _read_on(self, after: IntakeState) -> None:
        """Back to events, where nothing else happened in between."""
        if self.state is after:
            self.state = READING
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # -- windows ---------------------------------------------------------------------------------------------------

    def _wait(self, window: float) -> None:
        # Subtract half a beat so that an early tick still counts as this window's end.
        patient = self._interval is not None and window > BEAT
        self._due = self._now() + window - BEAT / 2 if patient else 0.0
        self._wait_for_beat(BEAT if patient else window)

    def _wait_for_beat(self, interval: float) -> None:
        if not self._beat_comes:
            self._beat_comes = True
            self._clock.tick(interval).add(self._beat)

    def _beat(self) -> None:
        self._beat_comes = False
        if self.state is not WINDOW:
            return
        if self._due and self._now() < self._due and self._waiting() < self._enough:
            self._wait_for_beat(BEAT)
        elif self._poll() and (window := self._window):
            self._wait(window)
        else:
            self._read_on(WINDOW)

    def _waiting(self) -> int:
        """Bytes that wait in the kernel; where that cannot be told there are always enough."""
        if self._transport.is_closing() or self._descriptor < 0:
            return self._enough
        return int.from_bytes(fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4), sys.byteorder)

    def _poll(self) -> bool:
        """Whether something came, was passed on, and the window may go on."""
        # A closing transport's descriptor may already be somebody else's.
        if self._transport.is_closing() or self._descriptor < 0:
            return False
        try:
            data = os.read(self._descriptor, MAX_POLL)
        except OSError:
            return False  # nothing came yet, or there is an error; the transport finds either
        if not data:
            return False  # the upstream's end, which the transport finds as well
        self.data_received(data)
        return self.state is WINDOW and len(data) < self._enough


def _descriptor(transport: asyncio.BaseTransport) -> int:
    """Where the transport reads, -1 where nobody else may: over TLS the bytes make no sense to others."""
    sock = transport.get_extra_info("socket")
    return -1 if sock is None or transport.get_extra_info("sslcontext") is not None else int(sock.fileno())
