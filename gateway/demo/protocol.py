"""OpenAI's chat completions as the stand-in speaks them: requests in, chunks and completions out.

Unknown fields of a request are ignored, as OpenAI's own client libraries expect it of compatible servers.
This file does not know what the answers say, how fast they come, or how bytes reach a socket.

Source: OpenAI API reference, "Create chat completion" and "The chat completion chunk object".
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec

Delta = dict[str, Any]
"""One `choices[0].delta`: `content`, `reasoning_content` or `tool_calls`."""

DONE: Final = b"data: [DONE]\n\n"


class Part(msgspec.Struct):
    """One element of a message's content; only texts are read."""

    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The message's text, "" where it has none."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class StreamOptions(msgspec.Struct):
    """The options of a streaming request."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """The body of `POST /v1/chat/completions`, as far as it matters here."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    model: str = "demo"
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def longest(self) -> int | None:
        """The most tokens the answer may have, None for no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class Reply(msgspec.Struct, frozen=True):
    """One completion, ready to be encoded.

    Attributes:
        id: the completion's id.
        created: seconds since the epoch.
        model: the name that the client asked for.
        deltas: the answer, one token each.
        finish_reason: `stop`, `length` or `tool_calls`.
        prompt_tokens: tokens of the request, at least 0.
    """

    id: str
    created: int
    model: str
    deltas: tuple[Delta, ...]
    finish_reason: str
    prompt_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's usage object."""
        output = len(self.deltas)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output,
            "total_tokens": self.prompt_tokens + output,
        }


def frames(reply: Reply, include_usage: bool) -> Iterator[bytes]:
    """The frames of the stream from the role to the usage, without `[DONE]`; frame N is the Nth delta, counted from
    1."""
    # The order of OpenAI's own streams: the role, the deltas, the finish reason, and the usage if it was asked for.
    yield _frame(reply, _choice({"role": "assistant", "content": ""}), include_usage)
    for delta in reply.deltas:
        yield _frame(reply, _choice(delta), include_usage)
    yield _frame(reply, _choice({}, reply.finish_reason), include_usage)
    if include_usage:
        yield _spell({**_head(reply, "chat.completion.chunk"), "choices": [], "usage": reply.usage})


def completion(reply: Reply) -> bytes:
    """The whole answer as one `chat.completion` object, as JSON."""
    message: Delta = {"role": "assistant", "content": joined(reply.deltas, "content") or None, "refusal": None}
    if reasoning := joined(reply.deltas, "reasoning_content"):
        message["reasoning_content"] = reasoning
    if calls := _tool_calls(reply.deltas):
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
    return msgspec.json.encode({**_head(reply, "chat.completion"), "choices": [choice], "usage": reply.usage})


def error(message: str, kind: str, code: str | None = None) -> bytes:
    """OpenAI's error object, as JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def joined(deltas: tuple[Delta, ...], key: str) -> str:
    """The texts under `key` of all deltas, joined."""
    return "".join(delta.get(key, "") for delta in deltas)


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": reply.id,
        "object": kind,
        "created": reply.created,
        "model": reply.model,
        "system_fingerprint": "demo",
    }


def _choice(delta: Delta, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _frame(reply: Reply, choice: dict[str, Any], include_usage: bool) -> bytes:
    # OpenAI puts `usage: null` into every chunk before the last as soon as usage was asked for.
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    return _spell({**_head(reply, "chat.completion.chunk"), "choices": [choice], **usage})


def _spell(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _tool_calls(deltas: tuple[Delta, ...]) -> list[dict[str, Any]]:
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    if not pieces:
        return []
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    first = pieces[0]
    return [
        {"id": first["id"], "type": "function", "function": {"name": first["function"]["name"], "arguments": arguments}}
    ]
