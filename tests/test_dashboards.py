"""Dashboards, rules and alerts: in step with their source, with one another, and with the metrics that there are."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from gateway.core.event import Usage
from gateway.observe.gen_ai import Operation
from gateway.observe.metrics import Metrics
from grafana.boards import BOARDS, DIRECTORY, as_text
from grafana.panels import COLUMNS
from tests.kit.contract import METRICS, STORE_METRICS
from tests.kit.program import ROOT, node

RULES = [ROOT / "prometheus/rules/gateway.yml", ROOT / "prometheus/alerts/gateway.yml"]
UIDS = {
    "streams": "sse-gateway-streams",
    "upstreams": "sse-gateway-upstreams",
    "process": "sse-gateway-process",
    "store": "sse-gateway-store",
}
TARGET = {"job", "instance"}
"""Labels that Prometheus adds to every series."""
NAME = re.compile(r"\b(?:gateway|gen_ai|process|python)_[a-z_]+\b")
SELECTED = re.compile(r"\b((?:gateway|gen_ai|process|python)_[a-z_]+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
NO_METRIC = {"gateway_token", "gateway_path"}
"""Other names that begin so: a cookie, a variable of nginx."""

each_board = pytest.mark.parametrize("name", BOARDS)


def known_metrics() -> dict[str, set[str]]:
    """Every metric of a gateway by its name, with its labels."""
    metrics = Metrics(CollectorRegistry())
    metrics.providers = {"main": "openai"}
    metrics.operation("main", Operation("", "", "", 2.0, 1.0, 0.5, Usage(1, 2)))
    others = (family for family in metrics.registry.collect() if not family.name.startswith("gateway_"))
    return METRICS | STORE_METRICS | {full_name(family): labels_of(family) for family in others}


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


KNOWN = known_metrics()


def labels(name: str) -> set[str]:
    """The labels of a metric or of a histogram's series; fails where there is none of this name."""
    base = name if name in KNOWN else SUFFIX.sub("", name)
    assert base in KNOWN, f"there is no metric {name}"
    return KNOWN[base] | TARGET | ({"le"} if name.endswith("_bucket") else set())


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in BOARDS[name]["panels"] if panel["type"] != "row"]


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def expressions() -> Iterator[str]:
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield variable["query"]["query"]
    for name in BOARDS:
        yield from (target["expr"] for panel in panels(name) for target in panel["targets"])
    yield from (rule["expr"] for rule in rules())


@each_board
def test_file_is_what_the_generator_writes(name: str) -> None:
    assert (DIRECTORY / f"{name}.json").read_text(encoding="utf-8") == as_text(BOARDS[name]), "run: make dashboards"


def test_dashboards_keep_their_addresses() -> None:
    assert {name: board["uid"] for name, board in BOARDS.items()} == UIDS
    assert {path.stem for path in DIRECTORY.glob("*.json")} == set(BOARDS)


@each_board
def test_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    for panel in panels(name):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


@each_board
def test_panels_have_ids_and_places_of_their_own(name: str) -> None:
    ids = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    for one, other in itertools.combinations([panel["gridPos"] for panel in BOARDS[name]["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
        assert other["x"] + other["w"] <= COLUMNS, other


@each_board
def test_dashboard_needs_nothing_but_a_data_source(name: str) -> None:
    text = as_text(BOARDS[name])
    assert "__inputs" not in text
    assert [variable["name"] for variable in BOARDS[name]["templating"]["list"]][:3] == [
        "datasource",
        "job",
        "instance",
    ]
    assert all("$__rate_interval" in expr for expr in expressions() if "$job" in expr and "rate(" in expr)


@pytest.mark.parametrize("expr", sorted(set(expressions())))
def test_expression_names_metrics_and_labels_that_exist(expr: str) -> None:
    code = re.sub(r"\b[a-z_]+:[a-z_]+:[a-z0-9_]+", "", re.sub(r'"[^"]*"', '""', expr))
    names = set(NAME.findall(code))
    for name, selector in SELECTED.findall(code):
        assert set(re.findall(r"(\w+)(?==|!)", selector)) <= labels(name), name
    grouped = {label.strip() for group in GROUPED.findall(code) for label in group.split(",")}
    for name in names - grouped:
        assert grouped <= labels(name), (name, grouped)


def test_recorded_names_are_those_that_alerts_use() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for rule in rules() if "alert" in rule for name in re.findall(r"\w+:\w+:\w+", rule["expr"])}
    assert used <= recorded


def test_alert_says_what_is_wrong_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description", "hint"}, alert["alert"]
        assert alert["labels"]["severity"] in {"page", "ticket"}, alert["alert"]


def test_every_alert_is_tried_firing_and_silent() -> None:
    tests = (ROOT / "prometheus/tests/gateway.yml").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}\n" in tests or f'alertname="{rule["alert"]}"' in tests, rule["alert"]


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name)
def test_document_names_metrics_that_exist(path: Path) -> None:
    for name in set(NAME.findall(path.read_text(encoding="utf-8"))) - NO_METRIC:
        if name.startswith(("gateway_", "gen_ai_")) and not name.endswith("_"):
            labels(name)


# -- Grafana's own types -----------------------------------------------------------------------------------------------

SCHEMA = "@grafana/schema/dist/esm/raw/composable"
PANELS = {
    "timeseries": "TimeSeries",
    "stat": "Stat",
    "state-timeline": "StateTimeline",
    "heatmap": "Heatmap",
}
# JSON writes an enumeration's value; TypeScript wants its member. The template literal turns one into the other.
JSON_OF = """
type Json<T> = T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
"""


def typescript() -> str:
    """A program that compiles where the dashboards, their panels' options and their fields are what Grafana reads."""
    lines = ["import type { Dashboard } from '@grafana/schema';"]
    for kind, name in PANELS.items():
        path = f"{SCHEMA}/{kind.replace('-', '')}/panelcfg/x/{name}PanelCfg_types.gen"
        fields = "" if kind == "stat" else f", FieldConfig as {name}Fields"
        lines.append(f"import type {{ Options as {name}{fields} }} from '{path}';")
    lines.append(JSON_OF)
    for name in BOARDS:
        lines.append(f"export const {name}: Json<Dashboard> = {json.dumps(BOARDS[name])};")
        lines += [line for panel in panels(name) for line in typed_parts(name, panel)]
    return "\n".join(lines)


def typed_parts(board: str, panel: dict[str, Any]) -> Iterator[str]:
    kind, name = PANELS[panel["type"]], f"{board}{panel['id']}"
    yield f"export const {name}: Json<{kind}> = {json.dumps(panel['options'])};"
    if custom := panel["fieldConfig"]["defaults"].get("custom"):
        yield f"export const {name}Fields: Json<{kind}Fields> = {json.dumps(custom)};"


def compile_typescript(directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    compiler = ROOT / "node_modules/typescript/bin/tsc"
    if not compiler.exists():
        pytest.fail("typescript is missing; run: npm ci")
    options = {"strict": True, "noEmit": True, "module": "esnext", "moduleResolution": "bundler", "types": []}
    (directory / "node_modules").symlink_to(ROOT / "node_modules")
    (directory / "tsconfig.json").write_text(
        json.dumps({"compilerOptions": options | {"skipLibCheck": True}, "files": ["boards.ts"]})
    )
    (directory / "boards.ts").write_text(text, encoding="utf-8")
    command = [node(), str(compiler), "-p", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_grafana_knows_every_field_and_value(tmp_path: Path) -> None:
    done = compile_typescript(tmp_path, typescript())
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.parametrize(
    ("ours", "wrong"),
    [('"graphTooltip": 1', '"graphTooltip": 7'), ('"drawStyle": "line"', '"drawStyle": "wavy"'), ('"uid"', '"uidd"')],
)
def test_checker_sees_what_grafana_does_not_know(tmp_path: Path, ours: str, wrong: str) -> None:
    text = typescript()
    assert ours in text
    assert compile_typescript(tmp_path, text.replace(ours, wrong)).returncode != 0
