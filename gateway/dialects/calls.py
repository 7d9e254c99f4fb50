"""Tool calls as they leave the dialects: in OpenAI's pieces, with numbers from 0 and with unique ids.

The first piece of a call has its id, its type and its name; further pieces have arguments only. A call without
arguments gets `{}`, because clients read the arguments as JSON.
"""

from typing import Any

from gateway.core.pieces import ToolCalls, without_arguments


class Calls:
    """The tool calls of one answer.

    Args:
        salt: what makes ids unique that are given here; "" for ids that are unique in this answer only.
        taken: ids that the conversation has already.
    """

    __slots__ = ("_empty", "_held", "_ids", "_names", "_salt", "_taken", "_tracked")

    def __init__(self, salt: str = "", taken: frozenset[str] = frozenset()) -> None:
        self._salt = salt
        self._taken = taken
        self._ids: list[str] = []
        self._names: list[str] = []  # of the calls that were read, as far as they were told
        self._empty: set[int] = set()  # calls that have no arguments so far
        self._held: dict[str, Any] | None = None
        self._tracked = ToolCalls()

    def __len__(self) -> int:
        return len(self._ids)

    def begin(self, id_: str, name: str, arguments: str = "", type_: str = "function") -> dict[str, Any]:
        """The first piece of a call that is known to be a new one. A call that has a name gets an id, too."""
        number = len(self._ids)
        piece: dict[str, Any] = {"index": number, "function": {"arguments": arguments}}
        if name:
            piece["function"] = {"name": name, "arguments": arguments}
        if type_:
            piece = {"index": number, "type": type_, **piece}
        if id_ or name:
            id_ = self._unique(id_, number)
            piece = {"index": number, "id": id_, **piece}
        self._ids.append(id_)
        if not arguments:
            self._empty.add(number)
        return piece

    def go_on(self, number: int, arguments: str) -> dict[str, Any]:
        """A further piece of a call."""
        if arguments:
            self._empty.discard(number)
        return {"index": number, "function": {"arguments": arguments}}

    def read(self, index: int | None, id_: str, name: str, arguments: str, type_: str = "") -> list[dict[str, Any]]:
        """A piece as an upstream sends it, with the right number; nothing where it says nothing.

        A call that begins with the arguments `{}` is held until the next piece: some servers send the real ones then.
        """
        if not (id_ or name or arguments):
            return []
        known = len(self._ids)
        number = self._tracked.number(index, id_, name, arguments)
        if number is None:
            return []
        if (number == known or number in self._empty) and without_arguments(arguments):
            arguments = ""  # others may still come; if none do, `rest` gives `{}`
        held = self.release(number, arguments)
        if number == known:
            self._names.append(name)
            piece = self.begin(id_, name, arguments, type_)
            if arguments.strip() == "{}":
                self._held = piece
                return held
            return [*held, piece]
        whole, told = self._tracked.name(number), self._names[number]
        if whole == told and not arguments:
            return held
        piece = self.go_on(number, arguments)
        if whole != told:
            self._names[number] = whole
            piece["function"] = {"name": whole.removeprefix(told), **piece["function"]}
        return [*held, piece]

    def release(self, number: int | None = None, arguments: str = "") -> list[dict[str, Any]]:
        """The held piece; without its arguments if this piece brings the real ones."""
        held, self._held = self._held, None
        if held is None:
            return []
        if held["index"] == number and arguments:
            held["function"]["arguments"] = ""
        return [held]

    def rest(self) -> list[dict[str, Any]]:
        """The arguments of the calls that have none. To be called when nothing more can come; it may be repeated."""
        empty, self._empty = sorted(self._empty), set()
        return [*self.release(), *(self.go_on(number, "{}") for number in empty)]

    def _unique(self, id_: str, number: int) -> str:
        if id_ and id_ not in self._taken and id_ not in self._ids:
            return id_
        return f"{id_ or 'call'}_{self._salt}{number}"
