"""What is measured of a store that several gateways share. Nothing of it is there where the store is the memory."""

from collections.abc import Collection
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.observe.meters import HistogramMeter

_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
OTHER: Final = "other"


class StoreMetrics:
    """The metrics of one process's way to the store.

    Args:
        registry: where they are registered.
        commands: the commands with a name of their own; all others are `other`.

    Attributes:
        up: 1 while the store is there.
        errors: times the store was lost or not reached, by kind.
        memory, limit: bytes that Redis uses, and may use; 0 for no limit.
    """

    def __init__(self, registry: CollectorRegistry, commands: Collection[str]) -> None:
        self.up = Gauge("gateway_store_up", "1 while the shared store is there.", registry=registry)
        self.errors = Counter(
            "gateway_store_errors_total",
            "Times the store was lost or not reached, by why.",
            ["kind"],
            registry=registry,
        )
        self.memory = Gauge("gateway_store_memory_bytes", "Memory that Redis uses.", registry=registry)
        self.limit = Gauge(
            "gateway_store_memory_limit_bytes", "Memory that Redis may use; 0 for no limit.", registry=registry
        )
        self._commands = commands
        self._seconds = HistogramMeter(
            "gateway_store_command_duration_seconds",
            "Time from a command to its reply.",
            ["command"],
            _SECONDS,
            registry,
        )

    def replied(self, command: str, seconds: float) -> None:
        """A command, in capitals, was replied to."""
        self._seconds.labels(command.lower() if command in self._commands else OTHER).observe(seconds)
