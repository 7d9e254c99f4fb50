"""Transcripts of plain text answers."""

from gateway.dialects import DIALECTS
from gateway.dialects.text import MAX_TOKEN

from .transcripts import body_of, told

TEXT = DIALECTS["text"]


def test_reader_tells_each_read() -> None:
    answer = TEXT.answer()
    assert told(answer, b"Hello", b", ", "你好".encode()) == [("token", "Hello"), ("token", ", "), ("token", "你好")]
    assert (answer.complete, answer.eof_ends, answer.deltas) == (False, True, 4)


def test_reader_tells_the_same_text_for_every_cut() -> None:
    body = b"\xef\xbb\xbfa\xff" + "你好。🙂".encode() + b"\xe4\xbd"
    texts = {"".join(data for _, data in told(TEXT.answer(), body[:at], body[at:])) for at in range(len(body) + 1)}
    assert texts == {"a�你好。🙂�"}


def test_reader_bounds_a_token() -> None:
    assert [len(data) for _, data in told(TEXT.answer(), b"x" * (MAX_TOKEN + 1))] == [MAX_TOKEN, 1]


def test_call_accepts_plain_text() -> None:
    call = TEXT.call({"messages": [{"role": "user", "content": "q"}]}, "http://h/chat", "")
    assert call.headers["Accept"] == "text/plain"
    assert body_of(call)["message"] == "q"
