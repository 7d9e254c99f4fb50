"""Refusals in the words of real servers, and what of the gateway's additions each of them is about."""

import pytest

from gateway.core.blame import DEVELOPER, PREFIX, STREAM, blamed

OPTIONS = {"stream_options"}

NAMED = [
    '{"error":{"message":"Unknown parameter: \'stream_options\'.","param":"stream_options","code":"unknown"}}',
    '{"message":{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs are not '
    'permitted"}]}}',
    'json: unknown field "stream_options"',
    '{"error":"extraneous key [include_usage] is not permitted"}',
    "Validation error at #/stream_options: Extra inputs are not permitted",
    '{"detail":"Streaming options are no option here: include_usage"}',
]
VAGUE = [
    '{"detail":[{"msg":"Extra inputs are not permitted"}]}',
    '{"message":"Additional properties are not allowed"}',
    '{"error":{"message":"Unrecognized request argument supplied"}}',
    '{"error":"Bad Request"}',
    '{"error":{"message":"Invalid request","type":"invalid_request_error","param":null,"code":null}}',
    "Unprocessable Entity",
    "{}",
    "",
]
OTHERS = [
    '{"error":{"message":"Invalid value for \'tools[0].type\'.","param":null}}',
    '{"error":{"message":"Unknown parameter: \'tools\'.","param":"tools"}}',
    '{"detail":[{"loc":["body","messages",0,"name"],"msg":"Extra inputs are not permitted"}]}',
    '{"error":"the model does not support images"}',
    "<html><h1>Sorry</h1></html>",
]


@pytest.mark.parametrize("words", NAMED)
def test_refusal_that_names_an_addition_is_about_it(words: str) -> None:
    assert blamed(words, OPTIONS, own={"messages"}, taken=OPTIONS) == OPTIONS


@pytest.mark.parametrize("words", VAGUE)
def test_refusal_that_says_little_is_about_additions_that_were_never_taken(words: str) -> None:
    assert blamed(words, OPTIONS, own={"messages", "tools"}) == OPTIONS
    assert blamed(words, OPTIONS, own={"messages", "tools"}, taken=OPTIONS) == set()


@pytest.mark.parametrize("words", OTHERS)
def test_refusal_of_something_of_the_clients_own_is_not_about_additions(words: str) -> None:
    assert blamed(words, OPTIONS, own={"messages", "tools"}) == set()


def test_vague_refusal_is_about_one_addition_after_the_other() -> None:
    assert blamed("Unknown field", {"stream_options", "seed"}) == {"stream_options"}
    assert blamed("Unknown field", {"seed"}) == {"seed"}
    assert blamed("Unsupported parameter: 'seed'", {"stream_options", "seed"}) == {"seed"}


@pytest.mark.parametrize(
    "words",
    [
        "messages[0].role: unknown variant `developer`, expected one of `system`, `user`, `assistant`, `tool`",
        "developer is not one of ['system', 'assistant', 'user', 'tool', 'function'] - 'messages.['0].role'",
        "chat template rejected the request: Unexpected message role.",
        "[1214] Incorrect role information",
    ],
)
def test_refusal_of_a_role_is_about_the_developer(words: str) -> None:
    assert blamed(words, {DEVELOPER, "stream_options"}, own={"messages"}) == {DEVELOPER}


@pytest.mark.parametrize(
    "words",
    [
        '{"error":{"message":"Your organization must be verified to stream this model.","param":"stream"}}',
        "Streaming is not supported for this model.",
        "This model does not support streaming",
        "Streaming isn't available for this model",
        "stream must be false",
        "Please set 'stream' to false.",
    ],
)
def test_refusal_of_a_stream_is_about_it(words: str) -> None:
    assert blamed(words, {STREAM, "stream_options"}, own={"messages"}) == {STREAM}


def test_refusal_of_something_else_is_not_about_the_stream() -> None:
    for words in ("only stream mode is supported", "enable_thinking must be set to false for non-streaming calls"):
        assert blamed(words, {STREAM, "stream_options"}, own={"enable_thinking"}) == set()


def test_refusal_of_stream_options_is_not_about_the_stream() -> None:
    for words in ("stream_options is not supported", "stream options are not supported"):
        assert blamed(words, {STREAM, "stream_options"}) == {"stream_options"}


def test_refusal_of_a_prefix_is_about_it() -> None:
    words = "Unrecognized request argument supplied: continue_final_message"
    assert blamed(words, {PREFIX, "stream_options"}, own={"messages"}) == {PREFIX}
