"""`api: chat`: a browser asks with one message, and reads the answer as events of the route's format."""

from typing import Any

from aiohttp import web

from gateway.config import ChatRoute
from gateway.core.errors import GatewayError
from gateway.core.sessions import valid_session_id
from gateway.formats import Format
from gateway.streams.pump import Job
from gateway.upstream.pool import Upstream
from gateway.web.admission import admit, expires_in
from gateway.web.body import read_json_object
from gateway.web.exchange import Exchange
from gateway.web.kinds.asking import ChatSource, estimate_tokens
from gateway.web.responses import STREAM_HEADERS
from gateway.web.streaming import cursor_of, resume, stream_new

MAX_MESSAGES = 1000


class ChatHandler:
    """Serves one chat route.

    Args:
        route: its settings.
        chain: who answers, and who else.
        format_: what clients receive.
    """

    def __init__(self, route: ChatRoute, chain: tuple[Upstream, ...], format_: Format) -> None:
        self._route = route
        self._chain = chain
        self._format = format_

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """The stream of a new answer, or the rest of an earlier one."""
        if exchange.request.method == "HEAD":
            return web.Response(headers={**STREAM_HEADERS, **exchange.headers})
        if self._route.stream.resume.enabled and (cursor := cursor_of(exchange)):
            return await resume(exchange, cursor)
        question = await self._question(exchange)
        messages, session, message = self._conversation(exchange, question)
        generation = admit(exchange, self._job(exchange, messages, session, message))
        return await stream_new(exchange, generation)

    async def _question(self, exchange: Exchange) -> dict[str, Any]:
        request, params = exchange.request, self._route.params
        if request.method == "GET":
            names = (params.message, params.session)
            return {name: request.query[name] for name in names if name in request.query}
        body = await read_json_object(request, exchange.snapshot.config.server.max_body)
        allowed = (params.message, params.session, "messages", "last_event_id")
        if unknown := sorted(set(body) - set(allowed)):
            raise GatewayError("bad_request", f"Unknown field {unknown[0]!r:.80}; allowed: {', '.join(allowed)}.")
        return body

    def _conversation(self, exchange: Exchange, question: dict[str, Any]) -> tuple[list[dict[str, Any]], str, str]:
        """What the upstream is sent, the session it belongs to, and what the session will remember of it."""
        params = self._route.params
        session = _session(question.get(params.session), params.session)
        opening = [{"role": "system", "content": self._route.system}] if self._route.system else []
        if "messages" in question:
            if params.message in question:
                raise GatewayError("bad_request", f"Send either {params.message!r} or 'messages', not both.")
            return opening + _messages(question["messages"]), session, ""
        message = _message(question.get(params.message), params.message)
        history = exchange.gateway.history(self._route)
        past = history.get(exchange.who.id, session, exchange.started) if history is not None and session else []
        return [*opening, *past, {"role": "user", "content": message}], session, message

    def _job(self, exchange: Exchange, messages: list[dict[str, Any]], session: str, message: str) -> Job:
        chat: dict[str, Any] = {"model": self._route.model or "", "messages": messages, "stream": True}
        if session:
            chat["session_id"] = session
        history = exchange.gateway.history(self._route) if session and message else None
        clock = exchange.gateway.clock
        remember = None
        if history is not None:

            def remember(answer: str) -> None:
                history.add(exchange.who.id, session, message, answer, clock.now())

        return Job(
            route=self._route.path,
            source=ChatSource(chat),
            chain=self._chain,
            stream=self._route.stream,
            timeouts=self._route.timeouts,
            model=self._route.model or self._chain[0].config.model or "",
            principal=exchange.who.id,
            request_id=exchange.id,
            trace=exchange.trace,
            format=self._format,
            merge=self._route.stream.merge,
            session_id=session,
            announce=True,
            restarts=True,
            input_tokens=estimate_tokens(messages),
            expires_in=expires_in(exchange),
            on_answer=remember,
        )


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
