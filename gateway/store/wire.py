"""A connection to Redis that many callers share: commands go out one behind the other, without waiting for replies.

Why not redis-py's own calls: each takes a connection of a pool for itself and a round trip, and a caller that is
cancelled costs its connection. Here a command costs a write and a reply, and a thousand of them one round trip.

Invariants:

- Replies come in the order of the commands; each is handed to the function that was given with its command, whoever is
  interested in it by then. So no reply can be taken for another command's.
- A wire that broke is of no further use: what was not replied to may have had an effect, or not.
- Commands are the kernel's when `send` returns, unless it had no room. uvloop's own `write` would keep them until the
  turn of its loop ends, and then write to all connections in whatever order.
- At most `MAX_UNSENT` bytes wait in this process for the socket; a wire with more of them is broken.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis

MAX_UNSENT: Final = 8 << 20
SETTLE_LOOK: Final = 0.01
"""Seconds between two looks whether all replies came."""

Replied = Callable[[Any], None]
"""Gets the reply: bytes, a number, a list, None; or a `hiredis.ReplyError` where Redis refused the command."""

_INCOMPLETE: Final = object()


class NoRedisError(ConnectionError):
    """What answers is no Redis."""


class Wire(asyncio.Protocol):
    """Commands out, replies in.

    Args:
        broken: called once, when the connection is lost, with the reason.
    """

    def __init__(self, broken: Callable[[Exception], None]) -> None:
        self._broken = broken
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._replied: deque[Replied] = deque()
        self._heard = 0.0  # when the last reply came, or the first command after it was sent
        self._transport: asyncio.Transport | None = None
        self._descriptor: int | None = None  # None where the transport must see what is written, as over TLS
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._pause = 0.0  # seconds between two reads
        self._next_read: asyncio.TimerHandle | None = None

    @property
    def silence(self) -> float:
        """Seconds for which nothing has come while commands wait for replies, 0 where none does."""
        return self._now() - self._heard if self._replied else 0.0

    def send(self, commands: bytes, replied: Sequence[Replied]) -> None:
        """Writes commands as `pack` makes them, with a function for each reply. Does nothing where the wire broke."""
        transport = self._transport
        if transport is None:
            return
        if not self._replied:
            self._heard = self._now()
        self._replied.extend(replied)
        try:
            if not (self._descriptor is None or transport.is_closing() or transport.get_write_buffer_size()):
                commands = commands[_written(self._descriptor, commands) :]
            if commands:
                transport.write(commands)
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop, of a connection that has just been reset
            self._break(error)
            return
        if transport.get_write_buffer_size() > MAX_UNSENT:
            self._break(TimeoutError("it takes nothing"))
        elif self._pause:
            self._look_later()

    def read_rarely(self, pause: float) -> None:
        """From now on replies are read together, up to `pause` seconds late: where nobody waits for them, being woken
        for each costs more than what they say. The loss of the connection is noticed as late, and not without a
        command."""
        self._pause = pause
        self._rest()

    def _rest(self) -> None:
        """Nothing is read until the next look; there is one while replies are to come."""
        if self._transport is not None and self._reads(self._transport.pause_reading):
            self._look_later()

    def _look_later(self) -> None:
        if self._replied and self._next_read is None:
            self._next_read = self._loop.call_later(self._pause, self._look)

    def _look(self) -> None:
        self._next_read = None
        if self._transport is not None:
            self._reads(self._transport.resume_reading)

    def _reads(self, change: Callable[[], None]) -> bool:
        try:
            change()
        except RuntimeError as error:  # uvloop, as above
            self._break(error)
            return False
        return True

    async def ask(self, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """The replies to these commands, errors among them. Waits without a limit, and for ever if the wire breaks."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        replies: list[Any] = []

        def replied(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == len(commands) and not future.done():
                future.set_result(replies)

        self.send(b"".join(map(pack, commands)), [replied] * len(commands))
        return await future

    async def settle(self, seconds: float) -> None:
        """Returns when all commands were replied to, or after so many seconds, or when the connection is lost."""
        self._pause = 0.0
        self._look()
        deadline = self._now() + seconds
        while self._replied and self._transport is not None and self._now() < deadline:  # noqa: ASYNC110 - once
            await asyncio.sleep(SETTLE_LOOK)

    def close(self) -> None:
        """Ends it without a word to `broken`."""
        transport, self._transport = self._transport, None
        self._replied.clear()
        if self._next_read is not None:
            self._next_read.cancel()
        try:
            if transport is not None:
                transport.abort()
        except RuntimeError:  # uvloop, as above: then it is closed
            return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be written to."""
        self._transport = cast(asyncio.Transport, transport)
        if transport.get_extra_info("sslcontext") is None:
            self._descriptor = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        """Replies, whole or in part."""
        self._reader.feed(data)
        self._heard = self._now()
        while self._transport is not None:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError:
                self._break(NoRedisError("it does not speak the protocol of Redis"))
                return
            if reply is _INCOMPLETE:
                break
            if not self._replied:
                self._break(NoRedisError("it replied to nothing"))
                return
            self._replied.popleft()(reply)
        if self._pause:
            self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._break(exc or ConnectionResetError("it closed the connection"))

    def _break(self, error: Exception) -> None:
        if self._transport is not None:
            self.close()
            self._broken(error)


def _written(descriptor: int, data: bytes) -> int:
    """How many bytes the kernel took."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0


def pack(command: Sequence[bytes | str | int]) -> bytes:
    """One command as Redis reads it."""
    packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]
    return packed
