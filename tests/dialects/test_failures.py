"""What upstreams say when they refuse, and what of it is told."""

import json
from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.dialects import DIALECTS, failures
from gateway.formats import error_object
from gateway.upstream.hints import hint


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
        ({"Retry-After": "30s"}, 30.0),
        ({"Retry-After": "1m30s"}, 90.0),
        ({"Retry-After": "1700000040", "Date": "Tue, 14 Nov 2023 22:13:20 GMT"}, 40.0),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "45"}, 45.0),
        ({"RateLimit-Remaining": "3", "RateLimit-Reset": "45"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "70000", "Date": "x"}, 70_000.0),
        (
            {
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": "1700000040000",
                "Date": "Tue, 14 Nov 2023 22:13:20 GMT",
            },
            40,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "1970-01-01T00:01:30Z",
            },
            30.0,
        ),
        ({}, None),
    ],
)
def test_retry_after_reads_seconds_and_dates(headers: dict[str, str], seconds: float | None) -> None:
    assert failures.retry_after(headers, now=60.0) == seconds


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (
            500,
            "model requires more system memory (5.6 GiB) than is available",
            "The provider failed: model requires more",
        ),
        (503, "The engine is down.", "The provider is unavailable: The engine is down."),
        (429, "Slow down.", "The provider is rate limiting: Slow down."),
        (500, "<html><body>down</body></html>", "The provider failed."),
        (500, "Traceback (most recent call last):\n  File x", "The provider failed."),
        (500, "It broke.\n    at run (/srv/app/index.js:12:3)", "The provider failed: It broke."),
        (422, "temperature must be below 2", "temperature must be below 2"),
        (401, "Bad key.", "The provider did not accept the gateway's credential."),
    ],
)
def test_refusal_tells_the_providers_sentence_where_the_client_may_know_it(
    status: int, said: str, message: str
) -> None:
    assert refused(status, {"message": said}).message.startswith(message)


def test_refusal_keeps_the_sentence_and_the_status_for_the_log() -> None:
    error = refused(403, {"message": "Your plan has ended. Key: sk-abcdef123456"})
    assert (error.sentence, error.upstream_status) == ("Your plan has ended. Key: …", 403)


def test_refusal_keeps_the_providers_code_and_the_part_that_it_names() -> None:
    error = refused(400, {"message": "No.", "code": "invalid_value", "param": "messages[0].content"})
    assert (error.code, error.provider_code, error.param) == (
        "upstream_refused",
        "invalid_value",
        "messages[0].content",
    )
    told = error_object(error.failure())["error"]
    assert (told["code"], told["param"]) == ("invalid_value", "messages[0].content")


def test_refusal_names_the_place_that_a_validation_error_names() -> None:
    body = json.dumps({"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]})
    error = DIALECTS["openai"].refusal(422, {}, body.encode())
    assert (error.param, error.message) == ("stream_options", "Extra inputs are not permitted")


def test_http_on_a_port_for_https_is_no_refusal_of_the_request() -> None:
    page = (
        b"<html><center><h1>400 Bad Request</h1></center><center>The plain HTTP request was sent to HTTPS port</center>"
    )
    for body in (page, b"Client sent an HTTP request to an HTTPS server.\n"):
        error = DIALECTS["openai"].refusal(400, {}, body)
        assert (error.code, error.status, error.retryable) == ("upstream_protocol", 502, False)
        assert "https://" in hint(error, "http://provider/v1", "openai")


@pytest.mark.parametrize(
    ("error", "headers", "seconds"),
    [
        ({"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "26s"}]}, {}, 26.0),
        ({"details": [{"metadata": {"quotaResetDelay": "373.5ms"}}]}, {}, 0.3735),
        ({"message": "Rate limit reached. Please try again in 20s."}, {}, 20.0),
        ({"message": "Limit 30, Used 30. Please try again in 6m0.5s. Visit the page."}, {}, 360.5),
        ({"message": "Please retry after 1.5 seconds."}, {}, 1.5),
        ({"message": "Please try again in 250ms."}, {}, 0.25),
        ({"message": "please try again after 1 seconds"}, {}, 1.0),
        ({"message": "Your quota will reset after 2h7m23s."}, {}, 7643.0),
        ({"message": "请在 20 秒后重试"}, {}, 20.0),
        ({"message": "Please try again later, in 3 tokens."}, {}, None),
        ({"message": "m", "retry_after_ms": 1500}, {}, 1.5),
        ({"message": "m", "metadata": {"headers": {"X-RateLimit-Reset": "61500"}}}, {}, 1.5),
        ({"message": "Try again in 20s."}, {"Retry-After": "7"}, 7.0),
        ({"message": "m"}, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"message": "m"}, {"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "1m2.5s"}, None),
        ({"message": "m", "details": [{"retryDelay": "9999999s"}]}, {}, 86_400.0),
    ],
)
def test_refusal_reads_when_to_come_back_wherever_it_is_said(
    error: Any, headers: dict[str, str], seconds: float | None
) -> None:
    body = json.dumps({"error": error}).encode()
    assert DIALECTS["openai"].refusal(429, headers, body, now=60.0).retry_after == seconds
    if not headers:
        told = failures.in_stream("", json.dumps({"error": {"code": 429} | error}))
        assert told is not None
        assert told.retry_after == seconds or "metadata" in error  # a stream has no clock


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


def test_stream_failure_in_words_shows_no_key() -> None:
    error = failures.in_stream("error", "Incorrect API key provided: sk-abcdef123456")
    assert error is not None
    assert (error.code, error.sentence) == ("upstream_auth", "Incorrect API key provided: …")
    error = failures.in_stream("error", "no luck with sk-abcdef123456")
    assert error is not None
    assert error.message == "no luck with …"


@pytest.mark.parametrize("data", ['{"error":null}', '{"choices":[]}', "[]", "text", '"error"', "[" * 99_999])
def test_stream_failure_is_not_seen_where_there_is_none(data: str) -> None:
    assert failures.in_stream("", data) is None
