"""The monitor page's files: at `/` and below `/page/` of the admin listener."""

from typing import Final

from gateway.web.static import StaticFile, static_files

MONITOR_PARTS: Final = {"pages": "/page/", "pages/monitor": "/page/"}
"""The folders of the page, and where their files are served."""


def monitor_files() -> dict[str, StaticFile]:
    """The page's files by their paths."""
    return static_files(MONITOR_PARTS)
