"""`/streams/{id}`: read a stream, on whatever route it was started, and stop it."""

import asyncio
from typing import Final

from aiohttp import web

from gateway.core.cursor import valid_stream_id
from gateway.core.errors import GatewayError
from gateway.streams.reader import BEGINNING
from gateway.streams.stream import Followed
from gateway.web.exchange import Exchange, Kind
from gateway.web.responses import json_response
from gateway.web.streaming import cursor_of, find_stream, follow, resume

STOP_PATIENCE: Final = 4.0
"""Seconds that a stop waits for the end of the stream, which another node may write."""


class ReadStream(Kind):
    """`GET`: the events after the cursor, or from the first one without a cursor. `DELETE`: as `StopStream`."""

    methods = frozenset({"GET", "DELETE"})
    by_ticket = True

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        stream_id = _stream_id(exchange)
        if exchange.request.method == "DELETE":
            return await _stop(exchange, await find_stream(exchange, stream_id))
        if cursor := cursor_of(exchange):
            return await resume(exchange, cursor, stream_id)
        return await follow(exchange, await find_stream(exchange, stream_id), BEGINNING)


class StopStream(Kind):
    """`POST /streams/{id}/stop`: the stream ends, and its readers get its end. A second stop changes nothing."""

    methods = frozenset({"POST"})

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        return await _stop(exchange, await find_stream(exchange, _stream_id(exchange)))


async def _stop(exchange: Exchange, followed: Followed) -> web.StreamResponse:
    followed.stop()
    try:
        async with asyncio.timeout(STOP_PATIENCE):
            await asyncio.shield(followed.ended)  # a client that leaves must not cancel `ended` itself
    except TimeoutError:
        raise GatewayError("overloaded", retry_after=1, detail="its node has not stopped it yet") from None
    return json_response(exchange, {"id": followed.stream.id, "state": followed.state})


def _stream_id(exchange: Exchange) -> str:
    stream_id = exchange.path_params["id"]
    if not valid_stream_id(stream_id):
        raise GatewayError("cursor_expired")
    return stream_id
