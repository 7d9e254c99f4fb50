"""What every dialect is: a translator of one request, and a reader of one streamed answer.

Invariants:

- An `Answer` reads one answer, once, and never raises: what is wrong with the bytes becomes `failure` or `skipped`.
- After `ended` or `failure`, further bytes are ignored.
- A failure behind a whole answer is none: the answer ends there, without it.
- The events of an answer do not depend on how its bytes were cut into reads; only `text` makes its tokens per read.

This file does not know HTTP, sockets, retries, or what an answer costs.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

import msgspec

from gateway.core.errors import ERROR_KINDS, GatewayError
from gateway.core.event import TOOL, Event, Usage
from gateway.core.lenient import json_of, reason_of, value_of
from gateway.core.sse import MAX_EVENT, MAX_LINE, Decoder, Oversize
from gateway.core.weight import LIGHT, is_heavy
from gateway.dialects import failures
from gateway.dialects.body import MAX_WHOLE, Gathered, IsPiece, NoAnswerError, Sniffer
from gateway.dialects.calls import Calls

MAX_TOKENS: Final = 100_000_000
"""A larger count of tokens is taken for nonsense: no model has a window near it."""
BYTES_PER_TOKEN: Final = 4
"""The output's bytes for one token, as long as nobody has counted."""
MAX_NOISE: Final = MAX_EVENT + MAX_LINE
"""Bytes in a row that may hold no event. An event of the largest size fits in; an endless comment does not."""
NO_NAMES: Final[frozenset[str]] = frozenset()

_JOINED: Final = re.compile(r"(?<=\})\s*(?:data:\s*(?=\{|\[DONE\])|(?=\{\"))")
_DOUBLED: Final = re.compile(r"(?:data:\s*)+")

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Call(msgspec.Struct, frozen=True):
    """One HTTP request to an upstream.

    Attributes:
        method, url, headers, body: of the request.
        model: the model that it asks for, "" where none is known.
        plain: whether it asks for one whole answer and not for a stream.
        added: what the gateway added to the client's request and could leave out: names of parameters, and the words of
            `core/blame.py`.
        own: the parameters of the client's own request.
        left_out: the parameters of the client's request that only tune an answer, and that the dialect does not have.
    """

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | bytearray
    model: str = ""
    plain: bool = False
    added: frozenset[str] = NO_NAMES
    own: frozenset[str] = NO_NAMES
    left_out: frozenset[str] = NO_NAMES


class Units(Protocol):
    """Cuts bytes into events, lines or texts, however the reads were cut."""

    def feed(self, data: bytes) -> list[Any]:
        """The units that became complete.

        Raises:
            Oversize: one of them is longer than its cap.
        """


class Answer(ABC):
    """The reader of one streamed answer. An attempt calls `feed` for every read, and `close` when the body ended well.

    Attributes:
        model: the model that answers; "" until the upstream has named it.
        finish_reason: why the answer ended, in OpenAI's vocabulary if that has a word for it; "" until known.
        usage: tokens as the upstream counted them; None if it did not, or if its count is nonsense. The source is
            `estimate` while the upstream has counted the prompt only.
        ended: the dialect's end marker was read.
        whole: the answer came as one value that says all of it, and not as a stream; then it has `ended`.
        failure: an error that the upstream sent inside its answer, or a limit that the answer broke.
        skipped: the number of events, and of parts of events, that were not JSON or not understood.
        choices: how many choices the request asked for; set by the caller, 1 otherwise.
        labelled: whether the answer's media type is one of its dialect's; set by the caller, True otherwise.
        may_be_empty: whether an end marker is enough, with nothing before it and no reason; set by the caller, True
            otherwise.
        salt: what makes the ids of tool calls unique that the gateway gives; set by the caller, "" otherwise.
        taken: ids of tool calls that the conversation has already; set by the caller, none otherwise.
        size: bytes of output so far; of chunks kept to the letter, at least `BYTES_PER_TOKEN` for each.

    Args:
        units: cuts the bytes into the units that `_translate` understands.
    """

    __slots__ = (
        "_calls",
        "_noise",
        "_units",
        "choices",
        "ended",
        "failure",
        "finish_reason",
        "labelled",
        "may_be_empty",
        "model",
        "salt",
        "size",
        "skipped",
        "taken",
        "usage",
        "whole",
    )

    eof_ends: ClassVar[bool] = False
    """Whether a body that ended well is a whole answer although no end marker came."""
    in_chunks: ClassVar[bool] = False
    """Whether the events are the upstream's own chunks."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self.model = ""
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.ended = False
        self.whole = False
        self.failure: GatewayError | None = None
        self.skipped = 0
        self.choices = 1
        self.labelled = True
        self.may_be_empty = True
        self.salt = ""
        self.taken: frozenset[str] = frozenset()
        self.size = 0
        self._noise = 0
        self._calls: Calls | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer has a finish reason, so that nothing of it is missing but the usage."""
        return bool(self.finish_reason)

    @property
    def complete(self) -> bool:
        """Whether the answer itself says that it is whole: by its end marker or by a finish reason."""
        return self.ended or self.finished

    @property
    def over(self) -> bool:
        """Whether everything that follows is ignored."""
        return self.ended or self.failure is not None

    @property
    def deltas(self) -> int:
        """An estimate of the output so far, in tokens: a quarter of `size`, rounded up."""
        return -(-self.size // BYTES_PER_TOKEN)

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completed."""
        # A unit that breaks a cap does not take those before it away: they are translated, then the answer fails.
        if self.ended or self.failure is not None:
            return []
        try:
            events = self._translate(self._units.feed(data))
        except Oversize as error:
            events = self._translate(error.whole)
            self._broke(error)
        # Comments and unknown events cost nothing to keep, but an upstream may send them for ever.
        self._noise = 0 if events else self._noise + len(data)
        if self._noise > MAX_NOISE:
            self._too_noisy()
        return events

    def close(self) -> list[Event]:
        """The events that the end of the body completes; half an event is dropped."""
        events = [] if self.over else self._rest()
        if not (self.labelled or self.size or self.complete or self.failure is not None):
            self.failure = GatewayError("upstream_protocol", detail="the body holds no answer")
        return events

    @abstractmethod
    def _translate(self, units: list[Any]) -> list[Event]:
        """The events that these units mean. Units behind the one that ends the answer are ignored."""

    def _rest(self) -> list[Event]:
        return []

    def _too_noisy(self) -> None:
        self._broke(Oversize(f"{MAX_NOISE} bytes without an event"))

    def _broke(self, error: Oversize) -> None:
        if not self.over:
            self._fail(GatewayError("upstream_oversize", detail=str(error)))

    def _fail(self, error: GatewayError) -> None:
        """The answer failed, unless it is whole: then what comes behind it is of no interest."""
        if self.finished:
            self.ended = True
        elif self.failure is None:
            self.failure = error

    def _say(self, kind: str, text: object, out: list[Event]) -> None:
        """Appends a delta of the answer. An empty text, and anything that is no text, is left out."""
        if isinstance(text, str) and text:
            # The length in UTF-8; a half character, which JSON can carry, counts as one.
            self.size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            out.append(Event(kind, text))

    def _tools(self) -> Calls:
        """The tool calls of this answer."""
        if self._calls is None:
            self._calls = Calls(self.salt, self.taken)
        return self._calls

    def _say_call(self, piece: dict[str, Any] | None, out: list[Event]) -> None:
        """Appends a piece of a tool call, None for none."""
        if piece is not None:
            self._say(TOOL, _encode(piece).decode(), out)

    def _end_calls(self, out: list[Event]) -> None:
        """Gives arguments to the calls that have none; to be called when no more can come."""
        if self._calls is not None:
            for piece in self._calls.rest():
                self._say_call(piece, out)

    def _aside(self, event: Event) -> None:
        """Notes an event that is no part of the answer: an error, or noise."""
        error = failures.in_stream(event.type, event.data)
        if error is not None:
            self._fail(error)
        else:
            self.skipped += 1

    def _finish(self, reason: str) -> None:
        """Notes a finish reason, in OpenAI's vocabulary if that has a word for it. Some say that the answer failed."""
        reason = reason_of(reason) or ""
        error = failures.in_reason(reason) or self._of_nothing(reason)
        if error is not None:
            self._fail(error)
        else:
            self.finish_reason = failures.word_for(reason)

    def _of_nothing(self, reason: str) -> GatewayError | None:
        """The failure of an answer that ends well, although all that it said was not understood."""
        if self.size or not self.skipped or self.may_be_empty or failures.word_for(reason) not in ("stop", "length"):
            return None
        return GatewayError("upstream_protocol", detail="nothing before the finish reason was understood")

    def _may_end(self, *, said: bool) -> bool:
        """Whether the end marker, which is here, ends a whole answer; if not, the answer has failed.

        A server that was stopped, or speaks another dialect, also sends the marker: then with nothing before it.

        Args:
            said: whether anything of the answer came.
        """
        if said or self.finished or self.may_be_empty:
            return True
        if self.skipped:
            self._fail(GatewayError("upstream_protocol", detail="nothing before the end marker was understood"))
        else:
            self._fail(GatewayError("upstream_cut", detail="the end marker came, and nothing before it"))
        return False


class UnitAnswer(Answer):
    """An answer that is translated unit by unit."""

    __slots__ = ()

    def _translate(self, units: list[Any]) -> list[Event]:
        out: list[Event] = []
        for unit in units:
            self._translate_one(unit, out)
            if self.over:
                break
        return out

    @abstractmethod
    def _translate_one(self, unit: Any, out: list[Event]) -> None:
        """Translates one unit: appends its events to `out`, or changes the answer's state."""


class EventAnswer(UnitAnswer):
    """An answer that is a stream of server-sent events, or one JSON value: its first bytes say which.

    Args:
        unnamed: the type of the events that the upstream does not name.
    """

    __slots__ = ()

    def __init__(self, unnamed: str = "") -> None:
        super().__init__(_Undecided(self, unnamed, type(self)._is_piece))

    def follow(self, units: "Decoder | Gathered") -> None:
        """From now on the bytes are cut by these units."""
        self._units = units

    @staticmethod
    def _is_piece(value: Any) -> bool:
        """Whether a JSON value is a piece of an answer, so that more of them follow, and not all of one."""
        return False

    def _parts_of(self, event: Event) -> list[Event]:
        """The events in one whose data is no JSON, as its server leaves out line ends or writes `data:` twice."""
        if "\n" not in event.data and not event.data.startswith("data:"):
            parts = _JOINED.split(event.data) if event.data.startswith("{") else []
            whole = len(parts) > 1 and all(value_of(part) is not None or part.strip() == "[DONE]" for part in parts)
            return [Event(event.type, part) for part in parts] if whole else []
        lines = [_DOUBLED.sub("", line.strip(), count=1) for line in event.data.split("\n")]
        return [Event(event.type, line) for line in lines if line]

    def _rest(self) -> list[Event]:
        # A line of JSON is whole or it is none. What the end of a body left unfinished of server-sent events may be
        # torn; it counts where it says that the answer is whole or has failed, as many servers leave out the blank
        # line behind their last words.
        units, skipped = cast("Decoder | Gathered | _Undecided", self._units), self.skipped
        try:
            events = self._translate(units.rest())
        except Oversize as error:
            self._broke(error)
            return []
        if self.complete or self.failure is not None or isinstance(units, Gathered):
            return events
        self.skipped = skipped
        return []

    def _too_noisy(self) -> None:
        if not (isinstance(self._units, Gathered) and self._noise <= MAX_WHOLE):
            super()._too_noisy()

    def _body(self, text: str, out: list[Event]) -> None:
        """Reads a body that is one JSON value."""
        self._body_of(cast(Gathered, self._units).value, text, out)

    def _body_of(self, value: Any, text: str, out: list[Event]) -> None:
        error = failures.in_value("", value, text)
        if error is not None:
            self._fail(error if self.labelled else as_refusal(error, text))
        elif isinstance(value, list) and value and all(map(self._is_piece, value)):
            for piece in value:
                self._translate_one(Event("", json_of(piece)), out)
        elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            self._body_of(value[0], json_of(value[0]), out)
        elif isinstance(value, dict) and self._read_whole(value, text, out):
            if self.failure is None:
                self.whole = self.ended = True
            else:
                out.clear()  # nothing of it is an answer
        elif self.failure is None:
            self._fail(GatewayError("upstream_protocol", detail="the body is JSON, but no answer"))

    def _read_whole(self, value: dict[str, Any], text: str, out: list[Event]) -> bool:
        """Whether the value is a whole answer; if so, its events are in `out` and the rest in the answer's state."""
        return False


def as_refusal(error: GatewayError, text: str) -> GatewayError:
    """The failure that a body of status 200 reports, as the same body would be with the status that it should have had.

    A body that says nothing of its reason is no stream, and no more is known.
    """
    if error.code == "upstream_auth":
        return error
    if error.status == ERROR_KINDS["upstream_error"].status:
        return GatewayError("upstream_protocol", detail="status 200 with an error", sentence=error.sentence)
    return failures.refusal(error.status, {}, text.encode("utf-8", "replace"))


class _Undecided:
    """The units of an `EventAnswer` until its first bytes have said what its body is."""

    __slots__ = ("_answer", "_sniffer")

    def __init__(self, answer: EventAnswer, unnamed: str, is_piece: IsPiece) -> None:
        self._answer = answer
        self._sniffer = Sniffer(unnamed, is_piece)

    def feed(self, data: bytes) -> list[Event]:
        try:
            decided = self._sniffer.feed(data)
        except NoAnswerError:
            self._answer.failure = GatewayError("upstream_protocol", detail="the body is a page")
            return []
        if decided is None:
            return []
        units, data = decided
        self._answer.follow(units)
        return units.feed(data)

    def rest(self) -> list[Event]:
        return []


class Dialect(ABC):
    """One provider's API: how to ask it for a stream, and how to read the answer.

    A dialect holds no state, so one instance serves all answers. What the rest of the program must know of a dialect is
    said here, by the dialect itself. Only what advises operators (hints, inquiry, cautions), and the check of `demo:`,
    know dialects by name.
    """

    name: ClassVar[str]
    """What `dialect:` of an upstream says in the configuration; a short word, unique among the dialects."""
    provider: ClassVar[str] = ""
    """`gen_ai.provider.name` in spans and metrics: whose API this is, not who runs the server. With "", the dialect
    belongs to no provider: spans leave the attribute out, and there are no `gen_ai_…` metrics.
    Source: OpenTelemetry semantic conventions for generative AI."""
    stream_types: ClassVar[frozenset[str]]
    """Media types that a good streaming answer has, without parameters; "" stands for no Content-Type at all."""
    sniffs: ClassVar[bool] = False
    """Whether the reader knows an answer by its bytes, so that the media type need not be right."""
    gives_reasons: ClassVar[bool] = True
    """Whether its answers can have a finish reason."""
    needs_model: ClassVar[bool] = False
    """Whether the provider refuses a chat without a model. Where nobody names one, the first of the target's own list
    is asked for; if the API has no list, the configuration has to name one for chat routes."""
    wants_session: ClassVar[bool] = False
    """Whether `call` uses `chat["session_id"]`. It is left out for other dialects: a server may refuse unknown keys."""
    prefills: ClassVar[bool] = False
    """Whether an answer that broke off can be continued: the provider is given its beginning, as `prefilled` writes it,
    and goes on from there. Without it the question is asked again and the answer begins anew."""
    keeps_chats: ClassVar[bool] = False
    """Whether the messages of a chat are sent as they are, with all their roles."""
    derives: ClassVar[frozenset[str]] = NO_NAMES
    """Parameters of which `call` makes something that a target may not know, so that they are better left out."""

    @abstractmethod
    def call(self, chat: dict[str, Any], url: str, api_key: str, *, plain: bool = False) -> Call:
        """The request that asks an upstream to answer a chat.

        Args:
            chat: an OpenAI chat.completions request; it is not changed.
            url: the target's base URL; a query in it is kept.
            api_key: the target's credential, "" for none.
            plain: whether one whole answer is asked for, and not a stream. A dialect that has only streams ignores it.

        Raises:
            GatewayError: `bad_request`, the chat holds something that this dialect cannot express.
        """

    def prefilled(self, chat: dict[str, Any], prefix: str) -> dict[str, Any]:
        """The chat with the beginning of its answer as the last message, which is the way most providers take it.

        Args:
            chat: an OpenAI chat.completions request; it is not changed.
            prefix: the answer so far, not blank. Called only where `prefills`.
        """
        return {**chat, "messages": [*chat["messages"], {"role": "assistant", "content": prefix}]}

    def reads(self, parameter: str) -> bool:
        """Whether `call` makes something of this parameter of a chat. Others that the configuration names are sent as
        they stand."""
        return True

    def list_call(self, url: str, api_key: str) -> Call | None:
        """The request for the models that a target has, for `dialects/models.py`; None where the API has no list.

        Args:
            url: the target's base URL; a query in it is kept.
            api_key: the target's credential, "" for none.
        """
        return None

    @property
    def lists_models(self) -> bool:
        """Whether the API has a list of models."""
        return self.list_call("", "") is not None

    def credential(self, api_key: str) -> dict[str, str]:
        """The headers that carry the target's credential; none for "". Source: RFC 6750 2.1."""
        return {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def accepts(self, media_type: str) -> bool:
        """Whether a body of this type, "" for none, may be an answer. That of a dialect that `sniffs` always may: PHP
        labels whatever it sends as a page, and a page is known by its first byte."""
        return media_type in self.stream_types or self.sniffs

    @abstractmethod
    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False, plain: bool = False) -> Answer:
        """A new reader for one answer: of a stream or of a whole answer, as its first bytes say.

        Args:
            keep_chunks: emit `CHUNK` events to the letter if the dialect has chunks, for clients that speak OpenAI.
            keep_usage: with `keep_chunks`, also emit the last chunk, which holds nothing but the usage.
            plain: with `keep_chunks`, emit a whole answer as one `WHOLE` event to the letter if the dialect's are
                OpenAI's. Any other whole answer gives the events that a stream would have given.
        """

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes, now: float | None = None) -> GatewayError:
        """The error for an upstream's answer that is no stream; see `failures.refusal`."""
        return failures.refusal(status, headers, body, now)


def read(decoder: msgspec.json.Decoder[T], text: str) -> T | None:
    """The decoded JSON; None where it is malformed, ill-typed, nested too deep or takes too long to read."""
    if len(text) > LIGHT and is_heavy(text):
        return None
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError):
        return None


def usage_of(prompt: object, completion: object, cached: object = None) -> Usage | None:
    """The upstream's counts; None where one of the first two is missing, negative or nonsense."""
    into, out = count_of(prompt), count_of(completion)
    if into is None or out is None:
        return None
    return Usage(into, out, cached_input=min(count_of(cached) or 0, into))


def count_of(value: object) -> int | None:
    """A count of tokens; None where it is missing, negative or nonsense."""
    # Some servers send counts as 12.0; a bool is an `int`, but no count.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MAX_TOKENS else None


def endpoint(url: str, path: str) -> str:
    """The URL with `path` appended to its own path, unless it ends with it already; a query is kept."""
    parts = urlsplit(url)
    base = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=base if base.endswith(path) else base + path))


def post(
    url: str,
    payload: dict[str, Any],
    headers: dict[str, str],
    accept: str = "text/event-stream",
    *,
    plain: bool = False,
    added: frozenset[str] = NO_NAMES,
    left_out: frozenset[str] = NO_NAMES,
) -> Call:
    """A POST of JSON that asks for a stream; with `plain`, for one whole answer. For the rest see `Call`."""
    accept = "application/json" if plain else accept
    headers = {"Content-Type": "application/json", "Accept": accept, **headers}
    return Call("POST", url, headers, _encode(payload), plain=plain, added=added, left_out=left_out)


def amended(
    body: bytes | bytearray, *, beside: Mapping[str, Any], instead: Mapping[str, Any], without: Collection[str]
) -> bytes | bytearray:
    """A JSON object with members added where it has none of the name, others replaced, and others left out.

    The rest stays to the letter, and what is no JSON object stays as it is.
    """
    try:
        members: dict[str, Any] = {name: raw for name, raw in _members(body).items() if name not in without}
    except ValueError:
        return body
    return _encode({**beside, **members, **instead})
