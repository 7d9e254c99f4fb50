"""A `Connection` for a test, with what it logged."""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from structlog.testing import capture_logs

from gateway.config import Store
from gateway.observe.metrics import Metrics
from gateway.store.connection import Connection

Lines = list[MutableMapping[str, Any]]


class Stage:
    """A connection that was started.

    Attributes:
        connection: it.
        lines: what it logged.
        metrics: where it counts.
    """

    def __init__(self, connection: Connection, lines: Lines, metrics: Metrics) -> None:
        self.connection, self.lines, self.metrics = connection, lines, metrics

    def said(self, event: str) -> list[str]:
        """The sentences of the lines with this event."""
        return [str(line.get("says")) for line in self.lines if line["event"] == event]

    def count(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 where it is not there."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def connected(url: str, **keys: Any) -> AsyncIterator[Stage]:
    """A connection to this URL, after its first try; `keys` are further ones of `store`."""
    metrics = Metrics()
    with capture_logs() as lines:
        connection = Connection(Store.model_validate({"url": url} | keys), structlog.get_logger(), metrics)
        try:
            await connection.start()
            yield Stage(connection, lines, metrics)
        finally:
            await connection.close()
