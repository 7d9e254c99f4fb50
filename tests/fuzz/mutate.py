"""One input becomes another: the few changes that readers of text trip over."""

import random
from collections.abc import Sequence
from typing import Final

MAX_SIZE: Final = 4096
"""Bytes of an input; longer ones find little more and take the time of many."""
TOKENS: Final = tuple(
    token.encode("utf-8", "surrogatepass")
    for token in (
        *(
            "\r",
            "\n",
            "\r\n",
            "\r\n\r\n",
            "\n\n",
            "\0",
            "\t",
            " ",
            "\ufeff",
            "\u2028",
            "你",
            "\U0001f600",
            "\ud83d",
            "é",
        ),
        *("{", "}", "[", "]", ":", ",", '"', "\\", "'", "/", "%", "%2f", "%00", "%ff", "..", "?", "&", "=", ";", "#"),
        *("null", "true", "NaN", "-1", "0", "1e999", "99999999999999999999", "\\ud83d", "\\u0000", "[[[[[[[[", "{}"),
        *("data: ", "event: ", "id: ", "retry: ", "error", "[DONE]", "done", "stop", "content", "choices", "delta"),
        *("tool_calls", "usage", "message", "index", "arguments", "function", "finish_reason", "error_description"),
        *(
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Last-Event-ID: x\r\n",
            "Expect: 100-continue\r\n",
        ),
        *(
            "0\r\n\r\n",
            "5\r\nhello\r\n",
            "GET / HTTP/1.1\r\n",
            "HTTP/1.0",
            "HTTP/9.9",
            "chunked",
            "Host: ",
            "${X}",
            "${file:x}",
        ),
        *("- ", "  ", "&a ", "*a", "<<: ", "!!python/object:x ", "|", ">", "---\n", "1h", "10/s", "64MiB"),
    )
)


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """The input after one to six changes; `others` are what pieces are taken from."""
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        data = _changed(data, others, rng)
    return data[:MAX_SIZE]


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """The input in one to six reads."""
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 5)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _changed(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    end = min(len(data), at + rng.choice((0, 1, 1, 2, 8, 40)))
    kind = rng.randrange(7)
    if kind == 0:  # another byte
        return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
    if kind == 1:  # less
        return data[:at] + data[end:]
    if kind == 2:  # the same again
        return data[:end] + data[at:end] * rng.choice((1, 1, 3, 50)) + data[end:]
    if kind == 3:  # the beginning only
        return data[:at]
    if kind == 4:  # the end of another one
        other = rng.choice(others)
        return data[:at] + other[rng.randint(0, len(other)) :]
    return data[:at] + rng.choice(TOKENS) + data[end:]  # what has a meaning somewhere
