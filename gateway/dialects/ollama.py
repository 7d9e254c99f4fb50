"""Ollama's own chat API: one JSON object per line.

Invariants:

- A tool call comes in one piece; its arguments leave this file as JSON text, which is OpenAI's form.
- `done: true` is the end marker; nothing after it is read.
- Images are sent as their bytes. The URL of an image is refused, because this gateway fetches nothing for clients.
"""

from typing import Any, ClassVar, Final

import msgspec

from gateway.core.event import THINKING, TOKEN, TOOL, Event
from gateway.core.sse import LineSplitter
from gateway.dialects.base import Answer, Call, Dialect, UnitAnswer, endpoint, post, read, usage_of
from gateway.dialects.chat import (
    Chat,
    Function,
    Message,
    Part,
    arguments_of,
    base64_image,
    cannot_say,
    given,
    typed,
)
from gateway.dialects.models import list_of

_FINISH: Final = {"load": "stop", "unload": "stop"}


class _Function(msgspec.Struct):
    name: str = ""
    arguments: Any = None


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class _Message(msgspec.Struct):
    content: Any = None
    thinking: Any = None
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
_json: Final = msgspec.json.Encoder()


class OllamaAnswer(UnitAnswer):
    """Reads a stream of lines. Source: Ollama API, generate a chat message."""

    def __init__(self) -> None:
        self._lines = LineSplitter()
        super().__init__(self._lines)
        self._tools = 0

    def _rest(self) -> list[Event]:
        """The events of a last line without its LF. Half an object there was cut off and does not count as noise."""
        return self._translate([line for line in self._lines.close() if read(_LINE, line)])

    def _translate_one(self, text: str, out: list[Event]) -> None:
        if not text.strip():
            return
        # A line that says nothing known is an error or noise; the last line may have no message.
        line = read(_LINE, text)
        if line is None or line.error or (line.message is None and not line.done):
            self._aside(Event("", text))
            return
        self.model = self.model or (line.model if isinstance(line.model, str) else "")
        self._message(line.message or _Message(), out)
        if line.done:
            self._end(line)

    def _message(self, message: _Message, out: list[Event]) -> None:
        self._say(THINKING, message.thinking, out)
        self._say(TOKEN, message.content, out)
        for call in message.tool_calls or ():
            self._say(TOOL, _json.encode(self._tool(call)).decode(), out)

    def _tool(self, call: _Call) -> dict[str, Any]:
        index = self._tools
        self._tools += 1
        said = call.function.arguments
        # Ollama sends an object; servers that imitate it also send OpenAI's text.
        arguments = said if isinstance(said, str) else _json.encode(said or {}).decode()
        function = {"name": call.function.name, "arguments": arguments}
        return {"index": index, "id": call.id or f"call_{index}", "type": "function", "function": function}

    def _end(self, line: _Line) -> None:
        reason = line.done_reason or "stop"
        reason = _FINISH.get(reason, reason)
        # Ollama says `stop` also when it wants a tool called; OpenAI's clients look for `tool_calls`.
        self.finish_reason = "tool_calls" if self._tools and reason == "stop" else reason
        self.usage = usage_of(line.prompt_eval_count, line.eval_count)
        self.ended = True


class Ollama(Dialect):
    """`POST {url}/api/chat`. Source: Ollama API, generate a chat message."""

    name: ClassVar[str] = "ollama"
    provider: ClassVar[str] = "ollama"
    stream_types: ClassVar[frozenset[str]] = frozenset({"application/x-ndjson", "application/ndjson"})
    needs_model: ClassVar[bool] = True
    prefills: ClassVar[bool] = True

    def call(self, chat: dict[str, Any], url: str, api_key: str) -> Call:
        # Ollama's own keys, which OpenAI's request does not have; a client may send them all the same.
        extra = {key: chat[key] for key in ("think", "keep_alive") if key in chat}
        payload = _payload(typed(chat)) | extra
        return post(_chat_url(url), payload, self.credential(api_key), "application/x-ndjson")

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False) -> Answer:
        return OllamaAnswer()

    def list_call(self, url: str, api_key: str) -> Call:
        """Source: Ollama API, list local models."""
        return list_of(_chat_url(url), "/chat", "/tags", self.credential(api_key))


def _chat_url(url: str) -> str:
    """The URL of the chat call, whether the base URL names the server, its `/api`, or the call itself."""
    whole = endpoint(url, "/api/chat")
    return url if whole == url else endpoint(endpoint(url, "/api"), "/chat")


def _payload(chat: Chat) -> dict[str, Any]:
    # Ollama has no `tool_choice`. "none" is said by sending no tools; every other choice is left to the model.
    tools = [] if chat.tool_choice == "none" else chat.tools
    return given(
        model=chat.model,
        stream=True,
        messages=_messages(chat.messages),
        tools=[{"type": "function", "function": _function(tool.function)} for tool in tools or ()] or None,
        format=_format(chat),
        options=_options(chat) or None,
    )


def _function(function: Function) -> dict[str, Any]:
    return given(name=function.name, description=function.description, parameters=function.parameters)


def _options(chat: Chat) -> dict[str, Any]:
    return given(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        num_predict=chat.limit,
        stop=chat.stops or None,
        seed=chat.seed,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
    )


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
        images=[_image(part) for part in message.parts if part.type != "text"] or None,
        tool_calls=calls or None,
        tool_name=names.get(message.tool_call_id or ""),
    )


def _image(part: Part) -> str:
    image = base64_image(part.url)
    if part.type != "image_url":
        cannot_say(f"content of the type {part.type!r}")
    if image is None:
        cannot_say("the URL of an image, only the image itself as a data: URL")
    return image[1]
