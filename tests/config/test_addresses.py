from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.config.addresses import Address, Listen, Moment, Network, Origin, Path, Url, shape


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("[::1]:8080", Address("::1", 8080)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_listen_reads_host_and_port(text: str, address: Address) -> None:
    assert Listen().parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "value", [8080, ":8080", "127.0.0.1", "::1:8080", "[127.0.0.1]:80", "a:65536", "a b:1", "[::g]:1"]
)
def test_listen_refuses_what_cannot_be_bound(value: object) -> None:
    with pytest.raises(ValueError, match=r"allowed: host:port, as in 127\.0\.0\.1:8080"):
        Listen().parse(value)


def test_address_collides_with_a_wildcard_but_never_on_port_0() -> None:
    assert Address("0.0.0.0", 80).collides(Address("127.0.0.1", 80))
    assert not Address("127.0.0.1", 80).collides(Address("127.0.0.1", 81))
    assert not Address("127.0.0.1", 0).collides(Address("127.0.0.1", 0))


def test_network_takes_cidr_and_single_addresses() -> None:
    assert str(Network().parse("10.0.0.0/8")) == "10.0.0.0/8"
    assert str(Network().parse("::1")) == "::1/128"
    with pytest.raises(ValueError, match="no bit may be set after the prefix"):
        Network().parse("10.0.0.1/8")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.com:443", "https://app.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://例子.中国", "https://xn--fsqu00a.xn--fiqs8s"),
        ("*", "*"),
    ],
)
def test_origin_is_what_a_browser_sends(text: str, origin: str) -> None:
    assert Origin().parse(text) == origin


@pytest.mark.parametrize(
    "text", ["https://a/", "https://a/x", "a.com", "null", "https://u@a", "ftp://a", "https://", "https://a:x"]
)
def test_origin_refuses_what_no_browser_sends(text: str) -> None:
    with pytest.raises(ValueError, match="is not an origin; allowed: https://host"):
        Origin().parse(text)


def test_url_loses_its_last_slash_and_keeps_its_path() -> None:
    assert Url().parse("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"
    assert Url().parse("demo:") == "demo:"


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:8000",
        "http://k:secret@a/v1",
        "http://a/?key=secret",
        "http://a/#x",
        "http://a b",
        "http://a:99999",
        "http://" + "a" * 64,
    ],
)
def test_url_refuses_credentials_and_what_is_no_url_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="is not a base URL") as refusal:
        Url().parse(text)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("path", ["/", "/api/chat", "/接口/聊天", "/v1/", "/a.b/~c"])
def test_path_is_kept(path: str) -> None:
    assert Path().parse(path) == path


@pytest.mark.parametrize(
    "path", ["", "api", "/a b", "/a?b", "/a#b", "//a", "/a//b", "/../a", "/a/..", "/%2e", "/" + "a" * 256, "/{id}"]
)
def test_path_refuses_what_never_matches(path: str) -> None:
    with pytest.raises(ValueError, match="allowed: up to 256 characters"):
        Path().parse(path)


@pytest.mark.parametrize("path", ["/{path}", "/a/{id}/b/{path}", "/a/{id}"])
def test_path_takes_parameters_where_they_are_allowed(path: str) -> None:
    assert Path(variable=True).parse(path) == path


@pytest.mark.parametrize("path", ["/{path}/a", "/a{id}", "/{}", "/{1}", "/{id}/{id}", "/{id", "/id}"])
def test_path_refuses_parameters_that_match_nothing(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        Path(variable=True).parse(path)


def test_shape_ignores_what_a_parameter_is_called() -> None:
    assert shape("/a/{id}") == shape("/a/{x}") != shape("/a/{path}")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31 12:00:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+08:00", datetime(2027, 1, 31, 12, tzinfo=timezone(timedelta(hours=8)))),
    ],
)
def test_moment_is_utc_where_it_names_no_zone(text: str, moment: datetime) -> None:
    assert Moment().parse(text) == moment


@pytest.mark.parametrize("value", ["tomorrow", "2027-02-30", "31.01.2027", 20270131])
def test_moment_refuses_what_is_no_date(value: object) -> None:
    with pytest.raises(ValueError, match="is not a date; allowed: a date or time"):
        Moment().parse(value)
