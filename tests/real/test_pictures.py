"""The README shows both pages as they are: its pictures exist, and what takes them works."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.kit.program import ROOT
from tests.real.browsing import browser_fixture
from tests.real.pictures import FOLDER, MAX_BYTES, take

pytestmark = pytest.mark.asyncio(loop_scope="module")
PNG = b"\x89PNG\r\n\x1a\n"

browser = browser_fixture()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
async def test_readme_shows_pictures_and_says_what_is_on_them(name: str) -> None:
    shown = re.findall(r"!\[(.*?)\]\((.*?)\)", (ROOT / name).read_text("utf-8"))
    assert {ROOT / path for _, path in shown} == {FOLDER / "chat.png", FOLDER / "monitor.png"}
    for words, path in shown:
        picture = (ROOT / path).read_bytes()
        assert picture.startswith(PNG)
        assert (len(words) > 15, len(picture) <= MAX_BYTES) == (True, True)


@pytest.mark.timeout(90)
async def test_pictures_can_be_taken(browser: Browser, tmp_path: Path) -> None:
    await take(tmp_path, browser)
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in ("chat.png", "monitor.png"))
