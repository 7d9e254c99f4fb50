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

from gateway.core.chunks import HALF
from gateway.core.errors import GatewayError
from gateway.core.event import THINKING, TOKEN, Event
from gateway.core.lenient import Halves, reason_of, text_of, value_of
from gateway.dialects import failures
from gateway.dialects.base import Answer, Call, Dialect, EventAnswer, as_refusal, post, usage_of
from gateway.dialects.body import Gathered
from gateway.dialects.chat import cannot_say, given, left_out, typed
from gateway.dialects.openai import TextAnswer, is_end

_ENDS: Final = frozenset({"done", "end", "complete", "completed", "close", "finish", "finished"})
_LAST: Final = _ENDS | {"message_stop", "response.completed", "response.failed", "response.incomplete"}
"""Names of the last event of an answer, in the known APIs too. Sources: Anthropic (messages), OpenAI (responses)."""
_HOUSEKEEPING: Final = frozenset(
    {"ping", "heartbeat", "keepalive", "keep-alive", "connected", "start", "metadata", "meta", "retry"}
)
_THOUGHTS: Final = frozenset({"thinking", "reasoning"})
_TEXTS: Final = ("content", "text", "token", "delta", "response", "chunk")


class SSEAnswer(TextAnswer):
    """Reads a stream whose shape is found out while it is read."""

    eof_ends: ClassVar[bool] = True
    _translate = EventAnswer._translate  # not the quick way of `TextAnswer`: it ignores the names of events

    @staticmethod
    def _is_piece(value: Any) -> bool:
        return True  # nobody knows whether more follows: the end of the body says it

    def __init__(self) -> None:
        super().__init__()
        self._bare: bool | None = None  # whether the endpoint sends bare text; None until the first text
        self._doubled = False  # whether every line of data begins with `data:` once more
        self._halves = Halves()

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        if self._bare is None and event.data.startswith("data:"):
            self._doubled = True  # a framework has put its own `data:` before the one that its user wrote
        if self._doubled:
            lines = [line.removeprefix("data:").removeprefix(" ") for line in event.data.split("\n")]
            event = Event(event.type, "\n".join(lines).rstrip("\n"))
        name = event.type.lower()
        if failures.names_failure(event.type):
            self._aside(event)
        elif name in _ENDS or is_end(event.data):
            self._end(value_of(event.data), out)
        elif name not in _HOUSEKEEPING:
            for part in self._objects_in(event) or (event,):
                self._payload(part, value_of(part.data), out)

    def _objects_in(self, event: Event) -> list[Event]:
        """The events in one whose data is an object in every line, as its server leaves out blank lines."""
        parts = self._parts_of(event) if "\n" in event.data and not self._bare else []
        values = [value_of(part.data) for part in parts if not is_end(part.data)]
        return parts if len(parts) > 1 and values and all(isinstance(value, dict) for value in values) else []

    def _payload(self, event: Event, value: Any, out: list[Event]) -> None:
        if is_end(event.data):
            self._end(None, out)
            return
        # Five cases: an object that is understood; a JSON string; a failure told in words, which bare text may look
        # like; something that cannot be text, as the endpoint sends JSON; and bare text, which may look like JSON by
        # chance.
        if isinstance(value, dict) and self._object(event, value, out):
            return
        if isinstance(value, str) and not self._bare:
            self._bare = False
            self._say(TOKEN, self._halves.joined(TOKEN, value), out)
        elif not self._bare and (error := failures.in_stream("", event.data)):
            self._fail(error)
        elif self._bare is False or (isinstance(value, dict) and not self._bare):
            self.skipped += 1
        else:
            self._bare = True
            self._say(_kind(event.type), event.data, out)

    def _object(self, event: Event, value: dict[str, Any], out: list[Event]) -> bool:
        """Whether the object is understood; if so, its meaning is in `out` and in the answer's state."""
        name = value.get("type")
        name = name.lower() if isinstance(name, str) else ""
        text = _text_in(value)
        if text is None or "error" in value or any(map(failures.names_failure, (name, value.get("status")))):
            error = failures.in_object(name, value)
            if error is not None:
                # Alone under a label of its own it is a refusal, and no event of a stream.
                alone = isinstance(self._units, Gathered) and not (self.labelled or self.size)
                self._fail(as_refusal(error, event.data) if alone else error)
                return True
        if name in _HOUSEKEEPING:
            return True
        if name in _ENDS:
            self._end(value, out)
            return True
        if isinstance(value.get("choices"), list | dict):  # an OpenAI chunk, whatever the event is called
            self._bare = False
            self._chunk(value, event.data, out)
            return True
        if text is not None:
            self._bare = False
            kind = _kind(name or event.type)
            self._say(kind, self._halves.joined(kind, text), out)
        self._reason(value)
        if value.get("done") is True:
            self._end(None, out)
        return text is not None or self.complete

    def _end(self, value: Any, out: list[Event]) -> None:
        self._conclude(out)
        if isinstance(value, dict):
            self._reason(value)
        self.ended = self.failure is None and self._made_sense()

    def _rest(self) -> list[Event]:
        events = super()._rest()
        return events if self._made_sense() else []

    def _made_sense(self) -> bool:
        """Whether anything of the answer was understood, or there was nothing to understand; if not, it has failed."""
        if self.size or not self.skipped or self.over:
            return True
        self._fail(GatewayError("upstream_protocol", detail="nothing before the end of the answer was understood"))
        return self.failure is None

    def _conclude(self, out: list[Event]) -> None:
        super()._conclude(out)
        for kind in self._halves.rest():
            self._say(kind, HALF, out)

    def _reason(self, value: dict[str, Any]) -> None:
        reason, usage = reason_of(value.get("finish_reason")), value.get("usage")
        if reason:
            self._finish(reason)
        if isinstance(usage, dict):
            like_openai = usage_of(usage.get("prompt_tokens"), usage.get("completion_tokens"))
            like_anthropic = usage_of(usage.get("input_tokens"), usage.get("output_tokens"))
            self.usage = like_openai or like_anthropic or self.usage


def is_last_word(event: Event) -> bool:
    """Whether an answer ends with this event, as far as one can tell of an endpoint whose API is not known."""
    if event.type.lower() in _LAST or is_end(event.data):
        return True
    value = value_of(event.data)
    # A tuple, as the type may be of any kind, also one that no set can look for.
    return isinstance(value, dict) and (value.get("type") in tuple(_LAST) or value.get("done") is True)


def _text_in(value: dict[str, Any]) -> str | None:
    for key in _TEXTS:
        if key in value and (text := text_of(value[key])) is not None:
            return text
    return None


def _kind(name: str) -> str:
    return THINKING if name.lower() in _THOUGHTS else TOKEN


class SSE(Dialect):
    """`POST {url}` with `{"message", "messages", "session_id", "stream"}`."""

    name: ClassVar[str] = "sse"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    sniffs: ClassVar[bool] = True
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
        unsaid = {name for name in left_out(chat, ("session_id", "tool_choice")) if "." not in name}
        return post(url, payload, self.credential(api_key), self.accept, left_out=frozenset(unsaid))

    def reads(self, parameter: str) -> bool:
        return False

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return SSEAnswer()
