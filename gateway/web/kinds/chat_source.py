"""How chat and openai routes ask an upstream: a chat request becomes a source for the pump. And what a prompt costs."""

import re
import secrets
import string
import time
from collections.abc import Iterable
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import hdrs

from gateway.core.blame import DEVELOPER, MAX_WORDS, STREAM
from gateway.core.errors import GatewayError
from gateway.core.few import shared
from gateway.dialects.base import BYTES_PER_TOKEN, NO_NAMES, Answer, Call, amended
from gateway.upstream.http import plain_headers, read_error_body
from gateway.upstream.pool import Target, Upstream

LIMITS: Final = ("max_completion_tokens", "max_tokens")
"""Two names of one parameter; providers refuse a request with both."""
ALL_LIMITS: Final = (*LIMITS, "num_predict")
"""With Ollama's own name of it, which stands in `options` or beside them. 0 and less are no limits there."""
_WITH_ANSWERS: Final = frozenset({200, 201, 202, 203, 206})
"""Statuses of an answer; some frameworks give 201 to every POST. What the body holds says the rest."""
IMAGE: Final = 4096
"""Bytes that an image counts at least, in the request or behind a URL; about a thousand tokens."""
IMAGE_SHARE: Final = 64
"""The part of its bytes that an image counts besides: a larger one costs more."""
_IMAGE: Final = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,")
_BASE64: Final = (string.ascii_letters + string.digits + "+/=\r\n").encode()
_encode: Final = msgspec.json.Encoder().encode
_NO_PARAMETERS: Final = frozenset({"model", "stream"})


class ChatSource:
    """Asks with a chat request in OpenAI's shape, translated to the upstream's dialect.

    A request has three sources, each stronger than the one before: what the gateway adds of its own accord, less what
    the target has refused; the client's own request; and the configuration's `omit`.

    Args:
        chat: the request. Its `model` is used where neither the target nor the upstream names one; where it is empty
            too, the first model of the target's own list, if that is known.
        keep_chunks: whether the chunks of an OpenAI upstream are kept unchanged.
        keep_usage: whether its extra usage chunk is kept, too.
        plain: whether the client wants one whole answer. It is asked for as such where the upstream's `whole` says so,
            and an OpenAI upstream's answer is passed on to the letter.
        session_id: the session that the chat belongs to, for dialects that want to know it; "" for none.
    """

    repeatable = True

    def __init__(
        self,
        chat: dict[str, Any],
        *,
        keep_chunks: bool = False,
        keep_usage: bool = False,
        plain: bool = False,
        session_id: str = "",
    ) -> None:
        # An empty name is no name: some servers look for a model that is called so.
        self._chat = chat if chat.get("model") else {key: value for key, value in chat.items() if key != "model"}
        self._session_id = session_id
        self._keep_chunks = keep_chunks
        self._keep_usage = keep_usage
        self._plain = plain
        self._own = shared(frozenset(name for name in chat if name not in _NO_PARAMETERS))
        self._call_ids = _call_ids(chat.get("messages"))
        choices = chat.get("n")
        self._choices = max(1, choices) if isinstance(choices, int) else 1

    def call(
        self, upstream: Upstream, target: Target, prefix: str, *, delivered: int = 0, without: frozenset[str] = NO_NAMES
    ) -> Call:
        """The request for this target. Configured headers replace those of the dialect."""
        config, dialect = upstream.config, upstream.dialect
        model: str = target.model or config.model or self._chat.get("model") or target.models.first or ""
        withheld = target.withheld.of(model) | without
        streams = self._chat.get("stream") is True  # the client itself asks for a stream
        plain = (self._plain and config.whole == "plain") or (STREAM in withheld and not streams)
        params = {
            name: value
            for name, value in config.params.items()
            if name not in withheld
            and not (plain and name == "stream_options")
            and not any(self._chat.get(alias) is not None for alias in _aliases(name))
        }
        beside = {name: value for name, value in params.items() if not dialect.reads(name)}
        chat = self._chat | {name: value for name, value in params.items() if name not in beside}
        if model:
            chat["model"] = model
        if self._session_id and dialect.wants_session:
            chat["session_id"] = self._session_id
        left = {*config.omit, *(withheld & dialect.derives)}
        chat = {name: value for name, value in chat.items() if name not in left}
        if DEVELOPER in withheld:
            chat["messages"] = _without_developer(chat["messages"])
        if prefix:
            chat = dialect.prefilled(_less(chat, delivered), prefix)
        # A dialect that only ever streams need not know that there is anything else.
        call = dialect.call(chat, target.asked_url, config.api_key, **({"plain": True} if plain else {}))
        # The gateway's addition to something of the client's own is taken back; the client's own stays.
        refused = call.added & withheld
        restored = {name: chat[name] for name in refused if name in chat}
        body = call.body
        if restored or beside or refused or config.omit:
            without = (refused - restored.keys()) | set(config.omit)
            body = amended(body, beside=beside, instead=restored, without=without)
        added = (call.added - refused - set(config.omit)) | frozenset(params)
        if not (plain or streams):
            added |= {STREAM}
        if dialect.keeps_chats and DEVELOPER not in withheld and _has_developer(chat["messages"]):
            added |= {DEVELOPER}
        return msgspec.structs.replace(
            call, headers={**call.headers, **config.headers}, body=body, model=model, added=shared(added), own=self._own
        )

    def names_no_model(self, upstream: Upstream, target: Target) -> bool:
        """Whether neither the client nor the configuration names a model for this target."""
        return not (target.model or upstream.config.model or self._chat.get("model"))

    async def accept(self, upstream: Upstream, response: aiohttp.ClientResponse, *, canonical: bool) -> Answer:
        """What reads the answer's body.

        Raises:
            GatewayError: the provider refused, or its answer is no stream of its dialect.
        """
        dialect = upstream.dialect
        if response.status not in _WITH_ANSWERS:
            if response.status < 400:
                raise GatewayError(
                    "upstream_protocol",
                    detail=f"status {response.status}; redirects are not followed",
                    upstream_status=response.status,
                )
            body = await read_error_body(response)
            refusal = dialect.refusal(response.status, plain_headers(response.headers), body, now=time.time())
            refusal.words = body[:MAX_WORDS].decode("utf-8", "replace")
            raise refusal
        check_encoding(response)
        kind = "" if hdrs.CONTENT_TYPE not in response.headers else response.content_type
        if not dialect.accepts(kind):
            # Some servers report an error with status 200 and a JSON body; its reason is worth more than "no stream".
            body = await read_error_body(response) if kind == "application/json" else b""
            refusal = dialect.refusal(400, plain_headers(response.headers), body, now=time.time())
            refusal.upstream_status = response.status
            if refusal.code not in ("upstream_refused", "upstream_protocol"):
                raise refusal
            raise GatewayError(
                "upstream_protocol",
                detail=f"status 200 with {kind}",
                sentence=refusal.sentence,
                upstream_status=response.status,
            )
        answer = dialect.answer(
            keep_chunks=self._keep_chunks and not canonical, keep_usage=self._keep_usage, plain=self._plain
        )
        answer.choices = self._choices
        answer.labelled = kind in dialect.stream_types
        answer.may_be_empty = upstream.config.end == "marker" or answer.eof_ends
        answer.salt = secrets.token_hex(4)
        answer.taken = self._call_ids
        return answer


def _aliases(parameter: str) -> tuple[str, ...]:
    return LIMITS if parameter in LIMITS else (parameter,)


def _less(chat: dict[str, Any], delivered: int) -> dict[str, Any]:
    """The chat with what is left of its limit behind so many tokens, which is at least 1."""
    less = dict(chat)
    options = chat.get("options")
    if isinstance(options, dict):
        less["options"] = options = dict(options)
    for place in (less, options) if isinstance(options, dict) else (less,):
        for name in ALL_LIMITS:
            limit = place.get(name)
            if isinstance(limit, int) and limit > 0:
                place[name] = max(1, limit - delivered)
    return less


def _has_developer(messages: list[Any]) -> bool:
    return any(isinstance(message, dict) and message.get("role") == DEVELOPER for message in messages)


def _without_developer(messages: list[Any]) -> list[Any]:
    """The messages with the role `system`, which all servers know, in place of its newer name."""
    return [
        {**message, "role": "system"} if isinstance(message, dict) and message.get("role") == DEVELOPER else message
        for message in messages
    ]


def _call_ids(messages: object) -> frozenset[str]:
    """The ids of the tool calls in a conversation."""
    ids: set[str] = set()
    for message in messages if isinstance(messages, list) else ():
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                ids.add(call["id"])
    return frozenset(ids) or NO_NAMES


def check_encoding(response: aiohttp.ClientResponse) -> None:
    """Returns when the body has no content coding; the gateway asks for none.

    Raises:
        GatewayError: `upstream_encoding`.
    """
    coding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding not in ("identity", ""):
        raise GatewayError("upstream_encoding", detail=f"Content-Encoding: {coding}")


def estimate_tokens(chat: dict[str, Any]) -> int:
    """Tokens of a chat request, estimated: a quarter of the bytes that a provider is sent, whatever they are.

    Only an image counts otherwise: a model sees its pixels and not its bytes.
    """
    return (len(_encode(chat)) - _bytes_beside_pixels(chat.get("messages"))) // BYTES_PER_TOKEN


def added_tokens(chain: Iterable[Upstream]) -> int:
    """Tokens of what the configuration adds to a request, estimated in the same way: the most that an upstream does."""
    return max((len(_encode(upstream.config.params)) // BYTES_PER_TOKEN for upstream in chain), default=0)


def _bytes_beside_pixels(messages: object) -> int:
    """Bytes of images that do not count, where images have their place: elsewhere the same bytes are text. Below 0
    where images count more than their bytes."""
    spared = 0
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                image = part.get("image_url")
                url = image.get("url") if isinstance(image, dict) else image
                if isinstance(url, str):
                    size = len(url)
                    spared += size - IMAGE - size // IMAGE_SHARE if _is_image(url) else min(0, size - IMAGE)
    return spared


def _is_image(url: str) -> bool:
    """Whether it holds an image. What is not all base64 may be a text that a server shows its model as it stands."""
    label = _IMAGE.match(url)
    return label is not None and url.isascii() and not url[label.end() :].encode().translate(None, _BASE64)
