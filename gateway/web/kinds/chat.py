"""`api: chat`: a browser sends one message, and reads the answer as events of the route's format."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from gateway.config import ChatRoute
from gateway.core.cursor import PARAMETER
from gateway.core.errors import GatewayError
from gateway.core.sessions import valid_session_id
from gateway.formats import UIFormat, compile_format
from gateway.formats.ui import HEADERS
from gateway.streams.job import Job
from gateway.streams.order import Order
from gateway.streams.stream import Stream
from gateway.upstream.pool import Upstream
from gateway.web.body import read_fields
from gateway.web.exchange import Answered, Endpoint, Exchange
from gateway.web.kinds.base import Asked, RouteKind
from gateway.web.kinds.chat_source import ChatSource, added_tokens
from gateway.web.kinds.ui import FIELDS, FollowChat, continued, message_of, messages_of
from gateway.web.responses import STREAM_HEADERS
from gateway.web.state import Gateway

MAX_MESSAGES = 1000
"""Messages of one request, at most."""


class Chat(RouteKind[ChatRoute]):
    """Serves one chat route."""

    methods = frozenset({"GET", "HEAD", "POST"})

    def __init__(self, route: ChatRoute, chain: tuple[Upstream, ...]) -> None:
        super().__init__(route, chain)
        self.format = compile_format(route.format)
        self.models = frozenset({route.model} if route.model else ())
        self.added = added_tokens(chain)
        self.ui = isinstance(self.format, UIFormat)
        if self.ui:
            self.beside = {f"{route.path}/{{chat}}/stream": Endpoint(route.path, FollowChat(route.path))}

    def answer(self, exchange: Exchange) -> Awaitable[Answered]:
        if self.ui:
            exchange.headers |= HEADERS
        return _head(exchange) if exchange.request.method == "HEAD" else super().answer(exchange)

    async def read(self, exchange: Exchange) -> Asked | str:
        """The browser's message after the session's history, or the browser's own messages; the system prompt first."""
        route, params = self.route, self.route.params
        question = await self._question(exchange)
        if route.stream.resume.enabled and isinstance(cursor := question.get(PARAMETER), str) and cursor:
            return cursor
        session, message = _session(question.get(params.session), params.session), ""
        history = exchange.gateway.history(route.path, route.history) if session else None
        messages = [{"role": "system", "content": route.system}] if route.system else []
        if "messages" in question:
            if params.message in question:
                raise GatewayError("bad_request", f"Send either {params.message!r} or 'messages', not both.")
            messages += _messages(messages_of(question["messages"]) if self.ui else question["messages"])
        else:
            message = _message(question.get(params.message), params.message)
            if history is not None:
                if history.behind is not None:
                    await history.behind.refresh(str(exchange.caller), session, exchange.started)
                messages += history.get(str(exchange.caller), session, exchange.started)
            messages.append({"role": "user", "content": message})

        format_ = self.format
        if self.ui and (message_id := continued(question.get("messages"))):
            format_ = UIFormat(message_id)
        chat: dict[str, Any] = {"model": route.model or "", "messages": messages}
        return Asked(
            self.job(
                exchange,
                ChatSource(chat, session_id=session),
                format_,
                route.model or self.chain[0].config.model or "",
                session_id=session,
                announce=True,
                restarts=not self.ui,  # nothing in its stream makes text void
                input_tokens=await self.estimate(exchange, chat) + self.added,
                on_answer=self._remember(exchange.gateway, str(exchange.caller), session, message),
            ),
            again={"chat": chat, "message": message},
        )

    def again(self, gateway: Gateway, order: Order, stream: Stream) -> Job | None:
        """The job of a stream that another node began; None where this is another kind of route there."""
        if "message" not in order.asked:
            return None
        session = stream.session_id
        return self._job_again(
            order,
            stream,
            ChatSource(order.asked["chat"], session_id=session),
            announce=True,
            restarts=not self.ui,
            on_answer=self._remember(gateway, order.principal, session, order.asked["message"]),
        )

    def _remember(self, gateway: Gateway, principal: str, session: str, message: str) -> Callable[[str], None] | None:
        """What adds the answer to the session; None where nothing is to be remembered."""
        history = gateway.history(self.route.path, self.route.history) if session and message else None
        if history is None:
            return None
        return lambda answer: history.add(principal, session, message, answer, gateway.clock.now())

    async def _question(self, exchange: Exchange) -> dict[str, Any]:
        """The parameters of the request: of the query in a `GET`, or in a `POST` without a body; else of the body."""
        request, params = exchange.request, self.route.params
        own = (params.message, params.session)
        if request.method == "GET" or (params.message in request.query and not request.can_read_body):
            return {name: request.query[name] for name in own if name in request.query}
        body = await read_fields(exchange)
        names = (params.message, params.session, "messages", PARAMETER)
        allowed = dict.fromkeys((*names, *FIELDS) if self.ui else names)
        if unknown := sorted(set(body) - set(allowed)):
            raise GatewayError("bad_request", f"Unknown field {unknown[0]!r:.80}; allowed: {', '.join(allowed)}.")
        return self._from_kit(body) if self.ui else body

    def _from_kit(self, body: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a request of the AI SDK under the route's names: its chat is the session."""
        params = self.route.params
        if body.get("id") and not body.get(params.session):
            body[params.session] = body["id"]
        message = message_of(body.get(params.message, body.get("message")))
        if message is not None and "messages" not in body:
            body[params.message] = message.get("content") if isinstance(message, dict) else message
        return body


async def _head(exchange: Exchange) -> web.StreamResponse:
    return web.Response(headers={**STREAM_HEADERS, **exchange.headers})


def _session(value: object, name: str) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not valid_session_id(value):
        raise GatewayError("bad_request", f"{name!r} must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -")
    return value


def _message(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise GatewayError("bad_request", f"{name!r} is required and must be a string.")
    if not value.strip():
        raise GatewayError("bad_request", f"{name!r} must not be empty.")
    return value


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise GatewayError("bad_request", f"'messages' must be an array of 1 to {MAX_MESSAGES} messages.")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise GatewayError("bad_request", "Every message must be an object with a 'role'.")
    return value
