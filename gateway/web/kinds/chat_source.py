"""How chat and openai routes ask an upstream: a chat request becomes a source for the pump. And what a prompt costs."""

import time
from typing import Any

import aiohttp
from aiohttp import hdrs

from gateway.core.errors import GatewayError
from gateway.dialects.base import Answer, Call
from gateway.upstream.http import plain_headers, read_error_body
from gateway.upstream.pool import Target, Upstream


class ChatSource:
    """Asks with a chat request in OpenAI's shape, translated to the upstream's dialect.

    Args:
        chat: the request. Its `model` is used where neither the target nor the upstream names one.
        keep_chunks: whether the chunks of an OpenAI upstream are kept unchanged.
        keep_usage: whether its extra usage chunk is kept, too.
    """

    repeatable = True

    def __init__(self, chat: dict[str, Any], *, keep_chunks: bool = False, keep_usage: bool = False) -> None:
        self._chat = chat
        self._keep_chunks = keep_chunks
        self._keep_usage = keep_usage
        choices = chat.get("n")
        self._choices = max(1, choices) if isinstance(choices, int) else 1

    def call(self, upstream: Upstream, target: Target, prefix: str) -> Call:
        """The request for this target. Configured headers replace those of the dialect."""
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
        """What reads the answer's body.

        Raises:
            GatewayError: the provider refused, or its answer is no stream of its dialect.
        """
        dialect = upstream.dialect
        if response.status != 200:
            if response.status < 400:
                raise GatewayError(
                    "upstream_protocol",
                    detail=f"status {response.status}; redirects are not followed",
                    upstream_status=response.status,
                )
            body = await read_error_body(response)
            raise dialect.refusal(response.status, plain_headers(response.headers), body, now=time.time())
        check_encoding(response)
        if response.content_type not in dialect.stream_types:
            # Some servers report an error with status 200 and a JSON body; its reason is worth more than "no stream".
            body = await read_error_body(response) if response.content_type == "application/json" else b""
            refusal = dialect.refusal(400, plain_headers(response.headers), body, now=time.time())
            refusal.upstream_status = response.status
            if refusal.code not in ("upstream_refused", "upstream_protocol"):
                raise refusal
            raise GatewayError(
                "upstream_protocol",
                detail=f"status 200 with {response.content_type}",
                sentence=refusal.sentence,
                upstream_status=response.status,
            )
        answer = dialect.answer(keep_chunks=self._keep_chunks and not canonical, keep_usage=self._keep_usage)
        answer.choices = self._choices
        return answer


def check_encoding(response: aiohttp.ClientResponse) -> None:
    """Returns when the body has no content coding; the gateway asks for none.

    Raises:
        GatewayError: `upstream_encoding`.
    """
    coding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding not in ("identity", ""):
        raise GatewayError("upstream_encoding", detail=f"Content-Encoding: {coding}")


def estimate_tokens(messages: object, tools: object = None) -> int:
    """Tokens of a prompt, estimated from its text: a quarter of its bytes, and 4 for every message."""
    return _bytes(messages) // 4 + _bytes(tools) // 4 + (4 * len(messages) if isinstance(messages, list) else 0)


def _bytes(value: object) -> int:
    # A loop and no recursion, so that the nesting of a client's request does not decide the depth of our stack.
    size, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            # A `data:` URL is an image; what it costs does not depend on its bytes.
            size += len(item.encode("utf-8", "replace")) if not item.startswith("data:") else 4096
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
    return size
