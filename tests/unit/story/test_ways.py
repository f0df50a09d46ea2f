"""agent.story.ways: where a message was, as far as its line shows, and where it broke."""

from __future__ import annotations

import copy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, HopLine, Line, build
from agent.session.outcome import Leg
from agent.story.ways import End, Place, Way, ways
from tests.unit.captures import every_line

CLIENT, SERVER, BETWEEN = Place.CLIENT, Place.SERVER, Place.BETWEEN


def line_of(outcome) -> Line:
    return build(outcome, explain(outcome), Context("node-a", 0))


def one(outcome, leg: Leg = Leg.QUERY) -> Way:
    (way,) = (way for way in ways(line_of(outcome)) if way.leg is leg)
    return way


def places(way: Way) -> list[Place]:
    return [stop.place for stop in way.stops]


def devices(way: Way) -> list[tuple[str, ...]]:
    return [stop.devices for stop in way.stops]


def test_a_query_that_was_dropped_ends_where_it_was_dropped(world):
    lookup = world.Lookup()
    way = one(world.outcome(world.dropped(lookup.query(), 2, destination=lookup.backend)))
    assert (way.end, places(way), devices(way)) == (End.DROPPED, [CLIENT, BETWEEN], [("eth0",), ("vethc",)])
    assert way.drop is not None
    assert (way.drop.reason, way.drop.location) == ("NETFILTER_DROP", "nf_hook_slow")
    assert (way.destination, way.stops[-1].destination) == ("10.96.0.10:53", "10.244.1.53:53")


def test_an_answered_lookup_went_from_end_to_end_and_back(world):
    query, reply = ways(line_of(world.outcome(world.Lookup().both())))
    assert (query.leg, query.end, places(query)) == (Leg.QUERY, End.WENT_ON, [CLIENT, BETWEEN, SERVER])
    assert (reply.leg, reply.end, places(reply)) == (Leg.REPLY, End.WENT_ON, [SERVER, BETWEEN, CLIENT])
    assert devices(query)[1] == ("vethc", "vethd")
    assert (query.is_sent_here, query.is_taken_here, reply.is_sent_here, reply.is_taken_here) == (True,) * 4


def test_a_reply_that_was_dropped_ends_where_it_was_dropped(world):
    lookup = world.Lookup()
    query, reply = ways(line_of(world.outcome(lookup.query(), world.dropped(lookup.reply(), 2))))
    assert (query.end, reply.end, places(reply)) == (End.WENT_ON, End.DROPPED, [SERVER, BETWEEN])


def test_of_several_attempts_the_lost_one_is_shown(world):
    lookup, again = world.Lookup(), world.START + 5 * world.SECOND
    lost = world.dropped(lookup.query(), 2)
    line = line_of(world.outcome(lost, lookup.query(again), lookup.reply(again + world.MS)))
    query, reply = ways(line)
    assert (query.copy, query.copies, query.end) == (1, 2, End.DROPPED)
    assert (reply.copy, reply.copies, reply.end) == (1, 1, End.WENT_ON)


def test_of_several_attempts_without_a_drop_the_last_one_is_shown(world):
    lookup, again = world.Lookup(), world.START + 5 * world.SECOND
    way = one(world.outcome(lookup.query(), lookup.query(again)))
    assert (way.copy, way.copies, way.end) == (2, 2, End.UNANSWERED)


def test_copies_to_several_servers_at_once_are_kept_apart(world):
    lookup = world.Lookup()
    line = line_of(world.outcome(world.dropped(lookup.query(), 2)))
    other = copy.deepcopy(line.path)
    for hop in other:
        hop.destination = "10.96.0.11:53"
    line.path = [hop for pair in zip(line.path, other, strict=True) for hop in pair][:-1]
    (way,) = ways(line)
    assert (way.copy, way.copies, way.end) == (1, 2, End.DROPPED)
    assert {stop.destination for stop in way.stops} == {"10.96.0.10:53"}


def test_a_drop_of_a_copy_whose_twin_arrived_is_not_shown_as_a_loss(world):
    line = line_of(world.outcome(world.Lookup().both()))
    flooded = HopLine("STUB_QUERY", "drop", 0.00003, world.NODE, "vethx", *endpoints(line), "SKB_CONSUMED", "br_flood")
    line.path.insert(2, flooded)
    query, reply = ways(line)
    assert (query.end, query.drop, reply.end) == (End.WENT_ON, None, End.WENT_ON)


def endpoints(line: Line) -> tuple[str, str]:
    return line.path[0].source, line.path[0].destination


@pytest.mark.parametrize(("leg", "drops"), [(Leg.UPSTREAM_QUERY, "query"), (Leg.UPSTREAM_REPLY, "reply")])
def test_a_message_between_server_and_upstream_ends_where_it_was_dropped(world, leg, drops):
    lookup = world.Lookup()
    onward = lookup.onward()
    asked, answered = onward.query(world.START + world.MS), onward.reply(world.START + 5 * world.MS)
    parts = [world.dropped(asked, 2)] if drops == "query" else [asked, world.dropped(answered, 2)]
    reply = lookup.reply(world.START + 6 * world.SECOND, rcode=2, aa=False)
    line = line_of(world.outcome(lookup.query(), *parts, reply))
    assert line.cause.code == "PolicyDrop"
    query, said, lost = ways(line)
    assert (query.end, said.end, lost.leg, lost.end) == (End.WENT_ON, End.WENT_ON, leg, End.DROPPED)
    assert lost.drop.reason == "NETFILTER_DROP"
    assert lost.is_sent_here is (leg is Leg.UPSTREAM_QUERY)


def test_a_drop_on_the_way_to_an_upstream_is_no_loss_where_the_upstream_is_to_blame():
    (line,) = (line for line in fixture_lines() if line.cause and line.cause.code == "UpstreamError" and line.upstream)
    asked = next(hop for hop in line.path if hop.message == "FORWARDER_QUERY")
    line.path.append(msgspec.structs.replace(asked, event="drop", reason="SKB_CONSUMED"))
    assert {way.leg for way in ways(line)} == {Leg.QUERY, Leg.REPLY}


def test_a_silent_server_got_the_query(world):
    way = one(world.outcome(world.Lookup().query()))
    assert (way.end, places(way)) == (End.UNANSWERED, [CLIENT, BETWEEN, SERVER])


def test_a_query_that_left_the_node_is_not_followed_any_further(world):
    way = one(world.outcome(world.Lookup(shape="client").query()))
    assert (way.end, places(way), way.is_taken_here) == (End.LOST_SIGHT, [CLIENT, BETWEEN], False)


def test_where_only_the_server_is_here_the_client_was_not_seen(world):
    query, reply = ways(line_of(world.outcome(world.Lookup(shape="server").both())))
    assert (query.is_sent_here, query.is_taken_here, places(query)[-1]) == (False, True, SERVER)
    assert (reply.is_sent_here, reply.is_taken_here, reply.end) == (True, False, End.WENT_ON)


def test_both_ends_in_one_namespace_are_told_apart(world):
    query, reply = ways(line_of(world.outcome(world.Lookup(shape="loopback").both())))
    assert (places(query), places(reply)) == ([CLIENT, SERVER], [SERVER, CLIENT])


def test_a_connection_that_was_refused_ends_so(world):
    outcome = world.outcome(world.Tcp(world.Lookup(shape="client")).refuse())
    way = one(outcome)
    assert line_of(outcome).question is None
    assert way.end is End.REFUSED


def fixture_lines() -> list[Line]:
    return [msgspec.json.decode(text, type=Line) for text in every_line()]


def of_cause(code: str) -> list[list[Way]]:
    return [ways(line) for line in fixture_lines() if line.cause and line.cause.code == code]


@pytest.mark.parametrize("code", ["MalformedReply", "MismatchedReply", "UnexpectedSource"])
def test_a_reply_that_no_client_takes_ends_at_the_client(code):
    found = of_cause(code)
    assert found
    assert {shown[-1].end for shown in found} == {End.NOT_TAKEN}


def test_what_must_have_arrived_unseen_is_inferred():
    (shown,) = of_cause("FragmentLost")
    assert (shown[0].inferred, shown[0].is_taken_here, shown[-1].end) == (True, False, End.DROPPED)


def test_a_capture_that_ends_breaks_no_way():
    assert {shown[0].end for shown in of_cause("CaptureLoss")} == {End.LOST_SIGHT}


@given(data=st.data())
def test_no_stop_is_made_up_whatever_hops_a_line_has(data):
    line = msgspec.json.decode(data.draw(st.sampled_from(every_line())), type=Line)
    line.path = data.draw(st.lists(st.sampled_from(line.path), max_size=12)) if line.path else []
    line.path_bit_map = data.draw(st.integers(0, 255))
    line.client.netns = data.draw(st.sampled_from([None, line.client.netns, line.server.backend_netns]))
    seen = {(hop.netns, hop.source, hop.destination) for hop in line.path}
    for way in ways(line):
        assert way.stops
        assert {(stop.netns, stop.source, stop.destination) for stop in way.stops} <= seen
        assert (way.end is End.DROPPED) is (way.drop is not None)
        assert 1 <= way.copy <= way.copies
