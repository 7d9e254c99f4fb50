"""Failures: the line of each, the newest in memory, and URLs and paths that are fit for a log."""

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.observe.failures import KEPT, MAX_URL, Failed, Failures, Kind, asked_at, cleaned_path
from gateway.observe.recent import Recent


def failed(kind: Kind = "attempt", **changes: object) -> Failed:
    facts: dict[str, object] = dict.fromkeys(Failed.__struct_fields__, "") | {"status": None, "code": "upstream_cut"}
    return Failed(**facts | {"kind": kind} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "asked", "path"),
    [
        ("http://h:1/v1/x", "http://h:1/v1/x", "/v1/x"),
        ("https://user:pass@h/v1?key=k#f", "https://h/v1", "/v1"),
        ("http://[::1]:8000/a%20b?message=hi", "http://[::1]:8000/a%20b", "/a%20b"),
        ("http://h", "http://h", ""),
        (f"http://h/{'sk' * 20}/x", "http://h/…/x", "/…/x"),
    ],
)
def test_url_is_told_without_query_credentials_and_keys(url: str, asked: str, path: str) -> None:
    assert asked_at(url) == (asked, path)


def test_url_is_told_shortened() -> None:
    assert len(asked_at(f"http://h/{'a/' * 5000}")[0]) <= MAX_URL


def test_path_is_told_in_printable_characters() -> None:
    assert cleaned_path("/a\x1b[2J\n?message=secret") == "/a?[2J?"


def test_newest_are_kept_and_the_oldest_forgotten() -> None:
    failures = Failures()
    for number in range(KEPT + 5):
        failures.note(failed(code=str(number)))
    codes = [one.code for one in failures.recent.newest()]
    assert (len(codes), codes[0], codes[-1]) == (KEPT, str(KEPT + 4), "5")
    assert failures.recent.count == KEPT + 5


def test_newest_are_told_first_and_no_more_than_asked_for() -> None:
    recent: Recent[int] = Recent(3)
    for number in range(5):
        recent.add(number)
    assert (list(recent.newest()), list(recent.newest(2))) == ([4, 3, 2], [4, 3])


@pytest.mark.parametrize(
    ("kind", "to_blame", "level"), [("attempt", True, "info"), ("stream", True, "warning"), ("stream", False, "info")]
)
def test_line_warns_where_the_gateway_or_the_provider_is_to_blame(kind: Kind, to_blame: bool, level: str) -> None:
    with capture_logs() as lines:
        Failures(structlog.get_logger()).note(failed(kind, status=404, url="http://h/x"), to_blame=to_blame)
    [line] = lines
    assert (line["event"], line["log_level"]) == (f"{kind}_failed", level)
    assert (line["status"], line["url"], line["sentence"]) == (404, "http://h/x", None)


def test_record_is_shown_without_what_only_the_log_needs() -> None:
    shown = failed(detail="/etc/ssl/key.pem", sentence="No.").public()
    assert "detail" not in shown
    assert (shown["sentence"], shown["status"]) == ("No.", None)
