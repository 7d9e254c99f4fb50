"""Bytes that are no valid HTTP request: what can be read of them all the same, and the words for what is wrong.

A head may also be one that the parser takes and nobody here speaks: of HTTP/0.9, which has no version, or of HTTP/2.

The parser gives up a head as a whole. The answer to it should still be one that its client can use: a page may read it
only where its origin is allowed, an SDK needs the error in its own shape, and whoever searches the log needs the id of
the request. So three things are looked for in the bytes: the path, `Origin` and `X-Request-Id`.

Invariants:

- What the parser says is only compared with known sentences. It quotes the bytes, which may hold a credential.
- What is read here decides about the shape of an error and its headers, and nothing else.
"""

import re
from typing import Final, NamedTuple

from aiohttp import HttpVersion10, HttpVersion11, web

from gateway.core.errors import GatewayError

MAX_HEAD_LINE: Final = 16 * 1024
"""Bytes of the request line, which may hold a token and a message."""
MAX_HEADER_FIELD: Final = 8190
MAX_HEADERS: Final = 128
MAX_NAME: Final = 16
"""Characters of a method."""
VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WRONG: Final = (
    (re.compile(r"Missing.*Host"), "it has no Host header"),
    (re.compile(r"method", re.IGNORECASE), "its first line has no method that HTTP knows"),
    (re.compile(r"chunk", re.IGNORECASE), "its chunked body is malformed"),
    (re.compile(r"\b(CR|LF|CRLF)\b"), "lines must end in CR LF"),
    (re.compile(r"ICE/|HTTP/|version|dot\b", re.IGNORECASE), "its first line must end in HTTP/1.1 or HTTP/1.0"),
    (re.compile(r"Length.*Transfer|Transfer.*Length"), "a body has either a Content-Length or a Transfer-Encoding"),
    (re.compile(r"Content-Length"), "its Content-Length is no single number"),
    (re.compile(r"Transfer-Encoding"), "its Transfer-Encoding is not one that is known here"),
    (
        re.compile(r"\b(ur[il]|space)\b", re.IGNORECASE),
        "its path or query has bytes that a URL must percent-encode, as UTF-8",
    ),
    (re.compile(r"header|host", re.IGNORECASE), "it has a malformed header"),
    (re.compile(r"after `Connection: close`"), "bytes follow the last request of the connection"),
)
"""Words of the parser (llhttp's and aiohttp's), and what they mean for people; the first row that fits counts."""


class Unparsed(NamedTuple):
    """Bytes that are no valid request.

    Attributes:
        said: what the parser says of them; may quote them.
        head: the bytes, as far as they were kept.
        address: the address that sent them.
    """

    said: str
    head: bytes
    address: str


class Remains(NamedTuple):
    """What could be read of a head; "" for what could not.

    Attributes:
        method: as it was sent.
        path: percent-encoded, without its query.
        origin: the page's.
        request_id: of the form that is accepted.
    """

    method: str = ""
    path: str = ""
    origin: str = ""
    request_id: str = ""


def read_remains(head: bytes) -> Remains:
    """What can be read of the bytes of a head that was refused."""
    line, _, fields = head.lstrip(b"\r\n").partition(b"\n")
    method, _, target = line.decode("ascii", "replace").partition(" ")
    if not (method.isascii() and method.isalpha() and len(method) <= MAX_NAME):
        return Remains()
    path = re.split(r"[?#\s]", re.sub(r"^https?://[^/?#\s]*", "", target), maxsplit=1)[0]
    request_id = _field(fields, b"x-request-id")
    return Remains(
        method,
        path if path.startswith("/") and path.isascii() else "",
        _field(fields, b"origin"),
        request_id if REQUEST_ID.fullmatch(request_id) else "",
    )


def has_known_version(request: web.BaseRequest) -> bool:
    """Whether the request's first line ends in a version that is spoken here.

    One without a version comes from no client of today, and its answer would have neither status nor headers. HTTP/2
    does not begin with a request line: a proxy that only changes the version in it has not read the request as we do.
    Source: RFC 9112 2.3; RFC 9113 3.4.
    """
    return request.version in VERSIONS


def unparsable(said: str) -> GatewayError:
    """The error for bytes that are no valid HTTP request, from what the parser says of them."""
    if "bytes when reading" in said:
        whole_line = f"more than {MAX_HEAD_LINE} bytes" in said
        allowed = f"a request line has at most {MAX_HEAD_LINE} bytes; send a longer question by POST"
        return GatewayError(
            "headers_too_large",
            f"The request is too large: {allowed if whole_line else f'a header has at most {MAX_HEADER_FIELD} bytes'}.",
        )
    if "Too many" in said:
        return GatewayError("headers_too_large", f"The request has more than {MAX_HEADERS} headers.")
    own = re.split(r"b['\"]", said, maxsplit=1)[0]  # what follows is quoted from the bytes
    wrong = next((words for pattern, words in _WRONG if pattern.search(own)), "it is no HTTP/1.1")
    return GatewayError("bad_request", f"The request is malformed: {wrong}.")


def _field(fields: bytes, name: bytes) -> str:
    """The value of a header that came exactly once, "" for any other."""
    found = []
    for line in fields.split(b"\n"):
        if not line.strip(b"\r"):
            break
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            found.append(value.strip())
    return found[0].decode("ascii", "replace") if len(found) == 1 and len(found[0]) <= 256 else ""
