"""The chat page and the browser client: a handful of files, read once.

The page's Markdown parser comes from npm and is put in place by `make page`; where it is missing, its path leads
nowhere and the page shows plain text. This file knows no more of it than that.
"""

import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.web.exchange import Endpoint, Exchange, Kind

TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-cache",
}
CHAT: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
}
"""The chat page shows what models write: it loads nothing from elsewhere, and no text of its becomes markup."""
ANYBODY: Final[Mapping[str, str]] = {
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""The client is a module, which a page of another origin may import only by leave; it holds nothing secret."""
OWN: Final[Mapping[str, Mapping[str, str]]] = {"/": CHAT, "/client.js": ANYBODY}
PARTS: Final = {"pages/chat": "/page/", "pages/chat/lib": "/page/lib/", "client": "/"}
"""Where the files of each folder are served."""


def products() -> Traversable:
    """The folder that holds `pages` and `client`: the package, which a wheel copies them into, or the checkout."""
    package = resources.files("gateway")
    return package if (package / "pages").is_dir() else Path(__file__).parents[2]


class StaticFile(Kind):
    """Serves one file from memory.

    Args:
        content: its bytes.
        headers: of its answers, beside the ETag.
    """

    def __init__(self, content: bytes, headers: dict[str, str]) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self._headers = {**headers, hdrs.ETAG: self._etag}

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """The file, or 304 where the client has it."""
        headers = {**exchange.headers, **self._headers}
        if exchange.request.headers.get(hdrs.IF_NONE_MATCH) == self._etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._content, headers=headers)


def static_endpoints(root: Traversable | None = None) -> Iterator[tuple[str, Endpoint]]:
    """The paths of the chat page's files and of the browser client, and what they lead to."""
    for path, file in _files(root or products()):
        content_type = TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            headers = {**PAGE, **OWN.get(path, {}), hdrs.CONTENT_TYPE: content_type}
            handler = StaticFile(file.read_bytes(), headers)
            yield path, Endpoint("page", handler, public=True)


def _files(root: Traversable) -> Iterator[tuple[str, Traversable]]:
    for part, prefix in PARTS.items():
        folder = root.joinpath(*part.split("/"))
        for file in folder.iterdir() if folder.is_dir() else ():  # a wheel without the parser has no `lib`
            if file.is_file():
                yield "/" if file.name == "index.html" else f"{prefix}{file.name}", file
