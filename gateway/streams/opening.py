"""How an answer opens: as a stream, as something else that is passed through, or not at all.

                 the first event is in the log
                 the answer ended well without any
    WAITING ---- the client's headers have to go out -------> STREAM
       |
       +-------- the upstream answered with no stream ------> NO_STREAM      `response`
       |
       +-------- it failed before any of these -------------> FAILED         `error`

The generation decides it, once. The handler of the request waits for it in `Generation.opened`.
"""

import asyncio
from enum import Enum

import aiohttp

from gateway.core.errors import GatewayError


class Opened(Enum):
    """The states of an opening."""

    WAITING = "nothing is known yet"
    STREAM = "the answer is a stream"
    NO_STREAM = "the answer is no stream"
    FAILED = "there is no answer"


class Opening:
    """The opening of one answer.

    Attributes:
        state: how it opened.
        response: the upstream's, in `NO_STREAM`.
        error: why, in `FAILED`.
    """

    __slots__ = ("_waiter", "error", "response", "state")

    def __init__(self) -> None:
        self.state = Opened.WAITING
        self.response: aiohttp.ClientResponse | None = None
        self.error: GatewayError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def decided(self) -> "asyncio.Future[None]":
        """Done once the state is no longer `WAITING`. One caller may wait for it, and stop waiting at any time."""
        waiter = asyncio.get_running_loop().create_future()
        if self.state is not Opened.WAITING:
            waiter.set_result(None)
        else:
            self._waiter = waiter
        return waiter

    def as_stream(self) -> None:
        """The answer is a stream, unless the opening was decided before."""
        self._decide(Opened.STREAM)

    def pass_through(self, response: aiohttp.ClientResponse) -> bool:
        """Whether this response is passed through; False where the opening was decided before."""
        if self.state is not Opened.WAITING:
            return False
        self.response = response
        self._decide(Opened.NO_STREAM)
        return True

    def fail(self, error: GatewayError) -> None:
        """There is no answer, unless the opening was decided before."""
        if self.state is Opened.WAITING:
            self.error = error
            self._decide(Opened.FAILED)

    def _decide(self, state: Opened) -> None:
        if self.state is Opened.WAITING:
            self.state = state
            waiter, self._waiter = self._waiter, None  # whoever waits has it; the opening lasts as long as its stream
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
