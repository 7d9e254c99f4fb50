"""`/streams/{id}`: read a stream from anywhere, and stop it."""

import asyncio

from aiohttp import web

from gateway.core.cursor import Cursor, valid_stream_id
from gateway.core.errors import GatewayError
from gateway.web.exchange import Exchange
from gateway.web.responses import json_response
from gateway.web.streaming import cursor_of, find_stream, follow, resume


async def read_or_stop(exchange: Exchange) -> web.StreamResponse:
    """`GET`: the events after the cursor, or from the first one without a cursor. `DELETE`: as `stop`."""
    stream_id = _stream_id(exchange)
    if exchange.request.method == "DELETE":
        return await stop(exchange)
    if cursor := cursor_of(exchange):
        return await resume(exchange, cursor, stream_id)
    generation = find_stream(exchange, stream_id)
    return await follow(exchange, generation, Cursor(stream_id, 0, 0))


async def stop(exchange: Exchange) -> web.StreamResponse:
    """`POST /streams/{id}/stop`: the generation ends; its readers are told. Stopping it again changes nothing."""
    generation = find_stream(exchange, _stream_id(exchange))
    generation.stop()
    await asyncio.shield(generation.ended)  # a client that leaves cancels its own waiting, not the end
    return json_response(exchange, {"id": generation.log.stream_id, "state": generation.state})


def _stream_id(exchange: Exchange) -> str:
    stream_id = exchange.path_params["id"]
    if not valid_stream_id(stream_id):
        raise GatewayError("cursor_expired")
    return stream_id
