"""The store of tickets, without a network or a clock: what a ticket is worth, where, and until when."""

from collections.abc import Callable

import pytest

from gateway.core.principal import Principal
from gateway.identity.tickets import Ticket, Tickets

WEB = Principal("key", "web", "default", frozenset({"stream"}))
SOON = Principal("key", "soon", "default", frozenset({"stream"}), expires=110.0)
STREAM, OTHER = "s" * 22, "o" * 22
TTL = 30.0


class Store(Tickets):
    """A store whose streams are those in `streams`."""

    def __init__(self, limit: int = 1000) -> None:
        self.streams = {STREAM, OTHER}
        super().__init__(None, lambda stream_id, owner: stream_id in self.streams, limit)

    def look(
        self, text: str, now: float = 100.0, route: str = "/chat", address: str = "192.0.2.1", read: str = ""
    ) -> Ticket | None:
        return self.redeem(text, route, address, now, lambda stream_id: stream_id == read)

    def start(self, text: str, now: float = 100.0) -> None:
        ticket = self.look(text, now)
        assert ticket is not None
        assert self.starts(ticket)
        self.use(ticket, STREAM, TTL, now)


def test_ticket_starts_one_stream_and_then_gives_only_that() -> None:
    store = Store()
    text = store.issue(WEB, TTL, 100.0)
    store.start(text)
    again = store.look(text)
    assert again is not None
    assert (again.stream_id, again.principal, store.starts(again)) == (STREAM, WEB, False)
    store.use(again, OTHER, TTL, 100.0)
    assert again.stream_id == STREAM


LATER: dict[str, tuple[Callable[[Store, str], Ticket | None], bool]] = {
    "at once": (lambda store, text: store.look(text), True),
    "at the end of its ttl": (lambda store, text: store.look(text, 129.9), True),
    "later": (lambda store, text: store.look(text, 130.0), False),
    "later, by one who has read it": (lambda store, text: store.look(text, 1000.0, read=STREAM), True),
    "later, by one who has read another stream": (lambda store, text: store.look(text, 1000.0, read=OTHER), False),
    "from another address": (lambda store, text: store.look(text, address="192.0.2.2"), False),
    "from another address, by one who has read it": (
        lambda store, text: store.look(text, address="192.0.2.2", read=STREAM),
        False,
    ),
    "on another route": (lambda store, text: store.look(text, route="/other"), False),
}


@pytest.mark.parametrize("name", LATER)
def test_used_ticket_is_worth_something_only_to_its_reader(name: str) -> None:
    look, known = LATER[name]
    store = Store()
    text = store.issue(WEB, TTL, 95.0)
    store.start(text)
    assert (look(store, text) is not None) == known


def test_ticket_of_a_stream_that_was_read_to_its_end_is_worthless_without_a_cursor() -> None:
    store = Store()
    text = store.issue(WEB, TTL, 100.0)
    store.start(text)
    ticket = store.look(text)
    assert ticket is not None
    ticket.read_out = True
    assert store.look(text) is None
    assert store.look(text, read=STREAM) is ticket


@pytest.mark.parametrize(("now", "known"), [(129.9, True), (130.0, False)])
def test_unused_ticket_ends_with_its_ttl(now: float, known: bool) -> None:
    store = Store()
    text = store.issue(WEB, TTL, 100.0)
    assert (store.look(text, now) is not None) == known
    assert len(store) == int(known)


def test_unused_ticket_stays_with_the_address_and_route_that_showed_it_first() -> None:
    store = Store()
    text = store.issue(WEB, TTL, 100.0)
    assert store.look(text)
    assert store.look(text, address="192.0.2.2") is None
    assert store.look(text, route="/other") is None
    assert store.look(text)


@pytest.mark.parametrize("used", [False, True])
def test_ticket_ends_with_the_credential_behind_it(used: bool) -> None:
    store = Store()
    text = store.issue(SOON, TTL, 100.0)
    if used:
        store.start(text, 105.0)
    assert store.look(text, 109.9, read=STREAM)
    assert store.look(text, 110.0, read=STREAM) is None
    assert len(store) == 0


def test_ticket_ends_with_its_stream() -> None:
    store = Store()
    text = store.issue(WEB, TTL, 100.0)
    store.start(text)
    store.streams.clear()
    assert store.look(text, read=STREAM) is None
    assert len(store) == 0


def test_ticket_for_a_stream_starts_none() -> None:
    store = Store()
    ticket = store.look(store.issue(WEB, TTL, 100.0, STREAM))
    assert ticket is not None
    assert not store.starts(ticket)


def test_ticket_that_starts_a_stream_reads_none_by_its_path() -> None:
    store = Store()
    text = store.issue(WEB, TTL, 100.0)
    assert store.redeem(text, "/streams", "a", 100.0, lambda _: True, starts=False) is None
    assert store.look(text)


@pytest.mark.parametrize("text", ["", "x", "x" * 31, "x" * 33, "x" * 32, "é" * 32, "x" * 1_000_000, "\udcff" * 32])
def test_anything_else_is_no_ticket(text: str) -> None:
    store = Store()
    store.issue(WEB, TTL, 100.0)
    assert store.look(text) is None


def test_tickets_are_all_different_and_safe_in_a_url() -> None:
    store = Store(100_000)
    texts = {store.issue(WEB, TTL, 100.0) for _ in range(1000)}
    assert len(texts) == 1000
    assert all(len(text) == 32 and text.replace("-", "").replace("_", "").isalnum() for text in texts)


def test_ticket_names_its_worker() -> None:
    assert {Tickets(2, lambda *_: True).issue(WEB, TTL, 0.0)[0] for _ in range(20)} == {"C"}


def test_flood_loses_its_own_tickets_first_and_unused_ones_before_used_ones() -> None:
    store = Store(limit=100)
    others = store.issue(SOON, TTL, 100.0)
    used = store.issue(WEB, TTL, 100.0)
    store.start(used)
    flood = [store.issue(WEB, TTL, 100.0) for _ in range(1000)]
    assert len(store) <= 26
    assert store.look(others)
    assert store.look(used)
    assert store.look(flood[0]) is None
    assert store.look(flood[-1])


def test_many_floods_together_are_bounded_and_lose_their_own() -> None:
    store = Store(limit=100)
    text = store.issue(WEB, TTL, 100.0)
    for number in range(30):
        for _ in range(50):
            store.issue(Principal("jwt", f"{number}", "default", frozenset()), TTL, 100.0)
    assert len(store) == 100
    assert store.look(text)
    assert store.issue(WEB, TTL, 131.0)  # all others have ended
    assert len(store) == 1


def test_used_tickets_of_streams_that_are_gone_make_room() -> None:
    store = Store()
    for _ in range(10):
        store.start(store.issue(WEB, TTL, 100.0))
    store.streams.clear()
    for _ in range(4):
        store.issue(WEB, TTL, 100.0)
    assert len(store) == 4


def test_revoked_principal_has_no_tickets() -> None:
    store = Store()
    namesake = Principal("jwt", "web", "default", frozenset())
    unused, used, other = store.issue(WEB, TTL, 100.0), store.issue(WEB, TTL, 100.0), store.issue(namesake, TTL, 100.0)
    store.start(used)
    assert store.revoke("key:web") == 2
    assert store.revoke("key:web") == 0
    assert store.look(unused) is None
    assert store.look(used, read=STREAM) is None
    assert store.look(other)


def test_ticket_that_was_revoked_while_its_request_arrived_starts_nothing() -> None:
    store = Store()
    ticket = store.look(store.issue(WEB, TTL, 100.0))
    assert ticket is not None
    store.revoke("key:web")
    assert not store.starts(ticket)
    store.use(ticket, STREAM, TTL, 100.0)
    assert len(store) == 0
