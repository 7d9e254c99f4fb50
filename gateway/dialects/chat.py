"""A chat request, typed: an OpenAI chat.completions request as the other dialects need it.

Invariants:

- A value of a wrong type is refused here, and the error names its place. So a translator never meets one.
- Keys that are not listed are dropped: only the openai dialect sends on what it does not understand.

This file does not know any dialect.
"""

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
    image_url: Image | str | None = None

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
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def parts(self) -> list[Part]:
        """The content as parts; an empty text is no part."""
        parts = [Part("text", self.content)] if isinstance(self.content, str) else self.content or []
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


class Tool(msgspec.Struct):
    """A tool of the only type that all dialects know."""

    function: Function


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
    response_format: ResponseFormat | None = None
    user: str | None = None
    session_id: str | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


_any: Final = msgspec.json.Decoder()


def typed(chat: dict[str, Any]) -> Chat:
    """The request with its types checked.

    Raises:
        GatewayError: `bad_request`, naming the place that is wrong.
    """
    try:
        return msgspec.convert(chat, Chat)
    except msgspec.ValidationError as error:
        raise GatewayError("bad_request", str(error)) from error


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
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        return None
    return head[5:-7].partition(";")[0] or "image/png", data


def cannot_say(what: str) -> NoReturn:
    """Refuses a request that the upstream's dialect cannot express.

    Raises:
        GatewayError: `bad_request`, always.
    """
    raise GatewayError("bad_request", f"The provider of this route does not take {what}.")


def given(**values: object) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
