"""Writes the dashboard as Grafana takes it: `python -m deploy.grafana.dashboard`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.grafana.panels import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.grafana.panels import Panel, Target

DASHBOARD = Path(__file__).with_name("dnstrail.json")
UID = "dnstrail"
"""Links and bookmarks go by it."""
SCHEMA_VERSION = 39
"""Of Grafana 11; newer ones read it."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
ROW_HEIGHT, STAT_HEIGHT, PANEL_HEIGHT = 1, 4, 8
ON_TIME_RANGE_CHANGE = 2

Json = dict[str, Any]


def dashboard() -> Json:
    """All of it."""
    return {
        "uid": UID,
        "title": "dnstrail",
        "description": "Where and why DNS lookups are lost.",
        "tags": ["dns", "dnstrail"],
        "editable": False,
        "graphTooltip": 1,
        "refresh": "1m",
        "schemaVersion": SCHEMA_VERSION,
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": [_data_source(), _variable("job"), _variable("instance", job='{job=~"$job"}')]},
        "panels": list(_panels()),
    }


def _data_source() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(name: str, job: str = "") -> Json:
    question = f"label_values(dnstrail_build_info{job}, {name})"
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": question, "refId": name},
        "definition": question,
        "refresh": ON_TIME_RANGE_CHANGE,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _panels() -> Iterator[Json]:
    """Rows and panels from left to right and from top to bottom, with numbers that stay as long as the order does."""
    number, top = 1, 0
    for row in ROWS:
        yield _heading(row.title, number, top)
        number, top, left, height = number + 1, top + ROW_HEIGHT, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            height = max(height, _height(panel))
            place = {"x": left, "y": top, "w": panel.width, "h": _height(panel)}
            yield _panel(panel, number, place)
            number, left = number + 1, left + panel.width
        top += height


def _heading(title: str, number: int, top: int) -> Json:
    place = {"x": 0, "y": top, "w": COLUMNS, "h": ROW_HEIGHT}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}


def _height(panel: Panel) -> int:
    return STAT_HEIGHT if panel.kind == "stat" else PANEL_HEIGHT


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [_target(target, letter) for target, letter in zip(panel.targets, "ABCDEF", strict=False)],
    }


def _target(target: Target, letter: str) -> Json:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": target.expression,
        "legendFormat": target.legend,
        "range": True,
    }


def _field(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.danger is not None:
        steps.append({"color": "red", "value": panel.danger})
    common: Json = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "stat":
        return {**common, "color": {"mode": "thresholds"}}
    return {**common, "color": {"mode": "palette-classic"}, "custom": _drawing(panel)}


def _drawing(panel: Panel) -> Json:
    """Filled where the sum means something; the line of danger only where there is one."""
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if panel.danger is None else "dashed"},
    }


OPTIONS: dict[str, Json] = {
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "timeseries": {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}


def document() -> str:
    """The text of the file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(document())
