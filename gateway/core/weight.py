"""What a JSON text takes in memory when it is parsed, found from its bytes before anything is made of them.

A parser makes objects as fast as it reads, and an empty array is two bytes on the wire and 64 in memory. So a text is
weighed first, by passes in C that make no objects: they take a tenth of the time that the worst text takes to parse.
The figures are in docs/adr/0010-weighed-bodies.md.
"""

import re
from collections import deque
from collections.abc import Generator
from typing import Final

MAX_VALUES: Final = 50_000
"""Values of one text: 10,000 messages, or 100 tools of 500 values each. They are parsed in 10 ms."""
MAX_ANSWERED: Final = 500_000
"""Values of one JSON text of a provider: more than a whole answer of 4 MiB has with the probabilities of its tokens, 20
of each. They are parsed in 0.1 s."""
LIGHT: Final = 64 * 1024
"""Bytes of a provider's JSON up to which it is not weighed: they cannot hold so much that it takes long."""
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


Weighing = Generator[None, None, int]
"""Weighs in steps, between which others may have their turn. The generator's value is the weight."""


def weighing(text: bytes | bytearray) -> Weighing:
    """Bytes that the text and its values take together, at most. A text that is no JSON may take less.

    What is in strings counts as values at first. Only where that is too much, it is counted without the strings.

    Raises:
        TooMuchError: there are more than `MAX_VALUES` values, or a number has more than `MAX_DIGITS` digits in a row.
    """
    try:
        return (yield from rough_weighing(text))
    except TooMuchError:
        return (yield from exact_weighing(text))


def rough_weighing(text: bytes | bytearray, most: int = MAX_VALUES) -> Weighing:
    """As `weighing`, but what is in strings counts as values.

    Raises:
        TooMuchError: see `weighing`; it may be that only strings hold so much.
    """
    values = 0
    for start in range(0, len(text), SLICE):
        yield
        forms = text[start : start + SLICE + MAX_DIGITS].translate(_FORMS)
        values += _values(forms, 0, SLICE)
        _check(values, most)
    return _weight(text, values)


def exact_weighing(text: bytes | bytearray, most: int = MAX_VALUES) -> Weighing:
    """As `weighing`, for a text that `rough_weighing` found too much in. Raises as `weighing`."""
    values = quotes = start = 0
    inside, before = False, b""  # whether the slice begins in a string, and what stood before it outside of strings
    while start < len(text):
        yield
        part = bytes(text[start : start + SLICE])
        if part.endswith(b"\\"):  # no escape is cut in two
            part = bytes(text[start : start + SLICE + 1]) if _backslashes(part) % 2 else part
        start += len(part)
        # Escapes are only in strings; without them every quote begins or ends one.
        bare = part.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in part else part
        quotes += bare.count(b'"')
        _check(quotes // 4, most)  # a name and a value each
        outside = _STRING.sub(b"", b'"' + bare if inside else bare)
        inside = quotes % 2 == 1
        if inside:
            outside = outside[: outside.rindex(b'"')]
        forms = before + outside.translate(_FORMS)
        values += _values(forms, len(before), len(forms))
        _check(values, most)
        before = forms[-MAX_DIGITS:]
    return _weight(text, values)


def is_heavy(text: str | bytes | bytearray) -> bool:
    """Whether a provider's JSON has more than `MAX_ANSWERED` values, or more than `MAX_DIGITS` digits in a row.

    Such a text is not to be parsed: it would take too long.
    """
    if len(text) <= LIGHT:
        return False
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        deque(rough_weighing(raw, MAX_ANSWERED), 0)
    except TooMuchError:
        try:
            deque(exact_weighing(raw, MAX_ANSWERED), 0)
        except TooMuchError:
            return True
    return False


def _backslashes(part: bytes) -> int:
    """How many there are at the end."""
    return len(part) - len(part.rstrip(b"\\"))


def _values(forms: bytes | bytearray, start: int, end: int) -> int:
    if _LONG_NUMBER in forms:
        raise TooMuchError(f"A number in the body has more than {MAX_DIGITS} digits.")
    return forms.count(b",", start, end)


def _check(values: int, most: int) -> None:
    if values > most:
        raise TooMuchError(_too_many(most))


def _weight(text: bytes | bytearray, values: int) -> int:
    # One wide character makes every character of its string as wide: an emoji makes them four bytes each.
    wide = not text.isascii() or b"\\u" in text
    return len(text) * (6 if wide else 3) + values * VALUE


def _too_many(most: int) -> str:
    return f"The body has more than {most} values."
