"""Tickets: what stands in a URL in place of a credential, because browsers, proxies and servers write URLs down.

    issued --first use--> bound --its stream was started or found--> used --the stream is gone--> forgotten
       |                    |                                         |
       +---------ttl--------+--> forgotten                            +--the credential ended: forgotten

Invariants:

- A ticket starts one stream, once, within its ttl; or it reads the one stream that it was issued for. After that it
  gives nothing but that stream, to the address and on the route of its first use.
- What a log shows of a request is worth nothing later: once the stream was read to its end, or `ttl` after the first
  use, a request must prove with a cursor in its `Last-Event-ID` that it has read the stream before. A browser sends
  that header by itself, and logs do not have it.
- Only hashes of tickets are kept. There are `MAX_TICKETS` at most; a principal that asks for too many loses its own.

This file asks no clock and no registry: `now` is unix seconds, and the caller says whether a stream still exists. So a
store that several machines share can take its place.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from typing import Final

from gateway.core.cursor import worker_letter
from gateway.core.principal import Principal

MAX_TICKETS: Final = 65_536
"""Tickets of all principals together: about 50 MB."""
SHARE: Final = 4
"""A principal holds one in so many of them at most. When it asks for more it loses its own; where all together are too
many, the one that holds most does."""
LOOK: Final = 4
"""Used tickets that are checked, each time one is issued, for a stream that is gone."""
_FORM: Final = re.compile(r"[A-Za-z0-9_-]{32}")


class Ticket:
    """One ticket. Only `Tickets` changes it.

    Attributes:
        key: its hash.
        until: unix seconds until which it may be used for the first time; then until which it needs no proof.
        principal: whose credential it stands for, as it was when the ticket was issued.
        stream_id: the stream that it reads, "" until it has started one.
        route, address: of its first use, "" before.
        used: whether its stream was started or read.
        read_out: whether its stream was read to the end.
    """

    __slots__ = ("address", "key", "principal", "read_out", "route", "stream_id", "until", "used")

    def __init__(self, key: bytes, principal: Principal, stream_id: str, until: float) -> None:
        self.key = key
        self.until = until
        self.principal = principal
        self.stream_id = stream_id
        self.route = ""
        self.address = ""
        self.used = False
        self.read_out = False


class Tickets:
    """The tickets of one process.

    Args:
        worker: this process's number where several share a port; a ticket begins with it, as a stream's id does.
        exists: whether the stream with this id of this owner can still be read.
        limit: tickets at most.
    """

    def __init__(self, worker: int | None, exists: Callable[[str, str], bool], limit: int = MAX_TICKETS) -> None:
        self._worker = worker
        self._exists = exists
        self._limit = limit
        self._waiting: dict[bytes, Ticket] = {}  # not used yet, oldest first
        self._used: dict[bytes, Ticket] = {}
        self._of: dict[str, tuple[dict[bytes, None], dict[bytes, None]]] = {}  # waiting and used, by principal

    def __len__(self) -> int:
        return len(self._waiting) + len(self._used)

    def issue(self, principal: Principal, ttl: float, now: float, stream_id: str = "") -> str:
        """A new ticket: 32 URL-safe characters, 186 random bits.

        Args:
            principal: whose credential it stands for.
            ttl: seconds for its first use.
            now: unix seconds.
            stream_id: the stream that it reads. Without it, the ticket starts one.

        """
        self._tidy(now)
        self._make_room(str(principal))
        text = self.new_text()
        ticket = Ticket(ticket_key(text), principal, stream_id, now + ttl)
        self._waiting[ticket.key] = ticket
        self._of.setdefault(str(principal), ({}, {}))[0][ticket.key] = None
        return text

    def new_text(self) -> str:
        """The text of a ticket that nobody has."""
        text = secrets.token_urlsafe(24)
        return text if self._worker is None else worker_letter(self._worker) + text[1:]

    def redeem(
        self, text: str, route: str, address: str, now: float, proof: Callable[[str], bool], *, starts: bool = True
    ) -> Ticket | None:
        """The ticket, bound to this route and address; None where it is worth nothing here and now.

        Args:
            text: as the client sent it.
            route: what its path leads to.
            address: where it comes from, as limits name it.
            now: unix seconds.
            proof: whether the client shows that it has read the stream with this id.
            starts: whether a stream can be started there; where it cannot, the ticket must be one for reading.
        """
        if not is_ticket(text):
            return None
        key = ticket_key(text)
        ticket = self._waiting.get(key) or self._used.get(key)
        if ticket is None or (ticket.route and (ticket.route, ticket.address) != (route, address)):
            return None
        ended = ticket.principal.expires is not None and now >= ticket.principal.expires
        gone = ticket.stream_id != "" and not self._exists(ticket.stream_id, ticket.principal.owner)
        if ended or gone or (not ticket.used and now >= ticket.until):
            self._forget(ticket)
            return None
        if not starts and not ticket.stream_id:
            return None
        if ticket.used and (ticket.read_out or now >= ticket.until) and not proof(ticket.stream_id):
            return None
        ticket.route, ticket.address = route, address
        return ticket

    def use(self, ticket: Ticket, stream_id: str, ttl: float, now: float) -> None:
        """The ticket gives this stream and no other from now on; for `ttl` seconds without a proof."""
        if ticket.used or ticket.key not in self._waiting:
            return
        ticket.used, ticket.stream_id, ticket.until = True, stream_id, now + ttl
        self._used[ticket.key] = self._waiting.pop(ticket.key)
        waiting, used = self._of[str(ticket.principal)]
        used[ticket.key] = waiting.pop(ticket.key)

    def keep(self, ticket: Ticket) -> None:
        """A ticket of another store, whose stream was started or read here, is one of these from now on."""
        if ticket.key not in self._used:
            self._make_room(str(ticket.principal))
            self._used[ticket.key] = ticket
            self._of.setdefault(str(ticket.principal), ({}, {}))[1][ticket.key] = None

    def read_out(self, ticket: Ticket) -> None:
        """The ticket's stream was read to its end."""
        ticket.read_out = True
        if (own := self._used.get(ticket.key)) is not None:
            own.read_out = True

    def knows(self, text: str) -> bool:
        """Whether the ticket with this text is here and was used."""
        return ticket_key(text) in self._used

    def exists(self, stream_id: str, owner: str) -> bool:
        """Whether the stream with this id of this owner can still be read here."""
        return self._exists(stream_id, owner)

    def starts(self, ticket: Ticket) -> bool:
        """Whether the ticket may start a stream now."""
        return not ticket.stream_id and ticket.key in self._waiting

    def revoke(self, principal: str) -> int:
        """Forgets all tickets of this principal, `kind:id`. Returns how many there were."""
        keys = [key for some in self._of.get(principal, ()) for key in some]
        for key in keys:
            self._forget(self._waiting.get(key) or self._used[key])
        return len(keys)

    @property
    def principals(self) -> list[Principal]:
        """The principals that hold tickets, each once."""
        tickets = (*self._waiting.values(), *self._used.values())
        return list({str(ticket.principal): ticket.principal for ticket in tickets}.values())

    def _make_room(self, whose: str) -> None:
        if self._held(whose) >= self._limit // SHARE:
            self._lose_one(whose)
        elif len(self) >= self._limit:
            self._lose_one(max(self._of, key=self._held))

    def _held(self, whose: str) -> int:
        return sum(len(some) for some in self._of.get(whose, ()))

    def _lose_one(self, whose: str) -> None:
        # The oldest one that is not used, else the oldest: a flood of new ones must not end streams that run.
        waiting, used = self._of[whose]
        key = next(iter(waiting or used))
        self._forget(self._waiting.get(key) or self._used[key])

    def _tidy(self, now: float) -> None:
        # Tickets are issued in the order in which they end, but for a reload that changes the ttl: those end later.
        while (ticket := next(iter(self._waiting.values()), None)) is not None and now >= ticket.until:
            self._forget(ticket)
        for key in [key for key, _ in zip(self._used, range(LOOK), strict=False)]:
            ticket = self._used.pop(key)
            self._used[key] = ticket  # at the end: another one's turn next time
            if not self._exists(ticket.stream_id, ticket.principal.owner):
                self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        self._waiting.pop(ticket.key, None)
        self._used.pop(ticket.key, None)
        whose = str(ticket.principal)
        waiting, used = self._of[whose]
        waiting.pop(ticket.key, None)
        used.pop(ticket.key, None)
        if not waiting and not used:
            del self._of[whose]


def is_ticket(text: str) -> bool:
    """Whether the text has the form of a ticket."""
    return _FORM.fullmatch(text) is not None


def ticket_key(text: str) -> bytes:
    """What a ticket is found by. Nobody can choose a ticket so that its hash begins in a certain way, so the time of a
    look-up tells nothing about the tickets there are."""
    return hashlib.sha256(text.encode()).digest()
