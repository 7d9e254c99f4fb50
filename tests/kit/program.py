"""Real programs as subprocesses: the gateway by its command, nginx with the shipped configuration, aimock.

    async with Gateway(config) as gateway:      # `config` is config.yaml's text; addresses are filled in
        ...gateway.url, gateway.admin...        # leaving the block ends it and asserts a clean exit

- A program is ready when it says so, never after a sleep.
- A program is ended by its own process id: TERM, then KILL when it does not go within `STOP_SECONDS`.
- Its output is read all the time, so that a full pipe never slows it; the last `MAX_LINES` lines are kept.
- A missing program fails the test with the command that installs it.

This file does not know what the programs answer.
"""

import asyncio
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import msgspec
import pytest
import yaml

from tests.kit.nursery import Forked

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[\w.~-]+", re.ASCII)
"""What JSON writes as it is."""
SECRET = re.compile(r"^(api_)?key$|_key$|secret$|token$|password$")
"""Names of what is secret in a configuration or an environment."""
PASSWORD = re.compile(r"^[a-z+]+://[^:@/]*:([^@/]+)@")
"""The password of a URL."""
MIN_SECRET = 8
"""Characters: a shorter word may stand in a log for another reason."""
MAX_LINES = 100_000
MAX_LINE = 1 << 20
START_SECONDS = 20.0
STOP_SECONDS = 40.0

BELOW_EPHEMERAL = range(20_000, 32_000)
"""Ports that no outgoing connection is given meanwhile: a program that is started again needs its own again."""

_ports = itertools.cycle(random.SystemRandom().sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)))
_reserved: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, never the same twice, whatever other test runs ask meanwhile."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of `count` such ports in a row."""
    while True:
        first = next(_ports)
        if all(_reserve(port) for port in range(first, first + count)):
            return first


def _reserve(port: int) -> bool:
    # The port is free when a listener can have it; an abstract socket of its name reserves it until this process ends.
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0test-port-{port}")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    _reserved.append(reservation)
    return True


def find_program(name: str, package: str) -> str:
    """The path of a system program; fails the test with the command that installs it when there is none."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is missing; run: sudo apt-get install {package}")
    return path


def node() -> str:
    """The path of the Node that Playwright brings along; Debian's is too old for some packages."""
    from playwright._impl._driver import compute_driver_executable

    return str(compute_driver_executable()[0])


class Program:
    """A running program and what it said.

    Args:
        command: its argument vector.
        env: added to the environment.
        cwd: its working directory.

    Attributes:
        stdout, stderr: the lines so far of the current run.
        process: None before it was started.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
        self.command = list(command)
        self.env = dict(env or {})
        self.cwd = cwd
        self.stdout: deque[str] = deque(maxlen=MAX_LINES)
        self.stderr: deque[str] = deque(maxlen=MAX_LINES)
        self.process: asyncio.subprocess.Process | Forked | None = None
        self._awaited: dict[asyncio.Future[str], Callable[[str], bool]] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start, or start again, and return when it is ready. What an earlier run said is forgotten.

        Raises AssertionError with its output when it ends or stays silent.
        """
        self.stdout.clear()
        self.stderr.clear()
        self.process = await self.spawn()
        assert self.process.stdout
        assert self.process.stderr
        self._readers = [
            asyncio.create_task(self._keep(self.process.stdout, self.stdout)),
            asyncio.create_task(self._keep(self.process.stderr, self.stderr)),
        ]
        try:
            await self.ready()
        except BaseException:
            await self.kill()
            raise

    async def spawn(self) -> asyncio.subprocess.Process | Forked:
        """The new process."""
        return await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.cwd,
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=MAX_LINE,
        )

    async def ready(self) -> None:
        """Return when the program can be used; overridden by each."""

    async def _keep(self, stream: asyncio.StreamReader, lines: deque[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode("utf-8", "replace").rstrip("\n"))
            for awaited, matches in self._awaited.items():
                if not awaited.done() and matches(lines[-1]):
                    awaited.set_result(lines[-1])

    async def said(self, matches: Callable[[str], bool], what: str, timeout: float = START_SECONDS) -> str:
        """The first line, of the past or to come, that `matches`. Raises AssertionError with the output otherwise."""
        return next(filter(matches, [*self.stdout, *self.stderr]), None) or await self.says(matches, what, timeout)

    async def says(self, matches: Callable[[str], bool], what: str, timeout: float = START_SECONDS) -> str:
        """The first line to come that `matches`, from this call on. Raises AssertionError with the output otherwise."""
        awaited: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ended: asyncio.Future[Any] = asyncio.ensure_future(asyncio.wait(self._readers))
        self._awaited[awaited] = matches
        try:
            await asyncio.wait({awaited, ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if awaited.done():
                return str(awaited.result())
            why = f"ended without {what}" if ended.done() else f"did not say {what} in {timeout} s"
            raise AssertionError(f"{self.command[0]} {why}\n{self.output()}")
        finally:
            del self._awaited[awaited]
            ended.cancel()

    def output(self) -> str:
        """The last lines of both outputs, to read in a failure."""
        return "\n".join([*list(self.stdout)[-40:], *list(self.stderr)[-40:]])

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process."""
        assert self.process is not None
        self.process.send_signal(number)

    async def wait(self, timeout: float = STOP_SECONDS) -> int:
        """The exit status; a signal's number is negative. Raises TimeoutError when it goes on for `timeout` seconds."""
        assert self.process is not None
        status = await asyncio.wait_for(self.process.wait(), timeout)
        await asyncio.gather(*self._readers)
        return status

    async def stop(self, status: int | None = 0, timeout: float = STOP_SECONDS) -> None:
        """End it with TERM and assert its exit status (None: any); KILL, and fail, when it does not go in time."""
        if not self.running:
            return
        self.send_signal(signal.SIGTERM)
        try:
            ended = await self.wait(timeout)
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"{self.command[0]} ignored TERM for {timeout} s\n{self.output()}") from None
        assert status in {None, ended}, f"{self.command[0]} ended with {ended}\n{self.output()}"

    async def kill(self) -> None:
        """End it with KILL, as a crash would."""
        if self.running:
            self.send_signal(signal.SIGKILL)
        await self.wait()


async def curl(*arguments: str, timeout: float = 20, status: int = 0) -> list[tuple[float, str]]:
    """The lines that curl prints, each with the loop time of its arrival; `-sSN` is given. Asserts the exit status."""
    process = await asyncio.create_subprocess_exec(
        find_program("curl", "curl"), "-sSN", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    lines: list[tuple[float, str]] = []
    async with asyncio.timeout(timeout):
        while line := await process.stdout.readline():
            lines.append((asyncio.get_running_loop().time(), line.decode().rstrip("\r\n")))
        ended = await process.wait()
    assert ended == status, lines
    return lines


class Gateway(Program):
    """`gateway serve` with a configuration.

    Args:
        config: config.yaml as text or as a mapping. `server.listen` and `server.admin_listen` are set to free ports
            where it does not say them, `log.format` to json, `server.drain` to 2s.
        directory: where the file is written.
        env: added to the environment.

    Attributes:
        url, admin: of the two listeners, without a slash at the end.
        config_path: the file; write to it and send HUP to reload.
    """

    def __init__(
        self, config: str | Mapping[str, Any], directory: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        self.config_path = directory / "config.yaml"
        super().__init__(
            [str(Path(sys.executable).with_name("gateway")), "serve", "-c", str(self.config_path)],
            env={"PYTHONUNBUFFERED": "1"} | dict(env or {}),
            cwd=directory,
        )
        self._forkable = None if env or "COVERAGE_PROCESS_CONFIG" in os.environ else list(self.command)
        self.config = _filled_in(yaml.safe_load(config) if isinstance(config, str) else dict(config))
        self.url = f"http://{self.config['server']['listen']}"
        self.admin = f"http://{self.config['server']['admin_listen']}"

    async def __aexit__(self, *raised: object) -> None:
        await super().__aexit__(*raised)
        # Once, at the end: to look at every line as it comes cost more than the tests.
        if not any(raised):
            assert (leaked := self.leaked()) == [], f"the log has secrets of the configuration: {leaked}"

    def leaked(self) -> list[str]:
        """The keys, tokens and secrets of its configuration and environment that it wrote into its log."""
        said = "\n".join([*self.stdout, *self.stderr])
        secrets = [
            value for name, value in self.env.items() if SECRET.search(name.lower()) and len(value) >= MIN_SECRET
        ]
        return [secret for secret in {*secrets, *secrets_of(self.config)} if secret in said]

    async def start(self) -> None:
        """Write the configuration, start, and return when it serves."""
        self.write_config(self.config)
        await super().start()

    async def spawn(self) -> asyncio.subprocess.Process | Forked:
        """The new process: a fork, unless it has variables of its own or a shell around it, or coverage is measured."""
        if self.command != self._forkable:
            return await super().spawn()
        return await Forked.start(["gateway", *self.command[1:]], self.cwd, MAX_LINE)

    async def ready(self) -> None:
        """Return when it logged that it serves."""
        await self.logged("serving", timeout=START_SECONDS)

    def write_config(self, config: Mapping[str, Any] | str) -> None:
        """Replace the file, in one step, by a mapping (the addresses stay) or by a text as it stands."""
        text = config if isinstance(config, str) else yaml.safe_dump(self._with_addresses(config), allow_unicode=True)
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.config_path)

    def _with_addresses(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config) | {"server": self.config["server"] | dict(config.get("server", {}))}

    async def logged(self, event: str, timeout: float = 10, **fields: Any) -> dict[str, Any]:
        """The first log line, of the past or to come, with this event and these fields."""
        line = await self.said(_matcher(event, fields), f"a log line {event} {fields}", timeout)
        return _entry(line)

    async def reload(self, config: Mapping[str, Any] | str | None = None, event: str = "reloaded") -> dict[str, Any]:
        """Write this configuration, send HUP, and return what is logged then: "reload_failed" if told so."""
        if config is not None:
            self.write_config(config)
        self.send_signal(signal.SIGHUP)
        return _entry(await self.says(_matcher(event, {}), f"a log line {event}"))

    def log_lines(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Every log line so far, which must be JSON; or those of one event, with these fields."""
        said = [line for line in [*self.stdout, *self.stderr] if line]
        if event is None:
            return [msgspec.json.decode(line, type=dict[str, Any]) for line in said]
        return [_entry(line) for line in filter(_matcher(event, fields), said)]


def secrets_of(config: Mapping[str, Any]) -> set[str]:
    """What is secret in a configuration: keys and the like, where nothing else of it says the same."""
    secrets: set[str] = set()
    others: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for inner, part in value.items():
                others.append(str(inner))
                walk(part, str(inner))
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part, name)
        elif isinstance(value, str) and (password := PASSWORD.search(value)) and len(password[1]) >= MIN_SECRET:
            secrets.update({password[1], unquote(password[1])})
        elif isinstance(value, str) and SECRET.search(name) and len(value) >= MIN_SECRET and "$" not in value:
            secrets.add(value)
        else:
            others.append(str(value))

    walk(config, "")
    rest = "\n".join(others)
    return {secret for secret in secrets if secret not in rest}


def _filled_in(config: dict[str, Any]) -> dict[str, Any]:
    server = {"listen": f"127.0.0.1:{free_port()}", "admin_listen": f"127.0.0.1:{free_port()}", "drain": "2s"}
    return config | {"server": server | config.get("server", {}), "log": {"format": "json"} | config.get("log", {})}


def _matcher(event: str, fields: Mapping[str, Any]) -> Callable[[str], bool]:
    wanted = {"event": event, **fields}
    # Most lines are told apart by a name or an id, without being parsed.
    names = [value for value in wanted.values() if isinstance(value, str) and NAME.fullmatch(value)]
    return lambda line: all(name in line for name in names) and wanted.items() <= _entry(line).items()


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return entry if isinstance(entry, dict) else {}


class Nginx(Program):
    """nginx with `nginx/gateway.conf` in front of an address, over TLS and HTTP/2, with a throw-away certificate.

    Args:
        upstream: `host:port` of the gateway.
        directory: for its files.

    Attributes:
        url: https, without a slash at the end.
        plain_url: of the port that redirects.
        certificate: path of the certificate, which is its own authority.
        access_log, error_log: paths.
    """

    def __init__(self, upstream: str, directory: Path) -> None:
        self.certificate, self._key = throwaway_certificate(directory)
        self.access_log = directory / "access.log"
        self.error_log = directory / "error.log"
        self._directory = directory
        self._upstream = upstream
        port, plain_port = free_port(), free_port()
        self.url, self.plain_url = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{plain_port}"
        (directory / "gateway.conf").write_text(self._edited(port, plain_port), encoding="utf-8")
        conf = directory / "nginx.conf"
        conf.write_text(self._main(), encoding="utf-8")
        super().__init__([find_program("nginx", "nginx"), "-p", str(directory), "-c", str(conf)], cwd=directory)

    def _edited(self, port: int, plain_port: int) -> str:
        text = (ROOT / "nginx" / "gateway.conf").read_text(encoding="utf-8")
        edits = {
            "server 127.0.0.1:8080 ": f"server {self._upstream} ",
            "listen 80;": f"listen 127.0.0.1:{plain_port};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
            "server_name chat.example.com;": "server_name localhost;",
            "/etc/ssl/certs/chat.example.com.pem": str(self.certificate),
            "/etc/ssl/private/chat.example.com.key": str(self._key),
            "/var/log/nginx/gateway.log": str(self.access_log),
            "/var/log/nginx/gateway.error.log": str(self.error_log),
        }
        for shipped, here in edits.items():
            assert shipped in text, f"nginx/gateway.conf no longer says {shipped!r}"
            text = text.replace(shipped, here)
        return text

    def _main(self) -> str:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"  {kind}_temp_path {self._directory}/{kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""  # its workers could not enter the directory otherwise
        return (
            f"{user}daemon off;\nworker_processes 1;\nerror_log stderr notice;\npid {self._directory}/nginx.pid;\n"
            f"events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n{paths}  include gateway.conf;\n}}\n"
        )

    async def ready(self) -> None:
        """Return when its worker runs; the listeners are open before that."""
        await self.said(lambda line: "start worker process " in line, "that a worker started")


def throwaway_certificate(directory: Path, name: str = "localhost") -> tuple[Path, Path]:
    """A certificate of its own authority for `name` and 127.0.0.1, and its key, valid for two days."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = [
        find_program("openssl", "openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return certificate, key


class AIMock(Program):
    """aimock, which speaks OpenAI's, Anthropic's and Ollama's dialects from one file of answers.

    It runs on the Node that comes with Playwright, because Debian's may be too old for it.

    Args:
        answers: its fixture file.
        latency: milliseconds between pieces.
        piece: characters of a piece.

    Attributes:
        url: scheme, address and port; `/v1` is OpenAI's and Anthropic's base, `/api` Ollama's.
    """

    def __init__(self, answers: Path, *, latency: int = 5, piece: int = 5) -> None:
        script = ROOT / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
        if not script.exists():
            pytest.fail("aimock is missing; run: npm ci")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = {"-p": port, "-f": answers, "-l": latency, "-c": piece, "--log-level": "info"}
        flat = [str(item) for pair in options.items() for item in pair]
        super().__init__([node(), str(script), *flat, "--strict"])

    async def ready(self) -> None:
        """Return when it said that it listens."""
        await self.said(lambda line: "listening on" in line, "that it listens")
