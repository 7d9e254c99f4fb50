"""`gateway check --ask`: one question to every target, and what came of it.

What a target is asked, the cheapest thing that tells whether it will serve:

- openai, anthropic, ollama: its list of models, which costs nothing. Where it has no list, or a configured model is not
  in it, "hi" is asked with an answer of one token: a list may be of other names than a server accepts.
- sse, text: "hi". The connection is closed as soon as the answer begins.
- a target that only proxy routes use: HEAD. Any answer below 500 is good, as only the routes know the paths.

Invariants:

- Each target has `PATIENCE` in all, and `AT_ONCE` are asked at the same time.
- Nothing of a key is in a report.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import aiohttp
from aiohttp import hdrs

from gateway.config import Config, ProxyRoute
from gateway.core.errors import GatewayError
from gateway.dialects.base import Call
from gateway.upstream.http import attempt, new_session, plain_headers, read_error_body
from gateway.upstream.models import ask_models
from gateway.upstream.pool import Target, Upstream

PATIENCE: Final = 15.0
"""Seconds for one target. A model that has to be loaded first may take longer; the report then says so."""
AT_ONCE: Final = 16
MAX_SHOWN: Final = 5
"""Names of models in one report."""


class Report(NamedTuple):
    """What one target said.

    Attributes:
        place: the target, as the configuration has it.
        serves: whether it can serve what the routes send to it.
        says: in words: whether it was reached, its status, its models, and what to change.
    """

    place: str
    serves: bool
    says: str

    def __str__(self) -> str:
        return f"{self.place}: {'ok' if self.serves else 'cannot serve'}: {self.says}"


async def inquire(config: Config, demo_url: str = "") -> list[Report]:
    """A report for every target, in the order of the configuration.

    Args:
        config: the configuration.
        demo_url: where the built-in stand-in listens, if a target is one.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def report(question: "_Question") -> Report:
        async with room:
            return await question.ask()

    async with new_session() as session:
        return await asyncio.gather(*map(report, _questions(config, session, demo_url)))


def _questions(config: Config, session: aiohttp.ClientSession, demo_url: str) -> Iterator["_Question"]:
    for name, settings in config.upstreams.items():
        upstream = Upstream(name, settings, demo_url)
        asking = [route for route in config.routes if name in (route.upstream, *config.upstreams[route.upstream].fallback)]
        chats = [route for route in asking if not isinstance(route, ProxyRoute)]
        routed = {route.model for route in chats if route.model}
        for index, target in enumerate(upstream.targets):
            # A name at the target wins over one at the upstream, and that over those of the routes.
            named = target.model or settings.model
            wanted = {named} if named else routed
            place = f"upstreams.{name}.targets[{index}]: {settings.targets[index].url}"
            yield _Question(session, upstream, target, place, frozenset(wanted), chats=bool(chats or not asking))


class _Question:
    """What one target is asked.

    Args:
        session: the HTTP client.
        upstream: the target's upstream.
        target: the target.
        place: the target in the report.
        wanted: the models that the configuration names for it.
        chats: whether chats are sent there, and not only what proxy routes pass on.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        upstream: Upstream,
        target: Target,
        place: str,
        wanted: frozenset[str],
        *,
        chats: bool,
    ) -> None:
        self._session = session
        self._upstream = upstream
        self._target = target
        self._place = place
        self._wanted = wanted
        self._chats = chats

    async def ask(self) -> Report:
        """The report."""
        try:
            async with asyncio.timeout(PATIENCE):
                says = await (self._ask_chat() if self._chats else self._ask_anything())
        except TimeoutError:
            return self._failed(GatewayError("upstream_timeout", detail=f"no answer in {PATIENCE:g} s"))
        except GatewayError as error:
            return self._failed(error)
        return Report(self._place, True, says)

    async def _ask_chat(self) -> str:
        call = self._upstream.list_call(self._target)
        if call is None:
            await self._ask_hi("")
            return "status 200, it answers"
        names: tuple[str, ...] = ()
        try:
            names = await ask_models(self._session, call, verify_tls=self._upstream.config.verify_tls)
            listed = f"status 200, has {_shown(names)}"
        except GatewayError as error:
            if error.code != "upstream_protocol" and error.status not in (400, 404, 405):
                raise
            listed = "has no list of models"
        missing = sorted(model for model in self._wanted if not _is_in(model, names))
        if not names and not self._wanted:
            await self._ask_hi("")
            return f"{listed}, answers without a model"
        for model in missing:
            await self._ask_hi(model)
        if missing:
            return f"{listed}; answers as {', '.join(missing)} too"
        if not self._wanted:
            return f"{listed}; where a request names none, {_first(names)} is asked for"
        return f"{listed}; {', '.join(sorted(self._wanted))} is there"

    async def _ask_hi(self, model: str) -> None:
        """Returns when the target began to answer one word.

        Raises:
            GatewayError: it did not.
        """
        config, dialect = self._upstream.config, self._upstream.dialect
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | ({"model": model} if model else {})
        call = dialect.call(chat, self._target.url, config.api_key)
        status, kind, headers, body = await self._send(call)
        if status != 200:
            raise dialect.refusal(status, headers, body, now=time.time())
        if kind not in dialect.stream_types:
            raise GatewayError("upstream_protocol", detail=f"status 200 with {kind or 'no type'} instead of a stream")

    async def _ask_anything(self) -> str:
        own = self._upstream.dialect.credential(self._upstream.config.api_key) | self._upstream.config.headers
        status, _, headers, body = await self._send(Call("HEAD", self._target.url, own, b""))
        if status >= 500:
            raise self._upstream.dialect.refusal(status, headers, body, now=time.time())
        return f"reached, status {status}"

    async def _send(self, call: Call) -> tuple[int, str, dict[str, str], bytes]:
        """Status, media type, headers and the beginning of the body; nothing is read of a good answer's body."""
        headers = {**call.headers, **self._upstream.config.headers}
        call = Call(call.method, call.url, headers, call.body)
        with await attempt(
            self._session,
            call,
            connect_timeout=PATIENCE,
            again=True,
            verify_tls=self._upstream.config.verify_tls,
        ) as response:
            body = b"" if response.status == 200 else await read_error_body(response)
            kind = response.content_type if hdrs.CONTENT_TYPE in response.headers else ""
            return response.status, kind, plain_headers(response.headers), body

    def _failed(self, error: GatewayError) -> Report:
        said = " ".join(part for part in (error.message, error.detail and f"({error.detail})") if part)
        return Report(self._place, False, f"{error.code}: {said}")
