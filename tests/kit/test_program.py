"""Programs are started when ready, read without end, and ended by their own id."""

import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.kit import program
from tests.kit.program import Gateway, Program, find_program, free_port, secrets_of, throwaway_certificate

CHATTY = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({}))
{}
print('up', flush=True)
time.sleep(60)
"""


class Chatty(Program):
    async def ready(self) -> None:
        await self.said(lambda line: line == "up", "up")


def python(status: int = 0, before: str = "") -> Chatty:
    return Chatty([sys.executable, "-c", CHATTY.format(status, before)])


async def test_program_is_ready_when_it_says_so_and_is_ended_in_order() -> None:
    async with python() as program:
        assert list(program.stdout) == ["up"]
    assert not program.running


async def test_program_that_fills_its_pipe_is_read() -> None:
    async with python(before="print('x' * 999 + '\\n' * 9999, flush=True)") as program:
        assert len(program.stdout) == 10001


async def test_program_with_a_bad_exit_status_fails_its_test() -> None:
    program = python(status=3)
    await program.start()
    with pytest.raises(AssertionError, match="ended with 3"):
        await program.stop()


async def test_program_that_ends_before_it_is_ready_fails_with_its_output() -> None:
    with pytest.raises(AssertionError, match="ended without up\nno such thing"):
        await Chatty([sys.executable, "-c", "print('no such thing')"]).start()


async def test_program_that_ignores_term_is_killed() -> None:
    program = python(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    await program.start()
    with pytest.raises(AssertionError, match="ignored TERM"):
        await program.stop(timeout=0.2)
    assert await program.wait() == -signal.SIGKILL


def test_missing_program_fails_with_the_command_that_installs_it() -> None:
    with pytest.raises(pytest.fail.Exception, match="sudo apt-get install no-such-package"):
        find_program("no-such-program", "no-such-package")


def test_free_ports_differ() -> None:
    assert len({free_port() for _ in range(50)}) == 50


def test_port_that_another_process_was_given_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free, given = 20_000, 31_999
    with socket.socket(socket.AF_UNIX) as reservation:
        reservation.bind(f"\0test-port-{given}")
        monkeypatch.setattr(program, "_ports", iter([given, *range(free, given)]))
        assert free_port() in range(free, given)


def test_certificate_can_be_made_in_an_empty_directory(tmp_path: Path) -> None:
    certificate, key = throwaway_certificate(tmp_path)
    assert certificate.read_text().startswith("-----BEGIN CERTIFICATE")
    assert "PRIVATE KEY" in key.read_text()


def test_secrets_of_a_configuration_are_found() -> None:
    keys = [
        {"id": name, "key": key} for name, key in (("web", "key-of-the-web"), ("a", "a"), ("a-namesake", "a-namesake"))
    ]
    upstream = {"api_key": "sk-of-the-provider", "targets": [{"url": "http://127.0.0.1:1"}]}
    config = {"auth": {"keys": keys}, "upstreams": {"main": upstream, "more": {"api_key": "${API_KEY}"}}}
    assert secrets_of(config) == {"key-of-the-web", "sk-of-the-provider"}
    store = {"url": "redis://gateway:pass%2Fword@127.0.0.1/0"}
    assert secrets_of({"store": store}) == {"pass%2Fword", "pass/word"}


async def test_gateway_that_logs_a_secret_of_its_configuration_is_found_out(tmp_path: Path) -> None:
    gateway = Gateway({"auth": {"keys": [{"id": "web", "key": "key-of-the-web"}]}}, tmp_path)
    assert gateway.leaked() == []
    gateway.stdout.append('{"event": "request", "what": "key-of-the-web"}')
    assert gateway.leaked() == ["key-of-the-web"]
    with pytest.raises(AssertionError, match="secrets of the configuration"):
        await gateway.__aexit__(None)
