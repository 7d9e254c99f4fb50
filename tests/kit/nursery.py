"""Gateways that need not load the program: each is forked from one process that has loaded it already.

Starting Python and loading the program takes most of a second of CPU, and the tests start hundreds of gateways. The
fork runs the same command in the same way. A gateway with variables of its own is started for real: libraries read some
of them while they load.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["gateway.cli", "gateway.process.server"])


def _serve(arguments: Sequence[str], directory: Path, outputs: tuple[Connection, Connection]) -> None:
    for number, output in enumerate(outputs, start=1):
        os.dup2(output.fileno(), number)
        output.close()
    os.chdir(directory)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = list(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    from gateway.cli import main

    sys.exit(main(arguments[1:]))


class Forked:
    """A gateway that was forked; with what the tests use of `asyncio.subprocess.Process`.

    Attributes:
        pid: its process id.
        stdout, stderr: what it writes.
    """

    def __init__(self, process: ForkServerProcess, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.stdout = stdout
        self.stderr = stderr
        self._process = process

    @classmethod
    async def start(cls, arguments: Sequence[str], directory: Path, limit: int) -> "Forked":
        """A gateway with this argument vector, the program's name first, in this directory."""
        pipes = [_context.Pipe(duplex=False) for _ in range(2)]
        process = _context.Process(target=_serve, args=(arguments, directory, tuple(end for _, end in pipes)))
        process.start()
        readers = []
        for ours, theirs in pipes:
            theirs.close()
            reader = asyncio.StreamReader(limit)
            pipe = os.fdopen(os.dup(ours.fileno()), "rb", buffering=0)
            ours.close()
            await asyncio.get_running_loop().connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                pipe,
            )
            readers.append(reader)
        return cls(process, *readers)

    @property
    def returncode(self) -> int | None:
        """Its exit status, a signal's number negative; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Signals it, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode
