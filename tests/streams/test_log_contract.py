"""The log in memory keeps the contract of every log."""

from gateway.streams.log import Log, LogMemory, MemoryLog
from tests.streams.log_contract import LogContract


class TestMemoryLog(LogContract):
    def make(self, max_bytes: int) -> Log:
        return MemoryLog(max_bytes, LogMemory(1 << 30))
