"""Metrics: names and labels are the contract's, and nobody from outside can add a series."""

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.event import Usage
from gateway.observe.metrics import MAX_NAMES, OTHER_NAME, Metrics
from gateway.observe.store import StoreMetrics
from tests.kit.contract import METRICS, STORE_METRICS


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


TOKEN_TYPES = ("input", "cached_input", "output")


def use_everything(metrics: Metrics) -> None:
    route = metrics.route("/api/chat")
    route.request("GET", 200, 0.2)
    route.stream_ended("main", "completed", 3.0)
    route.finished("stop")
    metrics.model("main", "x").used(Usage(3, 4))
    metrics.upstream_request("main", 200)
    metrics.upstream_error("main", "upstream_cut")
    metrics.breaker_open.labels("main", "127.0.0.1:8000").set(1)
    metrics.resume("resumed")
    metrics.rescue("prefill", "completed")
    metrics.adoption("completed")
    metrics.auth_failure("unknown")
    metrics.rate_limit("default", "tokens")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_scraper_finds_exactly_the_names_and_labels_of_the_contract(metrics: Metrics) -> None:
    use_everything(metrics)
    assert exported(metrics) == METRICS
    store = StoreMetrics(metrics.registry, {"GET", "XADD"})
    store.replied("XADD", 0.001)
    store.errors.labels("timeout").inc()
    assert exported(metrics) == METRICS | STORE_METRICS


def exported(metrics: Metrics) -> dict[str, set[str]]:
    """The names of the gateway's metrics, with their labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("gateway_"):
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def test_commands_of_the_store_that_nobody_knows_share_a_series(metrics: Metrics) -> None:
    store = StoreMetrics(metrics.registry, {"GET", "XADD"})
    for command in ("GET", "NOSUCH", "gateway:key", ""):
        store.replied(command, 0.001)
    assert {
        command: value(metrics, "gateway_store_command_duration_seconds_count", command=command)
        for command in ("get", "other", "nosuch")
    } == {"get": 1, "other": 3, "nosuch": None}


def test_scraper_finds_the_process_and_no_created_lines(metrics: Metrics) -> None:
    text = metrics.render().decode()
    assert "process_cpu_seconds_total" in text
    assert "python_info" in text
    assert "_created" not in text


def test_two_registries_do_not_meet() -> None:
    registry = CollectorRegistry()
    Metrics(registry).route("/a").events.inc()
    assert registry.get_sample_value("gateway_events_total", {"route": "/a"}) == 1
    assert b"gateway_" not in prometheus_client.generate_latest()


def test_route_counts_through_bound_children(metrics: Metrics) -> None:
    route = metrics.route("/api/chat")
    assert metrics.route("/api/chat") is route
    route.events.inc(3)
    route.batch.observe(3)
    route.connections["eventsource"].inc()
    assert value(metrics, "gateway_events_total", route="/api/chat") == 3
    assert value(metrics, "gateway_batch_events_bucket", route="/api/chat", le="4.0") == 1
    assert value(metrics, "gateway_connections_active", route="/api/chat", transport="eventsource") == 1


def test_request_with_an_invented_method_or_status_is_other(metrics: Metrics) -> None:
    metrics.route("/a").request("BREW", 999, 0.1)
    assert value(metrics, "gateway_http_requests_total", route="/a", method="other", code="other") == 1


def test_model_that_is_not_configured_is_other(metrics: Metrics) -> None:
    metrics.known_models = {"gpt"}
    metrics.model("main", "gpt").used(Usage(1, 2))
    metrics.model("main", "invented").used(Usage(5, 6, "estimate"))
    labels = {"upstream": "main", "type": "output"}
    assert value(metrics, "gateway_tokens_total", model="gpt", source="usage", **labels) == 2
    assert value(metrics, "gateway_tokens_total", model=OTHER_NAME, source="estimate", **labels) == 6


def test_tokens_from_the_cache_are_counted_once_and_apart(metrics: Metrics) -> None:
    metrics.known_models = {"gpt"}
    metrics.model("main", "gpt").used(Usage(100, 7, cached_input=40))
    labels = {"upstream": "main", "model": "gpt", "source": "usage"}
    counted = {type_: value(metrics, "gateway_tokens_total", type=type_, **labels) for type_ in TOKEN_TYPES}
    assert counted == {"input": 60, "cached_input": 40, "output": 7}


def test_upstream_that_invents_error_codes_adds_no_series(metrics: Metrics) -> None:
    metrics.upstream_error("main", "quota_of_user_17")
    metrics.upstream_request("main", None)
    assert value(metrics, "gateway_upstream_errors_total", upstream="main", error_type="other") == 1
    assert value(metrics, "gateway_upstream_requests_total", upstream="main", code="none") == 1


def test_names_are_bounded_over_endless_reloads(metrics: Metrics) -> None:
    for number in range(MAX_NAMES + 50):
        metrics.route(f"/{number}").events.inc()
        metrics.upstream_request(f"up{number}", 200)
        metrics.rate_limit(f"plan{number}", "requests")
        metrics.rate_limit("plan0", f"limit{number}")
    assert value(metrics, "gateway_events_total", route=OTHER_NAME) == 50
    assert value(metrics, "gateway_upstream_requests_total", upstream=OTHER_NAME, code="200") == 50
    assert value(metrics, "gateway_rate_limited_total", plan=OTHER_NAME, limit="requests") == 50
    assert value(metrics, "gateway_rate_limited_total", plan="plan0", limit=OTHER_NAME) == 51


def test_outcome_outside_the_closed_list_is_a_mistake(metrics: Metrics) -> None:
    with pytest.raises(AssertionError, match="client_gone, completed"):
        metrics.route("/a").stream_ended("main", "vanished", 1.0)  # type: ignore[arg-type]


def test_reasons_of_answers_are_a_closed_set(metrics: Metrics) -> None:
    for reason in ("stop", "length", "tool_calls", "content_filter", "a provider's own", "another", ""):
        metrics.route("/a").finished(reason)
    [family] = metrics.finish_reasons.collect()
    counted = {one.labels["reason"]: one.value for one in family.samples if one.name.endswith("_total")}
    assert counted == {"stop": 1, "length": 1, "tool_calls": 1, "content_filter": 1, "other": 2, "none": 1}


def test_build_and_reload_are_told_from_the_start(metrics: Metrics) -> None:
    assert value(metrics, "gateway_build_info", version="1.2.3") == 1
    assert value(metrics, "gateway_config_last_reload_successful") == 1
    assert value(metrics, "gateway_draining") == 0


def test_each_metric_of_the_gateway_can_be_asked_for_alone(metrics: Metrics) -> None:
    use_everything(metrics)
    families = [
        family
        for family in text_string_to_metric_families(metrics.render().decode())
        if family.name.startswith("gateway_") and family.samples
    ]
    for family in families:
        asked = metrics.render({sample.name for sample in family.samples}).decode()
        assert list(text_string_to_metric_families(asked)) == [family]
    assert len(families) > 20
