"""Ollama's own chat API: one JSON object per line.

Invariants:

- A tool call comes in one piece; its arguments leave this file as JSON text, which is OpenAI's form.
- `done: true` is the end marker; nothing after it is read. An answer that was not streamed is one line with it, or
  several where a proxy has indented it.
- Images are sent as their bytes. The URL of an image is refused, because this gateway fetches nothing for clients.
"""

import json
import re
from typing import Any, ClassVar, Final

import msgspec

from gateway.core.chunks import HALF
from gateway.core.errors import GatewayError
from gateway.core.event import THINKING, TOKEN, Event
from gateway.core.lenient import Halves, json_of, mended_text, objects_of, reason_of, text_of, value_of, word_of
from gateway.core.sse import MAX_EARLY, LineSplitter
from gateway.dialects import failures
from gateway.dialects.base import (
    NO_NAMES,
    Answer,
    Call,
    Dialect,
    UnitAnswer,
    as_refusal,
    endpoint,
    post,
    read,
    usage_of,
)
from gateway.dialects.chat import (
    Chat,
    Function,
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


class _Function(msgspec.Struct):
    name: str = ""
    arguments: Any = None


class _Call(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)
    id: str = ""


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct):
    model: Any = None
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None


_LINE: Final = msgspec.json.Decoder(_Line)


class OllamaAnswer(UnitAnswer):
    """Reads a stream of lines. Source: Ollama API, generate a chat message."""

    def __init__(self) -> None:
        self._lines = LineSplitter(early=_is_last)
        super().__init__(self._lines)
        self._halves = Halves()
        self._indented: list[str] = []  # the lines of an object so far that is not in one line

    def _rest(self) -> list[Event]:
        """The events of a last line without its LF. Half an object there was cut off and does not count as noise."""
        return self._translate([line for line in self._lines.close() if _is_whole(line) or line == "}"])

    def _translate_one(self, text: str, out: list[Event]) -> None:
        if not text.strip():
            return
        if self._indented or text == "{":
            self._indented.append(text)  # bounded, as no event comes meanwhile
            if text != "}":
                return
            text, self._indented = "\n".join(self._indented), []
        # A line that says nothing known is an error or noise; the last line may have no message.
        line = None if self._halves else read(_LINE, text)
        if line is None or (line.message is None and not line.done):
            text = text.removeprefix("data:")  # as servers write it that only know event streams
            line = self._read_leniently(text) or self._read_leniently(_last_in(text))
        if line is None or line.error or (line.message is None and not line.done):
            self._aside(Event("", text))
            if self.failure is not None and not self.labelled and not self.size:
                self.failure = as_refusal(self.failure, text)  # this is no line of a stream, but the whole body
            return
        self.model = self.model or (line.model if isinstance(line.model, str) else "")
        self._message(line.message or _Message(), out)
        if line.done:
            self._end(line, out)

    def _read_leniently(self, text: str) -> _Line | None:
        """The line read field by field; None for one that is no object."""
        value = value_of(text)
        if not isinstance(value, dict):
            return None
        message = value.get("message")
        if isinstance(message, str) and failures.in_object("", value) is not None:
            return None  # the sentence of an error, and no part of the answer
        if message is None and isinstance(value.get("response"), str):  # Ollama's other call, which some imitate
            message = {"content": value["response"]}
        reason = reason_of(value.get("done_reason"))
        self.skipped += reason is None
        return _Line(
            model=word_of(value.get("model")),
            message=self._lenient_message(message),
            done=value.get("done") in (True, "true", 1),
            done_reason=reason,
            prompt_eval_count=value.get("prompt_eval_count"),
            eval_count=value.get("eval_count"),
            error=value.get("error"),
        )

    def _lenient_message(self, message: Any) -> _Message | None:
        if isinstance(message, str):
            message = {"content": message}
        if not isinstance(message, dict):
            return None
        fields = {kind: next((message[key] for key in keys if message.get(key)), None) for kind, keys in _FIELDS}
        texts = {kind: text_of(given) for kind, given in fields.items()}
        self.skipped += sum(texts[kind] is None and bool(given) for kind, given in fields.items())
        calls, odd = objects_of(message.get("tool_calls"))
        self.skipped += odd
        return _Message(
            content=self._halves.joined(TOKEN, texts[TOKEN] or ""),
            thinking=self._halves.joined(THINKING, texts[THINKING] or ""),
            tool_calls=[_lenient_call(call) for call in calls],
        )

    def _message(self, message: _Message, out: list[Event]) -> None:
        # Servers that imitate Ollama have the thoughts under the names that are usual with OpenAI's chunks.
        self._say(THINKING, message.thinking or message.reasoning_content or message.reasoning, out)
        self._say(TOKEN, message.content, out)
        for call in message.tool_calls or ():
            said = call.function.arguments
            # Ollama sends an object; servers that imitate it also send OpenAI's text.
            arguments = said if isinstance(said, str) else json_of(said or {})
            self._say_call(self._tools().begin(call.id, call.function.name, arguments), out)

    def _end(self, line: _Line, out: list[Event]) -> None:
        for kind in self._halves.rest():
            self._say(kind, HALF, out)
        self._end_calls(out)
        reason = line.done_reason or ""
        # Ollama says `stop` also when it wants a tool called; OpenAI's clients look for `tool_calls`.
        self.usage = usage_of(line.prompt_eval_count, line.eval_count)
        self._finish("tool_calls" if self._calls is not None and reason == "stop" else reason)
        self.ended = self.failure is None and self._may_end(said=bool(self.size))


def _is_last(line: bytes) -> bool:
    """Whether this is the whole line that ends an answer. A read of one byte at a time asks for every brace."""
    return _DONE.search(line) is not None and isinstance(value_of(line.decode("utf-8", "replace")), dict)


def _is_whole(line: str) -> bool:
    """Whether a line holds an object, however odd what is in it."""
    line = line.removeprefix("data:")
    return isinstance(value_of(line), dict) or bool(_last_in(line))


def _last_in(line: str) -> str:
    """The object that ends an answer, where something stands behind it in its line; "" where there is none. It would
    have been read before what stands behind it, had that come in a read of its own."""
    if len(line) > MAX_EARLY or _DONE.search(line.encode("utf-8", "replace")) is None:
        return ""
    try:
        return line[: _DECODER.raw_decode(line)[1]]
    except (ValueError, RecursionError):
        return ""


_DECODER: Final = json.JSONDecoder(strict=False)
_DONE: Final = re.compile(rb'"done"\s*:\s*true')
_FIELDS: Final = ((TOKEN, ("content",)), (THINKING, ("thinking", "reasoning_content", "reasoning")))


def _lenient_call(call: dict[str, Any]) -> _Call:
    function = call.get("function")
    function = function if isinstance(function, dict) else call
    arguments = function.get("arguments")
    arguments = mended_text(arguments) if isinstance(arguments, str) else arguments
    return _Call(_Function(word_of(function.get("name")), arguments), word_of(call.get("id")))


class Ollama(Dialect):
    """`POST {url}/api/chat`. Source: Ollama API, generate a chat message."""

    name: ClassVar[str] = "ollama"
    provider: ClassVar[str] = "ollama"
    stream_types: ClassVar[frozenset[str]] = frozenset({"application/x-ndjson", "application/ndjson"})
    sniffs: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True
    prefills: ClassVar[bool] = True
    derives: ClassVar[frozenset[str]] = frozenset({"reasoning_effort"})

    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        payload, dropped = _payload(typed(chat), chat)
        # To think is what became of an effort, and may be more than the model can: it is better left out than refused.
        thinks = "think" in payload and chat.get("think") is None
        return post(
            _chat_url(url),
            payload | {"stream": not plain},
            self.credential(api_key),
            "application/x-ndjson",
            plain=plain,
            added=self.derives if thinks else NO_NAMES,
            left_out=left_out(chat, _CARRIED, ("reasoning_content",)) | dropped,
        )

    def reads(self, parameter: str) -> bool:
        return parameter in _CARRIED

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return OllamaAnswer()

    def list_call(self, url: str, api_key: str) -> Call:
        """Source: Ollama API, list local models."""
        return list_of(_chat_url(url), "/chat", "/tags", self.credential(api_key))


def _chat_url(url: str) -> str:
    """The URL of the chat call, whether the base URL names the server, its `/api`, or the call itself."""
    whole = endpoint(url, "/api/chat")
    return url if whole == url else endpoint(endpoint(url, "/api"), "/chat")


_OPTIONS: Final = frozenset(
    {
        "main_gpu",
        "min_p",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "num_keep",
        "num_predict",
        "num_thread",
        "numa",
        "penalize_newline",
        "repeat_last_n",
        "repeat_penalty",
        "tfs_z",
        "typical_p",
        "use_mlock",
        "use_mmap",
    }
)
"""Options that OpenAI's request does not have. Clients send them under `options`, and some beside it.
Source: Ollama API, "Valid parameters and values"."""
_NATIVE: Final = ("think", "keep_alive", "format")
"""Ollama's own keys, which OpenAI's request does not have. A client may send them all the same."""
_CARRIED: Final = frozenset(
    {
        *_NATIVE,
        *_OPTIONS,
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "options",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
_THINK: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""OpenAI's efforts in Ollama's words; a model that knows no levels thinks or does not. Source: Ollama, "Thinking"."""


def _payload(chat: Chat, raw: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The request, and what of it Ollama has no way to say.

    Ollama has no `tool_choice`. "none" is said by sending no tools, and one function by sending no other; whether it is
    called is left to the model.
    """
    tools, choice = chat.tools or [], chat.tool_choice
    if choice == "none":
        tools = []
    elif isinstance(choice, ToolChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    forced = bool(chat.tools) and (isinstance(choice, ToolChoice) or choice in ("required", "any"))
    payload = given(
        model=chat.model,
        messages=_messages(chat.messages),
        tools=[{"type": "function", "function": _function(tool.function)} for tool in tools] or None,
        format=_format(chat),
        options=_options(chat, raw) or None,
        think=_think(chat),
    )
    native = {name: raw[name] for name in _NATIVE if raw.get(name) is not None}
    return payload | native, frozenset({"tool_choice"}) if forced else NO_NAMES


def _think(chat: Chat) -> bool | str | None:
    effort = chat.reasoning_effort
    if effort is not None and effort not in _THINK:
        cannot_say(f"this 'reasoning_effort', only {', '.join(_THINK)}")
    return None if effort is None else _THINK[effort]


def _function(function: Function) -> dict[str, Any]:
    return given(name=function.name, description=function.description, parameters=function.parameters)


def _options(chat: Chat, raw: dict[str, Any]) -> dict[str, Any]:
    """The options: OpenAI's parameters, and Ollama's own, which win as they are the more exact ones."""
    own = raw.get("options")
    if not isinstance(own, dict | None):
        raise GatewayError("bad_request", "'options' must be an object.")
    beside = {name: raw[name] for name in sorted(_OPTIONS & raw.keys()) if raw[name] is not None}
    translated = given(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        num_predict=chat.limit,
        stop=chat.stops or None,
        seed=chat.seed,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
    )
    return translated | beside | (own or {})


def _format(chat: Chat) -> str | dict[str, Any] | None:
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema.schema if wanted.json_schema else None
    return schema or "json"


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The conversation. A tool's result names its tool, while OpenAI only gives the id of the call."""
    names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for message in messages:
        names.update((call.id, call.function.name) for call in message.tool_calls or ())
        turns.append(_turn(message, names))
    return turns


def _turn(message: Message, names: dict[str, str]) -> dict[str, Any]:
    calls = [
        {"function": {"name": call.function.name, "arguments": arguments_of(call)}} for call in message.tool_calls or ()
    ]
    return given(
        role="system" if message.instructs else message.role,
        content=message.text,
        thinking=message.reasoning_content or None,
        images=[_image(part) for part in message.parts if part.type != "text"] or None,
        tool_calls=calls or None,
        tool_name=names.get(message.tool_call_id or ""),
    )


def _image(part: Part) -> str:
    image = base64_image(part.url)
    if part.type != "image_url":
        cannot_say(f"content of the type {part.type!r:.80}")
    if image is None:
        cannot_say("the URL of an image, only the image itself as a data: URL")
    return image[1]
