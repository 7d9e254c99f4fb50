"""A format written as a mapping: for each kind of event, what is sent for it.

- All mistakes are found when a mapping is compiled. Each message says what is allowed.
- What differs between readers is in their `View` and their index; a compiled mapping never changes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.core.errors import Failure
from gateway.core.event import DONE, ERROR, RESTART, START, THINKING, TOKEN, TOOL, Done, Event
from gateway.formats.problem import usage_object
from gateway.formats.template import Render, Value, data_block, json_block, one_line, placeholders
from gateway.formats.view import Encoder, Spec, Stateless, View, unsent

MAX_EVENT_NAME: Final = 128
"""Characters of an event name."""

_done: Final = msgspec.json.Decoder(Done).decode
_failure: Final = msgspec.json.Decoder(Failure).decode

_TEXT: Final[Mapping[str, Value]] = {"text": lambda text, _, __: text}
_READER: Final[Mapping[str, Value]] = {
    "stream_id": lambda _, view, __: view.stream_id,
    "session_id": lambda _, view, __: view.session_id,
    "model": lambda _, view, __: view.model,
    "index": lambda _, __, index: index,
    "resumed": lambda _, view, __: view.resumed,
}
PLACEHOLDERS: Final[Mapping[str, Mapping[str, Value]]] = {
    START: _READER,
    THINKING: {**_TEXT, **_READER},
    TOKEN: {**_TEXT, **_READER},
    TOOL: {"tool": lambda data, _, __: msgspec.Raw(one_line(data).encode()), **_READER},
    RESTART: _READER,
    DONE: {
        "full_text": lambda done, _, __: done.full_text,
        "finish_reason": lambda done, _, __: done.finish_reason,
        "usage": lambda done, _, __: usage_object(done.usage),
        **_READER,
    },
    ERROR: {
        "code": lambda failure, _, __: failure.code,
        "message": lambda failure, _, __: failure.message,
        "retryable": lambda failure, _, __: failure.retryable,
        "retry_after": lambda failure, _, __: failure.retry_after,
        **_READER,
    },
}
"""For each kind of event, the placeholders that its template may have, and their values."""

EVENT_KINDS: Final = tuple(PLACEHOLDERS)
"""The kinds of event that a mapping has entries for."""


class Mapped(Stateless):
    """A format written as a mapping of kinds to what is sent for them.

    Args:
        kinds: for each kind of event in a chat log, None or `{event?, json | data}`.
        spec: the format's name if it has one, or the mapping as the user wrote it; `kinds` if not given.

    Raises:
        ValueError: an entry is wrong.
    """

    def __init__(self, kinds: Mapping[str, Any], spec: Spec | None = None) -> None:
        self.spec: Spec = kinds if spec is None else spec
        self.token = _entry(TOKEN, kinds[TOKEN])
        self.others: Mapping[str, Render] = {
            START: _entry(START, kinds[START]),
            THINKING: _entry(THINKING, kinds[THINKING]),
            TOOL: _entry(TOOL, kinds[TOOL]),
            RESTART: _entry(RESTART, kinds[RESTART]),
            DONE: _decoded(_done, _entry(DONE, kinds[DONE])),
            ERROR: _decoded(_failure, _entry(ERROR, kinds[ERROR])),
        }
        start = kinds[START] or {}
        self.announces_resume = "resumed" in placeholders(str(start.get("json", start.get("data"))))

    def open(self, view: View) -> Encoder:
        """The encoder of one reader."""
        return _MappedEncoder(self, view)


class _MappedEncoder(Stateless):
    __slots__ = ("_others", "_token", "_view")

    def __init__(self, mapped: Mapped, view: View) -> None:
        self._token, self._others = mapped.token, mapped.others
        self._view = view

    def encode(self, event: Event, index: int) -> str:
        if event.type == TOKEN:
            return self._token(event.data, self._view, index)
        return self._others.get(event.type, unsent)(event.data, self._view, index)

    terminal = encode


def _decoded(decode: Callable[[str], Any], render: Render) -> Render:
    if render is unsent:
        return render
    return lambda data, view, index: render(decode(data), view, index)


def _entry(kind: str, entry: object) -> Render:
    if entry is None:
        return unsent
    if not isinstance(entry, Mapping):
        raise ValueError(f"{kind}: {entry!r} is neither null nor a mapping; allowed: {{event?, json | data}}")
    _check_keys(kind, entry)
    head = _event_line(kind, entry.get("event"))
    values = PLACEHOLDERS[kind]
    if "json" in entry:
        return json_block(head, entry["json"], values, f"{kind}.json")
    return data_block(head, entry["data"], values, f"{kind}.data")


def _check_keys(kind: str, entry: Mapping[str, Any]) -> None:
    unknown = [str(key) for key in entry if key not in ("event", "json", "data")]
    if unknown:
        raise ValueError(f"{kind}: unknown key {', '.join(unknown)}; allowed: event, json, data")
    if ("json" in entry) == ("data" in entry):
        problem = "json and data exclude each other" if "json" in entry else "json or data is missing"
        raise ValueError(f"{kind}: {problem}; allowed: exactly one of them")


def _event_line(kind: str, name: object) -> str:
    if name is None:
        return ""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_EVENT_NAME or not name.isprintable():
        allowed = f"1 to {MAX_EVENT_NAME} printable characters on one line, or no event key for an unnamed event"
        raise ValueError(f"{kind}.event: {str(name)[:MAX_EVENT_NAME]!r} is no event name; allowed: {allowed}")
    return f"event: {name}\n"
