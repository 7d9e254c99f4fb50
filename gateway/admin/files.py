"""The monitor page's files, read once."""

from aiohttp import hdrs, web

from gateway.web.static import PAGE, TYPES, products


class Files:
    """Serves the page from memory, at `/` and below `/page/`."""

    def __init__(self) -> None:
        self._files = {_path(file.name): (file.read_bytes(), _type(file.name)) for file in _FOLDER.iterdir()}

    def find(self, path: str) -> web.Response | None:
        """The file at this path, None where there is none."""
        content, media_type = self._files.get(path, (b"", ""))
        return web.Response(body=content, headers={**PAGE, hdrs.CONTENT_TYPE: media_type}) if media_type else None


_FOLDER = products() / "pages" / "monitor"


def _path(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


def _type(name: str) -> str:
    return TYPES[name.rpartition(".")[2]]
