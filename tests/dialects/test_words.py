"""What providers say, in their own words, and what it means; and what must not be taken for it.

`refusals.jsonl` has them, one a line. Each stands in a public report or in a provider's documentation.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.core.errors import GatewayError
from gateway.dialects import DIALECTS, failures
from gateway.dialects.words import NAMES, SENTENCES


class Refusal(msgspec.Struct, frozen=True):
    """One line of `refusals.jsonl`: whose words these are, with which status, and what they mean."""

    means: str
    provider: str
    status: int
    body: Any


REFUSALS = [
    msgspec.json.decode(line, type=Refusal)
    for line in Path(__file__).with_name("refusals.jsonl").read_text(encoding="utf-8").splitlines()
]


def meaning(name: str) -> pytest.MarkDecorator:
    """The refusals that mean this."""
    chosen = [one for one in REFUSALS if one.means == name]
    return pytest.mark.parametrize("refusal", chosen, ids=[f"{one.provider}-{one.status}" for one in chosen])


def refused(refusal: Refusal) -> GatewayError:
    # A report with status 200 is read as any other whose status is not known.
    status = 400 if refusal.status == 200 else refusal.status
    return DIALECTS["openai"].refusal(status, {}, msgspec.json.encode(refusal.body), now=0.0)


@meaning("too long")
def test_conversation_that_is_too_long_is_known_in_any_words(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("context_length_exceeded", 400, False)
    assert error.message == error.sentence


@pytest.mark.parametrize(
    "body",
    [
        {"message": "The input is too long for this model."},
        {"error": {"message": "Your prompt is larger than the model's context size."}},
        {"detail": {"msg": "The prompt is too long: 5000 tokens", "type": "bad_input"}},
    ],
)
def test_conversation_that_is_too_long_is_known_in_words_close_to_those(body: dict[str, Any]) -> None:
    error = refused(Refusal("too long", "nobody seen yet", 400, body))
    assert (error.code, error.status) == ("context_length_exceeded", 400)


@meaning("account")
def test_refusal_of_our_own_account_is_known_and_its_words_are_not_told(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status) == ("upstream_auth", 502)
    assert error.message == "The provider did not accept the gateway's credential."
    assert not re.search(r"sk\W|sk-|\*89|abcd1234", f"{error.sentence} {error.detail} {error.provider_code}")


@meaning("spent")
def test_account_without_money_is_not_asked_again(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("upstream_rate_limited", 429, False)
    assert error.message == "The gateway's account at the provider has no quota left."
    assert "f817m9q3k3wi11gjwbgi" not in f"{error.sentence} {error.detail}"


@meaning("limited")
def test_limit_that_passes_is_known(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("upstream_rate_limited", 429, True)
    assert error.message == f"The provider is rate limiting: {error.sentence}"


@meaning("busy")
def test_provider_without_capacity_is_known(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("upstream_unavailable", 503, True)
    assert error.message == f"The provider is unavailable: {error.sentence}"


@meaning("filtered")
def test_filter_is_known(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("content_filter", 400, False)


@meaning("no model")
def test_model_that_is_not_there_keeps_the_status(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("model_not_found", refusal.status, False)
    assert error.message == error.sentence


@meaning("refused")
def test_bad_request_that_only_holds_such_a_word_stays_one(refusal: Refusal) -> None:
    error = refused(refusal)
    assert (error.code, error.status, error.retryable) == ("upstream_refused", refusal.status, False)
    assert error.message == error.sentence


PASSING = {"upstream_rate_limited", "upstream_unavailable"}
IN_STREAM = {
    "too long": {"context_length_exceeded"},
    "account": {"upstream_auth"},
    "no model": {"model_not_found"},
    "spent": {"upstream_auth", "upstream_rate_limited"},
    "limited": PASSING,
    "busy": PASSING,
    "filtered": {"content_filter"},
}


@pytest.mark.parametrize("means", IN_STREAM)
def test_same_words_as_the_first_event_of_a_stream_mean_the_same(means: str) -> None:
    for refusal in [one for one in REFUSALS if one.means == means]:
        body = refusal.body[0] if isinstance(refusal.body, list) else refusal.body
        report = body if {"error", "errors", "base_resp"} & body.keys() else {"error": body}
        error = failures.in_stream("error", msgspec.json.encode(report).decode())
        assert error is not None, refusal
        assert error.means in IN_STREAM[means], refusal
        assert error.retryable == (means in ("limited", "busy")), refusal


def test_every_row_has_a_source() -> None:
    for row in (*NAMES, *SENTENCES):
        assert "#" in row.source or ": " in row.source, row
