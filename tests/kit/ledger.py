"""The books of a gateway under test: what it counts, and what it owes when a test is over.

    async with Ledger(gateway) as ledger:
        ...                                    # streams begin and end, in whatever way
        before = await ledger.scrape()         # figures of /metrics
    # leaving the block waits for the gateway to be at rest, and fails the test when it never is

- At rest: `GET /streams` is empty, no gauge of readers or streams is above 0, and the process has no more file
  descriptors than before. An upstream that keeps connections alive is a debt too: end its scripts with `Cut()`.
- A gateway that has ended owes nothing.

This file does not know what the tests do.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.kit.program import Gateway
from tests.kit.sse_client import request

PATIENCE = 5.0
POLL = 0.05


class Sample(NamedTuple):
    """One line of /metrics."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """One reading of /metrics.

    Args:
        text: as it was served.
    """

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [Sample(s.name, dict(s.labels), s.value) for family in families for s in family.samples]

    @property
    def names(self) -> set[str]:
        """Every sample's name."""
        return {sample.name for sample in self.samples}

    def matching(self, name: str, **labels: str) -> Iterator[Sample]:
        """The samples of this name with at least these labels."""
        return (s for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that match, 0 where there is none."""
        return sum(sample.value for sample in self.matching(name, **labels))


class Books(NamedTuple):
    """What a gateway has open."""

    streams: int
    active: float
    readers: float
    descriptors: int


class Ledger:
    """Fails a test that leaves something open in the gateway.

    Args:
        gateway: a running one.
        patience: seconds it may take to come to rest.
    """

    def __init__(self, gateway: Gateway, patience: float = PATIENCE) -> None:
        self.gateway = gateway
        self._patience = patience
        self._descriptors = 0

    async def __aenter__(self) -> Self:
        self._descriptors = (await self.books()).descriptors
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None and self.gateway.running:
            await self.settle()

    async def settle(self) -> None:
        """Return when nothing is owed. Raises AssertionError with the debts after the patience."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while not self._balanced(books := await self.books()):
            assert loop.time() < deadline, f"left behind: {books}, before: {self._descriptors} descriptors"
            await asyncio.sleep(POLL)

    def _balanced(self, books: Books) -> bool:
        return books[:3] == (0, 0.0, 0.0) and books.descriptors <= self._descriptors

    async def books(self) -> Books:
        """What is open now; the look itself is not counted."""
        streams = await self.streams()
        scrape = await self.scrape("gateway_streams_active", "gateway_connections_active")
        active, readers = scrape.total("gateway_streams_active"), scrape.total("gateway_connections_active")
        return Books(len(streams), active, readers, await self._quiet_descriptors())

    async def _quiet_descriptors(self) -> int:
        # The gateway closes its side of our own look a moment after we did.
        counts = []
        for _ in range(3):
            counts.append(len(os.listdir(f"/proc/{self.gateway.pid}/fd")))
            await asyncio.sleep(0.01)
        return min(counts)

    async def streams(self) -> list[dict[str, Any]]:
        """`GET /streams`."""
        async with await request(f"{self.gateway.admin}/streams") as answer:
            listed: list[dict[str, Any]] = await answer.json()
            return listed

    async def scrape(self, *names: str) -> Scrape:
        """`GET /metrics`, of all names or of these."""
        query = "&".join(f"name[]={name}" for name in names)
        async with await request(f"{self.gateway.admin}/metrics?{query}") as answer:
            return Scrape((await answer.body()).decode())

    def rss(self) -> int:
        """Resident bytes of the process."""
        return int(Path(f"/proc/{self.gateway.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
