"""How Redis is reached: by TCP, TLS or a Unix socket, at an address or through Sentinels, and with whose credential.

With Sentinels the master is asked for before each connection, so that a failover is found by connecting again.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

import hiredis
import redis.asyncio as redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from gateway.config.addresses import Address
from gateway.config.store_url import read_store_url
from gateway.store.trouble import WORDS, Trouble, UnfitError, of_reply
from gateway.store.wire import Wire

CONNECT: Final = 1.0
"""Seconds that a connection may take to open, with all that is checked on it."""
HANDSHAKE: Final = 0.6
"""Seconds of them for TLS. A Redis without TLS says nothing to its greeting."""
ASK_SENTINEL: Final = 0.3
"""Seconds for a connection to one Sentinel, and for its answer. The next one is asked then."""
WAIT_FREE: Final = 0.25
"""Seconds that a client waits for a free connection of its own."""

OLD: Final = Trouble("unfit", "Redis is too old; version 7 or newer is needed, or Valkey 8 or newer")
PERHAPS_TLS: Final = Trouble("connection", "Redis closed the connection; does it speak TLS (rediss://)?")
NO_TLS: Final = Trouble("connection", "TLS with Redis fails; is it a port that speaks TLS?")

Hello = dict[bytes, Any]
"""What Redis says of itself: its server, version, role and mode."""


class Access:
    """The way to one Redis.

    Args:
        url: `store.url` of the configuration.
        name: what Redis calls this process in its list of clients.
    """

    def __init__(self, url: str, name: str) -> None:
        self._to = read_store_url(url)
        self._name = name
        self._context: ssl.SSLContext | None = None

    async def open(self, broken: Callable[[Exception], None]) -> tuple[Wire, Hello]:
        """A connection on which this process has said who it is, and what Redis said of itself.

        Args:
            broken: as for `Wire`.

        Raises:
            UnfitError: Redis refuses the credential, or is too old.
            OSError, redis.exceptions.RedisError: there is no connection.
        """
        # While it opens, the end of the connection has to end the waiting for replies.
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def lost(error: Exception) -> None:
            if failed.done():
                broken(error)
            else:
                failed.set_exception(error)

        wire = await self._connect(lost)
        hello = asyncio.ensure_future(self._greet(wire))
        either: set[asyncio.Future[Any]] = {hello, failed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                self._explain(failed)
            greeting = hello.result()
        except BaseException:
            wire.close()
            hello.cancel()
            failed.cancel()
            raise
        failed.set_result(None)
        return wire, greeting

    def client(self, *, max_connections: int, timeout: float | None) -> "redis.Redis":
        """A client of redis-py, for what must not share connections. You must close it.

        Args:
            max_connections: it opens at most so many.
            timeout: seconds for a command; None for one that blocks.
        """
        to = self._to
        options: dict[str, Any] = self._options() | {
            "username": to.user,
            "password": to.password,
            "db": to.database,
            "protocol": 2,  # replies of one shape, whatever the server speaks
            "socket_timeout": timeout,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if to.master:
            pool: redis.ConnectionPool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
                to.master, self, max_connections=max_connections, ssl=to.tls, **options
            )
            pool.connection_kwargs["connection_pool"] = pool  # its own reference is weak
            return redis.Redis.from_pool(pool)
        kind: type[Any] = UnixDomainSocketConnection if to.path else SSLConnection if to.tls else Connection
        place: dict[str, Any] = {"path": to.path} if to.path else {"host": to.hosts[0].host, "port": to.hosts[0].port}
        return redis.Redis.from_pool(
            redis.BlockingConnectionPool(
                max_connections=max_connections, timeout=WAIT_FREE, connection_class=kind, **place, **options
            )
        )

    async def discover_master(self, name: str) -> Address:
        """Where the master of this name is now, as the first Sentinel says that knows it.

        redis-py's pool calls it by this name, too. Its own `Sentinel` would keep connections that nobody closes.

        Raises:
            redis.exceptions.RedisError: none could be asked, or none knows it.
        """
        to = self._to
        options = self._options() | {
            "username": to.options.get("sentinel_username"),
            "password": to.options.get("sentinel_password"),
            "protocol": 2,
            "socket_timeout": ASK_SENTINEL,
            "socket_connect_timeout": ASK_SENTINEL,
            "ssl": to.tls,
        }
        sentinel = Sentinel(list(to.hosts), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        try:
            return Address(*await sentinel.discover_master(name))
        finally:
            await sentinel.aclose()

    def _explain(self, failed: asyncio.Future[None]) -> None:
        try:
            failed.result()
        except ConnectionResetError as error:
            if self._to.tls or self._to.path:
                raise
            raise UnfitError(PERHAPS_TLS) from error

    async def _connect(self, broken: Callable[[Exception], None]) -> Wire:
        loop, to = asyncio.get_running_loop(), self._to
        if to.path:
            return (await loop.create_unix_connection(lambda: Wire(broken), to.path))[1]
        host, port = await self.discover_master(to.master) if to.master else to.hosts[0]
        if not to.tls:
            return (await loop.create_connection(lambda: Wire(broken), host, port))[1]
        try:
            connecting = loop.create_connection(
                lambda: Wire(broken), host, port, ssl=self._tls(), ssl_handshake_timeout=HANDSHAKE
            )
            return (await connecting)[1]
        except ssl.SSLError:
            self._context = None  # the file of the authority may be another one by now
            raise
        except ConnectionAbortedError as error:
            raise UnfitError(NO_TLS) from error

    async def _greet(self, wire: Wire) -> Hello:
        to = self._to
        credential = (
            [] if to.user is None and to.password is None else ["AUTH", to.user or "default", to.password or ""]
        )
        select: list[list[str | int]] = [["SELECT", to.database]] if to.database else []
        said, *rest = await wire.ask(["HELLO", 2, *credential, "SETNAME", self._name], *select)
        if isinstance(said, hiredis.ReplyError):
            raise UnfitError(_refused(said))
        for selected in rest:
            if isinstance(selected, hiredis.ReplyError):
                wrong = Trouble("unfit", "Redis has no database of the number in store.url")
                raise UnfitError(of_reply(selected) or wrong)
        hello: Hello = dict(zip(said[::2], said[1::2], strict=True))
        if int(hello[b"version"].partition(b".")[0]) < (8 if hello[b"server"] == b"valkey" else 7):
            raise UnfitError(OLD)
        if hello[b"mode"] == b"cluster":
            raise UnfitError(WORDS["MOVED"])
        if hello[b"role"] != b"master":
            raise UnfitError(WORDS["READONLY"])
        return hello

    def _options(self) -> dict[str, Any]:
        """What all of redis-py's connections have in common."""
        tls: dict[str, Any] = {name: value for name, value in self._to.options.items() if name.startswith("ssl_")}
        if "ssl_check_hostname" in tls:
            tls["ssl_check_hostname"] = tls["ssl_check_hostname"] == "true"
        return {"socket_connect_timeout": CONNECT, "retry": Retry(NoBackoff(), 0), **tls}

    def _tls(self) -> ssl.SSLContext:
        """By the authorities of the system and those of the URL."""
        if self._context is None:
            try:
                self._context = self._new_context()
            except OSError as error:  # an `ssl.SSLError` is one, too
                why = error.strerror if not isinstance(error, ssl.SSLError) else "it is no certificate or key"
                wrong = f"a file that store.url names cannot be read: {why}"
                raise UnfitError(Trouble("unfit", wrong)) from error
        return self._context

    def _new_context(self) -> ssl.SSLContext:
        options = self._to.options
        context = ssl.create_default_context()
        if options.get("ssl_cert_reqs") == "none" or options.get("ssl_check_hostname") == "false":
            context.check_hostname = False
        if options.get("ssl_cert_reqs") == "none":
            context.verify_mode = ssl.CERT_NONE
        if "ssl_ca_certs" in options or "ssl_ca_path" in options:
            context.load_verify_locations(options.get("ssl_ca_certs"), options.get("ssl_ca_path"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
        return context


def _refused(hello: Exception) -> Trouble:
    """Why Redis did not greet back."""
    text = str(hello)
    if "unknown command" in text or text.startswith("NOPROTO"):
        return OLD
    if "max number of clients" in text:
        return Trouble("other", "Redis has as many clients as it takes (maxclients)")
    return of_reply(hello) or Trouble("other", "Redis refuses the greeting of the gateway")
