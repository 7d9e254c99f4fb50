"""The parent of several workers: forks them, starts those again that die, and passes on what it is told.

Invariants:

- It runs no event loop and no thread, so it can fork at any time, and does nothing but wait for signals. Workers share
  with it the memory of what was loaded before.
- Nothing is forked before every address was found free, and only one worker before that one serves. So what keeps a
  gateway from starting is said once, and ends it; a worker that dies later is started again, later each time, for ever.
- It keeps the last good configuration: a worker that dies while the file is broken comes back with that one.
- Each worker has a listening socket of its own (`SO_REUSEPORT`), gone with the worker, so that no connection waits
  for one that is not there. Connections that a dead worker had not yet accepted are reset with those it had.

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
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from gateway.config import Address, Config, ConfigError, load
from gateway.observe import logs
from gateway.process import server
from gateway.process.server import BindError, Worker, bind
from gateway.web.handover import Siblings

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 10.0
STEADY: Final = 30.0
"""Seconds after which a worker that dies has not died of its start."""
STARTING: Final = 0.01
"""Seconds between two looks at whether the first worker serves."""
GRACE: Final = 5.0
"""Seconds that workers have to end at once."""
FOR_EVER: Final = 3600.0

_TOLD: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})


def run(path: Path, config: Config) -> int:
    """Serves with `server.workers` processes until told to end.

    Args:
        path: of the configuration, for reloads.
        config: what it says now.

    Returns:
        The exit status: 0 when all workers drained, 3 when an address is not to be had, otherwise what a worker ended
        with, 1 for one that was killed.
    """
    supervisor = Supervisor(path, config)
    try:
        return supervisor.run()
    except BindError as error:
        print(error, file=sys.stderr)
        return 3
    finally:
        supervisor.close()


@dataclass(slots=True)
class Backoff:
    """When a worker that died is started again: almost at once, then twice as late each time."""

    deaths: int = 0

    def delay(self, lived: float) -> float:
        """Seconds from a death to the next start.

        Args:
            lived: seconds that the worker had lived; from `STEADY` on, those that died before it are forgotten.
        """
        self.deaths = 1 if lived >= STEADY else self.deaths + 1
        return float(min(FIRST_DELAY * 2 ** min(self.deaths - 1, 10), LONGEST_DELAY))


@dataclass(slots=True)
class Place:
    """Where a worker is, or is going to be.

    Attributes:
        number: of the worker.
        pid: 0 while there is none.
        began: when it was forked.
        due: when the next one is to be forked.
        restarts: how many there were before it.
    """

    number: int
    pid: int = 0
    began: float = 0.0
    due: float = 0.0
    restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)


class Supervisor:
    """The workers of one gateway. See `run`."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._listen = config.server.listen
        self._admin_listen = config.server.admin_listen
        self._logger = logs.unthreaded(config.log.level, config.log.format, sys.stdout)
        self._places = [Place(number) for number in range(config.server.workers)]
        self._name = secrets.token_hex(16)
        self._reserved: list[socket.socket] = []
        self._serving = mmap.mmap(-1, len(self._places))  # a byte a worker, set by it
        self._lifeline, self._own_end = os.pipe()
        self._begun = False
        self._ending = False
        self._deadline: float | None = None
        self._status = 0

    def close(self) -> None:
        """Gives back what it has open."""
        for sock in self._reserved:
            sock.close()
        os.close(self._lifeline)
        os.close(self._own_end)
        self._serving.close()

    def run(self) -> int:
        """Returns the exit status when the last worker is gone.

        Raises:
            BindError: an address is taken or not this machine's.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever ignores it is not told how its children ended
        signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD | server.SIGNALS)
        self._reserve()
        gc.collect()
        gc.freeze()  # a collection in a worker would write to every page that it shares
        while not self._ending or self._pids:
            self._start_due()
            told = signal.sigtimedwait(_TOLD, self._patience())
            if told is not None:
                self._hear(signal.Signals(told.si_signo))
            self._bury()
            self._end_stragglers()
        return self._status

    @property
    def _pids(self) -> list[int]:
        return [place.pid for place in self._places if place.pid]

    def _reserve(self) -> None:
        # Among sockets that share, the system would not object to a second gateway.
        for sock in bind(self._listen, listening=False):
            self._listen = Address(self._listen.host, sock.getsockname()[1])
            sock.close()
        for place in self._places:
            for sock in bind(self._admin_address(place)):
                sock.close()
        self._reserved = bind(self._listen, shared=True, listening=False)

    def _admin_address(self, place: Place) -> Address | None:
        first = self._admin_listen
        return first and first._replace(port=first.port and first.port + place.number)

    # -- starting --------------------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        self._begun = self._begun or bool(self._serving[0])
        now = time.monotonic()
        for place in self._places if self._begun else self._places[:1]:
            if not (place.pid or self._ending or place.due > now):
                self._start(place)

    def _start(self, place: Place) -> None:
        place.began = time.monotonic()
        self._serving[place.number] = 0
        try:
            self._fork(place)
        except (BindError, OSError) as error:  # an address, memory or a process too many; later there may be room
            if not self._begun:
                raise
            self._put_off(place, reason=str(error))

    def _fork(self, place: Place) -> None:
        with ExitStack() as opened:
            public = [opened.enter_context(sock) for sock in bind(self._listen, shared=True)]
            admin = [opened.enter_context(sock) for sock in bind(self._admin_address(place))]
            place.pid = os.fork()
            if not place.pid:
                self._become(place, public, admin)

    def _become(self, place: Place, public: list[socket.socket], admin: list[socket.socket]) -> NoReturn:
        status = 1
        try:
            os.close(self._own_end)
            for sock in self._reserved:
                sock.close()
            status = server.run(self._path, self._config, self._worker(place, public, admin))
        except BaseException:  # noqa: BLE001  # the parent's stack is not this process's to unwind
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)

    def _worker(self, place: Place, public: list[socket.socket], admin: list[socket.socket]) -> Worker:
        return Worker(
            number=place.number,
            restarts=place.restarts,
            public=public,
            admin=admin,
            lifeline=self._lifeline,
            siblings=Siblings(place.number, len(self._places), self._name),
            serving=lambda: self._serving.__setitem__(place.number, 1),
        )

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        if not (self._begun or self._ending):
            return STARTING
        now = time.monotonic()
        dues = [] if self._ending else [place.due for place in self._places if not place.pid]
        if self._deadline is not None:
            dues.append(self._deadline)
        return max(0.0, min(dues, default=now + FOR_EVER) - now)

    def _hear(self, told: signal.Signals) -> None:
        if told in (signal.SIGTERM, signal.SIGINT):
            self._end()
        elif told == signal.SIGHUP:
            self._reload()

    def _end(self) -> None:
        if self._ending:
            self._deadline = self._deadline or time.monotonic() + GRACE
        self._pass_on(server.AT_ONCE if self._ending else signal.SIGTERM)
        self._ending = True

    def _reload(self) -> None:
        try:
            self._config = load(self._path)
        except ConfigError:
            self._pass_on(signal.SIGHUP)  # the workers find and tell the same
            return
        log = self._config.log
        self._logger = logs.unthreaded(log.level, log.format, sys.stdout)
        self._pass_on(signal.SIGHUP)

    def _pass_on(self, number: signal.Signals) -> None:
        for pid in self._pids:
            os.kill(pid, number)  # one that is dead is there until it is buried

    def _end_stragglers(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._pass_on(signal.SIGKILL)
            self._deadline += GRACE

    # -- deaths ----------------------------------------------------------------------------------------------------

    def _bury(self) -> None:
        with suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                for place in [place for place in self._places if place.pid == end[0]]:
                    self._lose(place, os.waitstatus_to_exitcode(end[1]))

    def _lose(self, place: Place, status: int) -> None:
        pid, place.pid = place.pid, 0
        if not (self._begun or self._serving[0]):
            self._ending, self._status = True, max(status, 0) or int(status != 0)
        elif self._ending:
            self._status = self._status or int(status != 0)
        else:
            self._put_off(place, pid=pid, status=status)

    def _put_off(self, place: Place, **reason: object) -> None:
        now = time.monotonic()
        lived = now - place.began
        delay = place.backoff.delay(lived)
        place.due, place.restarts = now + delay, place.restarts + 1
        self._logger.error(
            "worker_died", worker=place.number, **reason, lived_s=round(lived, 1), restart_in_s=round(delay, 1)
        )
