"""A real Prometheus, which scrapes a real agent, has an answer to everything that the dashboard and runbooks ask it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.export.metrics.catalogue import METRICS
from deploy.grafana.dashboard import dashboard
from deploy.prometheus.alerts import ALERTS
from tests.prometheus.node import Node
from tests.prometheus.server import wait_slowly

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(200), pytest.mark.slow]

RUNBOOKS = Path(__file__).parents[2] / "docs/runbooks"
SELECTOR = re.compile(r"\b((?:dnstrail|process)_\w+)(\{[^}]*\})?")
ON_CONDITION = {metric.name for metric in METRICS if metric.when and "conntrack" not in metric.name}
"""Of clusters, and of clients by name: not here."""
SHOWN_SECONDS = 60.0


def panel_expressions() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def runbook_expressions() -> list[tuple[str, str]]:
    return [
        (path.stem, expression)
        for path in sorted(RUNBOOKS.glob("*.md"))
        for expression in re.findall(r"^```promql\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    ]


def chosen(expression: str) -> str:
    """As Grafana fills in its variables."""
    filled = expression.replace("$__rate_interval", "10s").replace("$job", ".+").replace("$instance", ".+")
    assert "$" not in filled
    return filled


EXPRESSIONS = {
    **{f"dashboard, {title} ({number})": text for number, (title, text) in enumerate(panel_expressions())},
    **{f"runbook, {name} ({number})": text for number, (name, text) in enumerate(runbook_expressions())},
    **{f"alert, {alert.name} {number}": alert.expression for number, alert in enumerate(ALERTS)},
}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_prometheus_has_an_answer_to_what_it_is_asked(node: Node, where: str):
    """The expression can be evaluated, and each of its selectors finds series, by name, labels and values."""
    expression = chosen(EXPRESSIONS[where].replace("{window}", "10s"))
    node.prometheus.query(expression)
    for name, matchers in SELECTOR.findall(expression):
        family = re.sub("_(bucket|count|sum)$", "", name)
        assert family in ON_CONDITION or node.prometheus.query(f"{name}{matchers}"), f"{name}{matchers}"


ALWAYS = (
    *("Lookups", "Queries lost", "Errors", "Slowest of a hundred", "Not known", "Agents ready", "Lookups by status"),
    *("Replies by code", "Queries by type", "Lookups by BitMap", "Pairs of A and AAAA that lose one", "Whole lookups"),
    *("On the way", "Time in the server", "Replies by node of the server", "Asked upstream", "Replies of upstreams"),
    *("Waiting for upstreams", "Connection table in use", "Dropped by connection tracking", "Records", "Records lost"),
    *("Ring", "Open lookups", "Event loop", "CPU", "Memory", "What runs where", "Limitations"),
)
"""What there is on a node that is well; the others show losses, clusters, and clients by name."""


def test_panels_have_something_to_show(node: Node):
    def empty() -> set[str]:
        shown = {title for title, text in panel_expressions() if node.prometheus.query(chosen(text))}
        return set(ALWAYS) - shown

    wait_slowly(lambda: not empty(), "the panels", seconds=SHOWN_SECONDS)
