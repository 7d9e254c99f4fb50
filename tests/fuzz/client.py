"""What a page reads: client.js has a parser of its own, which must read streams as the gateway's own reader does."""

import atexit
import base64
import random
import subprocess
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import msgspec

from gateway.core.sse import Decoder
from tests.fuzz.answers import STREAMS, TEXTS
from tests.fuzz.mutate import pieces
from tests.fuzz.target import Target
from tests.kit.program import node


class _Node:
    """Node, which runs client.mjs until this process ends."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("client.mjs")
        self._process = subprocess.Popen([node(), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self._end)

    def read(self, parts: Sequence[bytes]) -> list[tuple[str, str]]:
        """The events that client.js reads of these pieces of a stream."""
        asking, answering = self._pipes
        asking.write(msgspec.json.encode([base64.b64encode(part).decode() for part in parts]) + b"\n")
        asking.flush()
        return [(kind, data) for kind, data in msgspec.json.decode(answering.readline())]

    @property
    def _pipes(self) -> tuple[IO[Any], IO[Any]]:
        assert self._process.stdin
        assert self._process.stdout
        return self._process.stdin, self._process.stdout

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._process.wait()


_node = cache(_Node)


def check_client(data: bytes, rng: random.Random) -> Hashable:
    """The events are those that the gateway's reader finds, however the stream is cut."""
    events = [(event.type or "message", event.data) for event in Decoder().feed(data)]
    assert _node().read(pieces(data, rng)) == events
    return min(len(events), 8)


def targets() -> dict[str, Target]:
    """By name."""
    return {"client": Target((*STREAMS, *TEXTS), check_client, 1)}
