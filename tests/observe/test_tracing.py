"""Tracing from the environment: on where a receiver is named, off otherwise, and never a reason not to serve."""

import subprocess
import sys
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.observe.tracing import from_environment
from gateway.observe.tracing.otel import Recording
from gateway.observe.tracing.span import OFF

TO = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


def told(**environ: str) -> tuple[bool, list[Any]]:
    """Whether tracing is on, and what was logged."""
    with capture_logs() as lines:
        tracing = from_environment(float, structlog.get_logger(), environ)
    return tracing is not OFF, [(line["event"], line["reason"]) for line in lines]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "chat"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        TO | {"OTEL_SDK_DISABLED": "True"},
        TO | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_operator_who_wants_no_spans_gets_none_and_no_word(environ: dict[str, str]) -> None:
    assert told(**environ) == (False, [])


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is 'console'; it can be 'otlp' or 'none'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "the OTLP protocol is 'grpc'; it can be 'http/protobuf'"),
    ],
)
def test_operator_who_wants_the_impossible_is_told(environ: dict[str, str], reason: str) -> None:
    assert told(**TO, **environ) == (False, [("tracing_off", reason)])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "max_queue_size"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER", "nobody", "'nobody' not found"),
    ],
)
def test_operator_who_mistypes_a_value_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    on, (line,) = told(**TO)
    assert (on, line[0]) == (False, "tracing_off")
    assert said in line[1]


async def test_operator_who_names_a_receiver_has_spans() -> None:
    environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces", "OTEL_TRACES_EXPORTER": "otlp"}
    tracing = from_environment(float, structlog.get_logger(), environ)
    assert isinstance(tracing, Recording)
    await tracing.close()


def test_operator_without_the_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.observe.tracing.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    on, (line,) = told(**TO)
    assert (on, line[0]) == (False, "tracing_off")
    assert "the extra otel" in line[1]


def test_process_without_a_receiver_imports_nothing_of_it() -> None:
    code = (
        "import sys, gateway.process.server; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
