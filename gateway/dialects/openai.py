"""OpenAI chat.completions, and the many servers that speak nearly the same.

Invariants:

- A chunk is either kept to the letter or translated into text, depending on what the route's clients speak.
- `choices` may be missing, null or empty, `usage` null; a chunk may hold text, finish reason and usage together.
- An answer with several choices is complete when all of them have finished. If the body breaks off before all choices
  that were asked for have begun, the answer was cut; if the body ends well, no more choices will come.

This is the hot path. What nearly all chunks look like is written as a type (`_Running`, `_Spoken`). One decode in C
then reads a chunk and says whether it is ordinary, which costs less than searching its text for anything special. Only
a chunk that does not fit the type is read a second time.
"""

from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.core.event import CHUNK, THINKING, TOKEN, TOOL, Event
from gateway.dialects.base import BYTES_PER_TOKEN, Answer, Call, Dialect, EventAnswer, endpoint, post, read, usage_of
from gateway.dialects.models import list_of

MAX_CHOICES: Final = 128
"""The most choices that OpenAI lets a request ask for."""


class _Part(msgspec.Struct):
    """A part of the content, in the list form that Mistral's reasoning models use."""

    type: str = ""
    text: str | None = None
    thinking: list["_Part"] | str | None = None


class _Delta(msgspec.Struct):
    content: str | list[_Part] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    model: Any = None


class _KeptChoice(msgspec.Struct):
    index: int | None = 0
    finish_reason: str | None = None


class _KeptChunk(msgspec.Struct):
    """What must be read of a chunk that is passed on to the letter."""

    choices: list[_KeptChoice] | None = None
    usage: Any = None
    error: Any = None
    model: Any = None


class _RunningChoice(msgspec.Struct, gc=False):
    index: Literal[0]
    finish_reason: None = None


class _Running(msgspec.Struct, gc=False):
    """What nearly all chunks are: one more delta of the first choice, which has not finished."""

    choices: tuple[_RunningChoice]
    usage: None = None
    error: None = None


class _SpokenDelta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: None = None
    refusal: None = None
    tool_calls: None = None


class _SpokenChoice(_RunningChoice, gc=False, kw_only=True):
    delta: _SpokenDelta


class _Spoken(msgspec.Struct, gc=False):
    """A running chunk that holds text and nothing else."""

    choices: tuple[_SpokenChoice]
    usage: None = None
    error: None = None


CHUNK_DECODER: Final = msgspec.json.Decoder(_Chunk)
_KEPT: Final = msgspec.json.Decoder(_KeptChunk)
_RUNNING: Final = msgspec.json.Decoder(_Running)
_SPOKEN: Final = msgspec.json.Decoder(_Spoken)


class _OpenAIAnswer(EventAnswer):
    """What the two readers of OpenAI chunks have in common."""

    __slots__ = ()

    def _note(self, chunk: _Chunk | _KeptChunk) -> None:
        if not self.model and isinstance(chunk.model, str):
            self.model = chunk.model
        if isinstance(chunk.usage, dict):
            said = usage_of(chunk.usage.get("prompt_tokens"), chunk.usage.get("completion_tokens"))
            self.usage = said or self.usage

    def _no_chunk(self, event: Event) -> None:
        if event.data.strip() == "[DONE]":
            self.ended = True
        else:
            self._aside(event)


class ChunkAnswer(_OpenAIAnswer):
    """Passes chunks on to the letter, for clients that speak OpenAI themselves.

    Args:
        keep_usage: whether the client asked for the chunk that holds nothing but the usage.
    """

    __slots__ = ("_finished", "_keep_usage", "_known", "_seen", "_whole_body")

    in_chunks = True

    def __init__(self, keep_usage: bool = False) -> None:
        super().__init__(CHUNK)
        self._keep_usage = keep_usage
        self._seen: tuple[int | None, ...] = ()  # the choices that have begun
        self._finished: tuple[int | None, ...] = ()  # those of them that have a finish reason
        self._known = False  # whether the model and the first choice are known, so that the quick way may be taken
        self._whole_body = False  # whether the body ended well

    @property
    def complete(self) -> bool:
        wanted = 1 if self._whole_body else self.choices
        return self.ended or wanted <= len(self._finished) == len(self._seen)

    def _rest(self) -> list[Event]:
        self._whole_body = True
        return super()._rest()

    def _translate(self, units: list[Event]) -> list[Event]:
        # The quick way: a read whose chunks all fit `_Running` is passed on, and nothing else in them matters. The slow
        # way is for the first chunks, which name the model and begin the choice, and for any read with another chunk.
        if not self._known:
            events = super()._translate(units)
            self._known = bool(self.model) and 0 in self._seen
            return events
        try:
            for index, event in enumerate(units):
                _RUNNING.decode(event.data)
                if event.id or event.type is not CHUNK:
                    units[index] = Event(CHUNK, event.data)  # an upstream that names or numbers its chunks
        except (ValueError, RecursionError):
            return super()._translate(units)
        self.size += BYTES_PER_TOKEN * len(units)
        return units

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        chunk = read(_KEPT, event.data)
        if chunk is None or not _is_chunk(chunk):
            self._no_chunk(event)
            return
        self._note(chunk)
        for choice in chunk.choices or ():
            self._track(choice)
        # The gateway always asks for the usage; a client that did not must not see the chunk that holds nothing else.
        if chunk.choices or self._keep_usage or chunk.usage is None:
            self.size += BYTES_PER_TOKEN
            out.append(Event(CHUNK, event.data))

    def _track(self, choice: _KeptChoice) -> None:
        if choice.index not in self._seen and len(self._seen) < MAX_CHOICES:
            self._seen += (choice.index,)
        if choice.finish_reason and choice.index in self._seen:
            if choice.index not in self._finished:
                self._finished += (choice.index,)
            self.finish_reason = self.finish_reason or choice.finish_reason


class TextAnswer(_OpenAIAnswer):
    """Translates the chunks of the first choice into thinking, tokens and tool calls."""

    __slots__ = ()

    def _translate(self, units: list[Event]) -> list[Event]:
        # The quick way: chunks that fit `_Spoken` hold text and nothing else. The first ones also name the model.
        if not self.model:
            return super()._translate(units)
        out: list[Event] = []
        for event in units:
            try:
                delta = _SPOKEN.decode(event.data).choices[0].delta
            except (ValueError, RecursionError):
                self._translate_one(event, out)
                if self.over:
                    break
            else:
                if delta.reasoning_content:
                    self._say(THINKING, delta.reasoning_content, out)
                self._say(TOKEN, delta.content, out)
        return out

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        chunk = read(CHUNK_DECODER, event.data)
        if chunk is None or not _is_chunk(chunk):
            self._no_chunk(event)
        else:
            self._chunk(chunk, out)

    def _chunk(self, chunk: _Chunk, out: list[Event]) -> None:
        self._note(chunk)
        for choice in chunk.choices or ():
            if choice.index:
                continue  # the events have room for one choice; the first has the index 0, or none
            if choice.delta is not None:
                self._delta(choice.delta, out)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason

    def _delta(self, delta: _Delta, out: list[Event]) -> None:
        self._say(THINKING, delta.reasoning_content or delta.reasoning, out)
        if isinstance(delta.content, list):
            self._parts(delta.content, out)
        else:
            self._say(TOKEN, delta.content, out)
        self._say(TOKEN, delta.refusal, out)
        for call in delta.tool_calls or ():  # kept as JSON: clients get OpenAI's own objects
            text = str(bytes(call), "utf-8")
            self._say(TOOL, text if text.startswith("{") else "", out)

    def _parts(self, parts: list[_Part], out: list[Event]) -> None:
        for part in parts:
            thinking = part.thinking if isinstance(part.thinking, list) else [_Part(text=part.thinking)]
            self._say(THINKING, "".join(piece.text or "" for piece in thinking), out)
            self._say(TOKEN, part.text, out)


def _is_chunk(chunk: _Chunk | _KeptChunk) -> bool:
    return not chunk.error and (chunk.choices is not None or chunk.usage is not None)


class OpenAI(Dialect):
    """`POST {url}/chat/completions`. Source: OpenAI API reference, chat/create and chat/streaming."""

    name: ClassVar[str] = "openai"
    provider: ClassVar[str] = "openai"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    prefills: ClassVar[bool] = True

    def list_call(self, url: str, api_key: str) -> Call:
        """Source: OpenAI API reference, models/list."""
        chat = "/chat/completions"
        return list_of(endpoint(url, chat), chat, "/models", self.credential(api_key))

    def call(self, chat: dict[str, Any], url: str, api_key: str) -> Call:
        options = chat.get("stream_options")
        options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        payload = {**chat, "stream": True, "stream_options": options}
        return post(endpoint(url, "/chat/completions"), payload, self.credential(api_key))

    def prefilled(self, chat: dict[str, Any], prefix: str) -> dict[str, Any]:
        # vLLM continues the last message only if these keys ask for it. A server that does not know them refuses the
        # request and is asked again without a prefix. Without the keys, an answer could begin again in the middle.
        return {**super().prefilled(chat, prefix), "continue_final_message": True, "add_generation_prompt": False}

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False) -> Answer:
        return ChunkAnswer(keep_usage) if keep_chunks else TextAnswer()
