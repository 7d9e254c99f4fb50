"""OpenAI's streamed answer: chunks, then `[DONE]`. For the answer that is not streamed, see `completion.py`."""

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.core.errors import Failure
from gateway.core.event import CHUNK, DONE, ERROR, START, THINKING, TOKEN, TOOL, WHOLE, Done, Event
from gateway.core.pieces import chunk_of
from gateway.core.sse import data_lines
from gateway.formats.problem import error_object, usage_object
from gateway.formats.template import one_line
from gateway.formats.view import Encoder, Spec, Stateless, View

_encode: Final = msgspec.json.Encoder().encode
_done: Final = msgspec.json.Decoder(Done).decode
_failure: Final = msgspec.json.Decoder(Failure).decode

END: Final = "data: [DONE]\n"


class OpenAIFormat(Stateless):
    """`chat.completion.chunk` objects, then `[DONE]`; after an error nothing more.

    The end of an answer may be several blocks. They are one string, with blank lines between them, so that one cursor
    stands for all of them.

    Args:
        include_usage: whether the client asked for the usage chunk. Used where the chunks are made here, and not where
            they are the upstream's.

    Source: OpenAI API reference, "Chat Completions: streaming".
    """

    announces_resume: Final = False

    def __init__(self, include_usage: bool = False) -> None:
        self.spec: Spec = {"format": "openai", "include_usage": include_usage}
        self._include_usage = include_usage

    def open(self, view: View) -> Encoder:
        """The encoder of one reader."""
        return _OpenAIEncoder(view, self._include_usage)


class _OpenAIEncoder(Stateless):
    __slots__ = ("_include_usage", "_view")
    literal = CHUNK

    def __init__(self, view: View, include_usage: bool) -> None:
        self._view = view
        self._include_usage = include_usage

    def encode(self, event: Event, index: int) -> str:
        if event.type == CHUNK:
            return data_lines(event.data)
        if event.type == DONE:
            return self._finish(event.data)
        if event.type == WHOLE:
            return data_lines(_encode(chunk_of(msgspec.json.decode(event.data))).decode())
        return _KINDS.get(event.type, _unsent)(event.data, self._view)

    terminal = encode

    def _finish(self, data: str) -> str:
        done = _done(data)
        if done.in_chunks:
            return END
        blocks = [_chunk(self._view, "{}", _encode(done.finish_reason).decode())]
        usage = usage_object(done.usage) if self._include_usage else None
        if usage is not None:
            blocks.append(f'{_envelope(self._view)}"choices":[],"usage":{_encode(usage).decode()}}}\n')
        return "\n".join([*blocks, END])


def completion_id(view: View) -> str:
    """The id of a completion that the gateway makes itself."""
    return f"chatcmpl-{view.stream_id}"


def _envelope(view: View) -> str:
    model = _encode(view.model).decode()
    return (
        f'data: {{"id":"{completion_id(view)}","object":"chat.completion.chunk",'
        f'"created":{view.created},"model":{model},'
    )


def _chunk(view: View, delta: str, finish_reason: str = "null") -> str:
    return f'{_envelope(view)}"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish_reason}}}]}}\n'


def _role_chunk(data: str, view: View) -> str:
    return _chunk(view, '{"role":"assistant","content":""}')


def _token_chunk(text: str, view: View) -> str:
    return _chunk(view, f'{{"content":{_encode(text).decode()}}}')


def _thinking_chunk(text: str, view: View) -> str:
    return _chunk(view, f'{{"reasoning_content":{_encode(text).decode()}}}')


def _tool_chunk(data: str, view: View) -> str:
    return _chunk(view, f'{{"tool_calls":[{one_line(data)}]}}')


def _error_chunk(data: str, view: View) -> str:
    return f"data: {_encode(error_object(_failure(data))).decode()}\n"


def _unsent(data: str, view: View) -> str:
    return ""


_KINDS: Final[dict[str, Callable[[str, View], str]]] = {
    START: _role_chunk,
    THINKING: _thinking_chunk,
    TOKEN: _token_chunk,
    TOOL: _tool_chunk,
    ERROR: _error_chunk,
}
