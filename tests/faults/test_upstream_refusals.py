"""Upstreams that cannot be reached, or answer with a status instead of a stream (U1-U10, U17, U29, U30)."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import pytest_asyncio

from gateway.core.errors import ERROR_KINDS
from tests.faults.providers import PROVIDERS, reason, refuses
from tests.faults.stage import (
    API_KEY,
    CHATS,
    DIALECTS,
    FAST,
    KINDS,
    PAGE,
    PROMPT,
    STREAMS,
    Heard,
    Stage,
    Way,
    full_port,
    once,
    stage_fixture,
    ways,
)
from tests.kit.program import free_port, throwaway_certificate
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Exchange,
    Reset,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    http_head,
    openai_answer,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

stage = stage_fixture(FAST | {"first_event": "5s"})
ONE_OF_EACH = ways(*KINDS)
OF_ALL = [*ONE_OF_EACH, *(way for dialect in DIALECTS[1:] for way in ways(*CHATS, dialect=dialect))]
"""One of each, of every dialect that a chat can speak."""


def says(what: str, **headers: str) -> Script:
    """A refusal in the words of whoever is asked; other endpoints say what OpenAI says."""

    def play(exchange: Exchange) -> Sequence[Step]:
        dialect = exchange.target.split("/")[1]
        return [refuses(dialect if dialect in PROVIDERS else "openai", what, **headers)]

    return play


def body_of(message: str, code: str = "", kind: str = "") -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "code": code}})


async def test_upstream_that_closes_or_resets_before_its_head_is_502(stage: Stage) -> None:
    for step in (Reset(), Cut()):
        stage.plays([step])
        for heard in await stage.fail_all(OF_ALL, "upstream_reset", 502):
            assert heard.error["retryable"]
        await stage.fail_all(ways(*STREAMS, committed=True), "upstream_reset", 502)


async def test_429_is_passed_on_with_its_retry_after(stage: Stage) -> None:
    stage.plays(says("rate limit", Retry_After="7"))
    for way, heard in zip(OF_ALL, await told(stage, "upstream_rate_limited", 429), strict=True):
        assert heard.error["retry_after"] == 7
        assert way.is_get or heard.headers["retry-after"] == "7"
        assert not way.is_get or 7000 < (heard.retry or 0) < 10000
    assert len(stage.upstream.exchanges) == len(OF_ALL)


async def test_429_without_retry_after(stage: Stage) -> None:
    for script in says("rate limit"), [response(429, "nope", "text/plain")]:
        stage.plays(script)
        for heard in await told(stage, "upstream_rate_limited", 429):
            assert heard.error["retry_after"] is None


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [(500, "upstream_error", 502), (503, "upstream_unavailable", 503), (502, "upstream_error", 502)],
)
async def test_5xx_is_told_without_quotes_keys_and_pages(stage: Stage, status: int, code: str, ours: int) -> None:
    stage.plays([response(status, body_of(f"failed on {PROMPT} with {API_KEY}"))])
    for heard in await told(stage, code, ours):
        assert heard.error["message"].endswith(": failed on … with …")
    stage.plays([response(status, PAGE, "text/html")])
    for heard in await told(stage, code, ours):
        assert heard.error["message"] == ERROR_KINDS[code].message


async def test_5xx_is_told_with_the_providers_own_sentence(stage: Stage) -> None:
    sentence = "model requires more system memory (5.6 GiB) than is available (3.1 GiB)"
    stage.plays([response(500, msgspec.json.encode({"error": sentence}))])
    for heard in await told(stage, "upstream_error", 502):
        assert heard.error["message"] == f"The provider failed: {sentence}"


KEYS_QUOTED = {
    "xai": '{"code":"Client specified an invalid argument","error":"Incorrect API key provided: sk***89. Get one."}',
    "anthropic": '{"error":{"type":"invalid_request_error","message":"Your credit balance is too low."}}',
    "one-api": '{"error":{"message":"无效的令牌：sk-upstream","type":"one_api_error"}}',
    "in part": '{"error":{"message":"Incorrect API key provided: sk-upstr*******wxyz."}}',
}


@pytest.mark.parametrize("provider", KEYS_QUOTED)
async def test_400_about_our_account_is_502_and_shows_no_piece_of_a_key(stage: Stage, provider: str) -> None:
    stage.plays([response(400, KEYS_QUOTED[provider])])
    asked = ways(*CHATS)
    for heard in await stage.fail_all(asked, "upstream_auth", 502, whole=True):
        assert heard.error["message"] == ERROR_KINDS["upstream_auth"].message
    for line in stage.gateway.stdout:
        assert not any(piece in line for piece in ("sk***", "sk-up", "*wxyz"))


async def test_refusal_keeps_its_status_code_and_param_for_api_clients(stage: Stage) -> None:
    stage.plays([response(413, body_of("Too large.", "request_too_large"))])
    for heard in await stage.ask_all(ways("openai", "whole")):
        assert (heard.status, heard.error["code"], heard.error["message"]) == (413, "request_too_large", "Too large.")
    error = {"message": "The model `m` does not exist.", "param": "model", "code": "model_not_found"}
    for status in (404, 400):
        stage.plays([response(status, msgspec.json.encode({"error": error}))])
        for heard in await stage.fail_all(ways(*CHATS), "model_not_found", status, whole=True):
            assert heard.error["message"] == error["message"]
            assert heard.error.get("param", "model") == "model"


async def test_429_is_told_with_the_wait_that_its_body_names(stage: Stage) -> None:
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "26s"}
    error = {
        "code": 429,
        "message": "You exceeded your current quota.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [retry],
    }
    stage.plays([response(429, msgspec.json.encode([{"error": error}]))])
    for way, heard in zip(OF_ALL, await told(stage, "upstream_rate_limited", 429), strict=True):
        assert heard.error["retry_after"] == 26
        assert way.is_get or heard.headers["retry-after"] == "26"


TOO_LONG = {
    "xai": (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
    "dashscope": (400, "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]"),
    "zhipu": (400, "Prompt exceeds max length"),
    "tgi": (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 3000 and 2000"),
    "llama-cpp-python": (500, "Requested tokens (2138) exceed context window of 2048"),
}


@pytest.mark.parametrize("provider", TOO_LONG)
async def test_too_long_is_known_in_any_providers_words(stage: Stage, provider: str) -> None:
    status, sentence = TOO_LONG[provider]
    stage.plays([response(status, body_of(sentence))])
    for heard in await stage.fail_all(ways(*CHATS), "context_length_exceeded", 400, whole=True):
        assert heard.error["message"] == sentence


async def test_too_long_is_known_as_the_first_event_of_a_stream(stage: Stage) -> None:
    error = {"code": 400, "message": "the request exceeds the size", "type": "exceed_context_size_error", "n_ctx": 512}
    event = b"data: %s\n\n" % msgspec.json.encode({"error": error})
    stage.plays([sse_head(), chunk(event), LAST_CHUNK])
    await stage.fail_all(ways(*CHATS), "context_length_exceeded", 400, whole=True)


async def test_refusal_that_quotes_the_prompt_is_told_without_the_quote(stage: Stage) -> None:
    stage.plays([response(400, body_of(f"Invalid value: {PROMPT} is no number.", "invalid_value"))])
    for heard in await stage.ask_all(ways(*CHATS)):
        assert heard.error["message"] == "Invalid value: … is no number."


@pytest.mark.parametrize(
    ("what", "code", "ours"), [("broken", "upstream_error", 502), ("overloaded", "upstream_unavailable", 503)]
)
async def test_failure_in_the_providers_words_is_told_with_one_code(
    stage: Stage, what: str, code: str, ours: int
) -> None:
    stage.plays(says(what))
    for heard in await told(stage, code, ours):
        assert heard.error["retryable"]


REASONS = {
    "context length": "context_length_exceeded",
    "content filter": "content_filter",
    "bad request": "upstream_refused",
}


@pytest.mark.parametrize("dialect", PROVIDERS)
@pytest.mark.parametrize("what", REASONS)
async def test_400_is_told_with_the_providers_reason(stage: Stage, what: str, dialect: str) -> None:
    stage.plays(says(what))
    for heard in await stage.fail_all(ways(*CHATS, dialect=dialect), REASONS[what], 400, whole=True):
        assert not heard.error["retryable"]
        assert heard.error["message"] == reason(dialect, what)
    committed = ways("openai", "chat", "eventsource", dialect=dialect, committed=True)
    await stage.fail_all(committed, REASONS[what], 400, whole=True)


@pytest.mark.parametrize("what", ["refused key", "forbidden"])
async def test_refused_key_is_502_and_says_nothing_of_the_key(stage: Stage, what: str) -> None:
    quoting = response(401, body_of(f"Incorrect API key: {API_KEY}", "invalid_api_key"))
    for script in says(what), [quoting]:
        stage.plays(script)
        for heard in await told(stage, "upstream_auth", 502):
            assert "www-authenticate" not in heard.headers
            assert not heard.error["retryable"]


NO_STREAMS: dict[str, bytes] = {
    "json error": response(200, body_of(f"{PAGE} {PROMPT}")),
    "page": response(200, PAGE, "text/html"),
    "redirect": response(302, PAGE, "text/html", Location="http://127.0.0.1:1/private"),
    "no content": http_head(204, "text/event-stream"),
    "no type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", NO_STREAMS)
async def test_answer_that_is_no_stream_is_502_and_shows_nothing_of_it(stage: Stage, answer: str) -> None:
    stage.plays([NO_STREAMS[answer], Cut()])
    typed = [dialect for dialect in DIALECTS if (answer, dialect) != ("no type", "text")]  # which wants none
    asked = [way for dialect in typed for way in ways(*CHATS, dialect=dialect)]
    await stage.fail_all(asked, "upstream_protocol", 502)
    await stage.fail_all(ways("openai", "chat", "eventsource", committed=True), "upstream_protocol", 502)
    if answer != "no content":  # which tells an EventSource to stop
        await stage.fail_all(ways("proxy-get"), "upstream_protocol", 502)


async def test_endless_page_is_not_read_for_ever(stage: Stage) -> None:
    stage.plays([http_head(500, "text/html"), PAGE.encode() * 200_000, Cut()])
    await stage.fail_all(ways(*CHATS), "upstream_error", 502)


async def told(stage: Stage, code: str, status: int) -> list[Heard]:
    """Every way to ask gets this failure, before and after the headers are committed."""
    await stage.fail_all(ways(*STREAMS, committed=True), code, status, whole=True)
    stage.upstream.exchanges.clear()
    return await stage.fail_all(OF_ALL, code, status, whole=True)


async def test_gateway_goes_on_after_all_this(stage: Stage) -> None:
    stage.plays(openai_answer("Hi"))
    await stage.complete_all(ways(*CHATS), "Hi")


@pytest.mark.parametrize("answer", [http_head(204), response(404, "{}"), response(200, "{}"), response(302, "")])
async def test_answer_that_is_no_stream_comes_too_late_for_a_committed_proxy(stage: Stage, answer: bytes) -> None:
    stage.plays([answer, Cut()])
    await stage.fail_all(ways("proxy", "proxy-get", committed=True), "upstream_protocol", 502)


# Upstreams that no connection can be made to, each at /<kind>/<name>.


def tls_server(directory: Path, name: str) -> ScriptedUpstream:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*throwaway_certificate(directory, name))
    return ScriptedUpstream([b"".join(step for step in openai_answer("Hi") if isinstance(step, bytes))], tls=context)


async def speak_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()
    await writer.wait_closed()


class Nowhere(NamedTuple):
    stage: Stage
    secure: list[ScriptedUpstream]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nowhere(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nowhere]:
    directory = tmp_path_factory.mktemp("nowhere")
    async with AsyncExitStack() as stack:
        full = stack.enter_context(full_port())
        known = await stack.enter_async_context(tls_server(directory, "known.example"))
        stranger = await stack.enter_async_context(tls_server(directory, "stranger.example"))
        plain = await stack.enter_async_context(await asyncio.start_server(speak_plainly, "127.0.0.1", 0))
        urls = {
            "refused": f"http://127.0.0.1:{free_port()}",
            "hanging": f"http://127.0.0.1:{full}",
            "nameless": "http://no-such-host.invalid",
            "self-signed": stranger.url,
            "wrong-name": known.url.replace("127.0.0.1", "localhost"),
            "no-tls": f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}",
            "known": known.url,
            "unchecked": stranger.url,
        }
        upstreams = {
            name: {"dialect": "openai", "targets": [{"url": url}], "verify_tls": name != "unchecked"} | once()
            for name, url in urls.items()
        }
        routes = [
            {"path": f"/{kind}/{name}", "api": kind, "upstream": name}
            for name in urls
            for kind in ("openai", "chat", "proxy")
        ]
        timeouts = FAST | {"connect": "600ms", "first_event": "2s"}
        trust = {"SSL_CERT_FILE": str(directory / "known.example.pem")}
        opened = Stage.opened(directory, timeouts, env=trust, upstreams=upstreams, routes=routes)
        yield Nowhere(await stack.enter_async_context(opened), [known, stranger])


def to(name: str) -> list[Way]:
    return [way._replace(path=f"/{way.route}/{name}") for way in ONE_OF_EACH]


@pytest.mark.alone
@pytest.mark.parametrize("name", ["refused", "nameless"])
async def test_refused_connection_is_502_at_once(nowhere: Nowhere, name: str) -> None:
    began = asyncio.get_running_loop().time()
    await nowhere.stage.fail_all(to(name), "upstream_unreachable", 502)
    assert asyncio.get_running_loop().time() - began < 1


@pytest.mark.alone
async def test_connection_that_nobody_accepts_is_given_up_in_time(nowhere: Nowhere) -> None:
    began = asyncio.get_running_loop().time()
    await nowhere.stage.fail_all(to("hanging"), "upstream_unreachable", 502)
    assert 0.2 < asyncio.get_running_loop().time() - began < 1.5


@pytest.mark.parametrize("name", ["self-signed", "wrong-name", "no-tls"])
async def test_untrusted_tls_is_502_and_told_in_the_log_only(nowhere: Nowhere, name: str) -> None:
    for heard in await nowhere.stage.fail_all(to(name), "upstream_tls", 502):
        assert "127.0.0.1" not in heard.body
        assert "ertificate" not in heard.body
        line = await nowhere.stage.gateway.logged("stream_failed", request_id=heard.request_id)
        assert "SSL" in line["detail"] or "ertificate" in line["detail"]
    assert not any(server.exchanges for server in nowhere.secure)


async def test_trusted_tls_works_and_unchecked_only_where_configured_so(nowhere: Nowhere) -> None:
    await nowhere.stage.complete_all(to("known"), "Hi")
    await nowhere.stage.complete_all(to("unchecked"), "Hi")
