"""`api: openai`: OpenAI chat requests, streaming or not; the official SDKs work unchanged.

The upstream is always asked for a stream, also for an answer that is wanted whole: so one path has all the limits on
silence and size, and knows a cut answer from a finished one.
"""

from typing import Any

import msgspec
from aiohttp import web

from gateway.config import OpenAIRoute
from gateway.core.errors import Failure, GatewayError
from gateway.core.event import ERROR, Done
from gateway.formats import Completion, OpenAIFormat, View
from gateway.streams.generation import Generation
from gateway.streams.log import END, NOTHING, Reader, State
from gateway.streams.pump import Job
from gateway.upstream.pool import Upstream
from gateway.web.admission import admit, expires_in
from gateway.web.body import read_json_object
from gateway.web.exchange import Exchange
from gateway.web.kinds.asking import ChatSource, estimate_tokens
from gateway.web.responses import json_response
from gateway.web.streaming import cursor_of, resume, stream_new

READ_LIMIT = 512
PATIENCE = 60.0
"""Seconds after which a waiting read looks again; the generation's own limits end it."""


class OpenAIHandler:
    """Serves one openai route.

    Args:
        route: its settings.
        chain: who answers, and who else.
    """

    def __init__(self, route: OpenAIRoute, chain: tuple[Upstream, ...]) -> None:
        self._route = route
        self._chain = chain

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """The stream of an answer, or the whole answer as one object."""
        if self._route.stream.resume.enabled and (cursor := cursor_of(exchange)):
            return await resume(exchange, cursor)
        chat = await self._chat(exchange)
        streaming = chat.get("stream") is True
        generation = admit(exchange, self._job(exchange, chat), _max_tokens(chat))
        if streaming:
            return await stream_new(exchange, generation)
        return await _whole(exchange, generation)

    async def _chat(self, exchange: Exchange) -> dict[str, Any]:
        chat = await read_json_object(exchange.request, exchange.snapshot.config.server.max_body)
        if not isinstance(chat.get("messages"), list) or not chat["messages"]:
            raise GatewayError("bad_request", "'messages' is required and must be a non-empty array.")
        if not isinstance(chat.get("stream", False), bool | None):
            raise GatewayError("bad_request", "'stream' must be true or false.")
        if not isinstance(chat.get("stream_options") or {}, dict):
            raise GatewayError("bad_request", "'stream_options' must be an object.")
        if not isinstance(chat.setdefault("model", self._route.model or ""), str):
            raise GatewayError("bad_request", "'model' must be a string.")
        return chat

    def _job(self, exchange: Exchange, chat: dict[str, Any]) -> Job:
        usage = bool((chat.get("stream_options") or {}).get("include_usage"))
        return Job(
            route=self._route.path,
            source=ChatSource(chat, keep_chunks=True, keep_usage=usage or not chat.get("stream")),
            chain=self._chain,
            stream=self._route.stream,
            timeouts=self._route.timeouts,
            model=chat["model"],
            principal=exchange.who.id,
            request_id=exchange.id,
            trace=exchange.trace,
            format=OpenAIFormat(include_usage=usage),
            several=chat.get("n") not in (None, 1),
            input_tokens=estimate_tokens(chat["messages"], chat.get("tools")),
            expires_in=expires_in(exchange),
        )


async def _whole(exchange: Exchange, generation: Generation) -> web.Response:
    reader = generation.attach(0)
    try:
        exchange.connection.check_open()
        await generation.begun
        done, completion = await _gather(generation, reader)
    finally:
        generation.detach(reader, 0)
    log = generation.log
    view = View(log.stream_id, "", log.model, generation.created)
    return json_response(exchange, completion.result(view, done), {"X-Stream-Id": log.stream_id})


async def _gather(generation: Generation, reader: Reader) -> tuple[Done | None, Completion]:
    completion = Completion()
    while (got := await reader.read(READ_LIMIT, PATIENCE)) is not END:
        if got is NOTHING:
            continue
        if isinstance(got, State):
            raise GatewayError("upstream_oversize", detail="the answer is longer than its log")
        for event in got:
            completion.add(event)
    terminal = generation.log.terminal
    if terminal is None:
        return None, completion
    if terminal.type == ERROR:
        raise _error(msgspec.json.decode(terminal.data, type=Failure))
    return msgspec.json.decode(terminal.data, type=Done), completion


def _error(failure: Failure) -> GatewayError:
    return GatewayError(
        failure.code,
        failure.message,
        status=failure.status,
        retryable=failure.retryable,
        retry_after=failure.retry_after,
    )


def _max_tokens(chat: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = chat.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None
