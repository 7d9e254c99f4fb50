"""Architecture: imports go only downwards, in no circle, and the sans-IO rooms import nothing that does I/O."""

import ast
from collections.abc import Iterator
from copy import deepcopy
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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
    {"streams"},
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

Sources = dict[str, ast.Module]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def sources() -> Sources:
    return {module_name(path): ast.parse(path.read_bytes()) for path in sorted(ROOT.glob("gateway/**/*.py"))}


def imports(module: str, tree: ast.Module, known: Sources) -> Iterator[str]:
    """The modules that one file imports anywhere in it, also inside functions and for types only."""
    for node in ast.walk(tree):
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
        for target in imports(module, tree, sources)
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
        for target in imports(module, tree, sources)
        if room(module) in PURE and target.split(".")[0] in IMPURE
    ]


class RunTime(ast.NodeTransformer):
    """Leaves out what is imported for types only: that draws an arrow, but it runs nothing."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def cycle(sources: Sources) -> list[str]:
    run = {name: RunTime().visit(deepcopy(tree)) for name, tree in sources.items()}
    graph = {name: {to for to in imports(name, tree, sources) if to in sources} for name, tree in run.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_house_has_no_room_without_a_place(sources: Sources) -> None:
    assert {room(module) for module in sources} <= RANK.keys() | {"", "demo"}


def test_house_imports_only_downwards(sources: Sources) -> None:
    assert upward(sources) == []


def test_house_has_no_import_cycle(sources: Sources) -> None:
    assert cycle(sources) == []


def test_house_does_no_io_in_its_core(sources: Sources) -> None:
    assert impure(sources) == []


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
