"""The process: listeners, signals, drain and reload.

Invariants:

- Exit status: 0 after a drain, 1 for a bad configuration, 3 when a listener cannot be bound.
- A TERM first says so at `/readyz`, refuses new streams and lets the others run for `server.drain`; what still runs
  then is told when to come back, each at another time. A second signal skips the waiting.
- A reload that fails changes nothing but a metric and a line in the log.
"""

import asyncio
import gc
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from gateway import logs
from gateway.admin.service import AdminService
from gateway.app import App, make_app
from gateway.config import Address, Config, ConfigError, load
from gateway.core.errors import GatewayError
from gateway.web.connection import Server
from gateway.web.service import WebService

BACKLOG: Final = 4096
FAREWELL: Final = 0.7
"""Seconds for the last bytes to leave after the last stream was ended; aiohttp waits so long twice."""
COMEBACK: Final = (1.0, 15.0)
"""Seconds between which drained readers are asked to come back, evenly spread."""
LAG_INTERVAL: Final = 0.05
GC_THRESHOLD: Final = (20_000, 20, 50)
"""Fewer collections than Python's own 700, 10, 10: with 1,000 slow streams they took 4 % of the CPU, and what a stream
makes is mostly freed by reference counts."""


class BindError(Exception):
    """A listener's address is not to be had."""


async def serve(path: Path, config: Config) -> None:
    """Returns when the gateway was told to end and everything is closed.

    Raises:
        BindError: an address in the configuration is taken or not this machine's.
    """
    app = await make_app(config)
    process = _Process(path, app, config)
    try:
        await process.run()
    finally:
        await app.close()


class _Process:
    """One serving process, from its first listener to its last byte."""

    def __init__(self, path: Path, app: App, config: Config) -> None:
        self._path = path
        self._begun_with = config
        self._app = app
        self._gateway = app.gateway
        self._logger = app.gateway.logger
        self._told = 0
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        gateway, config, loop = self._gateway, self._begun_with, asyncio.get_running_loop()
        service = WebService(gateway)
        server = Server(service, service.explain, gateway.clock, config.server.max_connections)
        admin = web.Server(AdminService(gateway), access_log=None)
        listeners = [await _listen(server, config.server.listen)]
        try:
            if config.server.admin_listen is not None:
                listeners.append(await _listen(admin, config.server.admin_listen))
            lag = loop.create_task(self._watch_lag())
            with self._signals(loop):
                self._announce(config, listeners)
                await self._ending.wait()
                await self._drain(listeners[0])
            lag.cancel()
        finally:
            await _close(listeners, (server, admin))

    def _announce(self, config: Config, listeners: list[asyncio.Server]) -> None:
        gc.collect()
        gc.freeze()  # what start-up made stays for good; later collections need not look at it
        gc.set_threshold(*GC_THRESHOLD)
        urls = [_url(listener) for listener in listeners]
        page = f"{urls[0]}/" if config.server.demo_page else None
        self._gateway.metrics.reload_ok.set(1)
        self._logger.info("serving", url=urls[0], admin=urls[1] if urls[1:] else None, open=page)
        if page and sys.stderr is not None and sys.stderr.isatty():
            print(f"\n  Open {page} and chat.\n", file=sys.stderr)

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: self._start_reload,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        (self._hurry if self._ending.is_set() else self._ending).set()

    async def _drain(self, listener: asyncio.Server) -> None:
        gateway = self._gateway
        gateway.draining = True
        gateway.metrics.draining.set(1)
        patience = gateway.snapshot.config.server.drain
        self._logger.info("draining", streams=len(gateway.engine.running), seconds=patience)
        await self._wait_for_streams(patience)
        running = list(gateway.engine.running.values())
        for generation in running:
            generation.abort(GatewayError("drained", retry_after=random.uniform(*COMEBACK)))  # noqa: S311
        await asyncio.gather(*(generation.ended for generation in running))
        self._logger.info("drained", ended=len(running))

    async def _wait_for_streams(self, patience: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        hurry = loop.create_task(self._hurry.wait())
        while (running := self._gateway.engine.running) and not hurry.done() and (left := deadline - loop.time()) > 0:
            ended: list[asyncio.Future[Any]] = [generation.ended for generation in running.values()]
            await asyncio.wait([hurry, *ended], timeout=min(left, 1.0), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()

    # -- reload ----------------------------------------------------------------------------------------------------

    def _start_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        async with self._reloading:
            try:
                config = await asyncio.to_thread(load, self._path)
                self._warn_of_fixed(config)
                await self._app.reload(config)
                logs.configure(config.log.level, config.log.format, sys.stdout)
            except ConfigError as error:
                self._refused(problems=[str(problem) for problem in error.problems][:20])
            except Exception as error:  # noqa: BLE001  # whatever it is, the old configuration goes on serving
                self._refused(exc_info=error)
            else:
                self._gateway.metrics.reload_ok.set(1)
                self._logger.info("reloaded")

    def _refused(self, **reason: Any) -> None:
        self._gateway.metrics.reload_ok.set(0)
        self._logger.error("reload_failed", **reason)

    def _warn_of_fixed(self, config: Config) -> None:
        for name in ("listen", "admin_listen", "max_connections"):
            if getattr(self._begun_with.server, name) != getattr(config.server, name):
                self._logger.warning("needs_restart", setting=f"server.{name}")

    async def _watch_lag(self) -> None:
        clock, lag = self._gateway.clock, self._gateway.metrics.loop_lag
        while True:
            due = clock.now() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            now = clock.now()
            lag.observe(max(0.0, now - due))
            clock.load.note(now, time.thread_time())


async def _listen(server: web.Server, address: Address) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(server, address.host, address.port, backlog=BACKLOG, reuse_address=True)
    except OSError as error:
        # The loops word this differently; the number is the system's own, but a name that is not found has another.
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
        raise BindError(f"cannot listen on {address}: {reason}") from error


async def _close(listeners: list[asyncio.Server], servers: tuple[web.Server, ...]) -> None:
    for listener in listeners:
        listener.close()
    for server in servers:
        server.pre_shutdown()
    await asyncio.gather(*(server.shutdown(FAREWELL) for server in servers))


def _url(listener: asyncio.Server) -> str:
    sock: socket.socket = listener.sockets[0]
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(path: Path) -> int:
    """Serves until told to end.

    Returns:
        The exit status.
    """
    _occupy_standard_descriptors()
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    output = logs.configure(config.log.level, config.log.format, sys.stdout)
    try:
        _runner()(serve(path, config))
    except BindError as error:
        print(error, file=sys.stderr)
        return 3
    finally:
        output.close()
    return 0


def _occupy_standard_descriptors() -> None:
    # Started with its stdout closed, the process would give that number to a socket, and print into it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run
