"""What the HTTP port says of incidents: JSON, bounded, and no name that the numbers do not tell either."""

from __future__ import annotations

import json

import pytest

from agent.context.cluster import Pod
from agent.context.who import NOBODY, Who
from agent.explain.incidents import Incidents
from agent.explain.rules import explain
from agent.export import incident_line
from agent.export.line import Context
from agent.export.metrics.board import MAX_OPEN, SHOWN, Board
from agent.export.metrics.clients import BARE
from agent.export.metrics.pages import Pages
from agent.export.metrics.readings import everything
from agent.export.metrics.sources import Sources
from tests.unit.conftest import SECOND, START, Lookup, World, dropped

CART = Pod("uid-1", "shop", "cart-1", "Deployment/cart", "node-a", False, "ClusterFirst", ())
CLIENT = "172.20.2.25"
CONTEXT = Context("node-a", 0)


def incidents(number: int = 1, who: Who = NOBODY, *, ended: bool = False) -> Incidents:
    """So many, each of another client."""
    found = Incidents(max_apart=number)
    for index in range(number):
        lookup = Lookup(name="hush.example.", client=(CLIENT, 44525), client_netns=World.CLIENT + index)
        outcome = World().outcome(dropped(lookup.query(), 2, reason="IP_RPFILTER", location="ip_rcv_finish"))
        verdict = explain(outcome)
        assert verdict.cause is not None
        drop = verdict.cause.drop
        assert drop is not None
        moved = drop._replace(hop=drop.hop._replace(netns=index + 1))
        verdict = verdict._replace(cause=verdict.cause._replace(drop=moved))
        for _ in range(10 + index):
            found.note(outcome, verdict, lambda: who, START)
    found.due(START)
    if ended:
        found.due(START + 3600 * SECOND)
    return found


def listed(found: Incidents, metrics_by: str = "none") -> dict:
    sources = Sources()
    lines = [incident_line.build(one, CONTEXT, START) for one in found.accounts()]
    over = [incident_line.build(one, CONTEXT, START) for one in found.recent]
    sources.board.put_up(lines, over, metrics_by)
    page = Pages(sources).by_path["/incidents"]("")
    assert (page.status, page.content_type) == (200, "application/json")
    return json.loads(page.body)


def test_before_anything_happened_the_list_is_empty():
    assert json.loads(Pages(Sources()).incidents().body) == {"Open": [], "Ended": [], "LeftOut": 0}


def test_open_incidents_are_listed_those_with_most_lookups_first():
    told = listed(incidents(3))
    assert [one["Lookups"] for one in told["Open"]] == [12, 11, 10]
    first = told["Open"][0]
    assert (first["Kind"], first["Code"], first["Node"]) == ("Incident", "ReversePathFilter", "node-a")
    assert first["Doc"] == "docs/causes.md#reversepathfilter"


def test_what_is_over_is_listed_too():
    told = listed(incidents(2, ended=True))
    assert told["Open"] == []
    assert [one["State"] for one in told["Ended"]] == ["Ended", "Ended"]


@pytest.mark.parametrize("metrics_by", SHOWN)
def test_neither_what_was_looked_up_nor_an_address_of_a_client_is_told(metrics_by: str):
    text = json.dumps(listed(incidents(1, Who(client=CART)), metrics_by)) + json.dumps(listed(incidents(), metrics_by))
    assert "hush" not in text
    assert CLIENT not in text


@pytest.mark.parametrize(
    ("metrics_by", "client"),
    [
        ("none", None),
        ("namespace", {"Namespace": "shop", "Workload": None, "Pod": None, "Address": None}),
        ("workload", {"Namespace": "shop", "Workload": "Deployment/cart", "Pod": None, "Address": None}),
    ],
)
def test_clients_are_named_as_far_as_the_numbers_name_them(metrics_by: str, client: dict | None):
    (one,) = listed(incidents(1, Who(client=CART)), metrics_by)["Open"]
    assert one["Client"] == client


def test_a_bare_pod_has_no_name_here_as_it_has_none_in_the_numbers():
    bare = CART._replace(workload=None)
    (one,) = listed(incidents(1, Who(client=bare)), "workload")["Open"]
    assert one["Client"] == {"Namespace": "shop", "Workload": BARE, "Pod": None, "Address": None}


def test_the_list_is_bounded_and_says_what_is_left_out():
    told = listed(incidents(MAX_OPEN + 7))
    assert (len(told["Open"]), told["LeftOut"]) == (MAX_OPEN, 7)


def test_the_page_is_made_once_for_each_list():
    board = Board()
    assert board.page() is board.page()
    before = board.page()
    board.put_up([], [], "none")
    assert board.page() is not before


def test_incidents_are_counted_by_cause():
    sources = Sources()
    sources.incidents = incidents(3)
    readings = {metric.name: values for metric, values in everything(sources).items()}
    assert readings["dnstrail_incidents_total"] == {("ReversePathFilter",): 3}
    assert readings["dnstrail_incidents_open"] == {("ReversePathFilter",): 3}
