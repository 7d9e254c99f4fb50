"""Failures and usage as clients are sent them. A failure has three shapes; the caller chooses for its client."""

from http import HTTPStatus
from typing import Any, Final

from gateway.core.errors import Failure
from gateway.core.event import Usage


def error_data(failure: Failure) -> dict[str, Any]:
    """`code`, `message`, `retryable` and `retry_after` (seconds or None): all that a client learns of a failure."""
    return {
        "code": failure.code,
        "message": failure.message,
        "retryable": failure.retryable,
        "retry_after": failure.retry_after,
    }


_ERROR_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_object(failure: Failure) -> dict[str, Any]:
    """OpenAI's error object. `retryable` and `retry_after` are ours; the official SDKs ignore keys they do not know.

    A provider's own code for a refusal stays: programs that speak this API look for it.

    Source: OpenAI API reference, "Error codes".
    """
    kind = "server_error" if failure.status >= 500 else _ERROR_TYPES.get(failure.status, "invalid_request_error")
    error = {"message": failure.message, "type": kind, "param": failure.param, **error_data(failure)}
    return {"error": error | {"code": failure.provider_code or failure.code}}


def problem(failure: Failure, instance: str) -> dict[str, Any]:
    """An `application/problem+json` object; `instance` names this one occurrence, and "" leaves the member out.

    Source: RFC 9457 3.1, 4.2.1 (`about:blank`: the title is the status's own phrase).
    """
    body = {"type": "about:blank", "title": _phrase(failure.status), "status": failure.status}
    body |= {"detail": failure.message} | error_data(failure)
    return body | {"instance": instance} if instance else body


def _phrase(status: int) -> str:
    known = status in HTTPStatus._value2member_map_
    return HTTPStatus(status).phrase if known else "Client Closed Request" if status == 499 else "Error"


def usage_object(usage: Usage | None) -> dict[str, int] | None:
    """Tokens under OpenAI's names, which front ends know; None stays None."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }
