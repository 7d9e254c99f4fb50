"""Chunks of OpenAI's shape as servers really send them, made into what they should have been.

`Chunks.read` takes a chunk that was decoded without types and corrects it in place, field by field:

| what comes                                                      | what it becomes                                  |
|-----------------------------------------------------------------|--------------------------------------------------|
| one object for a list of choices or of tool calls; `{}`         | a list of it; nothing                            |
| an `index` that is a text or a float; an id that is a number    | a number; a text                                 |
| no `delta`, null, a list, a text                                | an object                                        |
| the text under `message` or `text`, or under `text` in the delta | the delta, unless the deltas had it before       |
| half a character at the end of a delta                          | whole in the next one; U+FFFD where none follows |
| a finish reason as an object, `"null"`; under another name      | a text; null; under its own                      |
| arguments as an object; a call without `function` around it     | JSON text; with it                               |

What cannot be understood is left out and counted.
"""

from collections.abc import Iterator
from typing import Any, Final

from gateway.core.lenient import Halves, arguments_of, index_of, objects_of, reason_of, text_of, word_of

_TEXTS: Final = frozenset({"content", "reasoning_content", "reasoning", "refusal"})
_REASONS: Final = ("finish_details", "finishReason")
"""Other names of the finish reason. Sources: OpenAI (vision preview); Gemini (jakobdylanc/llmcord#84)."""
_LABELS: Final = frozenset({"role", "name", "id", "type", "model", "index", "obfuscation"})
MAX_LOOKED_AT: Final = 8
"""Levels of a delta up to which a text is looked for."""
_ENVELOPE: Final = ("id", "object", "created", "model")
HALF: Final = "\ufffd"
"""What stands for half a character whose other half never came."""


class Chunks:
    """Reads the chunks of one answer.

    Attributes:
        changed: whether the latest chunk is another one than was sent.
        skipped: parts of the latest chunk that were left out.
    """

    __slots__ = ("_by_delta", "_elsewhere", "_envelope", "_halves", "changed", "skipped")

    def __init__(self) -> None:
        self.changed = False
        self.skipped = 0
        self._halves = Halves()
        self._envelope: dict[str, Any] = {}
        self._by_delta = False  # whether a delta had text, so that a message that comes later repeats it
        self._elsewhere = False  # whether text came under another name

    @property
    def usual(self) -> bool:
        """Whether the next chunk means what its `delta` says and nothing else. So a delta must have said something:
        until then, the answer may stand elsewhere."""
        return self._by_delta and not (self._halves or self._elsewhere)

    def read(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of a chunk, which is corrected in place."""
        self.changed = False
        given = chunk.get("choices")
        choices, self.skipped = objects_of(given)
        if given is not None and (self.skipped or not isinstance(given, list)):
            chunk["choices"] = choices
            self.changed = True
        for choice in choices:
            self._choice(choice)
        if self._halves:
            self._envelope = {key: chunk[key] for key in _ENVELOPE if key in chunk}
        return choices

    def rest(self) -> Iterator[dict[str, Any]]:
        """A chunk for every half of a character that is left, with U+FFFD for it."""
        for index, field, call in self._halves.rest():
            delta = {field: _half_of(field, call)}
            yield {**self._envelope, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}

    def _set(self, into: dict[str, Any], key: str, value: Any) -> None:
        into[key] = value
        self.changed = True

    def _choice(self, choice: dict[str, Any]) -> None:
        given = choice.get("index")
        if given is not None and (type(given) is not int or given < 0):
            self._set(choice, "index", max(index_of(given) or 0, 0))
        index = choice.get("index") or 0

        delta = self._delta_of(choice)
        if choice.get("delta") is not delta:
            self._set(choice, "delta", delta)
        for field in delta.keys() & _TEXTS:
            if delta[field] is not None:
                self._text(delta, field, index)
        if delta.get("tool_calls") is not None:
            self._calls(delta, index)
        if delta.get("function_call") is not None:
            self._legacy_call(delta, index)

        given = choice.get("finish_reason")
        said = given if given is not None else next((choice[key] for key in _REASONS if choice.get(key)), None)
        reason = "" if said is None else reason_of(said)
        if reason is None:
            self.skipped += 1
        if reason != given and (reason or given):
            self._set(choice, "finish_reason", reason or None)
        if reason and self._halves:
            self._end_halves(delta, index)

    def _delta_of(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The delta as an object: the choice's own one where it is one."""
        given = choice.get("delta")
        delta: dict[str, Any] = {}
        if isinstance(given, dict):
            delta = given
        elif isinstance(given, str):
            delta = {"content": given}
        elif given is not None:
            objects, odd = objects_of(given)
            self.skipped += odd
            for part in objects:
                delta |= part
        if isinstance(delta.get("text"), str) and not delta.get("content"):
            delta["content"] = delta.pop("text")  # as in Anthropic's deltas
            self.changed = self._elsewhere = True
        if _says(delta):
            self._by_delta = True
        elif not self._by_delta:
            for key in ("message", "text"):
                if isinstance(choice.get(key), dict | str) and choice[key]:
                    said = choice.pop(key)
                    self._elsewhere = True
                    return {**delta, **(said if isinstance(said, dict) else {"content": said})}
        return delta

    def _text(self, delta: dict[str, Any], field: str, index: int) -> None:
        given = delta[field]
        if field == "content" and isinstance(given, list):
            self._parts(delta, given)
            return
        text = text_of(given)
        if text is None:
            self.skipped += bool(given)
            self._set(delta, field, None)
            return
        text = self._halves.joined((index, field, None), text)
        if text is not given and text != given:
            self._set(delta, field, text)

    def _parts(self, delta: dict[str, Any], given: list[Any]) -> None:
        # Content in parts is a form of its own, which Mistral's reasoning models use, and stays one.
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in given]
        parts = [part for part in parts if isinstance(part, dict)]
        self.skipped += len(given) - len(parts)
        if parts != given:
            self._set(delta, "content", parts)

    def _calls(self, delta: dict[str, Any], index: int) -> None:
        given = delta["tool_calls"]
        calls, odd = objects_of(given)
        self.skipped += odd
        if odd or not isinstance(given, list):
            self._set(delta, "tool_calls", calls)
        if not calls and given:
            self.changed = True
        if not calls and given != []:
            del delta["tool_calls"]
        for place, call in enumerate(calls):
            self._call(call, index, place)

    def _call(self, call: dict[str, Any], index: int, place: int) -> None:
        given = call.get("index")
        if given is not None and type(given) is not int:
            self._set(call, "index", index_of(given))
        if call.get("id") is not None and not isinstance(call["id"], str):
            self._set(call, "id", word_of(call["id"]))
        function = call.get("function")
        if not isinstance(function, dict):
            function = {key: call.pop(key) for key in ("name", "arguments") if key in call}
            self._set(call, "function", function)
        number = call.get("index")
        self._function(function, (index, "tool_calls", place if number is None else number))

    def _legacy_call(self, delta: dict[str, Any], index: int) -> None:
        # The form before there were tools: one call, without an id.
        given = delta["function_call"]
        calls, odd = objects_of(given)
        self.skipped += odd
        if not calls:
            self._set(delta, "function_call", None)
            return
        if calls[0] is not given:
            self._set(delta, "function_call", calls[0])
        self._function(calls[0], (index, "function_call", None))

    def _function(self, function: dict[str, Any], key: tuple[int, str, int | None]) -> None:
        """Corrects the function of a call; its halves of characters are kept under this key."""
        if function.get("name") is not None and not isinstance(function["name"], str):
            self._set(function, "name", word_of(function["name"]))
        given = function.get("arguments")
        arguments = arguments_of(given)
        if arguments is None:
            self.skipped += 1
        arguments = self._halves.joined(key, arguments or "")
        if given is not None and arguments != given:
            self._set(function, "arguments", arguments)

    def _end_halves(self, delta: dict[str, Any], index: int) -> None:
        """The choice with this index ends with this delta, so no other halves of it will come."""
        for _, field, call in self._halves.rest(lambda key: key[0] == index):
            said: Any = delta.get(field)
            half = _half_of(field, call)
            if field == "content" and isinstance(said, list):
                half = [{"type": "text", "text": HALF}]
            elif field == "function_call" and said:
                said, half = None, {**said, "arguments": (said.get("arguments") or "") + HALF}
            self._set(delta, field, said + half if said else half)


def _half_of(field: str, call: int | None) -> Any:
    """What stands in this field of a delta for half a character whose other half never came."""
    if field == "tool_calls":
        return [{"index": call, "function": {"arguments": HALF}}]
    return {"arguments": HALF} if field == "function_call" else HALF


def speaks(choice: dict[str, Any]) -> bool:
    """Whether a corrected choice holds a part of the answer, or its end. A role alone is none."""
    return bool(choice.get("finish_reason")) or _says(choice["delta"])


def _says(delta: dict[str, Any]) -> bool:
    return any(_holds(value) for key, value in delta.items() if value and key not in _LABELS)


def _holds(value: Any, depth: int = 0) -> bool:
    """Whether there is any text in a member of a delta, as the name of a call is; `[{"type": "text", "text": ""}]` has
    none."""
    if depth > MAX_LOOKED_AT:
        return True
    if isinstance(value, dict):
        return any(_holds(member, depth + 1) for key, member in value.items() if key not in ("type", "index"))
    if isinstance(value, list):
        return any(_holds(item, depth + 1) for item in value)
    return isinstance(value, str) and bool(value)
