"""An upstream at run time: which of its targets takes the next call, and how many streams each has open.

Invariants:

- A choice is a plain function of what is open now; it awaits nothing.
- What was taken by `use` is given back on every way out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.config import Target as TargetConfig
from gateway.config import Upstream as UpstreamConfig
from gateway.dialects import DIALECTS
from gateway.dialects.base import Dialect


class Target:
    """One server of an upstream.

    Attributes:
        url: its base URL, without a slash at the end.
        model: the model name it wants, None for the one the request names.
        weight: its share of the calls relative to the others.
        open: calls under way.
        served: calls ever given to it.
    """

    __slots__ = ("model", "open", "served", "url", "weight")

    def __init__(self, config: TargetConfig, url: str) -> None:
        self.url = url.rstrip("/")
        self.model = config.model
        self.weight = config.weight
        self.open = 0
        self.served = 0


class Upstream:
    """One entry of `upstreams:` with its targets' state.

    Args:
        name: its key in the configuration.
        config: its settings.
        demo_url: where the built-in stand-in LLM listens; replaces the target URL `demo:`.
    """

    def __init__(self, name: str, config: UpstreamConfig, demo_url: str) -> None:
        self.name = name
        self.config = config
        self.dialect: Dialect = DIALECTS[config.dialect]
        self.targets = [Target(t, demo_url if t.url == "demo:" else t.url) for t in config.targets]

    def pick(self) -> Target:
        """The target that takes the next call, by the configured balance."""
        if self.config.balance == "round_robin":
            return min(self.targets, key=lambda target: (target.served + 1) / target.weight)
        return min(self.targets, key=lambda target: (target.open / target.weight, (target.served + 1) / target.weight))

    @contextmanager
    def use(self, target: Target) -> Iterator[Target]:
        """Counts a call to the target as open while the block runs."""
        target.open += 1
        target.served += 1
        try:
            yield target
        finally:
            target.open -= 1
