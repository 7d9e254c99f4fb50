"""The rule for the `format` of a chat route: a preset's name, or a mapping that compiles.

This file does not know what a format does with an event; the folder `formats/` does.
"""

from dataclasses import dataclass
from typing import Any, Final

from gateway.config.rules import Rule
from gateway.formats import CLASSES, EVENT_KINDS, PRESETS, compile_format


@dataclass(frozen=True)
class FormatRule(Rule):
    """A preset's name, or a mapping from kinds of event to what is sent for them."""

    @property
    def allowed(self) -> str:
        return f"{', '.join((*PRESETS, *CLASSES))}, or a mapping"

    def parse(self, value: Any) -> Any:
        if not isinstance(value, dict) and value not in (*PRESETS, *CLASSES):
            raise self.refusal("a format")
        compile_format(value)
        return value

    def schema(self) -> dict[str, Any]:
        preset = {
            "enum": list(PRESETS),
            "description": "What the kinds that are left out are sent as; events if absent.",
        }
        kinds = {kind: {"anyOf": [{"type": "null"}, _ENTRY]} for kind in EVENT_KINDS}
        own = {"type": "object", "properties": {"preset": preset} | kinds, "additionalProperties": False}
        return {"anyOf": [{"enum": [*PRESETS, *CLASSES]}, own]}


_ENTRY: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "maxLength": 128, "description": "The event's name; unnamed if absent."},
        "json": {"description": "Any value, sent as JSON, with placeholders such as $text replaced."},
        "data": {"type": "string", "description": "Text, sent as it stands, with placeholders such as $text replaced."},
    },
    "additionalProperties": False,
}
