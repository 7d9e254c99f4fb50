"""The dashboards: *Streams* for what users get, *Upstreams* for who answers, *Process* for what it costs, *Store* for
what several gateways share.

- What an operator looks at first is on top; every panel says what it shows and what to think of it.
- Every metric is one of the gateway's own or of its process; `tests/test_dashboards.py` knows them all.
- The uids are links in people's notes: never change them.

This file does not know how Grafana draws.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from grafana.panels import (
    BYTE_RATE,
    BYTES,
    EVENTS,
    GREEN,
    RATE,
    RATIO,
    RED,
    SECONDS,
    SHORT,
    TOKENS,
    TOKENS_RATE,
    YELLOW,
    Json,
    board,
    figure,
    heatmap,
    panel,
    quantiles,
    query,
    timeline,
    variable,
)

DIRECTORY: Final = Path(__file__).parent / "dashboards"
FAILED: Final = 'outcome=~"upstream_error|upstream_stalled|timeout"'
ROUTE: Final = 'HERE, route=~"$route"'
UPSTREAM: Final = 'HERE, upstream=~"$upstream"'
OUTCOMES: Final = {
    "completed": "green",
    "stopped": "light-blue",
    "client_gone": "blue",
    "slow_reader": "purple",
    "drained": "light-purple",
    "auth_expired": "yellow",
    "budget": "light-yellow",
    "timeout": "orange",
    "upstream_stalled": "dark-orange",
    "upstream_error": "red",
}
STORE: Final = {0: ("away", RED), 1: ("there", GREEN)}
OPEN: Final = {0: ("in service", GREEN), 1: ("open", RED)}


def as_text(dashboard: Json) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def rate(metric: str, selector: str = "HERE", *, by: str = "") -> str:
    """How much a counter rises in a second, over everything or by labels."""
    return f"sum {f'by ({by}) ' if by else ''}(rate({metric}{{{selector}}}[$__rate_interval]))"


def total(metric: str, selector: str = "HERE", *, by: str = "") -> str:
    """The sum of a gauge, over everything or by labels."""
    return f"sum {f'by ({by}) ' if by else ''}({metric}{{{selector}}})"


def share(part: str, whole: str) -> str:
    """A ratio of two rates that is 0 where only the whole is there, and nothing where nothing happens."""
    return f"({part} or {whole} * 0) / ({whole} > 0)"


# -- Streams -----------------------------------------------------------------------------------------------------------


def streams() -> Json:
    """What users get."""
    return board(
        "sse-gateway-streams",
        "SSE gateway / Streams",
        "What users get: streams, how they end, how long they take, and what they use.",
        [
            ("Now", _streams_now()),
            ("Answers", _answers()),
            ("Time", _times()),
            ("Volume", _volume()),
            ("Limits, resumes, rescues", _limits()),
        ],
        [variable("route", "Route", "label_values(gateway_streams_active{HERE}, route)")],
    )


def _failures(selector: str, by: str = "") -> str:
    part = rate("gateway_streams_total", f"{selector}, {FAILED}", by=by)
    return share(part, rate("gateway_streams_total", selector, by=by))


def _streams_now() -> list[Json]:
    output = 'HERE, type="output"'
    return [
        figure("Streams", "Generations that run now.", SHORT, query(total("gateway_streams_active", ROUTE))),
        figure(
            "Readers",
            "Browsers and clients that follow a stream now; a stream may have several, or none for a while.",
            SHORT,
            query(total("gateway_connections_active", ROUTE)),
        ),
        figure(
            "Failed streams",
            "Share of the streams that ended with an error of the upstream or a time limit.",
            RATIO,
            query(_failures(ROUTE)),
            steps=[(0.01, YELLOW), (0.05, RED)],
        ),
        figure(
            "First token, p95",
            "19 of 20 users got the first token within this time, over all upstreams.",
            SECONDS,
            *quantiles("gateway_time_to_first_token_seconds", of=[95]),
            steps=[(5, YELLOW), (15, RED)],
        ),
        figure(
            "Output tokens",
            "Tokens that models wrote, over all upstreams; counted when a stream ends.",
            TOKENS_RATE,
            query(rate("gateway_tokens_total", output)),
        ),
        figure("Ended", "Streams that ended, in a second.", RATE, query(rate("gateway_streams_total", ROUTE))),
    ]


def _answers() -> list[Json]:
    return [
        panel(
            "Running streams",
            "Generations that run, by route. A rise without more requests means slower answers.",
            SHORT,
            query(total("gateway_streams_active", ROUTE, by="route"), "{{route}}"),
            stacked=True,
        ),
        panel(
            "How streams end",
            "Streams by how they ended. Orange and red are errors; blue is a user who left or pressed stop.",
            RATE,
            query(rate("gateway_streams_total", ROUTE, by="outcome"), "{{outcome}}"),
            stacked=True,
            colors=OUTCOMES,
        ),
        panel(
            "Why answers end",
            "Complete answers by the provider's reason. `length` was cut off by a limit; `none` had no reason.",
            RATE,
            query(rate("gateway_finish_reasons_total", ROUTE, by="reason"), "{{reason}}"),
            stacked=True,
        ),
        panel(
            "Failed streams by route",
            "Share of the streams that ended with an error of the upstream or a time limit.",
            RATIO,
            query(_failures(ROUTE, "route"), "{{route}}"),
        ),
        panel(
            "Readers",
            "Open streams to clients, by what opened them: a browser's EventSource, or fetch and SDKs.",
            SHORT,
            query(total("gateway_connections_active", ROUTE, by="transport"), "{{transport}}"),
            stacked=True,
        ),
        panel(
            "Requests by status",
            "HTTP answers by status. 429 is a limit, 502 to 504 an upstream; 503 can also be a gateway at its limits.",
            RATE,
            query(rate("gateway_http_requests_total", "HERE", by="code"), "{{code}}"),
            stacked=True,
        ),
        panel(
            "Length of a stream",
            "Time from the start of a generation to its end.",
            SECONDS,
            *quantiles("gateway_stream_duration_seconds", ROUTE),
        ),
    ]


def _times() -> list[Json]:
    buckets = rate("gateway_time_to_first_token_seconds_bucket", by="le")
    return [
        panel(
            "First token",
            "Time from admitting a request to the first token, over all upstreams. What users feel most.",
            SECONDS,
            *quantiles("gateway_time_to_first_token_seconds"),
        ),
        panel(
            "Between tokens",
            "Time from one token to the next as the upstream sends them; 50 ms reads as fluent.",
            SECONDS,
            *quantiles("gateway_inter_token_latency_seconds"),
        ),
        panel(
            "The gateway's own time",
            "Time from a request's arrival until the upstream was asked: credentials, limits, a connection.",
            SECONDS,
            *quantiles("gateway_overhead_seconds", ROUTE),
        ),
        heatmap("First token, distribution", "First tokens, by how long they took.", SECONDS, buckets),
        panel(
            "First token by model",
            "95th percentile of the time to the first token.",
            SECONDS,
            *quantiles("gateway_time_to_first_token_seconds", by="model", of=[95]),
            width=12,
        ),
    ]


def _volume() -> list[Json]:
    mean = f"{rate('gateway_batch_events_sum', ROUTE)} / ({rate('gateway_batch_events_count', ROUTE)} > 0)"
    return [
        panel(
            "Tokens by model",
            "Tokens read and written by each model; counted when a stream ends.",
            TOKENS_RATE,
            query(rate("gateway_tokens_total", by="model, type"), "{{model}} {{type}}"),
            stacked=True,
        ),
        panel(
            "Tokens by who counted",
            "`usage` is what the provider said; `estimate` is the gateway's own count if the provider gave none.",
            TOKENS_RATE,
            query(rate("gateway_tokens_total", by="source"), "{{source}}"),
            stacked=True,
        ),
        panel(
            "Events",
            "Events that upstreams sent, by route; counted when a stream ends.",
            RATE,
            query(rate("gateway_events_total", ROUTE, by="route"), "{{route}}"),
            stacked=True,
        ),
        panel(
            "Sent to readers",
            "Bytes written to readers, by route.",
            BYTE_RATE,
            query(rate("gateway_sent_bytes_total", ROUTE, by="route"), "{{route}}"),
            stacked=True,
        ),
        panel(
            "Events in one write",
            "How many events share a write. More is cheaper; 1 means that no events were gathered.",
            EVENTS,
            query(mean, "mean"),
            *quantiles("gateway_batch_events", ROUTE, of=[50, 95]),
        ),
        panel(
            "Heartbeats",
            "Comments written because a stream had no event to send. Many heartbeats mean slow upstreams.",
            RATE,
            query(rate("gateway_heartbeats_total", ROUTE, by="route"), "{{route}}"),
        ),
    ]


def _limits() -> list[Json]:
    return [
        panel(
            "Limits reached",
            "Requests and streams that ran into a limit, by plan. `address` limits come before any credential.",
            RATE,
            query(rate("gateway_rate_limited_total", by="plan, limit"), "{{plan}} {{limit}}"),
        ),
        panel(
            "Credentials refused",
            "Requests refused for their credential, by reason.",
            RATE,
            query(rate("gateway_auth_failures_total", by="reason"), "{{reason}}"),
        ),
        panel(
            "Resumes",
            "Readers with a cursor: `resumed` got the rest, `ended` already had everything, `expired` came too late.",
            RATE,
            query(rate("gateway_resumes_total", by="result"), "{{result}}"),
        ),
        panel(
            "Rescues",
            "Answers that broke off and were finished elsewhere, by continuing the text (`prefill`) or asking again.",
            RATE,
            query(rate("gateway_rescues_total", by="kind, result"), "{{kind}} {{result}}"),
            width=12,
        ),
        panel(
            "Slots in use",
            "Readers as a share of the connections that the gateway takes (`server.max_connections`).",
            RATIO,
            query(
                "sum by (instance) (gateway_connections_active{HERE}) "
                "/ sum by (instance) (gateway_connections_limit{HERE})",
                "{{instance}}",
            ),
            width=12,
        ),
    ]


# -- Upstreams ---------------------------------------------------------------------------------------------------------


def upstreams() -> Json:
    """Who answers."""
    return board(
        "sse-gateway-upstreams",
        "SSE gateway / Upstreams",
        "Who answers: how often upstreams fail, how, and how long they take.",
        [
            ("Now", _upstreams_now()),
            ("Failures", _upstream_failures()),
            ("Latency", _latency()),
            ("Use", _use()),
            ("OpenTelemetry names", _conventions()),
        ],
        [variable("upstream", "Upstream", "label_values(gateway_upstream_requests_total{HERE}, upstream)")],
    )


def _attempt_failures(by: str = "") -> str:
    part = rate("gateway_upstream_errors_total", UPSTREAM, by=by)
    return share(part, rate("gateway_upstream_requests_total", UPSTREAM, by=by))


def _upstreams_now() -> list[Json]:
    return [
        figure(
            "Attempts",
            "Requests to upstreams, including retries and rescues.",
            RATE,
            query(rate("gateway_upstream_requests_total", UPSTREAM)),
            width=6,
        ),
        figure(
            "Failed attempts",
            "Share of the attempts that failed. Users only notice if no other target answered instead.",
            RATIO,
            query(_attempt_failures()),
            steps=[(0.05, YELLOW), (0.2, RED)],
            width=6,
        ),
        figure(
            "Targets out of service",
            "Targets whose breaker is open: they failed several times in a row; one request at a time tries them.",
            SHORT,
            query(total("gateway_breaker_open", UPSTREAM)),
            steps=[(1, RED)],
            width=6,
        ),
        figure(
            "First token, p95",
            "19 of 20 first tokens arrived within this time.",
            SECONDS,
            *quantiles("gateway_time_to_first_token_seconds", UPSTREAM, of=[95]),
            steps=[(5, YELLOW), (15, RED)],
            width=6,
        ),
    ]


def _upstream_failures() -> list[Json]:
    return [
        panel(
            "Errors by kind",
            "Attempts that failed, by error code; clients and logs get the same codes.",
            RATE,
            query(rate("gateway_upstream_errors_total", UPSTREAM, by="error_type"), "{{error_type}}"),
            width=12,
            stacked=True,
        ),
        panel(
            "Attempts by status",
            "Attempts by the HTTP status of the answer; `none` means that there was no answer.",
            RATE,
            query(rate("gateway_upstream_requests_total", UPSTREAM, by="upstream, code"), "{{upstream}} {{code}}"),
            width=12,
            stacked=True,
        ),
        panel(
            "Failed attempts by upstream",
            "Share of the attempts that failed.",
            RATIO,
            query(_attempt_failures("upstream"), "{{upstream}}"),
            width=12,
        ),
        timeline(
            "Breakers",
            "Targets in and out of service. A target that changes often was tried again and failed again.",
            SHORT,
            query(f"max by (upstream, target) (gateway_breaker_open{{{UPSTREAM}}})", "{{upstream}} {{target}}"),
            texts=OPEN,
        ),
        panel(
            "How streams end, by upstream",
            "Streams that did not complete, by the upstream that was asked last.",
            RATE,
            query(
                rate("gateway_streams_total", f'{UPSTREAM}, outcome!="completed"', by="upstream, outcome"),
                "{{upstream}} {{outcome}}",
            ),
            width=24,
            stacked=True,
        ),
    ]


def _latency() -> list[Json]:
    first, between = "gateway_time_to_first_token_seconds", "gateway_inter_token_latency_seconds"
    buckets = rate(f"{first}_bucket", UPSTREAM, by="le")
    return [
        panel(
            "First token by upstream",
            "Median and 95th percentile of the time to the first token.",
            SECONDS,
            *quantiles(first, UPSTREAM, by="upstream", of=[50, 95]),
        ),
        panel(
            "Between tokens by upstream",
            "Median and 95th percentile of the time from one token to the next.",
            SECONDS,
            *quantiles(between, UPSTREAM, by="upstream", of=[50, 95]),
        ),
        panel(
            "Between tokens by model",
            "95th percentile of the time from one token to the next.",
            SECONDS,
            *quantiles(between, UPSTREAM, by="model", of=[95]),
        ),
        heatmap("First token, distribution", "First tokens, by how long they took.", SECONDS, buckets, width=24),
    ]


def _use() -> list[Json]:
    return [
        panel(
            "Tokens by upstream",
            "Tokens read (`input`) and written (`output`); counted when a stream ends.",
            TOKENS_RATE,
            query(rate("gateway_tokens_total", UPSTREAM, by="upstream, type"), "{{upstream}} {{type}}"),
            width=12,
            stacked=True,
        ),
        panel(
            "Streams by upstream",
            "Streams that ended, by the upstream that was asked last.",
            RATE,
            query(rate("gateway_streams_total", UPSTREAM, by="upstream"), "{{upstream}}"),
            width=12,
            stacked=True,
        ),
    ]


def _conventions() -> list[Json]:
    provider = "gen_ai_provider_name"
    return [
        panel(
            "Tokens of a request",
            "Median and 95th percentile of the tokens that a generation read and wrote, where the provider said.",
            TOKENS,
            *quantiles("gen_ai_client_token_usage", by="gen_ai_token_type", of=[50, 95]),
            width=6,
        ),
        panel(
            "Time of a request",
            "95th percentile of the time from a request to the end of its answer, and of the provider's part of it.",
            SECONDS,
            *quantiles("gen_ai_server_request_duration_seconds", by=provider, of=[95]),
            *quantiles("gen_ai_client_operation_duration_seconds", by=provider, of=[95]),
            width=6,
        ),
        panel(
            "First token of good answers",
            "95th percentile by provider; answers that failed do not count.",
            SECONDS,
            *quantiles("gen_ai_server_time_to_first_token_seconds", by=provider, of=[95]),
            width=6,
        ),
        panel(
            "Time of an output token",
            "95th percentile by provider, over each whole answer after its first token.",
            SECONDS,
            *quantiles("gen_ai_server_time_per_output_token_seconds", by=provider, of=[95]),
            width=6,
        ),
    ]


# -- Process -----------------------------------------------------------------------------------------------------------


def process() -> Json:
    """What it costs."""
    return board(
        "sse-gateway-process",
        "SSE gateway / Process",
        "What it costs: CPU, memory, descriptors, the event loop, and the state of the configuration.",
        [("Now", _process_now()), ("Cost", _cost()), ("Logs of streams", _logs()), ("State", _state())],
        [],
    )


def _process_now() -> list[Json]:
    reload = {0: ("refused", RED), 1: ("in use", GREEN)}
    return [
        figure("Processes", "Gateways that answer scrapes.", SHORT, query("count(gateway_build_info{HERE})")),
        figure(
            "Configuration",
            "Whether the file on disk is the one in use; after a refused reload the old one stays in use.",
            SHORT,
            query("min(gateway_config_last_reload_successful{HERE})"),
            texts=reload,
        ),
        figure(
            "CPU",
            "Cores in use; one process uses at most one.",
            SHORT,
            query(rate("process_cpu_seconds_total")),
        ),
        figure("Memory", "Resident memory.", BYTES, query(total("process_resident_memory_bytes"))),
        figure(
            "Loop lag, p99",
            "How late the event loop is. Tokens, heartbeats and probes are all delayed by this time.",
            SECONDS,
            *quantiles("gateway_event_loop_lag_seconds", of=[99]),
            steps=[(0.05, YELLOW), (0.25, RED)],
        ),
        figure(
            "Up for",
            "Time since the youngest process started.",
            SECONDS,
            query("min(time() - process_start_time_seconds{HERE})"),
        ),
    ]


def _cost() -> list[Json]:
    descriptors = "process_open_fds{HERE} / process_max_fds{HERE}"
    return [
        panel(
            "CPU",
            "Share of a core, by process. Above 80 % latency rises: start another process.",
            RATIO,
            query("rate(process_cpu_seconds_total{HERE}[$__rate_interval])", "{{instance}}"),
        ),
        panel(
            "Memory",
            "Resident memory, by process.",
            BYTES,
            query("process_resident_memory_bytes{HERE}", "{{instance}}"),
        ),
        panel(
            "Event loop lag",
            "How late the event loop is for a timer, over all processes.",
            SECONDS,
            *quantiles("gateway_event_loop_lag_seconds"),
        ),
        panel(
            "Event loop lag by process",
            "99th percentile of the time by which the event loop is late.",
            SECONDS,
            *quantiles("gateway_event_loop_lag_seconds", by="instance", of=[99]),
        ),
        panel(
            "File descriptors",
            "Descriptors in use. A stream takes two: one to its reader, one to its upstream.",
            SHORT,
            query("process_open_fds{HERE}", "{{instance}}"),
        ),
        panel(
            "File descriptors, share",
            "Descriptors in use of those that the system allows; new streams are refused shortly before 100 %.",
            RATIO,
            query(descriptors, "{{instance}}"),
        ),
        panel(
            "Requests",
            "HTTP requests answered, by process: whether the load is spread evenly.",
            RATE,
            query(rate("gateway_http_requests_total", by="instance"), "{{instance}}"),
            stacked=True,
        ),
        panel(
            "Running streams",
            "Generations that run, by process.",
            SHORT,
            query(total("gateway_streams_active", by="instance"), "{{instance}}"),
            stacked=True,
        ),
        panel(
            "Garbage collections",
            "Collections by Python's garbage collector, by generation; the oldest generation takes longest.",
            RATE,
            query(rate("python_gc_collections_total", by="generation"), "generation {{generation}}"),
        ),
    ]


def _logs() -> list[Json]:
    return [
        panel(
            "Memory of logs",
            "Bytes held in the logs of running and ended streams, for readers who come back.",
            BYTES,
            query("gateway_log_bytes{HERE}", "{{instance}}"),
        ),
        panel(
            "Memory of logs, share",
            "Bytes held of `server.max_log_bytes`. Ended streams make room first; at 100 % new streams are refused.",
            RATIO,
            query("gateway_log_bytes{HERE} / gateway_log_limit_bytes{HERE}", "{{instance}}"),
        ),
        panel(
            "Logs",
            "Streams that can be read or resumed, running ones among them.",
            SHORT,
            query("gateway_log_streams{HERE}", "{{instance}}"),
        ),
    ]


def _state() -> list[Json]:
    return [
        timeline(
            "Configuration",
            "Whether the file on disk is the one in use.",
            SHORT,
            query("gateway_config_last_reload_successful{HERE}", "{{instance}}"),
            texts={0: ("refused", RED), 1: ("in use", GREEN)},
            width=8,
        ),
        timeline(
            "Draining",
            "Processes that take no new streams and let the running ones end.",
            SHORT,
            query("gateway_draining{HERE}", "{{instance}}"),
            texts={0: ("serving", GREEN), 1: ("draining", YELLOW)},
            width=8,
        ),
        panel(
            "Versions",
            "Processes by the version of the program.",
            SHORT,
            query("count by (version) (gateway_build_info{HERE})", "{{version}}"),
            stacked=True,
        ),
    ]


# -- Store -------------------------------------------------------------------------------------------------------------


def store() -> Json:
    """What several gateways share."""
    return board(
        "sse-gateway-store",
        "SSE gateway / Store",
        "The Redis that several gateways share: whether it is there, how fast it is, how full. Empty with the memory.",
        [("Now", _store_now()), ("Commands", _commands()), ("Memory", _store_memory())],
        [],
    )


STORE_SECONDS: Final = "gateway_store_command_duration_seconds"
STORE_FULL: Final = "max(gateway_store_memory_bytes{HERE} / (gateway_store_memory_limit_bytes{HERE} > 0))"


def _store_now() -> list[Json]:
    return [
        figure(
            "Store",
            "Whether every gateway reaches it. One that does not goes on with streams and limits of its own.",
            SHORT,
            query("min(gateway_store_up{HERE})"),
            texts=STORE,
        ),
        figure(
            "Gateways without it",
            "Gateways that do not reach it now; their log lines `store_away` and /readyz say why.",
            SHORT,
            query("sum(1 - gateway_store_up{HERE})"),
            steps=[(1, RED)],
        ),
        figure(
            "Time of a command, p99",
            "From a command to its reply. Above 0.25 s the store counts as lost.",
            SECONDS,
            *quantiles(STORE_SECONDS, of=[99]),
            steps=[(0.05, YELLOW), (0.2, RED)],
        ),
        figure("Commands", "Commands that were replied to.", RATE, query(rate(f"{STORE_SECONDS}_count"))),
        figure(
            "Memory, share",
            "Memory of Redis in use, of `maxmemory`. When it is full, nothing more is written.",
            RATIO,
            query(STORE_FULL),
            steps=[(0.7, YELLOW), (0.9, RED)],
        ),
        figure(
            "Losses",
            "Times in an hour that a gateway lost the store or did not reach it.",
            SHORT,
            query("sum(increase(gateway_store_errors_total{HERE}[1h]))"),
            steps=[(1, YELLOW)],
        ),
    ]


def _commands() -> list[Json]:
    return [
        timeline(
            "Store",
            "Whether each gateway reaches it.",
            SHORT,
            query("gateway_store_up{HERE}", "{{instance}}"),
            texts=STORE,
        ),
        panel(
            "Losses by kind",
            "Times the store was lost or not reached, by why: `timeout`, `connection`, `credential`, `permission`, "
            "`read_only` (a replica), `full`, `loading`, `unfit` (version, cluster), `other`.",
            RATE,
            query(rate("gateway_store_errors_total", by="kind"), "{{kind}}"),
            width=12,
            stacked=True,
        ),
        panel(
            "Commands by name",
            "Commands that were replied to. `evalsha` is a script, as one start of a stream is.",
            RATE,
            query(rate(f"{STORE_SECONDS}_count", by="command"), "{{command}}"),
            stacked=True,
        ),
        panel(
            "Time of a command",
            "From a command to its reply, over all gateways: the network, Redis, and the waiting in both.",
            SECONDS,
            *quantiles(STORE_SECONDS),
        ),
        panel(
            "Time of a command by gateway, p99",
            "One gateway that is slower than the others has a busy event loop or a bad network.",
            SECONDS,
            *quantiles(STORE_SECONDS, by="instance", of=[99]),
        ),
    ]


def _store_memory() -> list[Json]:
    return [
        panel(
            "Memory of Redis",
            "Bytes that Redis uses, for all its users, and `maxmemory` where there is one; looked at every 15 s.",
            BYTES,
            query("max(gateway_store_memory_bytes{HERE})", "in use"),
            query("max(gateway_store_memory_limit_bytes{HERE} > 0)", "maxmemory"),
            width=12,
        ),
        panel(
            "Memory of Redis, share",
            "Memory in use, of `maxmemory`. At 100 % nothing is written, and the store counts as away.",
            RATIO,
            query(STORE_FULL, "in use"),
            width=12,
        ),
    ]


BOARDS: Final[Mapping[str, Json]] = {
    "streams": streams(),
    "upstreams": upstreams(),
    "process": process(),
    "store": store(),
}
