"""Panels, variables and dashboards as Grafana's JSON: plain dicts, and functions that fill them in.

    board("uid", "Title", "What it shows.", [("Row", [panel("Streams", "Running now.", SHORT, query("…"))])], [])

- In an expression `HERE` is the selector of job and instance, which every dashboard has as variables.
- Panels are placed from left to right and wrapped at `COLUMNS`; nothing overlaps.
- Ids follow from the order, so the JSON changes only where the dashboard does.

This file knows no metric.

Source: @grafana/schema, Dashboard; schemaVersion 42 is Grafana 12's and 13's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Json = dict[str, Any]
Rows = Sequence[tuple[str, Sequence[Json]]]

COLUMNS: Final = 24
HEIGHT: Final = 8
SOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
HERE: Final = 'job=~"$job", instance=~"$instance"'
TAG: Final = "sse-gateway"

SECONDS: Final = "s"
RATIO: Final = "percentunit"
BYTES: Final = "bytes"
BYTE_RATE: Final = "Bps"
SHORT: Final = "short"
RATE: Final = "cps"
TOKENS_RATE: Final = "suffix: tokens/s"
TOKENS: Final = "suffix: tokens"
EVENTS: Final = "suffix: events"

GREEN: Final = "green"
YELLOW: Final = "yellow"
RED: Final = "red"


def query(expr: str, legend: str = "") -> Json:
    """One query, over the dashboard's time; `{{label}}` in the legend is a label's value."""
    return {
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": expr.replace("HERE", HERE),
        "legendFormat": legend or "__auto",
        "range": True,
    }


def quantiles(metric: str, selector: str = "HERE", *, by: str = "", of: Sequence[int] = (50, 95, 99)) -> list[Json]:
    """A query for each percentile of a histogram, over everything or by one label."""
    group, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    return [
        query(
            f"histogram_quantile({percent / 100}, "
            f"sum by ({group}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            f"{legend}p{percent}",
        )
        for percent in of
    ]


# -- panels ----------------------------------------------------------------------------------------------------------


def panel(
    title: str,
    description: str,
    unit: str,
    *queries: Json,
    width: int = 8,
    stacked: bool = False,
    colors: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Json:
    """Lines over time, 0 at the bottom; stacked areas where the series add up to something."""
    custom: Json = {"drawStyle": "line", "fillOpacity": 40 if stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"group": "A", "mode": "normal"}
    made = _panel("timeseries", title, description, unit, queries, width, {"min": 0, "custom": custom} | defaults)
    made["fieldConfig"]["overrides"] = [_colored(name, color) for name, color in (colors or {}).items()]
    return made | {"options": {"legend": _legend(), "tooltip": {"mode": "multi", "sort": "desc"}}}


def figure(
    title: str,
    description: str,
    unit: str,
    *queries: Json,
    steps: Sequence[tuple[float, str]] = (),
    texts: Mapping[int, tuple[str, str]] | None = None,
    width: int = 4,
) -> Json:
    """One big number with its recent past behind it.

    Args:
        steps: from which value on it has which colour; green below.
        texts: word and colour instead of a value.
    """
    defaults = {"noValue": "–", "thresholds": _thresholds(steps), "mappings": _mappings(texts or {})}
    made = _panel("stat", title, description, unit, queries, width, defaults, height=4)
    return made | {
        "options": {
            "colorMode": "value",
            "graphMode": "none" if texts else "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "auto",
            "wideLayout": True,
        }
    }


def timeline(
    title: str, description: str, unit: str, *queries: Json, texts: Mapping[int, tuple[str, str]], width: int = 12
) -> Json:
    """A bar for each series, whose colour is its state over time."""
    defaults = {"mappings": _mappings(texts), "custom": {"fillOpacity": 75, "lineWidth": 0}}
    made = _panel("state-timeline", title, description, unit, queries, width, defaults)
    return made | {
        "options": {
            "alignValue": "left",
            "legend": _legend(),
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        }
    }


def heatmap(title: str, description: str, unit: str, expr: str, width: int = 12) -> Json:
    """How a histogram's buckets fill over time; the expression is a rate by `le`."""
    made = _panel("heatmap", title, description, unit, [query(expr, "{{le}}") | {"format": "heatmap"}], width, {})
    scheme = {
        "mode": "scheme",
        "scheme": "Turbo",
        "fill": "dark-orange",
        "exponent": 0.5,
        "steps": 64,
        "reverse": False,
    }
    return made | {
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": scheme,
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "legend": {"show": True},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": True},
            "yAxis": {"unit": unit},
        }
    }


def _panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Json],
    width: int,
    defaults: Json,
    height: int = HEIGHT,
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "targets": [one | {"refId": chr(ord("A") + number)} for number, one in enumerate(queries)],
        "fieldConfig": {"defaults": {"unit": unit} | defaults, "overrides": []},
    }


def _legend() -> Json:
    return {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True}


def _colored(series: str, color: str) -> Json:
    look = {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
    return {"matcher": {"id": "byName", "options": series}, "properties": [look]}


def _thresholds(steps: Sequence[tuple[float, str]]) -> Json:
    first = {"color": GREEN, "value": None}
    return {"mode": "absolute", "steps": [first, *({"color": color, "value": value} for value, color in steps)]}


def _mappings(texts: Mapping[int, tuple[str, str]]) -> list[Json]:
    named = {str(value): {"text": text, "color": color} for value, (text, color) in texts.items()}
    return [{"type": "value", "options": named}] if named else []


# -- dashboards ------------------------------------------------------------------------------------------------------


def variable(name: str, label: str, values: str) -> Json:
    """A variable with the values of a label: several may be chosen, or all."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": values.replace("HERE", HERE), "refId": "PrometheusVariableQueryEditor"},
        "current": {"text": ["All"], "value": ["$__all"]},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "sort": 1,
    }


def board(uid: str, title: str, description: str, rows: Rows, variables: Sequence[Json]) -> Json:
    """A dashboard of titled rows; datasource, job and instance come before its own variables."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": 42,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_siblings()],
        "templating": {"list": [*_common(), *variables]},
        "panels": list(_placed(rows)),
    }


def _siblings() -> Json:
    return {
        "type": "dashboards",
        "title": "SSE gateway",
        "tags": [TAG],
        "icon": "external link",
        "tooltip": "",
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _common() -> Iterator[Json]:
    yield {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "refresh": 1}
    yield variable("job", "Job", "label_values(gateway_build_info, job)")
    yield variable("instance", "Instance", 'label_values(gateway_build_info{job=~"$job"}, instance)')


def _placed(rows: Rows) -> Iterator[Json]:
    number, top = 1, 0
    for title, panels in rows:
        yield _row(number, title, top)
        number, top = number + 1, top + 1
        for line in _lines(panels):
            yield from _side_by_side(line, number, top)
            number, top = number + len(line), top + max(one["gridPos"]["h"] for one in line)


def _row(number: int, title: str, top: int) -> Json:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
    return {"type": "row", "id": number, "title": title, "collapsed": False, "panels": [], "gridPos": place}


def _lines(panels: Sequence[Json]) -> Iterator[list[Json]]:
    line: list[Json] = []
    for one in panels:
        if sum(other["gridPos"]["w"] for other in line) + one["gridPos"]["w"] > COLUMNS:
            yield line
            line = []
        line.append(one)
    yield line


def _side_by_side(line: Sequence[Json], number: int, top: int) -> Iterator[Json]:
    left = 0
    for one in line:
        yield {"id": number, **one, "gridPos": one["gridPos"] | {"x": left, "y": top}}
        number, left = number + 1, left + one["gridPos"]["w"]
