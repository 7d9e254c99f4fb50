"""What one target is asked, and what is learnt from the way in which it refuses.

The gateway adds something to a client's request: `stream_options`, for the usage; parameters of the configuration; the
beginning of an answer that is to be continued. A target that refuses one of these is asked again at once without it,
and is spared it from then on. So the client never hears of it, and the refusal is no failed attempt.

Where nobody names a model, many servers choose one. A target that refuses is asked for the first of its own list.
"""

from collections.abc import Generator
from typing import Final
from urllib.parse import unquote_plus, urlsplit

import msgspec

from gateway.core.blame import PREFIX, STREAM, blamed
from gateway.core.errors import ERROR_KINDS, GatewayError
from gateway.core.sentence import Steps, hiding_texts, texts_of, without_keys
from gateway.dialects.base import NO_NAMES, Call
from gateway.observe.account import Account
from gateway.streams.engine import Engine
from gateway.streams.job import Job
from gateway.streams.rescue import Rescue
from gateway.streams.turns import finished
from gateway.upstream.course import Choice
from gateway.upstream.models import may_lack_a_model

_OF_THE_REQUEST: Final = frozenset({400, 422})
"""Statuses of a refusal that has its reason in the request."""
_ABOUT_ELSE: Final = frozenset(
    {
        "bad_request",
        "budget",
        "content_filter",
        "context_length_exceeded",
        "upstream_rate_limited",
    }
)
"""Failures that are certainly not about what the gateway added."""
_NO_HEADERS: Final[dict[str, str]] = {}


class Question:
    """The question of one attempt.

    Args:
        job: what was asked for.
        engine: what all generations share.
        account: names the generation in log lines.
        choice: the target that is asked.
        prefix: the text that it is asked to continue, "" for none.
        without: what it has just refused of the things that the gateway adds, as `Call.added` names them.

    Attributes:
        delivered: tokens of the prefix.
        plain: whether one whole answer is asked for, and not a stream.
        url: where it was put, without the query; "" before that.
    """

    __slots__ = ("_account", "_asked", "_choice", "_engine", "_job", "_prefix", "_without", "delivered", "plain", "url")

    def __init__(
        self,
        job: Job,
        engine: Engine,
        account: Account,
        choice: Choice,
        prefix: str = "",
        without: frozenset[str] = NO_NAMES,
    ) -> None:
        self.delivered = 0
        self.plain = False
        self.url = ""
        self._job = job
        self._engine = engine
        self._account = account
        self._choice = choice
        self._prefix = prefix
        self._without = without
        self._asked: Call | None = None

    def put(self, rescue: Rescue | None) -> Call:
        """The request that asks the question, as a part of this rescue. Its body is not kept here.

        Raises:
            GatewayError: the dialect cannot express what the client asks for.
        """
        if rescue is not None:
            rescue.ask(self._prefix)
            self.delivered = rescue.tokens if self._prefix else 0
        call = self._call()
        self._asked = msgspec.structs.replace(call, headers=_NO_HEADERS, body=b"")
        self.plain = call.plain
        self.url = call.url.partition("?")[0]  # of a proxied request, the rest may be long, and is the client's
        self._tell_left_out(call.left_out)
        return call

    def _call(self) -> Call:
        upstream, target, _ = self._choice
        return self._job.source.call(upstream, target, self._prefix, delivered=self.delivered, without=self._without)

    def _tell_left_out(self, left_out: frozenset[str]) -> None:
        """Logs what the request had to leave out, once for each parameter and upstream."""
        upstream = self._choice.upstream
        if left_out and (new := upstream.first_told(left_out)):
            self._engine.logger.info(
                "parameters_left_out", upstream=upstream.name, parameters=new, **self._account.facts
            )

    def accepted(self) -> None:
        """The target has accepted the request: what it was spared was the reason of its refusal."""
        asked, target = self._asked, self._choice.target
        assert asked is not None, "nothing was asked"
        if asked.added:
            target.withheld.take(asked.model, asked.added)
        if self._without and (new := target.learn(asked.model, self._without)):
            self._engine.logger.info(
                "parameters_withheld",
                upstream=self._choice.upstream.name,
                target=target.label,
                parameters=sorted(new),
                **self._account.facts,
            )

    def lighter(self, error: GatewayError) -> "Question | None":
        """The question for the same target without what it refused of the gateway's additions; None where the failure
        is about something else."""
        asked = self._asked
        if asked is None or not (asked.added or self._prefix):
            return None
        refused = self._refused(asked, error)
        if not refused:
            return None
        prefix = "" if PREFIX in refused else self._prefix
        return Question(self._job, self._engine, self._account, self._choice, prefix, self._without | refused)

    def _refused(self, asked: Call, error: GatewayError) -> set[str]:
        if error.code == "upstream_auth":
            # OpenAI answers an account that is not verified, but not with a stream.
            return blamed(error.words, asked.added & {STREAM}) if error.words else set()
        if error.code in _ABOUT_ELSE:
            return set()
        if error.status in _OF_THE_REQUEST:
            added = asked.added | ({PREFIX} if self._prefix else NO_NAMES)
            taken = self._choice.target.withheld.taken(asked.model)
            refused = blamed(error.words or error.message, added, own=asked.own, taken=taken)
        else:
            # A server that fails instead of refusing is believed only where it names what it did not like.
            refused = blamed(error.words, asked.added - {STREAM}, taken=asked.added) if error.words else set()
        return refused or ({PREFIX} if self._prefix and error.code == "upstream_refused" else set())

    async def hide_quotes(self, error: GatewayError, answer: str) -> None:
        """Takes out of what a provider said its quotes of this request and of the answer so far, and the key that it
        was asked with. Other streams have their turn meanwhile; of long requests, only one is compared at a time.

        The request may hold what its own reader must not see, as a route's `system` text.
        """
        if not (error.sentence or error.words or error.code not in ERROR_KINDS):
            return
        if self._job.long:
            async with self._engine.turns:
                await finished(self._hiding_quotes(error, answer), at_once=1)  # some copy all of it
        else:
            await finished(self._hiding_quotes(error, answer))

    def _hiding_quotes(self, error: GatewayError, answer: str) -> Generator[None, None, None]:
        call = self._call()  # built anew, so that no request is kept for as long as its answer lasts
        yield
        config = self._choice.upstream.config
        request = call.body or unquote_plus(urlsplit(call.url).query).encode()
        read = [(yield from texts_of(request))] if request else []
        if answer:
            read += [(yield from texts_of(answer.encode("utf-8", "replace")))]

        def clean(said: str) -> Steps:
            said = without_keys(said, config.api_key, *config.headers.values())
            for texts in read:
                said = yield from hiding_texts(said, texts)
            return said

        yield from error.hiding(clean)

    # -- where nobody names a model ------------------------------------------------------------------------------------

    @property
    def names_no_model(self) -> bool:
        """Whether neither the client nor the configuration names a model, where the dialect has models."""
        return self._job.source.names_no_model(self._choice.upstream, self._choice.target)

    async def learn_model(self) -> None:
        """Asks the target for its models, where it was seen to want one."""
        if self._choice.target.models.needed:
            await self._learn()

    async def lacked_a_model(self, error: GatewayError) -> bool:
        """Whether this refusal may be for want of a model, which is known now and was not when the target was asked."""
        models = self._choice.target.models
        if models.needed or not may_lack_a_model(error):
            return False
        await self._learn()
        models.needed = bool(models.first)
        return models.needed

    async def _learn(self) -> None:
        engine = self._engine
        await self._choice.target.models.learn(engine.session, engine.clock.now, engine.logger)
