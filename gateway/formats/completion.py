"""OpenAI's answer that is not streamed: one object, gathered from the events of a log.

- Whatever an upstream put into its chunks, `add` raises nothing but `upstream_oversize`.
- Strings are joined once, at the end, so that a long answer costs linear time.
- `result` is what was added so far. Whether that is the whole log, the caller knows.

What a chunk adds to its choice is decided by names. A delta's texts grow (`_GROWING`), and so do the lists of its
tokens' probabilities, of the parts of its content (`_PARTS`) and of what stands beside that (`_SETS`). Everything else
is a statement, and the latest one counts: a filter that says "safe" four times has said "safe".
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.core.chunks import Chunks
from gateway.core.errors import GatewayError
from gateway.core.event import CHUNK, RESTART, THINKING, TOKEN, TOOL, WHOLE, Done, Event
from gateway.core.pieces import ToolCalls, without_arguments
from gateway.formats.openai import completion_id
from gateway.formats.problem import usage_object
from gateway.formats.view import View

MAX_DEPTH: Final = 32
"""Levels of a chunk; one nested deeper is skipped."""
MAX_CHOICES: Final = 128
"""Choices of one answer; OpenAI lets a request ask for no more."""

_any: Final = msgspec.json.Decoder().decode

_GROWING: Final = frozenset(
    {
        "content",
        "reasoning_content",
        "reasoning",
        "reasoning_text",
        "thinking",
        "thought",
        "refusal",
        "text",
        "summary",
        "arguments",
        "partial_json",
        "transcript",
        "data",
    }
)
"""Strings that come in pieces: texts, the arguments of calls, spoken answers and their transcript."""
_PARTS: Final = frozenset({"content", "thinking", "reasoning_details"})
"""Lists of parts of a text. A part goes on with the part of the same index, or with the last one of the same type."""
_SETS: Final = frozenset({"annotations", "images", "citations"})
"""Lists of things. Every chunk may bring some; some servers send those that they sent before again."""
MAX_SET: Final = 256
"""Above this many things, a new one is added without a check whether the list has it already."""


class _Text(list[str]):
    """The parts of a string that still grows."""


class Completion:
    """One `chat.completion` object, gathered from the events of a log.

    Args:
        max_chars: characters of event data, at most. A log has its own bound; this one holds without it.

    Attributes:
        letter: the object as JSON to the letter, where the upstream itself sent it whole; "" otherwise.

    Source: OpenAI API reference, "Chat Completions: the chat completion object".
    """

    def __init__(self, max_chars: int = 64 * 1024 * 1024) -> None:
        self.letter = ""
        self._left = max_chars
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._chunks = Chunks()

    def add(self, event: Event) -> None:
        """Adds one event.

        Raises:
            GatewayError: `upstream_oversize`; the answer is longer than `max_chars`.
        """
        self._left -= len(event.data)
        if self._left < 0:
            raise GatewayError("upstream_oversize")
        if event.type == RESTART:
            self._top, self._choices, self.letter = {}, {}, ""
        elif event.type == CHUNK:
            self._add_chunk(event.data)
        elif event.type == WHOLE:
            self.letter = event.data
        elif event.type in _DELTAS:
            self._top = {}  # earlier chunks were another upstream's, and so were their id and model
            self._add_choice({"delta": _DELTAS[event.type](event.data)})

    def result(self, view: View, done: Done | None) -> dict[str, Any]:
        """The object. What the upstream's chunks did not say is taken from `view` and `done`."""
        if self.letter:
            whole: dict[str, Any] = _any(self.letter)
            return whole
        usage = usage_object(done.usage) if done else None
        # The answer's reason is that of its first choice; another choice may have none.
        reason = done.finish_reason if done and len(self._choices) <= 1 else None
        head = {"id": completion_id(view), "created": view.created, "model": view.model, "usage": usage}
        choices = [self._choices[index].result(reason, view) for index in sorted(self._choices)]
        empty = _Choice(0).result(reason, view)
        return {**head, **self._top, "object": "chat.completion", "choices": choices or [empty]}

    def _add_chunk(self, data: str) -> None:
        chunk = _object(data)
        if chunk is None:
            return
        choices = self._chunks.read(chunk)
        chunk.pop("choices", None)
        for key, value in chunk.items():
            # The first and the last chunk of some servers have an empty id and no model.
            if value or not (value is None or self._top.get(key)):
                self._top[key] = value
        for choice in choices:
            self._add_choice(choice)

    def _add_choice(self, new: dict[str, Any]) -> None:
        index = new.get("index") or 0
        if index in self._choices or len(self._choices) < MAX_CHOICES:
            self._choices.setdefault(index, _Choice(index)).add(new)


class _Choice:
    """One choice, as far as it came."""

    def __init__(self, index: int) -> None:
        self._rest: dict[str, Any] = {"index": index}
        self._message: dict[str, Any] = {}
        self._calls: list[dict[str, Any]] = []
        self._tracked = ToolCalls()

    def add(self, new: dict[str, Any]) -> None:
        message = dict(new["delta"])
        calls = message.pop("tool_calls", None) or ()
        _merge(self._message, message)
        for place, call in enumerate(calls):
            self._add_call(call, place if len(calls) > 1 else None)
        rest = {key: value for key, value in new.items() if key not in ("index", "delta", "logprobs")}
        _merge(self._rest, rest, growing=frozenset({"text"}))
        if "logprobs" in new:
            self._rest["logprobs"] = _with_probabilities(self._rest.get("logprobs"), new["logprobs"])

    def _add_call(self, call: dict[str, Any], place: int | None) -> None:
        function, index = call.get("function") or {}, call.get("index")
        id_, name, arguments = (_string(value) for value in (call.get("id"), *map(function.get, ("name", "arguments"))))
        if not (id_ or name or arguments):
            return
        if index is None and not (id_ or name):
            index = place
        number = self._tracked.number(index, id_, name, arguments)
        if number is None:
            return
        if number == len(self._calls):
            self._calls.append({})
        known = self._calls[number]
        told = known.get("function") or {}
        if arguments.lstrip()[:1] == "{" and told.get("arguments") == ["{}"]:
            del told["arguments"]  # it stood for arguments that were still to come
        _merge(known, {key: value for key, value in call.items() if key != "index" and value != ""})
        if name:
            known["function"]["name"] = self._tracked.name(number)

    def result(self, finish_reason: str | None, view: View) -> dict[str, Any]:
        message = {"role": "assistant", "content": None, **_whole(self._message)}
        calls = self._whole_calls(view)
        if calls:
            message["tool_calls"] = calls
        called = message.get("function_call")
        if isinstance(called, dict) and not called.get("arguments"):
            called["arguments"] = "{}"
        choice = {**_whole(self._rest), "message": message}
        return {**choice, "finish_reason": choice.get("finish_reason") or finish_reason}

    def _whole_calls(self, view: View) -> list[dict[str, Any]]:
        """The tool calls, with `type`, unique ids and arguments that are JSON, all of which pieces may lack."""
        whole: list[dict[str, Any]] = []
        ids: set[str] = set()
        for number, call in enumerate(map(_whole, self._calls)):
            function = call.get("function")
            if (
                isinstance(function, dict)
                and function.get("name")
                and without_arguments(function.get("arguments") or "")
            ):
                function["arguments"] = "{}"
            id_ = call.get("id")
            if function and (not id_ or id_ in ids):
                call["id"] = f"{id_ or f'call_{view.stream_id[:16]}'}_{number}"
            ids.add(str(call.get("id")))
            whole.append({"type": "function", **call})
        return whole


_DELTAS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    TOKEN: lambda text: {"content": text},
    THINKING: lambda text: {"reasoning_content": text},
    TOOL: lambda data: {"tool_calls": [_any(data)]},
}


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a gathered message, whether its content is a text or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(_string(part.get("text")) for part in content if isinstance(part, dict))
    return _string(content)


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


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _merge(into: dict[str, Any], new: dict[str, Any], growing: frozenset[str] = _GROWING) -> None:
    for key, value in new.items():
        if value is None:
            into.setdefault(key, None)
        else:
            into[key] = _joined(key, into.get(key), value, growing)


def _joined(key: str, old: Any, new: Any, growing: frozenset[str]) -> Any:
    """The value of a key after one more chunk."""
    if isinstance(new, str):
        if key not in growing:
            return new or old or new
        if _are_parts(old):
            return _with_parts(old, [{"type": "text", "text": new}] if new else [], growing)
        text = old if isinstance(old, _Text) else _Text()
        text.append(new)
        return text
    if isinstance(new, dict):
        old = old if isinstance(old, dict) else {}
        _merge(old, new, growing)
        return old
    if isinstance(new, list):
        return _joined_list(key, old, new, growing)
    return new


def _joined_list(key: str, old: Any, new: list[Any], growing: frozenset[str]) -> Any:
    if not new and old is not None:
        return old
    if key in _PARTS:
        if isinstance(old, _Text):  # a text before, parts from now on
            old = [{"type": "text", "text": _Text(old)}] if any(old) else []
        return _with_parts(old if isinstance(old, list) else [], new, growing)
    before = old if isinstance(old, list) else []
    if key in _SETS:
        return before + [item for item in new if len(before) > MAX_SET or item not in before]
    return new or before


def _are_parts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and not isinstance(value, _Text)
        and all(isinstance(part, dict) and "type" in part for part in value)
    )


def _with_parts(old: list[Any], new: list[Any], growing: frozenset[str]) -> list[Any]:
    for part in new:
        if not isinstance(part, dict):
            old.append(part)
            continue
        index, type_ = part.get("index"), str(part.get("type"))
        same = old[-1:] if index is None else old
        known = next((one for one in reversed(same) if _goes_on(one, index, type_)), None)
        if known is None:
            old.append(known := {})
        _merge(known, part, growing)
    return old


def _goes_on(part: Any, index: Any, type_: str) -> bool:
    if not isinstance(part, dict) or part.get("index") != index or str(part.get("type")) != type_:
        return False
    return index is not None or type_.startswith(("text", "thinking", "reasoning"))


def _with_probabilities(old: Any, new: Any) -> Any:
    """The log probabilities of all tokens so far: every list of them grows."""
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new if new is not None else old
    grown = dict(old)
    for key, value in new.items():
        before = grown.get(key)
        if isinstance(value, list) and isinstance(before, list):
            before += value
        elif value is not None:
            grown[key] = value
    return grown


def _whole(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _whole(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
