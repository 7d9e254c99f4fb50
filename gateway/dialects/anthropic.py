"""Anthropic messages.

Invariants:

- Content blocks come one after the other; servers that imitate Anthropic also send the deltas of several tool calls
  side by side. So a piece of arguments belongs to the call whose block has its index.
- Tool calls leave this file in OpenAI's shape, counted from 0 over the whole answer. Their input stands in the deltas;
  servers that imitate Anthropic also send it with the beginning of the block.
- `output_tokens` is a running total; it is never added up.

Unknown content in a chat is refused. A setting that only tunes the answer (penalties, seed) is left out and named, as
Anthropic has none like it.
"""

import hashlib
import re
from typing import Any, ClassVar, Final, NamedTuple

import msgspec

from gateway.core.chunks import HALF
from gateway.core.event import THINKING, TOKEN, Event, Usage
from gateway.core.lenient import Halves, index_of, mended, reason_of, text_of, value_of, word_of
from gateway.core.lenient import arguments_of as arguments_in
from gateway.dialects.base import (
    NO_NAMES,
    Answer,
    Call,
    Dialect,
    EventAnswer,
    count_of,
    endpoint,
    post,
    read,
    usage_of,
)
from gateway.dialects.body import BODY
from gateway.dialects.chat import (
    CHOICES,
    Chat,
    Message,
    Part,
    ToolChoice,
    arguments_of,
    base64_image,
    cannot_say,
    given,
    left_out,
    typed,
)
from gateway.dialects.models import list_of

VERSION: Final = "2023-06-01"
MAX_TOKENS_DEFAULT: Final = 4096
"""Anthropic requires a limit, OpenAI does not. Where neither the client nor `params` has one, this is sent for a model
that is not in `MODELS`: the largest that every model it ever served accepts."""


class Model(NamedTuple):
    """What models whose names begin alike can do.

    Attributes:
        prefix: of the name.
        limit: tokens of an answer, at most.
        adapts: whether it decides itself how long to think, and is told an effort in place of a budget.
    """

    prefix: str
    limit: int
    adapts: bool = False


MODELS: Final = (
    Model("claude-mythos", 128_000, adapts=True),
    Model("claude-opus-4-8", 128_000, adapts=True),
    Model("claude-opus-4-7", 128_000, adapts=True),
    Model("claude-opus-4-6", 128_000, adapts=True),
    Model("claude-opus-4-5", 64_000),
    Model("claude-opus-4", 32_000),
    Model("claude-sonnet-4-6", 128_000, adapts=True),
    Model("claude-sonnet-4", 64_000),
    Model("claude-haiku-4", 64_000),
    Model("claude-3-7-sonnet", 64_000),
    Model("claude-3-5", 8192),
    Model("claude-3", 4096),
)
"""The first whose prefix fits counts. Source: Anthropic documentation, "Models overview" (max output) and "Adaptive
thinking"."""

MIN_BUDGET: Final = 1024
"""Tokens of thinking, at least. Source: Anthropic documentation, "Extended thinking"."""
MIN_TOP_P: Final = 0.95
"""The least `top_p` beside thinking. Source: as above."""
BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24_576, "xhigh": 32_768, "max": 32_768}
"""Tokens of thinking for OpenAI's words, where the limit of the answer leaves as many."""
EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""What models that decide themselves are told for the same words."""

_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_CHOICE: Final = {word: {"type": "any" if word == "required" else word} for word in CHOICES}


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
        self._cached = 0
        self._tool_blocks: dict[int, int] = {}  # the calls by the index of their block, while it is open
        self._begun: dict[int, str] = {}  # the arguments with which a call began, while it has no deltas
        self._halves = Halves()

    @staticmethod
    def _is_piece(value: Any) -> bool:
        return isinstance(value, dict) and word_of(value.get("type")) in _PIECES

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
            self._stop(said.index, out)
        else:
            self._frame(kind, said, event, out)

    def _frame(self, kind: str, said: _Event, event: Event, out: list[Event]) -> None:
        """Reads an event that is no part of the content."""
        if kind == "message_delta":
            self._end(said, out)
        elif kind == "message_start" and self.finished:
            self.ended = True  # a second answer in the same body: nobody asked for it
        elif kind == "message_start" and said.message:
            message = said.message
            self.model = word_of(message.model)
            if isinstance(message.usage, dict):
                self._count(message.usage)
        elif kind == "message_stop":
            self._stop_all(out)
            self.ended = self._may_end(said=bool(self.size))
        elif kind != "ping":
            self._aside(event)

    def _no_event(self, event: Event, out: list[Event]) -> None:
        if event.type is BODY:
            self._body(event.data, out)
        elif event.data.strip() == "[DONE]":  # some gateways end every stream as OpenAI does
            self._stop_all(out)
            self.ended = self._may_end(said=bool(self.size))
        elif value_of(event.data) is None and (parts := self._parts_of(event)):
            out += super()._translate(parts)
        else:
            self._aside(event)

    def _read_leniently(self, text: str) -> _Event | None:
        """The event read field by field; None for one that is no object."""
        value = value_of(text)
        if not isinstance(value, dict):
            return None
        message, block, delta = (_object(value.get(name)) for name in ("message", "content_block", "delta"))
        if isinstance(value.get("delta"), str):
            delta = {"text": value["delta"]}
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
                partial_json=self._text_of(delta, "partial_json", index),
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

    def _text_of(self, value: dict[str, Any], field: str, kind: str | int) -> str:
        text = text_of(value.get(field))
        self.skipped += text is None and bool(value.get(field))
        return self._halves.joined(kind, text or "")

    def _start(self, index: int, block: _Block, out: list[Event]) -> None:
        self._end_halves(out, index)
        self._tool_blocks.pop(index, None)
        if block.type == "tool_use":
            number = self._tool_blocks[index] = len(self._tools())
            if begun := arguments_in(block.input):
                self._begun[number] = begun
            self._say_call(self._tools().begin(block.id, block.name), out)
        self._say(THINKING, block.thinking, out)
        self._say(TOKEN, block.text, out)

    def _delta(self, index: int, delta: _Delta, out: list[Event]) -> None:
        self._say(TOKEN, delta.text, out)
        self._say(THINKING, delta.thinking, out)
        number = self._tool_blocks.get(index)
        if delta.partial_json and number is not None:
            self._begun.pop(number, None)  # the deltas repeat it
            self._say_call(self._tools().go_on(number, delta.partial_json), out)

    def _stop(self, index: int, out: list[Event]) -> None:
        """This block has ended."""
        self._end_halves(out, index)
        number = self._tool_blocks.pop(index, None)
        if number is not None and (begun := self._begun.pop(number, "")):
            self._say_call(self._tools().go_on(number, begun), out)
        if not self._tool_blocks:
            self._end_calls(out)

    def _stop_all(self, out: list[Event]) -> None:
        """The content has ended."""
        for index in [*self._tool_blocks]:
            self._stop(index, out)
        for number, begun in self._begun.items():
            self._say_call(self._tools().go_on(number, begun), out)
        self._begun = {}
        for index in [*self._halves]:
            self._end_halves(out, index)
        self._end_calls(out)

    def _end_halves(self, out: list[Event], index: int) -> None:
        """The block with this index ends or begins: no other halves come of what it said, nor of the text before it.
        Calls that stand side by side go on."""
        for kind in self._halves.rest(lambda key: key in (TOKEN, THINKING, index)):
            if kind in (TOKEN, THINKING):
                self._say(kind, HALF, out)
            elif (number := self._tool_blocks.get(kind)) is not None:
                self._say_call(self._tools().go_on(number, HALF), out)

    def _end(self, said: _Event, out: list[Event]) -> None:
        reason = reason_of(said.delta.stop_reason) if said.delta else None
        if isinstance(said.usage, dict):
            self._count(said.usage)
            self.usage = usage_of(self._input, said.usage.get("output_tokens"), self._cached) or self.usage
        if reason:
            self._stop_all(out)
            self._finish(_FINISH.get(reason, reason))

    def _count(self, usage: dict[str, Any]) -> None:
        """Notes the prompt's tokens. Anthropic counts those that its cache had, and those written to it, separately."""
        fresh = count_of(usage.get("input_tokens"))
        if fresh is None:
            return
        written = count_of(usage.get("cache_creation_input_tokens")) or 0
        cached = count_of(usage.get("cache_read_input_tokens")) or 0
        # Some servers repeat the counts at the end with 0 in the place of what they have told before.
        if total := fresh + written + cached:
            self._input, self._cached = total, cached
        elif self._input is None:
            self._input = 0

    def _read_whole(self, value: dict[str, Any], text: str, out: list[Event]) -> bool:
        content = value.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        is_message = value.get("type", "message") == "message" and value.get("role", "assistant") == "assistant"
        if not is_message or not isinstance(content, list):
            return False
        self.model = word_of(value.get("model"))
        for index, block in enumerate(content):
            if isinstance(block, dict):
                self._start(index, self._lenient_block(block), out)
            else:
                self.skipped += 1
        usage, reason = value.get("usage"), reason_of(value.get("stop_reason"))
        self._end(_Event(delta=_Delta(stop_reason=reason), usage=usage), out)
        self._stop_all(out)
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


class Anthropic(Dialect):
    """`POST {url}/messages`. Source: Anthropic API reference, messages."""

    name: ClassVar[str] = "anthropic"
    provider: ClassVar[str] = "anthropic"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    sniffs: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True
    prefills: ClassVar[bool] = True
    derives: ClassVar[frozenset[str]] = frozenset({"reasoning_effort"})

    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        headers = {"anthropic-version": VERSION, **self.credential(api_key)}
        payload, dropped = _payload(typed(chat), chat)
        # To think is what became of an effort, and may be more than the model can: it is better left out than refused.
        thinks = "thinking" in payload and chat.get("thinking") is None
        return post(
            endpoint(url, "/messages"),
            payload if plain else payload | {"stream": True},
            headers,
            plain=plain,
            added=self.derives if thinks else NO_NAMES,
            left_out=left_out(chat, _CARRIED, ("cache_control",)) | dropped,
        )

    def prefilled(self, chat: dict[str, Any], prefix: str) -> dict[str, Any]:
        # Anthropic takes no beginning of an answer together with a demand to think before it.
        thinking = ("reasoning_effort", "thinking", "output_config")
        return super().prefilled({name: value for name, value in chat.items() if name not in thinking}, prefix)

    def reads(self, parameter: str) -> bool:
        return parameter in _CARRIED

    def list_call(self, url: str, api_key: str) -> Call:
        """Source: Anthropic API reference, list models. Without a limit, only the first 20 come."""
        headers = {"anthropic-version": VERSION, **self.credential(api_key)}
        call = list_of(endpoint(url, "/messages"), "/messages", "/models", headers)
        return Call(call.method, call.url + ("&" if "?" in call.url else "?") + "limit=1000", call.headers, call.body)

    def credential(self, api_key: str) -> dict[str, str]:
        return {"x-api-key": api_key} if api_key else {}

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return AnthropicAnswer()


_NATIVE: Final = ("thinking", "output_config", "container", "context_management", "mcp_servers", "cache_control")
"""Anthropic's own parameters, which OpenAI's request does not have. A client may send them all the same."""
_CARRIED: Final = frozenset(
    {
        *_NATIVE,
        "max_tokens",
        "max_completion_tokens",
        "metadata",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
        "user",
    }
)


def _payload(chat: Chat, raw: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The request, and what of it had to be left out for the sake of other parts."""
    limit = chat.limit or _model(chat.model).limit
    native = {name: raw[name] for name in _NATIVE if raw.get(name) is not None}
    thinking = {} if "thinking" in native else _thinking(chat, limit)
    dropped = {"reasoning_effort"} if chat.reasoning_effort not in (None, "none") and not thinking else set()
    thinks = (native | thinking).get("thinking", {"type": "disabled"}) != {"type": "disabled"}
    # A model that thinks decides by itself about these. Source: Anthropic documentation, "Extended thinking".
    asked = given(temperature=chat.temperature, top_k=chat.top_k, top_p=chat.top_p)
    tuning = {name: value for name, value in asked.items() if not thinks or (name == "top_p" and value >= MIN_TOP_P)}
    dropped |= asked.keys() - tuning.keys()
    if "temperature" in tuning:
        tuning["temperature"] = min(max(tuning["temperature"], 0.0), 1.0)  # OpenAI allows temperatures up to 2
    stops = [text for text in chat.stops if text.strip()]  # blank ones are refused
    if len(stops) < len(chat.stops):
        dropped.add("stop")
    if set(chat.metadata or ()) - {"user_id"}:
        dropped.add("metadata")
    payload = given(
        model=chat.model,
        max_tokens=limit,
        system=_system(chat) or None,
        messages=_messages(chat.messages),
        tools=_tools(chat) or None,
        tool_choice=_tool_choice(chat) if chat.tools else None,
        stop_sequences=stops or None,
        metadata=_metadata(chat),
    )
    return payload | tuning | thinking | native, frozenset(dropped)


def _model(name: str) -> Model:
    """What is known of a model, whoever sells it: `anthropic/claude-3.5-sonnet` and `us.anthropic.claude-…` too."""
    name = name.lower().replace(".", "-")
    name = name[max(name.find("claude"), 0) :]
    unknown = Model("", MAX_TOKENS_DEFAULT)
    return next((model for model in MODELS if name.startswith(model.prefix)), unknown)


def _thinking(chat: Chat, limit: int) -> dict[str, Any]:
    """What `reasoning_effort` means here; nothing where the model cannot think beside the rest of the request."""
    effort = chat.reasoning_effort
    if effort is None or effort == "none":
        return {}
    if effort not in BUDGETS:
        cannot_say(f"this 'reasoning_effort', only none, {', '.join(BUDGETS)}")
    forced = chat.tools and (isinstance(chat.tool_choice, ToolChoice) or chat.tool_choice in ("required", "any"))
    if forced:
        return {}  # a tool that must be called leaves nothing to think about
    if _model(chat.model).adapts:
        return {"thinking": {"type": "adaptive"}, "output_config": {"effort": EFFORTS[effort]}}
    # Between a call and the answer to it the model wants its own thoughts back, with a signature that OpenAI's messages
    # have no place for. A fifth of the limit is left for the answer.
    budget = max(MIN_BUDGET, min(BUDGETS[effort], limit * 4 // 5))
    if chat.goes_on_after_tools or budget >= limit:
        return {}
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _metadata(chat: Chat) -> dict[str, Any] | None:
    # Of OpenAI's metadata, which are the client's own notes, Anthropic has the user alone.
    user = (chat.metadata or {}).get("user_id") or chat.safety_identifier or chat.user
    return {"user_id": user} if user else None


def _system(chat: Chat) -> str | list[dict[str, Any]]:
    """The instructions as one text; as blocks where a part of them is to be cached."""
    blocks = [block for message in chat.messages if message.instructs for block in _cached(_content(message), message)]
    if any(block["type"] != "text" for block in blocks):
        cannot_say("content of another type than text in a system message")
    shape = _shape(chat)
    if any("cache_control" in block for block in blocks):
        return [*blocks, *([{"type": "text", "text": shape}] if shape else [])]
    texts = ["".join(block["text"] for block in _content(message)) for message in chat.messages if message.instructs]
    return "\n\n".join(text for text in (*texts, shape) if text)


def _shape(chat: Chat) -> str:
    """The demand of `response_format` in words, as there is no key for it."""
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return ""
    schema = wanted.json_schema.schema if wanted.json_schema else None
    words = "Answer with one JSON object and nothing else: no code fence, no explanation."
    return f"{words} It must fit this JSON Schema: {_json.encode(schema).decode()}" if schema else words


class _Ids:
    """The ids of a conversation's tool calls in Anthropic's alphabet, each of them once.

    The same id of the client's becomes the same here, in a call and in its result, and in every request. Where several
    calls have one id, as answers do that count from `call_0`, their results belong to them in their order.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._open: dict[str, list[str]] = {}
        self._latest: dict[str, str] = {}

    def of_call(self, theirs: str) -> str:
        ours = wanted = _id(theirs)
        number = 2
        while ours in self._used:
            ours = f"{wanted}_{number}"
            number += 1
        self._used.add(ours)
        self._open.setdefault(theirs, []).append(ours)
        return ours

    def of_result(self, theirs: str) -> str:
        waiting = self._open.get(theirs)
        if waiting:
            self._latest[theirs] = waiting.pop(0)
        return self._latest.get(theirs) or _id(theirs)


def _id(theirs: str) -> str:
    """An id of 1 to 64 characters of `[a-zA-Z0-9_-]`. What had to be changed has a hash at its end, so that two ids
    stay two."""
    if re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", theirs):
        return theirs
    mark = hashlib.sha256(theirs.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', theirs[:48]) or 'call'}_{mark}"


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The conversation with alternating roles, as Anthropic requires it; messages without content are left out."""
    turns: list[dict[str, Any]] = []
    ids = _Ids()
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = [] if message.instructs else _cached(_blocks(message, ids), message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    # An answer to be continued loses the white space at its end: Anthropic refuses a request that ends with it.
    last = turns[-1]["content"][-1] if turns and turns[-1]["role"] == "assistant" else {}
    if last.get("type") == "text":
        last["text"] = last["text"].rstrip()
    return turns


def _blocks(message: Message, ids: _Ids) -> list[dict[str, Any]]:
    if message.role == "tool":
        tool = ids.of_result(message.tool_call_id or "")
        return [{"type": "tool_result", "tool_use_id": tool, "content": _content(message)}]
    calls = [
        {"type": "tool_use", "id": ids.of_call(call.id), "name": call.function.name, "input": arguments_of(call)}
        for call in message.tool_calls or ()
    ]
    return [*_content(message), *calls]


def _content(message: Message) -> list[dict[str, Any]]:
    """The parts of a message. Blank texts are left out, as Anthropic refuses them."""
    return [_block(part) for part in message.parts if part.type != "text" or (part.text or "").strip()]


def _cached(blocks: list[dict[str, Any]], message: Message) -> list[dict[str, Any]]:
    """The blocks of a message; where all of it is to be cached, the last of them says so."""
    if message.cache_control and blocks:
        blocks[-1].setdefault("cache_control", message.cache_control)
    return blocks


def _block(part: Part) -> dict[str, Any]:
    cache = {"cache_control": part.cache_control} if part.cache_control else {}
    if part.type == "text":
        return {"type": "text", "text": part.text, **cache}
    if part.type != "image_url":
        cannot_say(f"content of the type {part.type!r:.80}")
    image = base64_image(part.url)
    if image is None:
        if part.url[:5].lower() == "data:":
            cannot_say("an image in a data: URL that is not Base64")
        return {"type": "image", "source": {"type": "url", "url": part.url}, **cache}
    media_type = _IMAGES.get(image[0], image[0])
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": image[1]}, **cache}


_IMAGES: Final = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
"""Names of media types that are in use but not registered."""


def _tools(chat: Chat) -> list[dict[str, Any]]:
    return [
        given(
            name=tool.function.name,
            description=tool.function.description,
            input_schema={"type": "object", **(tool.function.parameters or {"properties": {}})},
            cache_control=tool.cache_control or tool.function.cache_control,
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
        said = dict(_CHOICE[choice or "auto"])
    if chat.parallel_tool_calls is False and said["type"] != "none":
        said["disable_parallel_tool_use"] = True
    return said
