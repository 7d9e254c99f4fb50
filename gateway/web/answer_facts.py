"""`GET /page/answer?stream=ID`: what the chat page shows beside an answer that the events of its route do not say.

It is the model that answered, in the provider's word where there is one, as `/streams` of the admin listener names it.
Another caller's stream is as unknown as one that is gone: 404.
"""

from typing import Final

from aiohttp import hdrs, web

from gateway.core.cursor import valid_stream_id
from gateway.core.errors import GatewayError
from gateway.web.exchange import Exchange, Kind
from gateway.web.responses import json_response
from gateway.web.streaming import find_stream

MAX_MODEL: Final = 120
"""Characters of a name."""


class AnswerFacts(Kind):
    """Tells the model of one stream of the caller's."""

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        stream_id = exchange.request.query.get("stream", "")
        if not valid_stream_id(stream_id):
            raise GatewayError("cursor_expired")
        followed = await find_stream(exchange, stream_id)
        model = followed.log.model
        return json_response(exchange, {"model": model[:MAX_MODEL]}, {hdrs.CACHE_CONTROL: "no-store"})
