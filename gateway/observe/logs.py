"""Logs: one line for each thing worth knowing, as JSON or for a console, written so that serving never waits for it.

- Logging appends a line to a bounded queue, and one daemon thread writes. When nobody reads the lines, the disk is full
  or the stream is gone, lines are dropped and counted, and nothing else happens.
- `redact` is the last protection, not the first: no caller may log a credential, a prompt or an answer.
- The standard library's loggers (aiohttp, asyncio) write to the same stream through the same processors.

This file does not know what is worth a line.
"""

import atexit
import contextlib
import io
import logging
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import IO, Any, Final, Literal

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

LogFormat = Literal["json", "console"]
LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

MAX_QUEUED: Final = 4 * 1024 * 1024
"""Bytes of lines that may wait for the writer; about 10,000 lines."""
MAX_LINE: Final = 64 * 1024
"""Bytes of one line; a longer one is dropped."""
MAX_TEXT: Final = 4096
"""Characters of one text in a line: of a longer one the middle is left out, so that nobody can have a line dropped."""
MAX_TRACE: Final = 32 * 1024
"""The same of a traceback."""
GATHER: Final = 0.02
"""Seconds that the first line after a silence waits for others."""
FLUSH: Final = 1.0
"""Seconds that the program's end waits for the last lines."""


def configure(level: str, format: LogFormat, stream: IO[Any] | None) -> "Output":  # noqa: A002  # the config's word
    """Sends all logs of the process to `stream` from now on, in place of any earlier call.

    Args:
        level: the least level that is written, a key of `LEVELS`.
        format: `json`, one object a line with `ts`, `level` and `event` first; or `console`, for people.
        stream: text or binary; None drops all lines (`sys.stdout` is None if it was closed before the start).

    Raises:
        ValueError: no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; allowed: {', '.join(LEVELS)}")
    output = _route_standard_library(stream, LEVELS[level])
    structlog.configure(
        processors=_processors(format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,  # after a reload, a cached logger would keep the old level and stream
    )
    return output


def unthreaded(level: str, format: LogFormat, stream: IO[Any] | None) -> FilteringBoundLogger:  # noqa: A002
    """A logger for a process that forks and therefore has no thread. The arguments are those of `configure`.

    A line that the stream does not accept at once is dropped.
    """
    wrapper = structlog.make_filtering_bound_logger(LEVELS[level])
    logger: FilteringBoundLogger = structlog.wrap_logger(
        Direct(stream), processors=_processors(format, stream), wrapper_class=wrapper
    )
    return logger


def _processors(form: LogFormat, stream: IO[Any] | None) -> list[Processor]:
    common: list[Processor] = [structlog.contextvars.merge_contextvars, _stamp]
    if form == "json":
        return [*common, structlog.processors.format_exc_info, redact, render_json]
    console = structlog.dev.ConsoleRenderer(
        colors=_is_terminal(stream), timestamp_key="ts", exception_formatter=structlog.dev.plain_traceback
    )
    return [*common, structlog.processors.format_exc_info, redact, _printable, console, _line]


def _stamp(logger: object, method: str, event: EventDict) -> EventDict:
    """Puts `ts`, `level` and `event` first, because people read lines from the left."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"ts": now, "level": _LEVEL_NAMES.get(method, method), "event": event.pop("event", ""), **event}


_LEVEL_NAMES: Final = {"exception": "error", "warn": "warning", "fatal": "critical"}

# --- redaction ------------------------------------------------------------------------------------------------------

HIDDEN: Final = "***"
MAX_NESTING: Final = 8
_SECRET_KEYS: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "token",
        "ticket",
        "key",
        "secret",
        "password",
        "api_key",
        "api-key",
        "x-api-key",
    }
)
_URL_KEYS: Final = frozenset({"url", "path", "referer", "location"})
_IN_TEXT: Final = re.compile(
    r"(?i)(\b(?:bearer|basic)\s+|[?&](?:token|ticket|key|api_key|secret|password)=)[^\s&\"'<>]+",
)
_SUSPICIOUS: Final = re.compile(r"[ ?&@]")
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_USERINFO: Final = re.compile(r"//[^/@\s]*@")


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The line without values under the names of secrets, query strings of URLs, and credentials inside its texts.
    Long texts are shortened."""
    secret = not _SECRET_KEYS.isdisjoint(map(str.lower, event))
    return {
        key: value if not secret and _is_harmless(value) else _redacted(key, value, MAX_NESTING)
        for key, value in event.items()
    }


def _is_harmless(value: object) -> bool:
    """Whether nothing of a value has to be hidden or left out, whatever its name is, unless that is a secret's. Most
    of what is logged are numbers, times, ids and single words."""
    if type(value) is str:
        return len(value) <= MAX_TEXT and not _SUSPICIOUS.search(value)
    return type(value) in _NUMBERS


def _redacted(key: object, value: Any, levels: int) -> Any:
    name = key.lower() if isinstance(key, str) else ""
    if name in _SECRET_KEYS:
        return HIDDEN
    if isinstance(value, str):
        text = _without_query(value) if name in _URL_KEYS else _redacted_text(value)
        return _shortened(text, MAX_TRACE if name == "exception" else MAX_TEXT)
    if isinstance(value, Mapping):
        return {inner: _redacted(inner, v, levels - 1) for inner, v in value.items()} if levels else HIDDEN
    if isinstance(value, list | tuple):
        return [_redacted(name, item, levels - 1) for item in value] if levels else HIDDEN
    return value


def _redacted_text(text: str) -> str:
    return _USERINFO.sub(f"//{HIDDEN}@", _IN_TEXT.sub(rf"\g<1>{HIDDEN}", text))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def _without_query(url: str) -> str:
    base, mark, _ = url.partition("?")
    return _USERINFO.sub(f"//{HIDDEN}@", base) + (mark and f"?{HIDDEN}")


# --- rendering ------------------------------------------------------------------------------------------------------

_json: Final = msgspec.json.Encoder(enc_hook=repr).encode


def render_json(logger: object, method: str, event: MutableMapping[str, Any]) -> bytes:
    """The line as one JSON object, ended by LF. What JSON cannot hold is written as its `repr`."""
    try:
        return _json(event) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _json({_ascii(key): _ascii(value) for key, value in event.items()}) + b"\n"


def _ascii(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text.encode("ascii", "backslashreplace").decode()


def _printable(logger: object, method: str, event: EventDict) -> EventDict:
    """Escapes control characters, which a terminal would obey and a client may have sent. Tracebacks keep their
    lines."""
    return {key: value if key == "exception" else _without_controls(value) for key, value in event.items()}


def _without_controls(value: Any) -> Any:
    return value if not isinstance(value, str) or value.isprintable() else repr(value)[1:-1]


def _line(logger: object, method: str, line: Any) -> bytes:
    return f"{line}\n".encode(errors="backslashreplace")


# --- writing --------------------------------------------------------------------------------------------------------


class Output:
    """The end of the pipeline: accepts rendered lines, never waits, never raises.

    Args:
        stream: text or binary. If it has a descriptor, the bytes are written there directly: a thread that blocks in
            Python's own buffer would hold that buffer's lock while the interpreter shuts down.
        max_queued: bytes that may wait for the writer.

    Attributes:
        stream: as given.
        dropped: lines that were not written.
        closed: whether further lines are dropped.
    """

    def __init__(self, stream: IO[Any] | None, max_queued: int = MAX_QUEUED) -> None:
        self.stream = stream
        self.dropped = 0
        self.closed = False
        self._write = _writer(stream)
        self._max_queued = max_queued
        self._lines: deque[bytes] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Queues one line, or drops and counts it. Any thread may call."""
        with self._changed:
            if len(line) > MAX_LINE or self._queued + len(line) > self._max_queued or self.closed:
                self.dropped += 1
                return
            self._lines.append(line)
            self._queued += len(line)
            self._start()
            self._changed.notify()

    msg = debug = info = warning = warn = error = exception = critical = fatal = log = write

    def close(self, wait: float = FLUSH) -> None:
        """Writes what is queued, for at most `wait` seconds; later lines are dropped."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(wait)
        atexit.unregister(self.close)

    def _start(self) -> None:
        # Only at the first line: a thread does not survive a fork, so a process that is forked after `configure` needs
        # to start its own.
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while lines := self._next_lines():
            lost = 0
            try:
                self._write(b"".join(lines))
            except (OSError, ValueError):
                lost = len(lines)
            with self._changed:
                self._queued -= sum(map(len, lines))
                self.dropped += lost

    def _next_lines(self) -> list[bytes]:
        with self._changed:
            idle = not self._lines
            self._changed.wait_for(lambda: self._lines or self.closed)
        if idle and not self.closed:
            # The request that logged this line is still being answered, and needs the interpreter that this thread
            # would take now. Later there are more lines to write at once, too.
            time.sleep(GATHER)
        # As many lines as fit into one atomic write to a pipe, because other workers write to the same one.
        lines: list[bytes] = []
        room = select.PIPE_BUF
        with self._changed:
            while self._lines and (not lines or len(self._lines[0]) <= room):
                lines.append(self._lines.popleft())
                room -= len(lines[-1])
        return lines


class Direct:
    """Like `Output`, but without a thread: accepts rendered lines, never waits, never raises.

    Args:
        stream: one with a descriptor; None drops all.
    """

    def __init__(self, stream: IO[Any] | None) -> None:
        self._descriptor = _descriptor(stream)

    def write(self, line: bytes) -> None:
        """Writes one line, or drops it."""
        if self._descriptor is None or len(line) > select.PIPE_BUF:
            return
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        with contextlib.suppress(OSError):
            if poll.poll(0):  # a pipe that can be written has room for PIPE_BUF bytes
                os.write(self._descriptor, line)

    msg = debug = info = warning = warn = error = exception = critical = fatal = log = write


def _writer(stream: IO[Any] | None) -> Callable[[bytes], None]:
    descriptor = _descriptor(stream)
    if stream is None:
        return _nowhere
    if descriptor is not None:
        return lambda data: _write_all(descriptor, data)
    if isinstance(stream, io.TextIOBase):
        return lambda data: _write_to(stream, data.decode())
    return lambda data: _write_to(stream, data)


def _nowhere(data: bytes) -> None:
    raise OSError("there is no stream to write to")


def _descriptor(stream: IO[Any] | None) -> int | None:
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError, AttributeError):
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another process made the shared descriptor non-blocking
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def _write_to(stream: Any, data: bytes | str) -> None:
    stream.write(data)
    stream.flush()


def _is_terminal(stream: IO[Any] | None) -> bool:
    descriptor = _descriptor(stream)
    return descriptor is not None and os.isatty(descriptor)


# --- the standard library's loggers ---------------------------------------------------------------------------------


class Bridge(logging.Handler):
    """Passes what the standard library logs to structlog, which writes it to `output`."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        """One record becomes one line, with its logger's name under `logger`."""
        try:
            extra = {"exc_info": record.exc_info} if record.exc_info else {}
            structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, **extra)
        except Exception:  # noqa: BLE001  # a bad format string in a library must not end the request it logs about
            self.handleError(record)


def _route_standard_library(stream: IO[Any] | None, level: int) -> Output:
    root = logging.getLogger()
    root.setLevel(level)
    # aiohttp's access log prints query strings and referrers, which hold tokens.
    logging.getLogger("aiohttp.access").disabled = True
    bridges = [handler for handler in root.handlers if isinstance(handler, Bridge)]
    for bridge in bridges:
        if bridge.output.stream is stream and not bridge.output.closed:
            return bridge.output  # a reload: the queue and its order stay
        root.removeHandler(bridge)
        bridge.output.close(0)  # without waiting: this is the loop's thread, and the old stream may be stuck
    output = Output(stream)
    root.addHandler(Bridge(output))
    return output
