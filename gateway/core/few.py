"""A queue for what hardly ever waits.

`collections.deque` takes 760 bytes however little it holds; three of those for every stream were 6 % of its memory.
"""

from typing import TypeVar

T = TypeVar("T")


class Few(list[T]):
    """A list that can stand in for a deque; taking the first item costs what moving the others does."""

    __slots__ = ()

    def popleft(self) -> T:
        """The first item, which is no longer in the queue.

        Raises:
            IndexError: there is none.
        """
        return self.pop(0)
