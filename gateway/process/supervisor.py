"""The parent of several workers: it forks them, restarts those that die, and passes signals on.

    first worker serves?  no:  the gateway ends with that worker's exit status
                          yes: all others are forked; one that dies is forked again after 0.1 s, 0.2 s, 0.4 s … 10 s
    TERM or INT           workers drain; a second one ends them at once; 5 s later they are killed

Invariants:

- The supervisor runs no event loop and no thread: it only waits for signals, so it can fork at any time. Workers share
  its memory of everything that was loaded before.
- No worker is forked before every address was found free, and only one before that one serves. So a mistake that keeps
  the gateway from starting is reported once, and ends it. A worker that dies later is restarted without end.
- It keeps the last good configuration: a worker that dies while the file is broken starts with that one.
- Each worker has a listening socket of its own (`SO_REUSEPORT`), which ends with the worker. So no connection waits for
  a dead one; connections that it had not yet accepted are reset, like those that it had.

This file does not know what a worker serves.
"""

import gc
import mmap
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from gateway.config import Address, Config, ConfigError, Problem, examine
from gateway.observe import logs
from gateway.process import server
from gateway.process.server import BindError, Worker, bind
from gateway.web.handover import Siblings

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 10.0
STEADY: Final = 30.0
"""A worker that lived for so many seconds started well; its death begins a new row."""
STARTING: Final = 0.01
"""Seconds between two checks whether the first worker serves."""
GRACE: Final = 5.0
"""Seconds that workers have to end after the second signal, before they are killed."""
FOR_EVER: Final = 3600.0

_HANDLED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})


def run(path: Path, config: Config, *, warnings: Sequence[Problem] = ()) -> int:
    """Serves with `server.workers` processes until a signal ends the gateway.

    Args:
        path: the configuration's file, for reloads.
        config: its content now.
        warnings: what is doubtful in it. The first worker logs it.

    Returns:
        The exit status: 0 when all workers drained, 3 when an address cannot be bound, otherwise the status of a worker
        that failed, 1 for one that was killed.
    """
    supervisor = Supervisor(path, config, warnings)
    try:
        return supervisor.run()
    except BindError as error:
        print(error, file=sys.stderr)
        return 3
    finally:
        supervisor.close()


@dataclass(slots=True)
class Backoff:
    """How long after its death a worker is restarted: almost at once, then twice as long each time."""

    deaths: int = 0

    def delay(self, lived: float) -> float:
        """Seconds from a death to the next start.

        Args:
            lived: how many seconds the worker had lived; from `STEADY` on, earlier deaths are forgotten.
        """
        self.deaths = 1 if lived >= STEADY else self.deaths + 1
        return float(min(FIRST_DELAY * 2 ** min(self.deaths - 1, 10), LONGEST_DELAY))


@dataclass(slots=True)
class Slot:
    """One of the workers, whether it runs now or is to be started.

    Attributes:
        number: the worker's, counted from 0.
        pid: 0 while there is no process.
        began: when the process was forked.
        due: when the next one is to be forked.
        restarts: how many processes there were before it.
    """

    number: int
    pid: int = 0
    began: float = 0.0
    due: float = 0.0
    restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)


class Supervisor:
    """The workers of one gateway. See `run`."""

    def __init__(self, path: Path, config: Config, warnings: Sequence[Problem] = ()) -> None:
        self._path = path
        self._config = config
        self._warnings = warnings
        self._listen = config.server.listen
        self._admin_listen = config.server.admin_listen
        self._logger = logs.unthreaded(config.log.level, config.log.format, sys.stdout)
        self._slots = [Slot(number) for number in range(config.server.workers)]
        self._name = secrets.token_hex(16)
        self._reserved: list[socket.socket] = []
        self._serving = mmap.mmap(-1, len(self._slots))  # a byte a worker, set by it
        self._lifeline, self._lifeline_write = os.pipe()
        self._begun = False  # whether the first worker serves
        self._ending = False
        self._deadline: float | None = None  # when workers that still run are killed
        self._status = 0

    def close(self) -> None:
        """Closes the sockets, the pipe and the shared memory."""
        for sock in self._reserved:
            sock.close()
        os.close(self._lifeline)
        os.close(self._lifeline_write)
        self._serving.close()

    def run(self) -> int:
        """Returns the exit status when the last worker has ended.

        Raises:
            BindError: an address is taken, or is not one of this machine's.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, the system keeps no exit status of children
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED | server.SIGNALS)
        self._reserve()
        gc.collect()
        gc.freeze()  # a collection in a worker would write to every page that it shares
        while not self._ending or self._pids:
            self._start_due()
            received = signal.sigtimedwait(_HANDLED, self._time_to_wait())
            self._reap()  # first: who died before the end was asked for did not fail to drain
            if received is not None:
                self._obey(signal.Signals(received.si_signo))
            self._kill_stragglers()
        return self._status

    @property
    def _pids(self) -> list[int]:
        return [slot.pid for slot in self._slots if slot.pid]

    def _reserve(self) -> None:
        # 1. A socket that is not shared shows whether the address is free: with shared sockets alone, a second gateway
        #    could join. It also has the system pick the port once for all workers.
        for sock in bind(self._listen, listening=False):
            self._listen = Address(self._listen.host, sock.getsockname()[1])
            sock.close()
        # 2. The same for the admin port of every worker.
        for slot in self._slots:
            for sock in bind(self._admin_address(slot)):
                sock.close()
        # 3. A shared socket that never listens keeps the port while workers die and start.
        self._reserved = bind(self._listen, shared=True, listening=False)

    def _admin_address(self, slot: Slot) -> Address | None:
        first = self._admin_listen
        return first and first._replace(port=first.port and first.port + slot.number)

    # -- starting --------------------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        self._begun = self._begun or bool(self._serving[0])
        now = time.monotonic()
        for slot in self._slots if self._begun else self._slots[:1]:
            if not (slot.pid or self._ending or slot.due > now):
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        slot.began = time.monotonic()
        self._serving[slot.number] = 0
        try:
            with ExitStack() as opened:  # after the fork the parent closes its copies; the child never leaves the block
                public = [opened.enter_context(sock) for sock in bind(self._listen, shared=True)]
                admin = [opened.enter_context(sock) for sock in bind(self._admin_address(slot))]
                slot.pid = os.fork()
                if not slot.pid:
                    self._become(slot, public, admin)
        except (BindError, OSError) as error:  # a port, memory or a process is lacking; later there may be one
            if not self._begun:
                raise
            self._schedule(slot, reason=str(error))

    def _become(self, slot: Slot, public: list[socket.socket], admin: list[socket.socket]) -> NoReturn:
        status = 1
        try:
            os.close(self._lifeline_write)
            for sock in self._reserved:
                sock.close()
            worker = Worker(
                number=slot.number,
                restarts=slot.restarts,
                public=public,
                admin=admin,
                lifeline=self._lifeline,
                siblings=Siblings(slot.number, len(self._slots), self._name),
                serving=lambda: self._serving.__setitem__(slot.number, 1),
            )
            status = server.run(self._path, self._config, worker, warnings=self._warnings)
        except BaseException:  # noqa: BLE001  # below this frame is the parent's stack, which must not be unwound here
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _time_to_wait(self) -> float:
        if not (self._begun or self._ending):
            return STARTING  # a worker that begins to serve sends no signal
        now = time.monotonic()
        dues = [] if self._ending else [slot.due for slot in self._slots if not slot.pid]
        if self._deadline is not None:
            dues.append(self._deadline)
        return max(0.0, min(dues, default=now + FOR_EVER) - now)

    def _obey(self, received: signal.Signals) -> None:
        if received in (signal.SIGTERM, signal.SIGINT):
            self._end()
        elif received == signal.SIGHUP:
            self._reload()

    def _end(self) -> None:
        if self._ending:
            self._deadline = self._deadline or time.monotonic() + GRACE
        self._pass_on(server.AT_ONCE if self._ending else signal.SIGTERM)
        self._ending = True

    def _reload(self) -> None:
        try:
            self._config, self._warnings = examine(self._path)
        except ConfigError:
            self._pass_on(signal.SIGHUP)  # the workers find the same mistakes and log them
            return
        log = self._config.log
        self._logger = logs.unthreaded(log.level, log.format, sys.stdout)
        self._pass_on(signal.SIGHUP)

    def _pass_on(self, number: signal.Signals) -> None:
        for pid in self._pids:
            os.kill(pid, number)  # the pid of a dead worker stays taken until it is reaped

    def _kill_stragglers(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._pass_on(signal.SIGKILL)
            self._deadline += GRACE

    # -- deaths ----------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                for slot in [slot for slot in self._slots if slot.pid == end[0]]:
                    self._worker_ended(slot, os.waitstatus_to_exitcode(end[1]))

    def _worker_ended(self, slot: Slot, status: int) -> None:
        # Three cases: the first worker never served, which ends the gateway with its status; the gateway is ending, and
        # one bad status is reported; a worker died in between, and is started again.
        pid, slot.pid = slot.pid, 0
        if not (self._begun or self._serving[0]):
            self._ending, self._status = True, max(status, 0) or int(status != 0)  # negative: killed by a signal
        elif self._ending:
            self._status = self._status or int(status != 0)
        else:
            self._schedule(slot, pid=pid, status=status)

    def _schedule(self, slot: Slot, **reason: object) -> None:
        now = time.monotonic()
        lived = now - slot.began
        delay = slot.backoff.delay(lived)
        slot.due, slot.restarts = now + delay, slot.restarts + 1
        self._logger.error(
            "worker_died", worker=slot.number, **reason, lived_s=round(lived, 1), restart_in_s=round(delay, 1)
        )
