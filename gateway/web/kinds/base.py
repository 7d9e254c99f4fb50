"""What all kinds of route share: the way from a request to a stream, or to a whole answer.

    request --cursor--> resume                                               costs nothing
       |
       +--read--> Asked --admit--> Generation --respond--> stream_new        events
                                                       or  one object        gathered from the log
                                                       or  pass through      what the upstream answered instead

A kind says how a request is read and how its answer looks. What a caller may start is decided in `admission.py`, how
events are sent in `streaming.py`.
"""

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from aiohttp import web

from gateway.config import Route
from gateway.formats import Format
from gateway.streams.generation import Generation
from gateway.streams.job import Job, Source
from gateway.streams.order import Order
from gateway.streams.stream import Stream, reader_settings
from gateway.upstream.pool import Upstream
from gateway.web.admission import admit, expires_in
from gateway.web.exchange import Answered, Exchange, Kind
from gateway.web.kinds.chat_source import estimate_tokens
from gateway.web.state import Gateway
from gateway.web.streaming import cursor_of, read_by_ticket, resume, stream_new
from gateway.web.tickets import claim_ticket

R = TypeVar("R", bound=Route)


class Asked(NamedTuple):
    """What a request asks for.

    Attributes:
        job: what the generation is to do.
        max_tokens: output tokens that the client allows, None where it gives no number.
        stream: whether the client wants events, and nothing else.
        again: what `RouteKind.again` needs to ask the same again at another node; None where that cannot be.
    """

    job: Job
    max_tokens: int | None = None
    stream: bool = True
    again: dict[str, Any] | None = None


class RouteKind(Kind, Generic[R]):
    """One kind of route, serving one route.

    Args:
        route: its settings.
        chain: the upstream that answers, and its fallbacks.
    """

    by_ticket = True

    def __init__(self, route: R, chain: tuple[Upstream, ...]) -> None:
        self.route = route
        self.chain = chain
        self.readers = reader_settings(route.stream)
        self.retry = route.stream.retry

    def answer(self, exchange: Exchange) -> Awaitable[Answered]:
        """The stream of a new answer, the rest of an earlier one, or whatever else the kind answers with."""
        return self._answer(exchange)

    async def _answer(self, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        if self.route.stream.resume.enabled and (cursor := self.cursor(exchange)):
            return resume(exchange, cursor)
        if exchange.ticket is not None and (stream_id := exchange.ticket.stream_id):
            return read_by_ticket(exchange, stream_id)
        asked = await self.read(exchange)
        if isinstance(asked, str):
            exchange.free_body()
            return resume(exchange, asked)
        if exchange.ticket is not None:
            await claim_ticket(exchange, exchange.ticket)
        generation = admit(exchange, asked.job, asked.max_tokens, asked.again)
        if not isinstance(generation, Generation):
            generation = await generation
        return self.respond(exchange, asked, generation)

    def cursor(self, exchange: Exchange) -> str | None:
        """The cursor, where the request resumes an earlier stream; None where it asks for a new one."""
        return cursor_of(exchange)

    @abstractmethod
    async def read(self, exchange: Exchange) -> Asked | str:
        """What the request asks for; or a cursor, where its body has one.

        Raises:
            GatewayError: the request is malformed.
        """

    def respond(self, exchange: Exchange, asked: Asked, generation: Generation) -> Awaitable[web.StreamResponse]:
        """An awaitable of the response for a generation that was just started."""
        return stream_new(exchange, generation)

    async def estimate(self, exchange: Exchange, chat: dict[str, Any]) -> int:
        """Tokens of a chat request, see `estimate_tokens`. Of a long one they are counted in a turn of its own."""
        if not exchange.long:
            return estimate_tokens(chat)
        async with exchange.gateway.engine.turns:
            return estimate_tokens(chat)

    def job(self, exchange: Exchange, source: Source, format_: Format, model: str, **more: Any) -> Job:
        """A job, with the fields filled in that are the same for all kinds of route.

        Args:
            exchange: the request.
            source: asks upstreams and reads their answers.
            format_: how readers are sent the events.
            model: the model asked for, "" where none was named.
            more: further fields of `Job`.
        """
        return self._job(
            source=source,
            model=model,
            principal=str(exchange.caller),
            request_id=exchange.id,
            trace=exchange.trace,
            format=format_,
            readers=self.readers,
            expires_in=expires_in(exchange),
            assurance=exchange.caller.assurance,
            long=exchange.long,
            **more,
        )

    def again(self, gateway: Gateway, order: Order, stream: Stream) -> Job | None:
        """The job of a stream that another node began, by this node's configuration; None where this kind cannot go on.

        Args:
            gateway: the process's parts.
            order: what was asked for; `asked` is what the kind gave as `Asked.again`.
            stream: what its readers need to know.
        """
        return None

    def _job_again(self, order: Order, stream: Stream, source: Source, **more: Any) -> Job:
        """A job for `again`, with the fields filled in that are the same for all kinds of route."""
        return self._job(
            source=source,
            model=order.model,
            principal=order.principal,
            request_id=order.request_id,
            format=stream.format,
            readers=stream.settings,
            session_id=stream.session_id,
            input_tokens=order.input_tokens,
            expires_in=None if order.expires is None else max(0.0, order.expires - time.time()),
            **more,
        )

    def _job(self, **more: Any) -> Job:
        route = self.route
        return Job(route=route.path, chain=self.chain, stream=route.stream, timeouts=route.timeouts, **more)


KindFactory = Callable[[Any, tuple[Upstream, ...]], Kind]
"""Makes the kind that serves one route."""
