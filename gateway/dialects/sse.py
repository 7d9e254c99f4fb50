"""Somebody's own SSE endpoint behind a chat route.

Nobody has specified these streams. This file reads what they have in common: text in an unnamed event, bare or under
one of a few keys; something that marks the end; something that reports an error.

Invariants:

- The first text decides whether the endpoint sends bare text or JSON. After JSON, anything that is no JSON is noise.
  After bare text, JSON that is not understood is text too: a model may well write `{"a": 1}`.
- Bare text keeps its spaces.
- Without an end marker, the answer ends with the body, if the body ended well.
"""

from typing import Any, ClassVar, Final

import msgspec

from gateway.core.event import THINKING, TOKEN, Event
from gateway.dialects import failures, openai
from gateway.dialects.base import Answer, Call, Dialect, EventAnswer, post, read, usage_of
from gateway.dialects.chat import cannot_say, given, left_out, typed

_ENDS: Final = frozenset({"done", "end", "complete", "completed", "close", "finish", "finished"})
_HOUSEKEEPING: Final = frozenset(
    {"ping", "heartbeat", "keepalive", "keep-alive", "connected", "start", "metadata", "meta", "retry"}
)
_THOUGHTS: Final = frozenset({"thinking", "reasoning"})
_TEXTS: Final = ("content", "text", "token", "delta", "response", "chunk")

_ANY: Final = msgspec.json.Decoder()


class SSEAnswer(openai.TextAnswer):
    """Reads a stream whose shape is found out while it is read."""

    eof_ends: ClassVar[bool] = True
    _translate = EventAnswer._translate  # not the quick way of `TextAnswer`: it ignores the names of events

    def __init__(self) -> None:
        super().__init__()
        self._bare: bool | None = None  # whether the endpoint sends bare text; None until the first text

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        name = event.type.lower()
        if name == "error":
            self.failure = failures.in_stream(name, event.data)
        elif name in _ENDS or event.data.strip() == "[DONE]":
            self._finish(read(_ANY, event.data))
        elif name not in _HOUSEKEEPING:
            self._payload(event, read(_ANY, event.data), out)

    def _payload(self, event: Event, value: Any, out: list[Event]) -> None:
        # Four cases: an object that is understood; a JSON string; something that cannot be text, as the endpoint sends
        # JSON; and bare text, which may look like JSON by chance.
        if isinstance(value, dict) and self._object(event, value, out):
            return
        if isinstance(value, str) and not self._bare:
            self._bare = False
            self._say(TOKEN, value, out)
        elif self._bare is False or (isinstance(value, dict) and not self._bare):
            self.skipped += 1
        else:
            self._bare = True
            self._say(_kind(event.type), event.data, out)

    def _object(self, event: Event, value: dict[str, Any], out: list[Event]) -> bool:
        """Whether the object is understood; if so, its meaning is in `out` and in the answer's state."""
        name = value.get("type")
        name = name.lower() if isinstance(name, str) else ""
        self.failure = failures.in_object(name, value)
        if self.failure is not None or name in _HOUSEKEEPING:
            return True
        if name in _ENDS:
            self._finish(value)
            return True
        chunk = read(openai.CHUNK_DECODER, event.data) if "choices" in value else None
        if chunk is not None and chunk.choices is not None:  # an OpenAI chunk, whatever the event is called
            self._bare = False
            self._chunk(chunk, out)
            return True
        return self._text(name or event.type, value, out)

    def _text(self, name: str, value: dict[str, Any], out: list[Event]) -> bool:
        text = next((value[key] for key in _TEXTS if isinstance(value.get(key), str)), None)
        if text is not None:
            self._bare = False
            self._say(_kind(name), text, out)
        self._reason(value)
        self.ended = value.get("done") is True
        return text is not None or self.complete

    def _finish(self, value: Any) -> None:
        self.ended = True
        if isinstance(value, dict):
            self._reason(value)

    def _reason(self, value: dict[str, Any]) -> None:
        reason, usage = value.get("finish_reason"), value.get("usage")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason
        if isinstance(usage, dict):
            like_openai = usage_of(usage.get("prompt_tokens"), usage.get("completion_tokens"))
            like_anthropic = usage_of(usage.get("input_tokens"), usage.get("output_tokens"))
            self.usage = like_openai or like_anthropic or self.usage


def _kind(name: str) -> str:
    return THINKING if name.lower() in _THOUGHTS else TOKEN


class SSE(Dialect):
    """`POST {url}` with `{"message", "messages", "session_id", "stream"}`."""

    name: ClassVar[str] = "sse"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    accept: ClassVar[str] = "text/event-stream"
    wants_session: ClassVar[bool] = True
    prefills: ClassVar[bool] = True
    keeps_chats: ClassVar[bool] = True

    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        asked = typed(chat)
        if asked.tools:
            cannot_say("'tools'")
        if asked.response_format is not None and asked.response_format.type != "text":
            cannot_say("'response_format'")
        said = [message.text for message in asked.messages if message.role == "user"]
        payload = given(
            message=said[-1] if said else "",
            messages=chat["messages"],
            session_id=asked.session_id,
            stream=True,
        )
        # The messages are sent as they are, so nothing inside of them is left out.
        unsaid = {name for name in left_out(chat, ("tool_choice",)) if "." not in name}
        return post(url, payload, self.credential(api_key), self.accept, left_out=frozenset(unsaid))

    def reads(self, parameter: str) -> bool:
        return False

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False) -> Answer:
        return SSEAnswer()
