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
        # An array of one object was unpacked again and again.
        b"[{}]",
    ),
    # The type of an event was an object, which no set can be asked for.
    "anthropic": (b'{"model":"m","type":{"role":"assistant"}}\n',),
    # Behind the object that ends an answer stood a brace, which counted or not, depending on the read that it came in.
    "ollama": (b'{"message":{"content":"Hi"},"done":true,"done_reason":"stop"}}\n',),
    # The same of a header's name in the configuration.
    "config": (b'{"auth":{"forward":{"url":"http://a/w","headers":[[]]}},"upstreams":{},"routes":[]}',),
    # A request without a version was answered by one of HTTP/0.9; two lines of cookies with a byte that is no text by 500.
    "front": (
        b"OPTIONS /chat\r\nHost: localhost\r\nOrigin: a\r\nAccess-Control-Request-Method: POST\r\n\r\n",
        b"GET /chat HTTP/1.1\r\nHost: localhost\r\nCookie: a=\x88\r\nCookie: b=1\r\n\r\n",
    ),
    # A chunk's tokens were counted differently when it came in a read of its own.
    "openai": (b'data: {"choices":[{"index":0,"delta":{},"iindex":0}]}\n\n',),
}
