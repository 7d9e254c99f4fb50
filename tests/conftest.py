"""What any test may ask for: the real gateway, started by its command and ended with the test; and chance, with a seed.

Chance begins anew for each test, from a seed that is told with a failure: `TEST_SEED=… pytest …` repeats the run, in
whatever order and selection.

Test files run side by side (pytest-xdist), each in one process; those that use a browser are two groups, as one would
take longer than all others. Browsers take a core or two for themselves, so they begin, beside tests that compute; those
that wait, and have limits of time, come later.
A test that measures time is marked `alone`: `make test` runs these afterwards, in one process.
"""

import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.kit.program import ROOT, Gateway

settings.register_profile("shared", deadline=None)  # other processes may hold a test up
settings.load_profile("shared")

SEED = int(os.environ.setdefault("TEST_SEED", str(random.randrange(1 << 30))))  # xdist's processes inherit it
SLOW = ("real", "faults", "process")
"""Folders whose tests mostly wait."""
StartGateway = Callable[..., Awaitable[Gateway]]


BROWSER = re.compile(r"playwright\.async_api|tests\.real\.engines")
"""What a file imports that uses a browser."""

ALONE = "mark.alone"
"""What a file contains that has tests which measure."""


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Gives the tests of a file to one process, and those of the files that use a browser to two."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if not _uses_browser(path):
            return path
        return "first browser" if Path(path).stem < "test_engines" else "second browser"


@cache
def _source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def _uses_browser(path: str) -> bool:
    return BROWSER.search(_source(path)) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """The scheduler of the process that hands the tests out."""
    return ByFile(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files without a test that measures, where only those run: reading them all takes ten seconds."""
    measured = config.getoption("markexpr") == "alone"
    return True if measured and collection_path.suffix == ".py" and ALONE not in _source(str(collection_path)) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: in a browser, those that compute, those that wait."""

    def order(item: pytest.Item) -> tuple[bool, bool]:
        return not _uses_browser(str(item.path)), item.path.parent.name in SLOW

    items.sort(key=order)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that are the same in every run with the same seed."""
    request.node.add_report_section("setup", "seed", f"TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.path.name} {request.node.name}")  # its id depends on the process


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """`await start_gateway(config, env=…)` is a serving gateway; with the test it is ended and must exit with 0."""
    async with AsyncExitStack() as stack:
        started = 0

        async def start(config: str | Mapping[str, Any], *, env: Mapping[str, str] | None = None) -> Gateway:
            nonlocal started
            started += 1
            directory = tmp_path / f"gateway-{started}"
            directory.mkdir()
            return await stack.enter_async_context(Gateway(config, directory, env=env))

        yield start
