"""Each alert fires when it should, says what it should, and keeps still when there is too little to go by."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.export.metrics.catalogue import METRICS, Kind, Metric
from agent.export.metrics.clients import ByClient, Clients
from agent.export.metrics.pages import Pages
from agent.export.metrics.sources import Sources
from deploy.prometheus.alerts import ALERTS
from deploy.prometheus.rules import RULES
from tests.lab.servers import find_program
from tests.prometheus.cases import CASES, HEALTHY, NODES, SCRAPE_SECONDS, SCRAPES, Case, target

LABEL = re.compile(r'(\w+)="([^"]*)"')


def promtool(*arguments: str, text: str = "") -> str:
    program = find_program("promtool")
    assert program is not None, "promtool is missing: `make prometheus` provides it"
    command = [program, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def series(name: str, labels: dict[str, str]) -> str:
    """In one spelling, so that what a case says takes the place of the same series at 0."""
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def respelled(text: str, node: str) -> str:
    name = text.partition("{")[0]
    return series(name, dict(LABEL.findall(text)) | target(node))


def at_zero(metric: Metric, node: str) -> Iterator[str]:
    """Every series of a metric that is there from the start."""
    for values in metric.known:
        labels = dict(zip(metric.label_names, values, strict=True)) | target(node)
        if metric.kind is Kind.HISTOGRAM:
            yield series(f"{metric.name}_count", labels)
            yield from (series(f"{metric.name}_bucket", {**labels, "le": f"{edge:g}"}) for edge in metric.buckets)
            yield series(f"{metric.name}_bucket", {**labels, "le": "+Inf"})
        else:
            yield series(metric.name, labels)


def values(name: str, number: float | str) -> str:
    """Promtool's notation for what a series does."""
    if isinstance(number, str):
        return number
    grows = name.endswith(("_total", "_bucket", "_count"))
    return f"0+{number * SCRAPE_SECONDS:g}x{SCRAPES}" if grows else f"{number:g}x{SCRAPES}"


def used() -> list[Metric]:
    """The metrics that alerts look at."""
    text = RULES.read_text()
    return [metric for metric in METRICS if re.search(rf"\b{metric.name}(_bucket|_count|\b)", text)]


def input_series(case: Case) -> list[dict[str, str]]:
    inputs: dict[str, str] = {}
    for node in NODES:
        numbers = {**HEALTHY, **(case.numbers if node == NODES[0] else {})}
        inputs |= {one: values("", 0) for metric in used() for one in at_zero(metric, node)}
        inputs |= {respelled(text, node): values(text.partition("{")[0], number) for text, number in numbers.items()}
    gone = f"{case.without}{{"
    return [
        {"series": one, "values": what} for one, what in inputs.items() if not (case.without and one.startswith(gone))
    ]


def unit_test(case: Case) -> dict[str, Any]:
    names = dict.fromkeys(alert.name for alert in ALERTS if not case.alert or alert.name == case.alert)
    return {
        "name": case.what,
        "interval": f"{SCRAPE_SECONDS}s",
        "input_series": input_series(case),
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": name, "exp_alerts": list(case.expected)} for name in names
        ],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_promtool_finds_the_alerts_that_should_fire_and_no_others(case: Case, tmp_path: Path):
    path = tmp_path / "test.json"
    tests = {"rule_files": [str(RULES)], "evaluation_interval": f"{SCRAPE_SECONDS}s", "tests": [unit_test(case)]}
    path.write_text(json.dumps(tests))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_every_alert_fires_in_some_case_and_keeps_still_in_others():
    fired = {(case.alert, one["exp_labels"]["severity"]) for case in CASES for one in case.expected}
    assert fired == {(alert.name, alert.severity) for alert in ALERTS}
    assert sum(not case.alert for case in CASES) > len({alert.name for alert in ALERTS})


def test_series_of_the_cases_are_those_of_the_agent():
    known = {one.split("{")[0]: metric for metric in METRICS for one in at_zero(metric, NODES[0])}
    for case in CASES:
        for text in [*HEALTHY, *case.numbers]:
            name, labels = text.partition("{")[0], dict(LABEL.findall(text))
            if name == "up" or name.startswith("kube_"):
                continue
            metric = known.get(name) or next(one for one in METRICS if one.name == name)
            assert set(labels) - {"le"} == set(metric.label_names), text
            allowed = {label.name: label.values for label in metric.labels}
            assert all(value in allowed[key] for key, value in labels.items() if key != "le"), text


def test_promtool_has_nothing_against_the_names_types_and_help_of_the_metrics():
    text = Pages(Sources(Clients(ByClient()))).metrics().body.decode()
    assert promtool("check", "metrics", text=text) == ""


@pytest.mark.parametrize("path", [RULES], ids=lambda path: path.name)
def test_promtool_accepts_the_rules(path: Path):
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", "--lint=all", str(path))
