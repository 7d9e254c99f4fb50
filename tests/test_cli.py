"""The command line: what each command prints and with which status it ends."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.cli import main
from tests.kit.program import free_port

GATEWAY = str(Path(sys.executable).with_name("gateway"))
GOOD = """
auth: {anonymous: true}
upstreams: {main: {dialect: openai, targets: [{url: "http://127.0.0.1:9/v1"}]}}
routes: [{path: /chat, api: chat, upstream: main}]
"""
BAD = """\
auth: {anonymous: maybe}
upstreams: {main: {dialect: openai, targets: [{url: "http://127.0.0.1:9/v1"}]}}
routes: [{path: /chat, api: chat, upstream: mian}]
"""


Run = Callable[..., tuple[int, str, str]]


def run(*arguments: str, cwd: Path, command: tuple[str, ...] = (GATEWAY,)) -> tuple[int, str, str]:
    """Status, stdout and stderr of the real program."""
    done = subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, timeout=30)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Status, stdout and stderr of a command that needs no process of its own."""

    def run_here(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run_here


# -- check ---------------------------------------------------------------------------------------------------------


def test_check_says_ok_of_a_good_file(command: Run) -> None:
    assert command("check") == (0, "ok\n", "")


def test_check_prints_every_error_with_its_line(command: Run) -> None:
    status, out, err = command("check", "-c", "bad.yaml")
    assert (status, err) == (1, "")
    first, second = out.splitlines()
    assert first.startswith("bad.yaml:1: auth.anonymous: ")
    assert second.startswith("bad.yaml:3: routes[0].upstream: ")
    assert "main" in second


def test_check_takes_the_file_with_and_without_an_option(command: Run) -> None:
    assert command("check", "bad.yaml") == command("check", "-c", "bad.yaml")
    assert command("check", "config.yaml") == (0, "ok\n", "")


def test_check_prints_warnings_and_is_content(folder: Path, command: Run) -> None:
    (folder / "doubtful.yaml").write_text(GOOD.replace("/v1", "/v1/chat/completions"))
    status, out, err = command("check", "doubtful.yaml")
    assert (status, err) == (0, "")
    warning, last = out.splitlines()
    assert warning.startswith("doubtful.yaml:3: upstreams.main.targets[0].url: warning: ")
    assert last == "ok"


def test_check_asks_every_target(folder: Path, command: Run) -> None:
    (folder / "demo.yaml").write_text(GOOD.replace("http://127.0.0.1:9/v1", "demo:"))
    status, out, err = command("check", "demo.yaml", "--ask")
    assert (status, err) == (0, "")
    assert out.startswith("upstreams.main.targets[0]: demo:: ok: status 200, has 1 model: demo; ")
    # Nobody listens there.
    status, out, err = command("check", "--ask")
    assert (status, err) == (1, "")
    assert out.startswith("upstreams.main.targets[0]: http://127.0.0.1:9/v1: cannot serve: no answer, ")
    assert out.count("\n") == 1


def test_check_asks_the_store_that_is_shared(folder: Path, command: Run) -> None:
    store = "store: {url: 'redis://:pw-4711@127.0.0.1:9', adopt: false}\n"
    (folder / "shared.yaml").write_text(GOOD.replace("http://127.0.0.1:9/v1", "demo:") + store)
    status, out, err = command("check", "shared.yaml", "--ask")
    assert (status, err) == (1, "")
    assert "store: cannot serve: nothing listens at the address of store.url" in out.splitlines()


def test_check_asks_nobody_where_the_file_is_wrong(command: Run) -> None:
    assert command("check", "--ask", "bad.yaml") == command("check", "bad.yaml")


def test_version_is_printed(command: Run) -> None:
    assert command("--version") == (0, f"gateway {version('sse-gateway')}\n", "")


def test_check_of_a_missing_file_is_an_error_not_a_traceback(command: Run) -> None:
    status, out, err = command("check", "-c", "nowhere.yaml")
    assert (status, err) == (1, "")
    assert out.startswith("nowhere.yaml:1: ")


@pytest.mark.parametrize("order", ["-c bad.yaml check", "check -c bad.yaml", "check --config=bad.yaml"])
def test_config_may_stand_before_and_after_the_command(command: Run, order: str) -> None:
    assert command(*order.split())[0] == 1


def test_shipped_config_is_good(command: Run) -> None:
    shipped = Path(__file__).resolve().parents[1] / "config.yaml"
    assert command("check", "-c", str(shipped)) == (0, "ok\n", "")


# -- schema --------------------------------------------------------------------------------------------------------


def test_schema_accepts_what_check_accepts_and_refuses_what_it_refuses(command: Run) -> None:
    status, out, _ = command("schema")
    validator = jsonschema.Draft202012Validator(json.loads(out))
    assert status == 0
    assert list(validator.iter_errors(yaml.safe_load(GOOD))) == []
    assert list(validator.iter_errors(yaml.safe_load(BAD)))


# -- hash ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["secret", "secret\n", "secret\r\n", "  spaced  \n", "密钥\n"])
def test_hash_prints_the_digest_for_the_config(command: Run, line: str) -> None:
    expected = hashlib.sha256(line.rstrip("\r\n").encode()).hexdigest()
    assert command("hash", stdin=line.encode()) == (0, f"{expected}\n", "")


@pytest.mark.parametrize("line", [b"", b"\n", b"x" * 100_000 + b"\n", b"\xff\xfe\n"])
def test_hash_of_no_key_is_bad_usage(command: Run, line: bytes) -> None:
    status, out, err = command("hash", stdin=line)
    assert (status, out) == (2, "")
    assert err.startswith("gateway hash: ")
    assert "Traceback" not in err


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("dance",), ("serve", "--fast"), ("check", "-c"), ("serve", "extra")])
def test_bad_usage_ends_with_two(command: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert "usage: gateway" in err


def test_help_names_every_command(command: Run) -> None:
    status, out, _ = command("--help")
    assert status == 0
    assert all(command in out for command in ("serve", "check", "schema", "hash"))


# -- serve ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("-c", "bad.yaml"), ("-c", "bad.yaml", "serve")])
def test_serve_with_a_bad_config_ends_with_one(folder: Path, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments, cwd=folder)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 2


def test_module_is_the_same_program(folder: Path) -> None:
    module = (sys.executable, "-m", "gateway")
    assert run("check", cwd=folder, command=module) == (0, "ok\n", "")


@pytest.mark.parametrize("listener", ["listen", "admin_listen"])
async def test_serve_on_a_taken_address_ends_with_three(folder: Path, listener: str) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    addresses = {"listen": f"127.0.0.1:{free_port()}", "admin_listen": None}
    addresses[listener] = f"127.0.0.1:{taken.sockets[0].getsockname()[1]}"
    (folder / "config.yaml").write_text(f"server: {json.dumps(addresses)}\n{GOOD}")
    status, _, err = await asyncio.to_thread(run, "serve", cwd=folder)
    assert status == 3
    assert err == f"cannot listen on {addresses[listener]}: Address already in use\n"
    taken.close()
    await taken.wait_closed()


@pytest.mark.parametrize("address", ["192.0.2.1:8080", "[2001:db8::1]:80"])
def test_serve_on_an_address_of_another_machine_ends_with_three(folder: Path, address: str) -> None:
    (folder / "config.yaml").write_text(f'server: {{listen: "{address}", admin_listen: null}}\n{GOOD}')
    status, _, err = run("serve", cwd=folder)
    assert status == 3
    assert err.startswith(f"cannot listen on {address}: ")


def test_schema_stops_quietly_when_its_reader_has_seen_enough() -> None:
    shell = f"set -o pipefail; '{GATEWAY}' schema | head -c 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=20, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"{", b"", 0)
