"""Cursors: what we hand out comes back as it was, and hostile text is refused, not misread."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cursor import (
    MAX_CURSOR,
    WORKERS,
    Cursor,
    cursor_sent,
    final_cursor,
    is_cursor_parameter,
    new_stream_id,
    parse_cursor,
    valid_stream_id,
    worker_of,
)
from gateway.core.errors import GatewayError

ID = "AAAAAAAAAAAAAAAAAAAAA_"
NUMBERS = st.integers(min_value=0, max_value=10**15 - 1)


@given(NUMBERS, NUMBERS, st.integers(min_value=0, max_value=9999))
def test_cursor_survives_the_round_trip(seq: int, tokens: int, takeovers: int) -> None:
    cursor = Cursor(new_stream_id(), seq, tokens, takeovers)
    assert parse_cursor(str(cursor)) == cursor
    assert not cursor.is_final


@given(NUMBERS, NUMBERS)
def test_cursor_needs_no_preflight(seq: int, tokens: int) -> None:
    for text in (str(Cursor(new_stream_id(), seq, tokens)), final_cursor()):
        assert len(text) <= MAX_CURSOR
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", text)


def test_cursor_names_takeovers_where_there_were_any() -> None:
    assert str(Cursor(ID, 7, 6)) == f"{ID}.7.6"
    assert str(Cursor(ID, 7, 6, 2)) == f"{ID}.2-7.6"
    for text in (f"{ID}.0-7.6", f"{ID}.-7.6", f"{ID}.12345-7.6", f"{ID}.2-.6", f"{ID}.2-7"):
        with pytest.raises(GatewayError):
            parse_cursor(text)


def test_final_cursor_is_final_and_names_no_stream() -> None:
    assert parse_cursor(final_cursor()) == Cursor("", 0, 0)
    assert parse_cursor(final_cursor()).is_final


def test_stream_ids_are_valid_and_never_the_same() -> None:
    ids = {new_stream_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(map(valid_stream_id, ids))


def test_stream_id_names_its_worker() -> None:
    ids = [new_stream_id(worker) for worker in range(WORKERS)]
    assert [worker_of(stream_id) for stream_id in ids] == list(range(WORKERS))
    assert all(map(valid_stream_id, ids))
    assert len({stream_id[1:] for stream_id in ids}) == WORKERS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        ID,
        f"{ID}.1",
        f"{ID}.1.2.3",
        f"{ID}.-1.0",
        f"{ID}.1.+2",
        f"{ID}. 1.2",
        f"{ID}.1.2\n",
        f"{ID}.1.2\x00",
        f"{ID[:-1]}.1.2",
        f"{ID}A.1.2",
        f"{ID}.{'9' * 16}.0",
        f"{ID}.١.٢",  # digits, but not ours
        f"~{ID[:-1]}",
        f"~{ID}.0.0",
        f"~{ID}\n",
        "~" * 10_000,
        f"{ID}.1.{'1' * 10_000}",
        "../../etc/passwd",
        "二二二二二二二二二二二二二二二二二二二二二二.1.2",
    ],
)
def test_cursor_that_was_never_ours_is_refused(text: str) -> None:
    with pytest.raises(GatewayError) as refusal:
        parse_cursor(text)
    assert refusal.value.code == "bad_cursor"
    assert refusal.value.status == 400
    assert text not in refusal.value.message or not text


@given(st.text(max_size=200))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    try:
        cursor = parse_cursor(text)
    except GatewayError:
        return
    assert cursor.is_final or str(cursor) == text


@pytest.mark.parametrize("text", ["", "a" * 21, "a" * 23, "a" * 21 + "\n", "a" * 21 + "/", "a" * 21 + "é"])
def test_stream_id_of_another_form_is_invalid(text: str) -> None:
    assert not valid_stream_id(text)


OLD, NEW, END = f"{ID}.3.2", f"{ID}.9.7", f"~{ID}"


@pytest.mark.parametrize(
    ("header", "query", "sent"),
    [
        (None, [], None),
        (None, [("lastEventId", NEW)], NEW),
        (None, [("Last-Event-ID", NEW)], NEW),
        (None, [("last-event-id", END)], END),
        (None, [("evs_last_event_id", NEW)], NEW),
        (None, [("LastEventID", NEW)], NEW),
        ("", [("lastEventId", NEW)], NEW),
        (OLD, [("lastEventId", NEW), ("last_event_id", NEW)], OLD),
        ("7", [("lastEventId", NEW)], "7"),
        # A library adds its own behind what the page's URL has.
        (None, [("last_event_id", OLD), ("lastEventId", NEW)], NEW),
        (None, [("lastEventId", OLD), ("message", "hi"), ("lastEventId", NEW)], NEW),
        (None, [("last_event_id", NEW), ("lastEventId", "")], NEW),
        # What is no cursor is no cursor of ours, except under our own name.
        (None, [("lastEventId", "7")], None),
        (None, [("lastEventId", NEW + "0" * 20)], None),
        (None, [("message", NEW), ("id", NEW), ("event_id", NEW)], None),
        (None, [("last_event_id", "7")], "7"),
        (None, [("last_event_id", "7"), ("lastEventId", NEW)], NEW),
        (None, [("last_event_id", ""), ("lastEventId", "")], None),
    ],
)
def test_cursor_counts_under_the_names_that_libraries_have_for_it(
    header: str | None, query: list[tuple[str, str]], sent: str | None
) -> None:
    assert cursor_sent(header, query) == sent


def test_parameter_that_an_endpoint_has_under_such_a_name_is_none_of_ours() -> None:
    assert is_cursor_parameter("last_event_id", "7")
    assert is_cursor_parameter("lastEventId", NEW)
    assert not is_cursor_parameter("lastEventId", "7")
    assert not is_cursor_parameter("cursor", NEW)
