"""The decoder against the standard case by case, against every cut, and against hostile input; the encoder."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.event import Event
from gateway.core.sse import MAX_EARLY, Decoder, LineSplitter, Oversize, clean_name, comment, data_lines

FIELDS = [b"data: ", b"data:", b"data", b"event: t\n", b"id: 7\n", b"id: a\0b\n", b"retry: 9\n", b": c\n", b":", b" "]
MARKS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", "好。".encode(), "🙂".encode(), b"\xff", b"\xe4\xbd", b"\0"]
BLOCKS = [b"data: {}\n\n", b"event: e\ndata: 1\n\n"]
PIECES = st.sampled_from([*FIELDS, *MARKS, *BLOCKS])
STREAMS = st.lists(PIECES, max_size=25).map(b"".join)


def decode(*reads: bytes) -> list[Event]:
    decoder = Decoder()
    return [event for read in reads for event in decoder.feed(read)]


def data(*reads: bytes) -> list[str]:
    return [event.data for event in decode(*reads)]


def every_cut(stream: bytes) -> list[list[bytes]]:
    singly = [stream[i : i + 1] for i in range(len(stream))]
    return [singly, *([stream[:i], stream[i:]] for i in range(len(stream) + 1))]


# The standard, case by case


def test_decoder_reads_the_standards_example_of_lines() -> None:
    assert decode(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [Event("", "YHOO\n+2\n10")]


def test_decoder_reads_the_standards_example_of_four_blocks() -> None:
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    assert decode(stream) == [Event("", "first event", "1"), Event("", "second event"), Event("", " third event")]


def test_decoder_dispatches_empty_data_and_drops_the_unfinished_block() -> None:
    assert data(b"data\n\ndata\ndata\n\ndata:") == ["", "\n"]


def test_decoder_strips_one_space_after_the_colon() -> None:
    assert data(b"data:test\n\ndata: test\n\ndata:  test\n\n") == ["test", "test", " test"]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_decoder_accepts_each_line_end(end: bytes) -> None:
    stream = b"event: a" + end + b"data: 1" + end + b"data: 2" + end + end
    assert decode(stream) == [Event("a", "1\n2")]


def test_decoder_dispatches_at_a_cr_without_waiting_for_its_lf() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: 1\r\n\r") == [Event("", "1")]
    assert decoder.feed(b"\ndata: 2\n\n") == [Event("", "2")]


def test_decoder_drops_one_byte_order_mark_only() -> None:
    assert data(b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\ndata: 3\n\n") == ["1", "3"]
    assert data(b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n") == []


def test_decoder_gives_an_event_only_the_id_and_type_of_its_own_block() -> None:
    stream = b"event: a\nid: 1\ndata: x\n\ndata: y\n\n"
    assert decode(stream) == [Event("a", "x", "1"), Event("", "y", "")]


def test_decoder_dispatches_nothing_for_blocks_without_data() -> None:
    assert decode(b"id: 1\n\nevent: ghost\n\nretry: 5\n\n: c\n\n\n\ndata: x\n\n") == [Event("", "x")]


def test_decoder_gives_lines_that_may_report_a_failure_where_it_is_asked_to() -> None:
    stream = b'data: 1\nerror: {"a":1}\n\nError: no\n{"error":2}\n[{"error":3}]\nfoo: x\ndata: 2\n\n'
    assert decode(stream) == [Event("", "1"), Event("", "2")]
    told = [("error", '{"a":1}'), ("u", "1"), ("error", "no"), ("u", '{"error":2}'), ("u", '[{"error":3}]'), ("u", "2")]
    for reads in every_cut(stream):
        decoder = Decoder(unnamed="u", strays=True)
        assert [(event.type, event.data) for read in reads for event in decoder.feed(read)] == told


def test_decoder_gives_what_was_left_unfinished_where_it_is_asked_for() -> None:
    for tail in (b"event: a\ndata: 2", b"event: a\ndata: 2\n", b"event: a\r\ndata: 2\r"):
        decoder = Decoder()
        assert decoder.feed(b"data: 1\n\n" + tail) == [Event("", "1")]
        assert decoder.rest() == [Event("a", "2")]
        assert decoder.rest() == []


def test_decoder_ignores_an_id_with_nul_and_keeps_the_one_before() -> None:
    assert decode(b"id: 1\nid: a\0b\ndata: x\n\n") == [Event("", "x", "1")]


def test_decoder_ignores_unknown_fields_and_names_with_space_or_case() -> None:
    assert decode(b"Data: 1\n data: 2\ndatax: 3\nfoo\ndata : 4\n\n") == []


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "1e3", "1x", "２", "٣", "9" * 11, "9" * 5000])
def test_decoder_ignores_a_retry_that_is_no_short_number(value: str) -> None:
    decoder = Decoder()
    decoder.feed(f"retry: 1500\n\nretry: {value}\n\n".encode())
    assert decoder.retry == 1500


def test_decoder_has_no_retry_before_one_was_seen() -> None:
    assert Decoder().retry is None


def test_decoder_replaces_invalid_utf8() -> None:
    assert data(b"data: a\xffb\xe4\xbd\n\ndata: \xed\xa0\x80\n\n") == ["a\ufffdb\ufffd", "\ufffd\ufffd\ufffd"]


def test_decoder_keeps_unicode_line_separators_and_nul_in_data() -> None:
    text = "一\u2028二\u0085三\x0b\0\ufeff"
    assert data(f"data: {text}\n\n".encode()) == [text]


@pytest.mark.parametrize("odd", [b"data: b\nid: 1\n\n", b"data:b\n\n", b"data: b\n\n\n", b":\n\ndata: b\n\n"])
def test_decoder_leaves_its_fast_path_for_one_odd_block(odd: bytes) -> None:
    stream = b"data: a\n\n" + odd + b"data: c\n\n"
    assert data(b":\n\n", stream) == ["a", "b", "c"]


# Every cut


@pytest.mark.parametrize(
    "stream",
    [
        "\ufeffdata: 你好\r\n\r\ndata: 🙂\n\n".encode(),
        b"\xef\xbbdata: 1\n\ndata: \xe4\xbd\xa0\xe4\n\n",
        b"event: a\r\ndata: 1\rdata: 2\r\r\ndata: 3\n\r\n",
    ],
)
def test_decoder_reads_the_same_for_every_cut_of_hard_streams(stream: bytes) -> None:
    assert all(decode(*reads) == decode(stream) for reads in every_cut(stream))


@given(STREAMS)
@settings(max_examples=120, deadline=None)
def test_decoder_reads_the_same_for_every_cut(stream: bytes) -> None:
    whole = decode(stream)
    assert all(decode(*reads) == whole for reads in every_cut(stream))


@given(STREAMS)
@settings(max_examples=150, deadline=None)
def test_decoder_reads_what_a_literal_reading_of_the_standard_reads(stream: bytes) -> None:
    assert decode(stream) == literal_reading(stream)


def literal_reading(stream: bytes) -> list[Event]:
    """The standard's algorithm word by word: slow, whole stream at once, no state kept."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events, fields = [], {"event": "", "id": ""}
    buffer = ""
    for line in lines:
        if not line:
            events += [Event(fields["event"], buffer[:-1], fields["id"])] if buffer else []
            fields, buffer = {"event": "", "id": ""}, ""
            continue
        name, _, value = line.partition(":")
        value = value[1:] if value[:1] == " " else value
        buffer += f"{value}\n" if name == "data" else ""
        if name == "event" or (name == "id" and "\0" not in value):
            fields[name] = value
    return events


# Caps and hostile input


def test_decoder_accepts_a_line_at_the_cap_for_every_cut() -> None:
    for stream in (b"data: 1234\n\n", b"\xef\xbb\xbfdata: 1234\r\n\r\n"):
        readings = [run(Decoder(max_line=10), reads) for reads in every_cut(stream)]
        assert all(reading == ([Event("", "1234")], "") for reading in readings)


def test_decoder_refuses_a_long_line_for_every_cut() -> None:
    stream = b"\xef\xbb\xbfdata: 1\n\n: 3456789012\r\ndata: 2\n\n"
    for reads in every_cut(stream):
        events, error = run(Decoder(max_line=11), reads)
        assert (events, error) == ([Event("", "1")], "a line is longer than 11 bytes")


def test_decoder_refuses_a_long_event_for_every_cut() -> None:
    stream = "data: 1\n\ndata: 你\ndata: 好\ndata: 。\n\ndata: 2\n\n".encode()
    for reads in every_cut(stream):
        events, error = run(Decoder(max_event=29), reads)
        assert (events, error) == ([Event("", "1")], "an event is longer than 29 bytes")
    assert len(Decoder(max_event=30).feed(stream)) == 3


def run(decoder: Decoder, reads: list[bytes]) -> tuple[list[Event], str]:
    events: list[Event] = []
    try:
        for read in reads:
            events += decoder.feed(read)
    except Oversize as error:
        return events + error.whole, str(error)
    return events, ""


def test_decoder_refuses_an_endless_comment_line() -> None:
    decoder = Decoder()
    with pytest.raises(Oversize):
        [decoder.feed(b":" + b"x" * 65535) for _ in range(17)]


def test_decoder_keeps_nothing_of_comments_and_unknown_fields() -> None:
    decoder = Decoder()
    decoder.feed(b"data: 1\n")
    tracemalloc.start()
    for _ in range(10_000):
        decoder.feed(b": keep-alive and so on\nfoo: bar\n")
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 4096
    assert decoder.feed(b"\n") == [Event("", "1")]


def test_decoder_is_linear_in_one_byte_reads_and_long_lines() -> None:
    decoder = Decoder()
    line = b"data: " + b"x" * 1_000_000
    assert not any(decoder.feed(line[i : i + 50]) for i in range(0, len(line), 50))
    assert not any(decoder.feed(b"y") for _ in range(10_000))
    assert len(decoder.feed(b"\n\n")[0].data) == 1_010_000


# Lines


def test_line_splitter_ends_lines_at_lf_and_crlf_only() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b'{"a":1}\r\n{"b":"\r"}\n\n{"c"') == ['{"a":1}', '{"b":"\r"}', ""]
    assert splitter.feed(b":3}") == []
    assert splitter.close() == ['{"c":3}']
    assert splitter.close() == []


@given(STREAMS)
@settings(max_examples=80, deadline=None)
def test_line_splitter_reads_the_same_for_every_cut(stream: bytes) -> None:
    readings = set()
    for reads in every_cut(stream):
        splitter = LineSplitter()
        readings.add(tuple([line for read in reads for line in splitter.feed(read)] + splitter.close()))
    assert len(readings) == 1


def test_line_splitter_refuses_a_long_line_and_hands_over_those_before_it() -> None:
    with pytest.raises(Oversize) as caught:
        LineSplitter(max_line=4).feed("1234\n一二\n".encode())
    assert caught.value.whole == ["1234"]
    splitter = LineSplitter(max_line=4)
    splitter.feed(b"1234")
    with pytest.raises(Oversize):
        splitter.feed(b"5")


# The encoder


def test_encoder_writes_a_line_of_data_even_where_there_is_none() -> None:
    assert data_lines("你好\n世界") == "data: 你好\ndata: 世界\n"
    assert data_lines("") == "data: \n"


def test_encoder_splits_data_at_every_line_end() -> None:
    assert data_lines("a\nb\rc\r\nd\n") == "data: a\ndata: b\ndata: c\ndata: d\ndata: \n"


WORDS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r: 好"), max_size=12)


@given(WORDS, WORDS, WORDS)
@settings(max_examples=150, deadline=None)
def test_encoder_writes_what_the_decoder_reads(name: str, payload: str, cursor: str) -> None:
    event = Event(clean_name(name), payload, clean_name(cursor))
    block = f"event: {event.type}\nid: {event.id}\n{data_lines(event.data)}\n"
    lines = payload.replace("\r\n", "\n").replace("\r", "\n")
    assert decode(block.encode()) == [Event(event.type, lines, event.id)]


def test_comment_is_a_block_that_dispatches_nothing() -> None:
    assert comment() == ":\n\n"
    assert comment("hi\ndata: x\ry") == ": hi\n: data: x\n: y\n\n"
    assert decode((comment() + comment("a\n\ndata: x\n\n")).encode()) == []


def test_clean_name_drops_control_characters_and_is_bounded() -> None:
    assert clean_name("to\r\nken\0\x1b\x85\t") == "token"
    assert clean_name("消息 emoji🙂") == "消息 emoji🙂"
    assert len(clean_name("x" * 10_000)) == 256


def test_early_end_is_looked_for_once_a_block_however_small_the_reads_are() -> None:
    asked: list[str] = []

    def ask(data: str) -> bool:
        asked.append(data)
        return False

    decoder = Decoder(early=ask)
    for byte in b"data: a\n" + b":\n" * 100 + b"data: b\n\n":
        decoder.feed(bytes([byte]))
    assert asked == ["a"]
    lines: list[bytes] = []

    def look(line: bytes) -> bool:
        lines.append(line)
        return False

    splitter = LineSplitter(early=look)
    for _ in range(1000):
        splitter.feed(b"}")
    assert len(lines) < 40
    asked.clear()
    decoder.feed(b"data: ")
    for _ in range(1000):
        decoder.feed(b"}")
    assert 1 < len(asked) < 40
    assert Decoder(early=lambda _: True).feed(b"data: " + b"x" * (MAX_EARLY + 1) + b"\n") == []
