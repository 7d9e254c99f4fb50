"""A chat request, typed: an OpenAI chat.completions request as the other dialects need it.

Invariants:

- A value of a wrong type is refused here, and the error names its place. So a translator never meets one.
- Nothing of a request is dropped in silence. What a dialect cannot express is refused by name; what only tunes the
  answer is left out, and named in `left_out`.

This file does not know any dialect.
"""

from collections.abc import Collection, Iterator
from typing import Any, Final, NoReturn

import msgspec

from gateway.core.errors import GatewayError


class Image(msgspec.Struct):
    """Where an image is: a `data:` or an `http(s):` URL."""

    url: str


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Image | str | None = None
    cache_control: dict[str, Any] | None = None

    @property
    def url(self) -> str:
        """The URL of an image part."""
        return self.image_url.url if isinstance(self.image_url, Image) else self.image_url or ""


class CalledFunction(msgspec.Struct):
    """What the model called, with its arguments as the JSON text it wrote."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """One call the model made."""

    function: CalledFunction
    id: str = ""


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: str
    content: str | list[Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    cache_control: dict[str, Any] | None = None

    @property
    def parts(self) -> list[Part]:
        """The content as parts; an empty text is no part, and a refusal is a text like any other."""
        parts = [Part("text", self.content)] if isinstance(self.content, str) else list(self.content or ())
        parts = [Part("text", part.refusal) if part.type == "refusal" else part for part in parts]
        if not parts and self.refusal:
            parts = [Part("text", self.refusal)]
        return [part for part in parts if part.type != "text" or part.text]

    @property
    def text(self) -> str:
        """The texts of the content, joined."""
        return "".join(part.text or "" for part in self.parts if part.type == "text")

    @property
    def instructs(self) -> bool:
        """Whether it holds instructions by the operator and not a turn of the conversation."""
        return self.role in ("system", "developer")


class Function(msgspec.Struct):
    """A function the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A tool of the only type that all dialects know."""

    function: Function
    cache_control: dict[str, Any] | None = None


class NamedFunction(msgspec.Struct):
    """The one function a tool choice names."""

    name: str


class ToolChoice(msgspec.Struct):
    """The choice of one tool by name."""

    function: NamedFunction


class JSONSchema(msgspec.Struct):
    """The schema that the answer must fit."""

    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct):
    """The form that the answer must have."""

    type: str = "text"
    json_schema: JSONSchema | None = None


class Chat(msgspec.Struct):
    """A chat request. Source: OpenAI API reference, chat/create."""

    messages: list[Message]
    model: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    session_id: str | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def goes_on_after_tools(self) -> bool:
        """Whether the model is given the results of the tools that it called, and nothing after them."""
        return bool(self.messages) and self.messages[-1].role == "tool"


_any: Final = msgspec.json.Decoder()

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
CHOICES: Final = frozenset({"auto", "none", "required", "any"})
"""The choices of tools that are a word; `any` is what other providers call `required`."""

_OWN: Final = frozenset({"model", "messages", "stream", "stream_options", "n"})
"""Members that the gateway itself reads."""
_OFF: Final[tuple[Any, ...]] = (None, "", [], {})
"""Values that ask for nothing."""
_SPECIAL: Final = ("reasoning_content", "cache_control")
"""Members inside of messages and tools that some dialects have."""
_MESSAGE: Final = frozenset({*Message.__struct_fields__, "function_call", "audio"})
_PART: Final = frozenset(Part.__struct_fields__)
_TOOL: Final = frozenset({"type", *Tool.__struct_fields__})
_FUNCTION: Final = frozenset(Function.__struct_fields__)


def typed(chat: dict[str, Any]) -> Chat:
    """The request with its types checked.

    Raises:
        GatewayError: `bad_request`, naming the place that is wrong, or what only OpenAI's own API can express.
    """
    try:
        asked = msgspec.convert(chat, Chat)
    except msgspec.ValidationError as error:
        raise GatewayError("bad_request", str(error)) from error
    _refuse_parameters(chat, asked)
    for message, raw in zip(asked.messages, chat["messages"], strict=True):
        _refuse_message(raw, message)
    return asked


def _refuse_parameters(chat: dict[str, Any], asked: Chat) -> None:
    if chat.get("n") not in (None, 1):
        cannot_say("'n' above 1: it gives one answer to a request")
    for name in ("functions", "function_call"):
        if chat.get(name) not in _OFF:
            cannot_say(f"{name!r}, which 'tools' and 'tool_choice' have replaced")
    for name in ("audio", "logprobs", "top_logprobs", "web_search_options"):
        # An empty `web_search_options` asks for a search; `logprobs: false` and `top_logprobs: 0` ask for nothing.
        if chat.get(name) or (name in chat and chat[name] == {}):
            cannot_say(f"{name!r}")
    if chat.get("modalities") not in (*_OFF, ["text"]):
        cannot_say("'modalities' other than text")
    if isinstance(asked.tool_choice, str) and asked.tool_choice not in CHOICES:
        cannot_say(f"this 'tool_choice', only {', '.join(sorted(CHOICES))} or a function")


def _refuse_message(raw: dict[str, Any], message: Message) -> None:
    if message.role == "function" or raw.get("function_call") not in _OFF:
        cannot_say("messages with a 'function_call', which 'tool_calls' have replaced")
    if message.role not in ROLES:
        cannot_say(f"a message with this 'role', only {', '.join(sorted(ROLES))}")
    if raw.get("audio"):
        cannot_say("messages with 'audio'")


def left_out(chat: dict[str, Any], carried: Collection[str], inside: Collection[str] = ()) -> frozenset[str]:
    """What of a request, which `typed` has accepted, is not carried over.

    Args:
        chat: the request.
        carried: the parameters that the dialect has.
        inside: places inside of messages and tools that the dialect has: `reasoning_content` and `cache_control` where
            it does.
    """
    own = {
        name
        for name, value in chat.items()
        if name not in _OWN and name not in carried and not (value in _OFF or _is_default(name, value))
    }
    return frozenset(own | {place for place in _places(chat) if place.rpartition(".")[2] not in inside})


def _is_default(name: str, value: Any) -> bool:
    if name == "parallel_tool_calls":
        return value is True
    return bool(value == 0) and name != "seed"


def _places(chat: dict[str, Any]) -> Iterator[str]:
    """The places inside messages and tools that only some dialects have, or none."""
    for message in chat["messages"]:
        yield from (f"messages.{name}" for name in _strange(message, _MESSAGE))
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            image = part.get("image_url")
            yield from (f"messages.content.{name}" for name in _strange(part, _PART))
            if isinstance(image, dict) and image.get("detail") not in (None, "auto"):
                yield "messages.content.image_url.detail"
    for tool in chat.get("tools") or ():
        yield from (f"tools.{name}" for name in _strange(tool, _TOOL))
        yield from (f"tools.function.{name}" for name in _strange(tool["function"], _FUNCTION))


def _strange(value: dict[str, Any], known: Collection[str]) -> Iterator[str]:
    for name in value:
        if (name in _SPECIAL or name not in known) and value[name] not in _OFF and value[name] is not False:
            yield name


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call as an object. If the model wrote malformed JSON, its text stands under `arguments`."""
    text = call.function.arguments
    try:
        value = _any.decode(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def base64_image(url: str) -> tuple[str, str] | None:
    """The media type and the Base64 text of a `data:` URL; None for any other URL. Source: RFC 2397."""
    # Cut at the first comma, without looking at the data: it may be megabytes.
    head, comma, data = url.partition(",")
    if not (comma and head[:5].lower() == "data:" and head.lower().endswith(";base64")):
        return None
    return head[5:-7].partition(";")[0].strip().lower() or "image/png", data


def cannot_say(what: str) -> NoReturn:
    """Refuses a request that the upstream's dialect cannot express.

    Raises:
        GatewayError: `bad_request`, always.
    """
    raise GatewayError("bad_request", f"The provider of this route does not take {what}.")


def given(**values: object) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
