"""A queue that is nearly always empty or short.

`collections.deque` takes 760 bytes even when it is empty; three of them for every stream were 6 % of its memory.
"""

from typing import TypeVar

T = TypeVar("T")


class Few(list[T]):
    """A list with the one method of a deque that is needed. `popleft` moves all other items, which is cheap for a
    few."""

    __slots__ = ()

    def popleft(self) -> T:
        """Removes the first item and returns it.

        Raises:
            IndexError: the queue is empty.
        """
        return self.pop(0)
