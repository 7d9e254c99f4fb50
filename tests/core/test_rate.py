import pytest

from gateway.core.rate import Rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10, 1)),
        ("60/min", Rate(60, 60)),
        ("1000/h", Rate(1000, 3600)),
        ("100000/day", Rate(100000, 86400)),
    ],
)
def test_rate_reads_what_it_writes(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert str(rate) == text


@pytest.mark.parametrize(
    "text", ["", "0/s", "-1/s", "60", "60/m", "60 /min", "1.5/s", "60/min ", "1" * 13 + "/s", "٣/s"]
)
def test_rate_refuses_what_is_written_otherwise(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate; allowed: .*60/min"):
        parse_rate(text)
