"""What a provider said, less keys, pages, traces and quotes of the request."""

import html
import json
import re
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import sentence as rules
from gateway.core.errors import GatewayError
from gateway.core.sentence import MARK, MAX_REQUEST, MAX_SENTENCE, hiding_quotes, plain, without_keys


def without_quotes(sentence: str, request: bytes) -> str:
    """The result of all steps."""
    steps = hiding_quotes(sentence, request)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return str(ended.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Incorrect API key provided: sk***89. You can get one.", "Incorrect API key provided: … You can get one."),
        ("Incorrect API key provided: topsecretword.", "Incorrect API key provided: …"),
        ("Authentication Fails, Your api key: ****97fe is invalid", "Authentication Fails, Your api key: … is invalid"),
        (
            "Received API Key = sk-...5678, Key Hash (Token) =88dc28d0f030c55ed4ab",
            "Received API Key = …, Key Hash (Token) …",
        ),
        ("Your account org-1 <ak-f817m9q3k3wi11gjwbgi> is suspended", "Your account org-1 <…> is suspended"),
        ("该令牌 sk-abcd1234efgh5678 已过期", "该令牌 … 已过期"),
        ("无效的令牌：abc123xyz，请检查", "无效的令牌：…，请检查"),
        ("API密钥abc12345def678无效", "API密钥…无效"),
        ("bad key AIzaSyAJaC2_HRoQlWYanWPm2S-x.", "bad key …."),
        ("bad key QwErTyUiOpAsDfGhJkL", "bad key …"),
        ("The key ending in cdef is invalid", "The key ending in … is invalid"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJrZXkiOiJrZXk1.KP-50yQ refused", "token … refused"),
        ("Bearer abcd1234 was refused; a Bearer token is needed", "Bearer … was refused; a Bearer token is needed"),
        ("see https://me:word@host/path?key=abc for more", "see https://host/path for more"),
        ("The model `meta-llama/Llama-3.3-70B-Instruct` does not exist", None),
        ("gpt-4o-mini-2024-07-18, claude-3-5-sonnet-20241022, continue_final_message, context_length_exceeded", None),
        ("model requires more system memory (5.6 GiB) than is available (3.1 GiB)", None),
        ("InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]", None),
        ("AccessDeniedUnpurchasedException: max_completion_tokens", None),
        ("<!DOCTYPE html><title>x</title>", ""),
        ("It broke.\nTraceback (most recent call last):\n  File", "It broke."),
        ("It broke.\n    at run (/srv/app/index.js:12:3)", "It broke."),
        ("a\x00b\r\nc", "a b c"),
    ],
)
def test_sentence_is_told_without_keys_pages_and_traces(text: str, told: str | None) -> None:
    assert plain(text) == (text if told is None else told)


def test_sentence_is_bounded() -> None:
    assert len(plain("word " * 9999)) <= MAX_SENTENCE


def test_known_key_is_hidden_however_it_looks() -> None:
    assert without_keys("the key plainword is bad", "plainword") == "the key … is bad"
    assert without_keys("ollama is down", "ollama") == "ollama is down"


@given(st.text(max_size=3000))
def test_any_text_becomes_one_line(text: str) -> None:
    told = plain(text)
    assert len(told) <= MAX_SENTENCE
    assert "\n" not in told


def asked(*contents: Any, **more: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return msgspec.json.encode({"model": "gpt-4o", "messages": messages} | more)


SYSTEM = "You are a secret agent, code name Falke."


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        (f"failed on {SYSTEM} Sorry", "failed on … Sorry"),
        ("failed on You are a secret age...", "failed on …..."),
        ("twice You are a secret agent and You are a secret agent", "twice … and …"),
        ('messages = [{"content": "one\\ntwo \\"three\\" four five"}]', 'messages = [{"content": "…"}]'),
        ("Invalid: geheim 42!", "Invalid: …!"),
        ("Invalid value: 'secret agent'.", "Invalid value: '…'."),
        ("Invalid value: 'ok'.", "Invalid value: '…'."),
        ("不能处理：请把这封信翻译成英文，谢谢", "不能处理：…"),
        ("The model `gpt-4o` does not exist. Unknown parameter: 'max_completion_tokens'.", None),
        ("This model's maximum context length is 8192 tokens.", None),
        ("Function 'get_weather' is not valid.", None),
        ("Unsupported value: 'extremely high' for reasoning_effort.", None),
    ],
)
def test_quotes_of_the_request_are_hidden(sentence: str, told: str | None) -> None:
    parts = [{"type": "text", "text": 'one\ntwo "three" four five'}]
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "d"}}]
    contents = (SYSTEM, parts, "geheim 42", "ok", "请把这封信翻译成英文，谢谢")
    request = asked(*contents, max_completion_tokens=5, tools=tools, reasoning_effort="extremely high")
    assert without_quotes(sentence, request) == (sentence if told is None else told)


PROMPT = 'My patient Ångström has 糖尿病 and owes "five" thousand'
ESCAPED = {
    "another case": PROMPT.lower(),
    "HTML": html.escape(PROMPT),
    "a URL": quote(PROMPT),
    "a form": quote_plus(PROMPT),
    "JSON": json.dumps(PROMPT),
    "JSON in JSON": json.dumps(json.dumps(PROMPT)),
    "Python": PROMPT.encode("unicode_escape").decode(),
    "bytes of Python": repr(PROMPT.encode()),
}


@pytest.mark.parametrize("written", ESCAPED.values(), ids=ESCAPED)
def test_quote_is_hidden_however_it_is_escaped(written: str) -> None:
    told = without_quotes(f"Invalid input: {written} is bad", json.dumps({"messages": [{"content": PROMPT}]}).encode())
    assert told.strip('"') != written
    assert not {"patient", "five", "thousand"} & set(re.findall(r"[a-z]+", told.lower()))
    assert "is bad" in told


@pytest.mark.parametrize("piece", ["COMPANY-2024-ALPHA", "company-2024", "2024-alpha", "'mpany-2024'"])
def test_pieces_of_a_known_key_are_hidden(piece: str) -> None:
    assert (
        without_keys(f"the key {piece} is bad", "company-2024-alpha").strip("'").replace("'", "") == "the key … is bad"
    )


def test_plain_words_of_a_header_are_no_pieces_of_a_key() -> None:
    assert without_keys("no application/xml here", "application/json") == "no application/xml here"


def test_quotes_of_a_request_that_is_no_json_are_hidden() -> None:
    assert without_quotes("no: message=hello world, and more", b"message=hello world, and more") == "no: …"
    assert without_quotes("no request", b"") == "no request"


@given(st.text(min_size=20, max_size=400), st.integers(0, 300), st.integers(15, 60))
def test_every_quote_of_fifteen_bytes_is_found(content: str, start: int, length: int) -> None:
    content = " ".join(content.split())
    quote = content[start % max(1, len(content)) :][:length].strip()
    if len(quote.encode("utf-8", "replace")) < 15 or "\\" in quote or MARK in quote:
        return
    told = without_quotes(f"x {quote} y", asked(content))
    assert quote not in told


def test_request_that_is_too_long_or_too_nested_leaves_nothing_of_the_sentence() -> None:
    assert without_quotes("a sentence", asked("x" * MAX_REQUEST)) == MARK
    assert without_quotes("a sentence", msgspec.json.encode([[1]] * 30_000)) == MARK
    assert without_quotes("aaaaaaaaaa" * 90, asked("a" * 1_000_000)) == MARK


REQUESTS = {
    "one text": asked("The quick brown model exceeds the maximum context length of messages. " * 55_000),
    "many texts": asked(*["The quick brown fox jumps over the lazy dog. " * 88] * 1000),
    "short texts": asked(*[f"word number {number} is here and there" for number in range(9900)]),
    "no white space": asked("QUJDRA" * 650_000),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_others_have_their_turn_while_quotes_are_looked_for(request_: str) -> None:
    """A step reads at most `STEP` characters: of four times as many, there are a quarter of the steps. So the work is
    bounded, and none of it but the parsing is done at a stretch."""

    def steps() -> int:
        told = "However, your messages resulted in 9001 tokens, too many for the maximum context length."
        return sum(1 for _ in hiding_quotes(told, REQUESTS[request_]))

    whole = steps()
    # The texts are read once for their spaces, and twice for quotes; a value by itself counts as 64 characters.
    size = len(REQUESTS[request_]) + 64 * 2 * 10_000
    assert 10 < whole <= 3 * (size // rules.STEP + 1) + 2 * (rules.MAX_PAIRS // 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "STEP", rules.STEP // 4)
        assert steps() > 2.5 * whole


@given(st.text(alphabet=" ab\n\u3000", min_size=20, max_size=80), st.integers(8, 20))
def test_quotes_are_found_however_the_work_is_parted(content: str, step: int) -> None:
    sentence = f"Refused: {' '.join(content.split())[:40]} and so on"
    whole = without_quotes(sentence, asked(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "STEP", step)
        assert without_quotes(sentence, asked(content)) == whole


@pytest.mark.parametrize("code", ["The_Secret_Garden_Party", "the-secret-garden-party", "TheSecretGardenParty"])
def test_code_that_is_made_of_a_request_is_hidden_however_its_words_are_joined(code: str) -> None:
    error = GatewayError(code, "No.", detail=f"HTTP 400 {code}", provider_code=code)
    for _ in error.hiding(lambda said: hiding_quotes(said, b'{"messages":[{"content":"the secret garden party"}]}')):
        pass
    assert (error.code, error.detail, error.provider_code) == ("upstream_error", "HTTP 400 …", "")
