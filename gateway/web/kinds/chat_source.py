"""How chat and openai routes ask an upstream: a canonical chat request in, a source for the pump out."""

import time
from typing import Any

import aiohttp
from aiohttp import hdrs

from gateway.core.errors import GatewayError
from gateway.dialects.base import Answer, Call
from gateway.upstream.http import plain_headers, read_error_body
from gateway.upstream.pool import Target, Upstream


class ChatSource:
    """Asks with an OpenAI-shaped chat request, translated to the upstream's dialect.

    Args:
        chat: the request; its `model` gives way to the target's and the upstream's own.
        keep_chunks: whether an OpenAI upstream's chunks are kept to the letter.
        keep_usage: whether its extra usage chunk is kept too.
    """

    repeatable = True

    def __init__(self, chat: dict[str, Any], *, keep_chunks: bool = False, keep_usage: bool = False) -> None:
        self._chat = chat
        self._keep_chunks = keep_chunks
        self._keep_usage = keep_usage
        choices = chat.get("n")
        self._choices = max(1, choices) if isinstance(choices, int) else 1

    def call(self, upstream: Upstream, target: Target, prefix: str) -> Call:
        """The request for this target, the configured headers laid over the dialect's."""
        config = upstream.config
        model = target.model or config.model or self._chat.get("model")
        chat = {**self._chat, "model": model} if model else self._chat
        if not upstream.dialect.wants_session:
            chat = {key: value for key, value in chat.items() if key != "session_id"}
        if prefix:
            chat = upstream.dialect.prefilled(chat, prefix)
        call = upstream.dialect.call(chat, target.url, config.api_key)
        return Call(call.method, call.url, {**call.headers, **config.headers}, call.body)

    async def accept(self, upstream: Upstream, response: aiohttp.ClientResponse, *, canonical: bool) -> Answer:
        """The reader of the answer.

        Raises:
            GatewayError: the provider refused, or what it answered is no stream of its dialect.
        """
        dialect = upstream.dialect
        if response.status != 200:
            await _refuse(upstream, response)
        check_encoding(response)
        if response.content_type not in dialect.stream_types:
            await _judge_other(upstream, response)
        answer = dialect.answer(keep_chunks=self._keep_chunks and not canonical, keep_usage=self._keep_usage)
        answer.choices = self._choices
        return answer


async def _judge_other(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    # Some servers report an error with status 200 and a JSON body; its reason is worth more than "no stream".
    body = await read_error_body(response) if response.content_type == "application/json" else b""
    refusal = upstream.dialect.refusal(400, plain_headers(response.headers), body, now=time.time())
    if refusal.code in ("context_length_exceeded", "content_filter"):
        raise refusal
    raise GatewayError("upstream_protocol", detail=f"status 200 with {response.content_type}")


async def _refuse(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        raise GatewayError("upstream_protocol", detail=f"status {response.status}; redirects are not followed")
    body = await read_error_body(response)
    raise upstream.dialect.refusal(response.status, plain_headers(response.headers), body, now=time.time())


def check_encoding(response: aiohttp.ClientResponse) -> None:
    """Returns when the body is not encoded, as was asked.

    Raises:
        GatewayError: `upstream_encoding`.
    """
    coding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding not in ("identity", ""):
        raise GatewayError("upstream_encoding", detail=f"Content-Encoding: {coding}")


def estimate_tokens(messages: object, tools: object = None) -> int:
    """Tokens of a prompt, guessed from its text: a quarter of its bytes, and a few for every message."""
    return _bytes(messages) // 4 + _bytes(tools) // 4 + (4 * len(messages) if isinstance(messages, list) else 0)


def _bytes(value: object) -> int:
    # Iterative: what a client nests must not decide how deep this goes.
    size, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            size += len(item.encode("utf-8", "replace")) if not item.startswith("data:") else 4096
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
    return size
