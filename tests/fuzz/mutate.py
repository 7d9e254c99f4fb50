"""One input becomes another: the few changes that readers of text trip over.

Numbers are drawn by `random()` alone, as the other methods of `random.Random` take most of the time that an input has.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import Final

MAX_SIZE: Final = 4096
"""Bytes of an input; longer ones find little more and take the time of many."""
_CHARACTERS: Final = (
    *("\r", "\n", "\r\n", "\r\n\r\n", "\n\n", "\0", "\t", " ", "\x0b", "\x85", "\x7f"),
    *("\ufeff", "\u2028", "你", "\U0001f600", "\ud83d", "é", "\u202e", "\uff0e\uff0e", "\u2215", "ſ", "\u0661"),
    *("{", "}", "[", "]", "(", ":", ",", '"', "\\", "'", "/", "%", "?", "&", "=", ";", "#", "@", "*", "~", "$", "."),
    *("%2f", "%00", "%ff", "%2e%2e", "%252e", "%c0%ae", "%u002e", "..", "..;", "./"),
)
_VALUES: Final = (
    *("null", "true", "false", "NaN", "-1", "0", "-0", "1e999", "1e308", "0.1", "99999999999999999999", "9" * 40),
    *("\\ud83d", "\\u0000", '\\"', "[[[[[[[[", "{}", '""', '{"a":', "[" * 600, '"id":', '"a":1,"a":2'),
)
_JSON: Final = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?|true|false|null|[\[\]{}]')
"""A value of JSON that holds no other, the name of a member, or a bracket."""
_NUMBERS: Final = (b"0", b"-1", b"1", b"0.0", b"1.5", b"1e300", b"9007199254740993", b"18446744073709551616")
_STRINGS: Final = (
    *(
        b'""',
        b'"a"',
        b'"0"',
        b'"null"',
        b'"\\ud83d"',
        b'"\\ude00"',
        b'"\\u0000"',
        b'" "',
        b'"\xe4\xbd\xa0"',
        b'"error"',
    ),
    *(
        b'"stop"',
        b'"content"',
        b'"index"',
        b'"id"',
        b'"text"',
        b'"message"',
        b'"name"',
        b'"usage"',
        b'"delta"',
        b'"type"',
    ),
)
_OTHERS: Final = (
    *(b"null", b"true", b"false", b"[]", b"{}", b"[null]", b"[[]]", b"[{}]", b'{"a":{}}', b'["a",1,{"text":"b"}]'),
    *(b'{"text":"c"}', b'{"content":"d"}', b'{"message":"e"}', b'{"index":1}', b'{"name":"f","arguments":{}}'),
)
_JSON_VALUES: Final = (*_NUMBERS, *_STRINGS, *_OTHERS)
"""What takes the place of another one, so that the whole stays JSON and a reader of fields gets to see it."""
_WORDS: Final = (
    *("data: ", "event: ", "id: ", "retry: ", ": ", "error", "[DONE]", "done", "stop", "content", "choices", "delta"),
    *("tool_calls", "usage", "message", "messages", "role", "index", "arguments", "function", "finish_reason"),
    *("error_description", "model", "image_url", "text", "$text", "$$", "${X}", "${file:x}", "- ", "&a ", "*a", "<<: "),
    *("!!python/object:x ", "|", ">", "---\n", "1h", "10/s", "64MiB", "http://", "https://", "data:"),
    *("alg", "none", "HS256", "RS256", "kid", "crit", "b64", "jku", "exp", "nbf", "iss", "sub", "aud", "kty", "oct"),
    *("for=", "by=", "127.0.0.1", "10.0.0.1", "[::1]", "::ffff:1.2.3.4", "fe80::1%eth0", ":80", ", ", "unknown"),
    *("Bearer ", "token=", "ticket=", "ticket", "last_event_id", "localhost", "null", "cross-site"),
)
_HTTP: Final = (
    *("Content-Length: 5\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Last-Event-ID: x\r\n"),
    *(
        "Expect: 100-continue\r\n",
        "0\r\n\r\n",
        "5\r\nhello\r\n",
        "GET / HTTP/1.1\r\n",
        "HTTP/1.0",
        "HTTP/9.9",
        "HTTP/2.0",
    ),
    *("chunked", "Host: ", "Host: a\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Upgrade: h2c\r\n"),
    *("OPTIONS ", "HEAD ", "TRACE ", "CONNECT ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "POST ", "DELETE "),
)
TOKENS: Final = tuple(token.encode("utf-8", "surrogatepass") for token in (*_CHARACTERS, *_VALUES, *_WORDS, *_HTTP))
"""What has a meaning somewhere."""


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """The input after one to six changes; `others` are what pieces are taken from."""
    for _ in range((1, 1, 2, 3, 6)[int(rng.random() * 5)]):
        data = _changed(data, others, rng.random)
    return data[:MAX_SIZE]


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """The input in one to six reads."""
    draw, size = rng.random, len(data) + 1
    cuts = sorted([int(draw() * size) for _ in range(int(draw() * 6))])
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _changed(data: bytes, others: Sequence[bytes], draw: Callable[[], float]) -> bytes:
    at = int(draw() * (len(data) + 1))
    end = min(len(data), at + (0, 1, 1, 2, 8, 40)[int(draw() * 6)])
    kind = int(draw() * 12)
    if kind > 8:
        return _with_other_value(data, draw)
    if kind == 0:  # another byte
        return data[:at] + bytes((int(draw() * 256),)) + data[at + 1 :]
    if kind == 1:  # one bit of one byte
        return data[:at] + bytes(byte ^ 1 << int(draw() * 8) for byte in data[at : at + 1]) + data[at + 1 :]
    if kind == 2:  # less
        return data[:at] + data[end:]
    if kind == 3:  # the same again
        return data[:end] + data[at:end] * (1, 1, 3, 50)[int(draw() * 4)] + data[end:]
    if kind == 4:  # the beginning only
        return data[:at]
    if kind == 5:  # the end of another one
        other = others[int(draw() * len(others))]
        return data[:at] + other[int(draw() * (len(other) + 1)) :]
    return data[:at] + TOKENS[int(draw() * len(TOKENS))] + data[end:]


def _with_other_value(data: bytes, draw: Callable[[], float]) -> bytes:
    """The input with one value or name of its JSON replaced by another, of a few or of its own."""
    found = [(one.start(), one.end()) for one in _JSON.finditer(data)]
    if not found:
        return data + _JSON_VALUES[int(draw() * len(_JSON_VALUES))]
    number = int(draw() * len(found))
    start, end = found[number]
    if data[start] in b"}]":
        return data[:start] + b',"error":' + _JSON_VALUES[int(draw() * len(_JSON_VALUES))] + data[start:]
    if data[start] in b"{[":
        end = _end_of_value(data, found[number:])
    own = found[int(draw() * len(found))]
    if draw() < 0.3 and data[own[0]] not in b"{}[]":
        other = data[own[0] : own[1]]
    else:
        values = _STRINGS if data[end : end + 1] == b":" else _JSON_VALUES
        other = values[int(draw() * len(values))]
    return data[:start] + other + data[end:]


def _end_of_value(data: bytes, found: Sequence[tuple[int, int]]) -> int:
    """The end of the value that begins with the first of these, which is a bracket."""
    depth = 0
    for start, end in found:
        depth += (data[start] in b"{[") - (data[start] in b"}]")
        if not depth:
            return end
    return len(data)
