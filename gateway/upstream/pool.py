"""An upstream at run time: which of its targets takes the next call, how many streams each has, and how healthy it is.

Invariants:

- A choice is a plain function of what is open and healthy now; it awaits nothing.
- `use` counts a call as open, and takes it back on every way out. If the call was a breaker's probe and ended without a
  verdict on the target, another call may be the probe.
"""

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlencode, urlsplit

from gateway.config import Target as TargetConfig
from gateway.config import Upstream as UpstreamConfig
from gateway.core.blame import PREFIX
from gateway.core.breaker import Breaker
from gateway.dialects import DIALECTS
from gateway.dialects.base import Call, Dialect
from gateway.upstream.models import ModelList

MAX_MODELS: Final = 256
"""Models of one target of which it is remembered what they refuse. A client may name any model."""
MAX_MODEL: Final = 256
"""Characters of a model's name there."""
OTHER_PARAMETER: Final = "_other"
_PARAMETER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
MAX_TOLD: Final = 256
"""Parameters of one upstream that the log is told of when they are left out."""


class Withheld:
    """What a target has refused and accepted of the things that the gateway adds to requests, by the model asked for.

    One target may serve many models, and what one of them refuses another needs.
    """

    __slots__ = ("_refused", "_taken")

    def __init__(self) -> None:
        self._refused: dict[str, frozenset[str]] = {}
        self._taken: dict[str, frozenset[str]] = {}

    def of(self, model: str) -> frozenset[str]:
        """What must not be sent to this model."""
        return self._refused.get(model[:MAX_MODEL], _NOTHING)

    def taken(self, model: str) -> frozenset[str]:
        """What this model was seen to accept."""
        return self._taken.get(model[:MAX_MODEL], _NOTHING)

    def add(self, model: str, names: Collection[str]) -> frozenset[str]:
        """Remembers that this model refused these, and gives back which of them are new."""
        return _remember(self._refused, model[:MAX_MODEL], names)

    def take(self, model: str, names: Collection[str]) -> None:
        """Remembers that this model accepted these."""
        _remember(self._taken, model[:MAX_MODEL], names)


_NOTHING: Final[frozenset[str]] = frozenset()


def _remember(names_of: dict[str, frozenset[str]], model: str, names: Collection[str]) -> frozenset[str]:
    """Adds the names, and gives back the new ones. Where there are too many models, the oldest is forgotten."""
    known = names_of.get(model, _NOTHING)
    new = frozenset(names) - known
    if new:
        if model not in names_of and len(names_of) >= MAX_MODELS:
            del names_of[next(iter(names_of))]
        names_of[model] = known | new
    return new


class Target:
    """One server of an upstream.

    Attributes:
        url: its base URL, without a slash at the end.
        query: what is added to the query of every request to it, encoded.
        query_names: the names of these parameters.
        label: its host and port, as metrics name it.
        model: the model's name in requests to it, None for the name in the client's request.
        models: the models that it has, for requests that name none.
        weight: its share of the calls relative to the others.
        breaker: whether it is in service.
        open: calls that have not ended.
        served: all calls so far.
        rejects_prefill: whether it cannot continue a given text: its dialect has no way to ask for that, or the target
            refused once.
        sends_reasons: whether it was seen to send a finish reason, so that a stream of it without one was cut.
        withheld: what it refused of the things that the gateway adds to requests.
    """

    __slots__ = (
        "breaker",
        "label",
        "model",
        "models",
        "open",
        "query",
        "query_names",
        "rejects_prefill",
        "sends_reasons",
        "served",
        "url",
        "weight",
        "withheld",
    )

    models: ModelList

    def __init__(self, config: TargetConfig, url: str, breaker: Breaker, dialect: Dialect) -> None:
        self.url = url.rstrip("/")
        self.query = urlencode(config.query)
        self.query_names = frozenset(config.query)
        self.label = urlsplit(self.url).netloc.rpartition("@")[2]
        self.model = config.model
        self.weight = config.weight
        self.breaker = breaker
        self.open = 0
        self.served = 0
        self.rejects_prefill = not dialect.prefills
        self.sends_reasons = False
        self.withheld = Withheld()

    @property
    def asked_url(self) -> str:
        """The base URL with the query that every request to it has."""
        return f"{self.url}?{self.query}" if self.query else self.url

    def learn(self, model: str, refused: Collection[str]) -> frozenset[str]:
        """Remembers what it refused of the gateway's additions to a request for this model, and gives back what of it
        is new."""
        names = frozenset(refused)
        new = names & {PREFIX} if not self.rejects_prefill else frozenset()
        self.rejects_prefill = self.rejects_prefill or PREFIX in names
        return new | self.withheld.add(model, names - {PREFIX})


class Upstream:
    """One entry of `upstreams:` with its targets' state.

    Args:
        name: its key in the configuration.
        config: its settings.
        demo_url: the URL of the built-in stand-in for an LLM, which replaces the target URL `demo:`.

    Attributes:
        name, config: as given.
        dialect: the API that its targets speak.
        targets: its servers.
    """

    def __init__(self, name: str, config: UpstreamConfig, demo_url: str) -> None:
        self.name = name
        self.config = config
        self.dialect: Dialect = DIALECTS[config.dialect]
        self._told: set[str] = set()
        self.targets = [
            Target(
                target,
                demo_url if target.demo else target.url,
                Breaker(config.breaker.failures, config.breaker.open),
                self.dialect,
            )
            for target in config.targets
        ]
        for target in self.targets:
            needed, verify_tls = self.dialect.needs_model, config.verify_tls
            target.models = ModelList(self.list_call(target), target.label, verify_tls=verify_tls, needed=needed)

    def list_call(self, target: Target) -> Call | None:
        """The request for the models that the target has, None where its API has no list."""
        call = self.dialect.list_call(target.asked_url, self.config.api_key)
        return call and Call(call.method, call.url, {**call.headers, **self.config.headers}, call.body)

    def pick(
        self, now: float, avoid: Collection[Target] = (), rather_not: Target | None = None, *, always: bool = False
    ) -> Target | None:
        """The target that takes the next call, by the configured balance; None when no target can.

        Args:
            now: the loop's clock, in seconds.
            avoid: targets that must not be asked.
            rather_not: the target that is asked only if there is no other.
            always: whether targets that are out of service may be asked, too.
        """
        able = [target for target in self.targets if target not in avoid and (always or target.breaker.allows(now))]
        others = [target for target in able if target is not rather_not] or able
        return min(others, key=self._load, default=None)

    def retry_after(self, now: float) -> float:
        """Seconds until the first of the targets may be asked again; 0 if one may be asked now."""
        return min(target.breaker.retry_after(now) for target in self.targets)

    def _load(self, target: Target) -> tuple[float, float]:
        served = (target.served + 1) / target.weight
        return (0.0, served) if self.config.balance == "round_robin" else (target.open / target.weight, served)

    def first_told(self, names: Collection[str]) -> list[str]:
        """Those of the parameters that were not given here before; none once there were too many. A client may name one
        as it likes, so only what looks like a parameter is repeated; anything else is `_other`."""
        plain = {name if _PARAMETER.fullmatch(name) else OTHER_PARAMETER for name in names}
        new = sorted(plain - self._told)[: MAX_TOLD - len(self._told)]
        self._told.update(new)
        return new

    def use(self, target: Target) -> "Use":
        """Counts a call to the target as open while the block runs, and gives the block the breaker's number for it."""
        return Use(target)


class Use:
    """One call to a target, as a context manager that lasts as long as a stream. A generator is six times as large."""

    __slots__ = ("_call", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._call = 0

    def __enter__(self) -> int:
        self._target.open += 1
        self._target.served += 1
        self._call = self._target.breaker.start()
        return self._call

    def __exit__(self, *_: object) -> None:
        self._target.open -= 1
        self._target.breaker.release(self._call)
