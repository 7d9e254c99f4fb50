"""The keys of an issuer, fetched from its JWKS URL in the background.

      +--------- the pause is over, or a token names an unknown key and the last fetch is `AGAIN` ago ---------+
      v                                                                                                        |
    fetching --a set with a usable key--> the set replaces the one before --> a pause as long as the set is fresh
      |                                                                                                        |
      +-------anything else-------------> the set before is kept ----------> a pause that doubles, with jitter +

Invariants:

- No request waits for a fetch longer than `PATIENCE`, and only if its token may be good after it.
- Whatever a server does, it gets `TIMEOUT` seconds, `MAX_BODY` bytes and one connection; redirects are not followed.
- A set that was had once is kept until another takes its place. A set without any usable key takes no place: that is
  what a fault looks like, and an issuer that withdraws a key publishes another.
- One line is logged for a set that changes and for a fetch that fails; pauses bound how many.
"""

import asyncio
import random
import re
from collections.abc import Awaitable
from typing import Final

from aiohttp import ClientResponse, hdrs
from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.jwk import KeySet, read_key_set
from gateway.dialects.base import Call
from gateway.upstream.http import attempt, new_session

MAX_BODY: Final = 256 << 10
"""Bytes of a key set. A hundred keys with their certificates are smaller; reading so much takes a few milliseconds."""
TIMEOUT: Final = 10.0
"""Seconds for one fetch, from the look-up of the name to the last byte."""
CONNECT_TIMEOUT: Final = 5.0
PATIENCE: Final = 1.0
"""Seconds that a request waits for a fetch that may make its token good."""
AGAIN: Final = 10.0
"""Seconds from the begin of one fetch to that of another that an unknown `kid` asks for."""
FRESH: Final = 600.0
"""Seconds until a set is fetched again, where its server does not say."""
FRESH_BOUNDS: Final = (60.0, 3600.0)
"""The bounds of what a server says: so a withdrawn key is known within an hour, and no server is asked all the time."""
PAUSE: Final = 1.0
"""Seconds after the first failure; doubled after each further one."""
MAX_PAUSE: Final = 30.0

_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)


class FetchError(Exception):
    """A key set was not had. The text says why, and quotes nothing of the answer."""


class FetchedKeys:
    """The key set at one URL. Fetching begins at once, so this needs a running loop, and must be closed.

    Args:
        url: where the set is.
        logger: the process's log.

    Attributes:
        keys: the set; None while there was never one.
    """

    def __init__(self, url: str, logger: FilteringBoundLogger) -> None:
        self.keys: KeySet | None = None
        self._url = url
        self._logger = logger.bind(url=url.partition("?")[0])
        self._body = b""
        self._failures = 0
        self._loop = asyncio.get_running_loop()
        self._begun = self._due = self._loop.time()
        self._fetching = True
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops fetching. The keys stay for requests that have begun."""
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def retry_after(self) -> float:
        """Seconds until the fetch that may give the first set."""
        return max(0.0, self._due - self._loop.time()) + PAUSE

    def refresh(self) -> Awaitable[None] | None:
        """A wait for the fetch that runs, or for one that this begins, `PATIENCE` seconds at most. None where the last
        one is less than `AGAIN` seconds ago."""
        if not self._fetching:
            if self._loop.time() - self._begun < AGAIN:
                return None
            self._wanted.set()
        return self._wait(self._fetched)

    async def _wait(self, fetched: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await fetched.wait()
        except TimeoutError:
            return  # the fetch goes on, for the requests that come back

    async def _run(self) -> None:
        while True:
            self._wanted.clear()
            self._fetching, self._begun = True, self._loop.time()
            pause = await self._fetch()
            self._fetching, self._due = False, self._loop.time() + pause
            fetched, self._fetched = self._fetched, asyncio.Event()
            fetched.set()
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
            except TimeoutError:
                continue  # the pause is over

    async def _fetch(self) -> float:
        """Fetches the set once. Returns the seconds until the next time."""
        try:
            async with asyncio.timeout(TIMEOUT):
                body, fresh = await self._get()
            self._take(body)
        except TimeoutError:
            return self._fail("it took too long")
        except GatewayError as error:
            return self._fail(error.detail or error.code)
        except FetchError as error:
            return self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next fetch may succeed
            return self._fail(type(error).__name__)
        self._failures = 0
        return fresh

    async def _get(self) -> tuple[bytes, float]:
        """The body, and the seconds for which it is fresh."""
        # A session of its own: the fetch is rare, and so nothing of the connection is left in between.
        async with new_session() as session:
            call = Call("GET", self._url, {hdrs.ACCEPT: "application/jwk-set+json, application/json"}, b"")
            reply = await attempt(session, call, connect_timeout=CONNECT_TIMEOUT, again=False)
            with reply as response:
                if response.status != 200:
                    raise FetchError(f"the status is {response.status}")
                if response.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() != "identity":
                    raise FetchError("the body is compressed, which was not asked for")
                return await _read(response), _fresh(response.headers.get(hdrs.CACHE_CONTROL, ""))

    def _take(self, body: bytes) -> None:
        """Replaces the set, unless it is the same."""
        if body == self._body:
            return
        try:
            keys = read_key_set(body)
        except ValueError as error:
            raise FetchError(str(error)) from None
        if not keys.keys:
            raise FetchError("no key in it can be used")
        self.keys, self._body = keys, body
        self._logger.info("jwks_fetched", keys=len(keys.keys), ignored=keys.ignored or None)

    def _fail(self, reason: str) -> float:
        pause = min(MAX_PAUSE, PAUSE * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._failures += 1
        self._logger.warning("jwks_failed", reason=reason, kept=self.keys is not None, retry_in=round(pause, 1))
        return pause


async def _read(response: ClientResponse) -> bytes:
    body = bytearray()
    while part := await response.content.readany():
        body += part
        if len(body) > MAX_BODY:
            raise FetchError(f"it is larger than {MAX_BODY >> 10} KiB")
    return bytes(body)


def _fresh(cache_control: str) -> float:
    """Seconds. Source: RFC 9111 5.2.2.1."""
    said = _MAX_AGE.search(cache_control)
    low, high = FRESH_BOUNDS
    return min(high, max(low, float(said[1]))) if said else FRESH
