"""The chat page and the browser client: a handful of files, read once."""

import hashlib
from collections.abc import Iterator
from importlib import resources
from typing import Final

from aiohttp import hdrs, web

from gateway.formats import Format
from gateway.web.exchange import Endpoint, Exchange

TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE: Final = {
    hdrs.CONTENT_SECURITY_POLICY: "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
    hdrs.X_CONTENT_TYPE_OPTIONS: "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-cache",
}
PATHS: Final = {"index.html": "/", "client.js": "/client.js"}
"""Files that are served elsewhere than below `/page/`."""


class StaticFile:
    """Serves one file from memory.

    Args:
        content: its bytes.
        content_type: its media type.
    """

    def __init__(self, content: bytes, content_type: str) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self._headers = {**PAGE, hdrs.CONTENT_TYPE: content_type, hdrs.ETAG: self._etag}

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """The file, or 304 where the client has it."""
        headers = {**self._headers, **exchange.headers}
        if exchange.request.headers.get(hdrs.IF_NONE_MATCH) == self._etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._content, headers=headers)


def static_endpoints(format_: Format) -> Iterator[tuple[str, Endpoint]]:
    """The paths of the page's files and what they lead to."""
    for file in (resources.files("gateway.web") / "page").iterdir():
        content_type = TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            handler = StaticFile(file.read_bytes(), content_type)
            path = PATHS.get(file.name, f"/page/{file.name}")
            yield path, Endpoint("page", frozenset({"GET", "HEAD"}), handler, format_, public=True)
