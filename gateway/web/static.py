"""The files of the pages and the browser client: read once, served from memory by both listeners.

`make page` builds the chat page's Markdown parser from npm packages. Without it, the parser's path is 404, and the page
shows plain text.
"""

import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.web.exchange import Endpoint, Exchange, Kind, listed

TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
FILE: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    hdrs.CACHE_CONTROL: "no-cache",
}
"""Every file: opened by itself it runs nothing of others, and no page of another origin loads it."""
DOCUMENT: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
}
"""Both pages show what others write (models, providers, clients): they load nothing from elsewhere, send nothing
elsewhere, and none of that text becomes markup, script or style."""
CLIENT: Final[Mapping[str, str]] = {
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Pages of other origins import the client, which browsers allow only with these headers. It holds nothing secret."""
CHAT_PARTS: Final = {"pages": "/page/", "pages/chat": "/page/", "pages/chat/lib": "/page/lib/", "client": "/"}
"""The folders of the chat page and of the client, and where their files are served."""
OWN_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {"/": DOCUMENT, "/client.js": CLIENT}
"""Headers of single files, in addition to those of all files."""


def products() -> Traversable:
    """The folder that holds `pages` and `client`: the package, which a wheel copies them into, or the checkout."""
    package = resources.files("gateway")
    return package if (package / "pages").is_dir() else Path(__file__).parents[2]


class StaticFile(Kind):
    """One file in memory.

    Args:
        content: its bytes.
        headers: headers of its answers, in addition to the ETag.
    """

    def __init__(self, content: bytes, headers: Mapping[str, str]) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self._headers = {**headers, hdrs.ETAG: self._etag}

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """The file, for an endpoint."""
        return self.respond(exchange.request, exchange.headers)

    def respond(self, request: web.BaseRequest, headers: Mapping[str, str] | None = None) -> web.Response:
        """The file, with further headers; 304 if the client has it."""
        all_headers = {**(headers or {}), **self._headers}
        known = {tag.strip().removeprefix("W/") for tag in listed(request.headers, hdrs.IF_NONE_MATCH).split(",")}
        if self._etag in known or "*" in known:
            return web.Response(status=304, headers=all_headers)
        return web.Response(body=self._content, headers=all_headers)


def static_files(parts: Mapping[str, str], root: Traversable | None = None) -> dict[str, StaticFile]:
    """The files of a page by their paths; `index.html` is at `/`.

    Args:
        parts: folders below `root`, and the prefix of the paths of their files. A folder may be missing.
        root: `products()` if not given.
    """
    files = {}
    for part, prefix in parts.items():
        for file in _files_in((root or products()).joinpath(*part.split("/"))):
            content_type = TYPES.get(file.name.rpartition(".")[2])
            path = "/" if file.name == "index.html" else f"{prefix}{file.name}"
            if content_type is not None:
                headers = {**FILE, **OWN_HEADERS.get(path, {}), hdrs.CONTENT_TYPE: content_type}
                files[path] = StaticFile(file.read_bytes(), headers)
    return files


def static_endpoints(root: Traversable | None = None) -> Iterator[tuple[str, Endpoint]]:
    """The paths of the chat page and of the browser client, and what they lead to."""
    for path, file in static_files(CHAT_PARTS, root).items():
        yield path, Endpoint("page", file, public=True)


def _files_in(folder: Traversable) -> list[Traversable]:
    return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
