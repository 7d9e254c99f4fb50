"""The page's files keep what a strict Content-Security-Policy and a reader of client.js count on."""

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from gateway.admin.files import monitor_files
from gateway.web.static import static_endpoints
from tests.kit.program import ROOT, find_program

PAGE = ROOT / "pages" / "chat"
CLIENT = ROOT / "client"
PARSER = PAGE / "lib" / "markdown.js"
BASE = ROOT / "pages" / "base.css"
FILES = sorted(path for path in (*PAGE.iterdir(), BASE, CLIENT / "client.js") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]

CHECK = """
import * as implementation from "./implementation.js";
import * as promised from "./client.js";
const kept: typeof promised = implementation;
const answer: promised.Answer = kept.stream({
  url: "/api/chat", message: "hi", format: "events", mode: "auto",
  onText: (text) => text.length, onState: (state, { seconds = 0 }) => [state === "offline", seconds.toFixed()],
});
const { outcome, error }: promised.Result = await answer.done;
if (outcome === "error" && error?.retryable) answer.regenerate({ signal: AbortSignal.timeout(error.retryAfter ?? 0) });
// @ts-expect-error there is no such mode
promised.stream({ url: "/", mode: "websocket" });
"""
TSC = str(ROOT / "node_modules" / ".bin" / "tsc")
COMPILER = ["--noEmit", "--strict", "--checkJs", "--allowJs", "--target", "es2023", "--module", "nodenext"]
UNSAFE = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|setAttribute\(.style"


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_page_is_these_files() -> None:
    modules = ["chat.js", "chats.js", "client.js", "formula.js", "markdown.js", "storage.js", "theme.js", "turn.js"]
    modules.append("words.js")
    assert sorted(names(FILES)) == sorted(["base.css", "chat.css", "icon.svg", "index.html", *modules])


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_page_loads_nothing_from_elsewhere(file: Path) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", file.read_text("utf-8"))
    assert set(addresses) <= {"http://www.w3.org"}


def test_page_without_its_parser_is_served_all_the_same(tmp_path: Path) -> None:
    shutil.copytree(PAGE, tmp_path / "pages" / "chat", ignore=shutil.ignore_patterns("lib"))
    shutil.copytree(CLIENT, tmp_path / "client")
    paths = {path for path, _ in static_endpoints(tmp_path)}
    assert {"/", "/client.js", "/page/chat.js"} < paths
    assert "/page/lib/markdown.js" not in paths


def test_both_pages_are_dressed_by_one_base() -> None:
    chat = {path for path, _ in static_endpoints()}
    assert "/page/base.css" in chat & monitor_files().keys()
    assert [path.name for path in BASE.parent.iterdir() if path.is_file()] == ["base.css"]
    for page in ("chat", "monitor"):
        html = (BASE.parent / page / "index.html").read_text("utf-8")
        assert re.findall(r'stylesheet" href="page/(\w+)', html) == ["base", page]


def test_page_has_no_inline_script_or_style() -> None:
    html = (PAGE / "index.html").read_text("utf-8")
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", html) == []


@pytest.mark.parametrize("file", SCRIPTS, ids=names(SCRIPTS))
def test_script_never_reads_text_as_html_or_code(file: Path) -> None:
    assert re.findall(UNSAFE, file.read_text("utf-8")) == []


def test_client_depends_on_nothing() -> None:
    assert re.findall(r"^import|\bimport\([^\"]", (CLIENT / "client.js").read_text("utf-8"), re.MULTILINE) == []


def test_page_has_every_word_in_both_languages() -> None:
    script, html = ((PAGE / name).read_text("utf-8") for name in ("words.js", "index.html"))
    english, chinese = (
        re.findall(r"^    (\w+):", block, re.MULTILINE)
        for block in re.findall(r"^  (?:en|zh): {(.*?)^  },", script, re.MULTILINE | re.DOTALL)
    )
    assert english == chinese
    assert set(re.findall(r'data-(?:words|label)="(\w+)"', html)) <= set(english)


def test_page_uses_no_word_that_is_not_there() -> None:
    known = set(re.findall(r"^    (\w+):", (PAGE / "words.js").read_text("utf-8"), re.MULTILINE))
    used = {word for script in SCRIPTS for word in re.findall(r"\bwords\.(\w+)", script.read_text("utf-8"))}
    assert used - {"js"} <= known


def test_parser_is_bundled_with_its_licences() -> None:
    assert PARSER.is_file(), "missing; run: make page"
    assert re.findall(r"^import|\bimport\(", PARSER.read_text("utf-8"), re.MULTILINE) == []
    assert (PARSER.with_name("licenses.txt")).read_text("utf-8").count("MIT") >= 2


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CLIENT, tmp_path / "client"))


def test_client_is_what_its_types_say(package: Path) -> None:
    (package / "client.js").rename(package / "implementation.js")
    (package / "check.ts").write_text(CHECK, encoding="utf-8")
    assert run_compiler(package, *COMPILER, "check.ts") == ""


def test_every_script_keeps_its_types() -> None:
    """tsc --strict finds no mistake in any script of both pages, and jsconfig.json leaves none out."""
    scripts = {CLIENT / "client.js", *(ROOT / "pages").glob("*/*.js")}
    assert scripts <= {Path(line) for line in run_compiler(ROOT, "-p", "jsconfig.json", "--listFilesOnly").splitlines()}
    assert run_compiler(ROOT, "-p", "jsconfig.json", "--strict", "--checkJs") == ""
    assert [script.name for script in scripts if "@ts-" in script.read_text("utf-8")] == []


def run_compiler(directory: Path, *arguments: str) -> str:
    checked = subprocess.run([TSC, *arguments], cwd=directory, capture_output=True, text=True, timeout=50)
    return checked.stdout + checked.stderr


def test_client_is_packed_with_all_it_needs(package: Path) -> None:
    command = [find_program("npm", "npm"), "pack", "--dry-run", "--json"]
    packed = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=50)
    report = json.loads(packed.stdout)
    files = (report[0] if isinstance(report, list) else next(iter(report.values())))["files"]
    assert {file["path"] for file in files} == {"client.js", "client.d.ts", "package.json", "README.md", "LICENSE"}


def test_client_states_what_bundlers_ask() -> None:
    stated = json.loads((CLIENT / "package.json").read_text("utf-8"))
    assert (stated["version"], stated["type"], stated["sideEffects"]) == (version("sse-gateway"), "module", False)
    assert not {"dependencies", "peerDependencies", "scripts"} & stated.keys()
    assert (CLIENT / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")
