"""What any test may ask for: the real gateway, started by its command and ended with the test; and chance, with a seed.

Chance begins anew for each test, from a seed that is told with a failure: `TEST_SEED=… pytest …` repeats the run, in
whatever order and selection.

Test files run side by side (pytest-xdist), each in one process, the slow ones first. A test that measures time is
marked `alone`: it has no other test beside it, in any process. Tests in a browser run one after the other.
"""

import fcntl
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.kit.program import Gateway

settings.register_profile("shared", deadline=None)  # other processes may hold a test up
settings.load_profile("shared")

SEED = int(os.environ.setdefault("TEST_SEED", str(random.randrange(1 << 30))))  # xdist's processes inherit it
SLOW = ("real", "faults", "process")
"""Folders whose tests mostly wait. They begin, so that the others fill the time that they leave."""
StartGateway = Callable[..., Awaitable[Gateway]]


def is_alone(item: pytest.Item) -> bool:
    """Whether no other test may run at the same time, because it measures time."""
    return item.get_closest_marker("alone") is not None


def in_browser(item: pytest.Item) -> bool:
    """Whether it drives Chromium, which takes a core or two for itself: two of them at once would miss their limits."""
    return "browser" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: in a browser, slow folders, other folders, tests that run alone. A file's tests, and those in a
    browser, keep to one process."""

    def order(item: pytest.Item) -> tuple[bool, bool, bool]:
        return is_alone(item), not in_browser(item), item.path.parent.name not in SLOW

    items.sort(key=order)
    for item in items:
        shared = "alone" if is_alone(item) else "browser" if in_browser(item) else ""
        item.add_marker(pytest.mark.xdist_group(shared or str(item.path.relative_to(item.config.rootpath))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is to be alone wait until no other test runs, in any process; this time is not its own."""
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
        return (yield)


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
