"""Formats: events of a log become the blocks that a route's clients expect.

A block is what stands between an `id:` line and the closing blank line; both are the caller's. "" means: not sent.
As dialects live on the writer's edge of a log, formats live on the reader's: neither knows the other.

A new one is a mapping in the user's YAML, an entry in `PRESETS`, or, where it keeps state, a class in `CLASSES`.
"""

from gateway.formats.completion import Completion
from gateway.formats.mapping import KINDS, PLACEHOLDERS, Mapped
from gateway.formats.openai import OpenAIFormat, completion_id
from gateway.formats.presets import CLASSES, PRESETS, compile_format, load_format
from gateway.formats.problem import error_data, error_object, problem, usage_object
from gateway.formats.verbatim import Verbatim
from gateway.formats.view import Encoder, Format, Spec, Stateless, View

__all__ = [
    "CLASSES",
    "KINDS",
    "PLACEHOLDERS",
    "PRESETS",
    "Completion",
    "Encoder",
    "Format",
    "Mapped",
    "OpenAIFormat",
    "Spec",
    "Stateless",
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
