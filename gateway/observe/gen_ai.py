"""Metrics under OpenTelemetry's names for generative AI: what generations took and used.

- A generation is counted once, at its end; an event costs nothing here.
- Only upstreams whose dialect names a provider are counted, and an estimate is not reported as usage.
- Label values are a closed set: providers, error codes, and the first `MAX_PAIRS` pairs of models. The caller has
  replaced models that are not configured.

Prometheus writes the dots of the conventions as underscores, and appends the unit "seconds". This file does not know
when a generation ends.

Source: OpenTelemetry semantic conventions for generative AI, metrics.
"""

from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry

from gateway.core.errors import ERROR_KINDS
from gateway.core.event import Usage
from gateway.observe.meters import HistogramMeter

OPERATION: Final = "chat"
"""`gen_ai.operation.name`."""
OTHER_ERROR: Final = "_OTHER"
OTHER_MODEL: Final = "_other"
MAX_PAIRS: Final = 256

# The bounds that the conventions advise.
_TOKENS: Final = tuple(4.0**power for power in range(14))
_SECONDS: Final = tuple(0.01 * 2.0**power for power in range(14))
_FIRST_TOKEN: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_MODEL: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
)


class Operation(NamedTuple):
    """One generation that has ended; times in seconds.

    Attributes:
        request_model, response_model: the model that was asked for, and the one that answered; "" if unknown.
        error: the code it failed with, "" for none.
        served: from its admission to its end.
        asked: from first asking an upstream to its end.
        first_token: from its admission to the first token, None without one.
        usage: the tokens.
    """

    request_model: str
    response_model: str
    error: str
    served: float
    asked: float
    first_token: float | None
    usage: Usage


class GenAIMetrics:
    """The histograms of the conventions.

    Args:
        registry: where Prometheus finds them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pairs: set[tuple[str, str]] = set()

        def histogram(name: str, help_text: str, bounds: tuple[float, ...], *labels: str) -> HistogramMeter:
            return HistogramMeter(f"gen_ai_{name}", help_text, (*_MODEL, *labels), bounds, registry)

        self._usage = histogram("client_token_usage", "Tokens used by a generation.", _TOKENS, "gen_ai_token_type")
        self._asked = histogram(
            "client_operation_duration_seconds", "Time from asking a provider to the end.", _SECONDS, "error_type"
        )
        self._served = histogram(
            "server_request_duration_seconds", "Time from a request to the end of its answer.", _SECONDS, "error_type"
        )
        self._first = histogram(
            "server_time_to_first_token_seconds", "Time to the first token of a good answer.", _FIRST_TOKEN
        )
        self._per_token = histogram(
            "server_time_per_output_token_seconds", "Time of each token after the first of a good answer.", _PER_TOKEN
        )

    def observe(self, provider: str, operation: Operation) -> None:
        """Counts a generation that has ended, for this provider."""
        labels = (OPERATION, provider, *self._models(operation))
        # A provider may report errors under codes of its own; those are no label values.
        error = operation.error if operation.error in ERROR_KINDS or not operation.error else OTHER_ERROR
        self._served.labels(*labels, error).observe(operation.served)
        self._asked.labels(*labels, error).observe(operation.asked)
        usage = operation.usage
        counted = usage.source == "usage"  # "… MUST NOT report usage metric" where the count is a guess
        if counted:
            self._usage.labels(*labels, "input").observe(usage.input)
            self._usage.labels(*labels, "output").observe(usage.output)
        if not error and operation.first_token is not None:
            self._first.labels(*labels).observe(operation.first_token)
            if counted and usage.output > 1:
                later = operation.served - operation.first_token
                self._per_token.labels(*labels).observe(later / (usage.output - 1))

    def _models(self, operation: Operation) -> tuple[str, str]:
        pair = operation.request_model, operation.response_model
        if pair not in self._pairs and len(self._pairs) >= MAX_PAIRS:
            return OTHER_MODEL, OTHER_MODEL
        self._pairs.add(pair)
        return pair
