"""What failed, and all that an operator needs to find out why: one log line and one record for each failure.

    an attempt at an upstream failed    `attempt_failed`   info: another attempt may heal it
    a stream failed                     `stream_failed`    warning where the gateway or the provider is to blame,
                                                           info where the client is

A stream that fails is told beside the attempt that failed it: the one says what the provider did, the other what became
of the answer. The last `KEPT` records are in memory for `GET /failures`, the monitor and the chat page. With several
workers each has its own.

Nothing of a prompt, an answer or a key is in a record: who makes one hides what a provider's sentence quotes, and a URL
loses its query, its fragment and its credentials here.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.observe.recent import Recent

KEPT: Final = 200
"""Records in memory; about a KiB each at most."""
MAX_URL: Final = 300
"""Characters of a URL, the rest of which a proxy route's client may choose."""
MAX_TOLD: Final = 300
"""Characters of a provider's sentence."""

Kind = Literal["attempt", "stream"]

_SECRET: Final = re.compile(r"[A-Za-z0-9_*+=-]{32,}")
"""A part of a path that is as long as a key. Model names and versions are shorter."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """One failure. Text is "" and a number is None where there is none.

    Attributes:
        when: wall-clock time, ISO 8601 in UTC.
        kind: whether an attempt or a whole stream failed.
        route: the route's path in the configuration.
        upstream, target: the upstream, and the host and port of the server, that failed or was asked last.
        url, path: what was asked there, from `asked_at`.
        status: the HTTP status that the upstream answered with.
        code: the error's code.
        sentence: the provider's own sentence, with keys and quotations of the request hidden.
        hint: what to check.
        request_id, trace_id, stream_id, principal: whose it was.
        detail: what only the log needs, from `GatewayError.detail`.
        outcome: of a stream, as metrics name it.
    """

    when: str
    kind: Kind
    route: str
    upstream: str
    target: str
    url: str
    path: str
    status: int | None
    code: str
    sentence: str
    hint: str
    request_id: str
    trace_id: str
    stream_id: str
    principal: str
    detail: str = ""
    outcome: str = ""

    def public(self) -> dict[str, Any]:
        """The record as `GET /failures` shows it. What only the log needs is left out."""
        return {name: getattr(self, name) for name in _SHOWN}


_SHOWN: Final = tuple(name for name in Failed.__struct_fields__ if name != "detail")
_UNLOGGED: Final = frozenset({"when", "kind", "path"})
"""The line itself says when and what kind; its `url` ends with the path."""


class Failures:
    """Logs failures, and keeps the newest.

    Args:
        logger: the process's log; None logs nothing.
    """

    def __init__(self, logger: FilteringBoundLogger | None = None) -> None:
        self._logger = logger
        self.recent: Recent[Failed] = Recent(KEPT)

    def note(self, failed: Failed, *, to_blame: bool = False) -> None:
        """Keeps a record and logs its line; a warning where the gateway or the provider is to blame."""
        self.recent.add(failed)
        if self._logger is None:
            return
        facts = {name: getattr(failed, name) or None for name in Failed.__struct_fields__ if name not in _UNLOGGED}
        if failed.kind == "attempt":
            del facts["outcome"]
            self._logger.info("attempt_failed", **facts)
        elif to_blame:
            self._logger.warning("stream_failed", **facts)
        else:
            self._logger.info("stream_failed", **facts)


def moment() -> str:
    """Now, as ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def asked_at(url: str) -> tuple[str, str]:
    """A URL without query, fragment and credentials, and its path alone; both shortened, and long secrets hidden."""
    parts = urlsplit(url)
    path = cleaned_path(parts.path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"[:MAX_URL], path


def cleaned_path(path: str, most: int = 200) -> str:
    """A path that is fit for a log: shortened, printable, and without what looks like a key."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in path.partition("?")[0][:most])
    return _SECRET.sub("…", printable)
