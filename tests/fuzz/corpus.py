# ruff: noqa: E501 - inputs are best read whole
"""Inputs that once found a mistake, by target. They stay, and each is tried in every test run."""

from typing import Final

FOUND: Final[dict[str, tuple[bytes, ...]]] = {
    # A chunk without a delta was passed on as it was, or with an empty one, depending on the read that it came in.
    "chunks": (
        b'data: {"id":"a","model":"m","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
        b'data: {"choices":[{"index":0,"Jelta":{"tool_calls":[]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
        # A tool call without its function was given an empty one, or not, depending on the read that it came in.
        b'data: {"id":"a","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_0","functyon":{"name":"f"}}]}}]}\n\n'
        b'data: {"choices":[{"i\rdex":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    ),
    # A chunk's tokens were counted differently when it came in a read of its own.
    "openai": (b'data: {"choices":[{"index":0,"delta":{},"iindex":0}]}\n\n',),
}
