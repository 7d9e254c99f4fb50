"""`gateway check --ask`: one question to every target, and what came of it.

What a target is asked, the cheapest thing that tells whether it will serve:

- openai, anthropic, ollama: its list of models, which costs nothing. Where it has no list, or a configured model is not
  in it, "hi" is asked: a list may have other names than a server accepts.
- sse, text: "hi".
- a target that only proxy routes use: HEAD. Any answer below 500 is good, as only the routes know the paths.

Where "hi" is asked, it has what `params` and `omit` make of every request, and is asked again without what the target
refuses of that. The connection is closed as soon as the answer begins.

Invariants:

- Each target has `PATIENCE` in all, and `AT_ONCE` are asked at the same time.
- Nothing of a key is in a report.
"""

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import aiohttp
from aiohttp import hdrs
from msgspec import structs

from gateway.config import Config, ProxyRoute, Route
from gateway.core.blame import blamed
from gateway.core.errors import GatewayError
from gateway.core.sentence import clean
from gateway.dialects.base import NO_NAMES, Call, amended
from gateway.upstream.hints import hint
from gateway.upstream.http import attempt, new_session, plain_headers, read_error_body
from gateway.upstream.models import ask_models, first_of
from gateway.upstream.pool import Target, Upstream

PATIENCE: Final = 15.0
"""Seconds for one target. A model that has to be loaded first may take longer; the report then says so."""
AT_ONCE: Final = 16
PAGES: Final = frozenset({"text/html", "application/xhtml+xml"})
"""Media types that no model answers with: a web server answers at this URL. Other wrong labels are forgiven."""
MAX_SHOWN: Final = 5
"""Names of models in one report."""

_HOW_TO_GET_ONE: Final = {"ollama": "; `ollama pull NAME` gets one"}


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
        routes = [route for route in config.routes if name in _chain(config, route)]
        chats = [route for route in routes if not isinstance(route, ProxyRoute)]
        routed = {route.model for route in chats if route.model}
        for index, target in enumerate(upstream.targets):
            # A name at the target wins over one at the upstream, and that one over those of the routes.
            named = target.model or settings.model
            wanted = frozenset({named} if named else routed)
            place = f"upstreams.{name}.targets[{index}]: {settings.targets[index].url}"
            yield _Question(session, upstream, target, place, wanted, chats=bool(chats or not routes))


def _chain(config: Config, route: Route) -> tuple[str, ...]:
    return (route.upstream, *config.upstreams[route.upstream].fallback)


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

    @property
    def _dialect(self) -> str:
        return self._upstream.config.dialect

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
        names = await self._list()
        missing = sorted(model for model in self._wanted if not _is_in(model, names))
        if names is None and not self._wanted:
            missing = [""]
        for model in missing:
            await self._ask_hi(model, names)
        if names is None:
            return "status 200, answers"
        listed = f"status 200, has {_shown(names)}"
        if missing:
            return f"{listed}; answers as {', '.join(missing)} too"
        if self._wanted:
            return f"{listed}; what the configuration names is among them: {', '.join(sorted(self._wanted))}"
        first = first_of(names)
        if not first:
            raise GatewayError("model_not_found", f"It has no model yet{_HOW_TO_GET_ONE.get(self._dialect, '')}.")
        return f"{listed}; where a request names none, {first} is asked for"

    async def _list(self) -> tuple[str, ...] | None:
        """The models that it lists; None where it has no list.

        Raises:
            GatewayError: it does not answer, or not to us.
        """
        call = self._upstream.list_call(self._target)
        if call is None:
            return None
        try:
            return await ask_models(self._session, call, verify_tls=self._upstream.config.verify_tls)
        except GatewayError as error:
            if error.upstream_status in (400, 404, 405, 501) or error.code == "upstream_protocol":
                return None
            raise

    async def _ask_hi(self, model: str, names: tuple[str, ...] | None = None) -> None:
        """Returns when the target began to answer one word.

        Raises:
            GatewayError: it did not.
        """
        dialect = self._upstream.dialect
        call = self._hi(model)
        status, kind, headers, body = await self._send(call)
        if status in (400, 422):
            # As in an answer: what the gateway added and the target refuses is left out, and is no failure.
            refused = dialect.refusal(status, headers, body, now=time.time())
            if spared := blamed(refused.words or refused.message, call.added):
                status, kind, headers, body = await self._send(self._hi(model, frozenset(spared)))
        if status != 200:
            error = dialect.refusal(status, headers, body, now=time.time())
            if names:
                error.message = f"{model} is not among its models ({_shown(names)}): {error.message}"
            raise error
        if kind in PAGES:
            raise GatewayError("upstream_protocol", detail=f"status 200 with {kind} instead of a stream")

    def _hi(self, model: str, without: frozenset[str] = NO_NAMES) -> Call:
        """The request that asks "hi", with what the configuration adds to every request, less what was refused."""
        config, dialect = self._upstream.config, self._upstream.dialect
        params = {name: value for name, value in config.params.items() if name not in without}
        beside = {name: value for name, value in params.items() if not dialect.reads(name)}
        chat = {"messages": [{"role": "user", "content": "hi"}]} | ({"model": model} if model else {})
        chat |= {name: value for name, value in params.items() if name not in beside and name not in config.omit}
        call = dialect.call(chat, self._target.asked_url, config.api_key)
        left_out = without | set(config.omit)
        body = amended(call.body, beside=beside, instead={}, without=left_out) if beside or left_out else call.body
        return structs.replace(call, body=body, added=(call.added | params.keys()) - left_out)

    async def _ask_anything(self) -> str:
        own = self._upstream.dialect.credential(self._upstream.config.api_key) | self._upstream.config.headers
        status, _, headers, body = await self._send(Call("HEAD", self._target.asked_url, own, b""))
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
        status = f"status {error.upstream_status}" if error.upstream_status else "no answer"
        # The provider's own sentence where it gave one; what is known of a failure before any answer is its detail.
        said = error.message if error.sentence in error.message else f"{error.message} {error.sentence}"
        detail = f" ({error.detail})" if error.detail and not error.upstream_status else ""
        advice = hint(error, self._target.url, self._dialect)
        return Report(self._place, False, f"{status}, {error.code}: {said}{detail} {advice}".rstrip())


def _is_in(model: str, names: tuple[str, ...] | None) -> bool:
    """Whether a list has a model, if only with Ollama's tag, Anthropic's date, or below a folder as at Google."""
    like = re.compile(rf"(.*/)?{re.escape(model)}(:latest|-[0-9]{{8}})?")
    return any(like.fullmatch(name) for name in names or ())


def _shown(names: tuple[str, ...]) -> str:
    if not names:
        return "no model"
    more = ", …" if len(names) > MAX_SHOWN else ""
    return f"{len(names)} {'model' if len(names) == 1 else 'models'}: {', '.join(map(clean, names[:MAX_SHOWN]))}{more}"
