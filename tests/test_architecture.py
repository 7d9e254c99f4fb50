"""Architecture: imports go only downwards, in no circle; the sans-IO rooms import nothing that does I/O; private names
of aiohttp stand in one file a side."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).parent.parent
# Each room may import the rooms above it. Rooms of one line are neighbours and do not know each other.
ROOMS = (
    {"core"},
    {"dialects"},
    {"formats"},
    {"config"},
    {"clock"},
    {"observe"},
    {"upstream"},
    {"identity", "streams"},
    {"store"},
    {"web"},
    {"admin"},
    {"app"},
    {"process"},
    {"cli"},
    {"__main__"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
PURE = ("core", "dialects", "formats")
IMPURE = {"asyncio", "aiohttp", "time", "random", "logging", "structlog", "prometheus_client", "socket", "threading"}

INTERNALS = {"gateway.upstream.aiohttp_internals", "gateway.web.aiohttp_internals"}

Sources = dict[str, ast.Module]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def sources() -> Sources:
    return {module_name(path): ast.parse(path.read_bytes()) for path in sorted(ROOT.glob("gateway/**/*.py"))}


def imports(module: str, nodes: Iterable[ast.AST], known: Sources) -> Iterator[str]:
    """The modules that these parts of one file import, also inside functions."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import; imports name their module in full"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else str(node.module) for name in names)


def room(module: str) -> str:
    return (f"{module}.").split(".")[1]


def upward(sources: Sources) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, tree in sources.items()
        for target in imports(module, ast.walk(tree), sources)
        if target.split(".")[0] == "gateway" and not may_import(room(module), room(target))
    ]


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or imported == "":  # `gateway` itself is a docstring and the version
        return True
    if importer == "demo":
        return imported == "core"
    if imported == "demo":
        return importer in {"app", "process", "cli"}
    return RANK.get(imported, len(ROOMS)) < RANK.get(importer, -1)


def impure(sources: Sources) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, tree in sources.items()
        for target in imports(module, ast.walk(tree), sources)
        if room(module) in PURE and target.split(".")[0] in IMPURE
    ]


def at_run_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Every part but what is imported for types only: that draws an arrow, but it runs nothing."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        left.extend(ast.iter_child_nodes(node))


def cycle(sources: Sources) -> list[str]:
    graph = {
        name: {to for to in imports(name, at_run_time(tree), sources) if to in sources}
        for name, tree in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


@cache
def own_names(class_: ast.ClassDef) -> set[str]:
    """The private names that a class gives to itself: methods, fields, slots."""
    names: set[str] = set()
    for node in ast.walk(class_):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # in `__slots__`, or a text that is no name
    return {name for name in names if is_private(name)}


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def classes(trees: Iterable[ast.Module]) -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def inherited(class_: ast.ClassDef, known: dict[str, ast.ClassDef], foreign: dict[str, ast.ClassDef]) -> set[str]:
    """The private names of aiohttp that a class of ours inherits."""
    names: set[str] = set()
    for base in class_.bases:
        package, _, name = ast.unparse(base).partition("[")[0].rpartition(".")
        if name in known and not package:
            names |= inherited(known[name], known, foreign)
        elif name in foreign and foreign[name] is not class_:
            names |= own_names(foreign[name]) | inherited(foreign[name], {}, foreign)
    return names


def intrusions(sources: Sources, foreign: dict[str, ast.ClassDef]) -> list[str]:
    """Uses of private names of aiohttp: on other objects, and on `self` in classes that inherit them."""
    known = classes(sources.values())
    all_names = {name for class_ in foreign.values() for name in own_names(class_)}
    found = []
    for module, tree in sources.items():
        if module in INTERNALS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in all_names and not is_self(node.value):
                found.append(f"{module}: {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "setattr", "delattr", "hasattr"}:
                named = {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
                found += [f"{module}: {name}" for name in all_names if name in named]
            elif isinstance(node, ast.ClassDef):
                taken = inherited(node, known, foreign)
                uses = {use.attr for use in ast.walk(node) if isinstance(use, ast.Attribute) and is_self(use.value)}
                found += [f"{module}: {node.name}.{name}" for name in sorted(taken & (uses | own_names(node)))]
    return found


@pytest.fixture(scope="module")
def foreign() -> dict[str, ast.ClassDef]:
    """The classes of aiohttp."""
    assert aiohttp.__file__ is not None
    return classes(ast.parse(path.read_bytes()) for path in Path(aiohttp.__file__).parent.glob("*.py"))


def test_house_has_no_room_without_a_place(sources: Sources) -> None:
    assert {room(module) for module in sources} <= RANK.keys() | {"", "demo"}


def test_house_imports_only_downwards(sources: Sources) -> None:
    assert upward(sources) == []


def test_house_has_no_import_cycle(sources: Sources) -> None:
    assert cycle(sources) == []


def test_house_does_no_io_in_its_core(sources: Sources) -> None:
    assert impure(sources) == []


def test_house_touches_private_names_of_aiohttp_in_one_file_a_side(
    sources: Sources, foreign: dict[str, ast.ClassDef]
) -> None:
    assert intrusions(sources, foreign) == []
    assert sources.keys() >= INTERNALS


def test_house_says_what_each_file_is(sources: Sources) -> None:
    assert [module for module, tree in sources.items() if not ast.get_docstring(tree)] == []


def plans(**files: str) -> Sources:
    return {f"gateway.{name.replace('_', '.')}": ast.parse(text) for name, text in files.items()}


def test_checker_sees_an_upward_import() -> None:
    assert upward(plans(core_sse="def f():\n    from gateway.web import page", web="")) == [
        "gateway.core.sse imports gateway.web"
    ]
    assert upward(plans(observe="import gateway.streams", streams="")) == ["gateway.observe imports gateway.streams"]
    assert upward(plans(demo="from gateway.formats import View", formats="")) == [
        "gateway.demo imports gateway.formats"
    ]
    assert upward(plans(web="from gateway.core import event\nimport gateway.formats", formats="")) == []


def test_checker_sees_a_cycle() -> None:
    circle = plans(core_a="from gateway.core import b", core_b="from gateway.core.a import x")
    assert set(cycle(circle)) == {"gateway.core.a", "gateway.core.b"}
    assert cycle(plans(core_a="from gateway.core import b", core_b="")) == []
    assert cycle(plans(core_a="from gateway.core import b", core_b="if TYPE_CHECKING: import gateway.core.a")) == []


def test_checker_sees_io_in_the_core() -> None:
    assert impure(plans(core_a="from time import monotonic", web="import time")) == ["gateway.core.a imports time"]


def test_checker_sees_a_private_name_of_aiohttp(foreign: dict[str, ast.ClassDef]) -> None:
    def seen(text: str) -> list[str]:
        return intrusions(plans(web=text), foreign)

    assert seen("content._buffer = []") == ["gateway.web: content._buffer"]
    assert seen("getattr(x, '_buffer')") == ["gateway.web: _buffer"]
    assert seen("class Server(web.Server):\n def f(self):\n  self._kwargs") == ["gateway.web: Server._kwargs"]
    assert seen("class A(web.Response):\n _send_headers_immediately = 1") == [
        "gateway.web: A._send_headers_immediately"
    ]
    assert seen("class A(web.RequestHandler): ...\nclass B(A):\n def f(self):\n  self._drain_helper()") == [
        "gateway.web: B._drain_helper"
    ]
    assert seen("class A(web.Server):\n def f(self):\n  self._own = self.connections") == []
    assert seen("class A:\n def f(self):\n  self._buffer = []") == []
