"""Cookies that are credentials: read without doubt, or not at all; and taken out of a request that goes on.

Programs do not agree on what a Cookie header holds: some end a pair at every semicolon, some not within quotes, some at
a comma or a space too. So a cookie counts only where all of them see the same, and what any of them may take for it
goes no further.

Source: RFC 6265 4.2.1 (the syntax), 5.4 and RFC 2109 4.2.2 (what else is sent and read).
"""

import re
from collections.abc import Collection
from typing import Final

from gateway.core.credential import MAX_SECRET

_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_PAIR: Final = re.compile(rf"({_NAME}+)=(\"?)([\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*)\2")
_ESCAPED: Final = re.compile(r"\\.")


def clean_cookies(header: str, names: Collection[str]) -> dict[str, str]:
    """The named cookies as they were sent, those that everybody reads alike; in the order of `names`.

    A cookie that is there twice, or may be there a second time in a malformed pair, is left out. If a quote is open at
    the end of a pair, nothing is found, as it is unclear where that pair ends.

    Args:
        header: the Cookie header; several lines joined by `; `.
        names: of the cookies; case counts.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    for piece in header.split(";"):
        if _leaves_quote_open(piece):
            return {}
        pair = _PAIR.fullmatch(piece.strip(" \t"))
        if pair is not None:
            if pair[1] in found:
                found[pair[1]].append(pair[0].partition("=")[2])
            continue
        for name in names:
            if _mentions(piece, name):
                found[name] += ["", ""]  # unclear, so not once
    return {name: values[0] for name, values in found.items() if len(values) == 1 and 0 < len(values[0]) <= MAX_SECRET}


def strip_cookies(header: str, names: Collection[str]) -> str:
    """The Cookie header without anything that may be one of the named cookies; "" when nothing is left.

    Args:
        header: the Cookie header; several lines joined by `; `.
        names: of the cookies; case counts.
    """
    kept, inside = [], False
    pieces = header.split(";")
    for piece in pieces:
        opens = _leaves_quote_open(piece)
        if inside:  # the value of a dropped pair goes on, to the piece that closes its quote
            inside = not opens
            continue
        pair = _PAIR.fullmatch(piece.strip(" \t"))
        if pair[1] in names if pair is not None else any(_mentions(piece, name) for name in names):
            inside = opens
        else:
            kept.append(piece)
    return header if len(kept) == len(pieces) else ";".join(kept).lstrip()


def _mentions(piece: str, name: str) -> bool:
    """Whether some program may find a cookie of this name in what is no clean pair."""
    return re.search(rf"(?<!{_NAME}){re.escape(name)}\"?\s*(?:=|$)", piece) is not None


def _leaves_quote_open(piece: str) -> bool:
    return _ESCAPED.sub("", piece).count('"') % 2 == 1
