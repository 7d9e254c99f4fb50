"""Large reads of a listener's connections are parsed in pieces, so that what is dear to parse holds up nobody.

    a read --at most `PIECE`------------------------------------------------> parsed at once
       |
       +--larger, or behind one that waits--> waiting --a piece in each turn--> parsed
                                                 |  ^
                      the parser takes no more   v  |   it does again
                                                 held

A body in chunks of one byte takes a hundred times as long to parse as the same bytes in one chunk, so a read of 256 KiB
may take 20 ms, and many connections are read in one turn of the loop. Here the loop parses for `AT_A_STRETCH`, and all
else has its turn before it goes on. Nothing is read from a connection that waits, so that one read of each waits at
most, or two where the parser asked for more meanwhile.
"""

import asyncio
import time
from collections import OrderedDict
from typing import Final, Protocol

PIECE: Final = 16 * 1024
"""Bytes that are parsed in one call. In chunks of one byte they take about a millisecond; most requests are smaller."""
AT_A_STRETCH: Final = 0.002
"""Seconds after which all else has its turn. An ordinary megabyte takes less."""


class Waiting(Protocol):
    """A connection of which a large read is to be parsed."""

    def parse_piece(self) -> bool:
        """Parses one piece. Whether another one can be parsed."""


class Reads:
    """The large reads of one listener's connections. A loop must be running."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[Waiting, None] = OrderedDict()

    def add(self, connection: Waiting) -> None:
        """Has a connection parse its pieces, beginning with the next turn, until it says that none can be parsed."""
        if not self._waiting:
            self._loop.call_soon(self._go_on)
        self._waiting[connection] = None

    def _go_on(self) -> None:
        end = time.perf_counter() + AT_A_STRETCH
        while self._waiting:
            connection, _ = self._waiting.popitem(last=False)
            if connection.parse_piece():
                self._waiting[connection] = None
            if time.perf_counter() >= end:
                break
        if self._waiting:
            self._loop.call_soon(self._go_on)
