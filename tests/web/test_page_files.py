"""The page's files keep what a strict Content-Security-Policy and a reader of client.js count on."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "gateway" / "web" / "page"
FILES = sorted(path.name for path in PAGE.iterdir())


def text(name):
    return (PAGE / name).read_text("utf-8")


def test_page_is_these_files():
    assert FILES == ["chat.css", "chat.js", "client.js", "icon.svg", "index.html"]


@pytest.mark.parametrize("name", FILES)
def test_page_loads_nothing_from_elsewhere(name):
    addresses = re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", text(name))
    assert set(addresses) <= {"http://www.w3.org"}


def test_page_has_no_inline_script_or_style():
    html = text("index.html")
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", html) == []


@pytest.mark.parametrize("name", ["chat.js", "client.js"])
def test_script_never_reads_text_as_html_or_code(name):
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text(name)) == []


def test_client_is_short_and_depends_on_nothing():
    client = text("client.js")
    assert client.count("\n") < 400
    assert re.findall(r"^import|\bimport\(", client, re.MULTILINE) == []


def test_page_has_every_word_in_both_languages():
    script = text("chat.js")
    english, chinese = (
        re.search(rf"^  {lang}: {{(.*?)^  }},", script, re.MULTILINE | re.DOTALL) for lang in ("en", "zh")
    )
    keys = [re.findall(r"^    (\w+):", words[1], re.MULTILINE) for words in (english, chinese)]
    assert keys[0] == keys[1]
    assert set(re.findall(r'data-words="(\w+)"', text("index.html"))) <= set(keys[0])
