"""OpenAI chat.completions, and the many servers that speak nearly the same.

Invariants:

- A chunk is either kept to the letter or translated into text, depending on what the route's clients speak. A kept
  chunk that clients could not read (half a character, an index that is a text) is written anew.
- `choices` may be missing, null or empty, `usage` null; a chunk may hold text, finish reason and usage together.
- An answer with several choices is complete when all of them have finished. If the body breaks off before all choices
  that were asked for have begun, the answer was cut; if the body ends well, no more choices will come.
- Kept chunks that hold nothing of the answer (the role, the results of a filter) are held back until one does. So an
  upstream that fails behind them can be asked again.

This is the hot path. What nearly all chunks look like is written as a type (`_Running`, `_Spoken`). One decode in C
then reads a chunk and says whether it is ordinary, which costs less than searching its text for anything special. Only
a chunk that does not fit the type is read a second time, field by field (`chunks.py`). The decoder checks what it skips
too: half a character anywhere in a chunk makes it fit no more.
"""

from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.core.chunks import Chunks, speaks
from gateway.core.event import CHUNK, THINKING, TOKEN, WHOLE, Event, Usage, utf8_length
from gateway.core.lenient import is_strict, json_of, mended_text, text_of, value_of, word_of
from gateway.core.pieces import chunk_of, with_whole_calls
from gateway.dialects import failures
from gateway.dialects.base import (
    BYTES_PER_TOKEN,
    NO_NAMES,
    Answer,
    Call,
    Dialect,
    EventAnswer,
    endpoint,
    post,
    usage_of,
)
from gateway.dialects.body import BODY
from gateway.dialects.models import list_of

MAX_CHOICES: Final = 128
"""The most choices that OpenAI lets a request ask for."""
MAX_END: Final = 16
"""Characters of an end marker, with the white space and quotes that some put around it."""
_LABELS: Final = frozenset({"role", "id", "type", "index", "obfuscation"})
"""Members of a delta that say nothing."""
MAX_HELD: Final = 32
"""Chunks that are held back until one of them says something, at most."""


class _RunningFunction(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _RunningCall(msgspec.Struct, gc=False):
    function: _RunningFunction
    index: int | None = None
    id: str | None = None


class _RunningDelta(msgspec.Struct, gc=False):
    error: None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_RunningCall] | None = None
    function_call: _RunningFunction | None = None


class _RunningChoice(msgspec.Struct, gc=False, rename={"finish_reason_in_camel_case": "finishReason"}):
    index: Literal[0]
    delta: _RunningDelta
    finish_reason: None = None
    finish_details: None = None
    finish_reason_in_camel_case: None = None
    usage: None = None
    error: None = None


class _Running(msgspec.Struct, gc=False):
    """What nearly all chunks are: one more delta of the first choice, which has not finished.

    Nothing fits that `Chunks` would correct, so that a chunk is the same whichever way it takes.
    """

    choices: tuple[_RunningChoice]
    usage: None = None
    x_groq: None = None
    error: None = None


class _SpokenDelta(_RunningDelta, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _SpokenChoice(_RunningChoice, gc=False, kw_only=True):
    delta: _SpokenDelta


class _Spoken(msgspec.Struct, gc=False):
    """A running chunk that holds text and nothing else."""

    choices: tuple[_SpokenChoice]
    usage: None = None
    x_groq: None = None
    error: None = None


class _UsualDelta(_RunningDelta, gc=False, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None


class _UsualChoice(_RunningChoice, gc=False, kw_only=True):
    delta: _UsualDelta


class _Usual(msgspec.Struct, gc=False):
    """A running chunk in which all is known that says something."""

    choices: tuple[_UsualChoice]
    usage: None = None
    x_groq: None = None
    error: None = None


_USUAL: Final = msgspec.json.Decoder(_Usual)
_RUNNING: Final = msgspec.json.Decoder(_Running)
_SPOKEN: Final = msgspec.json.Decoder(_Spoken)


class _OpenAIAnswer(EventAnswer):
    """What the two readers of OpenAI chunks have in common."""

    __slots__ = ("_chunks",)

    def __init__(self, unnamed: str = "") -> None:
        super().__init__(unnamed)
        self._chunks = Chunks()

    @staticmethod
    def _is_piece(value: Any) -> bool:
        choices = value.get("choices") if isinstance(value, dict) else None
        return isinstance(choices, list) and any("delta" in choice for choice in choices if isinstance(choice, dict))

    def _translate_one(self, event: Event, out: list[Event]) -> None:
        if event.type is BODY:
            self._body(event.data, out)
            return
        if is_end(event.data):
            if self._may_end(said=self._said):
                self._conclude(out)
                self.ended = True
            return
        value = value_of(event.data)
        if isinstance(value, dict) and _is_chunk(value):
            self._chunk(value, event.data, out)
        elif chunks := _chunks_in(value):
            out += self._carefully([Event(event.type, json_of(chunk)) for chunk in chunks])
        elif value is None and (parts := self._parts_of(event)):
            out += self._carefully(parts)
        else:
            self._aside(event)

    def _carefully(self, units: list[Event]) -> list[Event]:
        """Translates events one by one, whatever they are."""
        raise NotImplementedError

    @property
    def _said(self) -> bool:
        """Whether anything of the answer came."""
        return bool(self.size)

    def _read_whole(self, value: dict[str, Any], text: str, out: list[Event]) -> bool:
        if not _is_chunk(value) or not value.get("choices"):
            return False
        self._chunk(value, text, out)
        self._conclude(out)
        return True

    def _rest(self) -> list[Event]:
        events = super()._rest()
        if (self.finished or self.eof_ends) and not self.over:
            self._conclude(events)
        elif self._calls is not None:
            for piece in self._calls.release():  # the answer was cut, but this came
                self._say_call(piece, events)
        return events

    def _chunk(self, value: dict[str, Any], text: str, out: list[Event]) -> None:
        """Reads one chunk, or a whole answer."""
        raise NotImplementedError

    def _conclude(self, out: list[Event]) -> None:
        """Gives out what was held back, as the answer ends here. It may be called again."""

    def _note(self, value: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        """Notes what the chunk says beside its deltas. Of failures it notes that of a choice."""
        self.model = self.model or word_of(value.get("model"))
        usage = _usage_in(value, choices)
        # Some servers repeat the counts at the end with 0 in the place of what they have told before.
        if usage is not None and (usage.input or usage.output or self.usage is None):
            self.usage = usage
        for choice in choices:
            for place in (choice, choice["delta"]):
                if place.get("error") and (error := failures.in_object("", place)):
                    self._fail(error)


def is_end(data: str) -> bool:
    """Whether the data of an event is the end marker."""
    return data == "[DONE]" or (len(data) < MAX_END and data.strip(' "').upper() == "[DONE]")


def _is_chunk(value: dict[str, Any]) -> bool:
    said = value.get("choices") is not None or value.get("usage") is not None
    return said and not value.get("error") and (bool(value.get("choices")) or not failures.in_object("", value))


def _chunks_in(value: Any) -> list[dict[str, Any]]:
    """The chunks in a list of them, or the one that was written as JSON twice."""
    if isinstance(value, str) and value.startswith("{"):
        value = [value_of(value)]
    chunks = value if isinstance(value, list) else []
    return chunks if all(isinstance(chunk, dict) and _is_chunk(chunk) for chunk in chunks) else []


def _usage_in(value: dict[str, Any], choices: list[dict[str, Any]]) -> Usage | None:
    # Groq has its counts under `x_groq`, Moonshot in the choice.
    for place in (value, value.get("x_groq"), *choices):
        usage = place.get("usage") if isinstance(place, dict) else None
        if not isinstance(usage, dict):
            continue
        like_openai = usage_of(usage.get("prompt_tokens"), usage.get("completion_tokens"), _cached_in(usage))
        said = like_openai or usage_of(usage.get("input_tokens"), usage.get("output_tokens"), _cached_in(usage))
        if said is not None:
            return said
    return None


def _cached_in(usage: dict[str, Any]) -> object:
    """Of the prompt's tokens, those that the provider had in its cache."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    # Moonshot counts them in the usage itself, DeepSeek under a name of its own.
    return next((n for n in (cached, usage.get("cached_tokens"), usage.get("prompt_cache_hit_tokens")) if n), None)


class ChunkAnswer(_OpenAIAnswer):
    """Passes chunks on to the letter, for clients that speak OpenAI themselves.

    Args:
        keep_usage: whether the client asked for the chunk that holds nothing but the usage.
        plain: whether a whole answer is passed on as it is.
    """

    __slots__ = (
        "_bytes",
        "_finished",
        "_held",
        "_keep_usage",
        "_known",
        "_number",
        "_plain",
        "_seen",
        "_whole_body",
    )

    in_chunks = True

    def __init__(self, keep_usage: bool = False, plain: bool = False) -> None:
        super().__init__(CHUNK)
        self._keep_usage = keep_usage
        self._plain = plain
        self._held: list[Event] | None = []  # chunks that say nothing; None once one said something
        self._bytes = self._number = 0  # what chunks said, and how many came
        self._seen: tuple[int, ...] = ()  # the choices that have begun
        self._finished: tuple[int, ...] = ()  # those of them that have a finish reason
        self._known = False  # whether the quick way may be taken: the model is known, and chunks are as they should be
        self._whole_body = False  # whether the body ended well

    @property
    def finished(self) -> bool:
        wanted = 1 if self._whole_body or self.ended else self.choices
        return wanted <= len(self._finished) == len(self._seen)

    @property
    def _said(self) -> bool:
        return self._held is None

    def _rest(self) -> list[Event]:
        self._whole_body = True
        return super()._rest()

    def _translate(self, units: list[Event]) -> list[Event]:
        # The quick way: a read whose chunks all fit `_Running` is passed on, and nothing else in them matters. The slow
        # way is for the first chunks, which name the model and begin the choice, and for any read with another chunk.
        if not self._known:
            return self._carefully(units)
        # Nothing is called in this loop but the decoder, and counting in UTF-8 where a text has more than ASCII.
        said = 0
        try:
            for index, event in enumerate(units):
                try:
                    delta = _USUAL.decode(event.data).choices[0].delta
                except ValueError:
                    _RUNNING.decode(event.data)
                    said += size_of(event)
                else:
                    if text := delta.content:
                        said += len(text) if text.isascii() else utf8_length(text)
                    if text := delta.reasoning_content:
                        said += utf8_length(text)
                    if text := delta.reasoning:
                        said += utf8_length(text)
                if event.id or event.type is not CHUNK:
                    units[index] = Event(CHUNK, event.data)  # an upstream that names or numbers its chunks
        except (ValueError, RecursionError):
            return self._carefully(units)
        self._count(len(units), said)
        return units

    def _count(self, chunks: int, said: int) -> None:
        """So many chunks with so many bytes were read. Together they are at least a token for each chunk."""
        self._number += chunks
        self._bytes += said
        self.size = max(BYTES_PER_TOKEN * self._number, self._bytes)

    def _carefully(self, units: list[Event]) -> list[Event]:
        events = super()._translate(units)
        spoken = self._held is None and bool(self.model) and 0 in self._seen
        self._known = spoken and self._chunks.usual
        return events

    def _read_whole(self, value: dict[str, Any], text: str, out: list[Event]) -> bool:
        choices = value.get("choices")
        answers = isinstance(choices, list) and all(
            isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices
        )
        if not choices or not answers or not _is_chunk(value):
            return super()._read_whole(value, text, out)
        if self._plain:
            said = [{**choice, "message": None, "delta": {}} for choice in choices]
            self._watch(value, self._chunks.read({"choices": said}))
            self._count(0, utf8_length(text))
            if self.failure is None:
                amended = with_whole_calls(value)
                out.append(Event(WHOLE, json_of(value) if amended or not is_strict(text) else text))
            return True
        for chunk in _as_stream(value):
            if self.failure is None:
                self._chunk(chunk, json_of(chunk), out)
        return True

    def _chunk(self, value: dict[str, Any], text: str, out: list[Event]) -> None:
        choices = self._chunks.read(value)
        said = _bytes_said(choices)
        self._watch(value, choices)
        self.skipped += self._chunks.skipped
        if self.failure is not None or (self._chunks.skipped and not choices):
            return
        if self._chunks.changed or not is_strict(text):
            text = json_of(value)
        # The gateway always asks for the usage; a client that did not must not see the chunk that holds nothing else.
        # LiteLLM sends an empty choice along with it. Where all chunks have the usage, that with the role comes first.
        speaking = any(map(speaks, choices))
        opens = self._held is not None and any(choice["delta"].get("role") for choice in choices)
        if self._keep_usage or value.get("usage") is None or speaking or opens:
            self._pass_on(Event(CHUNK, text), speaking, out, said)
        if self.finished:
            self._conclude(out)

    def _watch(self, value: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        self._note(value, choices)
        for choice in choices:
            index, reason = choice.get("index") or 0, choice.get("finish_reason")
            if index not in self._seen and len(self._seen) < MAX_CHOICES:
                self._seen += (index,)
            if not reason or index not in self._seen or index in self._finished:
                continue
            if error := failures.in_reason(reason) or self._of_nothing(reason):
                self._fail(error)
            else:
                self._finished += (index,)
                self.finish_reason = self.finish_reason or failures.word_for(reason)

    def _pass_on(self, event: Event, said: bool, out: list[Event], size: int = 0) -> None:
        if self._held is not None and (said or len(self._held) >= MAX_HELD):
            self._release(out)
        if self._held is not None:
            self._held.append(event)
        else:
            self._count(1, size)
            out.append(event)

    def _release(self, out: list[Event]) -> None:
        held, self._held = self._held or [], None
        self._count(len(held), 0)
        out += held

    def _conclude(self, out: list[Event]) -> None:
        for last in self._chunks.rest():
            self._pass_on(Event(CHUNK, json_of(last)), True, out)
        if self._held is not None:
            self._release(out)


def size_of(event: Event) -> int:
    """Bytes of what an event says, in UTF-8."""
    if event.type is not CHUNK:
        return utf8_length(event.data)
    value = value_of(event.data)
    choices = value.get("choices") if isinstance(value, dict) else None
    return _bytes_said(choices) if isinstance(choices, list) else 0


def _bytes_said(choices: list[Any]) -> int:
    """Bytes of all that the deltas of these choices say: text, thoughts, arguments, and what nobody has heard of."""
    left: list[Any] = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
    size = 0
    while left:  # a loop and no recursion, as the upstream chooses how deep it is
        value = left.pop()
        if isinstance(value, str):
            size += utf8_length(value)
        elif isinstance(value, dict):
            left += [item for name, item in value.items() if item and name not in _LABELS]
        elif isinstance(value, list):
            left += value
    return size


def _as_stream(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """A whole answer as the chunks in which it could have come: all of it, the finish reasons, the usage."""
    said = chunk_of(whole)
    usage = said.pop("usage", None)
    ends = [{"index": one["index"], "delta": {}, "finish_reason": one.get("finish_reason")} for one in said["choices"]]
    said["choices"] = [{**one, "finish_reason": None} for one in said["choices"]]
    counted = [{**said, "choices": [], "usage": usage}] if usage else []
    return [said, {**said, "choices": ends}, *counted]


class TextAnswer(_OpenAIAnswer):
    """Translates the chunks of one choice into thinking, tokens and tool calls."""

    __slots__ = ("_index", "_quick")

    def __init__(self) -> None:
        super().__init__()
        self._index: int | None = None  # of the choice that is translated: the events have room for one
        self._quick = False  # whether the quick way may be taken: the model is known, and chunks are as they should be

    def _translate(self, units: list[Event]) -> list[Event]:
        # The quick way: chunks that fit `_Spoken` hold text and nothing else. The first ones also name the model.
        if not self._quick:
            return self._carefully(units)
        out: list[Event] = []
        left = iter(units)
        for event in left:
            try:
                delta = _SPOKEN.decode(event.data).choices[0].delta
            except (ValueError, RecursionError):
                return out + self._carefully([event, *left])
            if delta.content and not delta.reasoning_content:
                self._say(TOKEN, delta.content, out)
            elif delta.reasoning_content:
                self._say(THINKING, delta.reasoning_content, out)
                self._say(TOKEN, delta.content, out)
            else:
                return out + self._carefully([event, *left])  # its text may stand under another name
        return out

    def _carefully(self, units: list[Event]) -> list[Event]:
        events = super()._translate(units)
        self._quick = bool(self.model) and not self._index and self._chunks.usual
        return events

    def _chunk(self, value: dict[str, Any], text: str, out: list[Event]) -> None:
        choices = self._chunks.read(value)
        self._note(value, choices)
        self.skipped += self._chunks.skipped
        if self._index is None and choices:
            # The first choice has the index 0; where none has it, the one that is there is the first.
            self._index = min((choice.get("index") or 0 for choice in choices), key=abs)
        for choice in choices:
            if self.over or (choice.get("index") or 0) != self._index:
                continue
            self._delta(choice["delta"], out)
            if reason := choice.get("finish_reason"):
                self._conclude(out)
                self._finish(reason)

    def _delta(self, delta: dict[str, Any], out: list[Event]) -> None:
        before = len(out)
        self._say(THINKING, _thoughts_in(delta), out)
        content = delta.get("content")
        for part in content if isinstance(content, list) else ():
            self._say(THINKING, mended_text(text_of(part.get("thinking")) or ""), out)
            kind = THINKING if part.get("type") in ("reasoning", "thinking") else TOKEN
            self._say(kind, mended_text(text_of(part.get("text")) or ""), out)
        self._say(TOKEN, content, out)
        self._say(TOKEN, delta.get("refusal"), out)
        calls = delta.get("tool_calls") or ()
        if isinstance(delta.get("function_call"), dict):  # the form before there were tools
            calls = [{"function": delta["function_call"]}]
        for place, call in enumerate(calls):
            self._call(call, place if len(calls) > 1 else None, out)
        if len(out) == before and any(
            isinstance(delta[key], str | list | dict) and delta[key] for key in delta.keys() - _SILENT
        ):
            self.skipped += 1  # whatever it says, it is said under a name that nobody knows

    def _call(self, call: dict[str, Any], place: int | None, out: list[Event]) -> None:
        function, index = call["function"], call.get("index")
        id_, name = word_of(call.get("id")), word_of(function.get("name"))
        if index is None and not (id_ or name):
            index = place
        arguments, type_ = function.get("arguments") or "", word_of(call.get("type"))
        for piece in self._tools().read(index, id_, name, arguments, type_):
            self._say_call(piece, out)

    def _conclude(self, out: list[Event]) -> None:
        for last in self._chunks.rest():
            self._chunk(last, "", out)
        self._end_calls(out)


def _thoughts_in(delta: dict[str, Any]) -> str | None:
    """The thoughts, which some servers say under two names at once."""
    for key in _THOUGHTS:
        if isinstance(delta.get(key), str) and delta[key]:
            return str(mended_text(delta[key]))
    for key, texts in (("reasoning_details", ("text", "summary")), ("thinking_blocks", ("thinking",))):
        given = delta.get(key)
        parts = [part for part in given if isinstance(part, dict)] if isinstance(given, list) else []
        if said := "".join(part[name] for part in parts for name in texts if isinstance(part.get(name), str)):
            return mended_text(said)
    return None


_THOUGHTS: Final = (
    *("reasoning_content", "reasoning", "reasoning_text", "reasoning_summary"),
    *("thinking", "thinking_content", "thought", "thoughts"),
)
_SILENT: Final = frozenset(
    {
        *("role", "name", "id", "type", "model", "content", "tool_calls", "function_call"),
        *("reasoning_details", "thinking_blocks", "signature"),
    }
)
"""Members of a delta that are no part of an answer's text, or are read."""


class OpenAI(Dialect):
    """`POST {url}/chat/completions`. Source: OpenAI API reference, chat/create and chat/streaming."""

    name: ClassVar[str] = "openai"
    provider: ClassVar[str] = "openai"
    stream_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    sniffs: ClassVar[bool] = True
    prefills: ClassVar[bool] = True
    keeps_chats: ClassVar[bool] = True

    def list_call(self, url: str, api_key: str) -> Call:
        """Source: OpenAI API reference, models/list."""
        chat = "/chat/completions"
        return list_of(endpoint(url, chat), chat, "/models", self.credential(api_key))

    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        where, headers = endpoint(url, "/chat/completions"), self.credential(api_key)
        if plain:
            return post(where, chat, headers, plain=True)
        options = chat.get("stream_options")
        options = options if isinstance(options, dict) else {}
        payload = {**chat, "stream": True, "stream_options": {**options, "include_usage": True}}
        asked = options.get("include_usage") is True
        return post(where, payload, headers, added=NO_NAMES if asked else frozenset({"stream_options"}))

    def prefilled(self, chat: dict[str, Any], prefix: str) -> dict[str, Any]:
        # vLLM continues the last message only if these keys ask for it. A server that does not know them refuses the
        # request and is asked again without a prefix. Without the keys, an answer could begin again in the middle.
        return {**super().prefilled(chat, prefix), "continue_final_message": True, "add_generation_prompt": False}

    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        return ChunkAnswer(keep_usage, plain) if keep_chunks else TextAnswer()
