import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.rules import Bytes, PerTime, Seconds, Text, Whole, show_duration, show_size
from gateway.core.rate import Rate


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("15s", 15.0), ("1.5s", 1.5), ("5m", 300.0), ("1h", 3600.0), ("0s", 0.0)]
)
def test_duration_is_float_seconds(text: str, seconds: float) -> None:
    assert Seconds("0s", "1h").parse(text) == seconds


@pytest.mark.parametrize("value", ["15", "15 s", "s", "-1s", "1d", "1h30m", "1e3s", "15S", 15, 1.5, True, None, ["1s"]])
def test_duration_refuses_other_spellings(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not a duration .* allowed: 0s to 1h"):
        Seconds("0s", "1h").parse(value)


@pytest.mark.parametrize(("value", "fits"), [("99ms", False), ("100ms", True), ("1m", True), ("60001ms", False)])
def test_duration_keeps_its_bounds(value: str, fits: bool) -> None:
    if fits:
        assert Seconds("100ms", "1m").parse(value)
        return
    with pytest.raises(ValueError, match="is not in range; allowed: 100ms to 1m"):
        Seconds("100ms", "1m").parse(value)


def test_duration_zero_needs_no_unit_where_zero_is_allowed() -> None:
    assert Seconds("0s", "1m").parse(0) == 0.0
    with pytest.raises(ValueError, match="in range"):
        Seconds("1s", "1m").parse(0)


def test_duration_never_is_none_only_where_it_is_a_word() -> None:
    assert Seconds("0s", "1m", word="never").parse("never") is None
    with pytest.raises(ValueError, match="duration"):
        Seconds("0s", "1m").parse("never")


@pytest.mark.parametrize(("text", "size"), [("512B", 512), ("64KiB", 65536), ("4MiB", 4 << 20), ("1GiB", 1 << 30)])
def test_size_is_whole_bytes(text: str, size: int) -> None:
    assert Bytes("1B", "1GiB").parse(text) == size


@pytest.mark.parametrize("value", ["64KB", "64kib", "64", 64, "1.5MiB", "-1B", "2GiB", "0B", None])
def test_size_refuses_other_spellings(value: object) -> None:
    with pytest.raises(ValueError, match="allowed: 1B to 1GiB"):
        Bytes("1B", "1GiB").parse(value)


@given(st.integers(0, 10**9))
def test_duration_and_size_show_what_they_read(number: int) -> None:
    assert Seconds("0s", "999999999h").parse(show_duration(number / 1000)) == number / 1000
    assert Bytes("0B", "999999999GiB").parse(show_size(number)) == number


def test_rate_null_means_unlimited_where_it_is_optional() -> None:
    assert PerTime().parse("60/min") == Rate(60, 60.0)
    assert PerTime(optional=True)._parse_optional(None) is None
    with pytest.raises(ValueError, match="is not a rate"):
        PerTime().parse(60)


@pytest.mark.parametrize("value", [0, 11, True, "5", 5.0, None])
def test_whole_number_refuses_everything_else(value: object) -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 10"):
        Whole(1, 10).parse(value)


@pytest.mark.parametrize("value", ["", "abcd", "A", "a\n", 1, None])
def test_text_keeps_length_and_pattern(value: object) -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 3 characters of small letters"):
        Text(1, 3, "[a-z]+", "small letters").parse(value)
