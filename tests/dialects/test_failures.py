"""What upstreams say when they refuse, and what of it is told."""

import json
from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.dialects import DIALECTS, failures


def refused(status: int, error: Any = None, headers: dict[str, str] | None = None) -> GatewayError:
    body = json.dumps({"error": error}).encode() if error is not None else b"<html>secret stack</html>"
    return DIALECTS["openai"].refusal(status, headers or {}, body)


@pytest.mark.parametrize(
    ("status", "code", "told_status"),
    [
        (400, "upstream_refused", 400),
        (401, "upstream_auth", 502),
        (402, "upstream_auth", 502),
        (403, "upstream_auth", 502),
        (404, "upstream_refused", 404),
        (409, "upstream_refused", 400),
        (413, "upstream_refused", 413),
        (422, "upstream_refused", 422),
        (429, "upstream_rate_limited", 429),
        (500, "upstream_error", 502),
        (502, "upstream_error", 502),
        (503, "upstream_unavailable", 503),
        (504, "upstream_error", 502),
        (529, "upstream_unavailable", 503),
        (204, "upstream_protocol", 502),
        (302, "upstream_protocol", 502),
    ],
)
def test_refusal_maps_the_status_and_leaks_no_page(status: int, code: str, told_status: int) -> None:
    error = refused(status)
    assert (error.code, error.status) == (code, told_status)
    assert "secret" not in f"{error.message} {error.detail}"


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too long", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 8192 tokens."},
        {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
        "the request exceeds the available context size",
    ],
)
def test_refusal_knows_a_conversation_that_is_too_long(error: Any) -> None:
    assert refused(400, error).code == "context_length_exceeded"


@pytest.mark.parametrize(("status", "code"), [(400, "content_filter"), (403, "content_policy_violation")])
def test_refusal_knows_a_content_filter(status: int, code: str) -> None:
    error = refused(status, {"message": "Filtered.", "code": code})
    assert (error.code, error.message, error.status) == ("content_filter", "Filtered.", 400)


def test_refusal_knows_a_content_filter_by_anthropics_words() -> None:
    said = {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"}
    assert refused(400, said).code == "content_filter"
    failure = failures.in_stream("error", json.dumps({"type": "error", "error": said}))
    assert failure is not None
    assert (failure.status, failure.retryable) == (400, False)


def test_refusal_tells_the_providers_reason_cleaned_and_bounded() -> None:
    error = refused(400, {"message": "no\x00 such\r\nmodel " + "x" * 5000})
    assert error.message.startswith("no  such model")
    assert len(error.message) == 1000


def test_refusal_never_tells_what_was_said_of_the_credential() -> None:
    error = refused(401, {"message": "Incorrect API key provided: sk-proj-abcdefgh12345678", "code": "invalid_api_key"})
    assert "sk-" not in f"{error.message} {error.detail}"
    assert "Incorrect API key" in error.detail


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"Retry-After": "99999999999"}, 86_400.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_reads_seconds_and_dates(headers: dict[str, str], seconds: float | None) -> None:
    assert failures.retry_after(headers, now=60.0) == seconds


def test_refusal_carries_retry_after() -> None:
    assert refused(429, {"message": "slow"}, {"Retry-After": "7"}).retry_after == 7.0


@pytest.mark.parametrize(
    ("data", "code", "status", "retryable"),
    [
        ('{"error":{"type":"overloaded_error","message":"m"}}', "overloaded_error", 503, True),
        ('{"error":{"code":"rate_limit_exceeded","message":"m"}}', "rate_limit_exceeded", 429, True),
        ('{"error":{"code":429,"message":"m"}}', "upstream_rate_limited", 429, True),
        ('{"error":{"code":"context_length_exceeded","message":"m"}}', "context_length_exceeded", 400, False),
        ('{"error":{"code":"content_filter","message":"m"}}', "content_filter", 400, False),
        ('{"error":{"type":"authentication_error","message":"m"}}', "upstream_auth", 502, False),
        ('{"error":{"type":"invalid_request_error","message":"m"}}', "invalid_request_error", 400, False),
        ('{"error":{"code":"stopped","message":"m"}}', "upstream_error", 502, True),
        ('{"error":{"code":"a\\r\\nb","message":"m"}}', "a_b", 502, True),
        ('{"object":"error","message":"m","code":500}', "upstream_error", 502, True),
    ],
)
def test_stream_failure_keeps_the_providers_code(data: str, code: str, status: int, retryable: bool) -> None:
    error = failures.in_stream("", data)
    assert error is not None
    assert (error.code, error.status, error.retryable) == (code, status, retryable)


@pytest.mark.parametrize("data", ['{"error":null}', '{"choices":[]}', "[]", "text", '"error"', "[" * 99_999])
def test_stream_failure_is_not_seen_where_there_is_none(data: str) -> None:
    assert failures.in_stream("", data) is None
