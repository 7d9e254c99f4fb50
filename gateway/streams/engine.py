"""What all generations of a process share."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock
from gateway.core.errors import GatewayError
from gateway.observe import ended
from gateway.observe.account import Account
from gateway.observe.ended import Ended
from gateway.observe.failures import Failures
from gateway.observe.metrics import Metrics
from gateway.observe.recent import Recent
from gateway.observe.tracing.span import OFF, Tracing
from gateway.streams.registry import Registry
from gateway.streams.turns import Turns


class Running(Protocol):
    """A generation that has not ended, as the rest of the process sees it."""

    account: Account
    admitted: float
    ended: "asyncio.Future[None]"

    @property
    def state(self) -> str:
        """`waiting` for the first event, or `streaming`."""

    def abort(self, error: GatewayError) -> None:
        """It ends now, with this error."""

    def extend(self, expires_in: float | None) -> None:
        """Its owner came with a credential that expires in so many seconds, None for never."""

    def stop(self) -> None:
        """Ends it with what it has, because the user wants no more."""

    def read_elsewhere(self, seconds: float) -> None:
        """It is read at another node. That counts for so many seconds."""

    def left_elsewhere(self, seconds: float) -> None:
        """A reader at another node left. Where there are others, they say so within so many seconds."""

    def describe(self, now: float) -> dict[str, Any]:
        """Its entry in the answer to `GET /streams`, as of this moment of the loop's clock."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What all generations of a process share.

    Attributes:
        clock: the shared timers.
        registry: the streams that can be read here.
        metrics: the process's metrics.
        logger: the process's log.
        session: the HTTP client.
        running: the generations that have not ended, by stream id.
        tracing: begins spans.
        failures: attempts and streams that failed, logged and kept.
        ended: the streams that ended last.
        turns: for work that takes long at a stretch.
    """

    clock: Clock
    registry: Registry
    metrics: Metrics
    logger: FilteringBoundLogger
    session: aiohttp.ClientSession
    running: dict[str, Running] = field(default_factory=dict)
    tracing: Tracing = OFF
    failures: Failures = field(default_factory=Failures)
    ended: Recent[Ended] = field(default_factory=lambda: Recent(ended.KEPT))
    turns: Turns = field(default_factory=Turns)
