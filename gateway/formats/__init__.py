"""Formats: events of a log become the blocks that a route's clients expect.

A block is the text before an `id:` line and the closing blank line. The caller writes these two. An event whose
block is "" is not sent. Dialects stand at the writer's side of a log and formats at the reader's. Neither knows the
other.

A new format is a mapping in the user's YAML, an entry in `PRESETS`, or, if no mapping can express it, one in `CLASSES`.
"""

from gateway.formats.completion import Completion
from gateway.formats.mapping import EVENT_KINDS, PLACEHOLDERS, Mapped
from gateway.formats.openai import OpenAIFormat, completion_id
from gateway.formats.presets import CLASSES, PRESETS, compile_format, load_format
from gateway.formats.problem import error_data, error_object, problem, usage_object
from gateway.formats.ui import UIFormat
from gateway.formats.verbatim import Verbatim
from gateway.formats.view import Encoder, Format, Spec, Stateless, View

__all__ = [
    "CLASSES",
    "EVENT_KINDS",
    "PLACEHOLDERS",
    "PRESETS",
    "Completion",
    "Encoder",
    "Format",
    "Mapped",
    "OpenAIFormat",
    "Spec",
    "Stateless",
    "UIFormat",
    "Verbatim",
    "View",
    "compile_format",
    "completion_id",
    "error_data",
    "error_object",
    "load_format",
    "problem",
    "usage_object",
]
