"""Transcripts of credentials: header lines in, principals and stripped lines out."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.credential import (
    INDEX,
    MAX_SECRET,
    Key,
    Keyring,
    Presented,
    address_key,
    client_address,
    cookie_allowed,
    digest,
    find_credential,
    strip_query,
)
from gateway.core.principal import Principal

STREAM = frozenset({"stream"})
NOW = 1_800_000_000.0


def key(name: str, secret: str, expires: float | None = None) -> Key:
    return Key(name, bytes.fromhex(digest(secret)), "default", STREAM, expires)


# keys


def test_digest_is_the_sha256_in_hex() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_keyring_finds_the_principal_of_a_secret() -> None:
    ring = Keyring([key("web", "s3cret"), key("ops", "钥匙，很长")])
    assert ring.match("s3cret", NOW) == Principal("key", "web", "default", STREAM)
    assert ring.match("钥匙，很长", NOW) == Principal("key", "ops", "default", STREAM)


@pytest.mark.parametrize("secret", ["", "S3cret", "s3cret ", "s3cre", "\udce9", "x" * (MAX_SECRET + 1)])
def test_keyring_knows_no_other_secret(secret: str) -> None:
    assert Keyring([key("web", "s3cret")]).match(secret, NOW) is None


def test_keyring_does_not_hash_what_is_too_long() -> None:
    longest = "x" * MAX_SECRET
    ring = Keyring([key("web", longest), key("too", longest + "x")])
    assert ring.match(longest, NOW) is not None
    assert ring.match(longest + "x", NOW) is None


def test_keyring_drops_a_key_at_its_expiry() -> None:
    ring = Keyring([key("web", "s3cret", expires=NOW)])
    assert ring.match("s3cret", NOW - 0.001) == Principal("key", "web", "default", STREAM, NOW)
    assert ring.match("s3cret", NOW) is None


def test_keyring_decides_by_the_whole_digest() -> None:
    whole = bytes.fromhex(digest("s3cret"))
    near = Key("near", whole[:INDEX] + bytes(32 - INDEX), "default", STREAM)
    assert Keyring([near]).match("s3cret", NOW) is None
    assert Keyring([near, key("web", "s3cret")]).match("s3cret", NOW) == Principal("key", "web", "default", STREAM)


# where they are looked for


def find(sources: str, authorization: str | None = None, cookie: str = "", query: str = "") -> Presented | None:
    return find_credential(sources.split(), authorization, {"gt": cookie}, {"token": query}, "gt", "token")


def test_finder_takes_the_first_source_that_has_one() -> None:
    assert find("header cookie query", "Bearer h", "c", "q") == ("h", "header")
    assert find("query header", "Bearer h", "c", "q") == ("q", "query")
    assert find("header cookie query", None, "c", "q") == ("c", "cookie")
    assert find("header", None, "c", "q") is None


@pytest.mark.parametrize("line", ["Bearer k", "bearer k", "BEARER  k ", " Bearer k"])
def test_finder_reads_bearer_in_any_case(line: str) -> None:
    assert find("header", line) == ("k", "header")


@pytest.mark.parametrize("line", ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "k", "Bearerk"])
def test_finder_ignores_other_schemes_and_looks_on(line: str) -> None:
    assert find("header query", line, query="q") == ("q", "query")
    assert find_credential(["cookie", "query"], None, {}, {}, "gt", "token") is None


# cookies


@pytest.mark.parametrize(
    ("origin", "site", "allowed"),
    [
        ("https://app.example.com", "cross-site", True),
        ("https://app.example.com", None, True),
        ("https://evil.example", "cross-site", False),
        ("https://evil.example", "same-site", False),
        ("http://app.example.com", None, False),
        (None, "same-origin", True),
        ("http://127.0.0.1:8080", "same-origin", True),
        (None, "none", False),
        (None, None, False),
        ("null", None, False),
        ("*", None, False),
    ],
)
def test_cookie_counts_only_from_a_known_page(origin: str | None, site: str | None, allowed: bool) -> None:
    assert cookie_allowed(origin, site, ["https://app.example.com", "*", "null"]) is allowed


# what an upstream is not shown


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("token=s", ""),
        ("a=1&token=s&b=2", "a=1&b=2"),
        ("token=s&a=%7E+%e4%bd%a0", "a=%7E+%e4%bd%a0"),
        ("a&&token&b==&", "a&&b==&"),
        ("tokens=1&Token=2&atoken=3", "tokens=1&Token=2&atoken=3"),
        ("%74oken=s&tok%65n=t&a=token", "a=token"),
        ("ticket=t&token=s&ticket=u", ""),
    ],
)
def test_query_loses_its_credential_and_no_other_byte(before: str, after: str) -> None:
    assert strip_query(before, {"token", "ticket"}) == after


@given(st.text("ab%4=&+;?/", max_size=30))
def test_query_without_a_credential_is_untouched(query: str) -> None:
    assert strip_query(query, {"token"}) == query


# addresses

TRUSTED = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.7", "203.0.113.9", "198.51.100.7"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "6.6.6.6, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("127.0.0.1", "10.9.9.9,10.1.2.3", "10.9.9.9"),
        ("::1", "[2001:DB8::1]:443", "2001:db8::1"),
        ("::ffff:127.0.0.1", "203.0.113.9:5000", "203.0.113.9"),
        ("fe80::1%eth0", "203.0.113.9", "fe80::1"),
        ("127.0.0.1", "203.0.113.9, unknown, 10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", ",,;\x00%", "127.0.0.1"),
        ("", "203.0.113.9", ""),
        ("/run/gateway.sock", "203.0.113.9", "/run/gateway.sock"),
    ],
)
def test_client_is_the_nearest_address_nobody_trusted_vouches_for(
    peer: str, forwarded: str | None, client: str
) -> None:
    assert client_address(peer, forwarded, TRUSTED) == client


def test_client_address_reads_a_bounded_number_of_hops() -> None:
    assert client_address("127.0.0.1", "203.0.113.9" + ", 10.0.0.1" * 40, TRUSTED) == "10.0.0.1"
    assert client_address("127.0.0.1", "203.0.113.9" + ", 10.0.0.1" * 31, TRUSTED) == "203.0.113.9"


@given(st.text("0123456789abcdef.:,[]% x", max_size=60))
def test_client_address_survives_any_header(forwarded: str) -> None:
    assert ipaddress.ip_address(client_address("127.0.0.1", forwarded, TRUSTED))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("", ""),
        ("/" + "x" * 99, "/" + "x" * 63),
    ],
)
def test_addresses_of_one_holder_share_a_key(address: str, name: str) -> None:
    assert address_key(address) == name
