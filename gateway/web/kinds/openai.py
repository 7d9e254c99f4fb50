"""`api: openai`: OpenAI chat requests, streaming or not; the official SDKs work unchanged.

A request goes to the upstream as the client meant it: for a stream as a stream, for one object as one (`whole: plain`).
An object that a provider speaking OpenAI's API gave is passed on to the letter; any other answer is gathered from the
events of its log. Both come by the same pump, with its limits on time and size. An object ends when its client leaves,
a stream as `on_disconnect` says.
"""

from collections.abc import Awaitable, Sequence
from typing import Any, NoReturn

import msgspec
from aiohttp import web

from gateway.config import OpenAIRoute
from gateway.core.errors import Failure, GatewayError
from gateway.core.event import ERROR, Done
from gateway.core.limiter import Refusal
from gateway.core.limits import Quota
from gateway.formats import Completion, OpenAIFormat, error_object
from gateway.streams.generation import Generation
from gateway.streams.job import Job
from gateway.streams.log import END, NOTHING, LogState
from gateway.streams.order import Order
from gateway.streams.reader import BEGINNING, Reader
from gateway.streams.stream import Stream
from gateway.upstream.pool import Upstream
from gateway.web.body import read_json_object
from gateway.web.exchange import Endpoint, Exchange, Kind
from gateway.web.kinds.base import Asked, RouteKind
from gateway.web.kinds.chat_source import ChatSource, added_tokens
from gateway.web.kinds.models import Models
from gateway.web.rate_limit_headers import openai_rate_limit_headers
from gateway.web.responses import json_response, json_text
from gateway.web.state import Gateway
from gateway.web.streaming import stream_new

READ_LIMIT = 512
"""Events that are read in one call, at most."""
PATIENCE = 60.0
"""Seconds of one read. If it returns nothing, there is another; the generation's time limits end the wait."""


class Nothing(Kind):
    """A path below an openai route that leads to nothing.

    Args:
        route: the path of the route.
    """

    methods = None
    format = OpenAIFormat()

    def __init__(self, route: str) -> None:
        self._route = route

    async def answer(self, exchange: Exchange) -> NoReturn:
        raise GatewayError("not_found", f"There is nothing at this path; chat requests are sent to {self._route}.")

    def error_body(self, failure: Failure, request_id: str) -> tuple[dict[str, Any], str]:
        """OpenAI's error object."""
        return error_object(failure), "application/json"


class OpenAI(RouteKind[OpenAIRoute]):
    """Serves one openai route."""

    methods = frozenset({"POST"})
    format = OpenAIFormat()

    def __init__(self, route: OpenAIRoute, chain: tuple[Upstream, ...]) -> None:
        super().__init__(route, chain)
        self.models = frozenset({route.model} if route.model else ())
        self.added = added_tokens(chain)
        # An SDK has a base URL, and asks for all of OpenAI's paths below it.
        bases = {route.path, route.path.removesuffix("/chat/completions")} - {""}
        base = route.path.removesuffix("/chat/completions")
        models = Endpoint(f"{base}/models", Models(route, chain[0]))
        nothing = Endpoint("_none", Nothing(route.path), public=True)
        self.beside = dict.fromkeys((f"{base}/models", f"{base}/models/", f"{base}/models/{{path}}"), models)
        self.beside |= dict.fromkeys((f"{base}/{{path}}" for base in bases), nothing)

    async def read(self, exchange: Exchange) -> Asked:
        """The chat request. Only the members that the gateway itself uses are checked."""
        chat = await read_json_object(exchange)
        if not isinstance(chat.get("messages"), list) or not chat["messages"]:
            raise GatewayError("bad_request", "'messages' is required and must be a non-empty array.")
        if not isinstance(chat.get("stream", False), bool | None):
            raise GatewayError("bad_request", "'stream' must be true or false.")
        if not isinstance(chat.get("stream_options") or {}, dict):
            raise GatewayError("bad_request", "'stream_options' must be an object.")
        if not isinstance(chat.setdefault("model", self.route.model or ""), str):
            raise GatewayError("bad_request", "'model' must be a string.")
        usage = bool((chat.get("stream_options") or {}).get("include_usage"))
        limits = [chat.get(name) for name in ("max_completion_tokens", "max_tokens")]
        job = self.job(
            exchange,
            _source(chat, usage=usage),
            OpenAIFormat(include_usage=usage),
            chat["model"],
            several=chat.get("n") not in (None, 1),
            input_tokens=await self.estimate(exchange, chat) + self.added,
        )
        max_tokens = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
        streams = chat.get("stream") is True
        return Asked(job, max_tokens, stream=streams, again={"chat": chat, "usage": usage} if streams else None)

    def again(self, gateway: Gateway, order: Order, stream: Stream) -> Job | None:
        """The job of a stream that another node began; None where this is another kind of route there."""
        if "usage" not in order.asked:
            return None
        chat = order.asked["chat"]
        source = _source(chat, usage=order.asked["usage"])
        return self._job_again(order, stream, source, several=chat.get("n") not in (None, 1))

    def respond(self, exchange: Exchange, asked: Asked, generation: Generation) -> Awaitable[web.StreamResponse]:
        return stream_new(exchange, generation) if asked.stream else _whole(exchange, generation)

    def error_body(self, failure: Failure, request_id: str) -> tuple[dict[str, Any], str]:
        """OpenAI's error object."""
        return error_object(failure), "application/json"

    def limit_headers(self, quotas: Sequence[Quota], refusal: Refusal | None = None) -> dict[str, str]:
        """The usual headers, and OpenAI's own."""
        return super().limit_headers(quotas, refusal) | openai_rate_limit_headers(quotas)


def _source(chat: dict[str, Any], *, usage: bool) -> ChatSource:
    """What asks with this chat; `usage`: whether the client wants the chunk that holds nothing but the usage."""
    plain = not chat.get("stream")
    return ChatSource(chat, keep_chunks=True, keep_usage=usage or plain, plain=plain)


async def _whole(exchange: Exchange, generation: Generation) -> web.StreamResponse:
    """The answer as one object, when it is complete."""
    reader = generation.attach(BEGINNING)
    try:
        exchange.connection.check_open()
        opening = await generation.opened()
        if opening.error is not None:
            raise opening.error
        done, completion = await _gather(reader)
    finally:
        generation.detach(reader, 0)
    stream, headers = generation.stream, {"X-Stream-Id": generation.stream.id}
    if completion.letter:
        return json_text(exchange, completion.letter, headers)
    return json_response(exchange, completion.result(stream.view(reader.log.model), done), headers)


async def _gather(reader: Reader) -> tuple[Done | None, Completion]:
    """The end of the answer, and its events gathered; waits for both.

    Raises:
        GatewayError: the answer failed, or is longer than its log.
    """
    completion = Completion()
    while (got := await reader.read(READ_LIMIT, PATIENCE)) is not END:
        if got is NOTHING:
            continue
        if isinstance(got, LogState):
            raise GatewayError("upstream_oversize", detail="the answer is longer than its log")
        for event in got:
            completion.add(event)
        reader.advance(len(got))
    terminal = reader.log.terminal
    if terminal is None:
        return None, completion
    if terminal.type != ERROR:
        return msgspec.json.decode(terminal.data, type=Done), completion
    failure = msgspec.json.decode(terminal.data, type=Failure)
    raise GatewayError(
        failure.code,
        failure.message,
        status=failure.status,
        retryable=failure.retryable,
        retry_after=failure.retry_after,
        param=failure.param,
        provider_code=failure.provider_code,
    )
