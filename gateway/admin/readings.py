"""What the monitor shows of the process: once a second, what happened since the last sample, and the state now.

Invariants:

- A sample holds differences and leaves out zeros, so that a quiet second is small.
- Everything is bounded: labels are closed sets, and only the first `LISTED` streams and targets are described.
- It reads what is counted anyway; nothing is counted for the monitor alone.

This file does not know who looks, or when.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

from prometheus_client.registry import Collector

from gateway.observe.failures import KEPT
from gateway.upstream.pool import Target
from gateway.web.state import Gateway

LISTED: Final = 200
"""Streams and targets that are described; of any further ones only the number is given."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MEMORY: Final = Path("/proc/self/statm")

Tally = dict[tuple[str, ...], float]


class Totals:
    """All counters at one moment.

    Args:
        gateway: the process.
        now: its clock, in seconds.
    """

    def __init__(self, gateway: Gateway, now: float) -> None:
        metrics, running = gateway.metrics, gateway.engine.running
        self.at = now
        self.cpu = time.process_time()
        self.ended = tally(metrics.streams, "_total", "outcome")
        self.started = sum(self.ended.values()) + len(running)
        # The counter of a route gets the events of a stream when it has ended; those of running ones are added here.
        events = sum([generation.account.events for generation in running.values()])
        self.events = sum(tally(metrics.events, "_total").values()) + events
        self.tokens = tally(metrics.tokens, "_total", "type")
        self.asked = tally(metrics.upstream_requests, "_total", "upstream")
        self.errors = tally(metrics.upstream_errors, "_total", "upstream", "error_type")
        self.first = buckets(metrics.first_token, "upstream")
        self.lag = buckets(metrics.loop_lag)


class Readings:
    """Samples of one process.

    Args:
        gateway: the process.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._before = Totals(gateway, gateway.clock.now())
        self._about = {"version": version("sse-gateway"), "pid": os.getpid(), "since": time.time()}
        server = gateway.snapshot.config.server
        # From the configuration at the start: a reload cannot move the listener, so a later one may not be true.
        self._listen = str(server.listen) if server.demo_page and server.listen.port else None

    def sample(self) -> dict[str, Any]:
        """What happened since the last sample: numbers by name, those of upstreams by upstream.

        `t` is the time in Unix seconds, `s` how many seconds the sample covers. `first` and `lag` count by bucket; the
        key of a bucket is "lower upper", in seconds.
        """
        gateway, before = self._gateway, self._before
        after = self._before = Totals(gateway, gateway.clock.now())
        seconds = max(1e-3, after.at - before.at)
        happened = {
            "started": after.started - before.started,
            "events": after.events - before.events,
            "tokens": _tree(after.tokens, before.tokens),
            "ended": _tree(after.ended, before.ended),
            "asked": _tree(after.asked, before.asked),
            "errors": _tree(after.errors, before.errors),
            "first": _tree(after.first, before.first),
            "lag": _tree(after.lag, before.lag),
        }
        return {
            "t": round(time.time(), 3),
            "s": round(seconds, 3),
            "streams": len(gateway.engine.running),
            "readers": readers(gateway),
            "cpu": round((after.cpu - before.cpu) / seconds, 4),
            "rss": _resident(),
            "log": gateway.registry.memory.used,
        } | {name: value for name, value in happened.items() if value}

    def now(self) -> dict[str, Any]:
        """The state of the process, its targets and its oldest streams."""
        gateway = self._gateway
        running, now = gateway.engine.running, gateway.clock.now()
        return self._about | {
            "draining": gateway.draining,
            "reloaded": any(tally(gateway.metrics.reload_ok, "").values()),
            "listen": self._listen,
            "max": {
                "streams": gateway.max_streams,
                "readers": gateway.max_connections,
                "log": gateway.registry.memory.limit,
            },
            "targets": list(islice(_targets(gateway), LISTED)),
            "running": len(running),
            "streams": [generation.describe(now) for generation in islice(running.values(), LISTED)],
        }

    def mark(self) -> tuple[int, int]:
        """Another one whenever `past` is another one."""
        engine = self._gateway.engine
        return engine.failures.recent.count, engine.ended.count

    def past(self, most: int) -> dict[str, Any]:
        """The newest failures, so many at most, and how many are kept; and the streams that ended last."""
        failures, ended = self._gateway.engine.failures.recent, self._gateway.engine.ended
        return {
            "kept": min(failures.count, KEPT),
            "failures": [failed.public() for failed in failures.newest(most)],
            "ended": list(ended.newest(most)),
        }


def readers(gateway: Gateway) -> int:
    """How many readers follow a stream now."""
    return int(sum(tally(gateway.metrics.connections_active, "").values()))


def tally(metric: Collector, suffix: str, *labels: str) -> Tally:
    """The values of a metric, summed by these labels.

    Args:
        metric: a counter or a gauge.
        suffix: the end of its samples' names.
        labels: names of labels that it has.
    """
    found: Tally = defaultdict(float)
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(suffix):
                found[tuple([sample.labels[label] for label in labels])] += sample.value
    return found


def buckets(metric: Collector, *labels: str) -> Tally:
    """The observations in each bucket of a histogram by itself; Prometheus adds up all buckets below.

    The last part of a key is "lower upper".
    """
    found: Tally = defaultdict(float)
    below, before = "0", 0.0
    for family in metric.collect():
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                below, before = "0", 0.0
            elif sample.value != before:
                bucket = f"{below} {sample.labels['le']}"
                found[(*[sample.labels[label] for label in labels], bucket)] += sample.value - before
                below, before = sample.labels["le"], sample.value
            else:
                below = sample.labels["le"]
    return found


def _tree(after: Tally, before: Tally) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*path, leaf), value in after.items():
        if more := value - before.get((*path, leaf), 0.0):
            node = tree
            for name in path:
                node = node.setdefault(name, {})
            node[leaf] = more
    return tree


def _targets(gateway: Gateway) -> Iterator[dict[str, Any]]:
    now = gateway.clock.now()
    for upstream in gateway.snapshot.upstreams.values():
        for target in upstream.targets:
            yield {
                "upstream": gateway.metrics.upstream_label(upstream.name),
                "dialect": upstream.config.dialect,
                "target": target.label,
                "model": target.model or upstream.config.model,
                "weight": target.weight,
                "open": target.open,
                "served": target.served,
                "state": _state(target, now),
                "retry_s": round(target.breaker.retry_after(now), 1),
            }


def _state(target: Target, now: float) -> str:
    if not target.breaker.is_open:
        return "in service"
    return "out of service" if target.breaker.retry_after(now) else "on trial"


def _resident() -> int:
    # Without /proc there is no figure, which is better than a wrong one.
    return int(_MEMORY.read_text().split()[1]) * _PAGE if _MEMORY.exists() else 0
