"""JSON that is not quite right, read field by field: what is understood is kept, whatever stands beside it.

The dialects read an ordinary event with types, in C. What does not fit is read here. Each function takes a value of any
type and gives what it means, or a value that stands for "nothing".
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.core.weight import is_heavy

_any: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode

MAX_DEPTH: Final = 64
"""Levels of a value that is mended; what lies deeper is left out."""

_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF: Final = re.compile("[\ud800-\udfff]")
_HIGH: Final = re.compile("[\ud800-\udbff]$")
_NO_REASONS: Final = frozenset({"", "null", "none", "nil", "undefined", "unspecified", "finish_reason_unspecified"})
"""Words, in lower case, by which servers say that there is no finish reason yet: their languages' words for nothing,
and Gemini's."""


def value_of(text: str) -> Any:
    """The JSON value; None where it is none, or takes too long to read. Halves of surrogate pairs and NaN, which JSON
    has not, are accepted.

    Source: RFC 8259 8.2 (unpaired surrogates).
    """
    if is_heavy(text):
        return None
    try:
        return _any(text)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(text.lstrip("\ufeff"), strict=False)  # some write a byte order mark before every event
    except (ValueError, RecursionError):
        return None


def is_strict(text: str) -> bool:
    """Whether the text is JSON as every client reads it."""
    try:
        _any(text)
    except (ValueError, RecursionError):
        return False
    return True


def json_of(value: Any) -> str:
    """The value as JSON that every client reads: without halves of surrogate pairs, null for NaN."""
    return _encode(mended(value)).decode()


def mended(value: Any, depth: int = 0) -> Any:
    """The value with U+FFFD for every half of a surrogate pair."""
    if isinstance(value, str):
        return mended_text(value)
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {mended_text(key): mended(member, depth + 1) for key, member in value.items()}
    if isinstance(value, list):
        return [mended(item, depth + 1) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return None  # only the standard library reads such numbers, and msgspec does not write them
    return value


def mended_text(text: str) -> str:
    """The text with its surrogate pairs joined, and U+FFFD for every half of one."""
    if text.isascii() or not _HALF.search(text):
        return text
    return _HALF.sub("\ufffd", _PAIR.sub(_joined, text))


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


class Halves(dict[Any, str]):
    """The halves of characters at the ends of deltas, by text, each until the next delta brings the other half.

    It is true while there are any. Then every delta must be given to `joined`.
    """

    __slots__ = ()

    def joined(self, key: Any, text: str) -> str:
        """What may be delivered of the text under this key: behind a half that was held, less a half at its end."""
        if self and text:
            text = self.pop(key, "") + text
        if text.isascii():
            return text
        if half := _HIGH.search(text):
            self[key] = half[0]
            text = text[:-1]
        return mended_text(text)

    def rest(self, ends: Callable[[Any], bool] = lambda key: True) -> list[Any]:
        """The keys under which half a character was left. They are left no more.

        Args:
            ends: whether the text under a key has ended, so that its other half can come no more.
        """
        keys = [key for key in self if ends(key)]
        for key in keys:
            del self[key]
        return keys


def index_of(value: Any) -> int | None:
    """The number; None if it is none. `"0"` and `0.0` are numbers, True is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e9 else None
    return value if isinstance(value, int) else None


def word_of(value: Any) -> str:
    """The word, mended; "" for none. A number that stands for a word is its digits."""
    if isinstance(value, str):
        return mended_text(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def text_of(value: Any) -> str | None:
    """The text that this value holds, as it is or as an object or a list of parts; None if it holds none."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        found = next((value[key] for key in ("text", "content", "value") if key in value), None)
        return text_of(found) if isinstance(found, str | dict | list) else None
    if isinstance(value, list):
        texts = [text for text in map(text_of, value) if text is not None]
        return "".join(texts) if texts else None
    return None


def reason_of(value: Any) -> str | None:
    """The finish reason, "" for none; None for a value that cannot be one."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("type", "reason", "finish_reason") if key in value), None)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value is False:
        return ""
    if not isinstance(value, str):
        return None
    return "" if value.strip().lower() in _NO_REASONS else mended_text(value)


def arguments_of(value: Any) -> str | None:
    """The arguments of a tool call as a piece of JSON text; None for a value that cannot be any."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, str):
        return value
    return json_of(value) if isinstance(value, dict | list) else None


def objects_of(value: Any) -> tuple[list[dict[str, Any]], int]:
    """The objects in a list, or the one object that stands for a list of one, or those of an object by index; and how
    many values among them are none."""
    if type(value) is list and len(value) == 1 and type(value[0]) is dict:
        return value, 0  # as nearly all are
    if value is None or value == {}:
        return [], 0
    if isinstance(value, dict):
        by_index = all(index_of(key) is not None for key in value)
        value = list(value.values()) if by_index else [value]
    if not isinstance(value, list):
        return [], 1
    objects = [item for item in value if isinstance(item, dict)]
    return objects, len(value) - len(objects)
