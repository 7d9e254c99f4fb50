"""Tracing: W3C trace context is passed on, and if the environment names a receiver, each generation has a span.

Invariants:

- Tracing is turned on by environment variables, never by the configuration: operators know OpenTelemetry's variables,
  and they need no reload.
- Without the `otel` extra, or without a receiver, nothing of OpenTelemetry is imported.
- A mistake in those variables costs the spans, never the service.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

from structlog.typing import FilteringBoundLogger

from gateway.observe.tracing.span import OFF, Tracing

_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_HOW: Final = "http/protobuf"


def from_environment(
    now: Callable[[], float], logger: FilteringBoundLogger, environ: Mapping[str, str] = os.environ
) -> Tracing:
    """The recorder of spans that the `OTEL_…` variables ask for; `OFF` if they name no receiver or make no sense.

    Args:
        now: the loop's clock, in seconds.
        logger: told why there are no spans although a receiver is named.
        environ: where `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER` and the receiver are looked up. All other variables
            are read by the SDK, from the process's environment.

    Source: OpenTelemetry specification, environment variables.
    """
    if not _wanted(environ):
        return OFF
    try:
        return _recording(now, logger, environ)
    except ImportError:
        reason = "the extra otel is not installed"
    except Exception as error:  # noqa: BLE001  # the SDK has many variables, and for each mistake another exception
        reason = str(error)
    logger.warning("tracing_off", reason=reason)
    return OFF


def _wanted(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and environ.get("OTEL_TRACES_EXPORTER") != "none" and bool(_of_traces(environ, "ENDPOINT"))


def _of_traces(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(f"{_PREFIX}TRACES_{name}") or environ.get(_PREFIX + name)


def _recording(now: Callable[[], float], logger: FilteringBoundLogger, environ: Mapping[str, str]) -> Tracing:
    if (exporter := environ.get("OTEL_TRACES_EXPORTER") or "otlp") != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter!r}; it can be 'otlp' or 'none'")
    if (protocol := _of_traces(environ, "PROTOCOL") or _HOW) != _HOW:
        raise ValueError(f"the OTLP protocol is {protocol!r}; it can be {_HOW!r}")
    from gateway.observe.tracing.otel import Recording

    return Recording(now, logger)
