"""The programs that are measured: how each is configured, started, recognised as ready, and ended.

- A program is ready when it has relayed the first event of a stream.
- It is ended by its own process ids: TERM, TERM again for those that drain, then KILL for it and its descendants.
- It is started afresh for every measurement, so that no figure carries what an earlier scenario left behind.
- What it says goes to a file of the bench's directory, whose end is shown when it does not start.

This file does not know what is measured.
"""

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Final

from bench.client import KEY, StreamError, exchange, request
from bench.marks import Pace
from bench.measure import family

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "out"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = (0.5, 4.0)
"""How long to wait after the first TERM and after the second."""
RETRY_SECONDS: Final = 0.05

Find = Callable[[], str | None]
Command = Callable[[str, Path, int], list[str]]


class ProgramError(Exception):
    """A program did not start."""


def raise_files() -> int:
    """How many files this process and what it starts may open from now on: as many as the system grants."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Program:
    """One way to relay a stream.

    Attributes:
        name: as the report calls it.
        features: what it does beside relaying, for the report.
        template: the name of its configuration's template; "" for none.
        find: the path of its executable, None where it is not installed.
        command: its arguments, from the executable, its configuration and its port.
        version: arguments that make the executable print its version.
        settings: further values for the template.
        heartbeat: seconds after which it says something on a quiet stream, None where it never does.
        environment: added to the bench's own.
        store: whether it shares a Redis, which is started with it, with a second process of its own.
    """

    name: str
    features: str
    template: str
    find: Find
    command: Command
    version: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    heartbeat: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    store: bool = False

    def describe(self) -> str:
        """Its version, as it tells it."""
        executable = self.find()
        assert executable is not None
        told = subprocess.run([executable, *self.version], capture_output=True, text=True, check=False)
        line = (told.stdout + told.stderr).strip().splitlines()[0]
        return " ".join(line.replace(executable, self.name).split())

    def configure(self, port: int, upstream: int, admin: int, store: str = "memory") -> Path:
        """The file with its configuration for these ports, and for this store."""
        values = {"port": port, "upstream": upstream, "admin": admin, "key": KEY, "directory": OUT, "store": store}
        values["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        text = Template((HERE / self.template).read_text()).substitute(values | dict(self.settings))
        path = OUT / f"{self.template.removesuffix('.conf.in')}-{port}.yaml"
        path.write_text(text)
        return path


def _on_path(name: str) -> Find:
    return lambda: shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _find_envoy() -> str | None:
    installed = OUT / "envoy/envoy/_bin/envoy"
    return str(installed) if installed.exists() else _on_path("envoy")()


def _find_litellm() -> str | None:
    installed = OUT / "litellm/bin/litellm"
    return str(installed) if installed.exists() else None


def _gateway(name: str, features: str, *, heartbeat: int = 15, interval: str = "auto", store: bool = False) -> Program:
    return Program(
        name,
        features,
        "gateway.conf.in",
        lambda: sys.executable if _REDIS() or not store else None,
        lambda python, config, _: [python, "-m", "gateway", "serve", "-c", str(config)],
        ("-c", _GATEWAY_VERSION),
        {"heartbeat": f"{heartbeat}s", "interval": interval},
        heartbeat,
        store=store,
    )


_REDIS: Final = _on_path("redis-server")
_GATEWAY_VERSION: Final = (
    "import platform\nfrom importlib.metadata import version as v\n"
    "print('gateway', v('sse-gateway'), 'on aiohttp', v('aiohttp') + ', uvloop', v('uvloop') + ', Python',"
    " platform.python_version())"
)
_ON: Final = "key, limits, metrics, resume ids, request log"

DIRECT: Final = Program("direct", "nothing between upstream and client", "", lambda: None, lambda *_: [], ())
NGINX: Final = Program(
    "nginx",
    "bare proxy: proxy_buffering off, keep-alive upstream, no access log, 1 worker",
    "nginx.conf.in",
    _on_path("nginx"),
    lambda nginx, config, _: [nginx, "-c", str(config), "-p", str(OUT)],
    ("-v",),
)
ENVOY: Final = Program(
    "Envoy",
    "bare proxy: no access log, 1 worker thread",
    "envoy.conf.in",
    _find_envoy,
    lambda envoy, config, _: [envoy, "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
    ("--version",),
)
GATEWAY: Final = _gateway("gateway", f"{_ON}; the default interval, auto")
GATEWAY_WINDOWS: Final = _gateway("gateway, interval 50ms", f"{_ON}; windows at any load", interval="50ms")
GATEWAY_HEARTBEAT: Final = _gateway("gateway, heartbeat 5s", f"{_ON}; heartbeats three times as often", heartbeat=5)
GATEWAY_SHARED: Final = _gateway("gateway, store on Redis", f"{_ON}; two nodes share a Redis", store=True)
LITELLM: Final = Program(
    "LiteLLM",
    "one key, no database, 1 worker",
    "litellm.conf.in",
    _find_litellm,
    lambda litellm, config, port: [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
    ("--version",),
    environment={"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was started here."""

    _process: asyncio.subprocess.Process

    @property
    def pids(self) -> list[int]:
        """Its own id and those of its descendants."""
        return family(self._process.pid)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def end(self) -> None:
        """Ends it and its descendants."""
        for patience in STOP_SECONDS:
            if await self._ends(patience):
                return
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()

    async def _ends(self, patience: float) -> bool:
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), patience)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def started(name: str, command: list[str], environment: Mapping[str, str]) -> AsyncIterator[Process]:
    """A process that is ended with the block; what it says is in `OUT`, in a file of this name."""
    environment = os.environ | environment
    with (OUT / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=HERE.parent, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    own = Process(process)
    try:
        yield own
    finally:
        await own.end()


@dataclass(frozen=True, slots=True)
class Stage:
    """A program that relays, ready for streams.

    Attributes:
        port, upstream_port: where they listen.
        admin_port: where the gateway tells of itself.
        program, upstream: the process ids; no program's for `DIRECT`.
        second: where a second process of the program listens that shares its store; its own port where there is none.
        store: the process ids of the Redis, none where there is none.
        store_port: where the Redis listens, 0 where there is none.
    """

    port: int
    upstream_port: int
    admin_port: int
    program: list[int]
    upstream: list[int]
    second: int = 0
    store: list[int] = field(default_factory=list)
    store_port: int = 0


@asynccontextmanager
async def paced_upstream() -> AsyncIterator[tuple[int, int]]:
    """The paced upstream's port and process id, ended with the block."""
    port = free_port()
    async with started("upstream", [sys.executable, "-m", "bench.upstream", str(port)], {}) as process:
        await _first_event(port, process, "upstream")
        yield port, process.pids[0]


@asynccontextmanager
async def stage(program: Program, port: int, pid: int) -> AsyncIterator[Stage]:
    """This program in front of the paced upstream with this port and process id, ended with the block.

    Raises:
        ProgramError: it did not relay a stream.
    """
    executable = program.find()
    if executable is None:
        yield Stage(port, port, 0, [], [pid])
        return
    if program.store:
        async with _shared(program, executable, port, pid) as shared:
            yield shared
        return
    async with _node(program, executable, port, "memory") as (own, admin, pids):
        yield Stage(own, port, admin, pids, [pid], second=own)


@asynccontextmanager
async def _shared(program: Program, executable: str, port: int, pid: int) -> AsyncIterator[Stage]:
    redis, address = _REDIS(), free_port()
    assert redis is not None, "it was found before"
    options = ["--port", str(address), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    async with started("redis", [redis, *options, "--maxmemory-policy", "noeviction"], {}) as process:
        store = f'{{url: "redis://127.0.0.1:{address}/0", secret: sixteen-letters-and-more}}'
        async with (
            _node(program, executable, port, store) as (own, admin, pids),
            _node(program, executable, port, store) as (second, _, _),
        ):
            yield Stage(own, port, admin, pids, [pid], second, process.pids, address)


@asynccontextmanager
async def _node(
    program: Program, executable: str, upstream: int, store: str
) -> AsyncIterator[tuple[int, int, list[int]]]:
    """One process of the program: its port, its admin port, its process ids."""
    own, admin = free_port(), free_port()
    command = program.command(executable, program.configure(own, upstream, admin, store), own)
    async with started(program.name, command, program.environment) as process:
        await _first_event(own, process, program.name)
        yield own, admin, process.pids


async def _first_event(port: int, process: Process, name: str) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await _relays(port):
                if not process.running:
                    raise ProgramError(f"{name} ended at once\n{_said(name)}")
                await asyncio.sleep(RETRY_SECONDS)
    except TimeoutError:
        raise ProgramError(f"{name} relayed nothing in {START_SECONDS:.0f} s\n{_said(name)}") from None


async def _relays(port: int) -> bool:
    try:
        await exchange(port, request("openai", Pace(1, 1).prompt))
    except (OSError, StreamError):
        return False
    return True


def _said(name: str) -> str:
    return (OUT / f"{name}.log").read_text(errors="replace")[-2000:]
