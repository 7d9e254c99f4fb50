"""The monitor page's files keep what a strict Content-Security-Policy and readers of two languages count on."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "pages" / "monitor"
FILES = sorted(path.name for path in PAGE.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]


def text(name: str) -> str:
    return (PAGE / name).read_text("utf-8")


def words(language: str) -> list[str]:
    found = re.search(rf"^  {language}: {{(.*?)^  }},", text("words.js"), re.MULTILINE | re.DOTALL)
    assert found
    return re.findall(r"^    (\w+):", found[1], re.MULTILINE)


def test_page_is_these_files() -> None:
    assert FILES == [
        "icon.svg",
        "index.html",
        "monitor.css",
        "monitor.js",
        "past.js",
        "plots.js",
        "series.js",
        "tables.js",
        "words.js",
    ]


@pytest.mark.parametrize("name", FILES)
def test_page_loads_nothing_from_elsewhere(name: str) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", text(name))
    assert set(addresses) <= {"http://www.w3.org"}


def test_page_has_no_inline_script_or_style() -> None:
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", text("index.html")) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_never_reads_text_as_html_or_code(name: str) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\b(?:alert|confirm|prompt)\("
    )
    assert re.findall(forbidden, text(name)) == []


def test_page_has_every_word_in_both_languages_and_none_too_many() -> None:
    assert words("en") == words("zh")
    used = "".join(text(name) for name in FILES if name != "words.js")
    columns = {"id", "route", "principal", "upstream", "state", "age", "events", "readers", "bytes"}
    assert [word for word in words("en") if word not in columns and f'"{word}"' not in used] == []
    assert set(re.findall(r'data-words="(\w+)"', text("index.html"))) <= set(words("en"))
