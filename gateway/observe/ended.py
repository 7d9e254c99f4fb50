"""Streams that ended: the last ones, as the monitor shows them. What a stream was about is not in it."""

from typing import Final

import msgspec

KEPT: Final = 50
"""Ended streams in memory, about half a KiB each."""


class Ended(msgspec.Struct, frozen=True):
    """One stream that ended.

    Attributes:
        when: wall-clock time of its end, ISO 8601 in UTC.
        id: of the stream.
        route: the route's path in the configuration.
        principal: who paid.
        upstream: the upstream that answered, or was asked last.
        model: the model that answered, shortened.
        outcome: as metrics name it.
        finish_reason: the provider's own, "" where it gave none.
        seconds: from admission to the end.
        first: seconds to the first event, None where there was none.
        input, output: tokens.
        estimated: whether the gateway counted the tokens, and not the provider.
        attempts: how often an upstream was asked.
    """

    when: str
    id: str
    route: str
    principal: str
    upstream: str
    model: str
    outcome: str
    finish_reason: str
    seconds: float
    first: float | None
    input: int
    output: int
    estimated: bool
    attempts: int
