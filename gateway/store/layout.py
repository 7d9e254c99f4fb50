"""The keys in Redis, what stands in them, and the scripts that change several at once.

    <prefix>:n:<node>        string   the node's lease: it lapses when the node has not beaten for a while
    <prefix>:nodes           set      all nodes that have not been found dead
    <prefix>:o:<node>        set      ids of the streams that this node writes
    <prefix>:b:<node>        stream   the node's mailbox: what other nodes ask of it, and its own nudges
    <prefix>:s:<id>          hash     a stream: `a` what a reader needs of it (`Stream.to_json`), `n` the node that
                                      writes it, `e` the epoch, `m` the model, `s` its state
    <prefix>:l:<id>          stream   its log; an entry is what was appended in one window
    <prefix>:q:<digest>      hash     what a principal has used of its plan: `ledger.py`
    <prefix>:q:<node>        string   a mark: it is gone where Redis has lost what the node wrote about limits

An entry of a log has the id `<epoch>-<number of its last event>`. So Redis itself refuses to append a window twice, and
refuses what an owner appends that has lost the stream: its epoch is older than the one that stands there. Fields:

    f      number of its first event
    e      the events, as MessagePack: [[type, data], …] or [type, data, id]
    t      present in the last entry of all: `1` if its last event is the terminal one, `0` if there is none

Invariants:

- No key names a person, a credential or a prompt: ids of streams and nodes are random.
- Every key expires. A log and its hash live for `ttl` seconds after the end; while it runs, its node lets them live on.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script.

    Attributes:
        text: the script.
        sha: what Redis calls it by.
    """

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of the keys."""

    prefix: str

    def lease(self, node: str) -> str:
        """A node's lease."""
        return f"{self.prefix}:n:{node}"

    def owned(self, node: str) -> str:
        """The streams that a node writes."""
        return f"{self.prefix}:o:{node}"

    @property
    def nodes(self) -> str:
        """All nodes that have not been found dead."""
        return f"{self.prefix}:nodes"

    def mailbox(self, node: str) -> str:
        """What other nodes ask of a node."""
        return f"{self.prefix}:b:{node}"

    def stream(self, stream_id: str) -> str:
        """What is known of a stream."""
        return f"{self.prefix}:s:{stream_id}"

    def log(self, stream_id: str) -> str:
        """A stream's events."""
        return f"{self.prefix}:l:{stream_id}"

    def counts(self, node: str) -> str:
        """The mark that what a node wrote about limits is there."""
        return f"{self.prefix}:q:{node}"

    def ledger(self, plan: str, principal: str) -> str:
        """What a principal has used of a plan. Only a digest of both is in the name."""
        digest = hashlib.sha256("\0".join((plan, principal)).encode()).hexdigest()
        return f"{self.prefix}:q:{digest}"


ALIVE_MS: Final = 120_000
"""Milliseconds for which the keys of a running stream live on without a word from its node."""
