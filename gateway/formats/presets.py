"""The formats that a chat route may name, and how a route's own `format` is compiled."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from gateway.core.event import DONE, ERROR, RESTART, START, THINKING, TOKEN, TOOL
from gateway.formats.mapping import EVENT_KINDS, Mapped
from gateway.formats.openai import OpenAIFormat
from gateway.formats.ui import UIFormat
from gateway.formats.verbatim import Verbatim
from gateway.formats.view import Format, Spec

_ERROR_JSON: Final = {name: f"${name}" for name in ("code", "message", "retryable", "retry_after")}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "events": {
            START: {
                "event": "connected",
                "json": {"stream_id": "$stream_id", "session_id": "$session_id", "resumed": "$resumed"},
            },
            THINKING: {"event": "thinking", "json": {"text": "$text"}},
            TOKEN: {"event": "token", "json": {"text": "$text", "index": "$index"}},
            TOOL: {"event": "tool", "json": "$tool"},
            RESTART: {"event": "restart", "json": {}},
            DONE: {
                "event": "done",
                "json": {"full_text": "$full_text", "finish_reason": "$finish_reason", "usage": "$usage"},
            },
            ERROR: {"event": "error", "json": _ERROR_JSON},
        },
        "data": {
            START: None,
            THINKING: None,
            TOKEN: {"json": {"content": "$text"}},
            TOOL: None,
            # A page that only appends `content` is not disturbed; a page that checks `restart` can clear what it shows.
            RESTART: {"json": {"content": "", "restart": True}},
            DONE: {"data": "[DONE]"},
            ERROR: {"json": {"error": _ERROR_JSON}},
        },
        "typed": {
            START: {"json": {"type": "start"}},
            THINKING: None,
            TOKEN: {"json": {"type": "chunk", "content": "$text"}},
            TOOL: None,
            RESTART: {"json": {"type": "restart"}},  # pages ignore a `type` that they do not know
            DONE: {"json": {"type": "done"}},
            ERROR: {"json": {"type": "error", "message": "$message"}},
        },
    }
)
"""The presets that are mappings."""

CLASSES: Final[dict[str, Callable[[], Format]]] = {"openai": OpenAIFormat, "ui": UIFormat}
"""The presets that no mapping can express, by name: their answers end in several blocks, or they keep state."""

_OWN: Final[Mapping[str, Callable[..., Format]]] = {"openai": OpenAIFormat, "ui": UIFormat, "verbatim": Verbatim}
"""Formats with options, by their name in `Format.spec`. The code of a route sets the options, not the configuration."""
_KEYS: Final = ("preset", *EVENT_KINDS)


def compile_format(spec: Spec) -> Format:
    """The format of a chat route.

    Args:
        spec: a preset's name, or a mapping of kinds to None (not sent) or `{event?, json | data}`. For a kind that is
            left out, the entry of the preset under `preset` is used (`events` by default). An entry that is given
            replaces the preset's whole entry.

    Raises:
        ValueError: `spec` is wrong; the message says what, where, and what is allowed.
    """
    if isinstance(spec, Mapping):
        return Mapped(_merged(spec), spec)
    if isinstance(spec, str) and spec in CLASSES:
        return CLASSES[spec]()
    return Mapped(_preset(spec, (*PRESETS, *CLASSES)), spec)


def load_format(spec: Spec) -> Format:
    """The format with this `Format.spec`, which may come from another machine.

    Raises:
        ValueError: there is no such format.
    """
    if isinstance(spec, Mapping) and spec.get("format") in _OWN:
        options = {name: value for name, value in spec.items() if name != "format"}
        return _OWN[spec["format"]](**options)
    return compile_format(spec)


def _merged(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = [str(key) for key in spec if key not in _KEYS]
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)}; allowed: {', '.join(_KEYS)}")
    kinds = {key: entry for key, entry in spec.items() if key != "preset"}
    return {**_preset(spec.get("preset", "events"), tuple(PRESETS)), **kinds}


def _preset(name: object, allowed: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    if isinstance(name, str) and name in CLASSES:
        raise ValueError(f"preset: {name} cannot be changed in parts; allowed: {', '.join(allowed)}")
    raise ValueError(f"unknown preset {name!r}; allowed: {', '.join(allowed)}, or a mapping")
