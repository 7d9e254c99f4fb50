"""Which requests of a browser the admin listener believes."""

import pytest

from gateway.web.guard import is_known_host, is_same_origin


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9090",
        "[::1]:9090",
        "10.1.2.3",
        "localhost:9090",
        "LOCALHOST",
        "localhost.:1",
        "a.localhost",
    ],
)
def test_guard_knows_what_nobody_can_give_away(host: str) -> None:
    assert is_known_host(host, "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "x@y", "notlocalhost", "a b"],
)
def test_guard_knows_no_other_name(host: str) -> None:
    assert not is_known_host(host, "127.0.0.1")


def test_guard_knows_the_configured_name_and_who_sends_none() -> None:
    assert is_known_host("Ops.example:9090", "ops.Example")
    assert is_known_host(None, "127.0.0.1")


def test_guard_compares_the_origin_with_the_host() -> None:
    host = {"Host": "127.0.0.1:9090"}
    assert is_same_origin(host)
    assert is_same_origin(host | {"Origin": "http://127.0.0.1:9090", "Sec-Fetch-Site": "same-origin"})
    assert is_same_origin(host | {"Origin": "https://127.0.0.1:9090"})
    assert not is_same_origin(host | {"Origin": "http://127.0.0.1:8080"})
    assert not is_same_origin(host | {"Origin": "null"})
    assert not is_same_origin(host | {"Origin": "http://["})
