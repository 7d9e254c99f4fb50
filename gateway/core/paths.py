r"""Whether a path stays where its route sends it, whatever the next hop makes of it.

A proxy route sends a path on as it came, and joins it to the target's own. The programs behind it decode paths in many
ways: once or twice, `\` as `/`, `..;x=y` as `..`, `%u002e` or an overlong encoding of a dot as a dot. So a path is
judged in every form that one of them may see. It is refused and never repaired, because a repaired path is again read
by others.

    wrong_with("a%2Fb")           ""           one segment or two, but below the route in either case
    wrong_with("a/%252e%252e/b")  a sentence   "..", for whoever decodes twice

Source: RFC 3986 5.2.4, 6.2.2; WHATWG URL 4.4; RFC 3629 10 (overlong UTF-8); Unicode NFKC for letters that look like
dots and slashes.
"""

import re
import unicodedata
from typing import Final
from urllib.parse import unquote_to_bytes

ROUNDS: Final = 4
"""Times that a path is decoded and judged, so it may be encoded three times. Honest ones are once, or twice."""

DOTTED: Final = "The path must not have '.' or '..' segments."

_HARMLESS: Final = re.compile(r"(?!/)(?:[A-Za-z0-9_~!$&'()*+,:=@-]|/(?!\.)|(?<!/)(?<!^)\.)*")
"""Paths in which there is nothing to decode, and no segment that begins with a dot."""
_CONTROLS: Final = re.compile(rb"[\x00-\x1f\x7f]")
_OVERLONG: Final = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80\x81][\x80-\xbf]|\xf0\x80[\x80\x81][\x80-\xbf]")
"""Two, three and four bytes for a character that has one."""
_MICROSOFT: Final = re.compile(rb"%u([0-9A-Fa-f]{4})")
_DOTS: Final = frozenset({".", ".."})


def wrong_with(path: str) -> str:
    """What is wrong with the part of a path that is sent on, in words; "" where nothing is.

    Args:
        path: percent-encoded as it came, without its query, and without the slash that stands before it.
    """
    if _HARMLESS.fullmatch(path):
        return ""
    form = path.encode("utf-8", "surrogateescape")
    for _ in range(ROUNDS):
        if wrong := _wrong_as_it_stands(form):
            return wrong
        decoded = unquote_to_bytes(_MICROSOFT.sub(_character, form))
        if decoded == form:
            return ""
        form = decoded
    return "The path is percent-encoded too often."


def _wrong_as_it_stands(form: bytes) -> str:
    if _CONTROLS.search(form):
        return "The path must not have control characters."
    plain = _OVERLONG.sub(_shortened, form)
    text = plain.decode("utf-8", "replace")
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "\\" in text:
        return "The path must not have backslashes."
    if text.startswith("/"):
        return "The path must not begin with two slashes: behind them some programs read a host."
    # Some programs cut a segment at its parameters, and the whole path at a decoded "?" or "#".
    segments = text.split("/")
    if any(re.split(r"[;?#]", segment, maxsplit=1)[0].strip() in _DOTS for segment in segments):
        return DOTTED
    return ""


def _character(escape: re.Match[bytes]) -> bytes:
    return chr(int(escape[1], 16)).encode("utf-8", "surrogatepass")


def _shortened(overlong: re.Match[bytes]) -> bytes:
    high, low = overlong[0][-2], overlong[0][-1]
    return bytes([(high & 1) << 6 | low & 0x3F])
