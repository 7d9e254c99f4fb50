"""The models that a target has, by its own word: asked for where a request names none.

    unknown --somebody needs it--> asking --a list--> known for `KEPT`
                                      |
                                      +--no list--> not asked again for `PAUSE`; an earlier list stays in use

Invariants:

- A request that names a model never waits here, and never causes a question.
- There is at most one question a target at a time. All who need its answer wait for the same one, at most `PATIENCE`,
  and it goes on when one of them leaves.
- A list that cannot be had is no error: the request goes on without a model, and the provider says what it wants.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp
from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.weight import is_heavy
from gateway.dialects import failures
from gateway.dialects.base import Call
from gateway.dialects.models import models_in
from gateway.upstream.http import attempt, plain_headers

KEPT: Final = 60.0
"""Seconds for which a list is used."""
PAUSE: Final = 5.0
"""Seconds without another question after one that failed."""
PATIENCE: Final = 5.0
"""Seconds for one question, from connecting to the last byte of its answer."""
CONNECT: Final = 3.0
"""Seconds of it for connecting, so that a port at which nobody answers is not taken for a slow server."""
MAX_LIST: Final = 4 << 20
"""Bytes of a list. The longest ones, of providers with hundreds of models, have about 1 MiB."""
MAX_MODELS: Final = 10_000

_REFUSALS: Final = frozenset({400, 404, 422})
"""Statuses with which a target refuses a request that names no model."""
_OTHER_REFUSALS: Final = frozenset({"bad_request", "content_filter", "context_length_exceeded"})
"""What these statuses also mean, and is never said for want of a model."""
_NO_CHAT: Final = re.compile(
    r"embed|rerank|whisper|transcri|\btts\b|speech|audio|realtime|dall-e|image|sora|moderation|davinci|babbage|\bbge\b"
    r"|minilm|\bclip\b|guard",
    re.IGNORECASE,
)
"""Names of models that answer no chat. Providers and local servers list them among the others."""


class ModelList:
    """What one target lists, as far as it is known.

    Args:
        call: the request for the list, None where the API has none.
        label: the target's name in the log.
        verify_tls: whether the target's certificate is checked.
        needed: whether the target refuses a request without a model. Where it is not known, the first refusal tells.

    Attributes:
        names: in the target's order; empty until known.
        needed: as given, or learned.
    """

    __slots__ = ("_asking", "_call", "_label", "_until", "_verify_tls", "names", "needed")

    def __init__(self, call: Call | None, label: str, *, verify_tls: bool, needed: bool) -> None:
        self.names: tuple[str, ...] = ()
        self.needed = needed
        self._call = call
        self._label = label
        self._verify_tls = verify_tls
        self._until = 0.0
        self._asking: asyncio.Task[None] | None = None

    @property
    def first(self) -> str:
        """The model to ask for where none is named, "" while none is known."""
        return first_of(self.names)

    async def learn(
        self, session: aiohttp.ClientSession, now: Callable[[], float], logger: FilteringBoundLogger
    ) -> tuple[str, ...]:
        """The names, asked for if they are not known or too old; empty where the target does not tell.

        Args:
            session: the HTTP client.
            now: the loop's clock, in seconds.
            logger: is told why there is no list.
        """
        if self._call is None or now() < self._until:
            return self.names
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._call, session, now, logger))
        await asyncio.shield(self._asking)
        return self.names

    async def _ask(
        self, call: Call, session: aiohttp.ClientSession, now: Callable[[], float], logger: FilteringBoundLogger
    ) -> None:
        try:
            self.names = await ask_models(session, call, verify_tls=self._verify_tls)
            self._until = now() + KEPT
        except GatewayError as error:
            self._until = now() + PAUSE
            logger.warning("models_unknown", target=self._label, code=error.code, detail=error.detail)
        finally:
            self._asking = None


def may_lack_a_model(error: GatewayError) -> bool:
    """Whether a request that named no model may have been refused for that."""
    return error.status in _REFUSALS and error.code not in _OTHER_REFUSALS


def first_of(names: Sequence[str]) -> str:
    """The first of a target's models that seems to be for chats, else the first of all; "" for none."""
    return next((name for name in names if not _NO_CHAT.search(name)), "".join(names[:1]))


async def ask_models(session: aiohttp.ClientSession, call: Call, *, verify_tls: bool = True) -> tuple[str, ...]:
    """The models that a target lists.

    Args:
        session: the HTTP client, from `new_session`.
        call: the request, from a dialect's `list_call`.
        verify_tls: whether the peer's certificate is checked.

    Raises:
        GatewayError: it cannot be reached, refuses, is too slow, or answers something else.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            with await attempt(session, call, connect_timeout=CONNECT, again=True, verify_tls=verify_tls) as response:
                body = await _body(response)
    except TimeoutError:
        raise GatewayError("upstream_timeout", detail="no list of models in time") from None
    if response.status != 200:
        raise failures.refusal(response.status, plain_headers(response.headers), body)
    if is_heavy(body):
        raise GatewayError("upstream_oversize", detail="the list of models has too many values, or too long numbers")
    names = models_in(body)
    if names is None:
        raise GatewayError("upstream_protocol", detail="status 200, but no list of models")
    return names[:MAX_MODELS]


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while part := await response.content.readany():
        body += part
        if len(body) > MAX_LIST:
            raise GatewayError("upstream_oversize", detail="the list of models is too long")
    return bytes(body)
