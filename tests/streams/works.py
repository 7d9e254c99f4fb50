"""An engine, and generations for it, in the test's own process: a real upstream and real sockets, no clients."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import structlog

from gateway.clock import Clock
from gateway.config import Config
from gateway.core.errors import Failure
from gateway.core.event import DONE, ERROR, RESTART, TOKEN, Done, Event
from gateway.core.limiter import Lease, Limiter
from gateway.core.limits import Plan, make_limits
from gateway.dialects.base import Answer, Call
from gateway.formats import compile_format
from gateway.observe.metrics import Metrics
from gateway.streams.engine import Engine
from gateway.streams.generation import Generation
from gateway.streams.job import Job
from gateway.streams.log import LogState, MemoryLog
from gateway.streams.reader import BEGINNING, Reader
from gateway.streams.registry import Registry
from gateway.streams.stream import Stream, reader_settings
from gateway.upstream.http import new_session
from gateway.upstream.pool import Target, Upstream
from gateway.web.kinds.chat_source import ChatSource
from tests.kit.upstream import Exchange, Hang, Script, ScriptedUpstream, Step, openai_delta, sse_head

PLAN = Plan("p", make_limits(streams=3))
BEGUN: list[Step] = [sse_head(), openai_delta("The quick brown"), openai_delta(" fox ")]
ENDLESS: list[Step] = [sse_head(), openai_delta("a"), Hang()]


class Unread:
    """A source that takes no answer for a stream: it is passed on."""

    repeatable = True

    def call(
        self,
        upstream: Upstream,
        target: Target,
        prefix: str,
        *,
        delivered: int = 0,
        without: frozenset[str] = frozenset(),
    ) -> Call:
        return ChatSource({"model": "m", "messages": []}).call(upstream, target, prefix)

    def names_no_model(self, upstream: Upstream, target: Target) -> bool:
        return False

    async def accept(self, upstream: Upstream, response: aiohttp.ClientResponse, *, canonical: bool) -> Answer | None:
        return None


class Works:
    """An engine, and generations for it."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        clock = Clock(asyncio.get_running_loop())
        self.metrics = Metrics()
        self.registry = Registry(clock.wheel, 1 << 20)
        self.engine = Engine(clock, self.registry, self.metrics, structlog.get_logger(), session, {})
        self.limiter = Limiter()

    def generation(self, url: str | Sequence[str], **changes: Any) -> Generation:
        """A generation that was not started.

        Args:
            url: of the upstream, or of it and its fallbacks.
            changes: fields of its job; or keys of its route's `stream` and `timeouts`, or of every `upstream`.
        """
        stream = {"resume": {"ttl": "1h"}} | changes.pop("stream", {})
        log_bytes = changes.pop("log_bytes", 1 << 20)
        urls = [url] if isinstance(url, str) else url
        timeouts = changes.pop("timeouts", {})
        settings = {"dialect": "openai", "retries": 0} | changes.pop("upstream", {})
        config = Config.model_validate(
            {
                "upstreams": {f"up{place}": {"targets": [{"url": url}]} | settings for place, url in enumerate(urls)},
                "routes": [{"path": "/r", "api": "chat", "upstream": "up0", "stream": stream, "timeouts": timeouts}],
            }
        )
        facts: dict[str, Any] = {
            "route": "/r",
            "source": ChatSource({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            "chain": tuple(Upstream(name, settings, "") for name, settings in config.upstreams.items()),
            "stream": config.routes[0].stream,
            "timeouts": config.routes[0].timeouts,
            "model": "m",
            "principal": "me",
            "request_id": "r1",
            "format": compile_format("events"),
            "readers": reader_settings(config.routes[0].stream),
            "announce": True,
        }
        if changes.pop("unread", False):
            facts["source"] = Unread()
        lease = self.limiter.admit(
            changes.pop("plan", PLAN), "me", {"requests": 1, "streams": 1, "tokens": 0}, self.engine.clock.now()
        )
        assert isinstance(lease, Lease)
        job = Job(**facts | changes)

        def make(stream_id: str, log: MemoryLog) -> Generation:
            stream = Stream(
                id=stream_id, owner="me", route=job.route, created=0, format=job.format, settings=job.readers
            )
            return Generation(stream, log, job, lease, self.engine)

        return self.registry.create(log_bytes, make)

    def started(self, url: str | Sequence[str], **changes: Any) -> Generation:
        generation = self.generation(url, **changes)
        generation.start()
        return generation

    def check_rest(self) -> None:
        """No stream runs, every slot is free, and nothing was counted twice."""
        assert self.engine.running == {}
        assert self.slots_taken() == 0
        assert self.count("gateway_streams_active") == 0

    def slots_taken(self) -> int:
        [quota] = self.limiter.snapshot(PLAN, "me", self.engine.clock.now())
        return quota.limit - quota.remaining

    def count(self, name: str, **labels: str) -> float:
        samples = [s for family in self.metrics.registry.collect() for s in family.samples if s.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def outcomes(self) -> dict[str, float]:
        samples = [s for family in self.metrics.registry.collect() for s in family.samples]
        return {s.labels["outcome"]: s.value for s in samples if s.name == "gateway_streams_total"}


@asynccontextmanager
async def working() -> AsyncIterator[Works]:
    """An engine; at the end of the block it must be at rest."""
    async with new_session() as session:
        works = Works(session)
        yield works
        works.check_rest()


async def read_all(reader: Reader) -> list[Event]:
    events: list[Event] = []
    while not isinstance(got := await reader.read(99, 5), LogState):
        events += got
        reader.advance(len(got))
    return events


async def events_of(works: Works, *scripts: Script, **changes: Any) -> tuple[list[Event], list[list[Exchange]]]:
    """The events of a generation whose upstream and fallbacks play these scripts, and what each of them was asked."""
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(ScriptedUpstream(script)) for script in scripts]
        generation = works.started([upstream.url for upstream in upstreams], **changes)
        reader = generation.attach(BEGINNING)
        events = await read_all(reader)
        generation.detach(reader, 0)
        return events, [list(upstream.exchanges) for upstream in upstreams]


def text_of(events: Sequence[Event]) -> str:
    """The text that a reader has in the end."""
    types = [event.type for event in events]
    begun = len(types) - types[::-1].index(RESTART) if RESTART in types else 0
    return "".join(event.data for event in events[begun:] if event.type == TOKEN)


def done(events: Sequence[Event]) -> Done:
    """The end of an answer that completed."""
    assert events[-1].type == DONE, events[-1]
    return msgspec.json.decode(events[-1].data, type=Done)


def code(events: Sequence[Event]) -> str:
    """The error that an answer ended with."""
    assert events[-1].type == ERROR, events[-1]
    return msgspec.json.decode(events[-1].data, type=Failure).code


async def until_streaming(generation: Generation) -> None:
    async with asyncio.timeout(5):
        await generation.opened()
