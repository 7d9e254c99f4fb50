"""Configs that can be used in, the exact warnings of `gateway check` out."""

from pathlib import Path

import pytest

from gateway.config import examine, examine_text
from tests.config.cases import cases

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [ROOT / "config.yaml", ROOT / "compose/gateway.yaml", *sorted((ROOT / "docs/examples").glob("*.yaml"))]
AUTH = "auth: {anonymous: true}"
BASE = """\
upstreams:
  main: {dialect: openai, targets: [{url: "demo:"}]}
routes:
  - {path: /v1/chat/completions, api: openai, upstream: main}
  - {path: /api/chat, api: chat, upstream: main}
"""


def placed(heading: str, yaml: str) -> str:
    """A config with `yaml` where `heading` says."""
    head, routes = BASE.split("routes:")
    texts = {
        "[whole]": f"{yaml}\n",
        "[auth]": f"{yaml}\n{BASE}",
        "[appended]": f"{AUTH}\n{BASE}{yaml}\n",
        "[route]": f"{AUTH}\n{BASE}  - {{{yaml}}}\n",
        "[upstream]": f"{AUTH}\n{head}  x: {{{yaml}}}\nroutes:{routes}  - {{path: /x, api: chat, upstream: x}}\n",
    }
    return texts[heading]


@pytest.mark.parametrize(("heading", "yaml", "expected"), list(cases("warnings.txt")))
def test_check_warns_of_what_cannot_work_or_is_dangerous(heading: str, yaml: str, expected: list[str]) -> None:
    found = examine_text(placed(heading, yaml), "f", {"SPACED": "0123456789abcdef "}).warnings
    assert [str(warning).removeprefix("f:") for warning in found] == expected


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_configs_give_no_warning(path: Path) -> None:
    assert examine(path, {"STORE_SECRET": "one-that-is-yours-alone"}).warnings == []


def test_warning_never_prints_what_was_put_in() -> None:
    yaml = "dialect: openai, targets: [{url: 'http://$SECRET.example.com'}], api_key: ' $SECRET', model: '$SECRET '"
    found = examine_text(placed("[upstream]", yaml), "f", {}).warnings
    assert len(found) == 3
    assert "SECRET" not in "".join(map(str, found))
