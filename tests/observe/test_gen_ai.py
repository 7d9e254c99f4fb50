"""The OpenTelemetry twins: names, labels and buckets are the conventions', and nobody from outside can add a series."""

import itertools

import pytest
import structlog

from gateway.core.errors import GatewayError
from gateway.core.event import Usage
from gateway.observe.account import Account
from gateway.observe.gen_ai import MAX_PAIRS, Operation
from gateway.observe.metrics import Metrics

LABELS = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai"}
MODELS = {"gen_ai_request_model": "gpt", "gen_ai_response_model": "gpt-4o"}
GOOD = Operation("gpt", "gpt-4o", "", served=2.1, asked=2.0, first_token=0.1, usage=Usage(9, 5))


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.known_models = {"gpt", "gpt-4o"}
    metrics.providers = {"main": "openai"}
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"gen_ai_{name}", LABELS | MODELS | labels)


def test_scraper_reads_the_tokens_and_times_of_a_good_answer(metrics: Metrics) -> None:
    metrics.operation("main", GOOD)
    assert value(metrics, "client_token_usage_sum", gen_ai_token_type="input") == 9
    assert value(metrics, "client_token_usage_bucket", gen_ai_token_type="output", le="16.0") == 1
    assert value(metrics, "client_operation_duration_seconds_sum", error_type="") == 2.0
    assert value(metrics, "server_request_duration_seconds_sum", error_type="") == 2.1
    assert value(metrics, "server_time_to_first_token_seconds_sum") == 0.1
    assert value(metrics, "server_time_per_output_token_seconds_sum") == 0.5  # 2 s for the 4 tokens after the first


def test_answer_that_failed_has_a_duration_and_no_token_times(metrics: Metrics) -> None:
    metrics.operation("main", GOOD._replace(error="upstream_cut"))
    assert value(metrics, "server_request_duration_seconds_count", error_type="upstream_cut") == 1
    assert value(metrics, "client_token_usage_count", gen_ai_token_type="output") == 1
    assert value(metrics, "server_time_to_first_token_seconds_count") is None


def test_provider_that_invents_an_error_adds_no_series(metrics: Metrics) -> None:
    metrics.operation("main", GOOD._replace(error="quota_of_user_17"))
    assert value(metrics, "server_request_duration_seconds_count", error_type="_OTHER") == 1


def test_estimate_is_no_usage(metrics: Metrics) -> None:
    metrics.operation("main", GOOD._replace(usage=Usage(9, 5, "estimate")))
    assert value(metrics, "client_token_usage_count", gen_ai_token_type="output") is None
    assert value(metrics, "server_time_per_output_token_seconds_count") is None
    assert value(metrics, "server_time_to_first_token_seconds_count") == 1


def test_upstream_that_speaks_no_providers_dialect_has_no_twins(metrics: Metrics) -> None:
    metrics.operation("legacy", GOOD)
    assert b"gen_ai_server_request_duration_seconds_count" not in metrics.render()


def test_model_that_is_not_configured_is_other_and_one_that_nobody_named_is_empty(metrics: Metrics) -> None:
    metrics.operation("main", GOOD._replace(request_model="", response_model="invented"))
    folded = {"gen_ai_request_model": "", "gen_ai_response_model": "_other"}
    assert value(metrics, "server_time_to_first_token_seconds_count", **folded) == 1


def test_pairs_of_models_are_bounded(metrics: Metrics) -> None:
    metrics.known_models = names = [f"model-{number}" for number in range(20)]
    for asked, said in list(itertools.product(names, names))[: MAX_PAIRS + 5]:
        metrics.operation("main", GOOD._replace(request_model=asked, response_model=said))
    folded = {"gen_ai_request_model": "_other", "gen_ai_response_model": "_other"}
    assert value(metrics, "server_request_duration_seconds_count", error_type="", **folded) == 5


def test_generation_tells_its_twins_at_its_end(metrics: Metrics) -> None:
    account = Account(
        metrics=metrics, logger=structlog.get_logger(), route="/a", upstream="main", started=10.0, requested="gpt"
    )
    account.ask("main", 10.5)
    account.read(1, "gpt-4o", 11.0)
    account.settled(Usage(9, 5), "gpt-4o")
    account.ended("client_gone", GatewayError("abandoned"), 12.0)  # the user's choice, so no error
    assert value(metrics, "server_request_duration_seconds_sum", error_type="") == 2.0
    assert value(metrics, "client_operation_duration_seconds_sum", error_type="") == 1.5
    assert value(metrics, "server_time_to_first_token_seconds_sum") == 1.0


def test_generation_that_nobody_was_asked_for_has_no_twins(metrics: Metrics) -> None:
    account = Account(metrics=metrics, logger=structlog.get_logger(), route="/a", upstream="main", started=10.0)
    account.ended("drained", GatewayError("drained"), 12.0)
    assert b"gen_ai_server_request_duration_seconds_count" not in metrics.render()


def test_buckets_are_the_conventions(metrics: Metrics) -> None:
    metrics.operation("main", GOOD)
    bounds: dict[str, list[float]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if family.name.startswith("gen_ai_") and sample.name.endswith("_bucket"):
                bounds.setdefault(family.name.removeprefix("gen_ai_"), []).append(float(sample.labels["le"]))
    seconds = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    assert bounds["client_token_usage"][:14] == [4**power for power in range(14)]
    assert bounds["client_operation_duration_seconds"][:-1] == seconds
    assert bounds["server_request_duration_seconds"][:-1] == seconds
