"""Collections that take little memory where there are thousands of them.

`collections.deque` takes 760 bytes even when it is empty; three of them for every stream were 6 % of its memory. A set
of a few names takes 216, and a stream has two of them; requests of one application have the same.
"""

from typing import Final, TypeVar

T = TypeVar("T")

MAX_SETS: Final = 512
"""Sets that are shared, at most: clients choose the names."""
MAX_CHARACTERS: Final = 512
"""Characters of all names of one."""
_sets: Final[dict[frozenset[str], frozenset[str]]] = {}


def shared(names: frozenset[str]) -> frozenset[str]:
    """An equal set, the same one for all who ask with these names; `names` itself where that is not kept."""
    kept = _sets.get(names)
    if kept is None and len(_sets) < MAX_SETS and sum(map(len, names)) <= MAX_CHARACTERS:
        kept = _sets[names] = names
    return names if kept is None else kept


class Few(list[T]):
    """A queue that is nearly always empty or short: a list with the one method of a deque that is needed.

    `popleft` moves all other items, which is cheap for a few.
    """

    __slots__ = ()

    def popleft(self) -> T:
        """Removes the first item and returns it.

        Raises:
            IndexError: the queue is empty.
        """
        return self.pop(0)
