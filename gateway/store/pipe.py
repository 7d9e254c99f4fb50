"""A connection to Redis that commands are written to in the very turn of the loop in which they are made.

Why not redis-py's own calls: each of them is a task's work and a round trip. What is appended to a log must be on its
way to Redis before the same events are on their way to a reader: then a reader never has more than what another node
can go on from, even if this process is killed in the next moment, and yet nobody waits for Redis.

redis-py opens the connection (addresses, Sentinel, TLS, credentials). After that this file takes it over, and takes
one private name of redis-py for that: the connection's writer. tests/store/test_pipe.py states what must be true.

Invariants:

- Replies come in the order of the commands; each is handed to the function that was given with its command.
- A pipe that broke is of no further use: what was not replied to may have had an effect, or not.
- At most `MAX_UNSENT` bytes wait in this process for the socket; a pipe with more of them is broken.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import AbstractConnection

MAX_UNSENT: Final = 8 * 1024 * 1024
SETTLE_LOOK: Final = 0.01
"""Seconds between two looks whether all replies came."""

Replied = Callable[[Any], None]
"""Gets the reply: bytes, an int, a list, None; or an `Exception` where Redis refused the command."""


class Pipe(asyncio.Protocol):
    """Commands out, replies in.

    Args:
        broken: called once, when the connection is lost, with the reason.
    """

    def __init__(self, broken: Callable[[Exception], None]) -> None:
        self._broken = broken
        self._reader = hiredis.Reader()
        self._replied: deque[tuple[Replied, float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._connection: AbstractConnection | None = None  # kept, as it closes the socket when it is collected
        self._now = asyncio.get_running_loop().time

    async def open(self, connection: AbstractConnection) -> None:
        """Takes over this connection, which is opened first.

        Raises:
            redis.exceptions.RedisError, OSError: it could not be opened.
        """
        await connection.connect()  # type: ignore[no-untyped-call]
        writer = connection._writer
        assert writer is not None, "it is open"
        transport = cast(asyncio.Transport, writer.transport)
        transport.set_protocol(self)
        self._transport, self._connection = transport, connection

    @property
    def oldest(self) -> float:
        """Seconds for which the oldest command has waited for its reply, 0 where none does."""
        return self._now() - self._replied[0][1] if self._replied else 0.0

    def send(self, commands: bytes, replied: "list[Replied]") -> None:
        """Writes commands as `pack` makes them, with a function for each reply. Does nothing where the pipe broke."""
        transport = self._transport
        if transport is None:
            return
        now = self._now()
        self._replied.extend([(each, now) for each in replied])
        try:
            transport.write(commands)
        except RuntimeError as error:  # so says uvloop of a connection that has just been reset
            self._break(error)
            return
        if transport.get_write_buffer_size() > MAX_UNSENT:
            self._break(TimeoutError("Redis takes nothing"))

    async def settle(self, seconds: float) -> None:
        """Returns when all commands were replied to, or after so many seconds, or when the connection is lost."""
        deadline = self._now() + seconds
        while self._replied and self._transport is not None and self._now() < deadline:  # noqa: ASYNC110 - once
            await asyncio.sleep(SETTLE_LOOK)

    def close(self) -> None:
        """Ends it without a word to `broken`."""
        transport, self._transport = self._transport, None
        self._replied.clear()
        connection, self._connection = self._connection, None
        try:
            if transport is not None:
                transport.abort()
            if connection is not None:
                connection._close()  # type: ignore[no-untyped-call]
        except RuntimeError:  # uvloop, as above: then it is closed
            return

    def data_received(self, data: bytes) -> None:
        """Replies, whole or in part."""
        self._reader.feed(data)
        while self._transport is not None:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                self._break(error)
                return
            if reply is False:  # RESP3's false comes as False, too; no command here is answered with one
                return
            if not self._replied:
                self._break(ConnectionError("a reply to nothing"))
                return
            self._replied.popleft()[0](reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._break(exc or ConnectionError("Redis closed the connection"))

    def _break(self, error: Exception) -> None:
        if self._transport is not None:
            self.close()
            self._broken(error)


def pack(*parts: bytes) -> bytes:
    """One command. Source: the Redis serialization protocol, "Sending commands to a Redis server"."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])
