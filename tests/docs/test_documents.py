"""Documents say what is: blocks can be read by what they are for, links lead somewhere, the reference is up to date."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from docs.generate import FILE, reference
from gateway.config import load, load_text
from tests.docs.config import completed, variables
from tests.docs.markdown import DOCUMENTS, Block, Document, blocks
from tests.kit.contract import METRICS, STORE_METRICS
from tests.kit.program import ROOT, node

OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
LANGUAGES = {"yaml", "sh", "text", "js", "html", "python", "ini", "nginx", "promql", "Caddyfile", "json"}
LANGUAGES |= {"haproxy", "apache", "lighttpd", "yml"}  # yaml is the gateway's own configuration, yml another program's
EXAMPLES = ROOT / "docs" / "examples"


def name_of(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def each_block(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*languages), ids=name_of)


@each_block("yaml")
def test_config_in_a_document_is_loaded(block: Block, tmp_path: Path) -> None:
    load_text(completed(block), str(block), variables(block.text), tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=name_of)
def test_config_of_an_example_is_loaded(path: Path) -> None:
    load(path, {})


def test_every_example_page_has_a_config() -> None:
    configs = {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert {path.stem.removesuffix("-fetch") for path in EXAMPLES.glob("*.html")} <= configs


def test_reference_is_what_the_model_says() -> None:
    assert FILE.read_text("utf-8") == reference(), "run: make docs"


@each_block("js")
def test_script_in_a_document_is_one(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.mjs"
    script.write_text(block.text, encoding="utf-8")
    checked = subprocess.run([node(), "--check", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@each_block("python")
def test_program_in_a_document_is_one(block: Block) -> None:
    ast.parse(block.text, str(block))


@each_block("sh")
def test_commands_in_a_document_are_some(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@each_document
def test_blocks_say_what_they_are(path: Path) -> None:
    assert [str(block) for block in Document(path).blocks if block.language not in LANGUAGES] == []


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    dead = [f"{path.name}:{line}: {target}" for line, target in Document(path).links if not leads(path, target)]
    assert dead == []


def leads(path: Path, target: str) -> bool:
    """Whether a link in this document can be followed; what is on the network is believed."""
    if target.startswith(("https://", "http://", "mailto:")):
        return True
    name, _, anchor = target.partition("#")
    file = (path.parent / name).resolve() if name else path
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not anchor or (file.suffix == ".md" and anchor in Document(file).anchors)


@each_document
def test_files_named_in_a_document_are_there(path: Path) -> None:
    named = re.findall(
        r"`((?:gateway|client|pages|tests|docs|bench|grafana|prometheus)/[\w./*-]+)`", path.read_text("utf-8")
    )
    assert [name for name in named if not any(ROOT.glob(name.rstrip("/")))] == []


def test_every_document_is_found_from_the_front_page() -> None:
    found, left = set(), [ROOT / "README.md"]
    while left:
        path = left.pop()
        found.add(path)
        names = [target.partition("#")[0] for _, target in Document(path).links if "://" not in target]
        linked = {(path.parent / name).resolve() for name in names if name.endswith(".md")}
        left += [other for other in linked if other not in found]
    assert [name_of(path) for path in DOCUMENTS if path not in found] == []


def test_operators_find_every_metric_with_its_labels() -> None:
    rows = re.findall(r"^\| `(gateway_\w+)` \| ([a-z_, ]*)\|", OPERATIONS, re.M)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == METRICS | STORE_METRICS


def test_operators_find_every_line_of_the_log() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "gateway").rglob("*.py")]
    logged = {name for text in sources for name in re.findall(r'logger\.\w+\(\s*"(\w+)"', text)}
    assert logged
    assert {name for name in logged if f"`{name}`" not in OPERATIONS} == set()


def test_operators_find_every_alert() -> None:
    alerts = re.findall(r"alert: (\w+)", (ROOT / "prometheus" / "alerts" / "gateway.yml").read_text("utf-8"))
    assert [alert for alert in alerts if f"`{alert}`" not in OPERATIONS] == []
