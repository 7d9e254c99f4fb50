"""Metrics: what the gateway counts, under the names that dashboards use.

- The values of every label are a closed set: listed here, or configured, or replaced by `other` (a word of a protocol)
  or `_other` (a name that somebody chose). No client and no upstream can add a series.
- What is counted for every event has its children bound once per route (`RouteMetrics`) or per model (`ModelMetrics`).
- Metrics never decide anything: no part of the gateway reads one to decide what to do.

This file does not know when something happens, or who serves `/metrics`.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.core.errors import ERROR_KINDS
from gateway.core.event import Usage
from gateway.observe.gen_ai import GenAIMetrics, Operation
from gateway.observe.meters import CounterMeter, HistogramMeter

Outcome = Literal[
    "completed",
    "client_gone",
    "stopped",
    "upstream_error",
    "upstream_stalled",
    "timeout",
    "auth_expired",
    "budget",
    "drained",
    "slow_reader",
]
"""How a generation ended; every generation has exactly one outcome."""
Transport = Literal["eventsource", "fetch"]
Rescue = Literal["prefill", "anew"]
"""How another target was asked to finish an answer that broke off."""
RescueResult = Literal["completed", "restarted", "failed"]
"""What the rescue led to: the same answer was completed, another one took its place, or none."""
Resume = Literal["resumed", "ended", "expired", "malformed"]
"""What a cursor led to: more events, 204 at a final cursor, `cursor_expired`, or 400."""
AuthFailure = Literal["missing", "unknown", "expired", "invalid", "origin", "scope"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other", "none"]
"""Why an answer ended: OpenAI's words, `other` for a provider's own, `none` where it did not say."""

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST
"""The media type of `Metrics.render()`."""
OTHER: Final = "other"
OTHER_NAME: Final = "_other"
MAX_NAMES: Final = 256
"""The number of names per label (routes, upstreams, models, plans) with series of their own, over all reloads."""

_OUTCOMES: Final = frozenset(get_args(Outcome))
_RESUMES: Final = frozenset(get_args(Resume))
_AUTH_FAILURES: Final = frozenset(get_args(AuthFailure))
_FINISH_REASONS: Final = frozenset(get_args(FinishReason))
_SAME_REASONS: Final = {"function_call": "tool_calls", "eos_token": "stop", "stop_sequence": "stop", "": "none"}
"""Words of the older API and of TGI."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_FIRST_TOKEN: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
_INTER_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_DURATION: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_OVERHEAD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """All metrics of one process.

    Args:
        registry: where they are registered, together with those of the process and the platform; None for a new one.
        version: the program's version, a label of `gateway_build_info`.

    Attributes:
        known_models: the models with a name of their own in metrics; set from the config, replaced on reload.
        providers: the provider's name for upstreams whose dialect has one; set from the config, replaced on reload.
    """

    def __init__(self, registry: CollectorRegistry | None = None, version: str = "") -> None:
        # `…_created` would be a quarter of all lines, and nobody reads it.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        self.known_models: Collection[str] = frozenset()
        self.providers: Mapping[str, str] = MappingProxyType({})
        self._routes: dict[str, RouteMetrics] = {}
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._route_names = _Names()
        self._upstream_names = _Names()
        self._model_names = _Names()
        self._plan_names = _Names()
        self._limit_names = _Names()
        self._register_requests()
        self._register_streams()
        self._register_upstreams()
        self._register_process(version)
        self._gen_ai = GenAIMetrics(self.registry)

    def route(self, name: str) -> "RouteMetrics":
        """The metrics of one route, by its path in the config; made once, shared by all its requests."""
        label = self._route_names.fold(name)
        bound = self._routes.get(label)
        if bound is None:
            bound = self._routes[label] = RouteMetrics(self, label)
        return bound

    def model(self, upstream: str, model: str) -> "ModelMetrics":
        """The metrics of one model of one upstream. All models that are not in `known_models` share one."""
        key = (self.upstream_label(upstream), self._model_label(model))  # folded, so `_models` is bounded as well
        bound = self._models.get(key)
        if bound is None:
            bound = self._models[key] = ModelMetrics(self, *key)
        return bound

    def upstream_label(self, upstream: str) -> str:
        """The label value of an upstream's name."""
        return self._upstream_names.fold(upstream)

    def operation(self, upstream: str, operation: Operation) -> None:
        """Counts a generation that has ended under OpenTelemetry's names; `upstream` was asked last."""
        provider = self.providers.get(upstream)
        if provider is not None:
            # Clients choose the one and upstreams the other: only configured names may become label values.
            request_model, response_model = map(self._named_model, operation[:2])
            folded = operation._replace(request_model=request_model, response_model=response_model)
            self._gen_ai.observe(provider, folded)

    def _model_label(self, model: str) -> str:
        return self._model_names.fold(model) if model in self.known_models else OTHER_NAME

    def _named_model(self, model: str) -> str:
        return self._model_label(model) if model else ""

    def adoption(self, result: RescueResult) -> None:
        """A stream of a dead node got its end here."""
        self.adoptions.labels(result).inc()

    def upstream_request(self, upstream: str, status: int | None) -> None:
        """One attempt was answered with an HTTP status, or not at all (None)."""
        self.upstream_requests.labels(self.upstream_label(upstream), _status(status)).inc()

    def upstream_error(self, upstream: str, code: str) -> None:
        """One attempt failed with an error code. A code of the provider's own counts as `other`."""
        self.upstream_errors.labels(self.upstream_label(upstream), code if code in ERROR_KINDS else OTHER).inc()

    def resume(self, result: Resume) -> None:
        """A reader sent a cursor."""
        self.resumes.labels(_one_of(_RESUMES, result)).inc()

    def rescue(self, kind: Rescue, result: RescueResult) -> None:
        """An answer that broke off was finished by another target, or could not be."""
        self.rescues.labels(kind, result).inc()

    def auth_failure(self, reason: AuthFailure) -> None:
        """A request was refused because of its credential."""
        self.auth_failures.labels(_one_of(_AUTH_FAILURES, reason)).inc()

    def rate_limit(self, plan: str, limit: str) -> None:
        """A request or a stream was refused by a limit of a plan; "" for a limit that belongs to no plan."""
        self.rate_limited.labels(self._plan_names.fold(plan), self._limit_names.fold(limit)).inc()

    def render(self, names: Collection[str] = ()) -> bytes:
        """All metrics, or these, in the text format of `CONTENT_TYPE`. Blocks the loop for about 5 us a line."""
        wanted = self.registry.restricted_registry(names) if names else self.registry
        return prometheus_client.generate_latest(wanted)

    def _register_requests(self) -> None:
        self.http_requests = self._counter(
            "gateway_http_requests_total", "HTTP requests answered.", "route", "method", "code"
        )
        self.http_duration = self._histogram(
            "gateway_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            _DURATION,
            "route",
            "code",
        )
        self.auth_failures = self._counter(
            "gateway_auth_failures_total", "Requests refused for their credential.", "reason"
        )
        self.rate_limited = self._counter(
            "gateway_rate_limited_total", "Requests and streams that ran into a limit.", "plan", "limit"
        )

    def _register_streams(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.connections_active = gauge(
            "gateway_connections_active", "Readers that follow a stream now.", "route", "transport"
        )
        self.connections_limit = gauge("gateway_connections_limit", "Connections that may be open at once.")
        self.streams_active = gauge("gateway_streams_active", "Generations that are running now.", "route")
        self.streams = counter(
            "gateway_streams_total", "Generations that ended, by how.", "route", "upstream", "outcome"
        )
        self.stream_duration = histogram(
            "gateway_stream_duration_seconds", "Time a generation ran.", _DURATION, "route", "outcome"
        )
        self.finish_reasons = counter(
            "gateway_finish_reasons_total", "Answers that completed, by why they ended.", "route", "reason"
        )
        self.overhead = histogram(
            "gateway_overhead_seconds", "Time the gateway itself took before it asked the upstream.", _OVERHEAD, "route"
        )
        self.events = counter("gateway_events_total", "Events of all generations.", "route")
        self.sent_bytes = counter("gateway_sent_bytes_total", "Bytes written to readers.", "route")
        self.batch_events = histogram("gateway_batch_events", "Events in one write.", _BATCH, "route")
        self.adoptions = counter(
            "gateway_adoptions_total", "Streams of dead nodes that were taken, by what became of them.", "result"
        )
        self.heartbeats = counter("gateway_heartbeats_total", "Heartbeats written to readers.", "route")
        self.resumes = counter("gateway_resumes_total", "Readers that came with a cursor, by what it led to.", "result")
        self.log_bytes = gauge("gateway_log_bytes", "Bytes held in the logs of all streams.")
        self.log_limit = gauge("gateway_log_limit_bytes", "Bytes that the logs of all streams may hold together.")
        self.log_streams = gauge("gateway_log_streams", "Logs held, of running and of ended streams.")

    def _register_upstreams(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.first_token = histogram(
            "gateway_time_to_first_token_seconds",
            "Time from admitting a request to the first token.",
            _FIRST_TOKEN,
            "upstream",
            "model",
        )
        self.inter_token = histogram(
            "gateway_inter_token_latency_seconds",
            "Time from one token of an upstream to the next.",
            _INTER_TOKEN,
            "upstream",
            "model",
        )
        self.upstream_requests = counter(
            "gateway_upstream_requests_total", "Attempts at an upstream, by HTTP status or none.", "upstream", "code"
        )
        self.rescues = counter(
            "gateway_rescues_total", "Answers that broke off, by how they were taken up again.", "kind", "result"
        )
        self.breaker_open = self._gauge(
            "gateway_breaker_open", "1 while a target is out of service.", "upstream", "target"
        )
        self.upstream_errors = counter(
            "gateway_upstream_errors_total", "Attempts at an upstream that failed.", "upstream", "error_type"
        )
        self.tokens = counter(
            "gateway_tokens_total", "Tokens used, by who counted them.", "upstream", "model", "type", "source"
        )

    def _register_process(self, version: str) -> None:
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)
        self.reload_ok = self._gauge(
            "gateway_config_last_reload_successful", "1 while the config on disk is the one in use."
        )
        self.loop_lag = Histogram(
            "gateway_event_loop_lag_seconds",
            "Time by which the event loop was late for a timer.",
            registry=self.registry,
            buckets=_LAG,
        )
        self.draining = self._gauge("gateway_draining", "1 while no new streams are taken.")
        self.worker_restarts = Counter(
            "gateway_worker_restarts_total", "Times the supervisor started this worker again.", registry=self.registry
        )
        self.build_info = self._gauge("gateway_build_info", "Always 1; the label is the program's version.", "version")
        self.reload_ok.set(1)
        self.build_info.labels(version).set(1)

    def _counter(self, name: str, help_text: str, *labels: str) -> CounterMeter:
        return CounterMeter(name, help_text, labels, self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, bounds: Sequence[float], *labels: str) -> HistogramMeter:
        return HistogramMeter(name, help_text, labels, bounds, self.registry)


class RouteMetrics:
    """The metrics of one route, with their children bound.

    Attributes:
        events: events that were appended to logs.
        bytes, heartbeats: what was written to readers.
        batch: events in each write.
        overhead: seconds from a request to asking the upstream.
        streams_active: generations that run now.
        connections: current readers, by transport.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.name = name
        self._metrics = metrics
        self.events = metrics.events.labels(name)
        self.bytes = metrics.sent_bytes.labels(name)
        self.heartbeats = metrics.heartbeats.labels(name)
        self.batch = metrics.batch_events.labels(name)
        self.overhead = metrics.overhead.labels(name)
        self.streams_active = metrics.streams_active.labels(name)
        self.connections: dict[Transport, Gauge] = {
            transport: metrics.connections_active.labels(name, transport) for transport in get_args(Transport)
        }

    def request(self, method: str, status: int, seconds: float) -> None:
        """One HTTP request was answered completely, `seconds` after its head came."""
        code = _status(status)
        self._metrics.http_requests.labels(self.name, method if method in _METHODS else OTHER, code).inc()
        self._metrics.http_duration.labels(self.name, code).observe(seconds)

    def stream_ended(self, upstream: str, outcome: Outcome, seconds: float) -> None:
        """One generation ended after `seconds`."""
        _one_of(_OUTCOMES, outcome)
        self._metrics.streams.labels(self.name, self._metrics.upstream_label(upstream), outcome).inc()
        self._metrics.stream_duration.labels(self.name, outcome).observe(seconds)

    def finished(self, reason: str) -> None:
        """One answer completed, with this finish reason of its upstream; "" for none."""
        reason = _SAME_REASONS.get(reason, reason)
        self._metrics.finish_reasons.labels(self.name, reason if reason in _FINISH_REASONS else OTHER).inc()


class ModelMetrics:
    """The metrics of one model of one upstream, with their children bound.

    Attributes:
        first_token: seconds to the first token.
        inter_token: seconds between tokens.
    """

    def __init__(self, metrics: Metrics, upstream: str, model: str) -> None:
        self.first_token = metrics.first_token.labels(upstream, model)
        self.inter_token = metrics.inter_token.labels(upstream, model)
        self._tokens = metrics.tokens
        self._labels = (upstream, model)

    def used(self, usage: Usage) -> None:
        """A generation used tokens."""
        cached = min(usage.cached_input, usage.input)
        self._tokens.labels(*self._labels, "input", usage.source).inc(usage.input - cached)
        if cached:
            self._tokens.labels(*self._labels, "cached_input", usage.source).inc(cached)
        self._tokens.labels(*self._labels, "output", usage.source).inc(usage.output)


class _Names:
    """Gives the first `MAX_NAMES` names a label value of their own and all later ones `_other`, so that even endless
    reloads cannot add series without bound."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def fold(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= MAX_NAMES:
                return OTHER_NAME
            self._known.add(name)
        return name


def _status(status: int | None) -> str:
    if status is None:
        return "none"
    return str(status) if 100 <= status <= 599 else OTHER


def _one_of(allowed: frozenset[str], value: str) -> str:
    """`value`, checked once more at run time: a value that got past the type checker must not become a series."""
    assert value in allowed, f"{value!r} is no label value; allowed: {', '.join(sorted(allowed))}"
    return value
