"""What every dialect is: a translator of one request, and a reader of one streamed answer.

Invariants:

- An `Answer` reads one answer, once, and never raises: what is wrong with the bytes becomes `failure` or `skipped`.
- After `ended` or `failure`, further bytes are ignored.
- The events of an answer do not depend on how its bytes were cut into reads; only `text` makes its tokens per read.

This file does not know HTTP, sockets, retries, or what an answer costs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.event import Event, Usage
from gateway.core.sse import MAX_EVENT, MAX_LINE, Decoder, Oversize
from gateway.dialects import failures

MAX_TOKENS: Final = 100_000_000
"""A larger count of tokens is taken for nonsense: no model has a window near it."""
BYTES_PER_TOKEN: Final = 4
"""The output's bytes for one token, as long as nobody has counted."""
MAX_NOISE: Final = MAX_EVENT + MAX_LINE
"""Bytes in a row that may hold no event. An event of the largest size fits in; an endless comment does not."""

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, frozen=True):
    """One HTTP request to an upstream."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


class Units(Protocol):
    """Cuts bytes into events, lines or texts, however the reads were cut."""

    def feed(self, data: bytes) -> list[Any]:
        """The units that became complete.

        Raises:
            Oversize: one of them is longer than its cap.
        """


class Answer(ABC):
    """The reader of one streamed answer. The pump calls `feed` for every read, and `close` when the body ended well.

    Attributes:
        model: the model that answers; "" until the upstream has named it.
        finish_reason: why the answer ended, in OpenAI's vocabulary if that has a word for it; "" until known.
        usage: tokens as the upstream counted them; None if it did not, or if its count is nonsense. The source is
            `estimate` while the upstream has counted the prompt only.
        ended: the dialect's end marker was read.
        failure: an error that the upstream sent inside its answer, or a limit that the answer broke.
        skipped: the number of events that were not JSON or not understood.
        choices: how many choices the request asked for; set by the caller, 1 otherwise.
        size: bytes of output so far. A chunk that is kept to the letter counts as one token.

    Args:
        units: cuts the bytes into the units that `_translate` understands.
    """

    __slots__ = (
        "_noise",
        "_units",
        "choices",
        "ended",
        "failure",
        "finish_reason",
        "model",
        "size",
        "skipped",
        "usage",
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
        self.failure: GatewayError | None = None
        self.skipped = 0
        self.choices = 1
        self.size = 0
        self._noise = 0

    @property
    def complete(self) -> bool:
        """Whether the answer itself says that it is whole: by its end marker or by a finish reason."""
        return self.ended or bool(self.finish_reason)

    @property
    def over(self) -> bool:
        """Whether everything that follows is ignored."""
        return self.ended or self.failure is not None

    @property
    def deltas(self) -> int:
        """An estimate of the output so far, in tokens: a quarter of its bytes, or one for each kept chunk."""
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
            self._broke(Oversize(f"{MAX_NOISE} bytes without an event"))
        return events

    def close(self) -> list[Event]:
        """The events that the end of the body completes; half an event is dropped."""
        return [] if self.over else self._rest()

    @abstractmethod
    def _translate(self, units: list[Any]) -> list[Event]:
        """The events that these units mean. Units behind the one that ends the answer are ignored."""

    def _rest(self) -> list[Event]:
        return []

    def _broke(self, error: Oversize) -> None:
        if not self.over:
            self.failure = GatewayError("upstream_oversize", detail=str(error))

    def _say(self, kind: str, text: object, out: list[Event]) -> None:
        """Appends a delta of the answer. An empty text, and anything that is no text, is left out."""
        if isinstance(text, str) and text:
            # The length in UTF-8; a half character, which JSON can carry, counts as one.
            self.size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            out.append(Event(kind, text))

    def _aside(self, event: Event) -> None:
        """Notes an event that is no part of the answer: an error, or noise."""
        self.failure = failures.in_stream(event.type, event.data)
        self.skipped += self.failure is None


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
    """An answer that is a stream of server-sent events.

    Args:
        unnamed: the type of the events that the upstream does not name.
    """

    __slots__ = ()

    def __init__(self, unnamed: str = "") -> None:
        super().__init__(Decoder(unnamed=unnamed))


class Dialect(ABC):
    """One provider's API: how to ask it for a stream, and how to read the answer.

    A dialect holds no state, so one instance serves all answers. What the rest of the program must know of a dialect is
    said here, by the dialect itself; no other file tells dialects apart by their names.
    """

    name: ClassVar[str]
    """What `dialect:` of an upstream says in the configuration; a short word, unique among the dialects."""
    provider: ClassVar[str] = ""
    """`gen_ai.provider.name` in spans and metrics: whose API this is, not who runs the server. With "", the dialect
    belongs to no provider: spans leave the attribute out, and there are no `gen_ai_…` metrics.
    Source: OpenTelemetry semantic conventions for generative AI."""
    stream_types: ClassVar[frozenset[str]]
    """Media types that a good streaming answer has, without parameters; "" stands for no Content-Type at all."""
    needs_model: ClassVar[bool] = False
    """Whether the provider refuses a chat without a model. Where nobody names one, the first of the target's own list
    is asked for; if the API has no list, the configuration has to name one for chat routes."""
    wants_session: ClassVar[bool] = False
    """Whether `call` uses `chat["session_id"]`. It is left out for other dialects: a server may refuse unknown keys."""
    prefills: ClassVar[bool] = False
    """Whether an answer that broke off can be continued: the provider is given its beginning, as `prefilled` writes it,
    and goes on from there. Without it the question is asked again and the answer begins anew."""

    @abstractmethod
    def call(self, chat: dict[str, Any], url: str, api_key: str) -> Call:
        """The request that asks an upstream to stream the answer to a chat.

        Args:
            chat: an OpenAI chat.completions request; it is not changed.
            url: the target's base URL; a query in it is kept.
            api_key: the target's credential, "" for none.

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

    @abstractmethod
    def answer(self, *, keep_chunks: bool = False, keep_usage: bool = False) -> Answer:
        """A new reader for one answer.

        Args:
            keep_chunks: emit `CHUNK` events to the letter if the dialect has chunks, for clients that speak OpenAI.
            keep_usage: with `keep_chunks`, also emit the last chunk, which holds nothing but the usage.
        """

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes, now: float | None = None) -> GatewayError:
        """The error for an upstream's answer that is no stream; see `failures.refusal`."""
        return failures.refusal(status, headers, body, now)


def read(decoder: msgspec.json.Decoder[T], text: str) -> T | None:
    """The decoded JSON; None where it is malformed, ill-typed or nested too deep."""
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError):
        return None


def usage_of(prompt: object, completion: object) -> Usage | None:
    """The upstream's counts; None where one of them is missing, negative or nonsense."""
    into, out = count_of(prompt), count_of(completion)
    return None if into is None or out is None else Usage(into, out)


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


def post(url: str, payload: dict[str, Any], headers: dict[str, str], accept: str = "text/event-stream") -> Call:
    """A POST of JSON that asks for a stream."""
    return Call("POST", url, {"Content-Type": "application/json", "Accept": accept, **headers}, _encode(payload))
