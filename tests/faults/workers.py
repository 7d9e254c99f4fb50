"""A gateway of several workers under test, and what is known of them from outside.

    workers = Workers(await start_gateway(config), 3)
    await workers.served()                      # all of them
    workers.kill(1)
    await workers.served({1: 2})                # the second one of that number

This file does not know what they serve.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.ledger import Scrape
from tests.kit.program import Gateway
from tests.kit.sse_client import request

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Workers:
    """The workers of a running gateway.

    Args:
        gateway: started.
        count: of its workers.
    """

    def __init__(self, gateway: Gateway, count: int) -> None:
        self.gateway = gateway
        self.count = count

    async def served(self, times: Mapping[int, int] | None = None) -> None:
        """Return when each of these workers has said so often that it serves; once for all by default."""
        wanted = times or dict.fromkeys(range(self.count), 1)
        await self.gateway.said(lambda _: self._has_served(wanted), f"that workers served {wanted}", timeout=15)

    def _has_served(self, wanted: Mapping[int, int]) -> bool:
        said = Counter(line.get("worker", 0) for line in self.gateway.log_lines("serving"))
        return all(said[number] >= times for number, times in wanted.items())

    def pid(self, number: int) -> int:
        """Of the newest worker of this number."""
        lines = [line for line in self.gateway.log_lines("serving") if line["worker"] == number]
        pid: int = lines[-1]["pid"]
        return pid

    @property
    def pids(self) -> list[int]:
        """Of all children of the supervisor, dead ones that it has not buried among them."""
        children = Path(f"/proc/{self.gateway.pid}/task/{self.gateway.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self, number: int) -> None:
        """As a crash would."""
        os.kill(self.pid(number), signal.SIGKILL)

    def admin(self, number: int) -> str:
        """The URL of one worker's admin listener."""
        host, first = self.gateway.admin.rsplit(":", 1)
        return f"{host}:{int(first) + number}"

    async def scrape(self, number: int) -> Scrape:
        """`GET /metrics` of one worker."""
        async with await request(f"{self.admin(number)}/metrics") as answer:
            return Scrape((await answer.body()).decode())

    async def total(self, name: str, **labels: str) -> float:
        """The sum of a metric over all workers."""
        scrapes = await asyncio.gather(*map(self.scrape, range(self.count)))
        return sum(scrape.total(name, **labels) for scrape in scrapes)

    async def come_to(self, total: float, name: str) -> None:
        """Return when the sum of a metric over all workers is so much."""
        for _ in range(250):  # nothing tells when a connection was given up
            if await self.total(name) == total:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{name} is {await self.total(name)}, not {total}")

    async def logged_by_all(self, event: str, **fields: Any) -> None:
        """Return when every worker logged it."""
        for number in range(self.count):
            await self.gateway.logged(event, worker=number, **fields)


async def ended(pid: int) -> None:
    """Return when the process, which need not be a child, has ended."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def home(stream_id: str) -> int:
    """The worker that has the stream."""
    return ALPHABET.index(stream_id[0])
