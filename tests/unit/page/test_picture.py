"""agent.page.flows and picture: who asks whom, in numbers that packets showed."""

from __future__ import annotations

from agent.context.who import NOBODY, Who
from agent.explain.rules import explain
from agent.export.line import Context, Line, build
from agent.page.flows import IDLE_NS, MAX_TROUBLES, WINDOW_NS, Flows, Trouble
from agent.page.picture import MAX_BOXES, Picture, picture_of
from agent.session.model import SECOND_NS
from tests.unit.conftest import MS, SECOND, START, Lookup, PlainHop, World, dropped
from tests.unit.made_lines import CART, COREDNS, KUBE_DNS

KNOWN = Who(CART, "app", COREDNS, KUBE_DNS)
POD = "172.20.2.25"


def count(flows: Flows, *parts: list[PlainHop], who: Who = NOBODY, at: int = START) -> None:
    world = World()
    for outcome in world.outcomes(*parts):
        verdict = explain(outcome)

        def line(outcome=outcome, verdict=verdict) -> Line:
            return build(outcome, verdict, Context("node-a", 0), who, with_messages=False)

        flows.count(outcome, verdict.cause, line, at)


def picture(flows: Flows, seconds: float = 10) -> Picture:
    return picture_of(flows, START + round(seconds * SECOND_NS))


def titles(found: Picture, column: str) -> list[str]:
    return [box.title for box in found.columns[column]]


def forbidden(lookup: Lookup) -> list[PlainHop]:
    stack = ("nft_do_chain", "nf_hook_slow", "ip_forward")
    return dropped(lookup.query(START), 2, location="nft_do_chain", stack=stack, destination=lookup.backend)


def test_a_lookup_is_drawn_from_its_client_by_the_service_to_the_server():
    flows = Flows(START)
    count(flows, Lookup().both(), who=KNOWN)
    found = picture(flows)
    assert titles(found, "client") == ["cart"]
    assert titles(found, "asked") == ["kube-dns"]
    assert titles(found, "server") == ["coredns-7d56l"]
    assert found.columns["upstream"] == []
    assert [(edge.from_, edge.lookups, edge.failed) for edge in found.edges] == [
        ("client shop/Deployment/cart", 1, 0),
        ("asked 10.96.0.10:53", 1, 0),
    ]
    assert found.edges[0].mean_seconds is not None
    assert "eth0 ▸ vethc" in found.columns["client"][0].details
    assert "vethd ▸ eth0" in found.columns["server"][0].details


def test_without_names_the_addresses_are_shown():
    flows = Flows(START)
    count(flows, Lookup().both())
    found = picture(flows)
    assert (titles(found, "client"), titles(found, "asked")) == ([POD], ["10.96.0.10:53"])


def test_a_lookup_that_nobody_translated_is_said_to_be_asked_directly_or_that_none_was_seen():
    flows = Flows(START)
    count(flows, Lookup(dnat=False, vip=("10.244.1.53", 53)).both())
    (title,) = titles(picture(flows), "asked")
    assert title in ("asked directly", "no translation seen")
    assert len(picture(flows).edges) == 2


def test_a_query_dropped_behind_the_translation_is_lost_there_and_one_before_it_there():
    behind, before = Flows(START), Flows(START)
    count(behind, Lookup().both(), who=KNOWN)
    count(behind, forbidden(Lookup(identifier=2)), who=KNOWN)
    count(before, Lookup().both(), who=KNOWN)
    count(before, dropped(Lookup(identifier=2).query(START), 1), who=KNOWN)
    for flows, first, second in ((behind, 0, 1), (before, 1, 0)):
        marks = [len(edge.marks) for edge in picture(flows).edges[:2]]
        assert marks == [first, second]
    (mark,) = picture(behind).edges[1].marks
    assert (mark.code, mark.leg, mark.lookups) == ("PolicyDrop", "query", 1)
    assert "NETFILTER_DROP" in mark.place
    assert picture(behind).failed == 1


def test_a_server_that_says_nothing_is_marked_itself():
    flows = Flows(START)
    count(flows, Lookup().query(), who=KNOWN)
    (server,) = picture(flows).columns["server"]
    assert [mark.code for mark in server.marks] == ["ServerNoReply"]


def test_what_a_server_asks_upstream_is_drawn_with_answers_and_silence():
    flows = Flows(START)
    answered, silent = Lookup(), Lookup(identifier=50)
    onward, unheard = answered.onward(), silent.onward(identifier=60)
    reply = {"aa": False, "ra": True}
    count(
        flows,
        *(answered.query(START), onward.query(START + MS), onward.reply(START + 4 * MS, **reply)),
        answered.reply(START + 5 * MS, **reply),
        who=KNOWN,
    )
    count(
        flows,
        *(silent.query(START), unheard.query(START + MS), silent.reply(START + 6 * SECOND, rcode=2, aa=False)),
        who=KNOWN,
    )
    found = picture(flows)
    (upstream,) = found.columns["upstream"]
    edge = next(edge for edge in found.edges if edge.to == f"upstream {upstream.id}")
    assert (edge.lookups, edge.failed) == (2, 1)
    assert edge.mean_seconds is not None
    assert 0.002 < edge.mean_seconds < 0.004
    assert [mark.code for mark in edge.marks] == ["UpstreamTimeout"]


def test_lookups_that_are_counted_together_are_in_the_same_sums():
    flows, world = Flows(START), World()
    outcome = world.outcome(Lookup().both())
    line = build(outcome, explain(outcome), Context("node-a", 0), KNOWN, with_messages=False)
    flows.flow_of(outcome, lambda: line, START).count_together(500, 500 * MS)
    found = picture(flows)
    assert (found.lookups, found.failed) == (500, 0)
    assert [edge.lookups for edge in found.edges] == [500, 500]
    assert found.edges[0].mean_seconds == 0.001


def test_what_servers_ask_for_lookups_that_are_counted_together_is_in_the_same_sums():
    flows, world = Flows(START), World()
    lookup = Lookup()
    onward, reply = lookup.onward(), {"an": 1, "aa": False, "ra": True}
    hops = (lookup.query(START), onward.query(START + MS), onward.reply(START + 4 * MS, **reply))
    outcome = world.outcome([hop for part in (*hops, lookup.reply(START + 5 * MS, **reply)) for hop in part])
    line = build(outcome, explain(outcome), Context("node-a", 0), KNOWN, with_messages=False)
    flows.flow_of(outcome, lambda: line, START).count_together(500, 2500 * MS)
    upstream = flows.upstream_of(outcome, START)
    assert upstream is not None
    upstream.count_together(500, 1500 * MS)
    found = picture(flows)
    (box,) = found.columns["upstream"]
    edge = next(edge for edge in found.edges if edge.to == f"upstream {box.id}")
    assert (edge.lookups, edge.failed, edge.mean_seconds) == (500, 0, 0.003)
    assert flows.upstream_of(world.outcome(Lookup(identifier=7).both()), START) is None


def test_the_numbers_are_of_the_last_half_to_whole_minute():
    flows = Flows(START)
    count(flows, Lookup().both())
    assert flows.turn(START + WINDOW_NS)
    assert not flows.turn(START + WINDOW_NS + 1)
    assert picture(flows, 45).lookups == 1
    assert picture(flows, 45).seconds == 45
    assert flows.turn(START + 2 * WINDOW_NS)
    assert picture(flows, 75).lookups == 0
    assert picture(flows, 75).seconds == 45


def test_what_is_not_seen_any_more_is_forgotten():
    flows = Flows(START)
    count(flows, Lookup().both())
    for number in range(1, 2 + IDLE_NS // WINDOW_NS):
        flows.turn(START + number * WINDOW_NS)
    assert flows.all() == []


def test_flows_are_bounded_and_those_without_room_are_in_the_sum():
    flows = Flows(START, max_flows=3)
    for index in range(10):
        count(flows, Lookup(client=(f"172.20.3.{index}", 40000), client_netns=1000 + index).both())
    found = picture(flows)
    assert (len(flows.all()), found.lookups, found.not_apart) == (3, 10, 7)


def test_boxes_are_bounded_and_those_with_trouble_are_shown():
    flows = Flows(START)
    for index in range(40):
        lookup = Lookup(client=(f"172.20.3.{index}", 40000), client_netns=1000 + index)
        count(flows, forbidden(lookup) if index == 39 else lookup.both())
    boxes = picture(flows).columns["client"]
    assert len(boxes) == MAX_BOXES["client"] + 1
    assert "172.20.3.39" in titles(picture(flows), "client")
    assert boxes[-1].stands_for == 32
    assert sum(box.lookups for box in boxes) == 40


def test_kinds_of_trouble_are_bounded():
    flows = Flows(START)
    count(flows, Lookup().both())
    (flow,) = flows.all()
    for index in range(MAX_TROUBLES):
        flow.now.troubles[Trouble(f"c{index}", "high", "", "ask", "")] = 1
    count(flows, forbidden(Lookup(identifier=9)))
    assert len(flow.now.troubles) <= MAX_TROUBLES + 1
