"""A few connections that are ready to be written to: a command is on its way to Redis before anything else happens.

A client that has read the end of an answer may ask its next question at another node at once. What that node reads must
be on its way to Redis before the client can have seen the end. redis-py's pool looks at a connection before it gives it
away, which takes some turns of the loop; here, the first step of `run` writes to the socket.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError

from gateway.store.connection import CONNECT, PATIENCE, Connection
from gateway.store.layout import Script

LINES: Final = 4
"""Connections, at most. Where all are in use, a command takes the common way."""


class Lines:
    """See the top of the file. Their scripts must be such that may be repeated.

    Args:
        connection: this process's way to Redis, and the common one.
        scripts: those that are run; Redis is told of them beforehand.
    """

    def __init__(self, connection: Connection, *scripts: Script) -> None:
        self._connection = connection
        self._scripts = scripts
        self._client: Any = connection.client(max_connections=LINES)
        self._idle: list[Any] = []
        self._count = 0
        self._opening: asyncio.Task[None] | None = None
        connection.when_up(self._begin)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """The reply of one script.

        Raises:
            StoreAwayError: as `Connection.run`.
        """
        line = self._idle.pop() if self._connection.up and self._idle else None
        if line is None:
            self._open_more()
            return await self._connection.run(script, keys, arguments)
        try:
            async with asyncio.timeout(PATIENCE):
                await line.send_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
                reply = await line.read_response()
        except NoScriptError:
            self._idle.append(line)
        except (RedisError, OSError, TimeoutError):  # it broke meanwhile, and says nothing about Redis
            await self._drop(line)
        except BaseException:  # its reply may still come
            await self._drop(line)
            raise
        else:
            self._idle.append(line)
            return reply
        return await self._connection.run(script, keys, arguments)

    async def close(self) -> None:
        """Closes them."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        while self._idle:
            await self._drop(self._idle.pop())
        await self._client.aclose()

    async def _begin(self) -> None:
        while self._idle:
            await self._drop(self._idle.pop())
        self._open_more()
        if self._opening is not None:
            await asyncio.wait([self._opening])

    def _open_more(self) -> None:
        if self._count < LINES and (self._opening is None or self._opening.done()) and self._connection.up:
            self._count += 1
            self._opening = asyncio.get_running_loop().create_task(self._open(), name="store line")

    async def _open(self) -> None:
        line = self._client.connection_pool.make_connection()
        try:
            async with asyncio.timeout(CONNECT):
                await line.connect()
                for script in self._scripts:
                    await line.send_command("SCRIPT", "LOAD", script.text)
                    await line.read_response()
        except (RedisError, OSError, TimeoutError):  # the next command tries again, and the beat finds out why
            await self._drop(line)
        except BaseException:
            await self._drop(line)
            raise
        else:
            self._idle.append(line)

    async def _drop(self, line: Any) -> None:
        self._count -= 1
        await line.disconnect(nowait=True)
