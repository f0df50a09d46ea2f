"""Every alert has a runbook, says the same everywhere, and asks for nothing that the agent does not tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from agent.export.metrics.catalogue import METRICS
from deploy.prometheus import rules
from deploy.prometheus.alerts import ALERTS, JOB, RUNBOOKS, Alert

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs/runbooks"
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
FROM_ELSEWHERE = {"up", "kube_daemonset_status_desired_number_scheduled", "kube_daemonset_status_number_available"}
SELECTOR = re.compile(r"\b(dnstrail_\w+|kube_\w+|up)(?=[\[{ ]|$)", re.MULTILINE)
FACTOR = 1 / 60


def of_severity(alert: Alert) -> str:
    return f"{alert.name}-{alert.severity}"


@pytest.mark.parametrize("path", rules.files(), ids=lambda path: path.name)
def test_the_files_are_those_of_the_table(path: Path):
    assert path.read_text() == rules.files()[path], "run: python -m deploy.prometheus.rules"


def test_both_files_have_the_same_alerts():
    resource = yaml.safe_load(rules.PROMETHEUS_RULE.read_text())
    assert resource["spec"] == yaml.safe_load(rules.RULES.read_text())
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")


@pytest.mark.parametrize("alert", ALERTS, ids=of_severity)
def test_an_alert_leads_to_its_runbook(alert: Alert):
    page = PAGES / alert.runbook.removeprefix(RUNBOOKS)
    assert page.read_text().startswith(f"# {alert.name}\n")
    assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == SECTIONS


def test_no_runbook_is_without_an_alert():
    assert {path.stem for path in PAGES.glob("*.md")} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_links_of_a_runbook_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        text = (page.parent / path).read_text()
        headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
        assert not anchor or anchor in headings


@pytest.mark.parametrize("alert", ALERTS, ids=of_severity)
def test_an_alert_is_worded_as_people_expect_it(alert: Alert):
    assert alert.severity in {"critical", "warning"}
    assert alert.summary.endswith(".")
    assert "{{" not in alert.summary
    assert alert.description.endswith(".")
    assert alert.name[0].isupper()
    assert alert.name.isalnum()


def test_one_name_is_one_kind_of_trouble():
    assert len({(alert.name, alert.summary) for alert in ALERTS}) == len({alert.name for alert in ALERTS})


@pytest.mark.parametrize("alert", ALERTS, ids=of_severity)
def test_an_alert_asks_only_for_what_the_agent_tells(alert: Alert):
    served = {metric.name for metric in METRICS} | FROM_ELSEWHERE
    asked = {re.sub("_(bucket|count|sum)$", "", name) for name in SELECTOR.findall(alert.expression)}
    assert asked
    assert asked <= served


def test_a_test_run_is_quicker_and_otherwise_the_same():
    real, quick = rules.to_yaml(rules.groups()), rules.to_yaml(rules.groups(FACTOR))
    assert "[5m]" in real
    assert "[5s]" in quick
    duration = r"(?<=\[)\d+[sm](?=\])|(?<=for: )\d+[sm]"
    assert re.sub(duration, "", real) == re.sub(duration, "", quick)
    assert not re.findall(rf"(?:{duration})(?<=m)", quick)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.2, "1s"), (45, "45s"), (60, "1m"), (90, "90s"), (7200, "120m")]
)
def test_durations_are_spelled_as_prometheus_does(seconds: float, text: str):
    assert rules.duration(seconds) == text


def test_the_pod_monitor_finds_the_agents_and_makes_the_labels_that_alerts_use():
    monitor = yaml.safe_load((ROOT / "deploy/prometheus/podmonitor.yaml").read_text())["spec"]
    manifests = yaml.safe_load_all((ROOT / "daemonset.yaml").read_text())
    (pod,) = [one["spec"]["template"] for one in manifests if one["kind"] == "DaemonSet"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"][monitor["jobLabel"]] == JOB
    (endpoint,) = monitor["podMetricsEndpoints"]
    ports = [port["name"] for one in pod["spec"]["containers"] for port in one["ports"]]
    assert ports == [endpoint["port"]]
    assert [one["targetLabel"] for one in endpoint["relabelings"]] == ["node"]
    assert any("$labels.node" in alert.description for alert in ALERTS)


def test_everything_can_be_applied_at_once():
    folder = ROOT / "deploy/prometheus"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in folder.glob("*.yaml")} == {*listed, "kustomization.yaml", rules.RULES.name}
