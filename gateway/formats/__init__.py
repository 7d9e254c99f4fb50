"""Formats: events of a log become the blocks a route's clients expect.

A block is what stands between an `id:` line and the closing blank line; both are the caller's. "" means: not sent.
As dialects live on the writer's edge of a log, formats live on the reader's: neither knows the other.
"""

from gateway.formats.completion import Completion
from gateway.formats.mapping import KINDS, PLACEHOLDERS, Mapped
from gateway.formats.openai import OpenAIFormat, completion_id
from gateway.formats.presets import PRESETS, Spec, compile_format
from gateway.formats.problem import error_data, error_object, problem, usage_object
from gateway.formats.verbatim import Verbatim
from gateway.formats.view import Format, View

__all__ = [
    "KINDS",
    "PLACEHOLDERS",
    "PRESETS",
    "Completion",
    "Format",
    "Mapped",
    "OpenAIFormat",
    "Spec",
    "Verbatim",
    "View",
    "compile_format",
    "completion_id",
    "error_data",
    "error_object",
    "problem",
    "usage_object",
]
