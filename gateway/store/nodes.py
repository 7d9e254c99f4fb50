"""Which nodes there are: those that have entered themselves, by whether their lease stands."""

from typing import NamedTuple

from gateway.store.access import CONNECT
from gateway.store.connection import Connection
from gateway.store.layout import ALIVE_MS, NODES


class Nodes(NamedTuple):
    """Names of nodes.

    Attributes:
        alive: this one too.
        dead: those whose lease has lapsed, and that still have something.
    """

    alive: list[str]
    dead: list[str]


async def all_nodes(connection: Connection) -> Nodes:
    """All nodes; this one is entered, too.

    Raises:
        StoreAwayError: Redis is away.
    """
    layout = connection.layout
    told = (connection.node, ALIVE_MS, layout.lease(""))
    found = await connection.run(NODES, [layout.nodes], told, within=CONNECT)
    return Nodes(*([name.decode() for name in names] for names in found))
