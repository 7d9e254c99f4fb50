"""What a target is: seeds, and a check that raises where a promise is broken."""

import random
import zlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

Check = Callable[[bytes, random.Random], Hashable]
"""Takes an input, and what further choices are drawn from. Gives what became of the input in a word or a few, None
where there is nothing to tell: inputs that lead to something new are kept and changed further."""


class Target(NamedTuple):
    """One reader of strangers' bytes.

    Attributes:
        seeds: inputs to begin with.
        check: raises where a promise is broken.
        weight: its part of the inputs of a run.
    """

    seeds: Sequence[bytes]
    check: Check
    weight: int = 1

    def attempt(self, data: bytes) -> Hashable:
        """Checks one input. All choices are drawn from the input itself: its bytes alone show a mistake again."""
        return self.check(data, random.Random(zlib.crc32(data)))
