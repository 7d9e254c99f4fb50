"""Anthropic messages.

Invariants:

- Content blocks come one after the other, so the state of an answer is the one block that is open.
- Tool calls leave this file in OpenAI's shape, counted from 0 over the whole answer. Their input stands in the deltas;
  servers that imitate Anthropic also send it with the beginning of the block.
- `output_tokens` is a running total; it is never added up.

Unknown content in a chat is refused. A setting that only tunes the answer (penalties, seed) is left out, as Anthropic
has none like it.
"""

from typing import Any, ClassVar, Final

import msgspec

from gateway.core.chunks import HALF
from gateway.core.event import THINKING, TOKEN, TOOL, Event, Usage
from gateway.core.lenient import Halves, index_of, mended, reason_of, text_of, value_of, word_of
from gateway.core.lenient import arguments_of as arguments_in
from gateway.dialects.base import Answer, Call, Dialect, EventAnswer, count_of, endpoint, post, read, usage_of
from gateway.dialects.body import BODY
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
    text: str | None = None
    thinking: str | None = None
    input: Any = None


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
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
        self._tool_block: int | None = None
        self._begun = ""  # the arguments with which the tool's block began, while it has no deltas
        self._halves = Halves()

    @staticmethod
    def _is_piece(value: Any) -> bool:
        return isinstance(value, dict) and value.get("type") in _PIECES

    def _translate(self, units: list[Event]) -> list[Event]:
        out = super()._translate(units)
        # Until the end of the answer Anthropic has counted the prompt only; the output is estimated, so that an answer
        # that breaks off has a usage too.
        if self._input is not None and (self.usage is None or self.usage.source == "estimate"):
            self.usage = Usage(self._input, self.deltas, "estimate")
        return out

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        said = None if self._halves else read(_EVENT, event.data)
        if said is None:
            said = self._read_leniently(event.data)
        if said is None:
            self._no_event(event, out)
            return
        kind = said.type or event.type
        if kind == "content_block_delta" and said.delta:
            self._delta(said.index, said.delta, out)
        elif event.type is BODY:
            self._body(event.data, out)
        elif kind == "content_block_start" and said.content_block:
            self._start(said.index, said.content_block, out)
        elif kind == "content_block_stop":
            self._stop(out)
        else:
            self._frame(kind, said, event, out)

    def _frame(self, kind: str, said: _Event, event: Event, out: list[Event]) -> None:
        """Reads an event that is no part of the content."""
        if kind == "message_delta":
            self._end(said, out)
        elif kind == "message_start" and said.message:
            message = said.message
            self.model = word_of(message.model)
            self._input = _prompt_of(message.usage) if isinstance(message.usage, dict) else self._input
        elif kind == "message_stop":
            self._stop(out)
            self.ended = True
        elif kind != "ping":
            self._aside(event)

    def _no_event(self, event: Event, out: list[Event]) -> None:
        if event.type is BODY:
            self._body(event.data, out)
        elif event.data.strip() == "[DONE]":  # some gateways end every stream as OpenAI does
            self._stop(out)
            self.ended = True
        else:
            self._aside(event)

    def _read_leniently(self, text: str) -> _Event | None:
        """The event read field by field; None for one that is no object."""
        value = value_of(text)
        if not isinstance(value, dict):
            return None
        message, block, delta = (_object(value.get(name)) for name in ("message", "content_block", "delta"))
        index = index_of(value.get("index")) or 0
        said = _Event(word_of(value.get("type")), index, usage=value.get("usage"))
        if message is not None:
            said.message = _Message(word_of(message.get("model")), message.get("usage"))
        if block is not None:
            said.content_block = self._lenient_block(block)
        if delta is not None:
            said.delta = _Delta(
                text=self._text_of(delta, "text", TOKEN),
                thinking=self._text_of(delta, "thinking", THINKING),
                partial_json=self._text_of(delta, "partial_json", TOOL),
                stop_reason=reason_of(delta.get("stop_reason")),
            )
            self.skipped += said.delta.stop_reason is None
        return said

    def _lenient_block(self, block: dict[str, Any]) -> _Block:
        return _Block(
            type=word_of(block.get("type")),
            id=word_of(block.get("id")),
            name=word_of(block.get("name")),
            text=self._text_of(block, "text", TOKEN),
            thinking=self._text_of(block, "thinking", THINKING),
            input=mended(block.get("input")),
        )

    def _text_of(self, value: dict[str, Any], field: str, kind: str) -> str:
        text = text_of(value.get(field))
        self.skipped += text is None and bool(value.get(field))
        return self._halves.joined(kind, text or "")

    def _start(self, index: int, block: _Block, out: list[Event]) -> None:
        self._stop(out)  # the block before has ended: a late delta of it is no argument of this one
        if block.type == "tool_use":
            self._tool_block = index
            self._begun = arguments_in(block.input) or ""
            self._say_call(self._tools().begin(block.id, block.name), out)
        self._say(THINKING, block.thinking, out)
        self._say(TOKEN, block.text, out)

    def _delta(self, index: int, delta: _Delta, out: list[Event]) -> None:
        self._say(TOKEN, delta.text, out)
        self._say(THINKING, delta.thinking, out)
        if delta.partial_json and index == self._tool_block:
            self._begun = ""  # the deltas repeat it
            self._argue(delta.partial_json, out)

    def _argue(self, arguments: str, out: list[Event]) -> None:
        calls = self._tools()
        self._say_call(calls.go_on(len(calls) - 1, arguments), out)

    def _stop(self, out: list[Event]) -> None:
        """The open block has ended."""
        for kind in self._halves.rest():
            if kind == TOOL:
                self._argue(HALF, out)
            else:
                self._say(kind, HALF, out)
        if self._begun:
            self._argue(self._begun, out)
            self._begun = ""
        self._tool_block = None
        self._end_calls(out)

    def _end(self, said: _Event, out: list[Event]) -> None:
        reason = said.delta.stop_reason if said.delta else None
        if isinstance(said.usage, dict):
            self._input = _prompt_of(said.usage) or self._input
            self.usage = usage_of(self._input, said.usage.get("output_tokens")) or self.usage
        if reason:
            self._stop(out)
            self._finish(_FINISH.get(reason, reason))

    def _read_whole(self, value: dict[str, Any], text: str, out: list[Event]) -> bool:
        content = value.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if value.get("type") != "message" or not isinstance(content, list):
            return False
        self.model = word_of(value.get("model"))
        for index, block in enumerate(content):
            if isinstance(block, dict):
                self._start(index, self._lenient_block(block), out)
            else:
                self.skipped += 1
        usage, reason = value.get("usage"), reason_of(value.get("stop_reason"))
        self._end(_Event(delta=_Delta(stop_reason=reason), usage=usage), out)
        self._stop(out)
        return True


_PIECES: Final = frozenset(
    {
        "ping",
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    }
)


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


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
    sniffs: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True
    prefills: ClassVar[bool] = True

    def call(self, chat: dict[str, Any], url: str, api_key: str) -> Call:
        headers = {"anthropic-version": VERSION, **self.credential(api_key)}
        return post(endpoint(url, "/messages"), _payload(typed(chat)), headers)

    def credential(self, api_key: str) -> dict[str, str]:
        return {"x-api-key": api_key} if api_key else {}

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
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
