"""A YAML document read strictly: plain data, the line of every key, and every problem on the way.

The subset of YAML 1.2 that is read has only one interpretation. Anchors, aliases, merge keys, tags and duplicate keys
are problems. Plain scalars are null, true, false, whole numbers and decimal fractions as in the core schema, and text
otherwise: `no`, `on`, `22:30` and `2027-01-31` are text.

References are replaced after the YAML was parsed, so a variable's value can never add a key. A plain scalar that held a
reference is a whole number or a boolean if it looks like one after the replacement, and text if not.

Invariants:

- Whatever is wrong, the rest of the document is read.
- A document is at most 1 MiB, and nested at most 32 levels deep.

This file does not know which keys exist. Source: YAML 1.2.2 10.3.2.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gateway.config.expand import Expander
from gateway.config.mistakes import is_glued, mistake
from gateway.config.problems import KeyPath

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32

_INT: Final = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,4})?")
_WORDS: Final[dict[str, bool | None]] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"), None)
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)


class Document:
    """The content of a YAML text.

    Args:
        text: the document, at most `MAX_BYTES`.
        expander: replaces references.

    Attributes:
        data: dicts, lists, str, int, float, bool and None; None where nothing could be read.
        lines: the line of every key and list item, counted from 1.
        problems: line, key path and message of everything that is wrong.
        unread: the paths of values that could not be read; `data` has an empty text there.
    """

    def __init__(self, text: str, expander: Expander) -> None:
        self.data: Any = None
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[tuple[int, KeyPath, str]] = []
        self.unread: set[KeyPath] = set()
        self._expander = expander
        self._read(text)

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the innermost mapping or list around it that exists."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def _read(self, text: str) -> None:
        try:
            root = _Composer(text, self._refuse).get_single_node()
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._refuse(line, (), "holds a control character; allowed: printable text, tab and line feed")
        except yaml.MarkedYAMLError as error:
            wrong = mistake(text, error)
            self._refuse(wrong.line, (), f"is not YAML: {wrong.reason}")
        else:
            self.data = self._value(root, ()) if root else {}

    def _refuse(self, line: int, path: KeyPath, message: str) -> None:
        self.problems.append((line, path, message))

    def _value(self, node: Node, path: KeyPath) -> Any:
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node, path)

    def _item(self, node: Node, path: KeyPath) -> Any:
        self.lines[path] = _line(node)
        return self._value(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            # A key with a problem is left out with its value; of two equal keys the first one stays.
            complaint = _complaint(key, mapping)
            if complaint:
                self._refuse(_line(key), (*path, key.value) if isinstance(key, ScalarNode) else path, complaint)
                continue
            # A value such as `listen:8080` on a line of its own should have been a key: that line is what is wrong.
            glued = isinstance(value, ScalarNode) and value.style is None and is_glued(value.value)
            self.lines[(*path, key.value)] = _line(value if glued else key)
            mapping[key.value] = self._value(value, (*path, key.value))
        return mapping

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        try:
            text = _encodable(self._expander.expand(node.value))
        except ValueError as error:
            self._refuse(_line(node), path, str(error))
            self.unread.add(path)
            return ""
        if node.style is not None:  # quoted, or a block: text whatever it looks like
            return text
        return _resolve(text) if text == node.value else _resolve_replaced(text)


class _Composer(yaml.SafeLoader):
    """PyYAML's composer without the parts of YAML that make a config ambiguous."""

    def __init__(self, text: str, refuse: Callable[[int, KeyPath, str], None]) -> None:
        super().__init__(text)
        self._refuse = refuse
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        # Called for every node before it is built, so nothing that is refused here ever becomes data.
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            self._refuse(line, (), "holds an alias (*name); allowed: write the value out")
            return _blank(event)
        self._strip(event, line)
        return self._compose_deeper(parent, index, event)

    def _strip(self, event: Any, line: int) -> None:
        if event.anchor is not None:
            event.anchor = None
            self._refuse(line, (), "holds an anchor (&name); allowed: no anchors, write the value out")
        if event.tag is not None:
            event.tag = None
            self._refuse(line, (), "holds a tag (!name); allowed: no tags")

    def _compose_deeper(self, parent: Node | None, index: int, event: Any) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, f"it is nested too deeply; allowed: {MAX_DEPTH} levels", event.start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _blank(event: Any) -> ScalarNode:
    return ScalarNode("tag:yaml.org,2002:str", "", event.start_mark, event.end_mark, '"')


def _complaint(key: Node, known: dict[str, Any]) -> str:
    """What is wrong with `key`, given the keys before it in its mapping; "" for nothing."""
    if isinstance(key, MappingNode):
        return "holds {{ … }}, which is not replaced here; allowed: ${NAME}"
    if not isinstance(key, ScalarNode):
        return "a key must be a word; allowed: text"
    if key.value == "<<" and key.style is None:
        return "merge keys are not supported; allowed: write the keys out"
    if not key.value.isprintable():
        return "a key must be printable; allowed: letters, digits and signs"
    return "is there twice; allowed: each key once" if key.value in known else ""


def _encodable(text: str) -> str:
    """`text`, if it can be written in UTF-8.

    Raises:
        ValueError: it holds half a character.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("holds bytes that are not UTF-8; allowed: text")
    return text


def _resolve(text: str) -> Any:
    """The value of a plain scalar, by the core schema of YAML 1.2. Longer numbers and infinities are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    number = float(text) if len(text) < 64 and _FLOAT.fullmatch(text) else math.inf
    return number if math.isfinite(number) else text


def _resolve_replaced(text: str) -> Any:
    # A key such as 1e5 or null from a variable is more often a secret than a fraction or nothing. bool is an `int`.
    value = _resolve(text)
    return value if isinstance(value, int) else text


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
