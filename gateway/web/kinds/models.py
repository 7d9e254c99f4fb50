"""`GET …/models` and `…/models/{id}` beside an openai route: what its upstream has, as every OpenAI client asks first.

The names are those that the targets of the route's own upstream list. Where none of them lists any, they are those that
the configuration names. Each target is asked at most once a minute, or every 5 s while it fails; the list is kept where
the pump looks for it, too (`upstream/models.py`).
"""

import asyncio
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from gateway.config import OpenAIRoute
from gateway.core.errors import Failure, GatewayError
from gateway.formats import OpenAIFormat, error_object
from gateway.upstream.pool import Upstream
from gateway.web.exchange import Exchange, Kind
from gateway.web.responses import json_response

MAX_NAME: Final = 80
"""Characters of a name in an error."""


class Models(Kind):
    """The list, or one model of it where the path has an id.

    Args:
        route: the openai route that it stands beside.
        upstream: of that route.

    Source: OpenAI API reference, models/list and models/retrieve.
    """

    format = OpenAIFormat()

    def __init__(self, route: OpenAIRoute, upstream: Upstream) -> None:
        self._route = route
        self._upstream = upstream

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """The list; or one model, whose id may have slashes, as they are or percent-encoded."""
        names = await self._names(exchange)
        wanted = unquote(exchange.path_params.get("path", ""))
        if not wanted:
            return json_response(exchange, {"object": "list", "data": [_model(name) for name in names]})
        if wanted not in names:
            sentence = f"The model '{wanted[:MAX_NAME]}' does not exist."
            raise GatewayError("model_not_found", sentence, param="model")
        return json_response(exchange, _model(wanted))

    async def _names(self, exchange: Exchange) -> list[str]:
        engine, targets = exchange.gateway.engine, self._upstream.targets
        asked = (target.models.learn(engine.session, engine.clock.now, engine.logger) for target in targets)
        listed = dict.fromkeys(name for names in await asyncio.gather(*asked) for name in names)
        configured = (*(target.model for target in targets), self._upstream.config.model, self._route.model)
        return list(listed) or list(dict.fromkeys(name for name in configured if name))

    def error_body(self, failure: Failure, request_id: str) -> tuple[dict[str, Any], str]:
        """OpenAI's error object."""
        return error_object(failure), "application/json"


def _model(name: str) -> dict[str, Any]:
    """A model as OpenAI describes it. When it was made, and by whom, is not known here."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "upstream"}
