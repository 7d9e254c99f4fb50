"""Answers in OpenAI's shape come in pieces: which tool call a piece belongs to, and a whole answer as one piece.

OpenAI numbers the tool calls of an answer, and gives the id and the name of a call in its first piece only. Others

- give every call the index 0, or give no index;
- repeat the id and the name in every piece, or give the same id to every call;
- send the name in pieces too;
- send whole calls, each in one piece.

`ToolCalls` reads all of these. It keeps no arguments, so its memory is bounded by the number of calls.

Source: OpenAI API reference, "Chat Completions: the chat completion chunk object".
"""

from typing import Any, Final

from gateway.core.lenient import arguments_of

MAX_CALLS: Final = 512
"""Tool calls of one answer; pieces of further ones belong to none."""


MAX_NAME: Final = 256
"""Characters of a name that comes in pieces; OpenAI allows 64."""


class _Known:
    """One call, as far as it came."""

    __slots__ = ("begun", "closed", "id", "index", "name", "number")

    def __init__(self, number: int, index: int | None) -> None:
        self.number = number
        self.index = index
        self.id = ""
        self.name = ""
        self.begun = False  # whether it has arguments
        self.closed = False  # whether its arguments may be a whole JSON object


class ToolCalls:
    """The tool calls of one answer, numbered from 0 in the order in which they began."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: list[_Known] = []

    def __len__(self) -> int:
        return len(self._calls)

    def number(self, index: int | None, id_: str, name: str, arguments: str) -> int | None:
        """The number of the call that this piece belongs to; None for a piece of a call beyond `MAX_CALLS`.

        Args:
            index: the piece's own number, None for none.
            id_, name, arguments: what it holds, "" for nothing.
        """
        call = self._latest(index, id_)
        if call is None or self._begins_another(call, id_, name, arguments):
            # Pieces of two calls may alternate under one index, each with its id and name. A new id alone begins none:
            # some servers make one for every piece.
            known = next((one for one in self._calls if self._same(one, index, id_, name, arguments)), None)
            goes_on = (
                call is not None and call.name and not name and not (call.closed and arguments.lstrip()[:1] == "{")
            )
            call = known if known is not None or not goes_on else call
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                return None
            call = _Known(len(self._calls), index)
            self._calls.append(call)
        call.id = call.id or id_
        call.name = _joined(call.name, name)
        if arguments:
            call.begun = True
            call.closed = arguments.rstrip().endswith("}")
        return call.number

    def name(self, number: int) -> str:
        """The name of this call, as far as it came."""
        return self._calls[number].name

    def _latest(self, index: int | None, id_: str) -> _Known | None:
        """The latest call that the piece may belong to, by its index, else by its id, else by its place."""
        latest = reversed(self._calls)
        if index is not None:
            return next((call for call in latest if call.index == index), None)
        if id_:
            return next((call for call in latest if call.id == id_), self._calls[-1] if self._calls else None)
        return next(latest, None)

    def _begins_another(self, call: _Known, id_: str, name: str, arguments: str) -> bool:
        again = bool(id_ or name) and call.closed and arguments.lstrip().startswith("{")  # `}{` is no JSON
        renamed = bool(name and call.name and name != call.name)
        if renamed and call.id and id_ in ("", call.id) and not (call.begun or arguments):
            renamed = len(call.name) + len(name) > MAX_NAME  # a piece of the name of a call that has nothing else yet
        return again or bool(id_ and call.id and id_ != call.id) or renamed

    def _same(self, call: _Known, index: int | None, id_: str, name: str, arguments: str) -> bool:
        named = bool(id_) and call.id == id_ and call.index == index
        return named and not self._begins_another(call, id_, name, arguments)


def _joined(name: str, piece: str) -> str:
    """The name with one more piece, which repeats it, holds it, or goes on with it."""
    if not name or piece.startswith(name):
        return piece or name
    return name + piece if piece and piece != name else name


def chunk_of(whole: dict[str, Any]) -> dict[str, Any]:
    """A `chat.completion` as one `chat.completion.chunk` that says all of it."""
    choices = [_delta_of(choice) for choice in whole.get("choices") or () if isinstance(choice, dict)]
    return {**whole, "object": "chat.completion.chunk", "choices": choices}


def _delta_of(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    delta = dict(message) if isinstance(message, dict) else {}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [{"index": number, **_with_arguments(call)} for number, call in enumerate(calls)]
    rest = {key: value for key, value in choice.items() if key not in ("message", "delta")}
    return {"index": 0, **rest, "delta": delta}


def without_arguments(arguments: str) -> bool:
    """Whether a call with these arguments has none. Then they are written as `{}`, as clients read them as JSON."""
    return arguments.strip() in ("", "null")


def with_whole_calls(whole: dict[str, Any]) -> bool:
    """Whether a `chat.completion` was amended, in place, so that every tool call has arguments that are JSON, and an id
    of its own."""
    amended = False
    for choice in whole.get("choices") or ():
        message = choice.get("message") if isinstance(choice, dict) else None
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        if not isinstance(calls, list):
            continue
        ids: set[str] = set()
        for number, call in enumerate(calls):
            mended = _with_arguments(call)
            if isinstance(call, dict) and str(call.get("id")) in ids:
                mended = {**mended, "id": f"{call.get('id') or 'call'}_{number}"}
            if isinstance(call, dict) and mended is not call:
                calls[number], amended = mended, True
            ids.add(str(mended.get("id")))
    return amended


def _with_arguments(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        return {}
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    given = function.get("arguments")
    if isinstance(given, str) and not without_arguments(given):
        return call
    given = "" if isinstance(given, str) else arguments_of(given)
    return {**call, "function": {**function, "arguments": given or "{}"}}
