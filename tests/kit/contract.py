"""The metrics that are promised, with their labels."""

METRICS: dict[str, set[str]] = {
    "gateway_http_requests_total": {"route", "method", "code"},
    "gateway_http_request_duration_seconds": {"route", "code"},
    "gateway_connections_active": {"route", "transport"},
    "gateway_connections_limit": set(),
    "gateway_streams_active": {"route"},
    "gateway_streams_total": {"route", "upstream", "outcome"},
    "gateway_stream_duration_seconds": {"route", "outcome"},
    "gateway_finish_reasons_total": {"route", "reason"},
    "gateway_time_to_first_token_seconds": {"upstream", "model"},
    "gateway_inter_token_latency_seconds": {"upstream", "model"},
    "gateway_overhead_seconds": {"route"},
    "gateway_upstream_requests_total": {"upstream", "code"},
    "gateway_upstream_errors_total": {"upstream", "error_type"},
    "gateway_breaker_open": {"upstream", "target"},
    "gateway_tokens_total": {"upstream", "model", "type", "source"},
    "gateway_events_total": {"route"},
    "gateway_sent_bytes_total": {"route"},
    "gateway_batch_events": {"route"},
    "gateway_heartbeats_total": {"route"},
    "gateway_resumes_total": {"result"},
    "gateway_rescues_total": {"kind", "result"},
    "gateway_log_bytes": set(),
    "gateway_log_limit_bytes": set(),
    "gateway_log_streams": set(),
    "gateway_auth_failures_total": {"reason"},
    "gateway_rate_limited_total": {"plan", "limit"},
    "gateway_config_last_reload_successful": set(),
    "gateway_event_loop_lag_seconds": set(),
    "gateway_draining": set(),
    "gateway_worker_restarts_total": set(),
    "gateway_build_info": {"version"},
}

STORE_METRICS: dict[str, set[str]] = {
    "gateway_store_up": set(),
    "gateway_store_command_duration_seconds": {"command"},
    "gateway_store_errors_total": {"kind"},
    "gateway_store_memory_bytes": set(),
    "gateway_store_memory_limit_bytes": set(),
}
"""Those of a gateway whose store is shared."""
