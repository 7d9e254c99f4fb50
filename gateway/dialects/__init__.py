"""The APIs that upstreams speak, by the name that `dialect:` has in the configuration.

A dialect is used on the writer's side only: it turns a chat into a request, and the bytes of the answer into events. A
new one is a file beside these and a line in `DIALECTS`. The configuration, metrics and spans read the rest from it.
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
