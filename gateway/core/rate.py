"""A rate: so many of something in so long. Written `60/min`, `10/s`, `1000/h`, `100000/day`.

Invariant: both numbers of a `Rate` are above 0. How a limit is kept is in `limits.py`.
"""

import re
from typing import Final, NamedTuple

WINDOWS: Final[dict[str, float]] = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": 86400.0}
"""How a window is written, and its length in seconds."""

PATTERN: Final = r"[1-9][0-9]{0,11}/(?:s|min|h|day)"
"""A written rate, as a regular expression that Python and JSON Schema read alike."""

_RATE: Final = re.compile(PATTERN)


class Rate(NamedTuple):
    """An amount in a window of time.

    Attributes:
        amount: how many, at least 1.
        seconds: the window, above 0.
    """

    amount: int
    seconds: float

    def __str__(self) -> str:
        names = {seconds: name for name, seconds in WINDOWS.items()}
        return f"{self.amount}/{names.get(self.seconds, f'{self.seconds:g}s')}"


def parse_rate(text: str) -> Rate:
    """The rate that `text` writes down.

    Args:
        text: an amount from 1 to 999999999999, a slash and `s`, `min`, `h` or `day`.

    Raises:
        ValueError: it is written in another way; the message says how to write it.
    """
    if not _RATE.fullmatch(text):
        raise ValueError(
            "is not a rate; allowed: an amount above 0 and a window, as in 10/s, 60/min, 1000/h, 100000/day"
        )
    amount, _, window = text.partition("/")
    return Rate(int(amount), WINDOWS[window])
