"""The languages upstreams speak, by the name the configuration has for them.

A dialect stands on the writer's edge only: it turns a chat into a request and an answer's bytes into events. A new one
is a file beside these and a line below; no format, route or reader changes with it.
"""

from typing import Final

from gateway.dialects.anthropic import Anthropic
from gateway.dialects.base import Answer, Call, Dialect
from gateway.dialects.ollama import Ollama
from gateway.dialects.openai import OpenAI
from gateway.dialects.sse import SSE
from gateway.dialects.text import Text

DIALECTS: Final[dict[str, Dialect]] = {
    dialect.name: dialect for dialect in (OpenAI(), Anthropic(), Ollama(), SSE(), Text())
}

__all__ = ["DIALECTS", "Answer", "Call", "Dialect"]
