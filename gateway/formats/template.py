"""Templates: a value or a text of the configuration, compiled once, and filled in for every event.

- A placeholder's value is JSON-encoded, or split into `data:` lines with the text around it. So it can end no block.
- An unknown placeholder is an error when a template is compiled. Filling in a template cannot fail.
- The caller passes the placeholders that there are, as `values`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.core.sse import data_lines
from gateway.formats.view import View

MAX_DEPTH: Final = 32
"""Levels of a `json` value, at most."""

Value = Callable[[Any, View, int], Any]
"""Gives the value of a placeholder. Arguments: the event's data, decoded; the reader's view; its token index."""
Render = Callable[[Any, View, int], str]
"""Gives the block of one event. Arguments: the same."""

_encode: Final = msgspec.json.Encoder().encode
_any: Final = msgspec.json.Decoder().decode
_PLACEHOLDER: Final = re.compile(r"\$(\$|[A-Za-z_][A-Za-z0-9_]*)")


def placeholders(text: str) -> list[str]:
    """The names of the placeholders in `text`."""
    return [name for name in _PLACEHOLDER.findall(text) if name != "$"]


def _pieces(text: str, values: Mapping[str, Value], where: str) -> list[str | Value]:
    parts = _PLACEHOLDER.split(text)
    pieces = [_named(part, values, where) if at % 2 else part for at, part in enumerate(parts)]
    return [piece for piece in pieces if piece != ""]


def _named(name: str, values: Mapping[str, Value], where: str) -> str | Value:
    if name == "$":
        return "$"
    if name not in values:
        allowed = ", ".join(f"${known}" for known in values)
        raise ValueError(f"{where}: unknown placeholder ${name}; allowed: {allowed} ($$ for a dollar sign)")
    return values[name]


def _template(pieces: Sequence[str | Value]) -> tuple[str, tuple[Value, ...]]:
    literal = "".join(piece.replace("%", "%%") if isinstance(piece, str) else "%s" for piece in pieces)
    return literal, tuple(piece for piece in pieces if not isinstance(piece, str))


def json_block(head: str, body: object, values: Mapping[str, Value], where: str) -> Render:
    """A block with `body`, any value, as JSON. A string that is exactly one placeholder is replaced by its value.

    Raises:
        ValueError: `body` is wrong; the message says what, where, and what is allowed.
    """
    pieces = [f"{head}data: ", *_json_pieces(body, values, where), "\n"]
    template, slots = _template(pieces)
    if len(slots) == 1:
        return _one_slot(pieces, slots[0])
    return lambda source, view, index: template % tuple([_encode(slot(source, view, index)).decode() for slot in slots])


def _one_slot(pieces: Sequence[str | Value], slot: Value) -> Render:
    """The same for one placeholder, and several times as fast: most formats send a token as one text in a constant."""
    at = pieces.index(slot)
    prefix, suffix = "".join(map(str, pieces[:at])), "".join(map(str, pieces[at + 1 :]))
    return lambda source, view, index: prefix + _encode(slot(source, view, index)).decode() + suffix


def data_block(head: str, text: object, values: Mapping[str, Value], where: str) -> Render:
    """A block with `text` as it is, on as many `data:` lines as it has when its placeholders are filled in.

    Raises:
        ValueError: as `json_block`.
    """
    if not isinstance(text, str):
        raise ValueError(f"{where}: {text!r} is no string; allowed: a string, or json for any other value")
    render = _interpolation(_pieces(text, values, where))
    return lambda source, view, index: head + data_lines(render(source, view, index))


def _interpolation(pieces: Sequence[str | Value]) -> Render:
    template, slots = _template(pieces)
    return lambda source, view, index: template % tuple([_spelled(slot(source, view, index)) for slot in slots])


def _spelled(value: object) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _json_pieces(value: object, values: Mapping[str, Value], where: str, depth: int = 0) -> Iterator[str | Value]:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        yield _string_piece(_pieces(value, values, where))
    elif isinstance(value, Mapping):
        yield from _object_pieces(value, values, where, depth)
    elif isinstance(value, list | tuple):
        yield from _array_pieces(value, values, where, depth)
    elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
        yield _encode(value).decode()
    else:
        raise ValueError(f"{where}: {value!r} is no JSON value; quote it to send it as a string")


def _string_piece(pieces: list[str | Value]) -> str | Value:
    """A string that is exactly one placeholder becomes its value, of whatever type. Any other string stays a string."""
    if len(pieces) == 1 and not isinstance(pieces[0], str):
        return pieces[0]
    if any(not isinstance(piece, str) for piece in pieces):
        return _interpolation(pieces)
    return _encode("".join(str(piece) for piece in pieces)).decode()


def _object_pieces(value: Mapping[Any, Any], values: Mapping[str, Value], where: str, depth: int) -> Iterator[Any]:
    separator = "{"
    for key, member in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: the key {key!r} is no string; quote it")
        yield f"{separator}{_encode(key).decode()}:"
        yield from _json_pieces(member, values, f"{where}.{key}", depth + 1)
        separator = ","
    yield "}" if value else "{}"


def _array_pieces(value: Sequence[Any], values: Mapping[str, Value], where: str, depth: int) -> Iterator[Any]:
    separator = "["
    for at, item in enumerate(value):
        yield separator
        yield from _json_pieces(item, values, f"{where}[{at}]", depth + 1)
        separator = ","
    yield "]" if value else "[]"


def one_line(data: str) -> str:
    """JSON without line ends. In JSON they can only be white space between values, so none is lost in a string."""
    return _encode(_any(data)).decode() if "\n" in data or "\r" in data else data
