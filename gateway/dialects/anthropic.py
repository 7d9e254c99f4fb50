"""Anthropic messages.

Invariants:

- Content blocks come one after the other, so the state of an answer is the one block that is open.
- Tool calls leave this file in OpenAI's shape, counted from 0 over the whole answer.
- `output_tokens` is a running total; it is never added up.

Unknown content in a chat is refused. A setting that only tunes the answer (penalties, seed) is left out, as Anthropic
has none like it.
"""

from typing import Any, ClassVar, Final

import msgspec

from gateway.core.event import THINKING, TOKEN, TOOL, Event, Usage
from gateway.dialects.base import Answer, Call, Dialect, EventAnswer, count_of, endpoint, post, read, usage_of
from gateway.dialects.chat import (
    Chat,
    Message,
    Part,
    ToolChoice,
    arguments_of,
    base64_image,
    cannot_say,
    given,
    typed,
)
from gateway.dialects.models import list_of

VERSION: Final = "2023-06-01"
MAX_TOKENS_DEFAULT: Final = 4096
"""Anthropic requires a limit, OpenAI does not. This is the largest that every model it ever served accepts."""

_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_CHOICE: Final = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


class _Message(msgspec.Struct):
    model: Any = None
    usage: Any = None


class _Block(msgspec.Struct):
    type: str = ""
    id: str = ""
    name: str = ""
    text: Any = None
    thinking: Any = None
    input: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: Any = None


_EVENT: Final = msgspec.json.Decoder(_Event)
_json: Final = msgspec.json.Encoder()


class AnthropicAnswer(EventAnswer):
    """Reads a stream of messages. Source: Anthropic API reference, streaming messages."""

    def __init__(self) -> None:
        super().__init__()
        self._input: int | None = None
        self._tools = 0
        self._tool_block: int | None = None

    def _translate(self, units: list[Event]) -> list[Event]:
        out = super()._translate(units)
        # Until the end of the answer Anthropic has counted the prompt only; the output is estimated, so that an answer
        # that breaks off has a usage too.
        if self._input is not None and (self.usage is None or self.usage.source == "estimate"):
            self.usage = Usage(self._input, self.deltas, "estimate")
        return out

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        said = read(_EVENT, event.data)
        if said is None:
            self._aside(event)
            return
        kind = said.type or event.type
        if kind == "content_block_delta" and said.delta:
            self._delta(said.index, said.delta, out)
        elif kind == "content_block_start" and said.content_block:
            self._start(said.index, said.content_block, out)
        elif kind == "message_delta":
            self._end(said)
        elif kind == "message_start" and said.message:
            message = said.message
            self.model = message.model if isinstance(message.model, str) else ""
            self._input = _prompt_of(message.usage) if isinstance(message.usage, dict) else self._input
        elif kind == "message_stop":
            self.ended = True
        elif kind not in ("ping", "content_block_stop"):
            self._aside(event)

    def _start(self, index: int, block: _Block, out: list[Event]) -> None:
        self._tool_block = None  # the block before has ended: a late delta of it is no argument of this one
        if block.type == "tool_use":
            self._tool_block = index
            self._tools += 1
            arguments = _json.encode(block.input).decode() if block.input else ""
            function = {"name": block.name, "arguments": arguments}
            self._tool({"id": block.id, "type": "function", "function": function}, out)
        self._say(THINKING, block.thinking, out)
        self._say(TOKEN, block.text, out)

    def _delta(self, index: int, delta: _Delta, out: list[Event]) -> None:
        self._say(TOKEN, delta.text, out)
        self._say(THINKING, delta.thinking, out)
        if delta.partial_json and index == self._tool_block:
            self._tool({"function": {"arguments": delta.partial_json}}, out)

    def _tool(self, call: dict[str, Any], out: list[Event]) -> None:
        self._say(TOOL, _json.encode({"index": self._tools - 1, **call}).decode(), out)

    def _end(self, said: _Event) -> None:
        reason = said.delta.stop_reason if said.delta else None
        if reason:
            self.finish_reason = _FINISH.get(reason, reason)
        if isinstance(said.usage, dict):
            self._input = _prompt_of(said.usage) or self._input
            self.usage = usage_of(self._input, said.usage.get("output_tokens")) or self.usage


def _prompt_of(usage: dict[str, Any]) -> int | None:
    """All tokens of the prompt. Anthropic counts those read from its cache and written to it separately."""
    fresh = count_of(usage.get("input_tokens"))
    written = count_of(usage.get("cache_creation_input_tokens")) or 0
    cached = count_of(usage.get("cache_read_input_tokens")) or 0
    return None if fresh is None else fresh + written + cached


class Anthropic(Dialect):
    """`POST {url}/messages`. Source: Anthropic API reference, messages."""

    name: ClassVar[str] = "anthropic"
    provider: ClassVar[str] = "anthropic"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    needs_model: ClassVar[bool] = True
    prefills: ClassVar[bool] = True

    def call(self, chat: dict[str, Any], url: str, api_key: str) -> Call:
        headers = {"anthropic-version": VERSION, **self.credential(api_key)}
        return post(endpoint(url, "/messages"), _payload(typed(chat)), headers)

    def list_call(self, url: str, api_key: str) -> Call:
        """Source: Anthropic API reference, list models. Without a limit, only the first 20 come."""
        headers = {"anthropic-version": VERSION, **self.credential(api_key)}
        call = list_of(endpoint(url, "/messages"), "/messages", "/models", headers)
        return Call(call.method, call.url + ("&" if "?" in call.url else "?") + "limit=1000", call.headers, call.body)

    def credential(self, api_key: str) -> dict[str, str]:
        return {"x-api-key": api_key} if api_key else {}

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False) -> Answer:
        return AnthropicAnswer()


def _payload(chat: Chat) -> dict[str, Any]:
    return given(
        model=chat.model,
        max_tokens=chat.limit or MAX_TOKENS_DEFAULT,
        stream=True,
        system=_system(chat) or None,
        messages=_messages(chat.messages),
        tools=_tools(chat) or None,
        tool_choice=_tool_choice(chat) if chat.tools else None,
        stop_sequences=[text for text in chat.stops if text.strip()] or None,  # blank ones are refused
        # OpenAI allows temperatures up to 2.
        temperature=None if chat.temperature is None else min(max(chat.temperature, 0.0), 1.0),
        top_p=chat.top_p,
        top_k=chat.top_k,
        metadata={"user_id": chat.user} if chat.user else None,
    )


def _system(chat: Chat) -> str:
    texts = [message.text for message in chat.messages if message.instructs]
    return "\n\n".join(text for text in (*texts, _shape(chat)) if text)


def _shape(chat: Chat) -> str:
    """The demand of `response_format` in words, as there is no key for it."""
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return ""
    schema = wanted.json_schema.schema if wanted.json_schema else None
    words = "Answer with one JSON object and nothing else: no code fence, no explanation."
    return f"{words} It must fit this JSON Schema: {_json.encode(schema).decode()}" if schema else words


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The conversation with alternating roles, as Anthropic requires it; messages without content are left out."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = [] if message.instructs else _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    # An answer to be continued loses the white space at its end: Anthropic refuses a request that ends with it.
    last = turns[-1]["content"][-1] if turns and turns[-1]["role"] == "assistant" else {}
    if last.get("type") == "text":
        last["text"] = last["text"].rstrip()
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        content = [_block(part) for part in message.parts]
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": content}]
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments_of(call)}
        for call in message.tool_calls or ()
    ]
    return [*(_block(part) for part in message.parts), *calls]


def _block(part: Part) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type != "image_url":
        cannot_say(f"content of the type {part.type!r}")
    image = base64_image(part.url)
    if image is None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": image[0], "data": image[1]}}


def _tools(chat: Chat) -> list[dict[str, Any]]:
    return [
        given(
            name=tool.function.name,
            description=tool.function.description,
            input_schema=tool.function.parameters or {"type": "object", "properties": {}},
        )
        for tool in chat.tools or ()
    ]


def _tool_choice(chat: Chat) -> dict[str, Any] | None:
    # "One call at a time" is a part of the choice here, so it needs one even where the client made none.
    choice = chat.tool_choice
    if isinstance(choice, ToolChoice):
        said: dict[str, Any] = {"type": "tool", "name": choice.function.name}
    elif choice is None and chat.parallel_tool_calls is not False:
        return None
    else:
        said = dict(_CHOICE.get(choice or "auto", _CHOICE["auto"]))
    if chat.parallel_tool_calls is False and said["type"] != "none":
        said["disable_parallel_tool_use"] = True
    return said
