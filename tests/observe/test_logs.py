"""Logs: what reaches the stream, what never does, and that a dead stream hurts nobody."""

import asyncio
import io
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from gateway.observe import logs
from gateway.observe.logs import MAX_LINE, MAX_TEXT, Bridge, Output


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, Bridge)]:
        root.removeHandler(handler)
        handler.output.close()
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(say: Callable[[Any], object], level: str = "info") -> list[dict[str, Any]]:
    """What is written while `say` logs."""
    stream = io.BytesIO()
    output = logs.configure(level, "json", stream)
    say(structlog.get_logger())
    output.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def line(say: Callable[[Any], object]) -> dict[str, Any]:
    (only,) = lines(say)
    return only


# --- what a line is


def test_reader_finds_time_level_and_event_first() -> None:
    written = line(lambda log: log.info("stream_end", tokens=3, answer="好"))
    assert list(written) == ["ts", "level", "event", "tokens", "answer"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written["ts"])
    assert (written["level"], written["event"], written["tokens"], written["answer"]) == ("info", "stream_end", 3, "好")


def test_line_carries_the_context_of_its_request() -> None:
    structlog.contextvars.bind_contextvars(request_id="r1")
    assert line(lambda log: log.warning("x"))["request_id"] == "r1"


def test_level_keeps_lesser_lines_out() -> None:
    written = lines(lambda log: (log.debug("a"), log.info("b"), log.error("c")), "warning")
    assert [entry["event"] for entry in written] == ["c"]


def test_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: debug, info"):
        logs.configure("loud", "json", None)


def test_line_tells_an_exception_with_its_traceback() -> None:
    def fail(log: Any) -> None:
        try:
            raise RuntimeError("broke")
        except RuntimeError:
            log.exception("failed")

    written = line(fail)
    assert written["level"] == "error"
    assert written["exception"].endswith("RuntimeError: broke")


@pytest.mark.parametrize("value", [object(), "\ud800", 1 << 80, {(1, 2): 3}, b"\xff", float("nan")])
def test_line_holds_whatever_it_is_given(value: Any) -> None:
    assert line(lambda log: log.info("x", value=value))["event"] == "x"


def test_standard_library_ends_in_the_same_stream() -> None:
    def say(log: Any) -> None:
        logging.getLogger("asyncio").warning("took %s s", 3)
        logging.getLogger("aiohttp.server").info("bye")

    told = [(entry["level"], entry["event"], entry["logger"]) for entry in lines(say)]
    assert told == [("warning", "took 3 s", "asyncio"), ("info", "bye", "aiohttp.server")]


def test_access_log_of_the_server_is_off() -> None:
    assert lines(lambda log: logging.getLogger("aiohttp.access").info("GET /?token=abc")) == []


def test_console_shows_a_line_without_its_control_characters() -> None:
    stream = io.StringIO()
    output = logs.configure("info", "console", stream)
    structlog.get_logger().info("request", path="/\x1b[2J\n", token="abc")
    output.close()
    assert "request" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert "abc" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


# --- secrets


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": "Bearer s3cret"},
        {"Cookie": "gateway_token=s3cret"},
        {"headers": {"X-Api-Key": "s3cret", "n": [{"password": "s3cret"}]}},
        {"url": "http://h/p?token=s3cret&x=1"},
        {"path": "/api/chat?message=s3cret"},
        {"store": "redis://user:s3cret@host/0"},
        {"error": "GET /a?x=1&api_key=s3cret failed"},
        {"detail": "sent authorization: Bearer s3cret"},
    ],
)
def test_secret_never_reaches_the_stream(fields: dict[str, Any]) -> None:
    written = json.dumps(line(lambda log: log.info("x", **fields)))
    assert "s3cret" not in written
    assert "***" in written


def test_secret_in_an_exception_never_reaches_the_stream() -> None:
    def fail(log: Any) -> None:
        try:
            raise ValueError("bad url http://h/?ticket=s3cret")
        except ValueError:
            log.exception("failed")

    assert "s3cret" not in json.dumps(line(fail))


def test_redaction_leaves_the_rest_alone() -> None:
    fields = {"input_tokens": 3, "path": "/a/b", "key_id": "web", "event": "stream_end", "bytes": 12, "ok": True}
    assert logs.redact(None, "", dict(fields)) == fields


def test_long_text_is_shortened_and_no_secret_at_the_cut_is_shown() -> None:
    """H10: a line is written, whatever somebody calls his model."""
    cut = MAX_TEXT // 2
    text = "x" * (cut - 8) + " Bearer " + "secret" * 50 + " " + "y" * 70_000
    said = logs.redact(None, "", {"detail": text, "url": text, "list": [{"a": text}], "exception": text})
    assert len(json.dumps(said)) < MAX_LINE
    assert "secret" not in json.dumps(said)
    assert said["detail"].startswith("xxx")
    assert said["detail"].endswith("yyy")
    assert logs.redact(None, "", {"detail": "z" * MAX_TEXT})["detail"] == "z" * MAX_TEXT


def test_redaction_of_a_bottomless_value_ends() -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    assert "***" in json.dumps(logs.redact(None, "", circle))


# --- streams that are closed, full or stuck


def test_closed_stream_costs_only_the_lines() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        output = Output(stream)
        output.write(b"a\n")
        output.close()
    assert output.dropped == 1


def test_stream_that_never_was_costs_only_the_lines() -> None:
    output = logs.configure("info", "json", None)
    structlog.get_logger().info("x")
    output.close()
    assert output.dropped == 1


def test_full_disk_costs_only_the_lines() -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        output = Output(stream)
        output.write(b"a\n")
        output.close()
    assert output.dropped == 1


async def test_stuck_stream_does_not_hold_the_loop() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as stream:
        output = Output(stream, max_queued=1 << 20)
        beats = asyncio.create_task(count_beats(50))
        for _ in range(200):
            output.write(b"x" * 9999 + b"\n")
        assert await asyncio.wait_for(beats, 5) == 50
        dropped = output.dropped
        received = await asyncio.to_thread(drain, reading, 10_000 * (200 - dropped))
        output.close()
    assert 90 <= dropped <= 100
    assert received == 10_000 * (200 - dropped)


async def count_beats(count: int) -> int:
    for _ in range(count):
        await asyncio.sleep(0)
    return count


def drain(descriptor: int, size: int) -> int:
    received = 0
    while received < size:
        received += len(os.read(descriptor, 1 << 16))
    os.close(descriptor)
    return received


def test_non_blocking_stream_gets_every_line() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        output = Output(stream)
        for _ in range(100):
            output.write(b"x" * 9999 + b"\n")
        assert drain(reading, 1_000_000) == 1_000_000
        output.close()
    assert output.dropped == 0


def test_endless_line_is_dropped() -> None:
    stream = io.BytesIO()
    output = Output(stream)
    output.write(b"x" * (MAX_LINE + 1))
    output.write(b"short\n")
    output.close()
    assert (output.dropped, stream.getvalue()) == (1, b"short\n")


def test_closed_output_takes_nothing_more() -> None:
    stream = io.BytesIO()
    output = Output(stream)
    output.close()
    output.write(b"late\n")
    assert (output.dropped, stream.getvalue()) == (1, b"")


def test_many_threads_lose_and_mix_nothing() -> None:
    stream = io.BytesIO()
    output = Output(stream)

    def write(name: int) -> None:
        for _ in range(200):
            output.write(b"%d\n" % name * 3)

    threads = [threading.Thread(target=write, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.close()
    assert sorted(stream.getvalue().split(b"\n")) == sorted(
        [b"", *(b"%d" % name for name in range(4) for _ in range(600))]
    )


class Writes(io.BytesIO):
    """A stream that remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[bytes] = []

    def write(self, data: Any) -> int:
        self.each.append(bytes(data))
        return len(data)


def test_processes_that_share_a_pipe_do_not_tear_each_others_lines() -> None:
    stream = Writes()
    output = Output(stream)
    for number in range(2000):
        output.write(b"%0100d\n" % number)
    output.close()
    assert all(len(written) <= select.PIPE_BUF and written.endswith(b"\n") for written in stream.each)
    assert b"".join(stream.each) == b"".join(b"%0100d\n" % number for number in range(2000))


# --- without a thread


def test_process_that_forks_logs_without_a_thread() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        before = threading.active_count()
        log = logs.unthreaded("warning", "json", stream)
        log.info("quiet")
        log.error("worker_died", status=-9)
        assert threading.active_count() == before
        written = json.loads(os.read(reading, 4096))
    os.close(reading)
    assert (written["level"], written["event"], written["status"]) == ("error", "worker_died", -9)


@pytest.mark.parametrize("name", ["/dev/full", None])
def test_process_that_forks_logs_to_a_broken_stream_or_none(name: str | None) -> None:
    with open(name or os.devnull, "wb", buffering=0) as stream:
        logs.unthreaded("info", "json", stream if name else None).info("x")


def test_process_that_forks_does_not_wait_for_a_full_pipe() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream:
        log = logs.unthreaded("info", "json", stream)
        for _ in range(1000):
            log.info("x", text="x" * 1000)
        received = os.read(reading, 1 << 20)
    os.close(reading)
    assert all(json.loads(line)["event"] == "x" for line in received.splitlines())


# --- reload and exit


def test_reload_changes_the_level_of_loggers_that_exist() -> None:
    stream = io.BytesIO()
    first = logs.configure("error", "json", stream)
    log = structlog.get_logger()
    log.info("before")
    second = logs.configure("info", "json", stream)
    log.info("after")
    second.close()
    assert second is first
    assert [json.loads(entry)["event"] for entry in stream.getvalue().splitlines()] == ["after"]


SAY = """
import sys, structlog
from gateway.observe import logs
logs.configure("info", "json", sys.stdout)
for number in range({count}):
    structlog.get_logger().info("line", number=number)
"""


def test_program_writes_its_last_lines_before_it_ends() -> None:
    done = subprocess.run([sys.executable, "-c", SAY.format(count=500)], capture_output=True, timeout=20, check=True)
    assert [json.loads(entry)["number"] for entry in done.stdout.splitlines()] == list(range(500))
    assert done.stderr == b""


def test_program_ends_although_nobody_reads() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAY.format(count=5000)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.wait(20) == 0
        assert program.stderr is not None
        assert program.stderr.read() == b""


def test_program_runs_without_a_stdout() -> None:
    command = 'exec "$0" -c "$1" >&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, SAY.format(count=5)], capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
