"""How late the gateway's event loop is, as it tells by itself at /metrics.

This file does not know what keeps the loop busy.
"""

import asyncio
import math
import re
from dataclasses import dataclass
from typing import Final, Self

from bench.programs import Program, Stage

MOST: Final = 0.999
SCRAPE_SECONDS: Final = 10.0
_BUCKET: Final = re.compile(rb'^gateway_event_loop_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.]+)$', re.MULTILINE)

Buckets = dict[float, float]
"""Upper bounds in seconds to how many looks found the loop late by at most so much."""


def bound(before: Buckets, after: Buckets) -> float | None:
    """The least bound that `MOST` of the looks between two scrapes were within, in seconds; None without a look."""
    counts = {limit: count - before.get(limit, 0.0) for limit, count in after.items()}
    looks = max(counts.values(), default=0.0)
    return min((limit for limit, count in counts.items() if count >= MOST * looks), default=None) if looks else None


def parsed(text: bytes) -> Buckets:
    """The buckets in an answer of /metrics."""
    return {float(limit): float(count) for limit, count in _BUCKET.findall(text)}


async def scrape(port: int) -> Buckets:
    """The buckets as they are now."""
    async with asyncio.timeout(SCRAPE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        text = await reader.read(-1)
        writer.close()
    return parsed(text)


@dataclass(frozen=True, slots=True)
class Lag:
    """The lag of one program from one moment on.

    Attributes:
        port: of its admin listener, 0 where it has none.
        before: what it told at that moment.
    """

    port: int
    before: Buckets

    @classmethod
    async def of(cls, program: Program, stage: Stage) -> Self:
        """From now on."""
        port = stage.admin_port if program.heartbeat is not None else 0  # the gateway alone has heartbeats
        return cls(port, await scrape(port) if port else {})

    async def since(self) -> float | None:
        """Milliseconds, the bound of a bucket; None where the program does not tell."""
        limit = bound(self.before, await scrape(self.port)) if self.port else None
        return None if limit is None or math.isinf(limit) else 1000 * limit
