"""The dashboard shows what the agent tells, and keeps the rules of Grafana's dashboard-linter."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import METRICS
from deploy.grafana.dashboard import COLUMNS, DASHBOARD, UID, dashboard, document
from deploy.grafana.panels import ROWS, Panel
from deploy.grafana.promql import UnknownSeriesError, per_second, quantile, series, share

CONTENT = dashboard()
PANELS = [panel for panel in CONTENT["panels"] if panel["type"] != "row"]
VARIABLES = {one["name"]: one for one in CONTENT["templating"]["list"]}
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
UNITS = {"none", "short", "percentunit", "s", "bytes", "reqps", "pps", "bool_yes_no"}
"""Those in use here, all of them known to the linter (panel-units-rule)."""
SELECTOR = re.compile(r"\b((?:dnstrail|process)_\w+)(\{[^}]*\})?")
NOT_SHOWN = {
    "dnstrail_bpf_statistics_enabled": "in words, at what it enables",
    "dnstrail_clients": "of the agent's own bounds only",
    "dnstrail_clients_limit": "likewise",
    "dnstrail_client_sessions_total": "enough is shown of clients",
    "dnstrail_client_responses_total": "likewise",
    "dnstrail_client_retransmissions_total": "likewise",
    "dnstrail_http_requests_total": "of this port only",
    "dnstrail_http_refused_connections_total": "likewise",
    "dnstrail_kubernetes_events_total": "for whoever uses --events; the log says what keeps them from being written",
    "dnstrail_kubernetes_event_errors_total": "likewise",
    "dnstrail_kubernetes_watch_connected": "an open watch opens and closes all the time",
    "dnstrail_kubernetes_watch_lists_total": "likewise",
    "dnstrail_kubernetes_watch_objects_left_out": "for whoever looks at the API",
    "dnstrail_kubernetes_watch_opened_total": "likewise",
    "dnstrail_kubernetes_watch_undecodable_objects_total": "likewise",
    "dnstrail_kubernetes_watch_wanted": "likewise",
    "dnstrail_ring_size_bytes": "a setting",
}


def family(name: str) -> str:
    return re.sub("_(bucket|count|sum)$", "", name)


def test_the_file_is_what_the_table_makes():
    assert DASHBOARD.read_text() == document(), "run: python -m deploy.grafana.dashboard"
    assert json.loads(document()) == CONTENT


def test_every_metric_is_shown_or_there_is_a_reason():
    shown = {family(name) for _, expression in TARGETS for name, _ in SELECTOR.findall(expression)}
    assert {metric.name for metric in METRICS} - shown == set(NOT_SHOWN)


def test_links_to_it_stay_good():
    assert CONTENT["uid"] == UID == "dnstrail"
    assert "id" not in CONTENT
    assert CONTENT["editable"] is False  # template-uneditable-rule


def test_the_data_source_can_be_chosen():
    """template-datasource-rule, panel-datasource-rule."""
    (source,) = [one for one in VARIABLES.values() if one["type"] == "datasource"]
    assert (source["name"], source["label"], source["query"]) == ("datasource", "Data source", "prometheus")
    for panel in PANELS:
        assert {one["datasource"]["uid"] for one in [panel, *panel["targets"]]} == {"${datasource}"}


@pytest.mark.parametrize("name", ["job", "instance"])
def test_nodes_can_be_chosen(name: str):
    """template-job-rule, template-instance-rule, template-on-time-change-reload-rule."""
    variable = VARIABLES[name]
    assert (variable["type"], variable["label"], variable["refresh"]) == ("query", name, 2)
    assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
    assert variable["datasource"]["uid"] == "${datasource}"
    assert variable["query"]["query"].startswith("label_values(dnstrail_build_info")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_what(panel: dict):
    """panel-title-description-rule, panel-units-rule, panel-no-targets-rule."""
    assert panel["type"] in {"stat", "timeseries"}
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize(("title", "expression"), TARGETS)
def test_an_expression_asks_only_for_the_nodes_chosen(title: str, expression: str):
    """target-job-rule, target-instance-rule."""
    selectors = SELECTOR.findall(expression)
    assert selectors, title
    for name, matchers in selectors:
        assert matchers.startswith('{job=~"$job", instance=~"$instance"'), f"{title}: {name}"


@pytest.mark.parametrize(("title", "expression"), TARGETS)
def test_counters_are_looked_at_by_their_growth_in_the_interval_that_grafana_wants(title: str, expression: str):
    """target-rate-interval-rule, target-counter-agg-rule, target-histogram-rule."""
    assert re.findall(r"\[([^]]*)\]", expression) == ["$__rate_interval"] * expression.count("rate("), title
    for counter in re.finditer(r"\w+(_total|_bucket|_count|_sum)\b(?={)", expression):
        assert expression[: counter.start()].endswith("rate("), title
    assert ("_bucket{" in expression) == ("histogram_quantile(" in expression), title


def test_panels_lie_beside_each_other():
    numbers = [panel["id"] for panel in CONTENT["panels"]]
    assert numbers == list(range(1, len(numbers) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in CONTENT["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(one["gridPos"]["y"] <= other["gridPos"]["y"] for one, other in pairwise(CONTENT["panels"]))


def test_titles_are_different():
    titles = [panel.title for row in ROWS for panel in row.panels]
    assert len(titles) == len(set(titles))


def test_a_panel_without_words_of_its_own_says_what_the_catalogue_says():
    panel = Panel("x", "short", (), (catalogue.SESSIONS, catalogue.PAIRS))
    assert panel.description == f"{catalogue.SESSIONS.help}. {catalogue.PAIRS.help}."


def test_expressions_are_made_of_the_catalogue():
    chosen = 'job=~"$job", instance=~"$instance"'
    assert series(catalogue.PAIRS, vantage="both") == f'dnstrail_pairs_total{{{chosen}, vantage="both"}}'
    assert per_second(catalogue.PAIRS, "vantage", vantage="both|client") == (
        f'sum by (vantage) (rate(dnstrail_pairs_total{{{chosen}, vantage=~"both|client"}}[$__rate_interval]))'
    )
    assert quantile(0.5, catalogue.SERVER_SECONDS) == (
        f"histogram_quantile(0.5, sum by (le) (rate(dnstrail_server_duration_seconds_bucket{{{chosen}}}"
        "[$__rate_interval])))"
    )
    assert share("a", "b", "c") == "a\n/ ignoring (c) group_left ()\nb"


IMPOSSIBLE = {
    "a label of another metric": lambda: series(catalogue.PAIRS, leg="query"),
    "a value that does not exist": lambda: series(catalogue.PAIRS, vantage="nowhere"),
    "one of two values": lambda: series(catalogue.PAIRS, vantage="both|nowhere"),
    "a sum by a label that is not there": lambda: per_second(catalogue.PAIRS, "cause"),
    "the same of a histogram": lambda: quantile(0.5, catalogue.SERVER_SECONDS, "leg"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_the_agent_never_tells_cannot_be_asked_for(what: str):
    with pytest.raises(UnknownSeriesError):
        IMPOSSIBLE[what]()
