"""What providers say when they fail, each in its own words: status, error object, and framing inside a stream.

    refuses("anthropic", "overloaded")      # HTTP 529 with an overloaded_error
    breaks("ollama", "overloaded")          # one line {"error": …} of a stream that had begun well

Ollama itself filters no content; its row is what servers say that speak its API.

This file does not know what the gateway makes of it.
"""

from typing import Any, Final

import msgspec

from tests.kit.upstream import response

PROVIDERS: Final = ("openai", "anthropic", "ollama")

BECAUSE: Final = "Because of this and that."
_TOO_LONG: Final = {
    "openai": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
    "anthropic": "prompt is too long: 210044 tokens > 200000 maximum",
    "ollama": "the input length exceeds the context length",
}
_NO_PREFILL: Final = {
    "openai": "Unrecognized request argument supplied: continue_final_message",
    "anthropic": "This model does not support assistant message prefill; the conversation must end with a user's.",
    "ollama": "the last message must not be from the assistant",
}


def _openai(message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _anthropic(message: str, kind: str = "invalid_request_error") -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}


def _ollama(message: str, **extra: Any) -> Any:
    return {"error": message, **extra}


FAILURES: Final[dict[str, dict[str, tuple[int, Any]]]] = {
    "rate limit": {
        "openai": (429, _openai("Rate limit reached for requests.", "requests", "rate_limit_exceeded")),
        "anthropic": (429, _anthropic("This request would exceed your rate limit.", "rate_limit_error")),
        "ollama": (429, _ollama("you have reached your hourly usage limit")),
    },
    "broken": {
        "openai": (500, _openai("The server had an error while processing your request.", "server_error")),
        "anthropic": (500, _anthropic("Internal server error", "api_error")),
        "ollama": (500, _ollama("model runner has unexpectedly stopped")),
    },
    "overloaded": {
        "openai": (503, _openai("The engine is currently overloaded.", "server_error", "engine_overloaded")),
        "anthropic": (529, _anthropic("Overloaded", "overloaded_error")),
        "ollama": (503, _ollama("server busy, please try again. maximum pending requests exceeded")),
    },
    "refused key": {
        "openai": (401, _openai("Incorrect API key provided: sk-0123********cdef.", code="invalid_api_key")),
        "anthropic": (401, _anthropic("invalid x-api-key", "authentication_error")),
        "ollama": (401, _ollama("unauthorized")),
    },
    "forbidden": {
        "openai": (403, _openai("Country, region, or territory not supported", "request_forbidden")),
        "anthropic": (403, _anthropic("Your API key may not use this resource.", "permission_error")),
        "ollama": (403, _ollama("this model requires a subscription")),
    },
    "context length": {
        "openai": (400, _openai(_TOO_LONG["openai"], code="context_length_exceeded")),
        "anthropic": (400, _anthropic(_TOO_LONG["anthropic"])),
        "ollama": (400, _ollama(_TOO_LONG["ollama"])),
    },
    "content filter": {
        "openai": (400, _openai(BECAUSE, code="content_filter")),
        "anthropic": (400, _anthropic("Output blocked by content filtering policy")),
        "ollama": (400, _ollama(BECAUSE, code="content_filter")),
    },
    "bad request": {
        "openai": (400, _openai("Invalid value for 'tools[0].type'.")),
        "anthropic": (400, _anthropic("tools.0.input_schema: Field required")),
        "ollama": (400, _ollama("the model does not support tools")),
    },
    "no prefill": {
        "openai": (400, _openai(_NO_PREFILL["openai"])),
        "anthropic": (400, _anthropic(_NO_PREFILL["anthropic"])),
        "ollama": (400, _ollama(_NO_PREFILL["ollama"])),
    },
}


def refuses(provider: str, what: str, **headers: str) -> bytes:
    """A whole answer that is this refusal."""
    status, body = FAILURES[what][provider]
    return response(status, msgspec.json.encode(body), **headers)


def breaks(provider: str, what: str) -> bytes:
    """This failure inside a stream, not yet chunk-encoded."""
    body = msgspec.json.encode(FAILURES[what][provider][1])
    match provider:
        case "openai":
            return b"data: %s\n\n" % body
        case "anthropic":
            return b"event: error\ndata: %s\n\n" % body
    return body + b"\n"


def reason(provider: str, what: str) -> str:
    """What the provider says for people."""
    error = FAILURES[what][provider][1]["error"]
    return str(error if isinstance(error, str) else error["message"])


NOISE: Final = {
    "openai": b"data: {oops\n\n",
    "anthropic": b"event: content_block_delta\ndata: {oops\n\n",
    "ollama": b"{oops\n",
}
"""An event that is no JSON."""
PING: Final = {
    "openai": b": still here\n\n",
    "anthropic": b'event: ping\ndata: {"type":"ping"}\n\n',
    "ollama": b"\n",
}
"""A sign of life that is no event."""
TORN: Final = {
    "openai": b'data: {"choices":[{"index":0,"delta":{"content":"torn',
    "anthropic": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"torn"}}\n',
    "ollama": b'{"message":{"content":"to',
}
"""The beginning of an event."""
