"""The AI SDK's UI message stream: parts of a message are opened, filled and closed, then `[DONE]`.

    start   any of these, in any order:           finish
            reasoning-start  delta…  reasoning-end
            text-start  delta…  text-end
            tool-input-start  delta…  available

One part of text or reasoning is open at a time. A tool's input is complete when another part begins, or at the end.

Source: npm `ai` 6.0.326, `uiMessageChunkSchema` and `processUIMessageStream`; a delta needs an open part.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.errors import Failure
from gateway.core.event import DONE, ERROR, START, THINKING, TOKEN, TOOL, Done, Event
from gateway.formats.openai import END
from gateway.formats.view import Encoder, Spec, View

HEADERS: Final = {"x-vercel-ai-ui-message-stream": "v1"}
"""What its clients may look for in the head of a stream."""
REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}
"""OpenAI's finish reasons under the SDK's names; any other is `other`, and none is left out."""
_PARTS: Final = {TOKEN: "text", THINKING: "reasoning"}
_encode: Final = msgspec.json.Encoder().encode
_done: Final = msgspec.json.Decoder(Done).decode
_failure: Final = msgspec.json.Decoder(Failure).decode


class UIFormat:
    """The stream that `useChat` reads.

    Args:
        message_id: of the message that the answer belongs to; "" for a new one, which has the stream's id.
    """

    announces_resume: Final = False
    stateful: Final = True

    def __init__(self, message_id: str = "") -> None:
        self.spec: Spec = {"format": "ui", "message_id": message_id} if message_id else "ui"
        self._message_id = message_id

    def open(self, view: View) -> Encoder:
        """The encoder of one reader."""
        return _UIEncoder(self._message_id or view.stream_id)


class _Call:
    """A tool call as far as it came. It is told to the reader from `name` on."""

    __slots__ = ("id", "input", "name")

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.name = ""
        self.input = ""


class _UIEncoder:
    __slots__ = ("_call", "_calls", "_kind", "_message_id", "_part")

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._kind = ""  # of the open part of text, "" where none is open
        self._part = 0  # its number
        self._calls = 0
        self._call: tuple[Any, _Call] | None = None  # the open tool call, by its index

    def encode(self, event: Event, index: int) -> str:
        """The blocks of one event."""
        return "\n".join(f"data: {_encode(chunk).decode()}\n" for chunk in self._chunks(event))

    def terminal(self, event: Event, index: int) -> str:
        """The blocks of the end: the open part is closed and the message finished; after a failure, only the error."""
        if event.type == ERROR:
            return _blocks([{"type": "error", "errorText": _failure(event.data).message}])
        reason = _done(event.data).finish_reason if event.type == DONE else None
        finish = {"type": "finish"} | ({"finishReason": REASONS.get(reason, "other")} if reason else {})
        return _blocks([*self._close(), finish])

    def skip(self, events: Sequence[Event]) -> None:
        """The reader has these events."""
        for event in events:
            self._chunks(event)

    def _chunks(self, event: Event) -> list[dict[str, Any]]:
        kind = event.type
        if part := _PARTS.get(kind):
            opening = [] if self._kind == part else [*self._close(), self._open(part)]
            return [*opening, {"type": f"{part}-delta", "id": str(self._part), "delta": event.data}]
        if kind == TOOL:
            return self._tool(msgspec.json.decode(event.data))
        return [{"type": "start", "messageId": self._message_id}] if kind == START else []

    def _open(self, part: str) -> dict[str, Any]:
        self._kind = part
        self._part += 1
        return {"type": f"{part}-start", "id": str(self._part)}

    def _close(self) -> list[dict[str, Any]]:
        """The chunks that end the open part and the open call, where there is one."""
        closing: list[dict[str, Any]] = []
        if self._kind:
            closing.append({"type": f"{self._kind}-end", "id": str(self._part)})
            self._kind = ""
        if self._call is not None:
            closing += _whole(self._call[1])
            self._call = None
        return closing

    def _tool(self, piece: Any) -> list[dict[str, Any]]:
        function = piece.get("function") or {}
        index, id_ = piece.get("index"), piece.get("id")
        chunks: list[dict[str, Any]] = []
        if self._call is None or self._call[0] != index or (id_ and id_ != self._call[1].id):
            chunks += self._close()
            self._call = (index, _Call(id_ or f"{self._message_id}-{self._calls}"))
            self._calls += 1
        call = self._call[1]
        if call.name and not call.input and function.get("name"):
            call.name += function[
                "name"
            ]  # it comes in pieces; the whole of it stands in the chunk with the whole input
        text = function.get("arguments") or ""
        if not call.name and function.get("name"):
            call.name = function["name"]
            chunks.append({"type": "tool-input-start", "toolCallId": call.id, "toolName": call.name})
            text = call.input + text
            call.input = ""
        call.input += text
        if text and call.name:
            chunks.append({"type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": text})
        return chunks


def _whole(call: _Call) -> list[dict[str, Any]]:
    """The chunk that gives the whole input of a call; an input that is no JSON is told as an error."""
    if not call.name:
        return []
    told = {"toolCallId": call.id, "toolName": call.name}
    try:
        return [{"type": "tool-input-available", **told, "input": msgspec.json.decode(call.input or "{}")}]
    except msgspec.DecodeError:
        text = "The model's input for this tool is not valid JSON."
        return [{"type": "tool-input-error", **told, "input": call.input, "errorText": text}]


def _blocks(chunks: Sequence[dict[str, Any]]) -> str:
    return "\n".join([*(f"data: {_encode(chunk).decode()}\n" for chunk in chunks), END])
