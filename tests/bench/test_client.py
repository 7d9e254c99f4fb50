"""The load client's reading of HTTP."""

import pytest

from bench.client import MAX_CHUNK, Chunks, request


def test_chunked_body_is_read_however_it_is_cut() -> None:
    wire = b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n"
    for cut in range(len(wire)):
        chunks = Chunks()
        assert chunks.feed(wire[:cut]) + chunks.feed(wire[cut:]) == b"hello0123456789"
        assert chunks.ended


def test_chunked_body_without_its_last_chunk_has_not_ended() -> None:
    chunks = Chunks()
    assert chunks.feed(b"5\r\nhello\r\n") == b"hello"
    assert not chunks.ended


@pytest.mark.parametrize("wire", [b"%x\r\n" % (MAX_CHUNK + 1), b"data: no chunk\r\n"])
def test_what_is_no_chunk_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|literal"):
        Chunks().feed(wire)


def test_request_says_how_long_its_body_is() -> None:
    head, _, body = request("chat", "3 events at 1 per second").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/chat HTTP/1.1\r\n")
    assert b"Content-Length: %d" % len(body) in head
