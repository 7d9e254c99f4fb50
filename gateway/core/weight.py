"""What a JSON text takes in memory when it is parsed, found from its bytes before anything is made of them.

A parser makes objects as fast as it reads, and an empty array is two bytes on the wire and 64 in memory. So a text is
weighed first, by passes in C that make no objects: they take a tenth of the time that the worst text takes to parse.
The figures are in docs/adr/0010-weighed-bodies.md.
"""

import re
from typing import Final

MAX_VALUES: Final = 50_000
"""Values of one text: 10,000 messages, or 100 tools of 500 values each. They are parsed in 10 ms."""
MAX_DIGITS: Final = 100
"""Digits of one number in a row. The longest number that means something to a double has 17; time grows as their
square."""
SLICE: Final = 64 * 1024
"""Bytes that are looked at at once, so that a look takes little memory."""
VALUE: Final = 120
"""Bytes of a value in memory, at most on average: an object in an object of one member each."""

_FORMS: Final = bytes(ord("0" if byte in b"0123456789" else "," if byte in b",[{" else " ") for byte in range(256))
"""Makes every digit a 0, and everything that a value follows a comma."""
_LONG_NUMBER: Final = b"0" * (MAX_DIGITS + 1)
_STRING: Final = re.compile(rb'"[^"]*"')


class TooMuchError(ValueError):
    """The text may hold more values, or longer numbers, than are allowed. The message says which."""


def weight(text: bytes) -> int:
    """Bytes that the text and its values take together, at most; what is in strings counts as values here.

    Raises:
        TooMuchError: see `exact_weight`, which may find that it is only in strings.
    """
    return _weight(text, _values(text))


def exact_weight(text: bytes) -> int:
    """As `weight`, and what is in strings does not count. A text that is no JSON may come out lighter than it is.

    Raises:
        TooMuchError: there are more than `MAX_VALUES` values, or a number has more than `MAX_DIGITS` digits in a row.
    """
    # Escapes are only in strings; without them every quote begins or ends one.
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text
    if bare.count(b'"') > 4 * MAX_VALUES:  # a name and a value each
        raise TooMuchError(_too_many())
    return _weight(text, _values(_STRING.sub(b"", bare)))


def _values(text: bytes) -> int:
    values = 0
    for start in range(0, len(text), SLICE):
        forms = text[start : start + SLICE + MAX_DIGITS].translate(_FORMS)
        values += forms.count(b",", 0, SLICE)
        if values > MAX_VALUES:
            raise TooMuchError(_too_many())
        if _LONG_NUMBER in forms:
            raise TooMuchError(f"A number in the body has more than {MAX_DIGITS} digits.")
    return values


def _weight(text: bytes, values: int) -> int:
    # One wide character makes every character of its string as wide: an emoji makes them four bytes each.
    wide = not text.isascii() or b"\\u" in text
    return len(text) * (6 if wide else 3) + values * VALUE


def _too_many() -> str:
    return f"The body has more than {MAX_VALUES} values."
