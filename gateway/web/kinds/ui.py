"""What the AI SDK's `useChat` sends to a chat route with `format: ui`, and how it comes back to a running answer.

    POST {path}               {id, messages: [{id, role, parts: [{type: "text", text}, …]}], trigger, messageId?}
    GET  {path}/{id}/stream   204 where no answer of that chat runs, else its stream from the beginning

Source: npm `ai` 6.0.326, `HttpChatTransport`.
"""

from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from gateway.core.errors import GatewayError
from gateway.core.sessions import valid_session_id
from gateway.formats.ui import HEADERS
from gateway.streams.reader import BEGINNING
from gateway.streams.stream import Followed
from gateway.web.exchange import Exchange, Kind
from gateway.web.state import Gateway
from gateway.web.streaming import follow

FIELDS: Final = ("id", "messages", "message", "trigger", "messageId")
"""The fields of a request, beside those that the route has under the names of its `params`."""
IMAGES: Final = "image/"


class FollowChat(Kind):
    """`GET {path}/{id}/stream`: the newest answer that runs in this chat, from its beginning; 204 without one.

    Args:
        path: of the route. Answers of other routes are not found.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        chat, gateway = unquote(exchange.path_params["chat"]), exchange.gateway
        if not valid_session_id(chat):
            raise GatewayError("bad_request", "The chat's id must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -")
        owner = exchange.caller.owner
        followed = self._here(gateway, chat, owner)
        if gateway.shared is not None:
            followed = await gateway.shared.newest(self._path, chat, owner, followed)
        if followed is not None:
            exchange.headers |= HEADERS
            return await follow(exchange, followed, BEGINNING)
        return web.Response(status=204, headers=exchange.headers)

    def _here(self, gateway: Gateway, chat: str, owner: str) -> Followed | None:
        """The newest one of them that this node writes."""
        for stream_id in reversed(list(gateway.engine.running)):
            found = gateway.registry.find(stream_id, owner)
            if found and (found.stream.route, found.stream.session_id) == (self._path, chat):
                return found
        return None


def message_of(value: Any) -> Any:
    """A message of the SDK as one of OpenAI's: its parts' text is the content. What has no `parts` stays as it is.

    Raises:
        GatewayError: a part cannot be sent to a model.
    """
    if not isinstance(value, dict) or not isinstance(value.get("parts"), list):
        return value
    texts: list[str] = []
    images: list[dict[str, Any]] = []
    for part in value["parts"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "file":
            images.append(_image(part))
        # Reasoning, sources, steps and data are what a page shows; they are not told to the model again.
    text = "".join(texts)
    content = [*([{"type": "text", "text": text}] if text else []), *images] if images else text
    return {"role": value.get("role"), "content": content}


def messages_of(value: Any) -> Any:
    """The messages as OpenAI's, without those in which a model finds nothing. Raises as `message_of`."""
    if not isinstance(value, list):
        return value
    messages = [message_of(message) for message in value]
    return [message for message in messages if not (isinstance(message, dict) and message.get("content") == "")]


def continued(value: Any) -> str:
    """The id of the message that the answer continues, because it is the assistant's own; "" for a new one."""
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return ""
    return last["id"] if isinstance(last.get("id"), str) and len(last["id"]) <= 128 else ""


def _image(part: dict[str, Any]) -> dict[str, Any]:
    kind, url = part.get("mediaType"), part.get("url")
    if not isinstance(kind, str) or not kind.startswith(IMAGES) or not isinstance(url, str):
        raise GatewayError("bad_request", "Only files of an image type, with a 'url', can be sent to the model.")
    return {"type": "image_url", "image_url": {"url": url}}
