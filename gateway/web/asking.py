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
        upstream: who is asked.
        chat: the request; its `model` gives way to the target's and the upstream's own.
        keep_chunks: whether an OpenAI upstream's chunks are kept to the letter.
        keep_usage: whether its extra usage chunk is kept too.
    """

    def __init__(
        self, upstream: Upstream, chat: dict[str, Any], *, keep_chunks: bool = False, keep_usage: bool = False
    ) -> None:
        self._upstream = upstream
        self._chat = chat
        self._keep_chunks = keep_chunks
        self._keep_usage = keep_usage

    def call(self, target: Target) -> Call:
        """The request for this target, the configured headers laid over the dialect's."""
        config = self._upstream.config
        model = target.model or config.model or self._chat.get("model")
        chat = {**self._chat, "model": model} if model else self._chat
        call = self._upstream.dialect.call(chat, target.url, config.api_key)
        return Call(call.method, call.url, {**call.headers, **config.headers}, call.body)

    async def accept(self, response: aiohttp.ClientResponse) -> Answer:
        """The reader of the answer.

        Raises:
            GatewayError: the provider refused, or what it answered is no stream of its dialect.
        """
        dialect = self._upstream.dialect
        if response.status != 200:
            await _refuse(self._upstream, response)
        check_encoding(response)
        if response.content_type not in dialect.stream_types:
            await self._judge_other(response)
        return dialect.answer(keep_chunks=self._keep_chunks, keep_usage=self._keep_usage)

    async def _judge_other(self, response: aiohttp.ClientResponse) -> None:
        # Some servers report an error with status 200 and a JSON body; its reason is worth more than "no stream".
        body = await read_error_body(response) if response.content_type == "application/json" else b""
        refusal = self._upstream.dialect.refusal(400, plain_headers(response.headers), body, now=time.time())
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
