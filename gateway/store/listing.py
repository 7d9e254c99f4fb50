"""The running streams of all nodes, for `GET /streams?node=all`: each node is asked, and answers, by mail.

Invariants:

- Asking takes `PATIENCE` at most; nodes that have not answered then are named.
- Entries name principals, so they travel sealed; without a secret they travel without their principals.
"""

import asyncio
import secrets
from typing import Any, Final

import msgspec

from gateway.store.connection import Connection, StoreAwayError
from gateway.store.layout import PASSED
from gateway.store.nodes import all_nodes
from gateway.store.sealed import Seal
from gateway.store.watcher import Watcher
from gateway.streams.engine import Engine

PATIENCE: Final = 2.0
"""Seconds that the nodes have for their answers."""
LISTED: Final = 500
"""Streams of one node that are described to another one, at most."""
LIST: Final = b"list"
"""Has `to`, the node that asks, and `ask`, the name of its question."""
LISTING: Final = b"listing"
"""Has `ask`, `of`, the node, and `streams`: the entries as JSON, sealed where there is a secret."""


class Listing:
    """Asks other nodes for their streams, and tells them of this one's.

    Args:
        connection: this process's way to Redis.
        watcher: sends and receives the messages.
        engine: knows the streams of this node.
        seal: of this store's secret, None without one.
    """

    def __init__(self, connection: Connection, watcher: Watcher, engine: Engine, seal: Seal | None) -> None:
        self._connection = connection
        self._watcher = watcher
        self._engine = engine
        self._seal = seal
        self._asked: dict[str, tuple[set[str], list[dict[str, Any]], asyncio.Event]] = {}
        watcher.on(LIST, self._tell)
        watcher.on(LISTING, self._told)

    async def all(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The entries of all nodes, each with its `node`; and the nodes that did not answer, or are dead."""
        node = self._connection.node
        own = [entry | {"node": node} for entry in self._described()]
        ask, silent, dead, event = secrets.token_urlsafe(6), set[str](), set[str](), asyncio.Event()
        try:
            nodes = await all_nodes(self._connection)
            dead = set(nodes.dead) - {PASSED}
            silent |= set(nodes.alive) - {node}
            self._asked[ask] = (silent, own, event)
            for other in list(silent):
                await self._watcher.post(other, LIST, to=node, ask=ask)
            async with asyncio.timeout(PATIENCE if silent else 0):
                await event.wait()
        except StoreAwayError:
            silent.add("the store is away")
        except TimeoutError:
            return own, sorted(silent | dead)
        finally:
            self._asked.pop(ask, None)
        return own, sorted(silent | dead)

    def _described(self) -> list[dict[str, Any]]:
        now = self._engine.clock.now()
        return [running.describe(now) for running in list(self._engine.running.values())[:LISTED]]

    def _tell(self, message: dict[bytes, bytes]) -> None:
        to, ask = message.get(b"to", b"").decode(), message.get(b"ask", b"").decode()
        entries = self._described()
        if self._seal is None:
            for entry in entries:
                entry["principal"] = None
        data = msgspec.json.encode(entries)
        sealed = data if self._seal is None else self._seal.seal(self._connection.layout.mailbox(to), data)
        self._watcher.send(to, LISTING, ask=ask, of=self._connection.node, streams=sealed)

    def _told(self, message: dict[bytes, bytes]) -> None:
        asked = self._asked.get(message.get(b"ask", b"").decode())
        data: bytes | None = message.get(b"streams", b"")
        if self._seal is not None and data:
            data = self._seal.unseal(self._connection.layout.mailbox(self._connection.node), data)
        if asked is None or not data:
            return  # too late, or sealed with another secret: the node counts as silent
        silent, entries, event = asked
        node = message.get(b"of", b"").decode()
        try:
            entries += [entry | {"node": node} for entry in msgspec.json.decode(data, type=list[dict[str, Any]])]
        except ValueError:
            return  # sealed, and this node has no secret
        silent.discard(node)
        if not silent:
            event.set()
