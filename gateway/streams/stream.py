"""What a reader needs to know of a stream. How its log is filled is not a reader's business.

A `Stream` consists of plain values. `to_json` writes them and `from_json` reads them, so that a reader may be on
another machine than the writer. The writer's side is a `Generation`. A reader sees it, or any other stream whose log
this process has, as a `Followed`.
"""

import asyncio
from typing import Literal, Protocol

import msgspec

from gateway.config import Stream as StreamConfig
from gateway.core.bucket import Gate
from gateway.core.cursor import Place
from gateway.formats import Format, Spec, View, load_format
from gateway.observe.metrics import Outcome
from gateway.streams.log import Log
from gateway.streams.reader import Reader


class ReaderSettings(msgspec.Struct, frozen=True):
    """How a route's readers are sent events. All streams of a route have the same. Times are in seconds.

    Attributes:
        heartbeat: the longest silence; then a comment is sent.
        boundary: where a batch may end.
        max_bytes: bytes of a batch, at most.
        merge: whether the deltas of one batch are joined into one event.
        resumable: whether events carry cursors.
        retry: base of the time after which a browser reconnects.
        kept: for how long a stream can be read after its end.
        log_bytes: of a stream's events that are kept for readers who come back.
        write_timeout: how long a client may take nothing.
        compress: whether answers are compressed for clients that accept it.
    """

    heartbeat: float = 15.0
    boundary: Literal["event", "sentence", "paragraph"] = "event"
    max_bytes: int = 16 << 10
    merge: bool = False
    resumable: bool = True
    retry: float = 2.0
    kept: float = 300.0
    log_bytes: int = 8 << 20
    write_timeout: float = 20.0
    compress: bool = False


def reader_settings(config: StreamConfig) -> ReaderSettings:
    """The reader's part of a route's stream settings."""
    return ReaderSettings(
        heartbeat=config.heartbeat,
        boundary=config.batch.boundary,
        max_bytes=config.batch.max_bytes,
        merge=config.merge,
        resumable=config.resume.enabled,
        retry=config.retry,
        kept=config.resume.ttl,
        log_bytes=config.resume.max_bytes,
        write_timeout=config.write_timeout,
        compress=config.compress,
    )


class _Written(msgspec.Struct):
    """A stream as JSON."""

    id: str
    owner: str
    route: str
    created: int
    session_id: str
    format: Spec
    settings: ReaderSettings


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream, as its readers know it.

    Attributes:
        id: the public, unguessable id.
        owner: the principal that may read it, and no other; as `Principal.owner` gives it.
        route: the path of its route, as metrics and logs name it.
        created: when it began, in unix seconds.
        format: turns its events into blocks.
        settings: how its readers are sent these.
        session_id: the chat session, "" without one.
    """

    id: str
    owner: str
    route: str
    created: int
    format: Format
    settings: ReaderSettings
    session_id: str = ""

    def view(self, model: str, *, resumed: bool = False) -> View:
        """What the format may use of it for one reader."""
        return View(self.id, self.session_id, model, self.created, resumed)

    def to_json(self) -> bytes:
        """This stream as JSON, for a reader somewhere else."""
        written = _Written(
            self.id, self.owner, self.route, self.created, self.session_id, self.format.spec, self.settings
        )
        return msgspec.json.encode(written)

    @classmethod
    def from_json(cls, data: bytes) -> "Stream":
        """The stream that `to_json` wrote.

        Raises:
            ValueError: `data` is no such JSON, or its format is not known here.
        """
        written = msgspec.json.decode(data, type=_Written)
        return cls(
            id=written.id,
            owner=written.owner,
            route=written.route,
            created=written.created,
            session_id=written.session_id,
            format=load_format(written.format),
            settings=written.settings,
        )


class Followed(Protocol):
    """A stream that can be read here, because it is generated here or this process has its log."""

    @property
    def stream(self) -> Stream:
        """What its readers need to know."""

    @property
    def log(self) -> Log:
        """Its events."""

    gate: Gate | None
    """Limits how often readers come back; None until one does."""
    ended: "asyncio.Future[None]"
    """Done when it has ended."""

    @property
    def state(self) -> str:
        """`waiting` for the first event, `streaming`, or how it ended."""

    def attach(self, place: Place) -> Reader:
        """A reader at this place. After this you must call `detach`, however the reader ends."""

    def detach(self, reader: Reader, sent_bytes: int, reason: Outcome = "client_gone") -> None:
        """The reader has left for this reason, after it was sent `sent_bytes`."""

    def extend(self, expires_in: float | None) -> None:
        """Its owner came with a credential that expires in so many seconds, None for never. It goes on until the last
        of its owner's credentials has expired."""

    def stop(self) -> None:
        """Ends it with what it has, because the user wants no more. `ended` is done when it has ended."""
