"""Transcripts of principals: a kind and an id in, what is written and what is owned out."""

from gateway.core.principal import Principal

STREAM = frozenset({"stream"})


def test_principal_is_written_as_its_kind_and_id() -> None:
    assert str(Principal("key", "web", "default", STREAM)) == "key:web"
    assert str(Principal("addr", "2001:db8::/64", "default", STREAM)) == "addr:2001:db8::/64"


def test_principal_owns_alone_and_addresses_own_together() -> None:
    names = [("key", "anonymous"), ("key", "addr"), ("key", ""), ("user", "7"), ("addr", "a"), ("addr", "b")]
    owners = [Principal(kind, name, "default", STREAM).owner for kind, name in names]
    assert owners == ["key:anonymous", "key:addr", "key:", "user:7", "addr:", "addr:"]
