"""OpenAI's answer that is not streamed: one object, gathered from the events of a log.

- Whatever an upstream put into its chunks, `add` raises nothing but `upstream_oversize`.
- Strings are joined once, at the end, so that a long answer costs linear time.
- `result` is what was added so far. Whether that is the whole log, the caller knows.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.event import CHUNK, RESTART, THINKING, TOKEN, TOOL, Done, Event
from gateway.formats.openai import completion_id
from gateway.formats.problem import usage_object
from gateway.formats.view import View

MAX_DEPTH: Final = 32
"""Levels of a chunk; one nested deeper is skipped."""

_any: Final = msgspec.json.Decoder().decode

_LABELS: Final = frozenset({"role", "id", "type", "name", "finish_reason"})
"""Strings that servers send whole, some of them again in every chunk."""


class _Text(list[str]):
    """The parts of a string that still grows."""


class Completion:
    """One `chat.completion` object, gathered from the events of a log.

    Args:
        max_chars: characters of event data, at most. A log has its own bound; this one holds without it.

    Source: OpenAI API reference, "Chat Completions: the chat completion object".
    """

    def __init__(self, max_chars: int = 64 * 1024 * 1024) -> None:
        self._left = max_chars
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, event: Event) -> None:
        """Adds one event.

        Raises:
            GatewayError: `upstream_oversize`; the answer is longer than `max_chars`.
        """
        self._left -= len(event.data)
        if self._left < 0:
            raise GatewayError("upstream_oversize")
        if event.type == RESTART:
            self._top, self._choices = {}, {}
        elif event.type == CHUNK:
            self._add_chunk(event.data)
        elif event.type in _DELTAS:
            self._top = {}  # earlier chunks were another upstream's, and so were their id and model
            self._add_choice({"delta": _DELTAS[event.type](event.data)})

    def result(self, view: View, done: Done | None) -> dict[str, Any]:
        """The object. What the upstream's chunks did not say is taken from `view` and `done`."""
        usage = usage_object(done.usage) if done else None
        reason = done.finish_reason if done else None
        head = {"id": completion_id(view), "created": view.created, "model": view.model, "usage": usage}
        choices = [_choice(self._choices[index], reason) for index in sorted(self._choices)]
        return {**head, **self._top, "object": "chat.completion", "choices": choices or [_choice({"index": 0}, reason)]}

    def _add_chunk(self, data: str) -> None:
        chunk = _object(data)
        if chunk is None:
            return
        choices = chunk.pop("choices", None)
        self._top.update({key: value for key, value in chunk.items() if value is not None})
        for choice in choices if isinstance(choices, list) else []:
            self._add_choice(choice)

    def _add_choice(self, new: object) -> None:
        if not isinstance(new, dict):
            return
        index = new.get("index")
        index = index if isinstance(index, int) else 0
        delta = new.pop("delta", None)
        message = delta if isinstance(delta, dict) else {}
        _merge(self._choices.setdefault(index, {}), {**new, "index": index, "message": message})


_DELTAS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    TOKEN: lambda text: {"content": text},
    THINKING: lambda text: {"reasoning_content": text},
    TOOL: lambda data: {"tool_calls": [_any(data)]},
}


def _object(data: str) -> dict[str, Any] | None:
    """The JSON object in `data`; None for anything else, also for one nested deeper than any chunk is."""
    try:
        value = _any(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value, MAX_DEPTH) else None


def _is_shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


def _choice(parts: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = _whole(parts)
    message = {"role": "assistant", "content": None, **(choice.get("message") or {})}
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return {**choice, "message": message, "finish_reason": choice.get("finish_reason") or finish_reason or "stop"}


def _tool_call(call: Any) -> Any:
    """A tool call without `index`, which only the pieces of a stream have, and with `type`, which they may lack."""
    if not isinstance(call, dict):
        return call
    return {"type": "function", **{key: value for key, value in call.items() if key != "index"}}


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if value is None:
            into.setdefault(key, None)
        else:
            into[key] = _joined(key, into.get(key), value)


def _joined(key: str, old: Any, new: Any) -> Any:
    """The value of a key after one more chunk: labels are replaced, texts grow, objects and lists grow inside."""
    if isinstance(new, str):
        if key in _LABELS:
            return new or old
        text = old if isinstance(old, _Text) else _Text()
        text.append(new)
        return text
    if isinstance(new, dict):
        old = old if isinstance(old, dict) else {}
        _merge(old, new)
        return old
    if isinstance(new, list):
        return _joined_list(old if isinstance(old, list) else [], new)
    return new


def _joined_list(old: list[Any], new: list[Any]) -> list[Any]:
    """The items; one with the `index` of an earlier item is a further piece of that item, as with tool calls."""
    for item in new:
        index = item.get("index") if isinstance(item, dict) else None
        earlier = (one for one in old if isinstance(one, dict) and one.get("index") == index)
        known = next(earlier, None) if index is not None else None
        if known is None:
            old.append(_joined("", None, item) if isinstance(item, dict) else item)
        else:
            _merge(known, item)
    return old


def _whole(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _whole(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
