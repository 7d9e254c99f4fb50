"""The list of a target's models: how it is asked for, and what its answer says."""

from typing import Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from gateway.dialects.base import Call

MAX_NAME: Final = 256
"""Characters of a model's name."""

_any: Final = msgspec.json.Decoder()


def list_of(url: str, end: str, other: str, headers: dict[str, str]) -> Call:
    """The request for a list that stands beside another call of the same API.

    Args:
        url: of the other call; a query is kept.
        end: the end of its path, which is replaced.
        other: what stands there for the list.
        headers: further headers.
    """
    parts = urlsplit(url)
    listed = urlunsplit(parts._replace(path=parts.path.removesuffix(end) + other))
    return Call("GET", listed, {"Accept": "application/json", **headers}, b"")


def models_in(body: bytes) -> tuple[str, ...] | None:
    """The names in a list of models, in its order, each once; None for an answer that is no such list.

    Providers write `{"data": [{"id": …}]}` or `{"models": [{"name": …}]}`; some a bare list, or names alone.
    """
    try:
        value = _any.decode(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in ("data", "models") if isinstance(value.get(key), list)), None)
    if not isinstance(value, list):
        return None
    return tuple(dict.fromkeys(name for item in value if (name := _name_of(item))))


def _name_of(item: object) -> str:
    names = [item.get(key) for key in ("id", "model", "name")] if isinstance(item, dict) else [item]
    return next((name for name in names if isinstance(name, str) and 0 < len(name) <= MAX_NAME), "")
