"""A real Redis, Sentinels that watch it, and several gateways that share it.

    async with Redis(directory, appendonly="yes") as redis, TCPProxy(redis.port) as network:
        async with nodes(3, config, directory, redis.url_by(network.port)) as gateways:
            await redis.ask("XLEN", "gateway:l:…")
            network.hole()              # the store hangs; `heal` ends it. `TCPProxy` says what else can be done
            redis.pause()               # the same for the process (SIGSTOP); `resume` ends it
            await redis.kill()          # a crash; `stop` ends it in good order
            await redis.start()         # at the same port, with what it had written to its disk
            await redis.start(empty=True)   # with nothing

- It keeps nothing on disk, unless `appendonly="yes"` says so.
- The kit has a user of its own, who may do anything; a test's `password` or `user` never keeps it out.
- It is ended by its own process id, also when it is paused.
- It is the program that the environment names in `REDIS_SERVER`: `redis-server`, unless it says `valkey-server`, or the
  path of one.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis.asyncio as library
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.kit.program import STOP_SECONDS, Gateway, Program, find_program, free_port, throwaway_certificate

KIT_USER, KIT_PASSWORD = "test-kit", "password-of-the-test-kit"
ANSWER = 10.0
"""Seconds that a command of the kit may take."""


def _server() -> str:
    """The path of the program: that of the environment's `REDIS_SERVER`, else redis-server."""
    return find_program(os.environ.get("REDIS_SERVER") or "redis-server", "redis-server")


class Redis(Program):
    """A Redis on 127.0.0.1: `REDIS_SERVER`.

    Args:
        directory: for its files; it is made.
        password: of the user that the gateway is.
        user: the gateway's ACL user; "" for the default one.
        rules: what that user may do, as in `~gateway:* +@all`.
        tls: whether it speaks TLS, and nothing else.
        unix: whether it listens on a Unix socket too.
        options: of its configuration, `-` written as `_`: `maxmemory="8mb"`, `appendonly="yes"`, `replicaof="…"`.

    Attributes:
        port: the same after another start.
        path: of the Unix socket, None without one.
        certificate: the path of its authority's certificate with `tls`, else None.
        data: the folder of what it writes to disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        password: str = "",
        user: str = "",
        rules: str = "~* &* +@all",
        tls: bool = False,
        unix: bool = False,
        **options: str,
    ) -> None:
        self.port = free_port()
        self.path = directory / "socket" if unix else None
        self.data = directory / "data"
        self.data.mkdir(parents=True)
        self.certificate: Path | None = None
        self._key: Path | None = None
        if tls:
            self.certificate, self._key = throwaway_certificate(directory)
        self._credential = f"{quote(user, '')}:{quote(password, '')}@" if user or password else ""
        self._client: library.Redis | None = None
        config = directory / "redis.conf"
        config.write_text(self._config(options, self._users(user, password, rules)), encoding="utf-8")
        super().__init__([_server(), str(config)], cwd=directory)

    def _config(self, options: Mapping[str, str], users: Sequence[str]) -> str:
        mine = {"save": '""', "appendonly": "no", "appendfsync": "always", "enable-debug-command": "yes"}
        mine |= {"bind": "127.0.0.1", "dir": str(self.data), "repl-diskless-sync-delay": "0"}
        mine |= {"tls-port" if self.certificate else "port": str(self.port)}
        if self.certificate:
            mine |= {"port": "0", "tls-cert-file": str(self.certificate), "tls-key-file": str(self._key)}
            mine |= {"tls-ca-cert-file": str(self.certificate), "tls-auth-clients": "no"}
        if self.path:
            mine |= {"unixsocket": str(self.path)}
        mine |= {name.replace("_", "-"): value for name, value in options.items()}
        return "\n".join([*(f"{name} {value}" for name, value in mine.items()), *users, ""])

    def _users(self, user: str, password: str, rules: str) -> list[str]:
        secret = f">{password}" if password else "nopass"
        named = [f"user {user} on {secret} {rules}", "user default off"] if user else []
        default = [] if user else [f"user default on {secret} {rules}"]
        return [f"user {KIT_USER} on >{KIT_PASSWORD} ~* &* +@all", *named, *default]

    @property
    def url(self) -> str:
        """Its URL as a gateway's `store`, with the credential."""
        return self.url_by(self.port)

    def url_by(self, port: int) -> str:
        """The same through another port of this machine, a proxy's."""
        query = f"?ssl_ca_certs={self.certificate}" if self.certificate else ""
        return f"redis{'s' if self.certificate else ''}://{self._credential}127.0.0.1:{port}/0{query}"

    @property
    def unix_url(self) -> str:
        """Its URL by the Unix socket."""
        return f"unix://{self._credential}{self.path}"

    async def ready(self) -> None:
        """Return when it said that it takes connections."""
        await self.said(lambda line: "eady to accept connections" in line, "that it listens")

    async def start(self, *, empty: bool = False) -> None:
        """Start, or start again at the same port, and return when it can be asked.

        Args:
            empty: whether what an earlier run wrote to the disk is deleted before.
        """
        if empty:
            shutil.rmtree(self.data)
            self.data.mkdir()
        await super().start()

    async def stop(self, status: int | None = 0, timeout: float = STOP_SECONDS) -> None:
        """End it in good order."""
        await self._disconnect()
        if self.running:
            self.resume()
        await super().stop(status, timeout)

    async def kill(self) -> None:
        """End it as a crash would; what was acknowledged with `appendonly` is on disk."""
        await self._disconnect()
        await super().kill()

    def pause(self) -> None:
        """It does nothing more until `resume`; the kernel goes on to accept connections and bytes."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on after `pause`."""
        self.send_signal(signal.SIGCONT)

    async def ask(self, *words: str | bytes | int) -> Any:
        """The answer to one command, as text; bytes that are no UTF-8 are shown as `\\xff`. Raises `RedisError`."""
        if self._client is None:
            self._client = library.Redis(
                port=self.port,
                username=KIT_USER,
                password=KIT_PASSWORD,
                decode_responses=True,
                encoding_errors="backslashreplace",
                socket_timeout=ANSWER,
                retry=Retry(NoBackoff(), 1),
                ssl=self.certificate is not None,
                ssl_ca_certs=str(self.certificate) if self.certificate else None,
            )
        return await self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def keys(self, pattern: str = "*") -> list[str]:
        """The names of all keys that fit, sorted."""
        return sorted(await self.ask("KEYS", pattern))

    async def info(self, section: str = "everything") -> dict[str, Any]:
        """What INFO says."""
        return dict(await self.ask("INFO", section))

    async def connects(self) -> int:
        """How many connections it has accepted since its start, of the kit too."""
        return int((await self.info("stats"))["total_connections_received"])

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class Sentinel(Program):
    """A Redis Sentinel that watches one master; alone, it decides alone.

    Args:
        directory: for its files; it is made.
        master: what it watches.
        name: what it calls the master.
        password: its own, which clients have to give; "" for none.

    Attributes:
        port: the same after another start.
    """

    def __init__(self, directory: Path, master: Redis, name: str = "main", password: str = "") -> None:
        self.port = free_port()
        self.name = name
        self._password = password
        directory.mkdir(parents=True)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            *([f"requirepass {password}"] if password else []),
            f"sentinel monitor {name} 127.0.0.1 {master.port} 1",
            f"sentinel auth-user {name} {KIT_USER}",
            f"sentinel auth-pass {name} {KIT_PASSWORD}",
            f"sentinel down-after-milliseconds {name} 500",
            f"sentinel failover-timeout {name} 2000",
        ]
        config = directory / "sentinel.conf"
        config.write_text("\n".join([*lines, ""]), encoding="utf-8")
        super().__init__([_server(), str(config), "--sentinel"], cwd=directory)

    async def ready(self) -> None:
        """Return when it watches."""
        await self.said(lambda line: "+monitor" in line, "that it watches")

    async def knows(self, replicas: int) -> None:
        """Return when it knows so many replicas: without one it can name no other master."""
        async with asyncio.timeout(STOP_SECONDS):
            while len(await self.ask("SENTINEL", "REPLICAS", self.name)) < replicas:  # noqa: ASYNC110 - nothing says it
                await asyncio.sleep(0.05)

    async def ask(self, *words: str) -> Any:
        """The answer to one command."""
        client = library.Redis(port=self.port, password=self._password or None, decode_responses=True, protocol=2)
        try:
            # The library would parse the answers of these commands, each in its own way.
            client.response_callbacks.clear()
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()


@asynccontextmanager
async def nodes(
    count: int, config: Mapping[str, Any], directory: Path, store: str | Mapping[str, Any], **env: str
) -> AsyncIterator[list[Gateway]]:
    """So many serving gateways with this configuration and this store. Those that run in the end must exit with 0.

    Args:
        count: how many.
        config: of each; each listens at ports of its own.
        directory: for their files.
        store: a URL, or the mapping `store` of the configuration.
        env: added to the environment. Gateways without it start much faster.
    """
    async with AsyncExitStack() as stack:
        gateways = []
        for number in range(count):
            folder = directory / f"node-{number}"
            folder.mkdir()
            gateways.append(Gateway(dict(config) | {"store": store}, folder, env=env))
        await asyncio.gather(*(stack.enter_async_context(gateway) for gateway in gateways))
        yield gateways


__all__ = ["Redis", "RedisError", "Sentinel", "nodes"]
