"""One serving process: listeners, signals, drain and reload. It is the only process, or one of several workers.

    serving --TERM, INT or the supervisor gone--> draining --no stream left, or time is up--> closed
                                                     second signal: at once

Invariants:

- The exit status is 0 after a drain, and 3 if a listener's address cannot be bound.
- A TERM first turns `/readyz` to 503 and refuses new streams. The others may run for `server.drain`; those that still
  run then get an error that says when to come back, each at another time. A second signal skips the waiting.
- A signal to the whole process group reaches a worker and its supervisor, which passes it on: the worker gets it twice.
  So for a worker only the supervisor's own signal (`AT_ONCE`) skips the waiting.
- A worker whose supervisor is gone stops listening, so that another gateway can have the port, and drains.
- A reload that fails changes nothing but a metric and a line in the log.
"""

import asyncio
import errno
import gc
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from aiohttp import web

from gateway.admin.service import AdminServer, AdminService
from gateway.app import App, make_app
from gateway.config import Address, Config, ConfigError, Problem, examine
from gateway.core.errors import GatewayError
from gateway.observe import logs
from gateway.web.connection import Server
from gateway.web.handover import Siblings
from gateway.web.revocation import revoke_for_worker
from gateway.web.service import WebService

BACKLOG: Final = 4096
AT_ONCE: Final = signal.SIGUSR1
"""Sent by the supervisor: end without waiting for streams."""
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, AT_ONCE})
"""The signals that a worker handles. A supervisor forks it with these blocked, so that none comes too early."""
FAREWELL: Final = 0.7
"""Seconds for the last bytes to leave after the last stream ended. aiohttp waits so long twice."""
DRAIN_LOOK: Final = 0.1
"""Seconds between two checks of what still runs."""
COMEBACK: Final = (1.0, 15.0)
"""Seconds after which readers of a drained stream are asked to come back: a random time between these two."""
LAG_INTERVAL: Final = 0.05
GC_THRESHOLD: Final = (20_000, 20, 50)
"""Fewer collections than Python's own 700, 10, 10. With 1,000 slow streams those took 4 % of the CPU, though nearly
everything that a stream makes is freed by its reference counts."""


class BindError(Exception):
    """The address of a listener cannot be bound."""


class Worker(NamedTuple):
    """What a supervisor gives to a worker.

    Attributes:
        number: counted from 0.
        restarts: how often it was started again.
        public, admin: listening sockets; no `admin` where the admin listener is turned off.
        lifeline: the read end of a pipe; it reaches its end when the supervisor is gone.
        siblings: all workers.
        serving: to be called once it serves.
    """

    number: int
    restarts: int
    public: Sequence[socket.socket]
    admin: Sequence[socket.socket]
    lifeline: int
    siblings: Siblings
    serving: Callable[[], None]


async def serve(path: Path, config: Config, worker: Worker | None = None, warnings: Sequence[Problem] = ()) -> None:
    """Serves until a signal ends the gateway; returns when everything is closed.

    Args:
        path, config, worker: as for `run`.
        warnings: what is doubtful in the configuration. It is logged now; after a reload, only what is new.

    Raises:
        BindError: an address in the configuration is taken, or is not one of this machine's.
    """
    app = await make_app(config, worker.number if worker else None)
    process = _Process(path, app, config, worker, warnings)
    try:
        await process.run()
    finally:
        await app.close()


class _Process:
    """One serving process, from its first listener to its last byte."""

    def __init__(
        self, path: Path, app: App, config: Config, worker: Worker | None, warnings: Sequence[Problem]
    ) -> None:
        self._path = path
        self._warnings = warnings
        self._worker = worker
        self._public: list[asyncio.Server] = []
        self._admin: list[asyncio.Server] = []
        self._begun_with = config
        self._app = app
        self._gateway = app.gateway
        self._logger = app.gateway.logger
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        gateway, config, loop = self._gateway, self._begun_with, asyncio.get_running_loop()
        service = WebService(gateway)
        handler = self._worker.siblings.share(service) if self._worker else service
        server = Server(handler, service.explain, gateway.clock, gateway.max_connections, service)
        admin = AdminServer(AdminService(gateway))
        try:
            await self._listen(server, admin)
            beside = [loop.create_task(self._watch_lag())]
            if self._worker:
                gateway.ask_workers = self._worker.siblings.ask
                reply = partial(revoke_for_worker, gateway)
                beside.append(loop.create_task(self._worker.siblings.receive(server, reply)))
            with self._signals(loop):
                self._announce(config)
                await self._ending.wait()
                await self._drain()
            for task in beside:
                task.cancel()
        finally:
            for listener in (*self._public, *self._admin):
                listener.close()
            for closing in (server, admin):
                closing.pre_shutdown()
            await asyncio.gather(*(closing.shutdown(FAREWELL) for closing in (server, admin)))

    async def _listen(self, server: Server, admin: web.Server) -> None:
        loop, settings, worker = asyncio.get_running_loop(), self._begun_with.server, self._worker
        public = worker.public if worker else bind(settings.listen)
        self._public = [await loop.create_server(server, sock=sock, backlog=BACKLOG) for sock in public]
        private = worker.admin if worker else bind(settings.admin_listen)
        self._admin = [await loop.create_server(admin, sock=sock, backlog=BACKLOG) for sock in private]

    def _announce(self, config: Config) -> None:
        gc.collect()
        gc.freeze()  # what start-up made stays for good, so later collections need not look at it
        gc.set_threshold(*GC_THRESHOLD)
        self._gateway.metrics.reload_ok.set(1)
        url = _url(self._public[0])
        page = f"{url}/" if config.server.demo_page else None
        admin = _url(self._admin[0]) if self._admin else None
        self._logger.info("serving", url=url, admin=admin, open=page, pid=os.getpid())
        # Of several workers, the first one says it, and not again when it was restarted.
        first = self._worker is None or (self._worker.number, self._worker.restarts) == (0, 0)
        if first:
            self._warn_of_doubts(self._warnings)
        if page and first and sys.stderr is not None and sys.stderr.isatty():
            print(f"\n  Open {page} and chat.\n", file=sys.stderr)
        if self._worker:
            self._gateway.metrics.worker_restarts.inc(self._worker.restarts)
            self._worker.serving()

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        end = self._ending.set if self._worker else self._end
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: end,
            signal.SIGINT: end,
            signal.SIGHUP: self._start_reload,
        }
        if self._worker:
            handlers[AT_ONCE] = self._end_at_once
            loop.add_reader(self._worker.lifeline, self._end_orphaned, self._worker.lifeline)
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
        try:
            yield
        finally:
            if self._worker:
                signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # without handlers, a signal would kill it now
                loop.remove_reader(self._worker.lifeline)
            for number in handlers:
                loop.remove_signal_handler(number)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        # The first signal ends, the second one skips the waiting.
        (self._hurry if self._ending.is_set() else self._ending).set()

    def _end_at_once(self) -> None:
        self._ending.set()
        self._hurry.set()

    def _end_orphaned(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        self._logger.error("supervisor_gone")
        for listener in (*self._public, *self._admin):
            listener.close()
        self._ending.set()

    async def _drain(self) -> None:
        # 1. New streams are refused, and /readyz says so.
        gateway, loop = self._gateway, asyncio.get_running_loop()
        gateway.draining = True
        gateway.metrics.draining.set(1)
        patience = gateway.snapshot.config.server.drain
        waiting = {"readers": gateway.registry.readers, "streams": len(gateway.engine.running)}
        # Whoever pressed Ctrl-C reads here what is waited for, and how to end that.
        more = {"waits_for": "streams and their readers; a second signal ends them"} if any(waiting.values()) else {}
        self._logger.info("draining", **waiting, seconds=patience, **more)
        # 2. Running streams get `server.drain` seconds to end. Their readers too: a slow one is still reading an answer
        #    that has ended. A second signal ends the waiting.
        deadline = loop.time() + patience
        hurry = loop.create_task(self._hurry.wait())
        while (gateway.engine.running or gateway.registry.readers) and (left := deadline - loop.time()) > 0:
            if (await asyncio.wait([hurry], timeout=min(left, DRAIN_LOOK)))[0]:
                break
        hurry.cancel()
        # 3. The rest goes on at another node, where there is one. What cannot is ended with an error that says when to
        #    come back, for each stream another time.
        handed = await gateway.shared.hand_over() if gateway.shared is not None else 0
        running = list(gateway.engine.running.values())
        for generation in running:
            generation.abort(GatewayError("drained", retry_after=random.uniform(*COMEBACK)))  # noqa: S311
        await asyncio.gather(*(generation.ended for generation in running))
        if gateway.shared is not None:
            await gateway.shared.leave()
        self._logger.info("drained", ended=len(running) - handed, handed_over=handed)

    # -- reload ----------------------------------------------------------------------------------------------------

    def _start_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        async with self._reloading:
            try:
                config, warnings = await asyncio.to_thread(examine, self._path)
                self._warn_of_fixed(config)
                await self._app.reload(config)
                logs.configure(config.log.level, config.log.format, sys.stdout)
                if self._worker is None or self._worker.number == 0:  # the others read the same file
                    self._warn_of_doubts(warnings, self._warnings)
                    self._warnings = warnings
            except ConfigError as error:
                self._refused(problems=[str(problem) for problem in error.problems][:20])
            except Exception as error:  # noqa: BLE001  # whatever it is, the old configuration stays in use
                self._refused(exc_info=error)
            else:
                self._gateway.metrics.reload_ok.set(1)
                self._logger.info("reloaded")

    def _refused(self, **reason: Any) -> None:
        self._gateway.metrics.reload_ok.set(0)
        self._logger.error("reload_failed", **reason)

    def _warn_of_doubts(self, warnings: Sequence[Problem], earlier: Sequence[Problem] = ()) -> None:
        known = {(warning.key, warning.message) for warning in earlier}
        for file, line, setting, says, _ in warnings:
            if (setting, says) not in known:
                self._logger.warning("config_warning", file=file, line=line, setting=setting, says=says)

    def _warn_of_fixed(self, config: Config) -> None:
        for name in ("listen", "admin_listen", "workers", "max_connections"):
            if getattr(self._begun_with.server, name) != getattr(config.server, name):
                self._logger.warning("needs_restart", setting=f"server.{name}")
        if self._begun_with.store != config.store:
            self._logger.warning("needs_restart", setting="store")

    async def _watch_lag(self) -> None:
        clock, lag = self._gateway.clock, self._gateway.metrics.loop_lag
        while True:
            due = clock.now() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            now = clock.now()
            lag.observe(max(0.0, now - due))
            clock.load.note(now, time.thread_time())


def bind(address: Address | None, *, shared: bool = False, listening: bool = True) -> list[socket.socket]:
    """Sockets on the address, one for each IP address of its host; none for None.

    Args:
        address: with port 0 the system picks a port for the first socket, and all get the same one.
        shared: whether other processes may have sockets on it too (`SO_REUSEPORT`).
        listening: whether connections are accepted already.

    Raises:
        BindError: the address is taken, or is not one of this machine's.
    """
    if address is None:
        return []
    with ExitStack() as opened:
        try:
            sockets = [opened.enter_context(sock) for sock in _bound(address, shared)]
            for sock in sockets if listening else ():
                sock.listen(BACKLOG)
        except OSError as error:
            # An error of `getaddrinfo` has a number of its own, not one of the system's.
            reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
            raise BindError(f"cannot listen on {address}: {reason}") from error
        opened.pop_all()
        return sockets


def _bound(address: Address, shared: bool) -> Iterator[socket.socket]:
    # One name may have several addresses. With port 0, the system picks the port of the first socket, and the others
    # get the same.
    port, missing = address.port, None
    found = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, sockaddr in found:
        try:
            sock = _bound_one(family, (sockaddr[0], port, *sockaddr[2:]), shared)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error  # a host may have an IPv6 address in its name service, but no IPv6
        else:
            port = sock.getsockname()[1]
            yield sock
    if missing is not None and port == address.port:
        raise missing


def _bound_one(family: int, sockaddr: tuple[Any, ...], shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _url(listener: asyncio.Server) -> str:
    sock: socket.socket = listener.sockets[0]
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(path: Path, config: Config, worker: Worker | None = None, *, warnings: Sequence[Problem] = ()) -> int:
    """Serves until a signal ends the gateway.

    Args:
        path: the configuration's file, for reloads.
        config: its content now.
        worker: None for the only process.
        warnings: what is doubtful in it. It is logged.

    Returns:
        The exit status.
    """
    output = logs.configure(config.log.level, config.log.format, sys.stdout)
    if worker:
        structlog.contextvars.bind_contextvars(worker=worker.number)
    try:
        import uvloop

        run_loop: Callable[[Coroutine[Any, Any, None]], None] = uvloop.run
    except ImportError:
        run_loop = asyncio.run
    try:
        run_loop(serve(path, config, worker, warnings))
    except BindError as error:
        print(error, file=sys.stderr)
        return 3
    finally:
        output.close()
    return 0
