"""What all kinds of route share: the way from a request to a stream, or to a whole answer.

    request --cursor--> resume                                               costs nothing
       |
       +--read--> Asked --admit--> Generation --respond--> stream_new        events
                                                       or  one object        gathered from the log
                                                       or  pass through      what the upstream answered instead

A kind says how a request is read and how its answer looks. What a caller may start is decided in `admission.py`, how
events are sent in `streaming.py`.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from aiohttp import web

from gateway.config import Route
from gateway.formats import Format
from gateway.streams.generation import Generation
from gateway.streams.job import Job, Source
from gateway.streams.stream import reader_settings
from gateway.upstream.pool import Upstream
from gateway.web.admission import admit, expires_in
from gateway.web.exchange import Exchange, Kind
from gateway.web.streaming import cursor_of, read_by_ticket, resume, stream_new
from gateway.web.tickets import claim_ticket

R = TypeVar("R", bound=Route)


class Asked(NamedTuple):
    """What a request asks for.

    Attributes:
        job: what the generation is to do.
        max_tokens: output tokens that the client allows, None where it gives no number.
        stream: whether the client wants events, and nothing else.
    """

    job: Job
    max_tokens: int | None = None
    stream: bool = True


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

    def answer(self, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """The stream of a new answer, the rest of an earlier one, or whatever else the kind answers with."""
        return self._answer(exchange)

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        if self.route.stream.resume.enabled and (cursor := self.cursor(exchange)):
            return await resume(exchange, cursor)
        if exchange.ticket is not None and (stream_id := exchange.ticket.stream_id):
            return await read_by_ticket(exchange, stream_id)
        asked = await self.read(exchange)
        if isinstance(asked, str):
            exchange.free_body()
            return await resume(exchange, asked)
        if exchange.ticket is not None:
            await claim_ticket(exchange, exchange.ticket)
        response = self.respond(exchange, asked, admit(exchange, asked.job, asked.max_tokens))
        del asked  # it holds the prompt, which is needed no longer than its answer; a slow reader may stay on
        return await response

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

    def job(self, exchange: Exchange, source: Source, format_: Format, model: str, **more: Any) -> Job:
        """A job, with the fields filled in that are the same for all kinds of route.

        Args:
            exchange: the request.
            source: asks upstreams and reads their answers.
            format_: how readers are sent the events.
            model: the model asked for, "" where none was named.
            more: further fields of `Job`.
        """
        return Job(
            route=self.route.path,
            source=source,
            chain=self.chain,
            stream=self.route.stream,
            timeouts=self.route.timeouts,
            model=model,
            principal=str(exchange.caller),
            request_id=exchange.id,
            trace=exchange.trace,
            format=format_,
            readers=self.readers,
            expires_in=expires_in(exchange),
            standing=exchange.caller.standing,
            **more,
        )


KindFactory = Callable[[Any, tuple[Upstream, ...]], Kind]
"""Makes the kind that serves one route."""
