"""The newest records of one sort, in memory, for an operator who looks after something happened. They are bounded."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The newest records.

    Args:
        kept: how many; an older one is forgotten for each further one.

    Attributes:
        count: how many there ever were. A reader compares it to see whether there are new ones.
    """

    def __init__(self, kept: int) -> None:
        self.count = 0
        self._records: deque[T] = deque(maxlen=kept)

    def add(self, record: T) -> None:
        """Keeps this record as the newest."""
        self._records.append(record)
        self.count += 1

    def newest(self, most: int | None = None) -> Iterator[T]:
        """The records, the newest first; at most so many."""
        return islice(reversed(self._records), most)
